//! Where datasets are, as the master says.
//!
//! Readers and workers compute a block's owners from the cluster map and the dataset's placement. Each request and each answer
//! says which version of that its sender knows, so that who has the older one asks the master for the newer.
//!
//! A worker remembers the placements before, too: whoever owned a block by one of them may still hold it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use weir_core::placement::domains::{Keep, MAX_DOMAINS, Placement, Spread};
use weir_core::wall_clock;
use weir_proto::v1;

/// Least time between two questions to the master because a request was made with a newer placement: readers may name any.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// How long newer placements of a dataset are not waited for after one in vain, and of how many datasets that is known.
const GIVEN_UP_FOR: Duration = Duration::from_secs(10);
const MAX_GIVEN_UP: usize = 1024;
/// How long a placement counts after it was replaced, and how many of a dataset do: by then what is read at all was moved.
const FORMER_FOR: Duration = Duration::from_hours(24);
const MAX_FORMER: usize = 2;

/// A placement from the wire. A spread that this version does not know is the cluster: any worker serves any block.
pub fn placement(message: Option<v1::Placement>) -> Placement {
    let Some(message) = message else {
        return Placement::default();
    };
    let spread = match message.spread() {
        v1::Spread::Node => Spread::Node,
        v1::Spread::Group => Spread::Group,
        v1::Spread::Zone => Spread::Zone,
        v1::Spread::Cluster | v1::Spread::Unspecified => Spread::Cluster,
    };
    let keep = (message.keep() == v1::Keep::Node).then_some(Keep::Node);
    let mut domains = message.domains;
    domains.truncate(MAX_DOMAINS);
    if spread == Spread::Cluster {
        domains = vec![String::new()];
    }
    Placement {
        version: message.version,
        spread,
        domains,
        keep,
        pool: message.pool.parse().ok(),
    }
}

/// The placements before one, as the master says, with the times when they were replaced.
fn former(told: &[v1::FormerPlacement], now: Instant) -> Vec<(Placement, Instant)> {
    let today = wall_clock::now().duration_since(UNIX_EPOCH);
    let today = today.unwrap_or_default();
    let former = told.iter().take(MAX_FORMER).filter_map(|former| {
        let ago = match u64::try_from(former.replaced_ago_ns).ok()? {
            // A master of before.
            0 => {
                let replaced = Duration::from_nanos(u64::try_from(former.replaced_ns).ok()?);
                today.saturating_sub(replaced)
            }
            ago => Duration::from_nanos(ago),
        };
        let replaced = now.checked_sub(ago)?;
        Some((placement(former.placement.clone()), replaced))
    });
    former.collect()
}

/// The placement of a dataset, and those before it.
#[derive(Debug)]
pub(crate) struct Known {
    current: Placement,
    /// The newest first, with the time when each was replaced.
    former: Vec<(Placement, Instant)>,
}

impl Known {
    /// The first that is known of a dataset, which may have been so for long.
    fn first(current: Placement) -> Self {
        Self {
            current,
            former: Vec::new(),
        }
    }

    /// Whether the master says nothing new.
    fn is_still(&self, current: &Placement, told: &[(Placement, Instant)]) -> bool {
        let placements = |former: &'_ [(Placement, Instant)]| -> Vec<Placement> {
            let placements = former.iter().map(|(placement, _)| placement.clone());
            placements.collect()
        };
        self.current == *current
            && (told.is_empty() || placements(told) == placements(&self.former))
    }

    /// What follows it when the master says `current`.
    fn next(&self, current: Placement, now: Instant) -> Self {
        let replaced = (self.current.clone(), now);
        let former = std::iter::once(replaced).chain(self.former.clone());
        Self {
            current,
            former: former.take(MAX_FORMER).collect(),
        }
    }

    /// That in use.
    pub(crate) fn current(&self) -> &Placement {
        &self.current
    }

    /// Those that were in use a while ago, the newest first.
    pub(crate) fn former(&self, now: Instant) -> impl Iterator<Item = &Placement> {
        let former = self.former.iter();
        let recent = former.filter(move |(_, replaced)| now < *replaced + FORMER_FOR);
        recent.map(|(placement, _)| placement)
    }

    /// Whether the last one was replaced so long ago at least, as far as is known.
    pub(crate) fn is_settled_for(&self, time: Duration, now: Instant) -> bool {
        let last = self.former.first();
        last.is_none_or(|(_, replaced)| now.saturating_duration_since(*replaced) >= time)
    }

    /// Its owners are those of the cluster map alone: it is one that was taken back.
    fn is_by_map(&self) -> bool {
        self.current.spread == Spread::Cluster && self.current.pool.is_none()
    }
}

