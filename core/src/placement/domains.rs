//! Which workers may hold a dataset: copies, each spread over one domain.
//!
//! A *domain* is the whole cluster, a zone, a group of nodes (a rack) or a node. A [`Placement`] names the domains that hold a
//! copy of a dataset, in order. Inside of one, blocks are hashed over its workers as over those of a cluster, so each domain has
//! one owner of a block. A reader takes the nearest ([`Owners::for_reader`]). The one in the first domain that has workers fetches it
//! from the origin ([`Owners::filler`]), and the others from that one.
//!
//! Who knows the placement and the cluster map knows all of that: client and worker agree if they have the same version of
//! both, and each request says which ones it was made with. A reader of a former placement is served by the former owners as
//! before, and is told by their answers that there is a newer one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::seats::{Seats, mix};
use super::{ClusterMap, Location, WorkerInfo, members, seed, words};
use crate::block::BlockKey;
use crate::id::{NodeName, PlaceName, WorkerId};

/// Groups that nodes without one are hashed into.
const HASHED_GROUPS: u64 = 64;
/// Most domains that a placement names.
pub const MAX_DOMAINS: usize = 64;
/// Workers of other pools that are passed over at most in the search of one to be asked when the owners are not.
const PASSED_OVER: usize = 16;

/// How far one copy of a dataset is spread.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// Over the workers of one node.
    Node,
    /// Over those of a group of nodes. Nodes that name none are hashed into at most 64 for each zone.
    Group,
    /// Over those of a zone. Workers without a zone hold nothing of such datasets.
    Zone,
    /// Over all workers.
    Cluster,
}

/// Who keeps what it reads of a dataset, beside the domains that hold a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The workers of the node that reads, as far as they have room for such.
    Node,
}

impl std::str::FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "node" => Ok(Self::Node),
            _ => Err(format!("{text:?} keeps nothing: write node")),
        }
    }
}

/// Where a dataset is held.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// Grows with each change.
    pub version: u64,
    /// What the domains are.
    pub spread: Spread,
    /// Their names, as [`domain_of`] gives them, the first one first. None is there twice.
    pub domains: Vec<String>,
    /// Only workers of this pool hold it; of any, or none, without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PlaceName>,
    /// Who else keeps what it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

impl Default for Placement {
    /// One copy over the whole cluster.
    fn default() -> Self {
        Self {
            version: 0,
            spread: Spread::Cluster,
            domains: vec![String::new()],
            pool: None,
            keep: None,
        }
    }
}

impl std::str::FromStr for Spread {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Cluster, Self::Zone, Self::Group, Self::Node];
        let found = all.into_iter().find(|spread| spread.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is no spread: write cluster, zone, group or node"))
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Group => "group",
            Self::Zone => "zone",
            Self::Cluster => "cluster",
        })
    }
}

/// The domain of a worker: empty for the cluster, `a` for a zone, `a/r1` for a group of it, or the node's name. `-/r1` is a group
/// outside of all zones, and `a/~7` one that nodes without a group were hashed into. `None` if it has no zone.
pub fn domain_of(worker: &WorkerInfo, spread: Spread) -> Option<Cow<'_, str>> {
    let zone = worker.location.zone.as_ref().map(PlaceName::as_str);
    match spread {
        Spread::Cluster => Some(Cow::Borrowed("")),
        Spread::Node => Some(Cow::Borrowed(worker.node.as_str())),
        Spread::Zone => zone.map(Cow::Borrowed),
        Spread::Group => {
            let zone = zone.unwrap_or("-");
            Some(Cow::Owned(match &worker.location.group {
                Some(group) => format!("{zone}/{group}"),
                None => format!("{zone}/~{}", seed(worker.node.as_str()) % HASHED_GROUPS),
            }))
        }
    }
}

/// Whether a worker is one of a pool; any is, without one.
fn is_in(worker: &WorkerInfo, pool: Option<&PlaceName>) -> bool {
    pool.is_none_or(|pool| worker.location.pool.as_ref() == Some(pool))
}

