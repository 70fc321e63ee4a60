//! Blocks of other workers that are kept here for the readers of this node (`keep: node` of a dataset's placement).
//!
//! A mount on this node asks this worker for all blocks of such a dataset, and those that are no other domain's business come from the worker
//! that fills them (`copies/placed.rs`). They take a bounded part of the cache. When that is full what is there stays, and further ones
//! are served without being kept: readers that go through a dataset in ever other orders would push out what they read next.
//! If room is short these blocks go first.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_core::{Block, BlockKey};
use weir_segment::Pieces;

use super::{EVICT_BATCH, FREE_SHARE, Worker};
use crate::copies::{Asker, Route};
use crate::fills::{Keeper, Started};

/// How often it is looked which of the blocks are still held.
const LOOK_INTERVAL: Duration = Duration::from_mins(1);

/// What is kept for this node.
#[derive(Debug)]
pub(crate) struct Keeping {
    most: u64,
    kept: Mutex<Kept>,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    blocks: HashMap<BlockKey, Part>,
    /// The map that they were kept by.
    epoch: u64,
    looked: Option<Instant>,
}

/// What is known of a kept block.
#[derive(Debug)]
struct Part {
    len: u32,
    dataset: Arc<str>,
    /// The dataset's placement; by another one it may be this worker's own.
    version: u64,
}

impl Keeping {
    pub(super) fn new(most: u64) -> Self {
        Self {
            most,
            kept: Mutex::default(),
            bytes: AtomicU64::new(0),
        }
    }

    /// Bytes of the blocks that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Notes a block, unless there is no room for it.
    fn add(&self, key: BlockKey, part: Part, epoch: u64) -> bool {
        let mut kept = self.kept.lock();
        self.begin(&mut kept, epoch);
        let len = u64::from(part.len);
        if kept.blocks.contains_key(&key) {
            return true;
        }
        if self.bytes() + len > self.most {
            return false;
        }
        kept.blocks.insert(key, part);
        self.bytes.fetch_add(len, Ordering::Relaxed);
        true
    }

    /// By another map they may be this worker's own.
    fn begin(&self, kept: &mut Kept, epoch: u64) {
        if kept.epoch != epoch {
            kept.blocks.clear();
            kept.epoch = epoch;
            self.bytes.store(0, Ordering::Relaxed);
        }
    }

    /// Forgets blocks that are none of these any more, and takes out as many as make `excess` bytes.
    fn take(
        &self,
        epoch: u64,
        excess: u64,
        is_still: impl Fn(&BlockKey, &str, u64) -> bool,
    ) -> Vec<BlockKey> {
        let mut kept = self.kept.lock();
        self.begin(&mut kept, epoch);
        let (mut taken, mut freed, mut left) = (Vec::new(), 0, 0);
        kept.blocks.retain(|key, part| {
            if !is_still(key, &part.dataset, part.version) {
                return false;
            }
            if freed < excess {
                freed += u64::from(part.len);
                taken.push(*key);
                return false;
            }
            left += u64::from(part.len);
            true
        });
        self.bytes.store(left, Ordering::Relaxed);
        taken
    }
}

impl Worker {
    /// The dataset for which a block is fetched that this worker does not own, and keeps for its node.
    fn keeps_for(&self, block: &Block) -> Option<Arc<str>> {
        if !self.placements.any_keeps() {
            return None;
        }
        let copies = self.copies.get()?;
        match self.route(copies, block, &block.key(), &Asker::default()) {
            Route::Kept(dataset, _) => Some(dataset),
            _ => None,
        }
    }

    /// Whether a block that was just fetched goes to the tiers: any does but one that is for this node alone, and beyond what that may
    /// take.
    pub(super) fn has_place_for(&self, block: &Block) -> bool {
        let (Some(dataset), Some(copies)) = (self.keeps_for(block), self.copies.get()) else {
            return true;
        };
        let version = self.placements.version(&dataset);
        let part = Part {
            len: block.len(),
            dataset,
            version,
        };
        self.has_room() && self.keeping.add(block.key(), part, copies.map().epoch())
    }

    /// Keeps a block in memory alone, for those who come for its other parts.
    pub(super) fn keep_for_a_moment(&self, started: &Started<Self>) {
        let fill = started.fill();
        if self.memory.capacity() > 0
            && !fill.is_discarded()
            && let Some(data) = fill.complete()
        {
            let mut data = Pieces::new(data);
            let sums = data.checksums();
            self.memory.insert(started.key(), data.bytes(), sums);
        }
    }

    /// Has blocks that are kept for this node make room, and forgets those that are gone.
    pub(super) fn drop_kept(&self) {
        let Some(copies) = self.copies.get() else {
            return;
        };
        if self.keeping.bytes() == 0 {
            return;
        }
        let excess = if self.has_room() {
            0
        } else {
            self.capacity() / FREE_SHARE
        };
        let now = Instant::now();
        {
            let mut kept = self.keeping.kept.lock();
            if excess == 0 && kept.looked.is_some_and(|at| now < at + LOOK_INTERVAL) {
                return;
            }
            kept.looked = Some(now);
        }
        let is_still = |key: &BlockKey, dataset: &str, version| {
            self.keeps(key) && self.placements.version(dataset) == version
        };
        let taken = self.keeping.take(copies.map().epoch(), excess, is_still);
        for keys in taken.chunks(EVICT_BATCH) {
            self.evict_for(keys, "kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    fn key(n: u8) -> BlockKey {
        BlockKey([n; 16])
    }

    fn part(version: u64) -> Part {
        Part {
            len: MIB,
            dataset: "set".into(),
            version,
        }
    }

    #[test]
    fn what_is_kept_stays_when_there_is_no_more_room_and_goes_when_room_is_short() {
        let keeping = Keeping::new(4 * u64::from(MIB) + 1);
        for n in 0..4 {
            assert!(keeping.add(key(n), part(1), 1));
        }
        assert!(!keeping.add(key(9), part(1), 1), "it is full");
        assert!(keeping.add(key(0), part(1), 1), "it is there");
        assert_eq!(keeping.bytes(), 4 * u64::from(MIB));
        // Some were dropped otherwise, or are of a placement that is no more.
        let is_there = |known: &BlockKey, _: &str, _| *known != key(3);
        assert!(keeping.take(1, 0, is_there).is_empty());
        assert_eq!(keeping.bytes(), 3 * u64::from(MIB));
        assert!(keeping.add(key(9), part(2), 1));
        let is_newest = |_: &BlockKey, _: &str, version| version == 2;
        assert_eq!(keeping.take(1, 1, is_newest), [key(9)]);
        assert_eq!(keeping.bytes(), 0);
        // By another map all may be this worker's own.
        assert!(keeping.add(key(1), part(1), 2));
        assert!(keeping.take(3, u64::MAX, |_, _, _| true).is_empty());
        assert_eq!(keeping.bytes(), 0);
    }
}
