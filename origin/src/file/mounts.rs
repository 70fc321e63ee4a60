//! Which file systems are mounts of Weir, by the kernel's table of mounts.
//!
//! A directory is never listed through Weir's own mounts: they show what is listed, and would be listed into themselves.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dev, StatxFlags, makedev, statx};
use rustix::path::Arg;

/// The file system of `path`, from an open directory; of that itself if the path is empty. The one that serves a
/// mountpoint is not asked, so this answers also if that one hangs. A symbolic link is not followed.
pub(super) fn device(directory: impl AsFd, path: impl Arg) -> rustix::io::Result<Dev> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let stat = statx(directory, path, flags, StatxFlags::empty())?;
    Ok(makedev(stat.stx_dev_major, stat.stx_dev_minor))
}

/// Whether a file system is a mount of Weir. Without the table, none is.
pub(super) fn is_weir(device: Dev) -> bool {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    has_weir(&table, device)
}

/// Lines are `36 35 98:0 /root /mountpoint rw,noatime tag:1 - type source options` (proc(5)).
fn has_weir(table: &[u8], device: Dev) -> bool {
    table.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let is_it = fields.nth(2).and_then(parse_device) == Some(device);
        is_it && fields.any(|field| field == b"-") && fields.next() == Some(b"fuse.weir")
    })
}

fn parse_device(field: &[u8]) -> Option<Dev> {
    let (major, minor) = str::from_utf8(field).ok()?.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_mount_of_weir_is_told_by_its_device() {
        let table = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            90 27 0:57 / /mnt/a\\040b ro,nosuid shared:7 master:2 - fuse.weir weir:s3://b/p ro\n\
            91 27 0:58 / /mnt/c ro - fuse.other fuse.weir ro\n\
            half a line\n";
        let is_weir = |minor| has_weir(table, makedev(0, minor));
        assert_eq!([21, 57, 58, 59].map(is_weir), [false, true, false, false]);
    }

    #[test]
    fn the_device_of_a_directory_is_the_one_of_its_stat() {
        let dir = tempfile::tempdir().unwrap();
        let stat = std::fs::metadata(dir.path()).unwrap();
        assert_eq!(device(rustix::fs::CWD, dir.path()).unwrap(), stat.dev());
        assert!(!is_weir(stat.dev()));
    }
}
