//! A worker whose share of a dataset has grown: because it came, or came back, because another one has left that held the same copy, or
//! because the dataset has moved here. It takes its share over from the workers that hold it, before anybody reads it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use weir_core::placement::domains::{Placement, domain_of};
use weir_core::{ClusterMap, DatasetName, SnapshotId, WorkerId, WorkerInfo};

use super::{Holders, TakeOver, TakeOverProgress, take_over};
use crate::placements::Known;
use crate::snapshots::Snapshots;
use crate::worker::Worker;

/// How long the cluster map and the placements must stay as they are before anything is moved: workers come and go together.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// How long that is waited for: somebody may make a dataset every second.
const SETTLED_AT_MOST: Duration = Duration::from_secs(30);
/// Bytes that are taken over in a second.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// What decides a worker's share of a dataset.
#[derive(Clone)]
struct Standing {
    /// `None` of a dataset that is spread over the cluster.
    known: Option<Arc<Known>>,
    map: Arc<ClusterMap>,
}

impl Standing {
    /// Whether the dataset was elsewhere a while ago.
    fn has_moved(&self) -> bool {
        let now = Instant::now();
        let known = self.known.as_ref();
        known.is_some_and(|known| known.former(now).next().is_some())
    }

    fn placement(&self) -> Placement {
        let current = self.known.as_ref().map(|known| known.current().clone());
        current.unwrap_or_default()
    }

    /// Whether a worker may have gained blocks since `before`, or since it came without, that others hold.
    fn gains(&self, before: Option<&Self>, own: &WorkerId) -> bool {
        let placement = self.placement();
        let here = self.map.worker(own).filter(|here| here.weight > 0);
        let Some(domain) = here.and_then(|here| named_domain(&placement, here)) else {
            return false;
        };
        let Some(before) = before else {
            return true;
        };
        let placed_before = before.placement();
        let there = before.map.worker(own);
        let named = there.and_then(|there| named_domain(&placed_before, there));
        let is_same_domain = placement.spread == placed_before.spread
            && placement.pool == placed_before.pool
            && named.is_some_and(|named| placed_before.domains[named] == placement.domains[domain]);
        if !is_same_domain || weight_of(own, &self.map) > weight_of(own, &before.map) {
            return true;
        }
        // What those held that have left is gone, unless it is in another domain, too.
        let mut others = before.map.workers().iter();
        placement.domains.len() > 1
            && others.any(|other| {
                named_domain(&placement, other) == Some(domain)
                    && weight_of(&other.id, &self.map) < other.weight
            })
    }
}

/// The place among the placement's domains of the one in which a worker holds the dataset.
fn named_domain(placement: &Placement, worker: &WorkerInfo) -> Option<usize> {
    let in_pool = placement.pool.is_none() || worker.location.pool == placement.pool;
    let domain = domain_of(worker, placement.spread).filter(|_| in_pool)?;
    placement.domains.iter().position(|named| *named == domain)
}

fn weight_of(id: &WorkerId, map: &ClusterMap) -> u64 {
    map.worker(id).map_or(0, |own| own.weight)
}

/// What a share follows from, as it changes.
#[derive(Clone)]
struct Changes {
    map: watch::Receiver<Arc<ClusterMap>>,
    placements: watch::Receiver<u64>,
}

impl Changes {
    /// Waits for a change; false if none comes any more.
    async fn next(&mut self) -> bool {
        tokio::select! {
            changed = self.map.changed() => changed.is_ok(),
            changed = self.placements.changed() => changed.is_ok(),
        }
    }

    /// Waits until nothing has changed for a while; false if nothing changes any more.
    async fn settle(&mut self) -> bool {
        let until = Instant::now() + SETTLED_AT_MOST;
        while Instant::now() < until {
            match timeout(SETTLED_AFTER, self.next()).await {
                Ok(true) => {}
                Ok(false) => return false,
                Err(_) => break,
            }
        }
        true
    }

