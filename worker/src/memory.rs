//! The memory tier: whole blocks in the process's memory, bounded by their bytes.
//!
//! Admission and eviction are TinyLFU's (moka), so one pass over a large dataset does not wash out what is read
//! often.
//!
//! Each block has its checksums beside it. A read from memory does not check them, unless the bytes go to another process,
//! which does. Instead blocks are checked in the background, all of them in an hour: a damaged one is dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use moka::sync::Cache;
use parking_lot::Mutex;
use weir_core::{BLOCK_SIZE, BlockKey};

use weir_segment::Checksums;

/// What an entry costs beside its bytes: key, counters and allocation.
const ENTRY_OVERHEAD: usize = 192;

/// Bytes that may be over the capacity for a moment.
const SETTLE_EVERY: u64 = 4 << 20;

/// The time in which every block is checked once, and the most bytes that are checked in a second: a fiftieth of a core.
const SCRUB_TIME: Duration = Duration::from_hours(1);
const SCRUB_BYTES: u64 = 256 << 20;

/// Blocks in memory. A capacity of 0 turns the tier off.
#[derive(Debug)]
pub struct MemoryTier {
    blocks: Option<Cache<BlockKey, Held>>,
    capacity: u64,
    /// Bytes that were added since room was made.
    unsettled: AtomicU64,
    /// The blocks that are still to be checked in this round.
    unchecked: Mutex<Vec<BlockKey>>,
}

#[derive(Clone, Debug)]
struct Held {
    data: Bytes,
    sums: Checksums,
}

/// What a check of a block has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checked {
    /// It is as it was put here, and has so many bytes.
    Right(u64),
    /// It was not, and is no longer here.
    Damaged,
    /// It is not here.
    Absent,
}

impl MemoryTier {
    /// A tier of at most `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let blocks = (capacity > 0).then(|| {
            Cache::builder()
                .max_capacity(capacity)
                .weigher(|_, held: &Held| {
                    let sums = size_of_val(&*held.sums);
                    let bytes = held.data.len() + sums + ENTRY_OVERHEAD;
                    u32::try_from(bytes).unwrap_or(u32::MAX)
                })
                .build()
        });
        Self {
            blocks,
            capacity,
            unsettled: AtomicU64::new(0),
            unchecked: Mutex::default(),
        }
    }

    /// The block, if it is here. Counts as a use.
    pub fn get(&self, key: &BlockKey) -> Option<Bytes> {
        Some(self.blocks.as_ref()?.get(key)?.data)
    }

    /// The checksums of the block, if it is here. Counts as a use.
    pub fn checksums(&self, key: &BlockKey) -> Option<Checksums> {
        Some(self.blocks.as_ref()?.get(key)?.sums)
    }

    /// Whether the block is here. Does not count as a use.
    pub fn contains(&self, key: &BlockKey) -> bool {
        self.blocks.as_ref().is_some_and(|b| b.contains_key(key))
    }

    /// Offers a block in pieces, with its checksums. The bytes are copied, so that a slice of a larger buffer does not keep
    /// all of it alive.
    pub fn insert(&self, key: BlockKey, pieces: &[Bytes], sums: Checksums) {
        if let Some(blocks) = &self.blocks {
            let data = Bytes::from(pieces.concat());
            let added = data.len() as u64;
            blocks.insert(key, Held { data, sums });
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
            .map_or(0, |held| held.data.len() as u64)
    }

    /// Checks a block, and drops it if it is damaged.
    pub fn check(&self, key: &BlockKey) -> Checked {
        let Some((blocks, held)) = self.blocks.as_ref().and_then(|b| Some((b, b.get(key)?))) else {
            return Checked::Absent;
        };
        if Checksums::of_data(&held.data) == held.sums {
            return Checked::Right(held.data.len() as u64);
        }
        tracing::warn!(block = %key, "a block was damaged in memory; it is dropped");
        blocks.invalidate(key);
        Checked::Damaged
    }

    /// Checks as many blocks as are due in `time`, one at least; gives how many were damaged and dropped. Takes a while.
    pub fn scrub(&self, time: Duration) -> u64 {
        let Some(blocks) = &self.blocks else { return 0 };
        let part = SCRUB_TIME.as_secs() / time.as_secs().max(1);
        let most = SCRUB_BYTES * time.as_secs().max(1);
        let due = (self.capacity / part.max(1)).clamp(BLOCK_SIZE, most);
        let mut unchecked = self.unchecked.lock();
        if unchecked.is_empty() {
            unchecked.extend(blocks.iter().map(|(key, _)| *key));
        }
        let (mut bytes, mut damaged) = (0, 0);
        while bytes < due
            && let Some(key) = unchecked.pop()
        {
            match self.check(&key) {
                Checked::Right(length) => bytes += length,
                Checked::Damaged => damaged += 1,
                Checked::Absent => {}
            }
        }
        damaged
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
impl MemoryTier {
    /// Flips a bit of a block that is here, as bad memory does.
    pub(crate) fn flip(&self, key: &BlockKey, at: usize) {
        let blocks = self.blocks.as_ref().unwrap();
        let mut held = blocks.get(key).unwrap();
        let mut data = held.data.to_vec();
        data[at] ^= 1;
        held.data = data.into();
        blocks.insert(*key, held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> BlockKey {
        BlockKey([n; 16])
    }

    fn insert(tier: &MemoryTier, n: u8, data: Vec<u8>) {
        let sums = Checksums::of_data(&data);
        tier.insert(key(n), &[Bytes::from(data)], sums);
    }

    #[test]
    fn a_byte_that_was_flipped_in_memory_is_found_and_its_block_dropped() {
        let tier = MemoryTier::new(1 << 30);
        for n in 0..20 {
            insert(&tier, n, vec![n; 1 << 20]);
        }
        assert_eq!(tier.scrub(Duration::from_secs(2)), 0);
        for n in [3, 11] {
            tier.flip(&key(n), 700_000);
        }
        // Rounds of 4 MiB, until all were checked, also those that the first round started with.
        let damaged: u64 = (0..12).map(|_| tier.scrub(Duration::from_secs(2))).sum();
        assert_eq!(damaged, 2);
        let held: Vec<u8> = (0..20).filter(|n| tier.contains(&key(*n))).collect();
        let wanted: Vec<u8> = (0..20).filter(|n| ![3, 11].contains(n)).collect();
        assert_eq!(held, wanted);
        assert_eq!(tier.check(&key(3)), Checked::Absent);
        assert_eq!(tier.check(&key(4)), Checked::Right(1 << 20));
    }

    #[test]
    fn the_tier_never_holds_more_than_its_capacity() {
        let tier = MemoryTier::new(100_000);
        for n in 0..50 {
            insert(&tier, n, vec![n; 10_000]);
        }
        assert!(tier.used() <= 100_000, "{}", tier.used());
        assert!(tier.blocks() > 0);
    }

    #[test]
    fn a_capacity_of_zero_turns_the_tier_off() {
        let tier = MemoryTier::new(0);
        insert(&tier, 1, vec![1]);
        assert_eq!(tier.get(&key(1)), None);
        assert!(!tier.contains(&key(1)));
        assert_eq!(
            (tier.used(), tier.blocks(), tier.remove(&key(1))),
            (0, 0, 0)
        );
    }
}
