//! The one writer: packs records into a batch, writes the batch in one aligned write, and rolls to a new file
//! when the one being written is full.
//!
//! The padding up to a page's end is written once per batch and never filled in later: a reader may hold that page.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::aligned::page_ceil;
use super::appender::{Active, Appender, Room, Staged, Written};
use super::error::{SegmentError, is_disk_full};
use super::file::{self, Segment};
use super::footer;
use super::journal;
use super::record::{Record, UNIT, record_len};
use super::stats::count;
use super::store::SegmentStore;

/// How long blocks are refused before the next attempt, after the device was full, and after no room was found.
const DEVICE_FULL_FOR: Duration = Duration::from_secs(30);
const FULL_FOR: Duration = Duration::from_millis(100);

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
            Room::ForBlocks => self.limit().saturating_sub(self.segment_bytes),
            Room::ForCompaction => self.limit(),
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
    pub(super) fn retire_active(&self, app: &mut Appender) {
        if let Err(error) = self.seal_active(app) {
            tracing::warn!(%error, "cannot seal a segment; the next opening walks its headers");
        }
    }
}
