//! The cluster maps that there were, and who may hold a block because of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
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
#[derive(Clone, Default)]
pub(super) struct Former {
    current: Arc<ClusterMap>,
    /// The newest first, with the time when each was replaced.
    maps: VecDeque<(Arc<ClusterMap>, Instant)>,
    /// When this worker came into the map.
    joined: Option<Instant>,
    /// When the map changed last.
    changed: Option<Instant>,
    /// The map as it would be if nobody were cordoned, if somebody is.
    uncordoned: Option<Arc<ClusterMap>>,
    /// The map in use without this worker, while that is new; and the same if nobody were cordoned, if somebody is: a worker that is
    /// drained while this one comes still holds what others have not taken over.
    without_own: Option<Arc<ClusterMap>>,
    uncordoned_without_own: Option<Arc<ClusterMap>>,
}

/// A map as it would be if these of its workers were not cordoned.
pub(crate) fn uncordoned(map: &ClusterMap, these: impl Fn(&WorkerId) -> bool) -> ClusterMap {
    let workers = map.workers().iter().map(|worker| {
        let mut worker = worker.clone();
        if worker.cordoned_weight > 0 && these(&worker.id) {
            worker.weight = std::mem::take(&mut worker.cordoned_weight);
        }
        worker
    });
    ClusterMap::new(map.epoch(), map.hashing(), workers.collect())
}

/// A map as it would be if one of its workers had not come.
fn without(map: &ClusterMap, id: &WorkerId) -> ClusterMap {
    let others = map.workers().iter().filter(|worker| worker.id != *id);
    ClusterMap::new(map.epoch(), map.hashing(), others.cloned().collect())
}

impl Former {
    /// The map that is in use.
    pub(super) fn current(&self) -> &Arc<ClusterMap> {
        &self.current
    }

    /// The map in use with the weights that cordoned workers had: what they own by a former placement they still hold.
    pub(super) fn uncordoned(&self) -> &Arc<ClusterMap> {
        self.uncordoned.as_ref().unwrap_or(&self.current)
    }

    /// The maps by which others may hold what is this worker's now, the likeliest first.
    pub(super) fn maps(&self, now: Instant) -> impl Iterator<Item = &Arc<ClusterMap>> {
        let is_recent = move |since: Instant| now < since + KEPT_FOR;
        let is_new = self.joined.is_some_and(is_recent);
        // What it does not know itself, those do that were there before it.
        let without_own = self.without_own.iter().chain(&self.uncordoned_without_own);
        let without_own = without_own.filter(move |_| is_new);
        let recent = self.maps.iter();
        let recent = recent.filter(move |(_, replaced)| is_recent(*replaced));
        let before = recent.map(|(map, _)| map);
        self.uncordoned.iter().chain(without_own).chain(before)
    }

    /// Takes note of the map that is in use now.
    pub(super) fn see(&mut self, map: &Arc<ClusterMap>, own: &WorkerId, now: Instant) {
        let has_own = |map: &ClusterMap| map.worker(own).is_some();
        // Another hash gives blocks other owners, too.
        let is_same = map.hashing() == self.current.hashing();
        if is_same && map.workers() == self.current.workers() {
            self.current = map.clone();
            return;
        }
        self.changed = Some(now);
        let somebody = map
            .workers()
            .iter()
            .any(|worker| worker.cordoned_weight > 0);
        self.uncordoned = somebody.then(|| Arc::new(uncordoned(map, |_| true)));
        if !has_own(&self.current) && has_own(map) {
            self.joined = Some(now);
        }
        let is_new = self.joined.is_some_and(|since| now < since + KEPT_FOR);
        let without_own = |map: &ClusterMap| is_new.then(|| Arc::new(without(map, own)));
        self.without_own = without_own(map);
        self.uncordoned_without_own = self.uncordoned.as_ref().and_then(|map| without_own(map));
        let before = std::mem::replace(&mut self.current, map.clone());
        if !before.workers().is_empty() {
            self.maps.push_front((before, now));
            self.maps.truncate(MAX_MAPS);
        }
        self.maps.retain(|(_, replaced)| now < *replaced + KEPT_FOR);
    }

