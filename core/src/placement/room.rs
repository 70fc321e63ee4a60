//! What placed datasets take of each worker's cache.
//!
//! A dataset that is placed anew goes where it fits beside those that are there already. Without that, datasets of a quarter of a node
//! each would meet on some nodes by chance, and push each other out while other nodes are empty.
//!
//! A dataset counts with all of its bytes, in each domain that holds a copy, shared among the domain's workers by their weight.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::domains::{Placement, Spread, places_by};
use super::{ClusterMap, WorkerInfo};
use crate::id::PlaceName;

/// Part of a domain's bytes that one dataset may take when its spread is chosen for it: datasets share a node's cache.
pub(super) const SHARE: f64 = 0.25;
/// How far beyond that a dataset may grow before it leaves a domain.
pub(super) const KEPT: f64 = 2.0;

/// Whether a dataset takes no more than its share of a domain.
pub(super) fn fits(bytes: u64, capacity: u64, slack: f64) -> bool {
    bytes as f64 <= capacity as f64 * SHARE * slack
}

/// A domain of one map.
#[derive(Debug)]
pub(super) struct Domain {
    /// The places of its workers in the map.
    workers: Vec<usize>,
    /// Bytes of cache that they have; a cordoned one has none.
    pub(super) capacity: u64,
}

type By = (Spread, Option<PlaceName>);

/// The domains of one map, looked for once for all datasets that are placed in it, and what these take.
#[derive(Debug, Default)]
pub struct Domains {
    map: Arc<ClusterMap>,
    /// Bytes that datasets take of each worker, in the order of the map.
    taken: Vec<i128>,
    /// What is not in `taken` yet of domains, which have more datasets than anybody asks for room.
    changes: HashMap<(By, String), i128>,
    known: HashMap<By, BTreeMap<String, Domain>>,
}

/// Those of one spread.
pub(super) struct Of<'a> {
    pub(super) domains: &'a BTreeMap<String, Domain>,
    taken: &'a [i128],
    map: &'a ClusterMap,
}

impl Of<'_> {
    /// Whether so many bytes fit beside what is there.
    pub(super) fn has_room(&self, domain: &Domain, bytes: u64) -> bool {
        let taken = domain.workers.iter().map(|place| self.taken[*place]);
        let taken = taken.fold(0_i128, i128::saturating_add);
        taken.saturating_add(bytes.into()) <= domain.capacity.into()
    }
}

impl<'a> Of<'a> {
    /// The workers of a domain.
    pub(super) fn workers(&self, domain: &Domain) -> impl Iterator<Item = &'a WorkerInfo> {
        let map = self.map;
        let places = domain.workers.iter();
        places.map(|place| &map.workers()[*place])
    }
}

impl Domains {
    /// Those of a map in which no dataset is placed.
    pub fn new(map: Arc<ClusterMap>) -> Self {
        Self {
            taken: vec![0; map.workers().len()],
            map,
            changes: HashMap::new(),
            known: HashMap::new(),
        }
    }

    /// The map.
    pub fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    /// Whether no worker can hold anything.
    pub fn is_empty(&self) -> bool {
        let mut workers = self.map.workers().iter();
        workers.all(|worker| worker.weight == 0)
    }

