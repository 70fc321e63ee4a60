//! Records of what was listed, whose order as bytes is that of the finished table.
//!
//! ```text
//! depth u32 | path, each name behind it a zero byte | 0 | newest first: time | path's length u32              (directory)
//! depth u32 | path, each name behind it a zero byte | 1 | mount u16 | newest, then last first: time, number |
//!     size u64 | version as in the table | path's length u32                                                 (file)
//! ```
//!
//! So entries come level by level, in a level directory by directory, in a directory by name. Of one name the directory
//! comes first, then the file of the mount that was given first, of one mount the newest, of one date the one that was
//! listed last. No name has a zero byte.

use super::format::{read_u32, read_u64};

const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const DEPTH_LEN: usize = 4;
const LENGTH_LEN: usize = 4;

/// A file as it was listed.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListedFile<'a> {
    pub(super) mount: u16,
    pub(super) mtime_ns: i64,
    /// How many files were listed before.
    pub(super) number: u64,
    pub(super) size: u64,
    /// As [`write_version`](super::format::write_version) writes it.
    pub(super) version: &'a [u8],
}

/// What was found at a path.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found<'a> {
    /// A directory, with the time of its marker.
    Directory(i64),
    File(ListedFile<'a>),
}

/// Writes the record of `found` at `path` in the place of what `record` holds.
pub(super) fn write(record: &mut Vec<u8>, path: &[u8], found: Found<'_>) {
    let depth = (path.split(|byte| *byte == 0).count() - 1) as u32;
    record.clear();
    record.extend_from_slice(&depth.to_be_bytes());
    record.extend_from_slice(path);
    match found {
        Found::Directory(mtime_ns) => {
            record.push(DIRECTORY);
            record.extend_from_slice(&newest_first(mtime_ns));
        }
        Found::File(file) => {
            record.push(FILE);
            record.extend_from_slice(&file.mount.to_be_bytes());
            record.extend_from_slice(&newest_first(file.mtime_ns));
            record.extend_from_slice(&(!file.number).to_be_bytes());
            record.extend_from_slice(&file.size.to_le_bytes());
            record.extend_from_slice(file.version);
        }
    }
    record.extend_from_slice(&(path.len() as u32).to_le_bytes());
}

/// The path in a record, and what was found there. Nothing if it is not one.
pub(super) fn read(record: &[u8]) -> Option<(&[u8], Found<'_>)> {
    let length_at = record.len().checked_sub(LENGTH_LEN)?;
    let path_end = DEPTH_LEN.checked_add(read_u32(record, length_at) as usize)?;
    let path = record.get(DEPTH_LEN..path_end)?;
    let rest = record.get(path_end..length_at)?;
    let found = match *rest.first()? {
        DIRECTORY => Found::Directory(time(rest.get(1..9)?)),
        _ => Found::File(ListedFile {
            mount: u16::from_be_bytes([*rest.get(1)?, *rest.get(2)?]),
            mtime_ns: time(rest.get(3..11)?),
            number: !read_u64(rest.get(11..19)?, 0).swap_bytes(),
            size: read_u64(rest.get(19..27)?, 0),
            version: rest.get(27..)?,
        }),
    };
    Some((path, found))
}

/// A path's directory and the last of its names. Nothing of the root.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, name_end) = path.split_last()?;
    let name_start = name_end.iter().rposition(|byte| *byte == 0);
    Some(path.split_at(name_start.map_or(0, |zero| zero + 1)))
        .map(|(directory, name)| (directory, &name[..name.len() - 1]))
}

fn newest_first(time: i64) -> [u8; 8] {
    (!(time.cast_unsigned() ^ SIGN)).to_be_bytes()
}

fn time(bytes: &[u8]) -> i64 {
    (!read_u64(bytes, 0).swap_bytes() ^ SIGN).cast_signed()
}

/// Without it negative numbers would be greater than others.
const SIGN: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: &str, found: Found<'_>) -> Vec<u8> {
        let mut record = Vec::new();
        let path = path.replace('/', "\0");
        write(&mut record, path.as_bytes(), found);
        let (read_path, again) = read(&record).unwrap();
        assert_eq!(read_path, path.as_bytes());
        assert_eq!(format!("{again:?}"), format!("{found:?}"));
        record
    }

    fn file(mount: u16, mtime_ns: i64, number: u64) -> Found<'static> {
        Found::File(ListedFile {
            mount,
            mtime_ns,
            number,
            size: 5,
            version: b"\x01\x01\0v",
        })
    }

    #[test]
    fn records_sort_as_the_table_does() {
        let records = [
            record("", Found::Directory(7)),
            record("", Found::Directory(0)),
            record("b/", Found::Directory(0)),
            record("b/", file(0, 9, 0)),
            record("b!/", file(0, 9, 0)),
            record("b\x01/", file(0, 9, 0)),
            record("a/x/", file(0, i64::MAX, 3)),
            record("a/x/", file(0, 9, 4)),
            record("a/x/", file(0, 9, 3)),
            record("a/x/", file(0, -1, 5)),
            record("a/x/", file(0, i64::MIN, 6)),
            record("a/x/", file(1, 10, 7)),
            record("a/xa/", file(0, 0, 2)),
            record("a!/x/", file(0, 0, 1)),
        ];
        let mut sorted = records.to_vec();
        sorted.sort();
        let expected = [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11, 12, 13].map(|at| records[at].clone());
        assert_eq!(sorted, expected);
        assert!(read(&records[6][..20]).is_none());
        assert!(read(&[]).is_none());
    }

    #[test]
    fn a_path_has_a_directory_and_a_name() {
        assert_eq!(split(b""), None);
        assert_eq!(split(b"a\0"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b"a\0bc\0"), Some((&b"a\0"[..], &b"bc"[..])));
    }
}
