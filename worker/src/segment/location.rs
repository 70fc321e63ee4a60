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

use super::aligned::{BufferPool, PAGE, PooledBuf, page_ceil, page_floor};
use super::disk::{Disk, LocalDisk, give_back_pages};
use super::record::{CHUNK_SIZE, Checksums};

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
    /// The CRC-32C of each chunk of [`CHUNK_SIZE`] bytes; the last chunk may be shorter.
    pub checksums: Checksums,
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
    /// All chunks that the range touches are read and verified. The result shares one buffer of the pool's, which
    /// is as long as the pages that were read: copy a short result before keeping it for long.
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
        let end = range.end.min(self.len);
        if range.start >= end {
            return Ok(Bytes::new());
        }
        let chunks = range.start / CHUNK_SIZE..(end - 1) / CHUNK_SIZE + 1;
        let chunk_start = |chunk: u32| u64::from(chunk) * u64::from(CHUNK_SIZE);
        let first = chunk_start(chunks.start);
        let last = chunk_start(chunks.end).min(u64::from(self.len));
        let low = page_floor(self.offset + first);
        let high = page_ceil(self.offset + last);
        let needed = (self.offset + last - low) as usize;

        let buffer = fetch(disk, &self.file, self.direct, low..high, needed, pool)?;
        let data_at = (self.offset + first - low) as usize;
        self.verify(chunks.start, &buffer.as_ref()[data_at..needed])?;
        let skip = data_at + (u64::from(range.start) - first) as usize;
        Ok(Bytes::from_owner(buffer).slice(skip..skip + (end - range.start) as usize))
    }

    /// Checks whole chunks of the block, from `first` on.
    fn verify(&self, first: u32, data: &[u8]) -> Result<(), ReadFault> {
        for (chunk, bytes) in (first..).zip(data.chunks(CHUNK_SIZE as usize)) {
            if self.checksums.get(chunk as usize) != Some(&crc32_iscsi(bytes)) {
                return Err(ReadFault::Corrupt { chunk });
            }
        }
        Ok(())
    }
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
    let low = page_floor(first.offset);
    let end = last.offset + u64::from(last.len);
    let range = low..page_ceil(end);
    let needed = (end - low) as usize;
    let buffer = fetch(disk, &first.file, first.direct, range, needed, pool)?;
    let all = Bytes::from_owner(buffer);
    let cut = |block: &&BlockLocation| {
        let start = (block.offset - low) as usize;
        let bytes = all.slice(start..start + block.len as usize);
        block.verify(0, &bytes).is_ok().then_some(bytes)
    };
    Ok(blocks.iter().map(cut).collect())
}

/// Reads whole pages of a file, of which the first `needed` bytes must be there.
fn fetch(
    disk: &dyn Disk,
    file: &File,
    direct: bool,
    pages: Range<u64>,
    needed: usize,
    pool: &Arc<BufferPool>,
) -> Result<PooledBuf, ReadFault> {
    let length = (pages.end - pages.start) as usize;
    let mut buffer = pool.take(length);
    let space = &mut buffer.bytes_mut()[..length];
    let mut done = 0;
    while done < needed {
        let read = disk.read_at(file, &mut space[done..], pages.start + done as u64)?;
        done += read;
        // Direct reads stop inside a page only at the end of the file.
        let at_end = read == 0 || (direct && !(done as u64).is_multiple_of(PAGE));
        if at_end && done < needed {
            return Err(ReadFault::Short);
        }
    }
    if !direct {
        give_back_pages(file, pages.start, length);
    }
    Ok(buffer)
}
