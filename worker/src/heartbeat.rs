//! The worker's tie to the master: it announces itself and learns the cluster map and the origins.
//!
//! Heartbeats carry liveness and wait for nothing else: which blocks are held is reported beside them
//! (`inventory/reports.rs`). They carry only what has changed: the map comes when it is another one than the last, and of the
//! reads those go that the master does not know. A master that is away costs nothing but freshness: the worker goes on with the last map and
//! origins.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
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

/// Sends heartbeats until `stop`, then says goodbye: the last map has others only. The newest cluster map is published in `map`. `master` should have a
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
            map_version: 0,
            known_reads: KnownReads::default(),
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
                    if let Some(new) = new {
                        replace(&map, new);
                    }
                }
                Err(status) if reachable => {
                    reachable = false;
                    let refusals = [Code::PermissionDenied, Code::AlreadyExists];
                    let what = if refusals.contains(&status.code()) {
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
                () = tokio::time::sleep_until(began + INTERVAL) => {}
                () = origin_wanted(&beat.worker) => {}
            }
        }
        // The master finds out by itself if it does not hear this. Whoever is answered from now on hears of a newer map, and asks for it.
        if let Ok(Some(without_this)) = beat.send(true).await {
            replace(&map, without_this);
        }
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
    /// That of the map that it sent last.
    map_version: u64,
    known_reads: KnownReads,
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

    /// Gives the cluster map if that is another one than the last.
    async fn send(&mut self, leaving: bool) -> Result<Option<ClusterMap>, tonic::Status> {
        self.hear_doubts();
        let told = self.untold.len().min(MAX_DOUBTFUL);
        let reads = self.known_reads.news(self.reads());
        let mut request = tonic::Request::new(v1::HeartbeatRequest {
            worker: Some(worker_to_proto(&self.info)),
            tiers: self.tiers(),
            reads: reads.clone(),
            leaving,
            inventories: Vec::new(),
            known_version: self.version,
            waiting_reads: self.worker.waiting_reads(),
            doubtful: self.untold.range(..told).cloned().collect(),
            doubtful_left_out: self.left_out,
            callers: self.callers.to_owned(),
            known_map: self.map_version,
            known_reads: self.known_reads.version,
        });
        request.set_timeout(DEADLINE);
        // The deadline is the worker's own, too: a master that is stopped keeps none.
        let reply = tokio::time::timeout(DEADLINE, self.master.heartbeat(request)).await;
        let late = |_| tonic::Status::deadline_exceeded(format!("no answer within {DEADLINE:?}"));
        let reply = reply.map_err(late)??.into_inner();
        self.untold.drain(..told);
        self.left_out = false;
        let missing = reply.missing.into_iter().filter_map(snapshot_id).collect();
        self.known_reads.were_told(reads, reply.reads_version);
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
            // Of datasets that it did not know it remembers nothing.
            self.known_reads = KnownReads::default();
        } else {
            self.worker.origins().confirm();
            self.wanted.send_if_modified(|wanted| {
                wanted.missing = missing;
                !wanted.missing.is_empty()
            });
        }
        let map = new_map(reply.map, reply.map_version, self.map_version);
        self.map_version = 0; // if it cannot be read, it is asked for again
        let map = map?;
        self.map_version = reply.map_version;
        Ok(map)
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

/// The map of a reply; none if it is the one that is known. A master of an earlier version always sends its map, which is empty
/// where there is none.
///
/// # Errors
/// When it cannot be read, or is not there though it is another one.
pub fn new_map(
    map: Option<v1::ClusterMap>,
    version: u64,
    known: u64,
) -> Result<Option<ClusterMap>, tonic::Status> {
    match map {
        Some(map) => cluster_map(map).map(Some),
        None if version == 0 => cluster_map(v1::ClusterMap::default()).map(Some),
        None if version == known => Ok(None),
        None => Err(tonic::Status::internal(
            "the master left a cluster map out that is not known here",
        )),
    }
}

/// The reads that the master knows of.
#[derive(Debug, Default)]
struct KnownReads {
    /// What it remembers them by; 0 if it remembers none.
    version: u64,
    told: HashMap<String, v1::DatasetReads>,
}

impl KnownReads {
    /// Those that are to be told.
    fn news(&self, mut reads: Vec<v1::DatasetReads>) -> Vec<v1::DatasetReads> {
        reads.retain(|reads| self.told.get(&reads.dataset) != Some(reads));
        reads
    }

    /// The master has heard of these, and says what it remembers all by now.
    fn were_told(&mut self, reads: Vec<v1::DatasetReads>, version: u64) {
        let were_all = self.told.is_empty();
        if version == 0 || (version != self.version && !were_all) {
            self.told.clear(); // it has lost the others
        } else {
            let named = reads
                .into_iter()
                .map(|reads| (reads.dataset.clone(), reads));
            self.told.extend(named);
        }
        self.version = version;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(reads: &[(&str, u64)]) -> Vec<v1::DatasetReads> {
        let of = |(dataset, hits): &(&str, u64)| v1::DatasetReads {
            dataset: (*dataset).to_owned(),
            hits: *hits,
            ..v1::DatasetReads::default()
        };
        reads.iter().map(of).collect()
    }

    #[test]
    fn reads_are_told_once_and_all_of_them_to_a_master_that_has_lost_them() {
        let mut known = KnownReads::default();
        let all = reads(&[("one", 1), ("two", 2)]);
        assert_eq!(known.news(all.clone()), all);
        known.were_told(all.clone(), 7);
        assert_eq!((known.news(all.clone()), known.version), (Vec::new(), 7));
        let more = reads(&[("one", 1), ("two", 3)]);
        let news = known.news(more.clone());
        assert_eq!(news, reads(&[("two", 3)]));
        // The answer was lost: they are told again.
        assert_eq!(known.news(more.clone()), news);
        known.were_told(news, 7);
        assert_eq!(known.news(more.clone()), Vec::new());
        // A master that was started again took what it was told, and lacks the others.
        known.were_told(Vec::new(), 8);
        assert_eq!((known.news(more.clone()), known.version), (more.clone(), 8));
        known.were_told(more.clone(), 8);
        assert_eq!(known.news(more.clone()), Vec::new());
        // One of an earlier version remembers nothing.
        known.were_told(Vec::new(), 0);
        assert_eq!(known.news(more.clone()), more);
        known.were_told(more.clone(), 0);
        assert_eq!(known.news(more.clone()), more);
    }

    #[test]
    fn a_map_is_left_out_only_if_it_is_known() {
        let map = v1::ClusterMap {
            epoch: 3,
            ..v1::ClusterMap::default()
        };
        let epoch = |map: Option<v1::ClusterMap>, version, known| {
            let new = new_map(map, version, known).map_err(|status| status.code());
            new.map(|new| new.map(|map| map.epoch()))
        };
        assert_eq!(epoch(Some(map.clone()), 7, 0), Ok(Some(3)));
        assert_eq!(epoch(Some(map.clone()), 7, 7), Ok(Some(3)));
        assert_eq!(epoch(None, 7, 7), Ok(None));
        assert_eq!(epoch(None, 7, 0), Err(Code::Internal));
        assert_eq!(epoch(None, 8, 7), Err(Code::Internal));
        // A master of an earlier version.
        assert_eq!(epoch(Some(map), 0, 0), Ok(Some(3)));
        assert_eq!(epoch(None, 0, 0), Ok(Some(0)));
    }
}