/// The domains of a map, or of one pool of its workers, with the places of their workers in the map.
pub fn places_by<'a>(
    map: &'a ClusterMap,
    spread: Spread,
    pool: Option<&PlaceName>,
) -> BTreeMap<Cow<'a, str>, Vec<usize>> {
    let mut domains: BTreeMap<Cow<'_, str>, Vec<usize>> = BTreeMap::new();
    let workers = map.workers().iter().enumerate();
    for (place, worker) in workers.filter(|(_, worker)| is_in(worker, pool)) {
        if let Some(domain) = domain_of(worker, spread) {
            domains.entry(domain).or_default().push(place);
        }
    }
    domains
}

/// As [`places_by`], with the bytes that the domains hold.
pub fn domains_of(
    map: &ClusterMap,
    spread: Spread,
    pool: Option<&PlaceName>,
) -> BTreeMap<String, u64> {
    let weight = |place: usize| map.workers()[place].weight;
    let domains = places_by(map, spread, pool).into_iter();
    let domains = domains.map(|(domain, places)| {
        let weights = places.into_iter().map(weight);
        (domain.into_owned(), weights.fold(0, u64::saturating_add))
    });
    domains.collect()
}

/// Who holds the blocks of datasets of one placement; made once for each map and placement.
#[derive(Clone, Debug)]
pub struct Owners {
    map: Arc<ClusterMap>,
    version: u64,
    pool: Option<PlaceName>,
    /// The domains that have workers.
    copies: Vec<Copied>,
}

/// Those of one domain.
#[derive(Clone, Debug)]
enum Copied {
    /// All, by the cluster's own hash.
    All,
    /// Places in the map, in order, and the seats of these workers.
    Some {
        places: Vec<usize>,
        seats: Box<Seats>,
    },
}

impl Owners {
    /// The owners of blocks under a placement. A domain without a live worker has none, nor has one whose workers are all cordoned; if
    /// none has one, all workers share the blocks until the master has chosen other domains, so that reads go on.
    pub fn new(map: Arc<ClusterMap>, placement: &Placement) -> Self {
        let copies = if placement.spread == Spread::Cluster && placement.pool.is_none() {
            Vec::new()
        } else {
            Self::copies(&map, placement)
        };
        let nowhere = copies.is_empty() && !map.workers().is_empty();
        Self {
            map,
            version: placement.version,
            pool: placement.pool.clone(),
            copies: if nowhere { vec![Copied::All] } else { copies },
        }
    }

    fn copies(map: &ClusterMap, placement: &Placement) -> Vec<Copied> {
        let mut places = places_by(map, placement.spread, placement.pool.as_ref());
        let domains = placement.domains.iter().take(MAX_DOMAINS);
        // A domain that is there twice has one copy.
        let copies = domains.filter_map(|domain| {
            let mut places = places.remove(domain.as_str())?;
            places.retain(|place| map.workers()[*place].weight > 0);
            (!places.is_empty()).then_some(places)
        });
        let copies = copies.map(|places| {
            let seats = Box::new(Seats::new(&members(map.workers(), &places)));
            Copied::Some { places, seats }
        });
        copies.collect()
    }

    /// The version of the placement that this was made of.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The map that this was made of.
    pub fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    /// Whether a worker owns blocks, if there are enough.
    pub fn may_own(&self, id: &WorkerId) -> bool {
        let Some(place) = self.map.place_of(id) else {
            return false;
        };
        self.copies.iter().any(|copy| match copy {
            Copied::All => self.map.may_own(place),
            Copied::Some { places, .. } => places.binary_search(&place).is_ok(),
        })
    }

