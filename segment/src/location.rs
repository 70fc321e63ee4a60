//! A place that can be read and verified without asking the store again.
//!
//! The store reads its own blocks through this, and so does a client process on the same machine to which the
//! descriptor was passed: the bytes then never cross a socket, and both check the same checksums. The descriptor
//! is open for reading only and keeps its file readable after the store has deleted it. It covers a whole segment
//! file, so it is only to be passed to a process that may read everything the worker holds.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use crc_fast::crc32_iscsi;

use super::aligned::{BufferPool, PAGE, page_ceil, page_floor};
use super::disk::{Disk, LocalDisk, give_back_pages};
use super::record::{CHUNK_PAGES, CHUNK_SIZE, Checksums, chunk_sum, chunk_sum_of, page_count};

const PAGE_LEN: u32 = PAGE as u32;

/// Where a block's data is.
#[derive(Debug, Clone)]
pub struct BlockLocation {
    /// The segment file, open for reading.
    pub file: Arc<File>,
    /// True if the descriptor does direct I/O: offsets, lengths and memory must be aligned to 4,096 bytes.
    pub direct: bool,
    /// Offset of the block's first byte in the file, in bytes.
    pub offset: u64,
    /// Length of the block, in bytes.
    pub len: u32,
    /// The checksum of each chunk of [`CHUNK_SIZE`] bytes; the last chunk may be shorter.
    pub checksums: Checksums,
    /// Where in the file the CRC-32C of each of the block's pages of 4,096 bytes are, if they are there: from them
    /// follow those of the chunks.
    pub page_checksums_at: Option<u64>,
}

/// Why a block could not be read where it should be.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    /// The system could not read the file.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// The file ends before the block does.
    #[error("the segment file ends before the block does")]
    Short,
    /// The data is not what was written.
    #[error("chunk {chunk} does not have the checksum that it was written with")]
    Corrupt {
        /// Index of the chunk in the block.
        chunk: u32,
    },
}

impl BlockLocation {
    /// Reads part of the block; a range that reaches past the block's end is cut there.
    ///
    /// All chunks that the range touches are read and verified, or only its pages if it is short and their checksums
    /// are there. The result shares one buffer of the pool's, which is as long as the pages that were read: copy a
    /// short result before keeping it for long.
    ///
    /// # Errors
    /// Any [`ReadFault`]; the block is then to be dropped where it is held.
    pub fn read(&self, range: Range<u32>, pool: &Arc<BufferPool>) -> Result<Bytes, ReadFault> {
        self.read_through(&LocalDisk, range, pool)
    }

    /// As [`BlockLocation::read`], through the given disk.
    pub(super) fn read_through(
        &self,
        disk: &dyn Disk,
        range: Range<u32>,
        pool: &Arc<BufferPool>,
    ) -> Result<Bytes, ReadFault> {
        let range = range.start..range.end.min(self.len);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let chunks = self.widened(&range, CHUNK_SIZE);
        let pages = self.widened(&range, PAGE_LEN);
        let (wide, data) = if 2 * pages.len() <= chunks.len()
            && let Some(sums) = self.page_checksums(disk, &chunks, pool)
        {
            let data = self.fetch(disk, &pages, pool)?;
            verify_pages(&sums, pages.start / PAGE_LEN, &data)?;
            (pages, data)
        } else {
            let data = self.fetch(disk, &chunks, pool)?;
            self.verify(chunks.start / CHUNK_SIZE, &data)?;
            (chunks, data)
        };
        let from = (range.start - wide.start) as usize;
        Ok(data.slice(from..from + range.len()))
    }

    /// A range with all pieces of `unit` bytes that it touches.
    fn widened(&self, range: &Range<u32>, unit: u32) -> Range<u32> {
        let end = range.end.next_multiple_of(unit);
        range.start / unit * unit..end.min(self.len)
    }

    /// Reads a range of the block, unverified.
    fn fetch(
        &self,
        disk: &dyn Disk,
        range: &Range<u32>,
        pool: &Arc<BufferPool>,
    ) -> Result<Bytes, ReadFault> {
        let start = self.offset + u64::from(range.start);
        fetch(disk, &self.file, self.direct, start, range.len(), pool)
    }

