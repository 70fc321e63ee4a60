//! Workers that say nothing: how long readers wait for one, who is asked meanwhile, and when it is trusted again.
//!
//! A worker that is busy says so. If one is silent, a race starts: the next owner is asked beside it, then the origin. Only
//! a part of the requests may start a race, so that workers that are slow because they are overloaded do not get more to
//! do. A worker that lost its race is a suspect: it is asked after all others until it answers a probe. Reads that wait for
//! the origin meanwhile come back to it then: an origin that is down has nothing, and the worker may.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use weir_core::{ClusterMap, RaceBudget, WorkerId, WorkerInfo};
use weir_wire::{Activity, Connections, FarWorkers};

/// Silence of a worker that starts a race. A busy one says something every 100 ms.
pub(crate) const SILENCE: Duration = Duration::from_millis(600);
/// Silence in a race that makes a worker a suspect, whoever wins.
pub(crate) const SUSPICIOUS: Duration = Duration::from_secs(1);
/// Silence after which the next is asked though no race may be started.
const LONGEST: Duration = Duration::from_secs(5);
/// How often a request that may not race yet looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often a suspect is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until a worker has been silent for so long that the next one is to be asked.
pub(crate) async fn silent(
    worker: &WorkerInfo,
    activity: &Activity,
    suspects: &Suspects,
    budget: &RaceBudget,
) {
    loop {
        activity.silent_for(SILENCE).await;
        let long = activity.silence().is_some_and(|silence| silence >= LONGEST);
        if suspects.contains(&worker.id) || long || budget.take() {
            return;
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Workers that did not answer.
pub(crate) struct Suspects {
    map: watch::Receiver<Arc<ClusterMap>>,
    connections: Arc<Connections<FarWorkers>>,
    workers: Mutex<HashSet<WorkerId>>,
    /// How many there are.
    gauge: Gauge,
    /// Changes when one is a suspect no longer.
    trusted_again: watch::Sender<()>,
}

impl Suspects {
    /// None of the workers of a map, so far.
    pub(crate) fn new(
        map: watch::Receiver<Arc<ClusterMap>>,
        connections: Arc<Connections<FarWorkers>>,
        gauge: Gauge,
    ) -> Arc<Self> {
        Arc::new(Self {
            map,
            connections,
            workers: Mutex::default(),
            gauge,
            trusted_again: watch::Sender::new(()),
        })
    }

    /// Whether a worker is to be asked after all others.
    pub(crate) fn contains(&self, worker: &WorkerId) -> bool {
        self.workers.lock().contains(worker)
    }

    /// Suspects a worker until it answers a probe, or leaves the map; whether it was trusted before. Call inside a tokio
    /// runtime.
    pub(crate) fn add(self: &Arc<Self>, worker: &WorkerInfo) -> bool {
        let is_new = self.change(|workers| workers.insert(worker.id.clone()));
        if is_new {
            tracing::debug!(worker = %worker.id, "does not answer; it is asked last until it does");
            tokio::spawn(probe(Arc::downgrade(self), worker.clone()));
        }
        is_new
    }

    /// Tells when a worker is a suspect no longer.
    pub(crate) fn trusted_again(&self) -> watch::Receiver<()> {
        self.trusted_again.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut HashSet<WorkerId>) -> bool) -> bool {
        let mut workers = self.workers.lock();
        let is_changed = change(&mut workers);
        self.gauge.set(workers.len() as i64);
        is_changed
    }

    fn trust(&self, worker: &WorkerId) {
        self.change(|workers| workers.remove(worker));
        self.trusted_again.send_replace(());
    }

    fn has_left(&self, worker: &WorkerInfo) -> bool {
        let map = self.map.borrow();
        // One that has moved is another.
        map.worker(&worker.id)
            .is_none_or(|known| known.data_address != worker.data_address)
    }
}

/// Asks a suspect for a sign of life until there is one.
async fn probe(suspects: Weak<Suspects>, worker: WorkerInfo) {
    loop {
        sleep(PROBE_INTERVAL).await;
        let Some(suspects) = suspects.upgrade() else {
            return;
        };
        let answered = suspects.has_left(&worker) || {
            let probe = suspects.connections.probe(&worker);
            matches!(timeout(SILENCE, probe).await, Ok(Ok(())))
        };
        if answered {
            suspects.trust(&worker.id);
            return;
        }
    }
}
