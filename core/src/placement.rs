//! Which worker owns a block: weighted rendezvous hashing over the cluster map.
//!
//! Client and worker compute the same answer from the same map, so nobody looks a block up anywhere. Adding or
//! removing a worker moves only that worker's share; the next workers in the hash order are the replicas and the
//! fall-backs.
//!
//! The map says which hash ([`Hashing`]), since another one moves nearly all blocks: a cluster keeps the hash that it was
//! made with.

pub mod choice;
pub mod domains;
pub mod places;
pub mod readers;
pub mod reason;
pub mod room;
mod scored;
mod seats;

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::block::BlockKey;
use crate::id::{NameError, NodeName, PlaceName, WorkerId};
use seats::{Member, Seats};

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
    /// Where that is.
    #[serde(default)]
    pub location: Location,
    /// Path of its Unix socket, for clients on the same node.
    pub local_socket: String,
    /// Bytes of cache; the share of blocks that it owns is proportional to this. With 0, as that of a cordoned one, it owns none and comes
    /// last, as long as there is a worker with more.
    pub weight: u64,
    /// The weight that it would have if it were not cordoned; 0 if it is not.
    #[serde(default)]
    pub cordoned_weight: u64,
}

/// Where a worker or a reader is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Location {
    /// The pool that it belongs to, if any: workers for datasets that ask for this pool, whatever their zones are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PlaceName>,
    /// Its zone, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<PlaceName>,
    /// Its rack or the like inside of the zone, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<PlaceName>,
    /// The machine whose mounts may use the worker's socket, where that is not the node's name: several nodes may be one machine
    /// (`weir dev`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<NodeName>,
}

impl Location {
    /// A zone and a group as messages name them, where an empty name is none.
    pub fn of_names(zone: &str, group: &str) -> Result<Self, NameError> {
        Ok(Self {
            zone: named(zone)?,
            group: named(group)?,
            ..Self::default()
        })
    }

    /// The same in a pool; an empty name is none.
    pub fn in_pool(self, pool: &str) -> Result<Self, NameError> {
        Ok(Self {
            pool: named(pool)?,
            ..self
        })
    }

    /// The same on a machine; an empty name is none.
    pub fn on_machine(self, machine: &str) -> Result<Self, NameError> {
        Ok(Self {
            machine: named(machine)?,
            ..self
        })
    }
}

fn named<T: std::str::FromStr>(name: &str) -> Result<Option<T>, T::Err> {
    (!name.is_empty()).then(|| name.parse()).transpose()
}

/// How blocks are hashed to workers. Both give weighted rendezvous hashing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hashing {
    /// All workers are scored and sorted for each block: clusters whose first map is older than the other hash.
    #[default]
    Scored,
    /// Workers have seats, and the best ones are found without a look at all others.
    Seats,
}

impl Hashing {
    /// That of new clusters.
    pub const NEWEST: Self = Self::Seats;

    /// Its number in messages.
    pub fn number(self) -> u32 {
        match self {
            Self::Scored => 0,
            Self::Seats => 1,
        }
    }

    /// The hash with a number in messages. One that is not known yet is read as the newest: any worker serves any block, so a
    /// reader of an older version finds its blocks, if at the cost of second copies.
    pub fn of_number(number: u32) -> Self {
        match number {
            0 => Self::Scored,
            _ => Self::NEWEST,
        }
    }
}

/// Epoch-numbered list of live workers, sorted by name, none of which is there twice.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "SavedMap")]
pub struct ClusterMap {
    epoch: u64,
    hashing: Hashing,
    workers: Vec<WorkerInfo>,
    /// Made when the first block is looked up: nearly all maps that a client gets are those that it has.
    #[serde(skip)]
    seats: OnceLock<Seated>,
}

/// The seats of workers, by their places in the map.
#[derive(Clone, Debug)]
struct Seated {
    /// Those with a weight; all, if none has one.
    places: Vec<usize>,
    seats: Seats,
    /// The others. Both are in order.
    last: Vec<usize>,
}

/// A map as it is kept in files.
#[derive(Deserialize)]
struct SavedMap {
    epoch: u64,
    #[serde(default)]
    hashing: Hashing,
    workers: Vec<WorkerInfo>,
}

