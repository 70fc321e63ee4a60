//! The end of a sealed segment: the table of its records, and a trailer that says where the table is.
//!
//! With it, opening a store reads a few pages per segment and not one per block. It is only ever a shortcut: if a
//! checksum does not hold, the records' own headers are read instead.
//!
//! ```text
//! table    per record: block key 16 bytes, start u32 (units of 64 bytes), data length u32, chunk checksums u32 each
//! zeros    up to the last 64 bytes of a page
//! trailer  magic 8 bytes, version u32, records u32, segment u64, table offset u64, table length u64,
//!          checksum of the table u32, checksum of the trailer up to here u32, zeros
//! ```

use std::fs::File;
use std::io;

use crc_fast::crc32_iscsi;
use weir_core::BlockKey;

use super::aligned::{AlignedBuf, PAGE, page_ceil, page_floor};
use super::disk::Disk;
use super::record::{Checksums, MAX_BLOCK_LEN, Record, chunk_count};

const MAGIC: [u8; 8] = *b"WEIRSEGM";
const VERSION: u32 = 2;
const TRAILER: usize = 64;
const SUMMED: usize = 44;

/// Bytes of a table's entry before its checksums.
const ENTRY_FIXED: usize = 24;

/// Bytes read from a file's end at first; holds the whole table of a segment of 256 MiB full of 100 KiB blocks.
const FIRST_READ: u64 = 128 << 10;

/// Bytes that the table's entry for a block of `len` bytes takes.
pub(super) fn entry_len(len: u32) -> u64 {
    (ENTRY_FIXED + 4 * chunk_count(len)) as u64
}

/// Bytes that the footer with a table of `table` bytes adds to a segment.
pub(super) fn footer_len(table: u64) -> u64 {
    page_ceil(table + TRAILER as u64)
}

/// Adds a record to a table.
pub(super) fn push_entry(table: &mut Vec<u8>, record: &Record) {
    table.extend_from_slice(&record.key.0);
    table.extend_from_slice(&record.unit.to_le_bytes());
    table.extend_from_slice(&record.len.to_le_bytes());
    for sum in record.sums.iter() {
        table.extend_from_slice(&sum.to_le_bytes());
    }
}

/// The footer of segment `id`, whose records end at `offset`, a whole number of pages.
pub(super) fn encode(id: u64, offset: u64, records: u32, table: &[u8]) -> AlignedBuf {
    let total = footer_len(table.len() as u64) as usize;
    let mut buffer = AlignedBuf::zeroed(total);
    let bytes = buffer.bytes_mut();
    bytes[..table.len()].copy_from_slice(table);
    let trailer = &mut bytes[total - TRAILER..];
    trailer[0..8].copy_from_slice(&MAGIC);
    trailer[8..12].copy_from_slice(&VERSION.to_le_bytes());
    trailer[12..16].copy_from_slice(&records.to_le_bytes());
    trailer[16..24].copy_from_slice(&id.to_le_bytes());
    trailer[24..32].copy_from_slice(&offset.to_le_bytes());
    trailer[32..40].copy_from_slice(&(table.len() as u64).to_le_bytes());
    trailer[40..44].copy_from_slice(&crc32_iscsi(table).to_le_bytes());
    let sum = crc32_iscsi(&trailer[..SUMMED]);
    trailer[44..48].copy_from_slice(&sum.to_le_bytes());
    buffer
}

struct Trailer {
    records: u32,
    offset: u64,
    table_len: u64,
    table_sum: u32,
}

fn decode_trailer(bytes: &[u8], id: u64, file_len: u64) -> Option<Trailer> {
    let word = |at: usize| {
        bytes
            .get(at..at + 4)?
            .try_into()
            .map(u32::from_le_bytes)
            .ok()
    };
    let long = |at: usize| {
        bytes
            .get(at..at + 8)?
            .try_into()
            .map(u64::from_le_bytes)
            .ok()
    };
    let known = bytes.get(..8)? == MAGIC && word(8)? == VERSION && long(16)? == id;
    if !known || crc32_iscsi(bytes.get(..SUMMED)?) != word(44)? {
        return None;
    }
    let trailer = Trailer {
        records: word(12)?,
        offset: long(24)?,
        table_len: long(32)?,
        table_sum: word(40)?,
    };
    let fits = trailer.table_len <= file_len
        && trailer.offset.checked_add(footer_len(trailer.table_len)) == Some(file_len);
    fits.then_some(trailer)
}

fn decode_table(table: &[u8], trailer: &Trailer) -> Option<Vec<Record>> {
    if crc32_iscsi(table) != trailer.table_sum {
        return None;
    }
    decode_entries(table, trailer.offset).filter(|r| r.len() == trailer.records as usize)
}

