//! Which records of a segment are not to come back: a side file `ID.removed` per segment, deleted with it.
//!
//! A segment is never written twice, so a block that was removed, or found corrupt, still has its record there
//! until the segment is compacted. Each entry names one record by its offset and carries a checksum, so a torn
//! entry is skipped. Losing this file brings removed blocks back after a restart, with the right bytes.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crc_fast::crc32_iscsi;

use super::disk::Disk;

/// Bytes of one entry: offset in record units and checksum, little endian.
const ENTRY: usize = 8;

/// The side file's ending.
pub(super) const EXTENSION: &str = "removed";

/// The side file of the segment file at `segment`.
pub(super) fn path_of(segment: &Path) -> PathBuf {
    segment.with_extension(EXTENSION)
}

fn checksum(id: u64, offset: u32) -> u32 {
    let mut named = [0; 12];
    named[..8].copy_from_slice(&id.to_le_bytes());
    named[8..].copy_from_slice(&offset.to_le_bytes());
    crc32_iscsi(&named)
}

/// Notes that the records at `offsets` (in record units) of segment `id` are dead.
pub(super) fn note(disk: &dyn Disk, segment: &Path, id: u64, offsets: &[u32]) -> io::Result<()> {
    let mut entries = Vec::with_capacity(offsets.len() * ENTRY);
    for &offset in offsets {
        entries.extend_from_slice(&offset.to_le_bytes());
        entries.extend_from_slice(&checksum(id, offset).to_le_bytes());
    }
    disk.append(&path_of(segment), &entries)
}

/// The offsets noted for segment `id`; empty if there is no file or it cannot be read.
pub(super) fn read(segment: &Path, id: u64) -> HashSet<u32> {
    let bytes = fs::read(path_of(segment)).unwrap_or_default();
    let word = |at: &[u8]| at.try_into().map(u32::from_le_bytes).ok();
    bytes
        .chunks_exact(ENTRY)
        .filter_map(|entry| {
            let (offset, sum) = (word(&entry[..4])?, word(&entry[4..])?);
            (sum == checksum(id, offset)).then_some(offset)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::disk::LocalDisk;
    use super::*;

    #[test]
    fn a_torn_entry_and_an_entry_of_another_segment_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let segment = dir.path().join("a.segment");
        note(&LocalDisk, &segment, 1, &[5, 6]).unwrap();
        note(&LocalDisk, &segment, 2, &[7]).unwrap();
        LocalDisk.append(&path_of(&segment), &[1, 2, 3]).unwrap();
        assert_eq!(read(&segment, 1), HashSet::from([5, 6]));
        assert!(read(&dir.path().join("b.segment"), 1).is_empty());
    }
}
