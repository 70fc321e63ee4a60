//! Which domains hold a dataset: what its owner asked for, or what suits its size.
//!
//! The choice is made once, by the master, and again when the cluster or the dataset changes; it is a [`Placement`], which
//! travels to all others. So that data does not move to and fro, a domain that was chosen stays as long as it is there and
//! the dataset does not outgrow it by far, and a narrower spread is taken only when the dataset fits well. What other datasets
//! take of a domain ([`Domains`]) counts when one goes there, and never has one leave.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::domains::{Keep, MAX_DOMAINS, Placement, Spread, domains_of};
use super::readers::{Readers, add_copies};
use super::room::{Domain, Domains, KEPT, fits};
use super::seats::{mix, unit};
use super::{ClusterMap, seed};
use crate::id::{MAX_NAME, PlaceName};
use crate::suggest::nearest;

/// How far below its share of a narrower domain a dataset must be to move into it.
const NARROWED: f64 = 0.5;

/// Longest name of a domain, in bytes: that of a group, `zone/group`.
const MAX_DOMAIN: usize = 2 * MAX_NAME + 1;
/// Characters of a longer one that are shown.
const SHOWN: usize = 40;

/// How many domains hold a copy: a number from 1 on, or `all`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Said", into = "Said")]
pub enum Copies {
    /// So many, as far as there are domains.
    Number(NonZeroUsize),
    /// Each.
    All,
}

/// Copies as a specification says them.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Said {
    Number(usize),
    Word(String),
}

impl TryFrom<Said> for Copies {
    type Error = String;

    fn try_from(said: Said) -> Result<Self, String> {
        match said {
            Said::Number(number) => number.to_string().parse(),
            Said::Word(word) if word == "all" => Ok(Self::All),
            Said::Word(word) => Err(format!("{word:?} copies: write a number from 1 on, or all")),
        }
    }
}

impl From<Copies> for Said {
    fn from(copies: Copies) -> Self {
        match copies {
            Copies::Number(number) => Self::Number(number.get()),
            Copies::All => Self::Word("all".to_owned()),
        }
    }
}

impl std::str::FromStr for Copies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let wrong = |_| format!("{text:?} copies: write a number from 1 on, or all");
        text.parse().map(Self::Number).map_err(wrong)
    }
}

impl JsonSchema for Copies {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Copies".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1 }, { "const": "all" }] })
    }
}

/// Which workers are to hold a dataset. With no field, the narrowest domain that holds it has one copy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "PlacementSpec")]
pub struct Wanted {
    /// How far one copy is spread: over the workers of a `node`, a `group`, a `zone` or the `cluster`. The narrowest of which one
    /// holds the dataset with a quarter of its cache, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// How many of them hold a copy: a number, or `all`. One for each that `in` names, else one, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<Copies>,
    /// Which of them, in this order, by name: `a` for a zone, `a/r1` for a group of it, a node's name. Needs a `spread`.
    #[serde(default, rename = "in", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub within: Vec<String>,
    /// Only workers of this pool hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Who keeps what it reads of the dataset, beside them: `node`, the workers of the node that reads, as far as they have room
    /// for that (`--keep`). Nobody, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

impl Wanted {
    /// The pool, which [`Wanted::check`] has found to be a name.
    pub(super) fn pool(&self) -> Option<PlaceName> {
        self.pool.as_ref().and_then(|pool| pool.parse().ok())
    }

    /// Whether the spread is the master's to choose.
    pub fn is_automatic(&self) -> bool {
        self.spread.is_none()
    }

    /// Whether copies are added for readers.
    pub fn may_have_more(&self) -> bool {
        self.is_automatic() && self.copies.is_none() && self.within.is_empty()
    }

