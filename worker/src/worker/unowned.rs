//! Blocks that are other workers' now make room before anything else is refused.
//!
//! They are what a worker held when another one came, when it took over while one was away, or when their dataset was held here. For
//! some hours after the last change of the cluster map, or of the dataset's placement, they stay: their owners take them over from here.
//!
//! As long as no dataset has a placement a block's owners follow from the map alone, and all blocks are looked at. Otherwise they are
//! looked at dataset by dataset, with the inventories of the newest snapshots; a block of an object that other datasets may have,
//! too, goes only if it is not this worker's by the placement of any of them. What is of no newest snapshot goes as idle blocks do.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_core::placement::domains::{Owners, Placement};
use weir_core::{BlockKey, ClusterMap, WorkerId};

use super::{EVICT_BATCH, FREE_SHARE, Worker};
use crate::fills::Keeper;

/// How long the cluster map must have been as it is: a worker that came takes two terabytes over meanwhile.
const SETTLED_FOR: Duration = Duration::from_hours(6);
/// Least time between two looks at all blocks: one takes half a microsecond for each, ten seconds for 20 million, on a thread that
/// answers nobody and holds no lock meanwhile. It has no other bound: the blocks come in no order that one could go on from.
const LOOK_INTERVAL: Duration = Duration::from_mins(10);
/// Blocks that are dropped with one look.
const MAX_DROPPED: usize = 1 << 20;
/// The first workers in the hash order of a block may hold it: the owner, and whoever is asked in its place.
const MAY_HOLD: usize = 2;
/// Datasets that may share objects with one whose blocks are dropped; those of one that more do stay.
const MAX_OVERLAPPING: usize = 64;

