//! What workers tell the master, and what it tells them.
//!
//! A heartbeat counts as soon as it is here. It waits for the store only if its worker is new to the stored cluster map.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use prost::Message;
use tokio::time::MissedTickBehavior;
use weir_core::{NodeName, SnapshotId, WorkerId};
use weir_proto::v1;

use crate::error::MasterError;
use crate::master::{MAP_KEY, Master, newest};
use crate::members::{LOOK_INTERVAL, Member};
use crate::store::Change;

/// Longest address of a worker, in bytes, and most tiers: every client of the cluster is told of them.
const MAX_ADDRESS: usize = 512;
const MAX_TIERS: usize = 64;
/// Snapshots that one reply names as missing.
const MAX_MISSING: usize = 1000;

impl Master {
    /// The cluster map, as it is stored.
    pub fn cluster_map(&self) -> v1::ClusterMap {
        self.members.lock().map().clone()
    }

    /// Takes in a heartbeat and tells the worker what it must know.
    pub(crate) async fn heartbeat(
        &self,
        beat: v1::HeartbeatRequest,
    ) -> Result<v1::HeartbeatReply, MasterError> {
        self.metrics.heartbeats.inc();
        let info = beat
            .worker
            .ok_or_else(|| MasterError::Invalid("a heartbeat without its worker".to_owned()))?;
        let id: WorkerId = info.id.parse()?;
        let _: NodeName = info.node.parse()?;
        let addresses = [
            &info.data_address,
            &info.control_address,
            &info.local_socket,
        ];
        if addresses.iter().any(|address| address.len() > MAX_ADDRESS) {
            return Err(MasterError::Invalid(format!(
                "an address of worker {id} is longer than {MAX_ADDRESS} bytes"
            )));
        }
        let (mut tiers, mut reads) = (beat.tiers, beat.reads);
        tiers.truncate(MAX_TIERS);
        {
            let datasets = self.datasets.lock();
            let mut counted = HashSet::new();
            reads.retain(|reads| {
                datasets.contains_key(reads.dataset.as_str())
                    && counted.insert(reads.dataset.clone())
            });
        }
        let member = Member {
            info,
            tiers,
            reads,
            waiting_reads: beat.waiting_reads,
            last_seen: Instant::now(),
        };
        if !beat.doubtful.is_empty() || beat.doubtful_left_out {
            let mut doubtful = self.doubtful.lock();
            doubtful.add(beat.doubtful, beat.doubtful_left_out);
        }
        let gone = self.members.lock().heard(&id, member, beat.leaving)?;
        self.forget_workers(&gone);
        if !self.members.lock().is_published(&id) || !gone.is_empty() {
            self.settle().await;
        }
        for inventory in beat.inventories {
            // Of a snapshot that is not the newest any more.
            let _ = self.take_inventory(&id, inventory);
        }
        Ok(self.reply(&id, beat.known_version))
    }

    fn reply(&self, id: &WorkerId, known_version: u64) -> v1::HeartbeatReply {
        // Read before the lists: a change meanwhile is told with the next reply.
        let version = self.version.load(Ordering::Acquire);
        let name = |snapshot: SnapshotId| v1::SnapshotName {
            dataset: snapshot.dataset.into(),
            version: snapshot.version,
        };
        let (mut origins, mut snapshots) = (Vec::new(), Vec::new());
        let missing = {
            let datasets = self.datasets.lock();
            if version != known_version {
                let mounts = datasets.values().flat_map(|dataset| &dataset.mounts);
                let mut seen = HashSet::new();
                let new = |origin: &&v1::OriginSpec| seen.insert(origin.encode_to_vec());
                let specs = mounts.filter_map(|mount| mount.origin.as_ref()).filter(new);
                origins = specs.cloned().collect();
                let newest = datasets.iter().filter_map(|(name, d)| newest(name, d));
                snapshots = newest.map(|(snapshot, _)| name(snapshot)).collect();
            }
            let newest = datasets
                .iter()
                .filter_map(|(name, dataset)| Some((name, dataset.snapshots.last()?.version)));
            self.inventories.missing(id, newest, MAX_MISSING)
        };
        v1::HeartbeatReply {
            map: Some(self.cluster_map()),
            origins,
            snapshots,
            version,
            missing: missing.into_iter().map(name).collect(),
        }
    }

    /// Takes in which blocks of a snapshot a worker holds.
    pub(crate) fn report_inventory(
        &self,
        report: v1::ReportInventoryRequest,
    ) -> Result<(), MasterError> {
        let id: WorkerId = report.worker.parse()?;
        let inventory = report
            .inventory
            .ok_or_else(|| MasterError::Invalid("a report without its inventory".to_owned()))?;
        self.take_inventory(&id, inventory)
    }

    fn take_inventory(&self, id: &WorkerId, report: v1::Inventory) -> Result<(), MasterError> {
        let snapshot = SnapshotId {
            dataset: report.dataset.parse()?,
            version: report.version,
        };
        let not_wanted =
            || MasterError::NotFound(format!("{snapshot} is not the newest of its dataset"));
        let known = {
            let datasets = self.datasets.lock();
            let dataset = datasets.get(&snapshot.dataset);
            let newest = dataset.and_then(|dataset| dataset.snapshots.last());
            let newest = newest.filter(|newest| newest.version == snapshot.version);
            newest.cloned().ok_or_else(not_wanted)?
        };
        let held = crate::inventory::Held::read(&report, known.blocks, known.bytes)?;
        // Under both locks: what is forgotten is forgotten after it has left its table.
        let datasets = self.datasets.lock();
        let dataset = datasets.get(&snapshot.dataset);
        let newest = dataset.and_then(|dataset| dataset.snapshots.last());
        if newest.is_none_or(|newest| newest.version != snapshot.version) {
            return Err(not_wanted());
        }
        let members = self.members.lock();
        if !members.contains(id) {
            return Err(MasterError::NotFound(format!(
                "worker {id} is not a member of the cluster"
            )));
        }
        self.inventories.set(snapshot, id, held);
        Ok(())
    }

    /// Looks for silent workers as long as the master lives.
    pub(crate) fn watch_members(self: &Arc<Self>) {
        let master = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut looks = tokio::time::interval(LOOK_INTERVAL);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                let Some(master) = master.upgrade() else {
                    return;
                };
                let gone = master.members.lock().expire(Instant::now());
                master.forget_workers(&gone);
                master.settle().await;
            }
        });
    }

    fn forget_workers(&self, gone: &[WorkerId]) {
        for worker in gone {
            tracing::warn!(%worker, "a worker left the cluster map");
            self.inventories.forget_worker(worker);
        }
    }

    /// Makes a change of the members durable, and then known. What could not be stored is tried again with the next look.
    ///
    /// Must not be dropped before its end: a map that is stored late could replace a newer one.
    pub(crate) async fn settle(&self) {
        let _in_order = self.map_writes.lock().await;
        let Some(map) = self.members.lock().next_map() else {
            return;
        };
        let stored = self
            .write(vec![Change::Put(MAP_KEY.to_owned(), map.encode_to_vec())])
            .await;
        match stored {
            Ok(()) => {
                self.map_not_stored.store(false, Ordering::Relaxed);
                self.metrics.epoch.set(map.epoch as i64);
                self.metrics.workers.set(map.workers.len() as i64);
                self.members.lock().publish(map);
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
