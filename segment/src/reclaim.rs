//! Getting space back: whole files are deleted, and nothing else.
//!
//! In this order: segments without a live block; compaction of the segment with the most dead bytes; the segment idle
//! longest, if nothing in it was used for the configured time; and now and then compaction for little, as when a block
//! here and there was damaged. If none of these is there, new blocks are refused: under shuffled epochs, evicting
//! something that is in use for something else that is in use only adds work. Where the device is to be left free for others
//! ([`SegmentStore::limit_to`]), segments go whether they are in use or not.
//!
//! Compaction copies before it deletes, within the capacity. That always fits, since one segment's worth of the
//! capacity is never given to blocks.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weir_core::BlockKey;

use super::aligned::PAGE;
use super::appender::{Appender, Room, Staged, WRITE_MAX};
use super::error::SegmentError;
use super::file::Segment;
use super::footer;
use super::index::Slot;
use super::journal;
use super::lock::DirLock;
use super::record::{MAX_BLOCK_LEN, page_sums, record_len};
use super::removed;
use super::stats::count;
use super::store::SegmentStore;

/// With space short, compaction must win at least this part of a segment.
const LEAST_GAIN: u64 = 16;
/// Segments that are given back in one go.
const MOST_TO_SHRINK: usize = 64;
/// After a compaction that wins less, but as much as is needed, writers have so many times as long as it took: it copies
/// nearly a whole segment. A block that finds no place is fetched again with each read of it, which costs more.
const PAUSE_FOR_LITTLE: u32 = 4;

impl SegmentStore {
    /// Frees some space for a write of so many bytes; false if there is none to be freed.
    pub(super) fn reclaim(&self, app: &mut Appender, bytes: u64) -> bool {
        let dead = |s: &Segment| s.is_sealed() && s.live_blocks() == 0;
        if let Some(segment) = self.segment_where(dead) {
            self.drop_segment(app, &segment);
            return true;
        }
        let least = self.segment_bytes / LEAST_GAIN;
        if let Some(segment) = self.most_dead(|s| s.dead_bytes() >= least)
            && self.compact_logged(app, &segment) > 0
        {
            return true;
        }
        self.evict_idle(app) || self.compact_for_little(app, bytes)
    }

    /// Compacts a segment for the sake of one write; false if none has as much dead, or one was compacted a moment ago.
    fn compact_for_little(&self, app: &mut Appender, bytes: u64) -> bool {
        let started = self.now();
        if started < app.no_compaction_for_little_before {
            return false;
        }
        // Nearly a whole segment is copied, and one segment's worth is free: only what such a copy takes may be beside it.
        let has_enough = |s: &Segment| s.dead_bytes() + PAGE > bytes;
        let Some(segment) = self.most_dead_with(has_enough, |live| live / 128 + 8 * PAGE) else {
            return false;
        };
        let freed = self.compact_logged(app, &segment);
        let ended = self.now();
        app.no_compaction_for_little_before =
            ended + ended.saturating_sub(started) * PAUSE_FOR_LITTLE;
        freed > 0
    }

    /// Evicts the segment idle longest; false if all are in use.
    fn evict_idle(&self, app: &mut Appender) -> bool {
        let idle = self.idle_longest(self.idle_after);
        idle.is_some_and(|segment| {
            let (blocks, bytes) = self.drop_segment(app, &segment);
            count(&self.counters.evicted_blocks, blocks);
            count(&self.counters.evicted_bytes, bytes);
            let segment = segment.id;
            tracing::debug!(segment, blocks, bytes, "evicted an idle segment");
            true
        })
    }

    /// The sealed segment idle longest, if that was as long at least.
    fn idle_longest(&self, least: Duration) -> Option<Arc<Segment>> {
        let now = self.now();
        self.segments
            .lock()
            .values()
            .filter(|s| s.is_sealed() && s.idle_for(now) >= least)
            .max_by_key(|s| (s.idle_for(now), Reverse(s.id)))
            .cloned()
    }