impl From<SavedMap> for ClusterMap {
    fn from(saved: SavedMap) -> Self {
        Self::new(saved.epoch, saved.hashing, saved.workers)
    }
}

impl PartialEq for ClusterMap {
    fn eq(&self, other: &Self) -> bool {
        let parts = |map: &Self| (map.epoch, map.hashing);
        parts(self) == parts(other) && self.workers == other.workers
    }
}

impl ClusterMap {
    /// The map of these workers, in any order. Of two with one name that with the smaller address for blocks stays, so that everybody
    /// drops the same one; a master lists none twice, and at most [`MAX_WORKERS`].
    pub fn new(epoch: u64, hashing: Hashing, mut workers: Vec<WorkerInfo>) -> Self {
        workers.sort_by(|a, b| (&a.id, &a.data_address).cmp(&(&b.id, &b.data_address)));
        workers.dedup_by(|later, first| later.id == first.id);
        workers.truncate(MAX_WORKERS);
        Self {
            epoch,
            hashing,
            workers,
            seats: OnceLock::new(),
        }
    }

    /// Grows with each change of the list.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How blocks are hashed to the workers.
    pub fn hashing(&self) -> Hashing {
        self.hashing
    }

    /// The live workers, sorted by name.
    pub fn workers(&self) -> &[WorkerInfo] {
        &self.workers
    }

    /// The worker of this name.
    pub fn worker(&self, id: &WorkerId) -> Option<&WorkerInfo> {
        self.place_of(id).map(|place| &self.workers[place])
    }

    fn place_of(&self, id: &WorkerId) -> Option<usize> {
        let found = self.workers.binary_search_by(|worker| worker.id.cmp(id));
        found.ok()
    }

    /// Whether the worker at a place owns blocks.
    fn may_own(&self, place: usize) -> bool {
        self.seated().last.binary_search(&place).is_err()
    }

    /// The workers in the order in which they should hold `block`: the owner first, then the fall-backs.
    /// At most `count`.
    pub fn owners(&self, block: &BlockKey, count: usize) -> Vec<&WorkerInfo> {
        let seated = self.seated();
        let order = match self.hashing {
            Hashing::Scored => scored::order(&self.workers, &seated.places, block, count),
            Hashing::Seats => {
                let order = seated.seats.order(words(block), count).into_iter();
                order.map(|member| seated.places[member]).collect()
            }
        };
        let more = count.saturating_sub(order.len());
        let last = if more > 0 && !seated.last.is_empty() {
            scored::order(&self.workers, &seated.last, block, more)
        } else {
            Vec::new()
        };
        let order = order.into_iter().chain(last);
        order.map(|place| &self.workers[place]).collect()
    }

    /// The worker that owns `block`; `None` when there is no worker.
    pub fn owner(&self, block: &BlockKey) -> Option<&WorkerInfo> {
        self.owners(block, 1).pop()
    }

    fn seated(&self) -> &Seated {
        self.seats.get_or_init(|| {
            let all = (0..self.workers.len()).collect();
            let (places, last) = split(&self.workers, all);
            let members = match self.hashing {
                Hashing::Scored => Vec::new(),
                Hashing::Seats => members(&self.workers, &places),
            };
            Seated {
                seats: Seats::new(&members),
                places,
                last,
            }
        })
    }
}

/// Of some workers those that own blocks, and the others: those with a weight, or all if none has one.
fn split(workers: &[WorkerInfo], places: Vec<usize>) -> (Vec<usize>, Vec<usize>) {
    let (owning, last): (Vec<_>, Vec<_>) = places
        .into_iter()
        .partition(|place| workers[*place].weight > 0);
    if owning.is_empty() {
        (last, owning)
    } else {
        (owning, last)
    }
}

/// Some workers as placement sees them.
fn members(workers: &[WorkerInfo], places: &[usize]) -> Vec<Member> {
    let member = |place: &usize| Member {
        seed: seed(workers[*place].id.as_str()),
        weight: workers[*place].weight,
    };
    places.iter().map(member).collect()
}