    /// Whether a placement can have been chosen by this.
    pub fn may_be(&self, placement: &Placement) -> bool {
        self.spread.is_none_or(|spread| spread == placement.spread)
            && (self.within.is_empty() || placement.domains == self.within)
            && self.pool() == placement.pool
            && self.keep == placement.keep
    }
}

/// Why something cannot be asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    /// Names of what?
    #[error("`in` names domains of a spread: add `spread: zone`, `group` or `node`")]
    NoSpread,
    /// The cluster is one domain.
    #[error("`spread: cluster` is one copy over all workers: leave out `in`, and copies beyond 1")]
    OneCluster,
    /// More than a placement holds.
    #[error("{0} domains are named: {MAX_DOMAINS} are the most")]
    TooMany(usize),
    /// No domain has such a name; its beginning.
    #[error(
        "a name in `in` that begins with {0:?} is longer than {MAX_DOMAIN} bytes: no domain is called so"
    )]
    TooLong(String),
    /// One is named twice.
    #[error("{0:?} is named twice in `in`")]
    Twice(String),
    /// No name of a pool, or no worker is in it.
    #[error("no worker is in pool {0:?}: leave out `pool`, or start workers with --pool")]
    NoPool(String),
    /// No worker is in it.
    #[error("no worker is in {spread} {name:?}{}", .nearest.as_ref().map(|n| format!(": did you mean {n:?}?")).unwrap_or_default())]
    Unknown {
        /// What is named.
        spread: Spread,
        /// As it was named.
        name: String,
        /// The most alike of those that exist.
        nearest: Option<String>,
    },
    /// Not so many domains.
    #[error(
        "{asked} copies by {spread} are asked for, and there are {there}: ask for fewer, or `copies: all`"
    )]
    TooManyCopies {
        /// What is to hold a copy.
        spread: Spread,
        /// As many were asked for.
        asked: usize,
        /// As many there are, or were named.
        there: usize,
    },
}

impl Wanted {
    /// Whether this can be had from a cluster as it is now. What becomes of it later, when domains come and go, is no error: see
    /// [`choose`]. Of a cluster without workers anything can be had that makes sense.
    pub fn check(&self, map: &ClusterMap) -> Result<(), PlacementError> {
        let is_there = !map.workers().is_empty();
        let pool = self.pool();
        if let Some(name) = &self.pool {
            let all = domains_of(map, Spread::Cluster, pool.as_ref());
            if pool.is_none() || is_there && all.is_empty() {
                return Err(PlacementError::NoPool(name.clone()));
            }
        }
        if self.within.len() > MAX_DOMAINS {
            return Err(PlacementError::TooMany(self.within.len()));
        }
        if let Some(name) = self.within.iter().find(|name| name.len() > MAX_DOMAIN) {
            return Err(PlacementError::TooLong(name.chars().take(SHOWN).collect()));
        }
        let mut seen = HashSet::new();
        if let Some(name) = self.within.iter().find(|name| !seen.insert(*name)) {
            return Err(PlacementError::Twice(name.clone()));
        }
        let asked = match self.copies {
            Some(Copies::Number(number)) => number.get(),
            Some(Copies::All) | None => 1,
        };
        let Some(spread) = self.spread else {
            return if self.within.is_empty() {
                Ok(())
            } else {
                Err(PlacementError::NoSpread)
            };
        };
        if spread == Spread::Cluster {
            let is_one = self.within.is_empty() && asked == 1;
            return if is_one {
                Ok(())
            } else {
                Err(PlacementError::OneCluster)
            };
        }
        let domains = domains_of(map, spread, pool.as_ref());
        let unknown = |name: &&String| is_there && !domains.contains_key(*name);
        if let Some(name) = self.within.iter().find(unknown) {
            let nearest = nearest(name, domains.keys().map(String::as_str));
            return Err(PlacementError::Unknown {
                spread,
                name: name.clone(),
                nearest: nearest.map(str::to_owned),
            });
        }
        let there = if self.within.is_empty() && is_there {
            domains.len()
        } else if self.within.is_empty() {
            MAX_DOMAINS
        } else {
            self.within.len()
        };
        if asked > there {
            return Err(PlacementError::TooManyCopies {
                spread,
                asked,
                there,
            });
        }
        Ok(())
    }
}