/// What a master said last.
#[derive(Debug, Default)]
struct Table {
    placed: HashMap<String, Arc<Known>>,
    /// The datasets that have no placement.
    others: HashSet<String>,
}

/// The placements of all datasets that have one, or had one.
#[derive(Debug, Default)]
pub(crate) struct Placements {
    known: RwLock<Table>,
    keeps: AtomicBool,
    asked: Mutex<Option<Instant>>,
    wanted: Notify,
    /// Tables that were taken in.
    told: watch::Sender<u64>,
    /// Until when newer placements of datasets are not waited for: the master did not name them.
    given_up: Mutex<HashMap<String, Instant>>,
}

impl Placements {
    /// Takes the table that a master sends.
    pub(crate) fn set(&self, datasets: &[v1::DatasetSources]) {
        let now = Instant::now();
        let placed = datasets.iter().filter(|of| of.placement.is_some());
        let mut known = self.known.write();
        let placed = placed.map(|of| {
            let current = placement(of.placement.clone());
            let told = former(&of.former, now);
            let next = match known.placed.get(&of.dataset) {
                Some(before) if before.is_still(&current, &told) => before.clone(),
                // The master knows more of them than who has just come.
                _ if !told.is_empty() => Arc::new(Known {
                    current,
                    former: told,
                }),
                Some(before) => Arc::new(before.next(current, now)),
                // It was spread over the cluster.
                None if known.others.contains(&of.dataset) => {
                    Arc::new(Known::first(Placement::default()).next(current, now))
                }
                None => Arc::new(Known::first(current)),
            };
            (of.dataset.clone(), next)
        });
        let placed: HashMap<String, Arc<Known>> = placed.collect();
        let keeps = placed.values().any(|known| known.current.keep.is_some());
        self.keeps.store(keeps, Ordering::Relaxed);
        let others = datasets.iter().filter(|of| of.placement.is_none());
        let others = others.map(|of| of.dataset.clone()).collect();
        *known = Table { placed, others };
        drop(known);
        self.told.send_modify(|tables| *tables += 1);
    }

    /// Changes with each table that is taken in.
    pub(crate) fn told(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    /// The placement of a dataset, if it has one, or had one.
    pub(crate) fn get(&self, dataset: &str) -> Option<Arc<Known>> {
        let known = self.known.read();
        known.placed.get(dataset).cloned()
    }

    /// The version of a dataset's placement; 0 if it has none.
    pub(crate) fn version(&self, dataset: &str) -> u64 {
        let known = self.get(dataset);
        known.map_or(0, |known| known.current.version)
    }

    /// Whether nodes keep what they read of any dataset.
    pub(crate) fn any_keeps(&self) -> bool {
        self.keeps.load(Ordering::Relaxed)
    }

    /// Whether no dataset has one, or had one.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.read().placed.is_empty()
    }

    /// Whether the owners of any dataset's blocks are not those of the cluster map alone.
    pub(crate) fn any(&self) -> bool {
        let known = self.known.read();
        known.placed.values().any(|known| !known.is_by_map())
    }