    /// The checksums of the block's pages, if they are there, and right for some of its chunks.
    fn page_checksums(
        &self,
        disk: &dyn Disk,
        chunks: &Range<u32>,
        pool: &Arc<BufferPool>,
    ) -> Option<Arc<[u32]>> {
        let at = self.page_checksums_at?;
        let file = rustix::fs::fstat(&self.file).ok()?;
        let place = (file.st_dev, file.st_ino, at);
        let kept = pool.page_sums().get(&place);
        if let Some(sums) = kept.filter(|sums| self.are_right(sums, chunks)) {
            return Some(sums);
        }
        // None were kept, or those of a block that was in this place before.
        let length = 4 * page_count(self.len);
        let bytes = fetch(disk, &self.file, self.direct, at, length, pool).ok()?;
        let (sums, _) = bytes.as_chunks();
        let sums: Arc<[u32]> = sums.iter().copied().map(u32::from_le_bytes).collect();
        pool.page_sums().insert(place, sums.clone());
        self.are_right(&sums, chunks).then_some(sums)
    }

    /// Whether from the checksums of pages follow those of some chunks.
    fn are_right(&self, sums: &[u32], chunks: &Range<u32>) -> bool {
        let wanted = (chunks.start / CHUNK_SIZE) as usize..chunks.end.div_ceil(CHUNK_SIZE) as usize;
        let of_chunks = sums.chunks(CHUNK_PAGES).skip(wanted.start);
        let of_chunks = of_chunks.take(wanted.len()).map(chunk_sum);
        let right = self.checksums.get(wanted).unwrap_or_default();
        of_chunks.eq(right.iter().copied())
    }

    /// Checks whole chunks of the block, from `first` on.
    fn verify(&self, first: u32, data: &[u8]) -> Result<(), ReadFault> {
        for (chunk, bytes) in (first..).zip(data.chunks(CHUNK_SIZE as usize)) {
            if self.checksums.get(chunk as usize) != Some(&chunk_sum_of(bytes)) {
                return Err(ReadFault::Corrupt { chunk });
            }
        }
        Ok(())
    }
}

/// Checks whole pages of a block, from `first` on, against the checksums of all.
fn verify_pages(sums: &[u32], first: u32, data: &[u8]) -> Result<(), ReadFault> {
    for (page, bytes) in (first..).zip(data.chunks(PAGE_LEN as usize)) {
        if sums.get(page as usize) != Some(&crc32_iscsi(bytes)) {
            let chunk = page * PAGE_LEN / CHUNK_SIZE;
            return Err(ReadFault::Corrupt { chunk });
        }
    }
    Ok(())
}

/// Reads whole blocks of one file with one read. `blocks` are in the order of their offsets. Of a block that is not
/// what was written the result has nothing.
pub(super) fn read_run(
    disk: &dyn Disk,
    blocks: &[&BlockLocation],
    pool: &Arc<BufferPool>,
) -> Result<Vec<Option<Bytes>>, ReadFault> {
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
        return Ok(Vec::new());
    };
    let length = last.offset + u64::from(last.len) - first.offset;
    let all = fetch(
        disk,
        &first.file,
        first.direct,
        first.offset,
        length as usize,
        pool,
    )?;
    let cut = |block: &&BlockLocation| {
        let start = (block.offset - first.offset) as usize;
        let bytes = all.slice(start..start + block.len as usize);
        block.verify(0, &bytes).is_ok().then_some(bytes)
    };
    Ok(blocks.iter().map(cut).collect())
}

/// Reads bytes of a file, by the whole pages that they lie in.
fn fetch(
    disk: &dyn Disk,
    file: &File,
    direct: bool,
    start: u64,
    length: usize,
    pool: &Arc<BufferPool>,
) -> Result<Bytes, ReadFault> {
    let low = page_floor(start);
    let skipped = (start - low) as usize;
    let needed = skipped + length;
    let pages = page_ceil(needed as u64) as usize;
    let mut buffer = pool.take(pages);
    let space = &mut buffer.bytes_mut()[..pages];
    let mut done = 0;
    while done < needed {
        let read = disk.read_at(file, &mut space[done..], low + done as u64)?;
        done += read;
        // Direct reads stop inside a page only at the end of the file.
        let at_end = read == 0 || (direct && !(done as u64).is_multiple_of(PAGE));
        if at_end && done < needed {
            return Err(ReadFault::Short);
        }
    }
    if !direct {
        give_back_pages(file, low, pages);
    }
    Ok(Bytes::from_owner(buffer).slice(skipped..needed))
}