/// The domains of a dataset of so many bytes, the first one first. `dataset` tells it from others, and `previous` is what was chosen
/// last, and `readers` who reads it.
///
/// Named domains are taken in their order, also those without a worker now. Others are taken by weighted rendezvous among
/// those that are large enough, then among the rest. A dataset that asks for a spread that no worker has (zones in a cluster
/// without) is spread over the cluster. While no worker can hold anything, a dataset stays where it was: its data is there when the
/// workers are back.
pub fn choose(
    wanted: &Wanted,
    dataset: &str,
    bytes: u64,
    cluster: &mut Domains,
    previous: Option<&Placement>,
    readers: &Readers,
) -> Placement {
    if let Some(previous) = previous
        && cluster.is_empty()
        && wanted.may_be(previous)
    {
        return previous.clone();
    }
    let spread = wanted
        .spread
        .unwrap_or_else(|| narrowest(wanted, bytes, cluster, previous));
    let mut domains = chosen(wanted, spread, dataset, bytes, cluster, previous);
    let pool = wanted.pool();
    if wanted.may_have_more() && !domains.is_empty() {
        let of = (spread, pool.as_ref());
        add_copies(
            &mut domains,
            (dataset, bytes),
            of,
            cluster,
            previous,
            readers,
        );
    }
    let (spread, domains) = if domains.is_empty() {
        (Spread::Cluster, vec![String::new()])
    } else {
        (spread, domains)
    };
    match previous {
        Some(previous)
            if (
                previous.spread,
                &previous.domains,
                &previous.pool,
                previous.keep,
            ) == (spread, &domains, &pool, wanted.keep) =>
        {
            previous.clone()
        }
        _ => Placement {
            version: previous.map_or(1, |previous| previous.version + 1),
            spread,
            domains,
            pool,
            keep: wanted.keep,
        },
    }
}

/// The narrowest spread of which one domain holds the dataset.
fn narrowest(
    wanted: &Wanted,
    bytes: u64,
    cluster: &mut Domains,
    previous: Option<&Placement>,
) -> Spread {
    let pool = wanted.pool();
    let before = previous.map(|previous| previous.spread);
    let holds = |spread: &Spread| {
        let slack = match before {
            Some(before) if *spread == before => KEPT,
            Some(before) if *spread < before => NARROWED,
            _ => 1.0,
        };
        let of = cluster.by(*spread, pool.as_ref());
        let stays = before == Some(*spread);
        of.domains.values().any(|domain| {
            fits(bytes, domain.capacity, slack) && (stays || of.has_room(domain, bytes))
        })
    };
    let narrower = [Spread::Node, Spread::Group, Spread::Zone];
    narrower.into_iter().find(holds).unwrap_or(Spread::Cluster)
}