    /// How a dataset stands now.
    fn standing(&self, worker: &Worker, dataset: &DatasetName) -> Standing {
        Standing {
            known: worker.placements().get(dataset.as_str()),
            map: self.map.borrow().clone(),
        }
    }

    /// Waits until a dataset may stand otherwise; false if nothing changes any more. What has changed stays to be seen.
    async fn outdates(&self, worker: &Worker, dataset: &DatasetName, now: &Standing) -> bool {
        let mut changes = self.clone();
        let is_same = |one: &Option<Arc<Known>>, other: &Option<Arc<Known>>| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        while changes.next().await {
            let then = changes.standing(worker, dataset);
            if !Arc::ptr_eq(&then.map, &now.map) || !is_same(&then.known, &now.known) {
                return true;
            }
        }
        false
    }
}

/// Takes over what is this worker's of each dataset, whenever its share has grown, for as long as maps come. `wanted` are the newest
/// snapshots of all datasets.
pub(crate) async fn run(
    worker: Arc<Worker>,
    snapshots: Arc<Snapshots>,
    map: watch::Receiver<Arc<ClusterMap>>,
    wanted: impl Fn() -> Vec<SnapshotId>,
) {
    let own = worker.config().id.clone();
    let placements = worker.placements().told();
    let mut changes = Changes { map, placements };
    // How each dataset stood when the share of it was here last, or was not to be had.
    let mut had: HashMap<DatasetName, Standing> = HashMap::new();
    // Datasets that it has not seen may be older than itself.
    let mut is_new = true;
    'changed: while changes.next().await {
        if !changes.settle().await {
            return;
        }
        let wanted = wanted();
        let datasets: HashSet<&DatasetName> = wanted.iter().map(|wanted| &wanted.dataset).collect();
        had.retain(|dataset, _| datasets.contains(dataset));
        for snapshot in &wanted {
            let dataset = &snapshot.dataset;
            let now = changes.standing(&worker, dataset);
            let before = had.get(dataset);
            let may_be_held = is_new || before.is_some() || now.has_moved();
            if may_be_held && now.gains(before, &own) {
                tokio::select! {
                    () = take(&worker, &snapshots, snapshot) => {}
                    changed = changes.outdates(&worker, dataset, &now) => {
                        if !changed {
                            return;
                        }
                        continue 'changed;
                    }
                }
            }
            had.insert(dataset.clone(), now);
        }
        is_new = false;
    }
}

async fn take(worker: &Arc<Worker>, snapshots: &Arc<Snapshots>, snapshot: &SnapshotId) {
    let dataset = snapshot.dataset.clone();
    // Without its manifest the blocks of a dataset are taken over when they are read.
    let Ok(manifest) = snapshots.get_unkept(snapshot).await else {
        return;
    };
    let _job = snapshots.begin_job(&dataset);
    let (progress, seen) = watch::channel(TakeOverProgress::default());
    let what = TakeOver {
        manifest,
        from: Holders::Others(dataset.as_str().into()),
        bytes_per_second: BYTES_PER_SECOND,
    };
    take_over(worker.clone(), what, progress).await;
    let TakeOverProgress {
        copied_bytes,
        failed_blocks,
        unkept_blocks,
        ..
    } = seen.borrow().clone();
    if copied_bytes > 0 || failed_blocks > 0 {
        tracing::info!(
            %dataset, copied_bytes, failed_blocks, unkept_blocks,
            "blocks that are this worker's now were taken over from others"
        );
    }
}

#[cfg(test)]
mod tests {
    use weir_core::{Hashing, Location};
    use weir_proto::v1;

    use super::*;
    use crate::placements::Placements;

