//! Blocks that are other workers' now make room before anything else is refused.
//!
//! They are what a worker held when another one came, or when it took over while one was away. For some hours after the last
//! change of the cluster map they stay: their owners take them over from here.

use std::time::{Duration, Instant};

use weir_core::{BlockKey, ClusterMap, WorkerId};

use super::{EVICT_BATCH, FREE_SHARE, Worker};

/// How long the cluster map must have been as it is: a worker that came takes two terabytes over meanwhile.
const SETTLED_FOR: Duration = Duration::from_hours(6);
/// Least time between two looks at all blocks: one takes half a microsecond for each, ten seconds for 20 million, on a thread that
/// answers nobody and holds no lock meanwhile. It has no other bound: the blocks come in no order that one could go on from.
const LOOK_INTERVAL: Duration = Duration::from_mins(10);
/// Blocks that are dropped with one look.
const MAX_DROPPED: usize = 1 << 20;
/// The first workers in the hash order of a block may hold it: the owner, and whoever is asked in its place.
const MAY_HOLD: usize = 2;

impl Worker {
    /// Drops blocks that are other workers' if room is short, which is looked for now and then. Blocks on the disk.
    pub(super) fn drop_unowned(&self) {
        let Some(copies) = self.copies.get() else {
            return;
        };
        // Which of them a dataset's domains are to hold is not known of a block alone.
        if self.has_room() || self.placements.any() || !copies.is_settled_for(SETTLED_FOR) {
            return;
        }
        let now = Instant::now();
        {
            let mut looked = self.looked_for_unowned.lock();
            if looked.is_some_and(|looked| now < looked + LOOK_INTERVAL) {
                return;
            }
            *looked = Some(now);
        }
        let map = copies.map();
        let dropped = self.drop_unowned_of(&map);
        if dropped > 0 {
            tracing::info!(dropped, "bytes of blocks that are other workers' made room");
        }
    }

    /// Drops as many of other workers' blocks as make an eighth of the SSD tier free; gives their bytes.
    fn drop_unowned_of(&self, map: &ClusterMap) -> u64 {
        let (capacity, used) = self.ssd.space();
        let mut excess = used.saturating_sub(capacity - capacity / FREE_SHARE);
        let own = &self.config.id;
        let mut keys = Vec::new();
        self.ssd.for_each(|key, len| {
            if excess > 0 && keys.len() < MAX_DROPPED && !may_hold(map, &key, own) {
                excess = excess.saturating_sub(len.into());
                keys.push(key);
            }
        });
        let batches = keys.chunks(EVICT_BATCH);
        batches.map(|keys| self.evict_for(keys, "not_owned")).sum()
    }
}

/// Whether a worker may be asked for a block by readers. One that owns nothing is not: but it is cordoned, and others are to
/// have its blocks first.
fn may_hold(map: &ClusterMap, key: &BlockKey, own: &WorkerId) -> bool {
    let has_weight = map.worker(own).is_some_and(|own| own.weight > 0);
    !has_weight || map.owners(key, MAY_HOLD).iter().any(|w| w.id == *own)
}

#[cfg(test)]
mod tests {
    use weir_core::WorkerInfo;
    use weir_core::placement::Hashing;
    use weir_segment::Pieces;

    use super::*;
    use crate::config::{SsdConfig, WorkerConfig};
    use crate::metrics::EvictionLabels;
    use crate::ssd::Write;
    use crate::testing;

    const BLOCKS: u64 = 56;

    fn key(n: u64) -> BlockKey {
        let mixed = u128::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        BlockKey((mixed ^ (mixed >> 61)).to_be_bytes())
    }

    fn map(ids: &[&str], own_weight: u64) -> ClusterMap {
        let worker = |id: &&str| WorkerInfo {
            weight: if *id == "own" { own_weight } else { 1 },
            ..testing::info(id).unwrap()
        };
        ClusterMap::new(1, Hashing::NEWEST, ids.iter().map(worker).collect())
    }

    #[tokio::test]
    async fn only_blocks_of_others_make_room_and_no_more_than_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        let ssd = SsdConfig {
            evict_idle: Duration::MAX,
            ..testing::ssd(dir.path().to_owned(), 64 << 20)
        };
        let config = WorkerConfig {
            ssd: vec![ssd],
            ..testing::config("own").unwrap()
        };
        let worker = testing::open(config).unwrap();
        for n in 0..BLOCKS {
            let (written, done) = tokio::sync::oneshot::channel();
            let write = Write {
                key: key(n),
                data: Pieces::new(vec![bytes::Bytes::from(vec![n as u8; 1 << 20])]),
                done: Box::new(|_| written.send(()).unwrap_or_default()),
            };
            worker.ssd.write(write).await.ok().unwrap();
            done.await.unwrap();
        }
        let held = || -> Vec<u64> {
            (0..BLOCKS)
                .filter(|n| worker.ssd.contains(&key(*n)))
                .collect()
        };
        let before = held();
        // Alone, or one of two, it may be asked for all; and one that is cordoned keeps what others are to take.
        for (ids, weight) in [
            (&["own"][..], 1),
            (&["a", "own"], 1),
            (&["a", "b", "own"], 0),
        ] {
            assert_eq!(worker.drop_unowned_of(&map(ids, weight)), 0, "{ids:?}");
        }
        let four = map(&["a", "b", "c", "own"], 1);
        let dropped = worker.drop_unowned_of(&four);
        let after = held();
        let (capacity, used) = worker.ssd.space();
        let is_own = |n: &u64| may_hold(&four, &key(*n), &"own".parse().unwrap());
        assert!(
            before
                .iter()
                .filter(|n| is_own(n))
                .all(|n| after.contains(n))
        );
        assert_eq!(dropped, ((before.len() - after.len()) as u64) << 20);
        assert!(
            dropped > 0,
            "{used} of {capacity} used by {} blocks",
            before.len()
        );
        let reason = EvictionLabels {
            tier: "ssd",
            reason: "not_owned",
        };
        assert_eq!(
            worker.metrics.evicted_bytes.get_or_create(&reason).get(),
            dropped
        );
        worker.close(Duration::from_secs(10)).await;
    }
}