    /// A request was made with this version by somebody who may read the dataset: the master is asked if that is a newer one.
    /// Gives the version that is known.
    pub(crate) fn compare(&self, dataset: &str, version: u64) -> u64 {
        let known = self.version(dataset);
        if version <= known {
            return known;
        }
        let now = Instant::now();
        let mut asked = self.asked.lock();
        if asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_INTERVAL) {
            *asked = Some(now);
            self.wanted.notify_one();
        }
        known
    }

    /// As [`compare`](Self::compare), and waits a moment for the newer one: before a block is fetched that others have by that.
    pub(crate) async fn learn(&self, dataset: &str, version: u64, most: Duration) {
        let until = Instant::now() + most;
        let mut told = self.told.subscribe(); // before the look, so that nothing is missed
        loop {
            if version <= self.version(dataset) || self.is_given_up(dataset) {
                return;
            }
            self.compare(dataset, version);
            if tokio::time::timeout_at(until, told.changed())
                .await
                .is_err()
            {
                let until = Instant::now() + GIVEN_UP_FOR;
                self.given_up.lock().insert(dataset.to_owned(), until);
                return;
            }
        }
    }

    fn is_given_up(&self, dataset: &str) -> bool {
        let now = Instant::now();
        let mut given_up = self.given_up.lock();
        given_up.retain(|_, until| now < *until);
        given_up.len() >= MAX_GIVEN_UP || given_up.contains_key(dataset)
    }

    /// Ends when the master should be asked.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn message(version: u64, spread: v1::Spread, domains: &[&str]) -> v1::Placement {
        v1::Placement {
            version,
            spread: spread.into(),
            domains: domains.iter().map(|name| (*name).to_owned()).collect(),
            ..v1::Placement::default()
        }
    }

    #[test]
    fn what_is_not_known_of_a_placement_is_the_cluster() {
        assert_eq!(placement(None), Placement::default());
        let zones = placement(Some(message(3, v1::Spread::Zone, &["a", "b"])));
        assert_eq!((zones.version, zones.spread), (3, Spread::Zone));
        assert_eq!(zones.domains, ["a", "b"]);
        let newer = v1::Placement {
            spread: 99,
            pool: "no pool".to_owned(),
            ..message(4, v1::Spread::Zone, &["x"; 70])
        };
        let newer = placement(Some(newer));
        let cluster = Placement {
            version: 4,
            ..Placement::default()
        };
        assert_eq!(newer, cluster);
        let many = placement(Some(message(1, v1::Spread::Node, &["x"; 70])));
        assert_eq!(many.domains.len(), MAX_DOMAINS);
    }

    #[test]
    fn a_dataset_whose_placement_was_taken_back_is_placed_by_the_map_again() {
        let placements = Placements::default();
        let set = |placement| {
            placements.set(&[v1::DatasetSources {
                dataset: "set".to_owned(),
                placement,
                ..v1::DatasetSources::default()
            }]);
            let known = placements.get("set");
            let is_by_map = known.is_none_or(|known| known.is_by_map());
            (is_by_map, placements.any())
        };
        assert_eq!(set(None), (true, false));
        assert_eq!(
            set(Some(message(1, v1::Spread::Zone, &["a"]))),
            (false, true)
        );
        let in_pool = v1::Placement {
            pool: "fast".to_owned(),
            ..message(2, v1::Spread::Cluster, &[])
        };
        assert_eq!(set(Some(in_pool)), (false, true));
        assert_eq!(
            set(Some(message(3, v1::Spread::Cluster, &[]))),
            (true, false)
        );
        assert_eq!(placements.version("set"), 3);
    }

    #[tokio::test]
    async fn a_newer_placement_is_waited_for_and_one_that_nobody_names_only_once() {
        let placements = Placements::default();
        let placed = |version| v1::DatasetSources {
            dataset: "set".to_owned(),
            placement: Some(message(version, v1::Spread::Zone, &["a"])),
            ..v1::DatasetSources::default()
        };
        placements.set(&[placed(1)]);
        let master = async {
            placements.wanted().await;
            placements.set(&[placed(2)]);
        };
        let patience = Duration::from_millis(500);
        tokio::join!(placements.learn("set", 2, 60 * patience), master);
        assert_eq!(placements.version("set"), 2);
        let since = Instant::now();
        placements.learn("set", 3, patience).await;
        let took = since.elapsed();
        assert!(took >= patience, "{took:?}");
        // From now on at once.
        for version in 3..1000 {
            let learned = placements.learn("set", version, patience);
            assert!(learned.now_or_never().is_some());
        }
    }

    #[test]
    fn the_placements_before_are_remembered_for_a_while() {
        let placements = Placements::default();
        let set = |placement: Option<v1::Placement>| {
            placements.set(&[v1::DatasetSources {
                dataset: "set".to_owned(),
                placement,
                ..v1::DatasetSources::default()
            }]);
        };
        let zone = |version, zone: &str| Some(message(version, v1::Spread::Zone, &[zone]));
        let domains_at = |now| -> Vec<Vec<String>> {
            let known = placements.get("set").unwrap();
            let former = known.former(now);
            former.map(|placement| placement.domains.clone()).collect()
        };
        let domains = || domains_at(Instant::now());
        set(zone(1, "a"));
        assert!(domains().is_empty(), "nothing is known from before");
        set(zone(1, "a"));
        assert!(domains().is_empty());
        set(zone(2, "b"));
        set(zone(3, "c"));
        assert_eq!(domains(), [["b"], ["a"]]);
        set(zone(4, "d"));
        assert_eq!(domains(), [["c"], ["b"]]);
        assert!(domains_at(Instant::now() + FORMER_FOR).is_empty());
        // What the master says of it counts for who has just come.
        let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap();
        let told = |domain: &str, ago: Duration| v1::FormerPlacement {
            placement: zone(1, domain),
            replaced_ago_ns: nanoseconds(ago),
            // Its clock is behind by years.
            replaced_ns: 1,
        };
        let newcomer = Placements::default();
        let mut said = v1::DatasetSources {
            dataset: "set".to_owned(),
            placement: zone(2, "b"),
            former: vec![told("a", Duration::from_secs(9)), told("z", 2 * FORMER_FOR)],
            ..v1::DatasetSources::default()
        };
        newcomer.set(std::slice::from_ref(&said));
        let first = newcomer.get("set").unwrap();
        let former: Vec<_> = first.former(Instant::now()).collect();
        assert_eq!(former.len(), 1);
        assert_eq!(former[0].domains, ["a"]);
        newcomer.set(std::slice::from_ref(&said));
        assert!(Arc::ptr_eq(&first, &newcomer.get("set").unwrap()));
        said.former.clear();
        newcomer.set(std::slice::from_ref(&said));
        assert!(Arc::ptr_eq(&first, &newcomer.get("set").unwrap()));
        // A master of before says only when, by its clock.
        let today = wall_clock::now().duration_since(UNIX_EPOCH).unwrap();
        let by_clock = |domain: &str, ago: Duration| v1::FormerPlacement {
            replaced_ago_ns: 0,
            replaced_ns: nanoseconds(today.saturating_sub(ago)),
            ..told(domain, ago)
        };
        said.former = vec![
            by_clock("a", Duration::from_secs(9)),
            by_clock("z", 2 * FORMER_FOR),
        ];
        let newcomer = Placements::default();
        newcomer.set(std::slice::from_ref(&said));
        let known = newcomer.get("set").unwrap();
        assert_eq!(known.former(Instant::now()).count(), 1);
        // One that had none was spread over the cluster, and one that is new was nowhere.
        set(None);
        assert!(placements.get("set").is_none() && placements.is_empty());
        set(zone(5, "a"));
        assert_eq!(domains(), [[""]]);
        placements.set(&[]);
        set(zone(6, "a"));
        assert!(domains().is_empty());
    }

    #[test]
    fn a_request_with_a_newer_placement_has_the_master_asked_once() {
        let placements = Placements::default();
        let of = |dataset: &str, placement| v1::DatasetSources {
            dataset: dataset.to_owned(),
            placement,
            ..v1::DatasetSources::default()
        };
        let zones = message(7, v1::Spread::Zone, &["a"]);
        placements.set(&[of("set", Some(zones)), of("other", None)]);
        assert_eq!(placements.version("set"), 7);
        assert_eq!(placements.version("other"), 0);
        let is_asked = || placements.wanted().now_or_never().is_some();
        for (dataset, version) in [("set", 0), ("set", 7), ("other", 0)] {
            let known = placements.version(dataset);
            assert_eq!(placements.compare(dataset, version), known);
            assert!(!is_asked());
        }
        assert_eq!(placements.compare("set", 8), 7);
        assert!(is_asked());
        for version in 9..1000 {
            placements.compare("set", version);
        }
        assert!(!is_asked(), "it was asked a moment ago");
    }
}
