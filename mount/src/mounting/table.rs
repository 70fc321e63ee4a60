//! The kernel's table of mounts, `/proc/self/mountinfo` (proc(5)), and what follows from a mount's device number.
//!
//! It answers what is mounted where without touching the mount.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// `MAJOR:MINOR` of the file system; each FUSE mount has its own.
    pub device: String,
    /// The directory of the file system that is shown; `/` unless a part of it was bound there.
    pub root: PathBuf,
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Its type, such as `fuse.weir`.
    pub fs_type: String,
    /// What is shown as its source.
    pub source: String,
}

/// All mounts that this process sees, in the order in which they were made.
pub fn read() -> io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// What is mounted at `mountpoint`, the topmost if there are several.
pub fn at(mountpoint: &Path) -> io::Result<Option<Entry>> {
    Ok(read()?
        .into_iter()
        .rfind(|entry| entry.mountpoint == mountpoint))
}

/// Why a mount is refused with `ENOSPC`: a namespace has room for so many mounts, and disks have nothing to do with it.
pub fn full() -> String {
    let most = std::fs::read_to_string("/proc/sys/fs/mount-max").unwrap_or_default();
    format!(
        "there are already as many mounts as this machine allows ({}); unmount some, or raise the sysctl fs.mount-max",
        most.trim()
    )
}

/// Sets how far the kernel reads ahead in a mount, in bytes. Only root may.
pub(crate) fn set_read_ahead(device: &str, bytes: u64) -> io::Result<()> {
    std::fs::write(
        format!("/sys/class/bdi/{device}/read_ahead_kb"),
        (bytes / 1024).to_string(),
    )
}

fn parse(table: &[u8]) -> Vec<Entry> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 98:0 /root /mountpoint rw,noatime tag:1 - type source options`; any number of tags.
fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = text(fields.nth(2)?);
    let root = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    fields.find(|field| *field == b"-")?;
    Some(Entry {
        device,
        root,
        mountpoint,
        fs_type: text(fields.next()?),
        source: text(fields.next()?),
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        if let Some(byte) = octal {
            plain.push(byte);
            rest = &after[3..];
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_its_tags_and_escapes() {
        let table = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            90 27 0:57 /sub\\040dir /mnt/a\\040b\\134c ro,nosuid shared:7 master:2 - fuse.weir weir:s3://b/p\\040q ro\n\
            half a line\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        assert_eq!(
            entries[1],
            Entry {
                device: "0:57".into(),
                root: "/sub dir".into(),
                mountpoint: "/mnt/a b\\c".into(),
                fs_type: "fuse.weir".into(),
                source: "weir:s3://b/p q".into(),
            }
        );
    }

    #[test]
    fn the_table_of_this_machine_has_its_root_or_proc() {
        assert!(
            at(Path::new("/proc"))
                .unwrap()
                .is_some_and(|proc| proc.fs_type == "proc")
        );
        assert_eq!(at(Path::new("/proc/no-such")).unwrap(), None);
    }
}
