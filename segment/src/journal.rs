//! The table of the segment being written, in a side file `ID.journal`, so that opening after a death need not
//! read the header of every record.
//!
//! It is a shortcut like the footer, which replaces it when the segment is sealed: it is written every few
//! records, after them, and where it ends or is damaged the records' own headers take over.
//!
//! Each piece is the length of its entries u32, a checksum u32 over the segment's number, the records' version and the
//! entries, and the entries as in the footer's table.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crc_fast::crc32_iscsi;

use super::disk::Disk;
use super::footer;
use super::record::{Record, VERSION};

/// Records between two pieces: what is walked after a death, at some hundred microseconds each.
pub(super) const EVERY: u32 = if cfg!(test) { 3 } else { 32 };

/// The side file's ending.
pub(super) const EXTENSION: &str = "journal";

const HEAD: usize = 8;

/// The journal of the segment file at `segment`.
pub(super) fn path_of(segment: &Path) -> PathBuf {
    segment.with_extension(EXTENSION)
}

fn checksum(id: u64, entries: &[u8]) -> u32 {
    // A journal beside the wrong file, or of another version of records, does not hold.
    let mut of_file = id.to_le_bytes().to_vec();
    of_file.extend(VERSION.to_le_bytes());
    crc32_iscsi(&of_file) ^ crc32_iscsi(entries)
}

/// Adds a piece of the table of segment `id`.
pub(super) fn append(disk: &dyn Disk, segment: &Path, id: u64, entries: &[u8]) -> io::Result<()> {
    let mut piece = Vec::with_capacity(HEAD + entries.len());
    piece.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    piece.extend_from_slice(&checksum(id, entries).to_le_bytes());
    piece.extend_from_slice(entries);
    disk.append(&path_of(segment), &piece)
}

/// The first records of segment `id` whose file has `file_len` bytes: as many as are named by intact pieces.
pub(super) fn read(segment: &Path, id: u64, file_len: u64) -> Vec<Record> {
    let bytes = fs::read(path_of(segment)).unwrap_or_default();
    let mut rest = &bytes[..];
    let mut records: Vec<Record> = Vec::new();
    while let Some((entries, sum, behind)) = split_piece(rest) {
        let intact = (checksum(id, entries) == sum)
            .then(|| footer::decode_entries(entries, file_len))
            .flatten();
        let Some(piece) = intact else {
            break;
        };
        records.extend(piece);
        rest = behind;
    }
    records
}

fn split_piece(bytes: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let word = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).ok();
    let (entries, behind) = rest.split_at_checked(word(0)? as usize)?;
    Some((entries, word(4)?, behind))
}
