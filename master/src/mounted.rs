//! On which nodes a dataset is mounted, as its mounts say: a lease of each node for each dataset, in memory.
//!
//! A mount asks for the cluster map every two seconds, and holds its lease by that, whatever becomes of the process that made
//! it. Who ends the last mount of a node gives the lease back. A node that is dead, or cut off, has it for [`LEASE`].

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_core::NodeName;
use weir_core::placement::MAX_WORKERS;

/// How long a node is believed to have a dataset mounted that says nothing any more.
const LEASE: Duration = Duration::from_mins(5);
/// How long a master knows too little that has just started, or had no room for a lease: mounts ask every two seconds, and wait for
/// one that was away.
const LACKS_FOR: Duration = Duration::from_secs(20);
/// Leases in all.
const MAX_LEASES: usize = 20 * MAX_WORKERS;

/// Which nodes have which datasets mounted.
#[derive(Debug)]
pub(crate) struct Mounted {
    leases: Mutex<Leases>,
}

#[derive(Debug)]
struct Leases {
    /// When it was known last that some may lack here.
    lacked: Instant,
    by_dataset: HashMap<String, HashMap<NodeName, Instant>>,
    count: usize,
}

impl Leases {
    fn expire(&mut self, now: Instant) {
        for nodes in self.by_dataset.values_mut() {
            nodes.retain(|_, last| now - *last < LEASE);
        }
        self.by_dataset.retain(|_, nodes| !nodes.is_empty());
        self.count = self.by_dataset.values().map(HashMap::len).sum();
    }
}

impl Mounted {
    pub(crate) fn new() -> Self {
        let leases = Leases {
            lacked: Instant::now(),
            by_dataset: HashMap::new(),
            count: 0,
        };
        Self {
            leases: Mutex::new(leases),
        }
    }

    /// A node has a dataset mounted, which exists.
    pub(crate) fn note(&self, dataset: &str, node: NodeName) {
        let now = Instant::now();
        let mut leases = self.leases.lock();
        let nodes = leases.by_dataset.get_mut(dataset);
        if let Some(last) = nodes.and_then(|nodes| nodes.get_mut(&node)) {
            *last = now;
            return;
        }
        if leases.count >= MAX_LEASES {
            leases.expire(now);
            if leases.count >= MAX_LEASES {
                leases.lacked = now;
                return;
            }
        }
        leases.count += 1;
        let nodes = leases.by_dataset.entry(dataset.to_owned()).or_default();
        nodes.insert(node, now);
    }

    /// A node has a dataset mounted no more.
    pub(crate) fn end(&self, dataset: &str, node: &NodeName) {
        let mut leases = self.leases.lock();
        let Some(nodes) = leases.by_dataset.get_mut(dataset) else {
            return;
        };
        if nodes.remove(node).is_some() {
            leases.count -= 1;
        }
    }

    /// The nodes that have a dataset mounted, in order; `None` if that is not known yet.
    pub(crate) fn of(&self, dataset: &str) -> Option<Vec<String>> {
        let now = Instant::now();
        let mut leases = self.leases.lock();
        if now - leases.lacked < LACKS_FOR {
            return None;
        }
        leases.expire(now);
        let nodes = leases.by_dataset.get(dataset);
        let mut names: Vec<String> = nodes
            .into_iter()
            .flat_map(HashMap::keys)
            .map(ToString::to_string)
            .collect();
        names.sort_unstable();
        Some(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_lasts_while_it_is_renewed_and_some_minutes_more() {
        let mounted = Mounted::new();
        mounted.note("x", node("a"));
        assert_eq!(mounted.of("x"), None, "others may not have asked yet");
        tokio::time::sleep(LACKS_FOR).await;
        mounted.note("x", node("b"));
        mounted.note("y", node("c"));
        assert_eq!(mounted.of("x").unwrap(), ["a", "b"]);
        tokio::time::sleep(LEASE.saturating_sub(LACKS_FOR)).await;
        mounted.note("y", node("c"));
        assert_eq!(mounted.of("x").unwrap(), ["b"], "a is dead");
        mounted.end("x", &node("b"));
        mounted.end("x", &node("b"));
        mounted.end("none", &node("b"));
        assert!(mounted.of("x").unwrap().is_empty());
        assert_eq!(mounted.of("y").unwrap(), ["c"]);
        assert_eq!(mounted.leases.lock().count, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn leases_find_a_bound_and_room_again() {
        let mounted = Mounted::new();
        for number in 0..=MAX_LEASES {
            mounted.note("x", node(&format!("n{number}")));
        }
        tokio::time::sleep(LACKS_FOR).await;
        assert_eq!(mounted.of("x").unwrap().len(), MAX_LEASES);
        mounted.note("y", node("a"));
        assert_eq!(mounted.of("y"), None, "there is no room to know it");
        tokio::time::sleep(LEASE).await;
        mounted.note("x", node("new"));
        assert_eq!(mounted.of("x").unwrap(), ["new"]);
    }
}
