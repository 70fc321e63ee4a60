//! The workers of a cluster, and what each holds.
//!
//! A heartbeat counts as soon as it is here. It waits for the store only if its worker is new to the stored cluster map.

mod membership;
mod sending;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{MutexGuard, watch};
use tokio::time::Instant;
use weir_core::{ClusterMap, LogLimit, SnapshotId, WorkerId};
use weir_proto::v1;

use crate::error::MasterError;
use crate::inventory::{Held, Inventories};
use crate::metrics::MasterMetrics;
use crate::placements;
use crate::records::{Records, decode};
use crate::store::Change;
use membership::Membership;
use sending::Sending;

pub(crate) use membership::{LOOK_INTERVAL, Member};

const MAP_KEY: &str = "cluster-map";
const STANDING_KEY: &str = "standing/";

/// The members of a cluster.
#[derive(Debug)]
pub(crate) struct Members {
    records: Records,
    metrics: Arc<MasterMetrics>,
    state: Mutex<Membership>,
    /// The stored map as placements are chosen by it.
    cluster: watch::Sender<Arc<ClusterMap>>,
    inventories: Inventories,
    /// What is decided of workers is stored in the order of the decisions.
    standing_writes: tokio::sync::Mutex<()>,
    /// Maps are stored in the order of their epochs.
    map_writes: tokio::sync::Mutex<()>,
    /// The last map could not be stored.
    map_not_stored: AtomicBool,
    /// Workers that left, in the log: one may come and go as it likes.
    departures: LogLimit,
    /// Of maps to those that have one.
    sending: Mutex<Sending>,
}

impl Members {
    /// The members of the stored map.
    pub(crate) fn load(records: Records, metrics: Arc<MasterMetrics>) -> Result<Self, MasterError> {
        let map = match records.store().get(MAP_KEY)? {
            None => Membership::first_map(),
            Some(bytes) => decode(MAP_KEY, &bytes)?,
        };
        metrics.epoch.set(map.epoch as i64);
        metrics.workers.set(map.workers.len() as i64);
        let (cluster, _) = watch::channel(placements::cluster(&map));
        let mut state = Membership::restored(map, Instant::now());
        for (key, bytes) in records.store().scan(STANDING_KEY)? {
            let standing: v1::WorkerStanding = decode(&key, &bytes)?;
            let id = key.strip_prefix(STANDING_KEY).unwrap_or_default().parse()?;
            state.set_standing(&id, Some(standing.state()));
        }
        Ok(Self {
            cluster,
            records,
            metrics,
            state: Mutex::new(state),
            standing_writes: tokio::sync::Mutex::default(),
            inventories: Inventories::default(),
            map_writes: tokio::sync::Mutex::default(),
            map_not_stored: AtomicBool::new(false),
            departures: LogLimit::default(),
            sending: Mutex::new(Sending::new(Instant::now())),
        })
    }

    /// The cluster map, as it is stored.
    pub(crate) fn map(&self) -> v1::ClusterMap {
        self.state.lock().map().clone()
    }

    /// The version of the cluster map, and the map itself unless that is the version that is known. Who knows one is left with it
    /// for now while the master sends as many as it may.
    pub(crate) fn map_unless(&self, known: u64) -> (u64, Option<v1::ClusterMap>) {
        let state = self.state.lock();
        let version = state.map_version();
        if version == known {
            return (version, None);
        }
        let may_wait = known != 0;
        if may_wait && !self.sending.lock().take(state.map_bytes(), Instant::now()) {
            return (known, None);
        }
        (version, Some(state.map().clone()))
    }

    /// What the reads of a member are remembered by; 0 if it is none.
    pub(crate) fn reads_version(&self, id: &WorkerId) -> u64 {
        self.state.lock().reads_version(id)
    }

    /// The stored map as placements are chosen by it, now and later.
    pub(crate) fn cluster(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.cluster.subscribe()
    }

    /// The stored map's epoch, and the members that are in it.
    pub(crate) fn published(&self) -> (u64, Vec<Member>) {
        let state = self.state.lock();
        (state.map().epoch, state.published())
    }

    /// A member, if it is in the stored map.
    pub(crate) fn published_as(&self, id: &WorkerId) -> Option<Member> {
        self.state.lock().published_as(id)
    }

    /// Cordoned workers that are no members.
    pub(crate) fn away(&self) -> Vec<(WorkerId, v1::WorkerState)> {
        self.state.lock().away()
    }

