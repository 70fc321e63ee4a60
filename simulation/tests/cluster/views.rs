//! The cluster maps that workers and readers see, and what must be true of them at all times: maps of one epoch are the same
//! everywhere, no view goes back, and each block has somebody to ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use weir_core::placement::domains::Placement;
use weir_core::{BlockKey, ClusterMap};

/// Views of all hosts.
#[derive(Clone)]
pub(crate) struct Views(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// How many of them there are.
    workers: usize,
    readers: usize,
    /// The newest map of each host that runs, by its name.
    now: BTreeMap<String, Arc<ClusterMap>>,
    /// What each epoch was.
    epochs: BTreeMap<u64, Arc<ClusterMap>>,
    /// The version of the placement that a reader knows.
    placements: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

impl Views {
    /// Those of so many workers and readers, which see nothing yet.
    pub(crate) fn of(workers: usize, readers: usize) -> Self {
        Self(Arc::new(Mutex::new(Seen {
            workers,
            readers,
            ..Seen::default()
        })))
    }

    /// Follows the placement that a reader sees.
    pub(crate) async fn follow_placement(
        self,
        host: String,
        mut placement: watch::Receiver<Arc<Placement>>,
    ) {
        while placement.changed().await.is_ok() {
            let version = placement.borrow_and_update().version;
            self.0.lock().placements.insert(host.clone(), version);
        }
    }

    /// The version of the placement that a reader sees; 0 without one.
    pub(crate) fn placement_of(&self, host: &str) -> u64 {
        self.0.lock().placements.get(host).copied().unwrap_or(0)
    }

    /// Follows the view of a host for as long as that runs.
    pub(crate) async fn follow(self, host: String, mut map: watch::Receiver<Arc<ClusterMap>>) {
        self.0.lock().now.remove(&host); // it has started
        while map.changed().await.is_ok() {
            let map = map.borrow_and_update().clone();
            self.0.lock().see(&host, map);
        }
    }

    /// The newest map of a host.
    pub(crate) fn map_of(&self, host: &str) -> Arc<ClusterMap> {
        self.0.lock().now.get(host).cloned().unwrap_or_default()
    }

    /// Waits until all hosts have the same map, of all workers.
    pub(crate) async fn until_all_see(&self, most: Duration) {
        let deadline = Instant::now() + most;
        while !self.all_see() {
            assert!(
                Instant::now() < deadline,
                "views differ: {}",
                self.describe()
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn all_see(&self) -> bool {
        let seen = self.0.lock();
        let Some(first) = seen.now.values().next() else {
            return false;
        };
        let is_same = |map: &Arc<ClusterMap>| map == first && map.workers().len() == seen.workers;
        seen.now.len() == seen.workers + seen.readers && seen.now.values().all(is_same)
    }

    fn describe(&self) -> String {
        let seen = self.0.lock();
        let views = seen.now.iter().map(|(host, map)| {
            let workers = map.workers().iter().map(|worker| worker.id.as_str());
            let workers: Vec<_> = workers.collect();
            format!("{host}: epoch {} of {workers:?}", map.epoch())
        });
        views.collect::<Vec<_>>().join("; ")
    }

    /// Panics if something was wrong at any time.
    pub(crate) fn check(&self) {
        let seen = self.0.lock();
        assert!(seen.wrong.is_empty(), "{}", seen.wrong.join("\n"));
        assert!(!seen.epochs.is_empty(), "nobody saw a map");
    }
}

impl Seen {
    fn see(&mut self, host: &str, map: Arc<ClusterMap>) {
        let epoch = map.epoch();
        if let Some(before) = self.now.get(host)
            && epoch < before.epoch()
        {
            let wrong = format!("{host} went back from epoch {} to {epoch}", before.epoch());
            self.wrong.push(wrong);
        }
        let known = self.epochs.entry(epoch).or_insert_with(|| map.clone());
        if **known != *map {
            let wrong = format!("epoch {epoch} is two maps: {known:?} and, at {host}, {map:?}");
            self.wrong.push(wrong);
        }
        for number in 0..16_u8 {
            let key = BlockKey([number.wrapping_mul(151); 16]);
            if !map.workers().is_empty() && map.owners(&key, 2).is_empty() {
                let wrong = format!("in epoch {epoch} nobody owns block {number}: {map:?}");
                self.wrong.push(wrong);
            }
        }
        self.now.insert(host.to_owned(), map);
    }
}
