//! The `weir.v1.Worker` service: warm and evict, as the master asks for them, and who may call what of it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use weir_core::id::NameError;
use weir_core::placement::domains::Owners;
use weir_core::{Block, ClusterMap, Hashing, Location, Manifest, SnapshotId, WorkerInfo};
use weir_proto::v1;
use weir_proto::v1::worker_server::{Worker as WorkerApi, WorkerServer};
use weir_trust::{Caller, Guarded, Incoming, Role, Rules};

use crate::placements::placement;
use crate::snapshots::{RunningJob, SnapshotError, Snapshots};
use crate::stream::{Admission, READERS};
use crate::takeover::{Holders, TakeOver, TakeOverProgress, take_over};
use crate::verify::{Said, wire};
use crate::warm::{WarmProgress, evict, resolve_paths, warm};
use crate::worker::Worker;

/// How often progress is reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// Reports that wait for the master before the oldest must be taken.
const REPORT_QUEUE: usize = 4;
/// Longest wait for the placement that a warm job names: the job may have been started as soon as its dataset was made.
const LEARN_DEADLINE: Duration = Duration::from_secs(5);

/// Longest message that is taken, and that of the calls that only master and workers may make: the cluster map of a job, or
/// the checksums of a large object's blocks.
const MAX_MESSAGE: usize = 64 << 10;
const MAX_OF_CLUSTER: usize = 4 << 20;
const OF_CLUSTER: &[&str] = &["Warm", "TakeOver", "Evict", "ReportChecksums", "DropBlocks"];

/// Who may call what.
const RULES: Rules = &[
    ("Warm", &[Role::Master]),
    ("TakeOver", &[Role::Master]),
    ("Evict", &[Role::Master]),
    ("ReportChecksums", &[Role::Worker]),
    ("DropBlocks", &[Role::Worker]),
    ("OpenStream", &READERS),
];

/// Serves `weir.v1.Worker` to those who come in by `incoming`, until `stop`. `admission` is that of the worker's block
/// stream, if it has one.
pub fn serve(
    worker: Arc<Worker>,
    snapshots: Arc<Snapshots>,
    admission: Option<Arc<Admission>>,
    incoming: Incoming,
    stop: CancellationToken,
) -> BoxFuture<'static, Result<(), tonic::transport::Error>> {
    let service = Arc::new(Service {
        worker,
        snapshots,
        admission,
    });
    let of_size = |most| WorkerServer::from_arc(service.clone()).max_decoding_message_size(most);
    let guarded =
        Guarded::new(of_size(MAX_MESSAGE), RULES).with_large(of_size(MAX_OF_CLUSTER), OF_CLUSTER);
    weir_trust::serve(Routes::new(guarded), incoming, stop)
}

struct Service {
    worker: Arc<Worker>,
    snapshots: Arc<Snapshots>,
    admission: Option<Arc<Admission>>,
}

impl Service {
    async fn find(&self, dataset: &str, version: u64) -> Result<Arc<Manifest>, Status> {
        let snapshot = SnapshotId {
            dataset: dataset
                .parse()
                .map_err(|error| Status::invalid_argument(format!("{error}")))?,
            version,
        };
        self.snapshots
            .get(&snapshot)
            .await
            .map_err(|error| match error {
                SnapshotError::Master { .. } => Status::unavailable(error.to_string()),
                SnapshotError::Damaged { .. } => Status::data_loss(error.to_string()),
            })
    }
}

fn tops(manifest: &Manifest, paths: &[String]) -> Result<Vec<u32>, Status> {
    resolve_paths(manifest, paths).map_err(|path| {
        let snapshot = &manifest.summary().snapshot;
        Status::not_found(format!(
            "{snapshot} has no {path:?}; see `weir dataset get`"
        ))
    })
}

#[tonic::async_trait]
impl WorkerApi for Service {
    type WarmStream = ReceiverStream<Result<v1::WarmProgress, Status>>;