    /// Whether the map has been as it is for so long.
    pub(super) fn is_settled_for(&self, time: Duration, now: Instant) -> bool {
        self.changed.is_some_and(|changed| now >= changed + time)
    }

    /// Who of `map` may hold a block that `own` is the owner of: those that were before it, the last one first. If it is not the
    /// owner, the owner and those before it, if that is to be asked; else nobody: the owner fetches, and whoever is asked in its place
    /// need not wait for it again.
    pub(super) fn holders(
        &self,
        key: &BlockKey,
        map: &ClusterMap,
        own: &WorkerId,
        asks_owner: bool,
        now: Instant,
    ) -> Vec<WorkerInfo> {
        let is_recent = |since: Instant| now < since + KEPT_FOR;
        let is_new = self.joined.is_some_and(is_recent);
        if !asks_owner && self.maps.is_empty() && !is_new && self.uncordoned.is_none() {
            return Vec::new();
        }
        let owner = map.owner(key).filter(|owner| owner.id != *own);
        if !asks_owner && owner.is_some() {
            return Vec::new();
        }
        let recent = self
            .maps
            .iter()
            .filter(|(_, replaced)| is_recent(*replaced));
        let former = recent.filter_map(|(map, _)| map.owner(key));
        // One that is cordoned has its blocks for as long as it is there.
        let cordoned = self.uncordoned.iter();
        let before_own = self.uncordoned_without_own.iter().filter(|_| is_new);
        let cordoned = cordoned.chain(before_own);
        let cordoned = cordoned.filter_map(|map| map.owner(key));
        // Those before it in maps that it does not know.
        let next = if is_new {
            map.owners(key, NEXT + 1)
        } else {
            Vec::new()
        };
        let all = owner.into_iter().chain(former).chain(cordoned).chain(next);
        still_there(all, map, own, MAX_HOLDERS)
    }
}

