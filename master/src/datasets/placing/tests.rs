use weir_core::placement::choice::Copies;
use weir_core::placement::domains::{Keep, Spread};

use super::*;
use crate::placements;

const TIB: u64 = 1 << 40;

/// Workers of these zones, each of 1 TiB.
fn cluster(zones: &[&str]) -> Arc<ClusterMap> {
    let workers = zones
        .iter()
        .enumerate()
        .map(|(number, zone)| v1::WorkerInfo {
            id: format!("w{number}"),
            node: format!("n{number}"),
            zone: (*zone).to_owned(),
            weight: TIB,
            ..v1::WorkerInfo::default()
        });
    placements::cluster(&v1::ClusterMap {
        epoch: 1,
        workers: workers.collect(),
        hashing: 1,
    })
}

fn dataset(placement: Option<Wanted>, bytes: u64) -> v1::Dataset {
    let spec = DatasetSpec {
        placement,
        ..DatasetSpec::default()
    };
    let newest = v1::Snapshot {
        bytes,
        ..v1::Snapshot::default()
    };
    v1::Dataset {
        name: "set".to_owned(),
        spec: spec.to_json(),
        snapshots: vec![newest],
        ..v1::Dataset::default()
    }
}

fn by_zone() -> Wanted {
    Wanted {
        spread: Some(Spread::Zone),
        copies: Some(Copies::All),
        ..Wanted::default()
    }
}

/// Places a dataset anew; gives the version and the sorted domains.
fn placed(dataset: &mut v1::Dataset, cluster: &Arc<ClusterMap>) -> Option<(u64, Vec<String>)> {
    placed_as(dataset, cluster, &Away::default())
}

/// The same, with what is known of domains that are away.
fn placed_as(
    dataset: &mut v1::Dataset,
    cluster: &Arc<ClusterMap>,
    away: &Away,
) -> Option<(u64, Vec<String>)> {
    placed_for(dataset, cluster, away, &ReaderTable::new())
}

/// The same, with its readers.
fn placed_for(
    dataset: &mut v1::Dataset,
    cluster: &Arc<ClusterMap>,
    away: &Away,
    readers: &ReaderTable,
) -> Option<(u64, Vec<String>)> {
    let before = dataset.clone();
    let mut domains = Domains::new(cluster.clone());
    place(dataset, Some(&before), &mut domains, away, readers).unwrap();
    let placement = dataset.placement.as_ref()?;
    let mut domains = placement.domains.clone();
    domains.sort();
    Some((placement.version, domains))
}

#[test]
fn a_dataset_that_asks_for_nothing_goes_where_it_fits_once_a_worker_is_there() {
    let mut plain = dataset(None, TIB / 4);
    let nobody = Arc::new(ClusterMap::default());
    assert_eq!(placed(&mut plain, &nobody), None);
    assert!(plain.former_placements.is_empty());
    let three = cluster(&["a", "b", "a"]);
    let (version, domains) = placed(&mut plain, &three).unwrap();
    assert!(
        version > 1 << 40,
        "the first version is the time: {version}"
    );
    assert!(
        domains.len() == 1 && domains[0].starts_with('n'),
        "{domains:?}"
    );
    // What it has in the cluster from before is asked for where it was.
    let former = plain.former_placements[0].placement.clone().unwrap();
    assert_eq!(of_message(&former).spread, Spread::Cluster);
    assert_eq!(placed(&mut plain, &three), Some((version, domains.clone())));
    // With the workers away that is so, too.
    assert_eq!(placed(&mut plain, &nobody), Some((version, domains)));
    let mut large = dataset(None, 2 * TIB);
    assert_eq!(placed(&mut large, &three).unwrap().1, [""]);
}

