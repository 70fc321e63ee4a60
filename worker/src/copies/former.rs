//! The cluster maps that there were, and who may hold a block because of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_core::{BlockKey, ClusterMap, WorkerId, WorkerInfo};

/// How long a map counts after it was replaced, and a worker as new. By then what is read at all was read.
pub(super) const KEPT_FOR: Duration = Duration::from_hours(24);
/// Maps that are remembered; of more the newest.
pub(super) const MAX_MAPS: usize = 8;
/// Workers that are asked for one block.
const MAX_HOLDERS: usize = 3;
/// The next ones in the hash order that are asked by a worker that is new: the first may be as new.
const NEXT: usize = 2;

/// The maps before the one that is in use.
#[derive(Default)]
pub(super) struct Former {
    current: Arc<ClusterMap>,
    /// The newest first, with the time when each was replaced.
    maps: VecDeque<(Arc<ClusterMap>, Instant)>,
    /// When this worker came into the map.
    joined: Option<Instant>,
}

impl Former {
    /// Takes note of the map that is in use now.
    pub(super) fn see(&mut self, map: &Arc<ClusterMap>, own: &WorkerId, now: Instant) {
        let has_own = |map: &ClusterMap| map.workers.iter().any(|worker| worker.id == *own);
        if map.workers == self.current.workers {
            self.current = map.clone();
            return;
        }
        if !has_own(&self.current) && has_own(map) {
            self.joined = Some(now);
        }
        let before = std::mem::replace(&mut self.current, map.clone());
        if !before.workers.is_empty() {
            self.maps.push_front((before, now));
            self.maps.truncate(MAX_MAPS);
        }
        self.maps.retain(|(_, replaced)| now < *replaced + KEPT_FOR);
    }

