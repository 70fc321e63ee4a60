//! Where each block is, in memory: a sharded hash map whose locks are held for a look-up and never during I/O.
//!
//! An entry of a block of up to two chunks takes 48 bytes, checksums included.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use weir_core::BlockKey;

use super::file::Segment;
use super::location::BlockLocation;
use super::record::{Checksums, HeldSums, Record, UNIT, header_len, pages_before_data};

/// Number of shards; more than cores, so that readers seldom meet.
const SHARDS: usize = 64;

/// Where a block's record is.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) segment: Arc<Segment>,
    /// Start of the record, in units of 64 bytes.
    pub(super) unit: u32,
    /// Length of the data, in bytes.
    pub(super) len: u32,
    sums: HeldSums,
}

impl Slot {
    pub(super) fn new(segment: &Arc<Segment>, record: &Record) -> Self {
        Self {
            segment: Arc::clone(segment),
            unit: record.unit,
            len: record.len,
            sums: record.sums.clone().into_held(),
        }
    }

    /// True if both are the same record.
    pub(super) fn is(&self, other: &Slot) -> bool {
        self.unit == other.unit && Arc::ptr_eq(&self.segment, &other.segment)
    }

    pub(super) fn checksums(&self) -> Checksums {
        Checksums::of_held(self.sums.clone(), self.len)
    }

    pub(super) fn location(&self) -> BlockLocation {
        let offset = u64::from(self.unit) * UNIT + header_len(self.len);
        BlockLocation {
            file: Arc::clone(&self.segment.file),
            direct: self.segment.direct,
            offset,
            len: self.len,
            checksums: self.checksums(),
            page_checksums_at: pages_before_data(self.len).map(|before| offset - before),
        }
    }
}

type Shard = HashMap<BlockKey, Slot>;

/// The index of all blocks held.
#[derive(Debug)]
pub(super) struct Index {
    shards: Box<[RwLock<Shard>]>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
        }
    }

    fn shard(&self, key: &BlockKey) -> &RwLock<Shard> {
        // A key is a hash, so any byte of it spreads evenly.
        &self.shards[usize::from(key.0[0]) % SHARDS]
    }

    pub(super) fn get(&self, key: &BlockKey) -> Option<Slot> {
        self.shard(key).read().get(key).cloned()
    }

    pub(super) fn contains(&self, key: &BlockKey) -> bool {
        self.shard(key).read().contains_key(key)
    }

    /// Refers `key` to a record and counts it as live; returns the record that it replaces.
    pub(super) fn insert(&self, key: BlockKey, slot: Slot) -> Option<Slot> {
        slot.segment.add_live(slot.len);
        let old = self.shard(&key).write().insert(key, slot);
        if let Some(old) = &old {
            old.segment.remove_live(old.len);
        }
        old
    }

    /// Refers `key` to `new` if it still refers to `old`; false otherwise.
    pub(super) fn replace(&self, key: &BlockKey, old: &Slot, new: Slot) -> bool {
        let mut shard = self.shard(key).write();
        let Some(held) = shard.get_mut(key).filter(|held| held.is(old)) else {
            return false;
        };
        new.segment.add_live(new.len);
        old.segment.remove_live(old.len);
        *held = new;
        true
    }

    /// Forgets a block; returns where it was.
    pub(super) fn remove(&self, key: &BlockKey) -> Option<Slot> {
        let slot = self.shard(key).write().remove(key)?;
        slot.segment.remove_live(slot.len);
        Some(slot)
    }

    /// Forgets a block if it is still at `slot`; true if it was.
    pub(super) fn remove_at(&self, key: &BlockKey, slot: &Slot) -> bool {
        let mut shard = self.shard(key).write();
        if !shard.get(key).is_some_and(|held| held.is(slot)) {
            return false;
        }
        shard.remove(key);
        slot.segment.remove_live(slot.len);
        true
    }

    /// Those of a segment's records that are live.
    pub(super) fn live_of(
        &self,
        segment: &Arc<Segment>,
        records: &[Record],
    ) -> Vec<(BlockKey, Slot)> {
        let live = |record: &Record| {
            let slot = self.get(&record.key)?;
            let same = slot.unit == record.unit && Arc::ptr_eq(&slot.segment, segment);
            same.then_some((record.key, slot))
        };
        records.iter().filter_map(live).collect()
    }

    /// All live blocks of a segment, found without its table by looking at every entry.
    pub(super) fn scan(&self, segment: &Arc<Segment>) -> Vec<(BlockKey, Slot)> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            let inside = shard
                .iter()
                .filter(|(_, slot)| Arc::ptr_eq(&slot.segment, segment));
            found.extend(inside.map(|(key, slot)| (*key, slot.clone())));
        }
        found
    }

    /// Calls `visit` with each block's key and length in bytes; blocks that come or go meanwhile may be missed.
    pub(super) fn for_each(&self, mut visit: impl FnMut(BlockKey, u32)) {
        for shard in &self.shards {
            // Copied first, so that the visitor may use the store.
            let keys: Vec<_> = shard.read().iter().map(|(k, s)| (*k, s.len)).collect();
            for (key, len) in keys {
                visit(key, len);
            }
        }
    }

    /// Number of blocks.
    pub(super) fn len(&self) -> u64 {
        self.shards.iter().map(|s| s.read().len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_a_small_block_takes_48_bytes() {
        assert_eq!(size_of::<(BlockKey, Slot)>(), 48);
    }
}