    /// Those of a spread, of all workers or of one pool's.
    pub(super) fn by(&mut self, spread: Spread, pool: Option<&PlaceName>) -> Of<'_> {
        for ((by, name), bytes) in std::mem::take(&mut self.changes) {
            let Some(domain) = self.find(&by).get(&name).filter(|of| of.capacity > 0) else {
                continue;
            };
            let capacity = i128::from(domain.capacity);
            let workers = domain.workers.clone();
            for place in workers {
                let weight = i128::from(self.map.workers()[place].weight);
                let share = bytes.saturating_mul(weight) / capacity;
                self.taken[place] = self.taken[place].saturating_add(share);
            }
        }
        let by = (spread, pool.cloned());
        self.find(&by);
        Of {
            domains: &self.known[&by],
            taken: &self.taken,
            map: &self.map,
        }
    }

    fn find(&mut self, by: &By) -> &BTreeMap<String, Domain> {
        let map = &self.map;
        self.known.entry(by.clone()).or_insert_with(|| {
            let domain = |workers: Vec<usize>| {
                let weights = workers.iter().map(|place| map.workers()[*place].weight);
                Domain {
                    capacity: weights.fold(0, u64::saturating_add),
                    workers,
                }
            };
            let domains = places_by(map, by.0, by.1.as_ref()).into_iter();
            let domains = domains.map(|(name, workers)| (name.into_owned(), domain(workers)));
            domains.collect()
        })
    }

    /// Whether all domains of a placement have a worker, cordoned or not.
    pub fn has_all_of(&mut self, placement: &Placement) -> bool {
        let there = self.by(placement.spread, placement.pool.as_ref()).domains;
        let mut names = placement.domains.iter();
        names.all(|name| there.contains_key(name))
    }

    /// A dataset of so many bytes is placed so.
    pub fn put(&mut self, placement: &Placement, bytes: u64) {
        self.change(placement, bytes.into());
    }

    /// One that was [`put`](Self::put) is not there any more.
    pub fn remove(&mut self, placement: &Placement, bytes: u64) {
        self.change(placement, -i128::from(bytes));
    }

    fn change(&mut self, placement: &Placement, bytes: i128) {
        let by = (placement.spread, placement.pool.clone());
        for name in &placement.domains {
            let change = self.changes.entry((by.clone(), name.clone())).or_default();
            *change = change.saturating_add(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::domains::tests::worker;
    use super::*;
    use crate::placement::Hashing;

    const TIB: u64 = 1 << 40;

    fn placement(spread: Spread, domains: &[&str]) -> Placement {
        Placement {
            version: 1,
            spread,
            domains: domains.iter().map(|name| (*name).to_owned()).collect(),
            ..Placement::default()
        }
    }

    #[test]
    fn a_dataset_takes_of_each_worker_what_its_domains_share_and_gives_it_back() {
        let workers = [("n1", "a"), ("n2", "a"), ("n3", "b")];
        let workers = workers.map(|(node, zone)| worker(node, node, zone, ""));
        let map = Arc::new(ClusterMap::new(1, Hashing::Seats, workers.to_vec()));
        let mut domains = Domains::new(map);
        let zones = placement(Spread::Zone, &["a", "b", "gone"]);
        let node = placement(Spread::Node, &["n1"]);
        let room = |domains: &mut Domains| -> Vec<u64> {
            let of = domains.by(Spread::Node, None);
            let free = |domain: &Domain| {
                let has_room = |eighths: &u64| of.has_room(domain, eighths * (TIB / 8));
                (0..=8).rev().find(has_room).unwrap_or(0)
            };
            of.domains.values().map(free).collect()
        };
        assert_eq!(room(&mut domains), [8, 8, 8]);
        domains.put(&zones, TIB / 2);
        assert_eq!(room(&mut domains), [6, 6, 4]);
        domains.put(&node, 100 * TIB);
        assert_eq!(room(&mut domains), [0, 6, 4]);
        domains.remove(&node, 100 * TIB);
        domains.put(&placement(Spread::Cluster, &[""]), 3 * TIB / 2);
        assert_eq!(room(&mut domains), [2, 2, 0]);
        domains.remove(&zones, TIB / 2);
        assert_eq!(room(&mut domains), [4, 4, 4]);
    }

    #[test]
    fn the_domains_of_a_placement_are_there_while_any_worker_is() {
        let cordoned = WorkerInfo {
            weight: 0,
            ..worker("w", "n1", "a", "")
        };
        let map = Arc::new(ClusterMap::new(1, Hashing::Seats, vec![cordoned]));
        let mut domains = Domains::new(map);
        assert!(domains.is_empty());
        assert!(domains.has_all_of(&placement(Spread::Node, &["n1"])));
        assert!(!domains.has_all_of(&placement(Spread::Node, &["n1", "n2"])));
        assert!(domains.has_all_of(&Placement::default()));
    }
}