/// A name as a number.
fn seed(name: &str) -> u64 {
    let [first, _] = halves(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
    first
}

/// A block's key as two numbers.
fn words(block: &BlockKey) -> [u64; 2] {
    halves(&block.0)
}

fn halves(bytes: &[u8]) -> [u64; 2] {
    let (first, second) = bytes.split_at(8);
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |word, b| (word << 8) | u64::from(*b))
    };
    [word(first), word(second)]
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const BOTH: [Hashing; 2] = [Hashing::Scored, Hashing::Seats];

    fn worker(id: &str, weight: u64) -> WorkerInfo {
        WorkerInfo {
            id: id.parse().unwrap(),
            data_address: String::new(),
            control_address: String::new(),
            node: "n".parse().unwrap(),
            location: Location::default(),
            local_socket: String::new(),
            weight,
            cordoned_weight: 0,
        }
    }

    fn map(hashing: Hashing, workers: &[(&str, u64)]) -> ClusterMap {
        let workers = workers.iter().map(|(id, w)| worker(id, *w)).collect();
        ClusterMap::new(1, hashing, workers)
    }

    fn numbered(hashing: Hashing, weights: impl IntoIterator<Item = u64>) -> ClusterMap {
        let workers = weights.into_iter().enumerate();
        let workers = workers.map(|(number, weight)| worker(&format!("worker-{number}"), weight));
        ClusterMap::new(1, hashing, workers.collect())
    }

    fn key(number: u32) -> BlockKey {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
        BlockKey(key)
    }

    fn keys(count: u32) -> impl Iterator<Item = BlockKey> {
        (0..count).map(key)
    }

    fn names(owners: &[&WorkerInfo]) -> Vec<String> {
        owners.iter().map(|worker| worker.id.to_string()).collect()
    }

    #[test]
    fn shares_are_proportional_to_weight() {
        for hashing in BOTH {
            let map = map(hashing, &[("a", 100), ("b", 100), ("c", 200)]);
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
    }

    #[test]
    fn shares_of_many_workers_are_proportional_to_weight() {
        let weights = (0..1200).map(|number| [1, 1, 2, 6][number % 4] << 40);
        let map = numbered(Hashing::Seats, weights);
        let mut shares: HashMap<u64, u32> = HashMap::new();
        let count = 20_000;
        for key in keys(count) {
            *shares
                .entry(map.owner(&key).unwrap().weight >> 40)
                .or_default() += 1;
        }
        for (weight, part) in [(1, 0.2), (2, 0.2), (6, 0.6)] {
            let share = f64::from(shares[&weight]) / f64::from(count);
            assert!((share - part).abs() < 0.02, "{weight}: {share}");
        }
    }

    #[test]
    fn removing_a_worker_moves_only_its_own_blocks() {
        for hashing in BOTH {
            let before = map(hashing, &[("a", 1), ("b", 1), ("c", 1)]);
            let after = map(hashing, &[("a", 1), ("b", 1)]);
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
    }

    #[test]
    fn owners_start_with_the_owner_and_an_empty_map_has_none() {
        for hashing in BOTH {
            let map = map(hashing, &[("a", 3), ("b", 1), ("c", 2)]);
            for key in keys(200) {
                let owners = map.owners(&key, 9);
                assert_eq!(owners.len(), 3);
                assert_eq!(owners[0], map.owner(&key).unwrap());
            }
            let nobody = ClusterMap::new(0, hashing, Vec::new());
            assert!(keys(1).all(|key| nobody.owner(&key).is_none()));
        }
    }

    #[test]
    fn weights_may_be_zero_or_as_large_as_can_be() {
        for hashing in BOTH {
            let zeros = map(hashing, &[("a", 0), ("b", 0)]);
            let owned = keys(1000).filter(|key| zeros.owner(key).unwrap().id.as_str() == "a");
            let owned = owned.count();
            assert!((400..600).contains(&owned), "{owned}");
            let far_apart = map(hashing, &[("a", u64::MAX), ("b", 0), ("c", 1)]);
            for key in keys(1000) {
                let owners = far_apart.owners(&key, 3);
                assert_eq!((owners.len(), owners[0].id.as_str()), (3, "a"));
            }
            // Without a weight one owns nothing, and comes last.
            let resting = map(hashing, &[("a", 0), ("b", 1), ("c", 0), ("d", 1)]);
            for key in keys(1000) {
                let owners = names(&resting.owners(&key, 9));
                assert!(owners[..2].iter().all(|id| id == "b" || id == "d"));
                assert_eq!(owners.len(), 4);
            }
            let awake = map(hashing, &[("a", 0), ("b", 1), ("c", 0)]);
            assert!(keys(100).all(|key| awake.owner(&key).unwrap().id.as_str() == "b"));
            let largest = numbered(hashing, std::iter::repeat_n(u64::MAX, 1000));
            for key in keys(50) {
                assert_eq!(largest.owners(&key, 4).len(), 4);
            }
        }
    }

    #[test]
    fn the_same_keys_have_the_same_owners_in_every_version() {
        let weights = [4u64 << 40, 1 << 40, 2 << 40];
        let owners = |hashing, count| {
            let map = numbered(hashing, (0..count).map(|number| weights[number % 3]));
            let owners = keys(4).map(|key| map.owners(&key, 2));
            let places = owners
                .flatten()
                .map(|worker| worker.id.as_str()[7..].to_owned());
            places.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(owners(Hashing::Scored, 9), "0 5 2 0 0 7 3 0");
        assert_eq!(owners(Hashing::Seats, 9), "8 6 3 8 3 6 1 6");
        let many = "1143 1728 1834 688 531 1321 866 528";
        assert_eq!(owners(Hashing::Seats, 2000), many);
    }

    #[test]
    fn of_two_workers_of_one_name_everybody_takes_the_same() {
        let at = |address: &str| WorkerInfo {
            data_address: address.to_owned(),
            ..worker("a", 1)
        };
        let one = ClusterMap::new(
            1,
            Hashing::NEWEST,
            vec![at("x:2"), at("x:1"), worker("b", 1)],
        );
        let other = ClusterMap::new(
            1,
            Hashing::NEWEST,
            vec![worker("b", 1), at("x:1"), at("x:2")],
        );
        assert_eq!(one, other);
        assert_eq!(one.workers().len(), 2);
        assert_eq!(
            one.worker(&"a".parse().unwrap()).unwrap().data_address,
            "x:1"
        );
        assert!(one.worker(&"c".parse().unwrap()).is_none());
    }

    #[test]
    fn a_map_keeps_its_hash_when_it_is_saved_and_one_without_is_an_old_one() {
        for hashing in BOTH {
            let map = map(hashing, &[("a", 3), ("b", 1)]);
            let saved = serde_json::to_string(&map).unwrap();
            assert_eq!(serde_json::from_str::<ClusterMap>(&saved).unwrap(), map);
            assert_eq!(Hashing::of_number(hashing.number()), hashing);
        }
        let old = r#"{"epoch": 7, "workers": [{"id": "a", "data_address": "x:1", "control_address": "x:2",
            "node": "n", "local_socket": "", "weight": 3}]}"#;
        let old: ClusterMap = serde_json::from_str(old).unwrap();
        assert_eq!((old.epoch(), old.hashing()), (7, Hashing::Scored));
        assert_eq!(old.workers()[0].location, Location::default());
        assert_eq!(Hashing::of_number(u32::MAX), Hashing::NEWEST);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn owners_do_not_depend_on_the_order_of_the_workers(
            weights in proptest::collection::vec(any::<u64>(), 1..60),
            turn in any::<prop::sample::Index>(),
            block in any::<u32>(),
        ) {
            for hashing in BOTH {
                let map = numbered(hashing, weights.iter().copied());
                let mut workers = map.workers().to_vec();
                workers.rotate_left(turn.index(weights.len()));
                workers.reverse();
                let other = ClusterMap::new(1, hashing, workers);
                let (block, count) = (key(block), 5);
                prop_assert_eq!(names(&map.owners(&block, count)), names(&other.owners(&block, count)));
            }
        }

        #[test]
        fn no_worker_is_an_owner_twice(
            weights in proptest::collection::vec(any::<u64>(), 0..60),
            block in any::<u32>(),
            count in 0usize..80,
        ) {
            for hashing in BOTH {
                let map = numbered(hashing, weights.iter().copied());
                let mut owners = names(&map.owners(&key(block), count));
                prop_assert_eq!(owners.len(), count.min(weights.len()));
                owners.sort();
                owners.dedup();
                prop_assert_eq!(owners.len(), count.min(weights.len()));
            }
        }
    }
}
