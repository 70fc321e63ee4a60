//! What the one writer has: the segment that it writes, and the batch that it puts together.

use std::sync::Arc;
use std::time::Duration;

use weir_core::BlockKey;

use super::aligned::AlignedBuf;
use super::disk::{Disk, OpenFile};
use super::file::Segment;
use super::journal;
use super::record::{Checksums, Record, record_len};

/// Most bytes of one write, and so of the batch buffer. Two full blocks nearly fit, so each is written by itself.
pub(super) const WRITE_MAX: u64 = 8 << 20;

/// The writer's state, behind the store's one lock for writing and for deleting files.
#[derive(Debug)]
pub(super) struct Appender {
    pub(super) active: Option<Active>,
    /// Never used before in this directory.
    pub(super) next_id: u64,
    pub(super) batch: AlignedBuf,
    /// Until when no segment is compacted for the sake of one write.
    pub(super) no_compaction_for_little_before: Duration,
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) writer: OpenFile,
    /// Where the next batch goes, a whole number of pages.
    pub(super) end: u64,
    pub(super) table: Vec<u8>,
    pub(super) records: u32,
    /// Bytes and records of the table that the journal has.
    pub(super) journaled: (usize, u32),
}

/// A block on its way into a batch.
#[derive(Debug)]
pub(super) struct Staged<'a> {
    pub(super) key: BlockKey,
    pub(super) pieces: Vec<&'a [u8]>,
    pub(super) len: u32,
    pub(super) sums: Checksums,
    /// The checksums of the pages, from which those of the chunks follow.
    pub(super) pages: Arc<[u32]>,
}

/// What a write may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// All but one segment's worth; other segments may be reclaimed for it.
    ForBlocks,
    /// Everything, since the write gives back more than it takes.
    ForCompaction,
}

/// Records that were written, in the order of the batch.
pub(super) type Written = (Arc<Segment>, Vec<Record>);

impl Appender {
    pub(super) fn new(next_id: u64) -> Self {
        Self {
            active: None,
            next_id,
            batch: AlignedBuf::zeroed(WRITE_MAX as usize),
            no_compaction_for_little_before: Duration::ZERO,
        }
    }
}

impl Active {
    /// Adds to the journal what it lacks, once that is enough.
    pub(super) fn keep_journal(&mut self, disk: &dyn Disk) {
        let (bytes, records) = self.journaled;
        if self.records - records < journal::EVERY {
            return;
        }
        let id = self.segment.id;
        match journal::append(disk, &self.segment.path, id, &self.table[bytes..]) {
            Ok(()) => self.journaled = (self.table.len(), self.records),
            // Without it the headers are read.
            Err(error) => tracing::debug!(segment = id, %error, "cannot write a journal"),
        }
    }
}

/// Cuts `staged` into batches of at most `most` bytes; a longer block makes a batch of its own.
pub(super) fn batches<'a, 'b>(
    mut staged: &'b [Staged<'a>],
    most: u64,
) -> impl Iterator<Item = &'b [Staged<'a>]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = staged.iter().take_while(|s| {
            bytes += record_len(s.len);
            bytes <= most
        });
        let (batch, rest) = staged.split_at(fitting.count().max(1).min(staged.len()));
        staged = rest;
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_block_once_in_order_and_keep_to_the_limit() {
        let data = vec![0; 5000];
        let staged: Vec<Staged<'_>> = [100, 200, 5000, 64, 3000, 900]
            .iter()
            .enumerate()
            .map(|(i, len)| Staged {
                key: BlockKey([i as u8; 16]),
                pieces: vec![&data[..*len]],
                len: *len as u32,
                sums: Checksums::of_data(&data[..*len]),
                pages: Arc::default(),
            })
            .collect();
        let cut: Vec<Vec<u8>> = batches(&staged, 4096)
            .map(|b| b.iter().map(|s| s.key.0[0]).collect())
            .collect();
        assert_eq!(cut, [vec![0, 1], vec![2], vec![3, 4], vec![5]]);
        assert_eq!(batches(&[], 4096).count(), 0);
    }
}
