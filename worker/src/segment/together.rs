//! Reading many small blocks with few reads of the disk: those that were written together lie together.

use bytes::Bytes;
use weir_core::BlockKey;

use super::index::Slot;
use super::location::{BlockLocation, read_run};
use super::store::SegmentStore;

/// Bytes between two blocks that are rather read along than left out by a read of their own.
const MAX_GAP: u64 = 64 << 10;
/// Parts of a segment file, in bytes, that one read does not begin in more than one of.
const WINDOW: u64 = 1 << 20;

/// A block that is wanted.
struct Wanted {
    /// Its place among the keys.
    place: usize,
    slot: Slot,
    location: BlockLocation,
}

impl Wanted {
    /// Whether `next`, which lies behind this one, is to be read with it.
    fn is_near(&self, next: &Self) -> bool {
        let (here, there) = (&self.location, &next.location);
        let end = here.offset + u64::from(here.len);
        self.slot.segment.id == next.slot.segment.id
            && here.offset / WINDOW == there.offset / WINDOW
            && there.offset.saturating_sub(end) <= MAX_GAP
    }
}

impl SegmentStore {
    /// Reads whole blocks, each as [`SegmentStore::read`] does; nothing for those that are not held or cannot be
    /// read. Results share buffers: copy them before keeping them for long.
    pub fn read_whole(&self, keys: &[BlockKey]) -> Vec<Option<Bytes>> {
        let found = keys.iter().enumerate().filter_map(|(place, key)| {
            let slot = self.index.get(key)?;
            let location = slot.location();
            Some(Wanted {
                place,
                slot,
                location,
            })
        });
        let mut wanted: Vec<Wanted> = found.collect();
        wanted.sort_unstable_by_key(|block| (block.slot.segment.id, block.slot.unit));
        let mut read = vec![None; keys.len()];
        for run in wanted.chunk_by(Wanted::is_near) {
            run[0].slot.segment.touch(self.now());
            let locations = run.iter().map(|block| &block.location);
            let bytes = read_run(&*self.disk, &locations.collect::<Vec<_>>(), &self.pool);
            for (block, bytes) in run.iter().zip(bytes.unwrap_or(vec![None; run.len()])) {
                // What went wrong with one of many is found out, and counted, by reading it alone.
                let key = &keys[block.place];
                read[block.place] = bytes.or_else(|| self.read(key, 0..u32::MAX).ok()?);
            }
        }
        read
    }
}
