//! Parts of a cluster that a command names: `zone=b`, `group=a/r1`, `node=node-5`.
//!
//! They narrow a dataset's placement to those of its domains that lie in them. Where the dataset goes follows from its placement alone:
//! what is not held there cannot be had there by naming it.

use std::str::FromStr;

use super::ClusterMap;
use super::domains::{MAX_DOMAINS, Placement, Spread, domain_of, domains_of, places_by};
use crate::suggest::{did_you_mean, nearest};

/// A zone, a group of nodes or a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// What it is.
    pub spread: Spread,
    /// Its name, as a placement names domains.
    pub name: String,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const KINDS: [Spread; 3] = [Spread::Zone, Spread::Group, Spread::Node];
        let Some((kind, name)) = text.split_once('=').filter(|(_, name)| !name.is_empty()) else {
            return Err(format!(
                "{text:?} is no place: write zone=NAME, group=ZONE/NAME or node=NAME"
            ));
        };
        let names = KINDS.map(|kind| kind.to_string());
        let spread = KINDS.into_iter().find(|known| known.to_string() == kind);
        let spread = spread.ok_or_else(|| {
            let names = names.iter().map(String::as_str);
            format!(
                "unknown kind of place `{kind}`{}",
                did_you_mean(kind, names)
            )
        })?;
        Ok(Self {
            spread,
            name: name.to_owned(),
        })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.spread, self.name)
    }
}

/// Why a placement cannot be narrowed so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlaceError {
    /// More than a placement has domains.
    #[error("{0} places are named: {MAX_DOMAINS} are the most")]
    TooMany(usize),
    /// No worker is there.
    #[error("no worker is in {} {:?}{}", .place.spread, .place.name, .nearest.as_ref().map(|n| format!(": did you mean {n:?}?")).unwrap_or_default())]
    Unknown {
        /// As it was named.
        place: Place,
        /// The most alike of those that exist.
        nearest: Option<String>,
    },
    /// None of the dataset's domains lies there.
    #[error(
        "the dataset is held by {held}, and none of that lies in {places}: name a part that holds it, or change its `placement`"
    )]
    NotHeld {
        /// What holds it.
        held: String,
        /// What was named.
        places: String,
    },
    /// Not so many of them.
    #[error(
        "{asked} copies are asked for, and the dataset has {there}{places}: ask for fewer, or change its `placement`"
    )]
    TooManyCopies {
        /// As many were asked for.
        asked: usize,
        /// As many there are.
        there: usize,
        /// What was named, behind ` in `.
        places: String,
    },
}