/// The first workers among these, without `own`, that are still where they were, each once.
pub(super) fn still_there<'a>(
    workers: impl Iterator<Item = &'a WorkerInfo>,
    map: &ClusterMap,
    own: &WorkerId,
    most: usize,
) -> Vec<WorkerInfo> {
    let mut found: Vec<WorkerInfo> = Vec::with_capacity(most);
    for worker in workers {
        // One that has moved is another.
        let is_there = |known: &WorkerInfo| known.data_address == worker.data_address;
        if worker.id != *own
            && !found.iter().any(|known| known.id == worker.id)
            && map.worker(&worker.id).is_some_and(is_there)
        {
            found.push(worker.clone());
            if found.len() == most {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use weir_core::placement::Hashing;

    use super::*;
    use crate::testing;

    /// The same map with one worker changed.
    fn with(
        map: &ClusterMap,
        epoch: u64,
        number: usize,
        change: fn(&mut WorkerInfo),
    ) -> Arc<ClusterMap> {
        let mut workers = map.workers().to_vec();
        change(&mut workers[number]);
        Arc::new(ClusterMap::new(epoch, map.hashing(), workers))
    }

    fn map(epoch: u64, ids: &[&str]) -> Arc<ClusterMap> {
        let worker = |id: &&str| WorkerInfo {
            data_address: format!("{id}:1"),
            ..testing::info(id).unwrap()
        };
        let workers = ids.iter().map(worker).collect();
        Arc::new(ClusterMap::new(epoch, Hashing::NEWEST, workers))
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
            let holders = former.holders(&key, &with, &own, false, now);
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
        assert!(keys().all(|key| former.holders(&key, &with, &own, false, later).is_empty()));
    }

    #[test]
    fn of_two_that_came_together_both_find_the_one_before() {
        let now = Instant::now();
        let own = "e".parse().unwrap();
        let (before, with) = (map(3, &["a", "b", "c"]), map(5, &["a", "b", "c", "d", "e"]));
        let mut former = Former::default();
        former.see(&with, &own, now);
        for key in keys().filter(|key| with.owner(key).unwrap().id == own) {
            let holders = former.holders(&key, &with, &own, false, now);
            assert!(ids(&holders).contains(&before.owner(&key).unwrap().id.as_str()));
        }
    }

    #[test]
    fn a_worker_that_comes_while_another_one_is_drained_finds_that() {
        let now = Instant::now();
        let own = "d".parse().unwrap();
        let before = map(3, &["a", "b", "c"]);
        let drained = |worker: &mut WorkerInfo| {
            worker.cordoned_weight = std::mem::take(&mut worker.weight);
        };
        let with = with(&map(5, &["a", "b", "c", "d"]), 5, 0, drained);
        let mut former = Former::default();
        former.see(&with, &own, now);
        let is_owned = |key: &BlockKey| with.owner(key).unwrap().id == own;
        for key in keys().filter(is_owned) {
            let first = before.owner(&key).unwrap();
            let holders = former.holders(&key, &with, &own, false, now);
            assert!(ids(&holders).contains(&first.id.as_str()), "{}", first.id);
            let mut by_maps = former.maps(now).filter_map(|map| map.owner(&key));
            assert!(by_maps.any(|owner| owner.id == first.id));
        }
    }

    #[test]
    fn whoever_left_is_not_asked_nor_who_has_moved() {
        let start = Instant::now();
        let now = start + KEPT_FOR;
        let own = "a".parse().unwrap();
        let (before, after) = (map(1, &["a", "b", "c"]), map(2, &["a", "b"]));
        let mut former = Former::default();
        former.see(&before, &own, start);
        former.see(&after, &own, now);
        for key in keys().filter(|key| after.owner(key).unwrap().id == own) {
            assert!(former.holders(&key, &after, &own, false, now).is_empty());
        }
        // It is back, elsewhere.
        let moved = with(&before, 3, 2, |c| c.data_address = "x:1".to_owned());
        for key in keys().filter(|key| moved.owner(key).unwrap().id == own) {
            assert!(former.holders(&key, &moved, &own, false, now).is_empty());
        }
    }

    #[test]
    fn a_share_that_comes_back_is_asked_of_whoever_had_it_meanwhile() {
        let start = Instant::now();
        let now = start + KEPT_FOR;
        let own = "a".parse().unwrap();
        let maps = [
            map(1, &["a", "b"]),
            map(2, &["a", "b", "c"]),
            map(3, &["a", "b"]),
        ];
        let mut former = Former::default();
        former.see(&maps[0], &own, start);
        former.see(&maps[1], &own, now);
        former.see(&maps[2], &own, now);
        former.see(&with(&maps[1], 4, 0, |_| {}), &own, now);
        assert_eq!(former.maps.len(), 3);
        for epoch in 5..100 {
            let ids: &[&str] = if epoch % 2 == 0 { &["a", "b"] } else { &["a"] };
            former.see(&map(epoch, ids), &own, now);
        }
        assert_eq!(former.maps.len(), MAX_MAPS);
    }

    #[test]
    fn a_cordoned_worker_is_asked_for_what_was_its_for_as_long_as_it_is_there() {
        let now = Instant::now();
        let own = "a".parse().unwrap();
        let before = map(1, &["a", "b", "c"]);
        let cordoned = with(&before, 2, 2, |c| (c.weight, c.cordoned_weight) = (0, 1));
        let mut former = Former::default();
        former.see(&cordoned, &own, now);
        let later = now + 2 * KEPT_FOR;
        let mut moved = 0;
        for key in keys().filter(|key| cordoned.owner(key).unwrap().id == own) {
            let holders = former.holders(&key, &cordoned, &own, false, later);
            if before.owner(&key).unwrap().id == own {
                assert!(holders.is_empty());
            } else {
                assert_eq!(ids(&holders), ["c"]);
                moved += 1;
            }
        }
        assert!(moved > 30, "{moved}");
        assert!(keys().all(|key| cordoned.owner(&key).unwrap().id.as_str() != "c"));
        assert_eq!(uncordoned(&cordoned, |_| true).workers(), before.workers());
        assert_eq!(uncordoned(&cordoned, |_| false), *cordoned);
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
        assert!(former.is_settled_for(KEPT_FOR, later));
        assert!(!former.is_settled_for(2 * KEPT_FOR, later));
        assert!(keys().all(|key| former.holders(&key, &here, &own, false, later).is_empty()));
    }
}