    /// A dataset's standing in a cluster of these workers, with their zones and weights, and in these zones; by the map in none.
    fn standing(workers: &[(&str, &str, u64)], zones: &[&str]) -> Standing {
        let workers = workers.iter().map(|(id, zone, weight)| WorkerInfo {
            id: id.parse().unwrap(),
            data_address: String::new(),
            control_address: String::new(),
            node: id.parse().unwrap(),
            location: Location::of_names(zone, "").unwrap(),
            local_socket: String::new(),
            weight: *weight,
            cordoned_weight: 0,
        });
        let map = ClusterMap::new(1, Hashing::NEWEST, workers.collect());
        let placements = Placements::default();
        placements.set(&[v1::DatasetSources {
            dataset: "set".to_owned(),
            placement: (!zones.is_empty()).then(|| v1::Placement {
                version: 1,
                spread: v1::Spread::Zone.into(),
                domains: zones.iter().map(|name| (*name).to_owned()).collect(),
                ..v1::Placement::default()
            }),
            ..v1::DatasetSources::default()
        }]);
        Standing {
            known: placements.get("set"),
            map: Arc::new(map),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_waited_for_but_not_for_ever() {
        let (map, seen) = watch::channel(Arc::new(ClusterMap::default()));
        let placements = Placements::default();
        let mut changes = Changes {
            map: seen,
            placements: placements.told(),
        };
        let since = Instant::now();
        assert!(changes.settle().await);
        assert_eq!(since.elapsed(), SETTLED_AFTER);
        let always = async {
            loop {
                tokio::time::sleep(SETTLED_AFTER / 2).await;
                placements.set(&[]);
            }
        };
        let since = Instant::now();
        tokio::select! {
            settled = changes.settle() => assert!(settled),
            () = always => {}
        }
        let took = since.elapsed();
        assert!(took >= SETTLED_AT_MOST && took < SETTLED_AT_MOST + SETTLED_AFTER);
        drop(map);
        assert!(!changes.settle().await);
    }

    const FOUR: [(&str, &str, u64); 4] = [
        ("a1", "a", 1),
        ("a2", "a", 1),
        ("b1", "b", 1),
        ("b2", "b", 1),
    ];
    const WITHOUT_A2: [(&str, &str, u64); 3] = [("a1", "a", 1), ("b1", "b", 1), ("b2", "b", 1)];
    const LIGHT_A1: [(&str, &str, u64); 2] = [("a1", "a", 0), ("a2", "a", 1)];

    #[test]
    fn a_share_grows_with_its_worker_and_where_its_dataset_goes() {
        let gains = |before: Option<Standing>, now: Standing| {
            now.gains(before.as_ref(), &"a1".parse().unwrap())
        };
        // By the map.
        assert!(gains(None, standing(&FOUR, &[])));
        assert!(!gains(None, standing(&LIGHT_A1, &[])));
        assert!(gains(Some(standing(&LIGHT_A1, &[])), standing(&FOUR, &[])));
        for workers in [&FOUR[..], &WITHOUT_A2] {
            assert!(!gains(Some(standing(&FOUR, &[])), standing(workers, &[])));
        }
        // The dataset comes, stays, gets a further copy elsewhere, goes, and is spread over all again.
        for (before, now, expected) in [
            (&[][..], &["a"][..], true),
            (&["b"], &["a"], true),
            (&["b"], &["b", "a"], true),
            (&["a"], &["a"], false),
            (&["a"], &["b", "a"], false),
            (&["a"], &["b"], false),
            (&["b"], &[], true),
        ] {
            let before = Some(standing(&FOUR, before));
            let gained = gains(before.clone(), standing(&FOUR, now));
            assert_eq!(gained, expected, "{now:?}");
        }
        // What another one held of the only copy is gone with it.
        let lost = |zones: &[&str]| {
            let before = standing(&FOUR, zones);
            gains(Some(before), standing(&WITHOUT_A2, zones))
        };
        assert!(!lost(&["a"]));
        assert!(lost(&["a", "b"]));
        assert!(!lost(&["b"]));
        let in_b = FOUR[..3].to_vec();
        let before = standing(&FOUR, &["a", "b"]);
        assert!(!gains(Some(before), standing(&in_b, &["a", "b"])));
    }
}
