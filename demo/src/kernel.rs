//! The kernel's caches and its table of mounts.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::mount::{UnmountFlags, unmount};

use crate::ending::tell;

/// Empties the kernel's caches of pages, names and inodes. Fails where that is not permitted.
pub fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3")
        .context("dropping the kernel's caches needs root")
}

/// Whether something is mounted at `dir`, without touching it.
pub fn is_mountpoint(dir: &Path) -> bool {
    mountpoints().iter().any(|mountpoint| mountpoint == dir)
}

/// What is mounted at `dir` or below it, the inner ones first.
pub fn mounted_below(dir: &Path) -> Vec<PathBuf> {
    let mut below = mountpoints();
    below.retain(|mountpoint| mountpoint.starts_with(dir));
    below.reverse();
    below
}

/// Detaches all mounts below `dir`: those that an interrupted run has left.
pub fn unmount_below(dir: &Path) {
    for mountpoint in mounted_below(dir) {
        if let Err(error) = unmount(&mountpoint, UnmountFlags::DETACH) {
            let place = mountpoint.display();
            tell(format_args!("{place} cannot be unmounted: {error}"));
        }
    }
}

fn mountpoints() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    parse(&table)
}

/// The fifth field of each line. Blanks and the like are octal there, such as `\040`.
fn parse(table: &str) -> Vec<PathBuf> {
    let fields = table.lines().filter_map(|line| line.split(' ').nth(4));
    fields
        .map(|field| field.replace("\\040", " ").into())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountpoints_are_the_fifth_field() {
        let table =
            "22 1 254:0 / / rw - ext4 /dev/vda rw\n40 22 0:3 / /a\\040b ro - fuse.weir weir ro\n";
        assert_eq!(parse(table), [PathBuf::from("/"), "/a b".into()]);
    }
}
