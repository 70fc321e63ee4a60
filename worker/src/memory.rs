//! The memory tier: whole blocks in the process's memory, bounded by their bytes.
//!
//! Admission and eviction are TinyLFU's (moka), so one pass over a large dataset does not wash out what is read
//! often.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use moka::sync::Cache;
use weir_core::BlockKey;

/// What an entry costs beside its bytes: key, counters and allocation.
const ENTRY_OVERHEAD: usize = 192;

/// Bytes that may be over the capacity for a moment.
const SETTLE_EVERY: u64 = 4 << 20;

/// Blocks in memory. A capacity of 0 turns the tier off.
#[derive(Debug)]
pub struct MemoryTier {
    blocks: Option<Cache<BlockKey, Bytes>>,
    capacity: u64,
    /// Bytes that were added since room was made.
    unsettled: AtomicU64,
}

impl MemoryTier {
    /// A tier of at most `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let blocks = (capacity > 0).then(|| {
            Cache::builder()
                .max_capacity(capacity)
                .weigher(|_, data: &Bytes| {
                    u32::try_from(data.len() + ENTRY_OVERHEAD).unwrap_or(u32::MAX)
                })
                .build()
        });
        Self {
            blocks,
            capacity,
            unsettled: AtomicU64::new(0),
        }
    }

    /// The block, if it is here. Counts as a use.
    pub fn get(&self, key: &BlockKey) -> Option<Bytes> {
        self.blocks.as_ref()?.get(key)
    }

    /// Whether the block is here. Does not count as a use.
    pub fn contains(&self, key: &BlockKey) -> bool {
        self.blocks.as_ref().is_some_and(|b| b.contains_key(key))
    }

    /// Offers a block in pieces. The bytes are copied, so that a slice of a larger buffer does not keep all of it alive.
    pub fn insert(&self, key: BlockKey, pieces: &[Bytes]) {
        if let Some(blocks) = &self.blocks {
            let data = Bytes::from(pieces.concat());
            let added = data.len() as u64;
            blocks.insert(key, data);
            // moka makes room by and by, after some hundred insertions: with blocks of 4 MiB far too late.
            if self.unsettled.fetch_add(added, Ordering::Relaxed) + added >= SETTLE_EVERY {
                self.unsettled.store(0, Ordering::Relaxed);
                blocks.run_pending_tasks();
            }
        }
    }

    /// Drops a block and gives its length, 0 if it was not here.
    pub fn remove(&self, key: &BlockKey) -> u64 {
        self.blocks
            .as_ref()
            .and_then(|blocks| blocks.remove(key))
            .map_or(0, |data| data.len() as u64)
    }

    /// Most bytes that the tier holds.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes held now, with what the entries cost.
    pub fn used(&self) -> u64 {
        self.blocks.as_ref().map_or(0, |blocks| {
            blocks.run_pending_tasks();
            blocks.weighted_size()
        })
    }

    /// Number of blocks held now.
    pub fn blocks(&self) -> u64 {
        self.blocks.as_ref().map_or(0, Cache::entry_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> BlockKey {
        BlockKey([n; 16])
    }

    #[test]
    fn the_tier_never_holds_more_than_its_capacity() {
        let tier = MemoryTier::new(100_000);
        for n in 0..50 {
            tier.insert(key(n), &[Bytes::from(vec![n; 10_000])]);
        }
        assert!(tier.used() <= 100_000, "{}", tier.used());
        assert!(tier.blocks() > 0);
    }

    #[test]
    fn a_capacity_of_zero_turns_the_tier_off() {
        let tier = MemoryTier::new(0);
        tier.insert(key(1), &[Bytes::from_static(b"x")]);
        assert_eq!(tier.get(&key(1)), None);
        assert!(!tier.contains(&key(1)));
        assert_eq!(
            (tier.used(), tier.blocks(), tier.remove(&key(1))),
            (0, 0, 0)
        );
    }
}
