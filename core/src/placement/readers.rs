//! Further copies of a dataset where it is read.
//!
//! A dataset whose placement is the master's to choose has one copy ([`choose`](super::choice::choose)). Where readers are that have none
//! near, it gets more: in the domain that brings most of them nearest, until all have one or there are [`MAX_COPIES`]. A copy stays
//! for as long as there is a reader that is nearer to it than to any other one.

use std::collections::{HashMap, HashSet};

use super::domains::{Placement, Spread};
use super::room::{Domains, KEPT, Of, fits};
use super::seats::mix;
use super::{Location, seed};
use crate::id::{NodeName, PlaceName};

/// Copies that are made for readers beside the first one.
pub const MAX_COPIES: usize = 3;

/// What it costs to read from each distance: on the same node, in the same group, in the same zone, from elsewhere. Between zones
/// there is least bandwidth, and it may have to be paid for.
const COST: [u64; 4] = [0, 1, 2, 8];

/// A machine on which a dataset is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Its name.
    pub node: NodeName,
    /// Where it stands.
    pub at: Location,
    /// It has read for long enough to be worth a copy; one that has not keeps those that are there.
    pub is_steady: bool,
}

/// Who reads a dataset.
#[derive(Clone, Debug, Default)]
pub struct Readers {
    /// All that did lately.
    pub seen: Vec<Reader>,
    /// There may be more that nobody knows of yet: no copy goes.
    pub may_lack: bool,
}

/// A group of a zone.
type Group<'a> = (Option<&'a PlaceName>, &'a PlaceName);

/// Where the workers of a domain are.
#[derive(Debug, Default)]
struct Standing<'a> {
    nodes: HashSet<&'a NodeName>,
    groups: HashSet<Group<'a>>,
    zones: HashSet<&'a PlaceName>,
}

fn group(at: &Location) -> Option<Group<'_>> {
    Some((at.zone.as_ref(), at.group.as_ref()?))
}

impl Standing<'_> {
    /// How far a reader is, as an index of [`COST`].
    fn distance(&self, reader: &Reader) -> usize {
        if self.nodes.contains(&reader.node) {
            0
        } else if group(&reader.at).is_some_and(|group| self.groups.contains(&group)) {
            1
        } else if reader
            .at
            .zone
            .as_ref()
            .is_some_and(|zone| self.zones.contains(zone))
        {
            2
        } else {
            3
        }
    }
}

/// Where the workers of a domain are that can hold anything; `None` if there are none.
fn standing<'a>(of: &'a Of<'_>, name: &str) -> Option<Standing<'a>> {
    let domain = of.domains.get(name)?;
    let mut standing = Standing::default();
    for worker in of.workers(domain).filter(|worker| worker.weight > 0) {
        standing.nodes.insert(&worker.node);
        standing.groups.extend(group(&worker.location));
        standing.zones.extend(&worker.location.zone);
    }
    (!standing.nodes.is_empty()).then_some(standing)
}

/// How many readers there are at each distance from their nearest copy.
type Counts = [u64; COST.len()];

/// Readers by the place where they are, and by how far their nearest copy is.
#[derive(Default)]
struct Places<'a> {
    nodes: HashMap<&'a NodeName, Counts>,
    groups: HashMap<Group<'a>, Counts>,
    zones: HashMap<&'a PlaceName, Counts>,
}