impl Worker {
    /// Drops blocks that are other workers' if room is short, which is looked for now and then. Blocks on the disk.
    pub(super) fn drop_unowned(&self) {
        let Some(copies) = self.copies.get() else {
            return;
        };
        if self.has_room() || !copies.is_settled_for(SETTLED_FOR) {
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
        if self.placements.any() {
            // Which of them a dataset's domains are to hold is not known of a block alone. With this all inventories are taken anew.
            self.changed();
            return;
        }
        let map = copies.map();
        let dropped = self.drop_unowned_of(&map);
        if dropped > 0 {
            tracing::info!(dropped, "bytes of blocks that are other workers' made room");
        }
    }

    /// What is looked for in the inventory of a dataset while some have a placement, if room is short.
    pub(crate) fn unowned_of(&self, dataset: &str) -> Option<Unowned> {
        let copies = self.copies.get()?;
        if self.has_room() || !self.placements.any() || !copies.is_settled_for(SETTLED_FOR) {
            return None;
        }
        self.unowned_in(&copies.map(), dataset, SETTLED_FOR)
    }

    fn unowned_in(
        &self,
        map: &Arc<ClusterMap>,
        dataset: &str,
        settled_for: Duration,
    ) -> Option<Unowned> {
        let own = &self.config.id;
        let has_weight = map.worker(own).is_some_and(|own| own.weight > 0);
        let (excess, now) = (self.excess(), Instant::now());
        // Others are to have the blocks of a worker that is cordoned first.
        if excess == 0 || !has_weight {
            return None;
        }
        let mut owners: Vec<Owners> = Vec::new();
        for name in self.origins.overlapping(dataset) {
            let known = self.placements.get(&name);
            let is_settled = known
                .as_ref()
                .is_none_or(|known| known.is_settled_for(settled_for, now));
            if !is_settled || owners.len() >= MAX_OVERLAPPING {
                return None;
            }
            let usual = Placement::default();
            let placement = known.as_ref().map_or(&usual, |known| known.current());
            owners.push(Owners::new(map.clone(), placement));
        }
        // Of a dataset that the master has not named nothing is known.
        (!owners.is_empty()).then(|| Unowned {
            owners,
            own: own.clone(),
            excess,
            keys: Vec::new(),
        })
    }

    /// Drops the blocks that were found; gives their bytes.
    pub(crate) fn drop_found(&self, dataset: &str, unowned: &Unowned) -> u64 {
        let batches = unowned.keys.chunks(EVICT_BATCH);
        let dropped = batches.map(|keys| self.evict_for(keys, "not_owned")).sum();
        if dropped > 0 {
            tracing::info!(
                dataset,
                dropped,
                "bytes of blocks that are other workers' made room"
            );
        }
        dropped
    }

    /// Bytes of the SSD tier of which an eighth of it lacks to be free.
    fn excess(&self) -> u64 {
        let (capacity, used) = self.ssd.space();
        used.saturating_sub(capacity - capacity / FREE_SHARE)
    }

    /// Drops as many of other workers' blocks as make an eighth of the SSD tier free; gives their bytes.
    fn drop_unowned_of(&self, map: &ClusterMap) -> u64 {
        let mut excess = self.excess();
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

/// Blocks of one dataset that are other workers' now.
#[derive(Debug)]
pub(crate) struct Unowned {
    /// By the placement of each dataset that may have them.
    owners: Vec<Owners>,
    own: WorkerId,
    /// Bytes that are to be dropped yet.
    excess: u64,
    keys: Vec<BlockKey>,
}

impl Unowned {
    /// A block of the dataset is held.
    pub(crate) fn see(&mut self, key: &BlockKey, len: u32) {
        let may_hold = |owners: &Owners| owners.may_be_asked(&self.own, key, MAY_HOLD);
        if self.excess > 0 && self.keys.len() < MAX_DROPPED && !self.owners.iter().any(may_hold) {
            self.excess = self.excess.saturating_sub(len.into());
            self.keys.push(*key);
        }
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
    use weir_proto::v1;
    use weir_segment::Pieces;

    use super::*;
    use crate::config::{SsdConfig, WorkerConfig};
    use crate::metrics::EvictionLabels;
    use crate::sources::DatasetSources;
    use crate::ssd::Write;
    use crate::testing;

    const BLOCKS: u64 = 56;
    const SECOND: Duration = Duration::from_secs(1);

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

    /// A worker that is nearly full of blocks.
    async fn full(dir: &tempfile::TempDir) -> Arc<Worker> {
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
        worker
    }

    /// Has datasets be of these prefixes, on these nodes; they were placed anew `ago`.
    fn place(worker: &Worker, datasets: &[(&str, &str, &str)], ago: Duration) {
        let replaced_ago_ns = i64::try_from(ago.as_nanos()).unwrap();
        let placed = datasets
            .iter()
            .map(|(name, prefix, node)| v1::DatasetSources {
                dataset: (*name).to_owned(),
                sources: vec![v1::Source {
                    origin: 1,
                    prefix: (*prefix).to_owned(),
                }],
                placement: Some(v1::Placement {
                    version: ago.as_secs(), // each time another one
                    spread: v1::Spread::Node.into(),
                    domains: vec![(*node).to_owned()],
                    ..v1::Placement::default()
                }),
                former: vec![v1::FormerPlacement {
                    placement: Some(v1::Placement::default()),
                    replaced_ago_ns,
                    ..v1::FormerPlacement::default()
                }],
            });
        let placed: Vec<_> = placed.collect();
        worker.placements.set(&placed);
        worker.origins.bind(Some(DatasetSources::of_reply(placed)));
    }

    #[tokio::test]
    async fn of_a_dataset_that_others_hold_as_much_makes_room_as_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let worker = full(&dir).await;
        let nodes = ["n", "other"].map(|node| WorkerInfo {
            id: if node == "n" { "own" } else { "a" }.parse().unwrap(),
            node: node.parse().unwrap(),
            ..map(&["x"], 1).workers()[0].clone()
        });
        let cluster = Arc::new(ClusterMap::new(1, Hashing::NEWEST, nodes.to_vec()));
        let look = |dataset: &str| {
            let mut unowned = worker.unowned_in(&cluster, dataset, 20 * SECOND)?;
            (0..BLOCKS).for_each(|n| unowned.see(&key(n), 1 << 20));
            Some(unowned)
        };
        let found = |dataset: &str| look(dataset).map(|unowned| unowned.keys.len());
        let long = 40 * SECOND;
        place(
            &worker,
            &[("here", "a/", "n"), ("there", "b/", "other")],
            long,
        );
        assert_eq!(found("here"), Some(0));
        assert_eq!(found("unknown"), Some(0), "all workers have it");
        // Its owners may not have taken it over yet.
        place(&worker, &[("there", "b/", "other")], 10 * SECOND);
        assert_eq!(found("there"), None);
        // It may be the same objects.
        place(
            &worker,
            &[("here", "b/c/", "n"), ("there", "b/", "other")],
            long,
        );
        assert_eq!(found("there"), Some(0));
        place(
            &worker,
            &[("here", "a/", "n"), ("there", "b/", "other")],
            long,
        );
        let (excess, unowned) = (worker.excess(), look("there").unwrap());
        let expected = excess.div_ceil(1 << 20);
        assert!(excess > 0 && unowned.keys.len() as u64 == expected);
        assert_eq!(worker.drop_found("there", &unowned), expected << 20);
        assert!(worker.excess() < 1 << 20, "there is room");
        worker.close(Duration::from_secs(10)).await;
    }

    #[tokio::test]
    async fn only_blocks_of_others_make_room_and_no_more_than_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        let worker = full(&dir).await;
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
