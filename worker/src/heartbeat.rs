//! The worker's tie to the master: it announces itself and learns the cluster map and the origins.
//!
//! A master that is away costs nothing but freshness: the worker goes on with the last map and origins.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use weir_core::{ClusterMap, SnapshotId, WorkerInfo};
use weir_origin::OriginSpec;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

use crate::inventory::Inventory;
use crate::metrics::DatasetLabel;
use crate::service::cluster_map;
use crate::snapshots::Snapshots;
use crate::worker::{Source, Worker};

/// Time between two heartbeats.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// Least time between two heartbeats when an origin is wanted.
const HURRY: Duration = Duration::from_millis(50);
/// Longest wait for the master's answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// An inventory is taken again at most this often, and at most for a twentieth of the time.
const INVENTORY_INTERVAL: Duration = Duration::from_secs(2);
const INVENTORY_SHARE: u32 = 20;

/// Sends heartbeats until `stop`, then says goodbye. The newest cluster map is published in `map`.
pub async fn run(
    worker: Arc<Worker>,
    info: WorkerInfo,
    master: MasterClient<Channel>,
    snapshots: Arc<Snapshots>,
    map: watch::Sender<Arc<ClusterMap>>,
    stop: CancellationToken,
) {
    let mut beat = Heartbeat {
        worker,
        info,
        master,
        snapshots,
        inventories: HashMap::new(),
        wanted: Vec::new(),
    };
    let mut reachable = true;
    loop {
        let result = beat.send(false).await;
        match result {
            Ok(new) => {
                if !reachable {
                    tracing::info!("the master answers again");
                }
                reachable = true;
                map.send_if_modified(|old| {
                    let changed = **old != new;
                    if changed {
                        *old = Arc::new(new);
                    }
                    changed
                });
            }
            Err(status) if reachable => {
                reachable = false;
                tracing::warn!(
                    message = status.message(),
                    "the master does not answer; reads go on with the last cluster map"
                );
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(INTERVAL) => {}
            () = wanted(&beat.worker) => {}
        }
    }
    // The master finds out by itself if it does not hear this.
    let _ = beat.send(true).await;
}

/// Ends when an origin is wanted that the master may know, but not at once: others may come to want it too.
async fn wanted(worker: &Worker) {
    tokio::time::sleep(HURRY).await;
    worker.origins().wanted().await;
}

struct Heartbeat {
    worker: Arc<Worker>,
    info: WorkerInfo,
    master: MasterClient<Channel>,
    snapshots: Arc<Snapshots>,
    inventories: HashMap<SnapshotId, Taken>,
    wanted: Vec<SnapshotId>,
}

struct Taken {
    generation: u64,
    next: Instant,
}

impl Heartbeat {
    async fn send(&mut self, leaving: bool) -> Result<ClusterMap, tonic::Status> {
        let inventories = if leaving {
            Vec::new()
        } else {
            self.take_inventories().await
        };
        let mut request = tonic::Request::new(v1::HeartbeatRequest {
            worker: Some(worker_to_proto(&self.info)),
            tiers: self.tiers(),
            reads: self.reads(),
            leaving,
            inventories,
        });
        request.set_timeout(DEADLINE);
        let reply = self.master.heartbeat(request).await;
        if reply.is_err() {
            self.inventories.clear(); // a restarted master knows none of them
        }
        let reply = reply?.into_inner();
        let specs = reply.origins.into_iter().map(OriginSpec::from).collect();
        self.worker.origins().set(specs);
        self.wanted = reply
            .snapshots
            .into_iter()
            .filter_map(|name| {
                Some(SnapshotId {
                    dataset: name.dataset.parse().ok()?,
                    version: name.version,
                })
            })
            .collect();
        self.inventories.retain(|id, _| self.wanted.contains(id));
        cluster_map(reply.map.unwrap_or_default())
    }

    /// Inventories of the snapshots that the master wants, where something may have changed.
    async fn take_inventories(&mut self) -> Vec<v1::Inventory> {
        let mut changed = Vec::new();
        for id in self.wanted.clone() {
            let generation = self.worker.generation();
            let started = Instant::now();
            if self
                .inventories
                .get(&id)
                .is_some_and(|t| t.generation == generation || started < t.next)
            {
                continue;
            }
            let manifest = match self.snapshots.get(&id).await {
                Ok(manifest) => manifest,
                Err(error) => {
                    tracing::debug!(%error, "no inventory");
                    continue;
                }
            };
            let worker = self.worker.clone();
            let taken =
                tokio::task::spawn_blocking(move || Inventory::take(&worker, &manifest)).await;
            let Ok(inventory) = taken else { continue };
            let label = DatasetLabel {
                dataset: id.dataset.to_string(),
            };
            let gauge = self
                .worker
                .metrics()
                .cached_bytes
                .get_or_create(&label)
                .clone();
            gauge.set(inventory.bytes as i64);
            changed.push(inventory.to_proto());
            let pause = INVENTORY_INTERVAL.max(started.elapsed() * INVENTORY_SHARE);
            self.inventories.insert(
                id,
                Taken {
                    generation,
                    next: Instant::now() + pause,
                },
            );
        }
        changed
    }

    fn tiers(&self) -> Vec<v1::TierUsage> {
        self.worker
            .tiers()
            .into_iter()
            .map(|(labels, capacity, used, blocks)| v1::TierUsage {
                tier: labels.tier.to_owned(),
                path: labels.path,
                capacity_bytes: capacity,
                used_bytes: used,
                blocks,
            })
            .collect()
    }

    fn reads(&self) -> Vec<v1::DatasetReads> {
        self.worker
            .metrics()
            .datasets()
            .into_iter()
            .map(|(dataset, reads)| v1::DatasetReads {
                dataset,
                memory_bytes: reads.bytes(Source::Memory),
                ssd_bytes: reads.bytes(Source::Ssd),
                origin_bytes: reads.bytes(Source::Origin),
                hits: reads.reads(Source::Memory) + reads.reads(Source::Ssd),
                misses: reads.reads(Source::Origin),
            })
            .collect()
    }
}

fn worker_to_proto(info: &WorkerInfo) -> v1::WorkerInfo {
    v1::WorkerInfo {
        id: info.id.to_string(),
        data_address: info.data_address.clone(),
        control_address: info.control_address.clone(),
        node: info.node.to_string(),
        local_socket: info.local_socket.clone(),
        weight: info.weight,
    }
}
