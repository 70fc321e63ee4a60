//! Sorting more records than fit into memory: runs are sorted one by one, kept in files, and merged.
//!
//! Records are compared as bytes. Of equal ones one is kept. At most `fan_in` files of each size are open: so many are
//! merged into one of the next size.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::BuildError;
use super::format::read_u32;
use super::spool::{Reader, Scratch, Spool, append_record};

/// Records that are not sorted yet, and the runs of those that are.
#[derive(Debug)]
pub(super) struct Sorter {
    scratch: Scratch,
    run_bytes: usize,
    buffer: Buffer,
    /// Runs by their size: those of one place in the list are about as long.
    runs: Vec<Vec<Spool>>,
}

/// Records side by side, each behind its length.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

impl Buffer {
    fn size(&self) -> usize {
        self.bytes.len() + self.starts.len() * (size_of::<u32>() * 2) // sorting takes half as much again
    }

    fn record(&self, start: u32) -> &[u8] {
        let start = start as usize;
        let length = read_u32(&self.bytes, start) as usize;
        &self.bytes[start + 4..start + 4 + length]
    }

    fn sort(&mut self) {
        let mut starts = std::mem::take(&mut self.starts);
        // Listings are nearly sorted, which this sort makes use of.
        starts.sort_by(|a, b| self.record(*a).cmp(self.record(*b)));
        starts.dedup_by(|a, b| self.record(*a) == self.record(*b));
        self.starts = starts;
    }
}

impl Sorter {
    /// Sorts about `run_bytes` at a time.
    pub(super) fn new(scratch: &Scratch, run_bytes: usize) -> Self {
        Self {
            scratch: scratch.clone(),
            run_bytes,
            buffer: Buffer::default(),
            runs: Vec::new(),
        }
    }

    /// Adds a record, which is not empty.
    pub(super) fn push(&mut self, record: &[u8]) -> Result<(), BuildError> {
        // Who does not make room in time is not held up, within reason.
        if self.buffer.size() >= self.run_bytes * 2 {
            self.make_room()?;
        }
        let start = u32::try_from(self.buffer.bytes.len());
        self.buffer
            .starts
            .push(start.map_err(|_| BuildError::TooLarge("bytes of names"))?);
        let length = record.len() as u32;
        self.buffer.bytes.extend_from_slice(&length.to_le_bytes());
        self.buffer.bytes.extend_from_slice(record);
        Ok(())
    }

    /// Whether there is enough for a run.
    pub(super) fn is_full(&self) -> bool {
        self.scratch.dir.is_some() && self.buffer.size() >= self.run_bytes
    }

    /// Sorts what was added and moves it to a file.
    pub(super) fn make_room(&mut self) -> Result<(), BuildError> {
        if self.scratch.dir.is_none() {
            return Ok(());
        }
        self.buffer.sort();
        let mut run = Spool::new(&self.scratch);
        for start in &self.buffer.starts {
            append_record(&mut run, self.buffer.record(*start))?;
        }
        run.flush()?;
        self.buffer.bytes.clear();
        self.buffer.starts.clear();
        self.add_run(run)
    }

    fn add_run(&mut self, mut run: Spool) -> Result<(), BuildError> {
        for size in 0.. {
            if self.runs.len() == size {
                self.runs.push(Vec::new());
            }
            self.runs[size].push(run);
            if self.runs[size].len() < self.scratch.fan_in {
                break;
            }
            let mut merge = Merge::of(std::mem::take(&mut self.runs[size]), Buffer::default())?;
            run = Spool::new(&self.scratch);
            while let Some(record) = merge.next()? {
                append_record(&mut run, record)?;
            }
            run.flush()?;
        }
        Ok(())
    }

    /// All records in order.
    pub(super) fn finish(mut self) -> Result<Merge, BuildError> {
        self.buffer.sort();
        let runs = self.runs.into_iter().flatten().collect();
        Merge::of(runs, self.buffer)
    }
}

/// The records of several sorted runs, in order.
pub(super) struct Merge {
    heads: BinaryHeap<Head>,
    /// The record that was given last.
    current: Vec<u8>,
}

/// A run, and the first of its records that was not given yet.
struct Head {
    record: Vec<u8>,
    rest: Rest,
}

enum Rest {
    File(Spool, Reader),
    Memory(Buffer, usize),
}

impl Merge {
    fn of(runs: Vec<Spool>, buffer: Buffer) -> Result<Self, BuildError> {
        let files = runs
            .into_iter()
            .map(|run| Rest::File(run, Reader::default()));
        let mut heads = BinaryHeap::new();
        for rest in files.chain([Rest::Memory(buffer, 0)]) {
            let mut head = Head {
                record: Vec::new(),
                rest,
            };
            if head.advance()? {
                heads.push(head);
            }
        }
        Ok(Self {
            heads,
            current: Vec::new(),
        })
    }

    /// The next record, which is greater than the one before.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, BuildError> {
        loop {
            let Some(mut head) = self.heads.peek_mut() else {
                return Ok(None);
            };
            let new = head.record != self.current;
            if new {
                std::mem::swap(&mut self.current, &mut head.record);
            }
            if !head.advance()? {
                PeekMut::pop(head);
            }
            if new {
                return Ok(Some(&self.current));
            }
        }
    }
}

impl Head {
    fn advance(&mut self) -> Result<bool, BuildError> {
        match &mut self.rest {
            Rest::File(run, reader) => reader.next(run, &mut self.record),
            Rest::Memory(buffer, next) => {
                let Some(start) = buffer.starts.get(*next) else {
                    return Ok(false);
                };
                *next += 1;
                self.record.clear();
                self.record.extend_from_slice(buffer.record(*start));
                Ok(true)
            }
        }
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        other.record.cmp(&self.record) // the least comes first out of a heap
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_come_out_sorted_and_once_in_memory_and_over_several_passes(
            records in proptest::collection::vec(proptest::collection::vec(0u8..4, 1..6), 0..300)) {
            let dir = std::env::temp_dir();
            let on_disk = Scratch { spool_bytes: 16, fan_in: 2, ..Scratch::directory(&dir) };
            for scratch in [Scratch::memory(), on_disk] {
                let mut sorter = Sorter::new(&scratch, 100);
                let mut open = 0;
                for record in &records {
                    sorter.push(record).unwrap();
                    if sorter.is_full() {
                        sorter.make_room().unwrap();
                    }
                    open = open.max(sorter.runs.iter().map(Vec::len).max().unwrap_or(0));
                }
                prop_assert!(open < 2);
                let mut merge = sorter.finish().unwrap();
                let mut sorted = Vec::new();
                while let Some(record) = merge.next().unwrap() {
                    sorted.push(record.to_vec());
                }
                let model: BTreeSet<Vec<u8>> = records.iter().cloned().collect();
                prop_assert_eq!(sorted, model.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