/// Those domains of a placement that lie in one of some places, or all if none is named; of them the first `copies`, if so many are
/// asked for. Domains count that have a worker which may hold something.
pub fn narrowed(
    placement: &Placement,
    map: &ClusterMap,
    places: &[Place],
    copies: Option<usize>,
) -> Result<Placement, PlaceError> {
    if places.len() > MAX_DOMAINS {
        return Err(PlaceError::TooMany(places.len()));
    }
    for place in places {
        let known = domains_of(map, place.spread, None);
        if !known.contains_key(&place.name) {
            let nearest = nearest(&place.name, known.keys().map(String::as_str));
            return Err(PlaceError::Unknown {
                place: place.clone(),
                nearest: nearest.map(str::to_owned),
            });
        }
    }
    let names = |places: &[Place]| {
        let names: Vec<String> = places.iter().map(Place::to_string).collect();
        names.join(" and ")
    };
    let workers = places_by(map, placement.spread, placement.pool.as_ref());
    let workers = |domain: &str| {
        let places = workers.get(domain).into_iter().flatten();
        places.map(|place| &map.workers()[*place])
    };
    // All of a domain's workers are there.
    let lies_in = |domain: &str, place: &Place| {
        workers(domain).all(|worker| {
            domain_of(worker, place.spread).is_some_and(|domain| domain == place.name)
        })
    };
    let has_workers = |domain: &str| workers(domain).any(|worker| worker.weight > 0);
    let domains = placement.domains.iter();
    let mut domains: Vec<String> = domains
        .filter(|domain| has_workers(domain))
        .filter(|domain| places.is_empty() || places.iter().any(|place| lies_in(domain, place)))
        .cloned()
        .collect();
    if domains.is_empty() && !places.is_empty() {
        let held = if placement.spread == Spread::Cluster {
            "all workers together".to_owned()
        } else {
            format!("{} {}", placement.spread, placement.domains.join(" and "))
        };
        let places = names(places);
        return Err(PlaceError::NotHeld { held, places });
    }
    if let Some(asked) = copies {
        if asked > domains.len() {
            return Err(PlaceError::TooManyCopies {
                asked,
                there: domains.len(),
                places: if places.is_empty() {
                    String::new()
                } else {
                    format!(" in {}", names(places))
                },
            });
        }
        domains.truncate(asked);
    }
    Ok(Placement {
        domains,
        ..placement.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::super::domains::tests::{placement, worker};
    use super::*;
    use crate::placement::Hashing;

    fn map() -> ClusterMap {
        let workers = [
            ("w1", "n1", "a", "r1"),
            ("w2", "n2", "a", "r2"),
            ("w3", "n3", "b", "r1"),
            ("w4", "n4", "b", "r1"),
            ("w5", "n5", "c", ""),
        ];
        let workers = workers.map(|(name, node, zone, group)| worker(name, node, zone, group));
        ClusterMap::new(1, Hashing::Seats, workers.into())
    }

    /// The domains that are left, or what is said.
    fn narrowed_to(
        placement: &Placement,
        places: &[&str],
        copies: Option<usize>,
    ) -> Result<String, String> {
        let places: Vec<Place> = places.iter().map(|place| place.parse().unwrap()).collect();
        let narrowed = narrowed(placement, &map(), &places, copies);
        let narrowed = narrowed.map_err(|error| error.to_string())?;
        assert_eq!(narrowed.version, placement.version);
        Ok(narrowed.domains.join(" "))
    }

    #[test]
    fn the_domains_in_a_place_are_left_in_their_order_and_no_more_than_are_asked_for() {
        let zones = placement(Spread::Zone, &["b", "a"]);
        let nodes = placement(Spread::Node, &["n4", "n1", "n3"]);
        let groups = placement(Spread::Group, &["a/r1", "b/r1", "gone"]);
        for (placement, places, copies, left) in [
            (&zones, &[][..], None, "b a"),
            (&zones, &["zone=a"], None, "a"),
            (&zones, &["zone=a", "zone=b"], None, "b a"),
            (&zones, &["zone=a", "zone=b"], Some(1), "b"),
            (&nodes, &["zone=b"], Some(2), "n4 n3"),
            (&nodes, &["group=b/r1", "node=n1"], None, "n4 n1 n3"),
            (&groups, &["zone=b"], None, "b/r1"),
            (&groups, &[], None, "a/r1 b/r1"),
            (&Placement::default(), &[], Some(1), ""),
        ] {
            let found = narrowed_to(placement, places, copies);
            assert_eq!(found.as_deref(), Ok(left), "{places:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let zones = placement(Spread::Zone, &["b", "a"]);
        let cluster = Placement::default();
        for (placement, places, copies, said) in [
            (
                &zones,
                &["zone=aa"][..],
                None,
                "no worker is in zone \"aa\": did you mean \"a\"?",
            ),
            (
                &zones,
                &["zone=c"],
                None,
                "held by zone b and a, and none of that lies in zone=c",
            ),
            (&zones, &["node=n1"], None, "none of that lies in node=n1"),
            (&cluster, &["zone=a"], None, "all workers together"),
            (
                &zones,
                &["zone=b"],
                Some(2),
                "2 copies are asked for, and the dataset has 1 in zone=b",
            ),
            (
                &zones,
                &[],
                Some(3),
                "3 copies are asked for, and the dataset has 2:",
            ),
            (&cluster, &[], Some(2), "has 1:"),
        ] {
            let error = narrowed_to(placement, places, copies).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        let many = vec!["zone=a"; MAX_DOMAINS + 1];
        assert!(narrowed_to(&zones, &many, None).is_err());
    }

    #[test]
    fn a_place_is_a_kind_and_a_name() {
        for (text, said) in [
            ("b", "write zone=NAME"),
            ("zone=", "write zone=NAME"),
            ("zon=b", "did you mean `zone`?"),
            ("cluster=x", "known are"),
        ] {
            let error = text.parse::<Place>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        let place: Place = "group=a/r=1".parse().unwrap();
        assert_eq!((place.spread, &*place.name), (Spread::Group, "a/r=1"));
        assert_eq!(place.to_string(), "group=a/r=1");
    }
}