fn chosen(
    wanted: &Wanted,
    spread: Spread,
    dataset: &str,
    bytes: u64,
    cluster: &mut Domains,
    previous: Option<&Placement>,
) -> Vec<String> {
    if spread == Spread::Cluster {
        return Vec::new();
    }
    let most = |unsaid: usize| match wanted.copies {
        Some(Copies::Number(number)) => number.get().min(MAX_DOMAINS),
        Some(Copies::All) => MAX_DOMAINS,
        None => unsaid,
    };
    if !wanted.within.is_empty() {
        let named = wanted.within.iter().take(most(MAX_DOMAINS));
        return named.cloned().collect();
    }
    let count = most(1);
    let of = cluster.by(spread, wanted.pool().as_ref());
    let domains = of.domains;
    let before = previous.filter(|previous| previous.spread == spread);
    let kept = before.into_iter().flat_map(|previous| &previous.domains);
    let mut capacities = domains.values().map(|domain| domain.capacity);
    let some_fit = capacities.any(|capacity| fits(bytes, capacity, 1.0));
    // One whose workers are all cordoned has none.
    let stays = |capacity: u64| capacity > 0 && (!some_fit || fits(bytes, capacity, KEPT));
    let stays = |domain: &&String| domains.get(*domain).is_some_and(|of| stays(of.capacity));
    let kept = kept.filter(stays);
    let mut chosen: Vec<String> = kept.take(count).cloned().collect();
    let more = count - chosen.len();
    if more == 0 {
        return chosen;
    }
    let is_other =
        |(name, domain): &(&String, &Domain)| domain.capacity > 0 && !chosen.contains(name);
    let mut others: Vec<_> = domains.iter().filter(is_other).collect();
    let dataset = seed(dataset);
    others.sort_by_cached_key(|(name, domain)| {
        let hash = mix(mix(dataset) ^ seed(name));
        let delay = -unit(hash, 53).ln() / domain.capacity.max(1) as f64;
        let is_tight = !fits(bytes, domain.capacity, 1.0);
        // Positive numbers are in the order of their bits.
        (is_tight, !of.has_room(domain, bytes), delay.to_bits())
    });
    let names = others.into_iter().map(|(name, _)| name.clone());
    chosen.extend(names.take(more));
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use std::sync::Arc;

    use crate::placement::{Hashing, Location, WorkerInfo};

    const TIB: u64 = 1 << 40;

    fn worker(number: usize, weight: u64) -> WorkerInfo {
        let zone = ["a", "b"][number % 2];
        WorkerInfo {
            id: format!("w{number}").parse().unwrap(),
            data_address: String::new(),
            control_address: String::new(),
            node: format!("n{number}").parse().unwrap(),
            location: Location::of_names(zone, ["r1", "r2"][number / 2 % 2]).unwrap(),
            local_socket: String::new(),
            weight,
            cordoned_weight: 0,
        }
    }

    /// Zones a and b of two racks each, with these weights.
    fn map(weights: &[u64]) -> ClusterMap {
        let workers = weights.iter().enumerate();
        let workers = workers.map(|(number, weight)| worker(number, *weight));
        ClusterMap::new(1, Hashing::Seats, workers.collect())
    }

    fn choose(
        wanted: &Wanted,
        dataset: &str,
        bytes: u64,
        map: &ClusterMap,
        previous: Option<&Placement>,
    ) -> Placement {
        let mut domains = Domains::new(Arc::new(map.clone()));
        super::choose(
            wanted,
            dataset,
            bytes,
            &mut domains,
            previous,
            &Readers::default(),
        )
    }

    fn wanted(spread: Option<Spread>, copies: Option<usize>, within: &[&str]) -> Wanted {
        Wanted {
            spread,
            copies: copies.map(|copies| Copies::Number(NonZeroUsize::new(copies).unwrap())),
            within: within.iter().map(|name| (*name).to_owned()).collect(),
            ..Wanted::default()
        }
    }

    #[test]
    fn a_dataset_goes_to_the_narrowest_domain_that_holds_it() {
        let map = map(&[TIB; 16]);
        let spread = |bytes| choose(&Wanted::default(), "set", bytes, &map, None).spread;
        assert_eq!(spread(0), Spread::Node);
        assert_eq!(spread(TIB / 4), Spread::Node);
        assert_eq!(spread(TIB / 4 + 1), Spread::Group);
        assert_eq!(spread(TIB + 1), Spread::Zone);
        assert_eq!(spread(2 * TIB + 1), Spread::Cluster);
        assert_eq!(spread(u64::MAX), Spread::Cluster);
    }

    #[test]
    fn datasets_are_shared_among_the_domains_by_their_size() {
        let map = map(&[TIB, 3 * TIB]);
        let by_zone = wanted(Some(Spread::Zone), None, &[]);
        let of_b = (0..1000).filter(|number| {
            choose(&by_zone, &format!("set-{number}"), 1, &map, None).domains == ["b"]
        });
        let of_b = of_b.count();
        assert!((700..800).contains(&of_b), "{of_b}");
    }

    #[test]
    fn domains_that_were_looked_for_are_those_of_their_map() {
        let (two, one) = (Arc::new(map(&[TIB; 4])), Arc::new(map(&[TIB])));
        let mut domains = Domains::new(two.clone());
        let by_zone = wanted(Some(Spread::Zone), Some(2), &[]);
        let nobody = Readers::default();
        let mut count = |map: &Arc<ClusterMap>, wanted: &Wanted| {
            if !Arc::ptr_eq(domains.map(), map) {
                domains = Domains::new(map.clone());
            }
            let chosen = super::choose(wanted, "set", 1, &mut domains, None, &nobody);
            (chosen.spread, chosen.domains.len())
        };
        let in_pool = Wanted {
            pool: Some("gpu".to_owned()),
            ..by_zone.clone()
        };
        for _ in 0..2 {
            assert_eq!(count(&two, &by_zone), (Spread::Zone, 2));
            assert_eq!(count(&two, &in_pool), (Spread::Cluster, 1));
            assert_eq!(count(&one, &by_zone), (Spread::Zone, 1));
        }
    }

    /// 64 datasets of a quarter of a node fill 16 nodes, and further ones are spread wider. By chance alone some nodes would get eight.
    #[test]
    fn datasets_go_where_they_fit_beside_the_others_and_stay() {
        let map = Arc::new(map(&[TIB; 16]));
        let mut domains = Domains::new(map.clone());
        let (auto, nobody) = (Wanted::default(), Readers::default());
        let mut placed = Vec::new();
        let mut on_node = std::collections::BTreeMap::<_, u32>::new();
        for number in 0..64 {
            let name = format!("set-{number}");
            let placement = super::choose(&auto, &name, TIB / 4, &mut domains, None, &nobody);
            domains.put(&placement, TIB / 4);
            assert_eq!(placement.spread, Spread::Node, "{number}");
            *on_node.entry(placement.domains[0].clone()).or_default() += 1;
            placed.push((name, placement));
        }
        assert!(on_node.values().all(|count| *count == 4), "{on_node:?}");
        let further = super::choose(&auto, "x", TIB / 8, &mut domains, None, &nobody);
        assert_eq!(further.spread, Spread::Cluster);
        // Who is there stays, however full it is; also where one copy on a node was asked for.
        domains.put(&further, 100 * TIB);
        for (name, placement) in placed {
            let before = Some(&placement);
            let again = super::choose(&auto, &name, TIB / 4, &mut domains, before, &nobody);
            assert_eq!(again, placement);
        }
        let node = wanted(Some(Spread::Node), None, &[]);
        let full = super::choose(&node, "x", 1, &mut domains, None, &nobody);
        assert_eq!(full.spread, Spread::Node);
    }

    #[test]
    fn a_dataset_that_grows_and_shrinks_a_little_stays() {
        let map = map(&[TIB; 16]);
        let mut placement = choose(&Wanted::default(), "set", TIB / 4, &map, None);
        let first = placement.clone();
        for bytes in [TIB / 4 + 1, TIB / 5, TIB / 3, TIB / 2, TIB / 4] {
            placement = choose(&Wanted::default(), "set", bytes, &map, Some(&placement));
            assert_eq!(placement, first, "{bytes}");
        }
        placement = choose(
            &Wanted::default(),
            "set",
            TIB / 2 + 1,
            &map,
            Some(&placement),
        );
        assert_eq!((placement.version, placement.spread), (2, Spread::Group));
        placement = choose(&Wanted::default(), "set", TIB / 4, &map, Some(&placement));
        assert_eq!((placement.version, placement.spread), (2, Spread::Group));
        placement = choose(&Wanted::default(), "set", TIB / 8, &map, Some(&placement));
        assert_eq!((placement.version, placement.spread), (3, Spread::Node));
    }

    #[test]
    fn workers_that_come_and_go_move_only_what_was_theirs() {
        let weights = [TIB; 20];
        let all = map(&weights);
        let by_node = wanted(Some(Spread::Node), Some(3), &[]);
        for number in 0..200 {
            let name = format!("set-{number}");
            let before = choose(&by_node, &name, 1, &all, None);
            assert_eq!(before.domains.len(), 3);
            let fewer = map(&weights[..19]);
            let after = choose(&by_node, &name, 1, &fewer, Some(&before));
            let stayed = before.domains.iter().filter(|domain| *domain != "n19");
            let stayed: Vec<_> = stayed.collect();
            assert!(
                after
                    .domains
                    .iter()
                    .collect::<Vec<_>>()
                    .starts_with(&stayed)
            );
            assert_eq!(after.domains.len(), 3);
            assert_eq!(after.version, if stayed.len() == 3 { 1 } else { 2 });
            assert_eq!(choose(&by_node, &name, 1, &all, Some(&after)), after);
        }
    }

    #[test]
    fn a_domain_whose_workers_are_all_cordoned_is_left_and_not_chosen() {
        let by_zone = wanted(Some(Spread::Zone), None, &[]);
        let all = map(&[TIB; 4]);
        let (without_a, without_b) = (map(&[0, TIB, 0, TIB]), map(&[TIB, 0, TIB, 0]));
        for number in 0..100 {
            let name = format!("set-{number}");
            let before = choose(&by_zone, &name, 1, &all, None);
            for bytes in [1, 100 * TIB] {
                let after = choose(&by_zone, &name, bytes, &without_a, Some(&before));
                assert_eq!(after.domains, ["b"]);
                let after = choose(&by_zone, &name, bytes, &without_b, None);
                assert_eq!(after.domains, ["a"]);
            }
        }
        let twice = wanted(Some(Spread::Zone), Some(2), &[]);
        assert_eq!(choose(&twice, "set", 1, &without_a, None).domains, ["b"]);
    }

    #[test]
    fn a_dataset_stays_where_it_was_while_the_cluster_has_no_worker() {
        let (all, nobody) = (map(&[TIB; 4]), ClusterMap::default());
        let cordoned = map(&[0; 4]);
        let zone = Some(Spread::Zone);
        for wanted in [Wanted::default(), wanted(zone, None, &[])] {
            for number in 0..20 {
                let name = format!("set-{number}");
                let before = choose(&wanted, &name, 1, &all, None);
                for empty in [&nobody, &cordoned] {
                    let meanwhile = choose(&wanted, &name, 1, empty, Some(&before));
                    assert_eq!(meanwhile, before);
                    let after = choose(&wanted, &name, 1, &all, Some(&meanwhile));
                    assert_eq!(after, before);
                }
            }
        }
        // What is asked for now counts all the same.
        let before = choose(&wanted(zone, None, &[]), "set", 1, &all, None);
        let named = choose(
            &wanted(zone, None, &["x"]),
            "set",
            1,
            &nobody,
            Some(&before),
        );
        assert_eq!(
            (named.version, &named.domains[..]),
            (2, &["x".to_owned()][..])
        );
        let pool = Wanted {
            pool: Some("gpu".to_owned()),
            ..wanted(zone, None, &[])
        };
        let in_pool = choose(&pool, "set", 1, &nobody, Some(&before));
        assert_eq!(in_pool.pool, pool.pool());
    }

    #[test]
    fn that_nodes_keep_what_they_read_is_another_placement_of_the_same_domains() {
        let map = map(&[TIB; 4]);
        let zone = wanted(Some(Spread::Zone), None, &["b"]);
        let kept = Wanted {
            keep: Some(Keep::Node),
            ..zone.clone()
        };
        let before = choose(&zone, "set", 1, &map, None);
        let after = choose(&kept, "set", 1, &map, Some(&before));
        assert_eq!((after.version, after.keep), (2, Some(Keep::Node)));
        assert_eq!(after.domains, before.domains);
        assert_eq!(choose(&kept, "set", 1, &map, Some(&after)), after);
        assert_eq!(choose(&zone, "set", 1, &map, Some(&after)).keep, None);
    }

    #[test]
    fn named_domains_are_taken_in_their_order_also_while_they_are_down() {
        let map = map(&[TIB; 4]);
        let named = wanted(Some(Spread::Zone), None, &["gone", "b", "a"]);
        assert_eq!(
            choose(&named, "set", 1, &map, None).domains,
            ["gone", "b", "a"]
        );
        let named = wanted(Some(Spread::Zone), Some(1), &["b", "a"]);
        assert_eq!(choose(&named, "set", 1, &map, None).domains, ["b"]);
    }

    #[test]
    fn copies_are_as_many_as_there_are_domains_at_most() {
        let map = map(&[TIB; 4]);
        let all = Wanted {
            copies: Some(Copies::All),
            ..wanted(Some(Spread::Zone), None, &[])
        };
        assert_eq!(choose(&all, "set", 1, &map, None).domains.len(), 2);
        let many = wanted(Some(Spread::Zone), Some(usize::MAX), &[]);
        assert_eq!(choose(&many, "set", 1, &map, None).domains.len(), 2);
    }

    #[test]
    fn a_spread_that_no_worker_has_is_the_cluster() {
        let mut one = worker(0, TIB);
        one.location = Location::default();
        let map = ClusterMap::new(1, Hashing::Seats, vec![one]);
        let by_zone = wanted(Some(Spread::Zone), None, &[]);
        assert_eq!(
            choose(&by_zone, "set", 1, &map, None).spread,
            Spread::Cluster
        );
        let nobody = choose(&Wanted::default(), "set", 1, &ClusterMap::default(), None);
        assert_eq!((nobody.spread, nobody.version), (Spread::Cluster, 1));
    }

    #[test]
    fn what_cannot_be_had_is_told_with_what_to_change() {
        let map = map(&[TIB; 4]);
        let zone = Some(Spread::Zone);
        let said = |wanted: Wanted| wanted.check(&map).unwrap_err().to_string();
        for fine in [
            Wanted::default(),
            wanted(zone, Some(2), &[]),
            wanted(zone, None, &["b", "a"]),
            wanted(Some(Spread::Group), None, &["a/r1"]),
            wanted(Some(Spread::Cluster), Some(1), &[]),
        ] {
            fine.check(&map).unwrap();
        }
        assert!(said(wanted(zone, None, &["zone-a"])).contains("no worker is in zone \"zone-a\""));
        let group = Some(Spread::Group);
        assert!(said(wanted(group, None, &["a/r3"])).contains("did you mean \"a/r"));
        assert!(
            said(wanted(zone, Some(3), &[]))
                .contains("3 copies by zone are asked for, and there are 2")
        );
        assert!(said(wanted(zone, Some(2), &["a"])).contains("there are 1"));
        assert!(said(wanted(zone, None, &["a", "a"])).contains("named twice"));
        let long = "r".repeat(1 << 20);
        let said_of_long = said(wanted(group, None, &[&long]));
        assert!(
            said_of_long.contains("longer than 257 bytes"),
            "{said_of_long}"
        );
        assert!(said_of_long.len() < 200, "{said_of_long}");
        let longest = format!("{0}/{0}", "x".repeat(MAX_NAME));
        wanted(group, None, &[&longest])
            .check(&ClusterMap::default())
            .unwrap();
        assert!(said(wanted(None, None, &["a"])).contains("spread: zone"));
        assert!(said(wanted(Some(Spread::Cluster), Some(2), &[])).contains("one copy"));
        assert!(said(wanted(zone, None, &["x"; 65])).contains("64 are the most"));
        let pool = |name: &str| Wanted {
            pool: Some(name.to_owned()),
            ..Wanted::default()
        };
        for name in ["gpu", "no pool", ""] {
            assert!(said(pool(name)).contains("no worker is in pool"));
        }
        // Before the first worker is there, what makes sense is taken.
        let nobody = ClusterMap::default();
        wanted(zone, Some(3), &[]).check(&nobody).unwrap();
        wanted(zone, None, &["a", "b"]).check(&nobody).unwrap();
        pool("gpu").check(&nobody).unwrap();
        assert!(pool("no pool").check(&nobody).is_err());
        assert!(wanted(zone, Some(3), &["a"]).check(&nobody).is_err());
        assert!(wanted(zone, Some(65), &[]).check(&nobody).is_err());
    }

    #[test]
    fn what_is_asked_for_is_read_as_it_is_written() {
        let json = r#"{"spread":"zone","copies":2,"in":["b","a"],"pool":"gpu"}"#;
        let read: Wanted = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        let expected = Wanted {
            pool: Some("gpu".to_owned()),
            ..wanted(Some(Spread::Zone), Some(2), &["b", "a"])
        };
        assert_eq!(read, expected);
        let all: Wanted = serde_json::from_str(r#"{"copies":"all"}"#).unwrap();
        assert_eq!(all.copies, Some(Copies::All));
        let kept: Wanted = serde_json::from_str(r#"{"keep":"node"}"#).unwrap();
        assert!(kept.keep == Some(Keep::Node) && kept.is_automatic());
        assert_eq!(serde_json::to_string(&kept).unwrap(), r#"{"keep":"node"}"#);
        for bad in [
            r#"{"copies":0}"#,
            r#"{"keep":"zone"}"#,
            r#"{"keep":true}"#,
            r#"{"copies":-1}"#,
            r#"{"copies":"both"}"#,
            r#"{"copies":1.5}"#,
            r#"{"spread":"Zone"}"#,
            r#"{"spread":"rack"}"#,
            r#"{"in":"a"}"#,
            r#"{"within":["a"]}"#,
        ] {
            assert!(serde_json::from_str::<Wanted>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_choice_names_no_domain_twice_and_is_the_same_again(
            weights in vec(any::<u64>(), 0..40), bytes in any::<u64>(), copies in 1usize..9,
            spread in 0usize..5, before in any::<u64>(),
        ) {
            let spread = [None, Some(Spread::Node), Some(Spread::Group), Some(Spread::Zone), Some(Spread::Cluster)][spread];
            let wanted = wanted(spread, Some(copies), &[]);
            let map = map(&weights);
            let previous = choose(&wanted, "set", before, &map, None);
            let chosen = choose(&wanted, "set", bytes, &map, Some(&previous));
            let mut domains = chosen.domains.clone();
            domains.sort();
            domains.dedup();
            prop_assert_eq!(domains.len(), chosen.domains.len());
            prop_assert!(!domains.is_empty());
            prop_assert!(spread.is_none() || chosen.domains.len() <= copies);
            prop_assert_eq!(chosen.version, if chosen == previous { 1 } else { 2 });
            prop_assert_eq!(&choose(&wanted, "set", bytes, &map, Some(&chosen)), &chosen);
        }
    }
}