    /// Gives back what the segment files take beyond the [limit](SegmentStore::limit_to): those idle longest go first, also if they are in
    /// use. Returns the bytes that this freed.
    pub fn shrink(&self) -> u64 {
        let before = self.used();
        // The lock is given up between two segments: writers and removals wait for one at most.
        for _ in 0..MOST_TO_SHRINK {
            if self.used() <= self.limit() {
                break;
            }
            let mut app = self.appender.lock();
            let all_dead = self.segment_where(|s| s.is_sealed() && s.live_blocks() == 0);
            let victim = all_dead.or_else(|| self.idle_longest(Duration::ZERO));
            match victim {
                Some(segment) => {
                    let (blocks, bytes) = self.drop_segment(&mut app, &segment);
                    count(&self.counters.shrunk_blocks, blocks);
                    count(&self.counters.shrunk_bytes, bytes);
                }
                None if app.active.is_some() => self.retire_active(&mut app),
                None => break,
            }
        }
        before.saturating_sub(self.used())
    }

    fn segment_where(&self, pick: impl Fn(&Segment) -> bool) -> Option<Arc<Segment>> {
        self.segments.lock().values().find(|s| pick(s)).cloned()
    }

    /// The sealed segment with the most dead bytes, among those that `pick` takes and whose copy fits.
    fn most_dead(&self, pick: impl Fn(&Segment) -> bool) -> Option<Arc<Segment>> {
        // Tables and padding of what is copied; append() keeps to the capacity exactly.
        self.most_dead_with(pick, |live| live / 16 + self.segment_bytes / 32)
    }

    /// As [`Self::most_dead`], where a copy of so many live bytes takes `beside` beside them.
    fn most_dead_with(
        &self,
        pick: impl Fn(&Segment) -> bool,
        beside: impl Fn(u64) -> u64,
    ) -> Option<Arc<Segment>> {
        let free = self.limit().saturating_sub(self.used());
        let fits = |live: u64| live + beside(live) <= free;
        self.segments
            .lock()
            .values()
            .filter(|s| s.is_sealed() && pick(s) && fits(s.live_bytes()))
            .max_by_key(|s| s.dead_bytes())
            .cloned()
    }

    /// Rewrites the segment with the most dead bytes, if more than half of it is dead, without its dead records.
    ///
    /// Returns the bytes that this freed: 0 when there is nothing worth it, so call it until then, for example
    /// from the worker's periodic upkeep. Writers wait meanwhile; the work of one call is bounded by the size of
    /// a segment.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if the copy could not be written; nothing is lost then.
    pub fn compact(&self) -> Result<u64, SegmentError> {
        let mut app = self.appender.lock();
        match self.most_dead(Segment::is_mostly_dead) {
            Some(segment) => self.compact_segment(&mut app, &segment),
            None => Ok(0),
        }
    }

    /// As [`SegmentStore::compact`], where the space is wanted and not needed.
    pub(super) fn compact_if_mostly_dead(&self, app: &mut Appender) {
        if let Some(segment) = self.most_dead(Segment::is_mostly_dead) {
            self.compact_logged(app, &segment);
        }
    }