#[tokio::test(start_paused = true)]
async fn a_copy_comes_and_goes_with_the_readers_and_what_was_before_is_not_forgotten() {
    let (all, away, readers) = (
        cluster(&["a", "b", "a"]),
        Away::default(),
        ReaderTable::new(),
    );
    let mut set = dataset(None, 1);
    let now = |set: &mut v1::Dataset| placed_for(set, &all, &away, &readers).unwrap();
    let first = now(&mut set);
    let other = (0..3).map(|number| format!("n{number}"));
    let other = other.into_iter().find(|node| *node != first.1[0]).unwrap();
    for _ in 0..20 {
        readers.note("set", other.parse().unwrap(), Location::default());
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    let second = now(&mut set);
    assert_eq!((second.0, second.1.len()), (first.0 + 1, 2));
    assert!(second.1.contains(&other));
    tokio::time::advance(Duration::from_mins(9)).await;
    assert_eq!(now(&mut set), second);
    tokio::time::advance(Duration::from_mins(1)).await;
    let third = now(&mut set);
    assert_eq!(third, (first.0 + 2, first.1));
    // Before all that it was spread over the cluster.
    let former: Vec<_> = set.former_placements.iter().collect();
    assert_eq!(former.len(), 1);
    assert_eq!(former[0].placement, Some(v1::Placement::default()));
}

#[tokio::test(start_paused = true)]
async fn a_domain_that_was_chosen_is_waited_for_and_one_that_is_cordoned_is_not() {
    let (all, away) = (cluster(&["a", "b", "a"]), Away::default());
    let without = |name: &str, weight: Option<u64>| {
        let workers = all.workers().iter().filter_map(|worker| {
            let mut worker = worker.clone();
            if worker.node.as_str() == name {
                worker.weight = weight?;
            }
            Some(worker)
        });
        let workers = workers.collect();
        Arc::new(ClusterMap::new(2, all.hashing(), workers))
    };
    let mut set = dataset(None, 1);
    let first = placed_as(&mut set, &all, &away).unwrap();
    let gone = without(&first.1[0], None);
    for _ in 0..2 {
        assert_eq!(placed_as(&mut set, &gone, &away).unwrap(), first);
        tokio::time::advance(AWAY_FOR * 9 / 10).await;
        assert_eq!(placed_as(&mut set, &gone, &away).unwrap(), first);
        assert_eq!(away.names(), ["set"]);
        // It comes back, and goes again.
        assert_eq!(placed_as(&mut set, &all, &away).unwrap(), first);
        assert!(away.names().is_empty());
    }
    assert_eq!(placed_as(&mut set, &gone, &away).unwrap(), first);
    tokio::time::advance(AWAY_FOR).await;
    let second = placed_as(&mut set, &gone, &away).unwrap();
    assert_eq!(second.0, first.0 + 1);
    assert_ne!(second.1, first.1);
    assert_eq!(
        placed_as(&mut set, &all, &away).unwrap(),
        second,
        "it stays"
    );
    let cordoned = without(&second.1[0], Some(0));
    let third = placed_as(&mut set, &cordoned, &away).unwrap();
    assert_ne!(third.1, second.1);
    // What was asked for is not waited for.
    let mut asked = dataset(
        Some(Wanted {
            spread: Some(Spread::Node),
            ..Wanted::default()
        }),
        1,
    );
    let first = placed_as(&mut asked, &all, &away).unwrap();
    let gone = without(&first.1[0], None);
    assert_ne!(placed_as(&mut asked, &gone, &away).unwrap().1, first.1);
}

#[test]
fn a_placement_changes_with_what_it_depends_on_and_its_version_only_grows() {
    let both = cluster(&["a", "b", "a"]);
    let mut set = dataset(Some(by_zone()), 1);
    let (first, domains) = placed(&mut set, &both).unwrap();
    assert_eq!(domains, ["a", "b"]);
    assert!(first > 1 << 40, "the first version is the time: {first}");
    assert_eq!(placed(&mut set, &both), Some((first, domains)), "once");
    let (second, domains) = placed(&mut set, &cluster(&["a"])).unwrap();
    assert_eq!((second, &domains[..]), (first + 1, &["a".to_owned()][..]));
    // As many bytes as only the cluster holds, of a dataset that is to be where it fits.
    set.spec = dataset(Some(Wanted::default()), 0).spec;
    set.snapshots[0].bytes = 100 * TIB;
    let (third, domains) = placed(&mut set, &both).unwrap();
    assert_eq!((third, &domains[..]), (first + 2, &[String::new()][..]));
    // Nothing is asked for any more: that is the same again.
    set.spec = dataset(None, 0).spec;
    assert_eq!(placed(&mut set, &both).unwrap().0, third);
    set.spec = dataset(Some(by_zone()), 0).spec;
    assert_eq!(placed(&mut set, &both).unwrap().0, first + 3);
    set.spec = dataset(None, 0).spec;
    let (last, domains) = placed(&mut set, &both).unwrap();
    assert_eq!((last, &domains[..]), (first + 4, &[String::new()][..]));
}

#[test]
fn what_the_cluster_cannot_have_is_refused_with_the_field() {
    let refused = |wanted: Wanted| {
        let spec = DatasetSpec {
            placement: Some(wanted),
            ..DatasetSpec::default()
        };
        check(&spec, &cluster(&["a", "b"])).unwrap_err().to_string()
    };
    let unknown = refused(Wanted {
        spread: Some(Spread::Zone),
        within: vec!["c".to_owned()],
        ..Wanted::default()
    });
    assert!(
        unknown.contains("spec.placement: no worker is in zone \"c\""),
        "{unknown}"
    );
    let many = refused(Wanted {
        spread: Some(Spread::Zone),
        copies: Some("3".parse().unwrap()),
        ..Wanted::default()
    });
    assert!(many.contains("3 copies by zone"), "{many}");
    check(&DatasetSpec::default(), &ClusterMap::default()).unwrap();
}

#[test]
fn a_placement_survives_its_message() {
    let placement = Placement {
        version: 7,
        spread: Spread::Group,
        domains: vec!["a/r1".to_owned(), "b/~3".to_owned()],
        pool: Some("gpu".parse().unwrap()),
        keep: Some(Keep::Node),
    };
    assert_eq!(of_message(&to_message(placement.clone())), placement);
}

#[test]
fn the_placements_before_are_remembered_and_told_for_a_day() {
    let mut set = dataset(None, 1);
    let mut moved = |zone: &str| {
        let before = set.clone();
        set.placement = Some(v1::Placement {
            domains: vec![zone.to_owned()],
            ..v1::Placement::default()
        });
        remember(&mut set, Some(&before));
        let former = set.former_placements.iter().map(|former| {
            let placement = former.placement.clone().unwrap();
            placement.domains.join(" ")
        });
        former.collect::<Vec<_>>()
    };
    assert_eq!(moved("a"), [""], "it was spread over the cluster");
    assert_eq!(moved("a"), [""]);
    assert_eq!(moved("b"), ["a", ""]);
    assert_eq!(moved("c"), ["b", "a"]);
    let (former, now) = (set.former_placements.clone(), now_ns());
    assert_eq!(recent(&former, now).len(), 2);
    assert!(recent(&former, now + TOLD_FOR.as_nanos() as i64).is_empty());
    // One of the same name that is new was nowhere.
    remember(&mut set, None);
    assert!(set.former_placements.is_empty());
}
