//! Why a dataset is where it is, in words.
//!
//! What is said follows from the dataset and the cluster as they are now, by the rules that it was placed by (`choice.rs`).

use super::choice::{Copies, Wanted};
use super::domains::{Placement, Spread};
use super::room::{Domains, KEPT, SHARE, fits};
use crate::bytesize::ByteSize;

/// Why a dataset of so many bytes that asks for `wanted` has this placement; `None` is none yet.
pub fn reason(
    wanted: &Wanted,
    bytes: u64,
    cluster: &mut Domains,
    placement: Option<&Placement>,
) -> String {
    let Some(placement) = placement else {
        return "no worker was there yet to hold it".to_owned();
    };
    match wanted.spread {
        Some(spread) if spread == placement.spread => "its specification says so".to_owned(),
        Some(spread) => {
            format!("its specification says {spread}, and no worker is in one: all of them hold it")
        }
        None if placement.spread == Spread::Cluster => over_all(wanted, bytes, cluster),
        None => {
            let base = in_domain(bytes, cluster, placement);
            let asked = match wanted.copies {
                Some(Copies::Number(number)) => number.get(),
                Some(Copies::All) => usize::MAX,
                None => 1,
            };
            match placement.domains.len().saturating_sub(asked) {
                0 => base,
                1 => format!("{base}; one copy more is where its readers are"),
                more => format!("{base}; {more} copies more are where its readers are"),
            }
        }
    }
}

/// Why it is in the first one of its domains.
fn in_domain(bytes: u64, cluster: &mut Domains, placement: &Placement) -> String {
    let spread = placement.spread;
    let of = cluster.by(spread, placement.pool.as_ref());
    let first = placement.domains.first();
    let capacity = first
        .and_then(|name| of.domains.get(name))
        .map(|of| of.capacity);
    let Some(capacity) = capacity.filter(|capacity| *capacity > 0) else {
        return format!("no worker of its {spread} is there now");
    };
    let (size, share) = (ByteSize(bytes), ByteSize((capacity as f64 * SHARE) as u64));
    if fits(bytes, capacity, 1.0) {
        format!("{size} fit into {share}, a quarter of that {spread}'s cache")
    } else if fits(bytes, capacity, KEPT) {
        format!(
            "{size} are more than {share}, a quarter of that {spread}'s cache, but less than twice as much"
        )
    } else {
        format!("{size} fit into no {spread} better")
    }
}

/// Why it is in no domain.
fn over_all(wanted: &Wanted, bytes: u64, cluster: &mut Domains) -> String {
    let (size, pool) = (ByteSize(bytes), wanted.pool());
    let (mut is_small, mut has_room) = (false, false);
    for spread in [Spread::Node, Spread::Group, Spread::Zone] {
        let of = cluster.by(spread, pool.as_ref());
        let fitting = of.domains.values();
        for domain in fitting.filter(|domain| fits(bytes, domain.capacity, 1.0)) {
            is_small = true;
            has_room |= of.has_room(domain, bytes);
        }
    }
    match (is_small, has_room) {
        (true, true) => format!("{size} fit into fewer workers, though not by far: it stays"),
        (true, false) => format!("no node, group or zone has {size} left beside other datasets"),
        (false, _) => {
            format!("{size} are more than a quarter of any node's, group's or zone's cache")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::domains::tests::worker;
    use super::*;
    use crate::placement::{ClusterMap, Hashing};

    const TIB: u64 = 1 << 40;

    #[test]
    fn what_is_said_is_the_rule_that_it_was_placed_by() {
        let workers = [("n1", "a"), ("n2", "a")].map(|(node, zone)| worker(node, node, zone, ""));
        let map = ClusterMap::new(1, Hashing::Seats, workers.to_vec());
        let mut cluster = Domains::new(Arc::new(map));
        let on = |spread, domains: &[&str]| Placement {
            version: 1,
            spread,
            domains: domains.iter().map(|name| (*name).to_owned()).collect(),
            ..Placement::default()
        };
        let auto = Wanted::default();
        let by_zone = Wanted {
            spread: Some(Spread::Zone),
            ..Wanted::default()
        };
        let (node, all) = (on(Spread::Node, &["n1"]), on(Spread::Cluster, &[""]));
        let many = on(Spread::Node, &["n1", "n2", "n3"]);
        for (wanted, bytes, placement, said) in [
            (&auto, 1, None, "no worker was there yet"),
            (
                &by_zone,
                1,
                Some(&on(Spread::Zone, &["a"])),
                "its specification says so",
            ),
            (
                &by_zone,
                1,
                Some(&all),
                "says zone, and no worker is in one",
            ),
            (
                &auto,
                TIB / 8,
                Some(&node),
                "128GiB fit into 256GiB, a quarter of that node's cache",
            ),
            (&auto, TIB / 2, Some(&node), "512GiB are more than 256GiB"),
            (&auto, TIB, Some(&node), "1TiB fit into no node better"),
            (
                &auto,
                1,
                Some(&on(Spread::Node, &["gone"])),
                "no worker of its node is there",
            ),
            (
                &auto,
                1,
                Some(&many),
                "; 2 copies more are where its readers are",
            ),
            (
                &auto,
                TIB,
                Some(&all),
                "1TiB are more than a quarter of any",
            ),
            (&auto, 1, Some(&all), "it stays"),
        ] {
            let reason = reason(wanted, bytes, &mut cluster, placement);
            assert!(reason.contains(said), "{reason:?} for {said:?}");
        }
        cluster.put(&all, 2 * TIB);
        let full = reason(&auto, TIB / 8, &mut cluster, Some(&all));
        assert!(
            full.contains("has 128GiB left beside other datasets"),
            "{full}"
        );
    }
}