    fn compact_logged(&self, app: &mut Appender, segment: &Arc<Segment>) -> u64 {
        self.compact_segment(app, segment).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot compact a segment");
            0
        })
    }

    /// Moves the live blocks of `victim` to the segment being written and deletes it; returns the bytes freed.
    fn compact_segment(
        &self,
        app: &mut Appender,
        victim: &Arc<Segment>,
    ) -> Result<u64, SegmentError> {
        let before = self.used();
        let mut moved: Vec<(BlockKey, Slot, Bytes)> = Vec::new();
        let mut bytes = 0;
        for (key, slot) in self.live_blocks_of(victim) {
            let len = record_len(slot.len);
            if bytes + len > self.batch_bytes && !moved.is_empty() {
                if !self.move_blocks(app, &moved)? {
                    return Ok(0);
                }
                moved.clear();
                bytes = 0;
            }
            if let Some(data) = self.read_slot(app, &key, &slot)? {
                moved.push((key, slot, data));
                bytes += len;
            }
        }
        if !moved.is_empty() && !self.move_blocks(app, &moved)? {
            return Ok(0);
        }
        self.drop_segment(app, victim);
        count(&self.counters.compacted_segments, 1);
        Ok(before.saturating_sub(self.used()))
    }

    /// Appends copies of blocks and has the index refer to them; false if there is no room.
    fn move_blocks(
        &self,
        app: &mut Appender,
        moved: &[(BlockKey, Slot, Bytes)],
    ) -> Result<bool, SegmentError> {
        let staged: Vec<Staged<'_>> = moved
            .iter()
            .map(|(key, slot, data)| Staged {
                key: *key,
                pieces: vec![data.as_ref()],
                len: data.len() as u32,
                sums: slot.checksums(),
                pages: page_sums(&[data]).into(),
            })
            .collect();
        let Some((segment, records)) = self.append(app, &staged, Room::ForCompaction)? else {
            return Ok(false);
        };
        for ((key, old, _), record) in moved.iter().zip(&records) {
            self.index.replace(key, old, Slot::new(&segment, record));
        }
        Ok(true)
    }

    /// The live blocks of a segment: from its table, or by looking at the whole index if it has none.
    fn live_blocks_of(&self, segment: &Arc<Segment>) -> Vec<(BlockKey, Slot)> {
        let table = segment.file.metadata().and_then(|metadata| {
            footer::read(&*self.disk, &segment.file, segment.id, metadata.len())
        });
        if let Ok(Some(records)) = table {
            let live = self.index.live_of(segment, &records);
            if live.len() as u64 == segment.live_blocks() {
                return live;
            }
        }
        self.index.scan(segment)
    }

    /// Deletes a segment with all that is in it; returns the blocks and bytes that were still live.
    pub(super) fn drop_segment(&self, app: &mut Appender, segment: &Arc<Segment>) -> (u64, u64) {
        self.segments.lock().remove(&segment.id);
        if app
            .active
            .as_ref()
            .is_some_and(|a| Arc::ptr_eq(&a.segment, segment))
        {
            app.active = None;
        }
        let (mut blocks, mut bytes) = (0, 0);
        if segment.live_blocks() > 0 {
            for (key, slot) in self.live_blocks_of(segment) {
                if self.index.remove_at(&key, &slot) {
                    blocks += 1;
                    bytes += u64::from(slot.len);
                }
            }
        }
        let removed = removed::path_of(&segment.path);
        let journal = journal::path_of(&segment.path);
        for path in [&segment.path, &removed, &journal] {
            if let Err(error) = self.disk.remove(path) {
                tracing::warn!(path = %path.display(), %error, "cannot delete a file of the cache");
            }
        }
        self.charge(segment, 0);
        (blocks, bytes)
    }

    /// Looks at every segment file, and drops those that were deleted, cut short or replaced by somebody else.
    ///
    /// Returns how many were dropped. To be called now and then: until it is, a deleted file still serves its
    /// blocks, but holds space that no one sees. If the directory's lock file is gone it is made anew; blocks are
    /// refused while another process holds it.
    pub fn check_files(&self) -> u64 {
        self.check_lock();
        let segments: Vec<_> = self.segments.lock().values().cloned().collect();
        let damaged: Vec<_> = segments
            .into_iter()
            .filter_map(|s| s.damage().map(|how| (s, how)))
            .collect();
        if damaged.is_empty() {
            return 0;
        }
        let mut dropped = 0;
        let mut app = self.appender.lock();
        for (segment, how) in damaged {
            // It may have been deleted by the store itself since.
            if !self.segments.lock().contains_key(&segment.id) {
                continue;
            }
            let (blocks, _) = self.drop_segment(&mut app, &segment);
            count(&self.counters.lost_segments, 1);
            count(&self.counters.lost_blocks, blocks);
            let path = segment.path.display();
            tracing::warn!(%path, blocks, "dropped a segment of the cache: {how}");
            dropped += 1;
        }
        dropped
    }

    fn check_lock(&self) {
        let mut lock = self.lock.lock();
        if lock.as_ref().is_some_and(DirLock::still_named) {
            return;
        }
        match DirLock::acquire(&self.dir) {
            Ok(new) => *lock = Some(new),
            Err(error) => {
                tracing::error!(%error, "the cache directory's lock is lost; blocks are refused");
                *lock = None;
            }
        }
    }
}

const _: () = assert!(
    WRITE_MAX >= record_len(MAX_BLOCK_LEN),
    "a full block fits one write"
);