    async fn warm(
        &self,
        request: Request<v1::WarmRequest>,
    ) -> Result<Response<Self::WarmStream>, Status> {
        let request = request.into_inner();
        let manifest = self.find(&request.dataset, request.version).await?;
        let tops = tops(&manifest, &request.paths)?;
        let map = cluster_map(request.map.unwrap_or_default())?;
        // Where a block comes from follows from what this worker knows itself.
        let version = request
            .placement
            .as_ref()
            .map_or(0, |placement| placement.version);
        if version > 0 {
            let placements = self.worker.placements();
            let learn = placements.learn(&request.dataset, version, LEARN_DEADLINE);
            learn.await;
            if let Some(copies) = self.worker.copies.get() {
                copies.learn_map(map.epoch(), LEARN_DEADLINE).await;
            }
        }
        let owners = Owners::new(Arc::new(map), &placement(request.placement));
        let worker = self.worker.clone();
        let job = self
            .snapshots
            .begin_job(&manifest.summary().snapshot.dataset);
        let work = async move |progress| {
            let ended = warm(worker, manifest, tops, owners, progress).await;
            ended.map_err(|error| Status::internal(error.to_string()))
        };
        Ok(Response::new(reported(job, work, to_proto)))
    }

    type TakeOverStream = ReceiverStream<Result<v1::TakeOverProgress, Status>>;

    async fn take_over(
        &self,
        request: Request<v1::TakeOverRequest>,
    ) -> Result<Response<Self::TakeOverStream>, Status> {
        let request = request.into_inner();
        let manifest = self.find(&request.dataset, request.version).await?;
        let map = cluster_map(request.map.unwrap_or_default())?;
        let mut workers = map.workers().iter();
        let from = workers.find(|worker| worker.id.as_str() == request.from);
        let from = from.cloned().ok_or_else(|| {
            Status::invalid_argument(format!("worker {} is not in the map", request.from))
        })?;
        let job = self
            .snapshots
            .begin_job(&manifest.summary().snapshot.dataset);
        let what = TakeOver {
            manifest,
            from: Holders::leaving(from, map, &placement(request.placement)),
            bytes_per_second: request.bytes_per_second,
        };
        let worker = self.worker.clone();
        let work = async move |progress| {
            take_over(worker, what, progress).await;
            Ok(())
        };
        Ok(Response::new(reported(job, work, taken_to_proto)))
    }

    async fn evict(
        &self,
        request: Request<v1::EvictRequest>,
    ) -> Result<Response<v1::EvictReply>, Status> {
        let request = request.into_inner();
        let manifest = self.find(&request.dataset, request.version).await?;
        let tops = tops(&manifest, &request.paths)?;
        let worker = self.worker.clone();
        let job = self
            .snapshots
            .begin_job(&manifest.summary().snapshot.dataset);
        let evict = move || {
            let _job = job;
            evict(&worker, &manifest, &tops)
        };
        let evicted = tokio::task::spawn_blocking(evict)
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(v1::EvictReply {
            evicted_bytes: evicted,
        }))
    }

    async fn report_checksums(
        &self,
        request: Request<v1::ReportChecksumsRequest>,
    ) -> Result<Response<v1::ReportChecksumsReply>, Status> {
        let request = request.into_inner();
        let first = first_block(request.object)?;
        let blocks = wire::blocks(request.blocks);
        let reply = match self.worker.verifier.report(first, blocks).await {
            Said::Checksum(checksum) => wire::reply(Some(&checksum)),
            Said::Nothing => wire::reply(None),
            Said::NotNow => return Err(Status::unavailable("it is not to be had now")),
        };
        Ok(Response::new(reply))
    }

    async fn drop_blocks(
        &self,
        request: Request<v1::DropBlocksRequest>,
    ) -> Result<Response<v1::DropBlocksReply>, Status> {
        let request = request.into_inner();
        let first = first_block(request.object)?;
        let blocks = wire::indexes(request.blocks);
        let worker = self.worker.clone();
        // To the end, also when the caller goes away.
        let dropping = tokio::spawn(async move {
            let dropped = worker.drop_wrong(&first, &blocks, request.refuse).await;
            worker.settled(&dropped).await;
        });
        let dropped = dropping.await;
        dropped.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(v1::DropBlocksReply {}))
    }

    async fn open_stream(
        &self,
        request: Request<v1::OpenStreamRequest>,
    ) -> Result<Response<v1::OpenStreamReply>, Status> {
        let caller = Caller::of(&request)?;
        let admission = self.admission.as_ref();
        let admission = admission.ok_or_else(|| Status::unimplemented("there is no stream"))?;
        Ok(Response::new(admission.open_stream(caller)?))
    }
}