    /// Who of `map` may hold a block that `own` is the owner of: those that were before it, the last one first. Nobody if it
    /// is not the owner: the owner fetches, and whoever is asked in its place need not wait for it again.
    pub(super) fn holders(
        &self,
        key: &BlockKey,
        map: &ClusterMap,
        own: &WorkerId,
        now: Instant,
    ) -> Vec<WorkerInfo> {
        let is_recent = |since: Instant| now < since + KEPT_FOR;
        let is_new = self.joined.is_some_and(is_recent);
        if self.maps.is_empty() && !is_new {
            return Vec::new();
        }
        if map.owner(key).is_none_or(|owner| owner.id != *own) {
            return Vec::new();
        }
        let recent = self
            .maps
            .iter()
            .filter(|(_, replaced)| is_recent(*replaced));
        let former = recent.filter_map(|(map, _)| map.owner(key));
        // Those before it in maps that it does not know.
        let next = if is_new {
            map.owners(key, NEXT + 1)
        } else {
            Vec::new()
        };
        let mut holders: Vec<WorkerInfo> = Vec::with_capacity(MAX_HOLDERS);
        for worker in former.chain(next) {
            let is_there = |holder: &WorkerInfo| {
                holder.id == worker.id && holder.data_address == worker.data_address
            };
            if worker.id != *own
                && !holders.iter().any(|holder| holder.id == worker.id)
                && map.workers.iter().any(is_there)
            {
                holders.push(worker.clone());
                if holders.len() == MAX_HOLDERS {
                    break;
                }
            }
        }
        holders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(epoch: u64, ids: &[&str]) -> Arc<ClusterMap> {
        let worker = |id: &&str| WorkerInfo {
            id: id.parse().unwrap(),
            data_address: format!("{id}:1"),
            control_address: String::new(),
            node: "n".parse().unwrap(),
            local_socket: String::new(),
            weight: 1,
        };
        Arc::new(ClusterMap {
            epoch,
            workers: ids.iter().map(worker).collect(),
        })
    }

    fn keys() -> impl Iterator<Item = BlockKey> {
        (0..500_u32).map(|n| {
            let mut key = [0; 16];
            key.copy_from_slice(&blake(n));
            BlockKey(key)
        })
    }

    /// Some number that looks like a hash.
    fn blake(n: u32) -> [u8; 16] {
        let mixed = u128::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        (mixed ^ (mixed >> 61)).to_be_bytes()
    }

    fn ids(holders: &[WorkerInfo]) -> Vec<&str> {
        holders.iter().map(|holder| holder.id.as_str()).collect()
    }

    #[test]
    fn a_new_worker_asks_those_that_were_there_before_it() {
        let now = Instant::now();
        let own = "d".parse().unwrap();
        let (before, with) = (map(3, &["a", "b", "c"]), map(4, &["a", "b", "c", "d"]));
        let mut former = Former::default();
        former.see(&with, &own, now);
        let mut owned = 0;
        for key in keys() {
            let holders = former.holders(&key, &with, &own, now);
            if with.owner(&key).unwrap().id != own {
                assert!(holders.is_empty(), "it is another one's");
                continue;
            }
            owned += 1;
            let first = before.owner(&key).unwrap();
            assert_eq!(ids(&holders)[0], first.id.as_str());
        }
        assert!(owned > 50, "{owned}");
        let later = now + KEPT_FOR;
        assert!(keys().all(|key| former.holders(&key, &with, &own, later).is_empty()));
    }

    #[test]
    fn of_two_that_came_together_both_find_the_one_before() {
        let now = Instant::now();
        let own = "e".parse().unwrap();
        let (before, with) = (map(3, &["a", "b", "c"]), map(5, &["a", "b", "c", "d", "e"]));
        let mut former = Former::default();
        former.see(&with, &own, now);
        for key in keys().filter(|key| with.owner(key).unwrap().id == own) {
            let holders = former.holders(&key, &with, &own, now);
            assert!(ids(&holders).contains(&before.owner(&key).unwrap().id.as_str()));
        }
    }

    #[test]
    fn whoever_left_is_not_asked_nor_who_has_moved() {
        let now = Instant::now();
        let own = "a".parse().unwrap();
        let (before, after) = (map(1, &["a", "b", "c"]), map(2, &["a", "b"]));
        let mut former = Former::default();
        former.see(&before, &own, now - KEPT_FOR);
        former.see(&after, &own, now);
        for key in keys().filter(|key| after.owner(key).unwrap().id == own) {
            assert!(former.holders(&key, &after, &own, now).is_empty());
        }
        // It is back, elsewhere.
        let mut moved = (*before).clone();
        moved.workers[2].data_address = "x:1".to_owned();
        let moved = Arc::new(moved);
        for key in keys().filter(|key| moved.owner(key).unwrap().id == own) {
            assert!(former.holders(&key, &moved, &own, now).is_empty());
        }
    }

    #[test]
    fn a_share_that_comes_back_is_asked_of_whoever_had_it_meanwhile() {
        let now = Instant::now();
        let own = "a".parse().unwrap();
        let maps = [
            map(1, &["a", "b"]),
            map(2, &["a", "b", "c"]),
            map(3, &["a", "b"]),
        ];
        let mut former = Former::default();
        former.see(&maps[0], &own, now - KEPT_FOR);
        former.see(&maps[1], &own, now);
        former.see(&maps[2], &own, now);
        let mut back = (*maps[1]).clone();
        back.epoch = 4;
        former.see(&Arc::new(back), &own, now);
        assert_eq!(former.maps.len(), 3);
        for epoch in 5..100 {
            let ids: &[&str] = if epoch % 2 == 0 { &["a", "b"] } else { &["a"] };
            former.see(&map(epoch, ids), &own, now);
        }
        assert_eq!(former.maps.len(), MAX_MAPS);
    }

    #[test]
    fn without_a_change_nobody_is_asked() {
        let now = Instant::now();
        let own = "a".parse().unwrap();
        let mut former = Former::default();
        let here = map(1, &["a", "b"]);
        former.see(&here, &own, now);
        let later = now + KEPT_FOR;
        former.see(&map(2, &["a", "b"]), &own, later);
        assert!(keys().all(|key| former.holders(&key, &here, &own, later).is_empty()));
    }
}