    /// The owner of a block in each domain that has workers, the first domain first.
    pub fn of<'a>(&'a self, block: &BlockKey) -> impl Iterator<Item = &'a WorkerInfo> + use<'a> {
        let block = *block;
        let owners = self
            .copies
            .iter()
            .map(move |copy| self.order(copy, &block, 1));
        owners.flatten()
    }

    /// Whether a worker is among the first `most` in the hash order of any copy: readers may ask it for a block.
    pub fn may_be_asked(&self, id: &WorkerId, block: &BlockKey, most: usize) -> bool {
        let mut orders = self.copies.iter().map(|copy| self.order(copy, block, most));
        orders.any(|order| order.iter().any(|worker| worker.id == *id))
    }

    /// The owner in the first domain that has workers.
    pub fn filler(&self, block: &BlockKey) -> Option<&WorkerInfo> {
        self.order(self.copies.first()?, block, 1).pop()
    }

    /// Whom a reader asks for a block, at most `most`: the owner of the nearest copy, those of the next nearest ones, then the
    /// next workers in the hash order of each domain in the same order. Of equally near ones each reader's node has its own first.
    /// If these are not as many, the next ones in the hash order of the map follow, of the placement's pool: so a block has somebody
    /// to fetch it once for all readers, also when the only worker of its domain says nothing.
    pub fn for_reader(
        &self,
        block: &BlockKey,
        node: &NodeName,
        at: &Location,
        most: usize,
    ) -> Vec<&WorkerInfo> {
        let mut asked = self.of_copies(block, node, at, most);
        let more = most.saturating_sub(asked.len());
        if more == 0 || matches!(self.copies[..], [] | [Copied::All]) {
            return asked;
        }
        let order = self.map.owners(block, asked.len() + more + PASSED_OVER);
        let others = order.into_iter().filter(|worker| {
            worker.weight > 0
                && is_in(worker, self.pool.as_ref())
                && asked.iter().all(|known| known.id != worker.id)
        });
        let others: Vec<_> = others.take(more).collect();
        asked.extend(others);
        asked
    }

    fn of_copies(
        &self,
        block: &BlockKey,
        node: &NodeName,
        at: &Location,
        most: usize,
    ) -> Vec<&WorkerInfo> {
        if let [copy] = &self.copies[..] {
            return self.order(copy, block, most);
        }
        let reader = seed(node.as_str());
        let [key, _] = words(block);
        let copies = self.copies.iter().zip(1..);
        let mut copies: Vec<_> = copies
            .filter_map(|(copy, number)| {
                let owner = self.order(copy, block, 1).pop()?;
                let turn = mix(reader ^ key.wrapping_add(number));
                Some((distance(owner, node, at), turn, owner, copy))
            })
            .collect();
        copies.sort_by_key(|(far, turn, ..)| (*far, *turn));
        if most <= copies.len() {
            let owners = copies.into_iter().map(|(_, _, owner, _)| owner);
            return owners.take(most).collect();
        }
        let copies = copies.into_iter();
        let orders: Vec<_> = copies
            .map(|(.., copy)| self.order(copy, block, most))
            .collect();
        // Domains of a spread share no worker.
        let ranks = (0..most).flat_map(|rank| {
            let owners = orders.iter().filter_map(move |order| order.get(rank));
            owners.copied()
        });
        ranks.take(most).collect()
    }

    fn order(&self, copy: &Copied, block: &BlockKey, count: usize) -> Vec<&WorkerInfo> {
        match copy {
            Copied::All => self.map.owners(block, count),
            Copied::Some { places, seats } => {
                let order = seats.order(words(block), count).into_iter();
                order
                    .map(|member| &self.map.workers()[places[member]])
                    .collect()
            }
        }
    }
}