    /// Takes in a heartbeat.
    ///
    /// Must not be dropped before its end, see [`settle`](Self::settle).
    pub(crate) async fn beat(
        &self,
        id: &WorkerId,
        member: Member,
        leaving: bool,
    ) -> Result<(), MasterError> {
        let gone = self.state.lock().beat(id, member, leaving)?;
        self.forget(&gone);
        let is_settled = || gone.is_empty() && self.state.lock().is_published(id);
        if is_settled() {
            return Ok(());
        }
        let in_order = self.map_writes.lock().await;
        // Of many that come at once, one stores the map with all of them.
        if !is_settled() {
            self.store_map(in_order).await;
        }
        Ok(())
    }

    /// Looks for silent workers.
    ///
    /// Must not be dropped before its end, see [`settle`](Self::settle).
    pub(crate) async fn look(&self) {
        let gone = self.state.lock().expire(Instant::now());
        self.forget(&gone);
        self.settle().await;
    }

    /// Cordons a worker, or not any more, or says that it is drained. Durable when it returns.
    ///
    /// Must not be dropped before its end, see [`settle`](Self::settle).
    ///
    /// # Errors
    /// When there is no such worker, or it is the last one that is not cordoned.
    pub(crate) async fn set_standing(
        &self,
        id: &WorkerId,
        state: Option<v1::WorkerState>,
    ) -> Result<(), MasterError> {
        let in_order = self.standing_writes.lock().await;
        self.state.lock().may_stand(id, state)?;
        let key = format!("{STANDING_KEY}{id}");
        let change = match state {
            None => Change::Delete(key),
            Some(state) => {
                let state = state.into();
                Change::Put(key, v1::WorkerStanding { state }.encode_to_vec())
            }
        };
        self.records.write(vec![change]).await?;
        self.state.lock().set_standing(id, state);
        drop(in_order);
        self.settle().await;
        Ok(())
    }

    /// How a worker stands that is cordoned.
    pub(crate) fn standing(&self, id: &WorkerId) -> Option<v1::WorkerState> {
        self.state.lock().standing(id)
    }

    /// Whether a worker could be drained: it is a member, and another one owns blocks.
    pub(crate) fn may_drain(&self, id: &WorkerId) -> Result<(), MasterError> {
        let state = self.state.lock();
        if !state.contains(id) {
            return Err(membership::unknown(id));
        }
        if state.has_others(id) {
            return Ok(());
        }
        state.may_stand(id, Some(v1::WorkerState::Cordoned))?;
        Err(MasterError::Unready(format!(
            "no worker but {id} could take its blocks over: all others are cordoned; uncordon one, or start another"
        )))
    }

    /// Takes in what a member holds of a newest snapshot.
    pub(crate) fn hold(
        &self,
        snapshot: SnapshotId,
        id: &WorkerId,
        held: Held,
    ) -> Result<(), MasterError> {
        // Under both locks: what is forgotten is forgotten after it has left its table.
        let state = self.state.lock();
        if !state.contains(id) {
            return Err(MasterError::NotFound(format!(
                "worker {id} is not a member of the cluster"
            )));
        }
        self.inventories.set(snapshot, id, held);
        Ok(())
    }

    /// What the workers hold.
    pub(crate) fn inventories(&self) -> &Inventories {
        &self.inventories
    }

    fn forget(&self, gone: &[WorkerId]) {
        for worker in gone {
            if let Some(left_out) = self.departures.line() {
                tracing::warn!(%worker, left_out, "a worker left the cluster map");
            }
            self.inventories.forget_worker(worker);
        }
    }

    /// Makes a change of the members durable, and then known. What could not be stored is tried again with the next look.
    ///
    /// Must not be dropped before its end: a map that is stored late could replace a newer one.
    async fn settle(&self) {
        let in_order = self.map_writes.lock().await;
        self.store_map(in_order).await;
    }

    /// Stores the map if it has changed, in its turn.
    async fn store_map(&self, _in_order: MutexGuard<'_, ()>) {
        let Some(map) = self.state.lock().next_map() else {
            return;
        };
        let change = Change::Put(MAP_KEY.to_owned(), map.encode_to_vec());
        let stored = self.records.write(vec![change]).await;
        match stored {
            Ok(()) => {
                self.map_not_stored.store(false, Ordering::Relaxed);
                self.metrics.epoch.set(map.epoch as i64);
                self.metrics.workers.set(map.workers.len() as i64);
                let cluster = placements::cluster(&map);
                // Under the lock: who has seen this map places by it, and who has heard of this cluster sees its map.
                let mut state = self.state.lock();
                self.cluster.send_replace(cluster);
                state.publish(map);
            }
            Err(error) => {
                if !self.map_not_stored.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        "the cluster map stays as it is until the change can be stored: {error}"
                    );
                }
            }
        }
    }
}
