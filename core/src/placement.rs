//! Which worker owns a block: weighted rendezvous hashing over the cluster map.
//!
//! Client and worker compute the same answer from the same map, so nobody looks a block up anywhere. Adding or
//! removing a worker moves only that worker's share; the next workers in the hash order are the replicas and the
//! fall-backs. Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998), with the
//! weights of Schindelhauer and Schomaker (2005): score = -weight / ln(hash in (0, 1)).

use serde::{Deserialize, Serialize};

use crate::block::BlockKey;
use crate::id::{NodeName, WorkerId};

/// Most workers that a cluster map holds; a larger one is refused where it is received.
pub const MAX_WORKERS: usize = 10_000;

/// One live worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// The worker's name, which placement hashes.
    pub id: WorkerId,
    /// `host:port` of the block stream.
    pub data_address: String,
    /// `host:port` of the control service.
    pub control_address: String,
    /// The machine that it runs on.
    pub node: NodeName,
    /// Path of its Unix socket, for clients on the same node.
    pub local_socket: String,
    /// Bytes of cache; the share of blocks that it owns is proportional to this.
    pub weight: u64,
}

/// Epoch-numbered list of live workers. The epoch grows with each change.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Grows with each change of the list.
    pub epoch: u64,
    /// The live workers, sorted by id.
    pub workers: Vec<WorkerInfo>,
}

impl ClusterMap {
    /// The workers in the order in which they should hold `block`: the owner first, then the fall-backs.
    /// At most `count`.
    pub fn owners(&self, block: &BlockKey, count: usize) -> Vec<&WorkerInfo> {
        let mut scored: Vec<(f64, &WorkerInfo)> = self
            .workers
            .iter()
            .map(|worker| (score(worker, block), worker))
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.id.cmp(&b.1.id)));
        scored.into_iter().take(count).map(|(_, w)| w).collect()
    }

    /// The worker that owns `block`; `None` when there is no worker.
    pub fn owner(&self, block: &BlockKey) -> Option<&WorkerInfo> {
        self.workers.iter().max_by(|a, b| {
            score(a, block)
                .total_cmp(&score(b, block))
                .then_with(|| b.id.cmp(&a.id))
        })
    }
}

fn score(worker: &WorkerInfo, block: &BlockKey) -> f64 {
    let mut seed: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in worker.id.as_str().bytes() {
        seed = (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let (low, high) = block.0.split_at(8);
    let word = |bytes: &[u8]| bytes.iter().fold(0u64, |w, b| (w << 8) | u64::from(*b));
    let hash = mix(mix(seed ^ word(low)) ^ word(high));
    // 53 bits, moved off 0 so that the logarithm is finite.
    let unit = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(worker.weight.max(1) as f64) / unit.ln()
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn worker(id: &str, weight: u64) -> WorkerInfo {
        WorkerInfo {
            id: id.parse().unwrap(),
            data_address: String::new(),
            control_address: String::new(),
            node: "n".parse().unwrap(),
            local_socket: String::new(),
            weight,
        }
    }

    fn map(workers: &[(&str, u64)]) -> ClusterMap {
        ClusterMap {
            epoch: 1,
            workers: workers.iter().map(|(id, w)| worker(id, *w)).collect(),
        }
    }

    fn keys(count: u32) -> impl Iterator<Item = BlockKey> {
        (0..count).map(|i| {
            let mut key = [0; 16];
            key.copy_from_slice(&blake3::hash(&i.to_le_bytes()).as_bytes()[..16]);
            BlockKey(key)
        })
    }

    #[test]
    fn shares_are_proportional_to_weight() {
        let map = map(&[("a", 100), ("b", 100), ("c", 200)]);
        let mut shares: HashMap<&str, u32> = HashMap::new();
        for key in keys(20_000) {
            *shares
                .entry(map.owner(&key).unwrap().id.as_str())
                .or_default() += 1;
        }
        for (id, expected) in [("a", 5_000), ("b", 5_000), ("c", 10_000)] {
            let share = shares[id];
            assert!(share.abs_diff(expected) < expected / 10, "{id}: {share}");
        }
    }

    #[test]
    fn removing_a_worker_moves_only_its_own_blocks() {
        let before = map(&[("a", 1), ("b", 1), ("c", 1)]);
        let after = map(&[("a", 1), ("b", 1)]);
        for key in keys(5_000) {
            let old = before.owner(&key).unwrap();
            let new = after.owner(&key).unwrap();
            if old.id.as_str() == "c" {
                // The new owner is the one that was next in the order.
                assert_eq!(before.owners(&key, 2)[1].id, new.id);
            } else {
                assert_eq!(old.id, new.id);
            }
        }
    }

    #[test]
    fn owners_start_with_the_owner_and_an_empty_map_has_none() {
        let map = map(&[("a", 3), ("b", 1), ("c", 2)]);
        for key in keys(200) {
            assert_eq!(map.owners(&key, 3)[0], map.owner(&key).unwrap());
        }
        let nobody = ClusterMap::default();
        assert!(keys(1).all(|key| nobody.owner(&key).is_none()));
    }
}
