//! Which machines read which datasets, as their mounts say.
//!
//! A mount asks for the cluster map every two seconds, and says with that where it stands and how much it has read since. That is
//! all that is known, in memory: a master that has just started does not know yet who reads, and says so.
//!
//! Callers may say what they like: what they bring about is a few copies more of a dataset, where those have room.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_core::placement::MAX_WORKERS;
use weir_core::placement::readers::{Reader, Readers};
use weir_core::{ClusterMap, Location, NodeName};

/// How long somebody must have read to be worth a copy, with pauses of this length at most.
const STEADY_FOR: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(30);
/// How long after the last read a machine counts as one that reads.
const READS_FOR: Duration = Duration::from_mins(10);
/// Machines that are known of one dataset, and of all together.
const MAX_OF_ONE: usize = MAX_WORKERS;
const MAX_OF_ALL: usize = 20 * MAX_WORKERS;

/// Who reads what.
#[derive(Debug)]
pub(crate) struct ReaderTable {
    started: Instant,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_dataset: HashMap<String, HashMap<NodeName, Seen>>,
    count: usize,
}

/// One machine's reads of a dataset.
#[derive(Debug)]
struct Seen {
    at: Location,
    /// When it began to read without long pauses.
    since: Instant,
    last: Instant,
}

impl Known {
    /// Forgets who reads no more.
    fn expire(&mut self, now: Instant) {
        for machines in self.by_dataset.values_mut() {
            machines.retain(|_, seen| now.saturating_duration_since(seen.last) < READS_FOR);
        }
        self.by_dataset.retain(|_, machines| !machines.is_empty());
        self.count = self.by_dataset.values().map(HashMap::len).sum();
    }
}

impl ReaderTable {
    /// Nobody is known.
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            known: Mutex::default(),
        }
    }

    /// A machine has read a dataset that exists.
    pub(crate) fn note(&self, dataset: &str, node: NodeName, at: Location) {
        let now = Instant::now();
        let mut known = self.known.lock();
        let machines = known.by_dataset.get_mut(dataset);
        if let Some(seen) = machines.and_then(|machines| machines.get_mut(&node)) {
            if now.saturating_duration_since(seen.last) > PAUSE {
                seen.since = now;
            }
            (seen.last, seen.at) = (now, at);
            return;
        }
        if known.count >= MAX_OF_ALL {
            known.expire(now);
        }
        let machines = known.by_dataset.get(dataset).map_or(0, HashMap::len);
        if known.count >= MAX_OF_ALL || machines >= MAX_OF_ONE {
            return;
        }
        known.count += 1;
        let machines = known.by_dataset.entry(dataset.to_owned()).or_default();
        let (since, last) = (now, now);
        machines.insert(node, Seen { at, since, last });
    }

    /// The datasets that anybody reads.
    pub(crate) fn datasets(&self) -> Vec<String> {
        let mut known = self.known.lock();
        known.expire(Instant::now());
        known.by_dataset.keys().cloned().collect()
    }

    /// Who reads a dataset. Where a machine stands that does not say it, its workers do.
    pub(crate) fn of(&self, dataset: &str, cluster: &ClusterMap) -> Readers {
        let now = Instant::now();
        let may_lack = now.saturating_duration_since(self.started) < READS_FOR;
        let known = self.known.lock();
        let Some(machines) = known.by_dataset.get(dataset) else {
            let seen = Vec::new();
            return Readers { seen, may_lack };
        };
        let workers = cluster.workers().iter();
        let standing: HashMap<&NodeName, &Location> = workers
            .map(|worker| (&worker.node, &worker.location))
            .collect();
        let recent = machines
            .iter()
            .filter(|(_, seen)| now.saturating_duration_since(seen.last) < READS_FOR);
        let seen = recent.map(|(node, seen)| {
            let at = match standing.get(node) {
                Some(worker) if seen.at.zone.is_none() && seen.at.group.is_none() => worker,
                _ => &seen.at,
            };
            let paused = now.saturating_duration_since(seen.last) > PAUSE;
            let steady = seen.last.saturating_duration_since(seen.since) >= STEADY_FOR;
            Reader {
                node: node.clone(),
                at: at.clone(),
                is_steady: steady && !paused,
            }
        });
        let seen = seen.collect();
        Readers { seen, may_lack }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> NodeName {
        format!("n{number}").parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_for_a_while_is_steady_and_who_stops_is_forgotten_later() {
        let (table, map) = (ReaderTable::new(), ClusterMap::default());
        tokio::time::advance(READS_FOR).await;
        let reads = || table.note("set", node(1), Location::default());
        let state = || {
            let readers = table.of("set", &map);
            assert!(!readers.may_lack);
            readers.seen.first().map(|reader| reader.is_steady)
        };
        assert_eq!(state(), None);
        for _ in 0..STEADY_FOR.as_secs() / 2 {
            reads();
            assert_eq!(state(), Some(false));
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        reads();
        assert_eq!(state(), Some(true));
        tokio::time::advance(PAUSE + Duration::from_secs(1)).await;
        assert_eq!(state(), Some(false), "it has stopped");
        reads();
        assert_eq!(state(), Some(false), "it begins again");
        assert_eq!(table.datasets(), ["set"]);
        tokio::time::advance(READS_FOR).await;
        assert_eq!(state(), None);
        assert!(table.datasets().is_empty());
        assert_eq!(table.known.lock().count, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_that_has_just_started_may_not_know_all_readers() {
        let table = ReaderTable::new();
        let map = ClusterMap::default();
        assert!(table.of("set", &map).may_lack);
        table.note("set", node(1), Location::default());
        assert!(table.of("set", &map).may_lack);
    }

    #[tokio::test(start_paused = true)]
    async fn readers_are_as_many_as_a_cluster_has_nodes_at_most() {
        let table = ReaderTable::new();
        for number in 0..MAX_OF_ONE + 10 {
            table.note("set", node(number), Location::default());
        }
        assert_eq!(table.known.lock().count, MAX_OF_ONE);
        for dataset in 0..30 {
            for number in 0..MAX_OF_ONE / 2 {
                let name = format!("set-{dataset}");
                table.note(&name, node(number), Location::default());
            }
        }
        assert!(table.known.lock().count <= MAX_OF_ALL);
        let still = table.known.lock().count;
        table.note("new", node(1), Location::default());
        assert!(still < MAX_OF_ALL || table.known.lock().count == still);
        tokio::time::advance(READS_FOR).await;
        table.note("new", node(1), Location::default());
        assert!(table.datasets().contains(&"new".to_owned()));
    }
}