/// Does the work of a job in a task of its own, which tells how far it is until it has ended or the master drops the stream.
fn reported<P, R, W>(
    job: RunningJob,
    work: impl FnOnce(watch::Sender<P>) -> W,
    to_proto: fn(&P) -> R,
) -> ReceiverStream<Result<R, Status>>
where
    P: Default + Send + Sync + 'static,
    R: Send + 'static,
    W: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (reports, stream) = tokio::sync::mpsc::channel(REPORT_QUEUE);
    let (progress, mut seen) = watch::channel(P::default());
    let work = work(progress);
    tokio::spawn(async move {
        let _job = job;
        let report = async {
            loop {
                tokio::time::sleep(REPORT_INTERVAL).await;
                let report = to_proto(&seen.borrow_and_update());
                if reports.send(Ok(report)).await.is_err() {
                    return;
                }
            }
        };
        let ended = tokio::select! {
            ended = work => ended,
            () = report => return,
            () = reports.closed() => return,
        };
        let last = ended.map(|()| to_proto(&seen.borrow()));
        // The master may have gone away; then nobody wants it.
        let _ = reports.send(last).await;
    });
    ReceiverStream::new(stream)
}

/// The first block of the object that a request is about.
fn first_block(object: Option<v1::ObjectVersion>) -> Result<Block, Status> {
    let first = wire::first_block(object);
    first.ok_or_else(|| Status::invalid_argument("this is no object that is compared"))
}

fn to_proto(progress: &WarmProgress) -> v1::WarmProgress {
    v1::WarmProgress {
        done_bytes: progress.done_bytes,
        done_files: progress.done_files,
        fetched_bytes: progress.fetched_bytes,
        copied_bytes: progress.copied_bytes,
        failed_files: progress.failed_files,
        message: progress.message.clone(),
    }
}

/// Where a message says that a worker is.
fn location(worker: &v1::WorkerInfo) -> Result<Location, NameError> {
    Location::of_names(&worker.zone, &worker.group)?
        .in_pool(&worker.pool)?
        .on_machine(&worker.machine)
}

fn taken_to_proto(progress: &TakeOverProgress) -> v1::TakeOverProgress {
    v1::TakeOverProgress {
        done_bytes: progress.done_bytes,
        copied_bytes: progress.copied_bytes,
        failed_blocks: progress.failed_blocks,
        unkept_blocks: progress.unkept_blocks,
        message: progress.message.clone(),
    }
}

/// Reads a cluster map from the wire.
pub fn cluster_map(map: v1::ClusterMap) -> Result<ClusterMap, Status> {
    if map.workers.len() > weir_core::placement::MAX_WORKERS {
        return Err(Status::invalid_argument(
            "the cluster map has too many workers",
        ));
    }
    let invalid = |error| Status::invalid_argument(format!("{error}"));
    let workers = map
        .workers
        .into_iter()
        .map(|worker| {
            let location = location(&worker).map_err(invalid)?;
            Ok(WorkerInfo {
                id: worker.id.parse().map_err(invalid)?,
                data_address: worker.data_address,
                control_address: worker.control_address,
                node: worker.node.parse().map_err(invalid)?,
                location,
                local_socket: worker.local_socket,
                weight: worker.weight,
                cordoned_weight: worker.cordoned_weight,
            })
        })
        .collect::<Result<_, Status>>()?;
    let hashing = Hashing::of_number(map.hashing);
    Ok(ClusterMap::new(map.epoch, hashing, workers))
}
