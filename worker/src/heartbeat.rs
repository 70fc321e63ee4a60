//! The worker's tie to the master: it announces itself and learns the cluster map and the origins.
//!
//! Heartbeats carry liveness and wait for nothing else: which blocks are held is reported beside them
//! (`inventory/reports.rs`). A master that is away costs nothing but freshness: the worker goes on with the last map and
//! origins.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;
use weir_core::{ClusterMap, SnapshotId, WorkerInfo};
use weir_origin::OriginSpec;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

use crate::inventory::reports::{self, Wanted};
use crate::read_source::Source;
use crate::service::cluster_map;
use crate::snapshots::Snapshots;
use crate::sources::DatasetSources;
use crate::ssd::Trouble;
use crate::takeover::joining;
use crate::verify::{Doubtful, wire};
use crate::worker::Worker;

/// Time from one heartbeat to the next.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// Least time between two heartbeats when an origin is wanted.
const HURRY: Duration = Duration::from_millis(50);
/// Objects that one heartbeat names as doubtful.
const MAX_DOUBTFUL: usize = 256;
/// Those that wait for the master at most.
const MAX_UNTOLD: usize = 4096;
/// Longest wait for the master's answer: it takes a worker out of the map after 10 s, so there is time for three.
const DEADLINE: Duration = Duration::from_secs(3);

/// Sends heartbeats until `stop`, then says goodbye. The newest cluster map is published in `map`. `master` should have a
/// connection that `snapshots` does not use: a manifest of 100 MB would hold the heartbeats up. `callers` is how the worker's
/// callers are known.
pub fn run(
    worker: Arc<Worker>,
    info: WorkerInfo,
    master: MasterClient<Channel>,
    snapshots: Arc<Snapshots>,
    map: watch::Sender<Arc<ClusterMap>>,
    callers: &'static str,
    stop: CancellationToken,
) -> BoxFuture<'static, ()> {
    async move {
        let doubtful = worker.doubtful_objects();
        let (wanted, wanted_seen) = watch::channel(Wanted::default());
        let mut beside = JoinSet::new();
        let its_snapshots = snapshots.clone();
        beside.spawn(reports::run(
            worker.clone(),
            info.id.clone(),
            snapshots.master(),
            snapshots,
            wanted_seen,
            stop.clone(),
        ));
        let newest = wanted.subscribe();
        beside.spawn(joining::run(
            worker.clone(),
            its_snapshots,
            map.subscribe(),
            move || newest.borrow().snapshots.clone(),
        ));
        let mut beat = Heartbeat {
            worker,
            info,
            master,
            callers,
            wanted,
            version: 0,
            doubtful,
            untold: VecDeque::new(),
            left_out: false,
        };
        let mut reachable = true;
        loop {
            let began = Instant::now();
            let result = beat.send(false).await;
            match result {
                Ok(new) => {
                    if !reachable {
                        tracing::info!("the master answers again");
                    }
                    reachable = true;
                    replace(&map, new);
                }
                Err(status) if reachable => {
                    reachable = false;
                    let what = if status.code() == Code::PermissionDenied {
                        "the master refuses this worker"
                    } else {
                        "the master does not answer; reads go on with the last cluster map"
                    };
                    tracing::warn!(message = status.message(), "{what}");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until((began + INTERVAL).into()) => {}
                () = origin_wanted(&beat.worker) => {}
            }
        }
        // The master finds out by itself if it does not hear this.
        let _ = beat.send(true).await;
    }
    .boxed()
}

/// Publishes what the master says, if that is new.
pub fn replace<T: PartialEq>(published: &watch::Sender<Arc<T>>, new: T) {
    published.send_if_modified(|old| {
        let changed = **old != new;
        if changed {
            *old = Arc::new(new);
        }
        changed
    });
}

/// Ends when an origin or a placement is wanted that the master may know, but not at once: others may come to want it too.
async fn origin_wanted(worker: &Worker) {
    tokio::time::sleep(HURRY).await;
    tokio::select! {
        () = worker.origins().wanted() => {}
        () = worker.placements().wanted() => {}
    }
}

struct Heartbeat {
    worker: Arc<Worker>,
    info: WorkerInfo,
    master: MasterClient<Channel>,
    callers: &'static str,
    wanted: watch::Sender<Wanted>,
    /// Version of the origins and snapshots that the master sent last.
    version: u64,
    /// What page caches may hold wrong bytes of, and what of it the master was not told.
    doubtful: Receiver<Arc<Doubtful>>,
    untold: VecDeque<v1::ObjectVersion>,
    left_out: bool,
}