impl<'a> Places<'a> {
    fn new(readers: impl Iterator<Item = (&'a Reader, usize)>) -> Self {
        let mut places = Self::default();
        for (reader, far) in readers {
            places.nodes.entry(&reader.node).or_default()[far] += 1;
            if let Some(group) = group(&reader.at) {
                places.groups.entry(group).or_default()[far] += 1;
            }
            if let Some(zone) = &reader.at.zone {
                places.zones.entry(zone).or_default()[far] += 1;
            }
        }
        places
    }

    /// What a copy there would save all readers.
    fn saved_by(&self, standing: &Standing<'_>) -> u64 {
        let on_nodes = sum(standing
            .nodes
            .iter()
            .filter_map(|node| self.nodes.get(node)));
        let in_groups = sum(standing
            .groups
            .iter()
            .filter_map(|group| self.groups.get(group)));
        let in_zones = sum(standing
            .zones
            .iter()
            .filter_map(|zone| self.zones.get(zone)));
        let mut saved = 0;
        for far in 0..COST.len() {
            let nodes = on_nodes[far];
            let groups = in_groups[far].saturating_sub(nodes);
            let zones = in_zones[far].saturating_sub(nodes + groups);
            for (near, count) in [nodes, groups, zones].into_iter().enumerate() {
                saved += count * COST[far].saturating_sub(COST[near]);
            }
        }
        saved
    }
}

fn sum<'a>(all: impl Iterator<Item = &'a Counts>) -> Counts {
    let mut sum = Counts::default();
    for counts in all {
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    sum
}

/// Adds to the domains that were `chosen` for a dataset of so many bytes those where its readers have none near. `previous` are the
/// domains that it has now.
pub(super) fn add_copies(
    chosen: &mut Vec<String>,
    (dataset, bytes): (&str, u64),
    (spread, pool): (Spread, Option<&PlaceName>),
    cluster: &mut Domains,
    previous: Option<&Placement>,
    readers: &Readers,
) {
    let of = cluster.by(spread, pool);
    let most = chosen.len() + MAX_COPIES;
    let mut there: Vec<Standing<'_>> = chosen
        .iter()
        .filter_map(|name| standing(&of, name))
        .collect();
    let nearest = |there: &[Standing<'_>], reader: &Reader| {
        let distances = there.iter().map(|standing| standing.distance(reader));
        distances.min().unwrap_or(COST.len() - 1)
    };
    // Those that it has stay while somebody is nearest to them.
    let before = previous.filter(|previous| previous.spread == spread);
    for name in before.into_iter().flat_map(|previous| &previous.domains) {
        let holds = |name: &String| {
            let domain = of.domains.get(name);
            domain.is_some_and(|domain| fits(bytes, domain.capacity, KEPT))
        };
        if chosen.len() >= most || chosen.contains(name) || !holds(name) {
            continue;
        }
        let Some(standing) = standing(&of, name) else {
            continue;
        };
        let is_nearer = |reader: &Reader| standing.distance(reader) < nearest(&there, reader);
        if readers.may_lack || readers.seen.iter().any(is_nearer) {
            chosen.push(name.clone());
            there.push(standing);
        }
    }
    let steady = || readers.seen.iter().filter(|reader| reader.is_steady);
    while chosen.len() < most {
        let places = Places::new(steady().map(|reader| (reader, nearest(&there, reader))));
        let best = of.domains.iter().filter_map(|(name, domain)| {
            if chosen.contains(name)
                || !fits(bytes, domain.capacity, 1.0)
                || !of.has_room(domain, bytes)
            {
                return None;
            }
            let standing = standing(&of, name)?;
            let saved = places.saved_by(&standing);
            // Of equal ones each dataset takes others.
            let turn = mix(mix(seed(dataset)) ^ seed(name));
            (saved > 0).then_some(((saved, turn), name, standing))
        });
        let Some((_, name, standing)) = best.max_by_key(|(order, ..)| *order) else {
            return;
        };
        chosen.push(name.clone());
        there.push(standing);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::choice::{Wanted, choose};
    use super::super::domains::tests::worker;
    use super::*;
    use crate::placement::{ClusterMap, Hashing};

    const TIB: u64 = 1 << 40;

    /// Nodes `a0` to `a3` in zone a and `b0` to `b3` in zone b, two in each rack, of 1 TiB each.
    fn cluster() -> Domains {
        let workers = ["a", "b"].into_iter().flat_map(|zone| {
            (0..4).map(move |number| {
                let node = format!("{zone}{number}");
                worker(&node, &node, zone, ["r1", "r2"][number / 2])
            })
        });
        let map = ClusterMap::new(1, Hashing::Seats, workers.collect());
        Domains::new(Arc::new(map))
    }

    fn reader(node: &str, is_steady: bool) -> Reader {
        let number: usize = node[1..].parse().unwrap();
        Reader {
            node: node.parse().unwrap(),
            at: Location::of_names(&node[..1], ["r1", "r2"][number / 2 % 2]).unwrap(),
            is_steady,
        }
    }

    fn readers(steady: &[&str]) -> Readers {
        Readers {
            seen: steady.iter().map(|node| reader(node, true)).collect(),
            may_lack: false,
        }
    }

    /// The domains of a dataset that is on a0 first.
    fn copies(
        cluster: &mut Domains,
        previous: &[&str],
        bytes: u64,
        readers: &Readers,
    ) -> Vec<String> {
        let previous = Placement {
            version: 1,
            spread: Spread::Node,
            domains: previous.iter().map(|name| (*name).to_owned()).collect(),
            ..Placement::default()
        };
        let auto = Wanted::default();
        let chosen = choose(&auto, "set", bytes, cluster, Some(&previous), readers);
        assert_eq!(chosen.version, if chosen == previous { 1 } else { 2 });
        assert_eq!(chosen.domains[0], "a0");
        chosen.domains
    }

    #[test]
    fn copies_are_made_where_they_bring_the_most_readers_nearest() {
        let mut cluster = cluster();
        let mut of =
            |nodes: &[&str]| copies(&mut cluster, &["a0"], 1, &readers(nodes))[1..].to_vec();
        assert!(of(&[]).is_empty());
        assert!(of(&["a0"]).is_empty(), "it has one");
        assert_eq!(of(&["a1"]), ["a1"]);
        assert_eq!(of(&["b3", "a1"]), ["b3", "a1"], "another zone is farther");
        // Nodes without a worker read from the nearest one.
        let near = of(&["b7"]);
        assert!(near == ["b2"] || near == ["b3"], "{near:?}");
        let nowhere = of(&["c1", "c1"]);
        assert!(nowhere.is_empty(), "no worker is nearer: {nowhere:?}");
        // All of the other zone have one near with the first copy.
        let all = of(&["b0", "b1", "b2", "b3", "a0", "a1", "a2", "a3"]);
        assert_eq!(all.len(), MAX_COPIES);
        assert!(all[0].starts_with('b'), "{all:?}");
    }

    #[test]
    fn a_copy_stays_while_it_is_the_nearest_of_somebody_who_reads() {
        let mut cluster = cluster();
        let mut of = |before: &[&str], readers: &Readers| copies(&mut cluster, before, 1, readers);
        let passing = Readers {
            seen: vec![reader("b1", false)],
            may_lack: false,
        };
        assert_eq!(of(&["a0"], &passing), ["a0"], "it has just come");
        assert_eq!(of(&["a0", "b1"], &passing), ["a0", "b1"]);
        assert_eq!(of(&["a0", "b2"], &passing), ["a0", "b2"]);
        assert_eq!(of(&["a0", "b1", "b2"], &passing), ["a0", "b1"]);
        assert_eq!(of(&["a0", "b1"], &readers(&["a0"])), ["a0"]);
        let unknown = Readers {
            may_lack: true,
            ..Readers::default()
        };
        assert_eq!(of(&["a0", "b1"], &unknown), ["a0", "b1"]);
        assert_eq!(of(&["a0", "b1"], &Readers::default()), ["a0"]);
    }

    #[test]
    fn no_copy_is_made_where_none_fits_or_where_copies_were_asked_for() {
        let mut cluster = cluster();
        assert_eq!(
            copies(&mut cluster, &["a0"], TIB / 3, &readers(&["b1"])),
            ["a0"]
        );
        let full = Placement {
            version: 1,
            spread: Spread::Zone,
            domains: vec!["b".to_owned()],
            ..Placement::default()
        };
        cluster.put(&full, 4 * TIB);
        assert_eq!(copies(&mut cluster, &["a0"], 1, &readers(&["b1"])), ["a0"]);
        assert_eq!(
            copies(&mut cluster, &["a0", "b1"], 1, &readers(&["b1"])),
            ["a0", "b1"],
            "what is there stays"
        );
        cluster.remove(&full, 4 * TIB);
        for asked in [
            r#"{"copies":1}"#,
            r#"{"spread":"node"}"#,
            r#"{"spread":"cluster"}"#,
        ] {
            let wanted: Wanted = serde_json::from_str(asked).unwrap();
            let chosen = choose(
                &wanted,
                "set",
                1,
                &mut cluster,
                None,
                &readers(&["b1", "a1"]),
            );
            assert_eq!(chosen.domains.len(), 1, "{asked}");
        }
        let auto = Wanted::default();
        let large = choose(
            &auto,
            "set",
            100 * TIB,
            &mut cluster,
            None,
            &readers(&["b1"]),
        );
        assert_eq!(large.spread, Spread::Cluster);
    }

    #[test]
    fn a_dataset_of_a_zone_gets_a_copy_in_the_zone_where_it_is_read() {
        let mut cluster = cluster();
        let auto = Wanted::default();
        let mut zones = |previous: Option<&Placement>, nodes: &[&str]| {
            choose(&auto, "set", TIB, &mut cluster, previous, &readers(nodes))
        };
        let first = zones(None, &[]);
        assert_eq!(first.spread, Spread::Zone);
        let other = if first.domains == ["a"] { "b" } else { "a" };
        let both = zones(Some(&first), &[&format!("{other}1")]);
        assert_eq!(both.domains, [first.domains[0].clone(), other.to_owned()]);
        assert_eq!(zones(Some(&both), &[]).domains, first.domains);
    }

    #[test]
    fn ten_thousand_readers_of_as_many_nodes_are_weighed_in_a_moment() {
        let nodes = (0..10_000).map(|number| {
            let node = format!("n{number}");
            let group = format!("r{}", number % 500);
            worker(&node, &node, ["a", "b"][number % 2], &group)
        });
        let map = Arc::new(ClusterMap::new(1, Hashing::Seats, nodes.collect()));
        let seen = map.workers().iter().map(|worker| Reader {
            node: worker.node.clone(),
            at: worker.location.clone(),
            is_steady: true,
        });
        let readers = Readers {
            seen: seen.collect(),
            may_lack: false,
        };
        let mut cluster = Domains::new(map);
        let chosen = choose(&Wanted::default(), "set", 1, &mut cluster, None, &readers);
        assert_eq!(chosen.domains.len(), 1 + MAX_COPIES);
        let zone = |name: &String| name[1..].parse::<usize>().unwrap() % 2;
        assert_ne!(zone(&chosen.domains[0]), zone(&chosen.domains[1]));
    }
}
