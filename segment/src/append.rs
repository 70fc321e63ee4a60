//! The one writer: packs records into a batch, writes the batch in one aligned write, and rolls to a new file
//! when the one being written is full.
//!
//! The padding up to a page's end is written once per batch and never filled in later: a reader may hold that page.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use weir_core::BlockKey;

use super::aligned::{AlignedBuf, page_ceil};
use super::disk::{Disk, OpenFile};
use super::error::{SegmentError, is_disk_full};
use super::file::{self, Segment};
use super::footer;
use super::journal;
use super::record::{Checksums, Record, UNIT, record_len};
use super::stats::count;
use super::store::SegmentStore;

/// Most bytes of one write, and so of the batch buffer. Two full blocks nearly fit, so each is written by itself.
pub(super) const WRITE_MAX: u64 = 8 << 20;

/// How long blocks are refused before the next attempt, after the device was full, and after no room was found.
const DEVICE_FULL_FOR: Duration = Duration::from_secs(30);
const FULL_FOR: Duration = Duration::from_millis(100);

/// The writer's state, behind the store's one lock for writing and for deleting files.
#[derive(Debug)]
pub(super) struct Appender {
    pub(super) active: Option<Active>,
    /// Never used before in this directory.
    pub(super) next_id: u64,
    batch: AlignedBuf,
    /// Until when no segment is compacted for the sake of one write.
    pub(super) no_compaction_for_little_before: Duration,
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    writer: OpenFile,
    /// Where the next batch goes, a whole number of pages.
    end: u64,
    table: Vec<u8>,
    records: u32,
    /// Bytes and records of the table that the journal has.
    journaled: (usize, u32),
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
    fn keep_journal(&mut self, disk: &dyn Disk) {
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

impl SegmentStore {
    /// Writes one batch; `None` if there is no room for it and none can be made.
    ///
    /// The caller has the index refer to the records.
    pub(super) fn append(
        &self,
        app: &mut Appender,
        batch: &[Staged<'_>],
        room: Room,
    ) -> Result<Option<Written>, SegmentError> {
        let lens = || batch.iter().map(|s| s.len);
        let bytes = page_ceil(lens().map(record_len).sum());
        let entries: u64 = lens().map(footer::entry_len).sum();
        if !self.make_room(app, bytes, entries, room) {
            if let (Room::ForBlocks, [alone]) = (room, batch) {
                self.be_full(alone.len, FULL_FOR);
            }
            return Ok(None);
        }
        if app.active.is_none() {
            self.start_segment(app)?;
        }
        let Appender {
            active: Some(active),
            batch: buffer,
            ..
        } = app
        else {
            return Ok(None);
        };

        let out = &mut buffer.bytes_mut()[..bytes as usize];
        let mut records = Vec::with_capacity(batch.len());
        let mut filled = 0;
        for s in batch {
            let record = Record {
                key: s.key,
                unit: ((active.end + filled as u64) / UNIT) as u32,
                len: s.len,
                sums: s.sums.clone(),
            };
            let id = active.segment.id;
            filled += record.encode(&mut out[filled..], id, &s.pieces, &s.pages);
            records.push(record);
        }
        out[filled..].fill(0);
        if let Err(e) = self.disk.write_at(&active.writer, out, active.end) {
            // What was written of it must not look like records after the next batch.
            let cut = self.disk.truncate(&active.writer, active.end);
            let error = SegmentError::cannot("write", &active.segment.path)(e);
            self.write_failed(&error);
            if cut.is_err() || !error.is_disk_full() {
                self.retire_active(app);
            }
            return Err(error);
        }

        let segment = Arc::clone(&active.segment);
        for record in &records {
            footer::push_entry(&mut active.table, record);
        }
        active.records += records.len() as u32;
        active.end += bytes;
        active.keep_journal(&*self.disk);
        segment.add_records(lens().map(record_len).sum());
        segment.written_len.store(active.end, Relaxed);
        segment.touch(self.now());
        let charge = active.end + footer::footer_len(active.table.len() as u64);
        self.charge(&segment, charge);
        Ok(Some((segment, records)))
    }

    /// Rolls to a new segment and reclaims others until a batch of `bytes` fits; false if that cannot be had.
    fn make_room(&self, app: &mut Appender, bytes: u64, entries: u64, room: Room) -> bool {
        let limit = match room {
            Room::ForBlocks => self.capacity - self.segment_bytes,
            Room::ForCompaction => self.capacity,
        };
        loop {
            let (end, table) = app
                .active
                .as_ref()
                .map_or((0, 0), |a| (a.end, a.table.len() as u64));
            let sealed = end + bytes + footer::footer_len(table + entries);
            if sealed > self.segment_bytes && end > 0 {
                self.retire_active(app);
                continue;
            }
            let charged = app.active.as_ref().map_or(0, |a| a.segment.charged());
            if self.used() + sealed - charged <= limit {
                return true;
            }
            if room == Room::ForCompaction || !self.reclaim(app, bytes) {
                return false;
            }
        }
    }

    /// Opens the next segment file.
    fn start_segment(&self, app: &mut Appender) -> Result<(), SegmentError> {
        let id = app.next_id;
        app.next_id = file::next_id(id);
        let path = file::path_of(&self.dir, id);
        let opened = self.disk.create(&path).and_then(|writer| {
            let reader = self.disk.open_read(&path)?;
            let metadata = reader.file.metadata()?;
            Ok((writer, reader, metadata))
        });
        let (writer, reader, metadata) = opened.map_err(|e| {
            let error = SegmentError::cannot("create", &path)(e);
            self.write_failed(&error);
            // Best effort: an empty file is deleted by the next recovery.
            let _ = self.disk.remove(&path);
            error
        })?;
        self.note_buffered(reader.direct);
        let file = Arc::new(reader.file);
        let now = self.now();
        let segment = Segment::new(id, path, file, reader.direct, &metadata, now);
        let segment = Arc::new(segment);
        self.segments.lock().insert(id, Arc::clone(&segment));
        app.active = Some(Active {
            segment,
            writer,
            end: 0,
            table: Vec::new(),
            records: 0,
            journaled: (0, 0),
        });
        Ok(())
    }

    fn write_failed(&self, error: &SegmentError) {
        count(&self.counters.failed_writes, 1);
        if let SegmentError::Io { source, .. } = error
            && is_disk_full(source)
        {
            tracing::warn!(%error, "the cache's device is full; blocks are refused for a while");
            self.be_full(0, DEVICE_FULL_FOR);
        }
    }

    /// Ends the segment being written with its footer. If that cannot be written, its records are found by their
    /// headers when the store is opened.
    pub(super) fn seal_active(&self, app: &mut Appender) -> Result<(), SegmentError> {
        let Some(active) = app.active.take() else {
            return Ok(());
        };
        let Active {
            segment,
            writer,
            end,
            table,
            records,
            ..
        } = active;
        segment.sealed.store(true, Relaxed);
        if segment.live_blocks() == 0 {
            self.drop_segment(app, &segment);
            return Ok(());
        }
        let footer = footer::encode(segment.id, end, records, &table);
        self.disk
            .write_at(&writer, footer.bytes(), end)
            .map_err(|e| {
                count(&self.counters.failed_writes, 1);
                SegmentError::cannot("write", &segment.path)(e)
            })?;
        let len = end + footer.capacity() as u64;
        segment.written_len.store(len, Relaxed);
        // Best effort: beside a footer it is not read.
        let _ = self.disk.remove(&journal::path_of(&segment.path));
        Ok(())
    }

    /// As [`SegmentStore::seal_active`], where the writer goes on without the segment anyway.
    fn retire_active(&self, app: &mut Appender) {
        if let Err(error) = self.seal_active(app) {
            tracing::warn!(%error, "cannot seal a segment; the next opening walks its headers");
        }
    }
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