/// Reads a table's entries. `None` if one is not whole, or names a record that does not lie before `end`.
pub(super) fn decode_entries(mut table: &[u8], end: u64) -> Option<Vec<Record>> {
    let mut records = Vec::with_capacity(table.len() / (ENTRY_FIXED + 4));
    while !table.is_empty() {
        let (fixed, rest) = table.split_at_checked(ENTRY_FIXED)?;
        let word = |at: usize| fixed[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let len = word(20)?;
        if len == 0 || len > MAX_BLOCK_LEN {
            return None;
        }
        let (sums, rest) = rest.split_at_checked(4 * chunk_count(len))?;
        let mut words = [0; chunk_count(MAX_BLOCK_LEN)];
        for (word, bytes) in words.iter_mut().zip(sums.chunks_exact(4)) {
            *word = bytes.try_into().map(u32::from_le_bytes).ok()?;
        }
        let record = Record {
            key: BlockKey(fixed[..16].try_into().ok()?),
            unit: word(16)?,
            len,
            sums: Checksums::from(&words[..chunk_count(len)]),
        };
        if record.data_end() > end {
            return None;
        }
        records.push(record);
        table = rest;
    }
    Some(records)
}

/// Reads the table of segment `id` from a file of `file_len` bytes. `None` if it has no intact footer.
pub(super) fn read(
    disk: &dyn Disk,
    file: &File,
    id: u64,
    file_len: u64,
) -> io::Result<Option<Vec<Record>>> {
    if file_len < PAGE || !file_len.is_multiple_of(PAGE) {
        return Ok(None);
    }
    let from = page_floor(file_len - FIRST_READ.min(file_len));
    let Some(end) = read_span(disk, file, from, file_len)? else {
        return Ok(None);
    };
    let end = &end.bytes()[..(file_len - from) as usize];
    let Some(trailer) = decode_trailer(&end[end.len() - TRAILER..], id, file_len) else {
        return Ok(None);
    };
    let table_len = trailer.table_len as usize;
    if trailer.offset >= from {
        let at = (trailer.offset - from) as usize;
        return Ok(decode_table(&end[at..at + table_len], &trailer));
    }
    let Some(whole) = read_span(disk, file, page_floor(trailer.offset), file_len)? else {
        return Ok(None);
    };
    let at = (trailer.offset % PAGE) as usize;
    Ok(decode_table(&whole.bytes()[at..at + table_len], &trailer))
}

/// Reads the bytes from `from` to `to`, both whole pages; `None` if the file ends before.
fn read_span(disk: &dyn Disk, file: &File, from: u64, to: u64) -> io::Result<Option<AlignedBuf>> {
    let len = (to - from) as usize;
    let mut buffer = AlignedBuf::zeroed(len);
    let mut done = 0;
    while done < len {
        let read = disk.read_at(file, &mut buffer.bytes_mut()[done..len], from + done as u64)?;
        if read == 0 {
            return Ok(None);
        }
        done += read;
    }
    Ok(Some(buffer))
}

#[cfg(test)]
mod tests {
    use super::super::disk::LocalDisk;
    use super::*;
    use std::os::unix::fs::FileExt as _;

    fn table_of(count: u32) -> (Vec<Record>, Vec<u8>) {
        let mut table = Vec::new();
        let records: Vec<Record> = (0..count)
            .map(|i| Record {
                key: BlockKey([i as u8; 16]),
                unit: 0,
                len: 100 + i,
                sums: Checksums::from(&[i][..]),
            })
            .collect();
        for record in &records {
            push_entry(&mut table, record);
        }
        (records, table)
    }

    #[test]
    fn a_table_longer_than_the_first_read_is_read_whole() {
        for count in [0, 1, 20_000] {
            let (records, table) = table_of(count);
            let footer = encode(7, 1 << 20, count, &table);
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(footer.bytes(), 1 << 20).unwrap();
            let len = (1 << 20) + footer.bytes().len() as u64;
            assert_eq!(len, (1 << 20) + footer_len(table.len() as u64));
            assert_eq!(read(&LocalDisk, &file, 7, len).unwrap(), Some(records));
            assert_eq!(
                read(&LocalDisk, &file, 8, len).unwrap(),
                None,
                "another segment"
            );
        }
    }

    #[test]
    fn a_footer_with_a_flipped_bit_is_refused() {
        let (_, table) = table_of(5);
        let good = encode(7, 4096, 5, &table).bytes().to_vec();
        let used = (0..table.len()).chain(good.len() - TRAILER..good.len() - TRAILER + 48);
        for at in used {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bad, 4096).unwrap();
            let len = 4096 + bad.len() as u64;
            assert_eq!(read(&LocalDisk, &file, 7, len).unwrap(), None, "byte {at}");
        }
    }
}