/// How far a worker is from a reader: 0 on its node, 1 in its group, 2 in its zone, 3 elsewhere. Groups that nodes were hashed into
/// say nothing of distance.
fn distance(worker: &WorkerInfo, node: &NodeName, at: &Location) -> u8 {
    let same = |one: &Option<PlaceName>, other: &Option<PlaceName>| one.is_some() && one == other;
    let same_zone = same(&worker.location.zone, &at.zone);
    if worker.node == *node {
        0
    } else if worker.location.zone == at.zone && same(&worker.location.group, &at.group) {
        1
    } else if same_zone {
        2
    } else {
        3
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::placement::Hashing;

    /// A worker of each zone, group and node; an empty zone or group is none.
    pub(in crate::placement) fn worker(
        name: &str,
        node: &str,
        zone: &str,
        group: &str,
    ) -> WorkerInfo {
        WorkerInfo {
            id: name.parse().unwrap(),
            data_address: String::new(),
            control_address: String::new(),
            node: node.parse().unwrap(),
            location: Location::of_names(zone, group).unwrap(),
            local_socket: String::new(),
            weight: 1 << 40,
            cordoned_weight: 0,
        }
    }

    /// Workers `w0` and so on, of nodes `n0`…, two to a node, in zones `a`, `b`, `c` and two racks each.
    fn three_zones(count: usize) -> Vec<WorkerInfo> {
        let workers = (0..count).map(|number| {
            let node = number / 2;
            let zone = ["a", "b", "c"][node % 3];
            let group = ["r1", "r2"][node / 3 % 2];
            worker(&format!("w{number}"), &format!("n{node}"), zone, group)
        });
        workers.collect()
    }

    fn map(workers: Vec<WorkerInfo>) -> Arc<ClusterMap> {
        Arc::new(ClusterMap::new(1, Hashing::Seats, workers))
    }

    pub(in crate::placement) fn placement(spread: Spread, domains: &[&str]) -> Placement {
        Placement {
            version: 1,
            spread,
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            ..Placement::default()
        }
    }

    fn key(number: u32) -> BlockKey {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
        BlockKey(key)
    }

    fn names<'a>(workers: impl IntoIterator<Item = &'a WorkerInfo>) -> Vec<&'a str> {
        let names = workers.into_iter().map(|worker| worker.id.as_str());
        names.collect()
    }

    #[test]
    fn the_default_is_the_owners_of_the_cluster() {
        let map = map(three_zones(12));
        let owners = Owners::new(map.clone(), &Placement::default());
        let (node, at) = ("n0".parse().unwrap(), Location::default());
        for number in 0..200 {
            let key = key(number);
            let expected = names(map.owners(&key, 2));
            assert_eq!(names(owners.for_reader(&key, &node, &at, 2)), expected);
            assert_eq!(names(owners.filler(&key)), expected[..1]);
            assert_eq!(names(owners.of(&key)), expected[..1]);
        }
    }

    #[test]
    fn each_domain_has_one_owner_and_the_first_one_fills() {
        let map = map(three_zones(30));
        let owners = Owners::new(map, &placement(Spread::Zone, &["b", "a"]));
        for number in 0..200 {
            let of: Vec<_> = owners.of(&key(number)).collect();
            let zones: Vec<_> = of
                .iter()
                .map(|w| w.location.zone.as_ref().unwrap().as_str())
                .collect();
            assert_eq!(zones, ["b", "a"]);
            assert_eq!(owners.filler(&key(number)), Some(of[0]));
        }
    }

    #[test]
    fn a_reader_has_its_own_zone_first_and_its_own_node_before_that() {
        let map = map(three_zones(30));
        let owners = Owners::new(map.clone(), &placement(Spread::Zone, &["a", "b", "c"]));
        let racks = Owners::new(map, &placement(Spread::Group, &["c/r2", "a/r2", "a/r1"]));
        for number in 0..200 {
            let (node, at) = (
                "elsewhere".parse().unwrap(),
                Location::of_names("c", "r1").unwrap(),
            );
            let first = owners.for_reader(&key(number), &node, &at, 3);
            assert_eq!(first[0].location.zone.as_ref().unwrap().as_str(), "c");
            // No rack of its own has a copy, but one of its zone.
            let first = racks.for_reader(&key(number), &node, &at, 3);
            assert_eq!(distance(first[0], &node, &at), 2);
            let at = Location::of_names("a", "r1").unwrap();
            let far = racks.for_reader(&key(number), &node, &at, 3);
            let far: Vec<_> = far
                .iter()
                .map(|worker| distance(worker, &node, &at))
                .collect();
            assert_eq!(far, [1, 2, 3]);
            // The owner in zone b, on the reader's own node.
            let owner = owners.of(&key(number)).nth(1).unwrap();
            let first = owners.for_reader(&key(number), &owner.node, &Location::default(), 1);
            assert_eq!(first, [owner]);
        }
    }

    #[test]
    fn a_domain_of_one_worker_has_others_that_are_asked_in_its_place() {
        let mut workers = three_zones(30);
        let pool = |name: &str| Some(name.parse().unwrap());
        for (number, worker) in workers.iter_mut().enumerate() {
            worker.location.pool = pool(["gpu", "cpu"][number % 2]);
        }
        let map = map(workers);
        let node = map.workers()[0].node.clone();
        let mut placement = placement(Spread::Node, &[node.as_str()]);
        let elsewhere = |owners: &Owners, number| -> Vec<String> {
            let (reader, at) = ("elsewhere".parse().unwrap(), Location::default());
            let asked = owners.for_reader(&key(number), &reader, &at, 3);
            names(asked).into_iter().map(str::to_owned).collect()
        };
        let any = Owners::new(map.clone(), &placement);
        placement.pool.clone_from(&map.workers()[0].location.pool);
        let in_pool = Owners::new(map.clone(), &placement);
        let is_own = |name: &str| map.worker(&name.parse().unwrap()).unwrap().node == node;
        for number in 0..200 {
            let asked = elsewhere(&any, number);
            let (own, others) = asked.split_at(asked.iter().filter(|name| is_own(name)).count());
            assert!(!own.is_empty() && own.iter().all(|name| is_own(name)));
            let mut by_map = names(map.owners(&key(number), 10));
            by_map.retain(|name| !is_own(name));
            assert_eq!(others, &by_map[..3 - own.len()]);
            let asked = elsewhere(&in_pool, number);
            let is_in = |id: &String| {
                map.worker(&id.parse().unwrap()).unwrap().location.pool == placement.pool
            };
            assert!(asked.len() == 3 && asked.iter().all(is_in), "{asked:?}");
        }
    }

    #[test]
    fn readers_elsewhere_share_the_copies() {
        let map = map(three_zones(30));
        let owners = Owners::new(map, &placement(Spread::Zone, &["a", "b"]));
        let of_a = (0..1000).filter(|number| {
            let node = format!("reader-{number}").parse().unwrap();
            let first = owners.for_reader(&key(1), &node, &Location::default(), 1)[0];
            first.location.zone.as_ref().unwrap().as_str() == "a"
        });
        let of_a = of_a.count();
        assert!((400..600).contains(&of_a), "{of_a}");
    }

    #[test]
    fn a_domain_without_workers_has_no_owner_and_the_next_one_fills() {
        let map = map(three_zones(30));
        let owners = Owners::new(map, &placement(Spread::Zone, &["gone", "c", "c"]));
        assert_eq!(owners.of(&key(1)).count(), 1);
        let filler = owners.filler(&key(1)).unwrap();
        assert_eq!(filler.location.zone.as_ref().unwrap().as_str(), "c");
        let nowhere = Owners::new(owners.map().clone(), &placement(Spread::Zone, &["gone"]));
        assert_eq!(nowhere.filler(&key(1)), owners.map().owner(&key(1)));
        let nobody = Owners::new(Arc::default(), &Placement::default());
        assert_eq!(nobody.filler(&key(1)), None);
        let nobody = Owners::new(Arc::default(), &placement(Spread::Zone, &["a"]));
        let at = Location::default();
        assert!(
            nobody
                .for_reader(&key(1), &"n".parse().unwrap(), &at, 3)
                .is_empty()
        );
    }

    #[test]
    fn cordoned_workers_own_nothing_of_a_domain_that_has_no_others() {
        let cordoned_in = |zones: &[&str]| {
            let mut workers = three_zones(30);
            for worker in &mut workers {
                let zone = worker.location.zone.as_ref().unwrap();
                if zones.contains(&zone.as_str()) {
                    (worker.weight, worker.cordoned_weight) = (0, worker.weight);
                }
            }
            Owners::new(map(workers), &placement(Spread::Zone, &["a", "b"]))
        };
        let (some, all) = (cordoned_in(&["a"]), cordoned_in(&["a", "b"]));
        for number in 0..200 {
            let zones = |owners: &Owners| -> Vec<String> {
                let of = owners.of(&key(number));
                of.map(|w| w.location.zone.as_ref().unwrap().to_string())
                    .collect()
            };
            assert_eq!(zones(&some), ["b"]);
            // Until the master has chosen another domain.
            assert_eq!(zones(&all), ["c"]);
        }
    }

    #[test]
    fn those_may_own_blocks_that_are_in_a_domain_and_not_cordoned() {
        let mut workers = three_zones(12);
        workers[0].weight = 0;
        let map = map(workers);
        let may_own = |placement: &Placement| -> Vec<String> {
            let owners = Owners::new(map.clone(), placement);
            let ids = map.workers().iter().map(|worker| &worker.id);
            let owning = ids.filter(|id| owners.may_own(id));
            owning.map(ToString::to_string).collect()
        };
        assert_eq!(
            may_own(&placement(Spread::Zone, &["a"])),
            ["w1", "w6", "w7"]
        );
        assert_eq!(
            may_own(&placement(Spread::Node, &["n5", "n1"])),
            ["w10", "w11", "w2", "w3"]
        );
        assert_eq!(may_own(&Placement::default()).len(), 11);
        assert_eq!(may_own(&placement(Spread::Zone, &["gone"])).len(), 11);
        let owners = Owners::new(map.clone(), &Placement::default());
        assert!(!owners.may_own(&"nobody".parse().unwrap()));
    }

    #[test]
    fn nodes_without_a_group_are_hashed_into_some_of_their_zone() {
        let workers =
            (0..3000).map(|number| worker(&format!("w{number}"), &format!("n{number}"), "", ""));
        let map = map(workers.collect());
        let domains = domains_of(&map, Spread::Group, None);
        assert_eq!(domains.len(), HASHED_GROUPS as usize);
        assert!(domains.keys().all(|domain| domain.starts_with("-/~")));
        assert!(domains_of(&map, Spread::Zone, None).is_empty());
    }

    #[test]
    fn a_pool_holds_what_asks_for_it_and_no_other_worker_does() {
        let mut workers = three_zones(30);
        for worker in workers.iter_mut().step_by(3) {
            worker.location.pool = Some("gpu".parse().unwrap());
        }
        let map = map(workers);
        let gpu = Some("gpu".parse().unwrap());
        for (spread, domains) in [(Spread::Cluster, &[""][..]), (Spread::Zone, &["b", "a"])] {
            let placement = Placement {
                pool: gpu.clone(),
                ..placement(spread, domains)
            };
            let owners = Owners::new(map.clone(), &placement);
            for number in 0..200 {
                assert_eq!(owners.of(&key(number)).count(), domains.len());
                assert!(owners.of(&key(number)).all(|w| w.location.pool == gpu));
            }
        }
        let all = domains_of(&map, Spread::Cluster, None)[""];
        assert_eq!(domains_of(&map, Spread::Cluster, gpu.as_ref())[""], all / 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_reader_gets_each_copy_once_and_no_worker_twice(
            count in 1usize..60, spread in 0usize..4, turn in any::<u64>(), most in 0usize..12, block in any::<u32>(),
        ) {
            let spread = [Spread::Node, Spread::Group, Spread::Zone, Spread::Cluster][spread];
            let map = map(three_zones(count));
            let mut domains: Vec<String> = domains_of(&map, spread, None).into_keys().collect();
            domains.sort_by_key(|domain| mix(seed(domain) ^ turn));
            domains.truncate(4);
            let placement = Placement { version: 1, spread, domains, ..Placement::default() };
            let owners = Owners::new(map, &placement);
            let (node, at) = ("n1".parse().unwrap(), Location::of_names("b", "r1").unwrap());
            let asked = owners.for_reader(&key(block), &node, &at, most);
            let mut all = names(asked.iter().copied());
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all.len(), asked.len());
            let copies: Vec<_> = owners.of(&key(block)).collect();
            prop_assert_eq!(copies.len(), placement.domains.len());
            prop_assert!(copies.iter().all(|owner| owners.may_own(&owner.id)));
            // The first ones are the copies' owners, nearest first.
            let first = &asked[..copies.len().min(asked.len())];
            prop_assert!(first.iter().all(|worker| copies.contains(worker)));
            prop_assert!(first.is_sorted_by_key(|worker| distance(worker, &node, &at)));
        }

        #[test]
        fn a_change_in_one_domain_moves_nothing_in_another(
            zones in vec(0usize..3, 6..60), gone in any::<prop::sample::Index>(), block in any::<u32>(),
        ) {
            let workers: Vec<_> = zones.iter().enumerate().map(|(number, zone)| {
                worker(&format!("w{number}"), &format!("n{number}"), ["a", "b", "c"][*zone], "")
            }).collect();
            let mut fewer = workers.clone();
            let gone = fewer.remove(gone.index(workers.len()));
            let placement = placement(Spread::Zone, &["a", "b", "c"]);
            let before = Owners::new(map(workers), &placement);
            let after = Owners::new(map(fewer), &placement);
            let others = |owners: &Owners| -> Vec<String> {
                let others = owners.of(&key(block)).filter(|worker| worker.location.zone != gone.location.zone);
                others.map(|worker| worker.id.to_string()).collect()
            };
            prop_assert_eq!(others(&before), others(&after));
        }
    }
}