impl Heartbeat {
    /// Collects what is doubtful since the last heartbeat.
    fn hear_doubts(&mut self) {
        loop {
            match self.doubtful.try_recv().as_deref() {
                Ok(Doubtful::Object { origin, object }) => {
                    let object = wire::object(*origin, object);
                    if self.untold.len() < MAX_UNTOLD && wire::is_short(&object) {
                        self.untold.push_back(object);
                    } else {
                        self.left_out = true;
                    }
                }
                Ok(Doubtful::All) | Err(TryRecvError::Lagged(_)) => self.left_out = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        if self.left_out {
            self.untold.clear(); // all are doubtful
        }
    }

    async fn send(&mut self, leaving: bool) -> Result<ClusterMap, tonic::Status> {
        self.hear_doubts();
        let told = self.untold.len().min(MAX_DOUBTFUL);
        let mut request = tonic::Request::new(v1::HeartbeatRequest {
            worker: Some(worker_to_proto(&self.info)),
            tiers: self.tiers(),
            reads: self.reads(),
            leaving,
            inventories: Vec::new(),
            known_version: self.version,
            waiting_reads: self.worker.waiting_reads(),
            doubtful: self.untold.range(..told).cloned().collect(),
            doubtful_left_out: self.left_out,
            callers: self.callers.to_owned(),
        });
        request.set_timeout(DEADLINE);
        // The deadline is the worker's own, too: a master that is stopped keeps none.
        let reply = tokio::time::timeout(DEADLINE, self.master.heartbeat(request)).await;
        let late = |_| tonic::Status::deadline_exceeded(format!("no answer within {DEADLINE:?}"));
        let reply = reply.map_err(late)??.into_inner();
        self.untold.drain(..told);
        self.left_out = false;
        let missing = reply.missing.into_iter().filter_map(snapshot_id).collect();
        if reply.version == 0 || reply.version != self.version {
            self.worker.placements().set(&reply.sources);
            let sources = reply.has_sources;
            let sources = sources.then(|| DatasetSources::of_reply(reply.sources));
            self.worker.origins().bind(sources);
            let specs = reply.origins.into_iter().map(OriginSpec::from).collect();
            self.worker.origins().set(specs);
            let snapshots = reply.snapshots.into_iter().filter_map(snapshot_id);
            self.wanted.send_replace(Wanted {
                snapshots: snapshots.collect(),
                missing,
            });
            self.version = reply.version;
        } else {
            self.worker.origins().confirm();
            self.wanted.send_if_modified(|wanted| {
                wanted.missing = missing;
                !wanted.missing.is_empty()
            });
        }
        cluster_map(reply.map.unwrap_or_default())
    }

    fn tiers(&self) -> Vec<v1::TierUsage> {
        self.worker
            .tiers()
            .into_iter()
            .map(|tier| v1::TierUsage {
                tier: tier.labels.tier.to_owned(),
                path: tier.labels.path,
                capacity_bytes: tier.capacity,
                used_bytes: tier.used,
                blocks: tier.blocks,
                trouble: tier.trouble.map_or("", Trouble::text).to_owned(),
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
                worker_bytes: reads.bytes(Source::Worker),
            })
            .collect()
    }
}

fn snapshot_id(name: v1::SnapshotName) -> Option<SnapshotId> {
    Some(SnapshotId {
        dataset: name.dataset.parse().ok()?,
        version: name.version,
    })
}

fn named<T: ToString>(name: Option<&T>) -> String {
    name.map(T::to_string).unwrap_or_default()
}

fn worker_to_proto(info: &WorkerInfo) -> v1::WorkerInfo {
    v1::WorkerInfo {
        id: info.id.to_string(),
        data_address: info.data_address.clone(),
        control_address: info.control_address.clone(),
        node: info.node.to_string(),
        local_socket: info.local_socket.clone(),
        weight: info.weight,
        zone: named(info.location.zone.as_ref()),
        group: named(info.location.group.as_ref()),
        pool: named(info.location.pool.as_ref()),
        machine: named(info.location.machine.as_ref()),
        cordoned_weight: 0, // the master says that
    }
}
