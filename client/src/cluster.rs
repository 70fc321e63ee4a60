//! Block reads from the workers of a cluster.
//!
//! The owner is asked first, then the next workers in the hash order, then the origin itself. A worker that does
//! not answer is passed over for a moment; one that leaves the cluster map is given up on at once, even in the
//! middle of a request.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use weir_core::{Block, ClusterMap, NodeName, WorkerId, WorkerInfo};
use weir_origin::{FetchPolicy, OriginError, OriginMetrics, OriginSpec};
use weir_proto::v1::{BlockReply, BlockRequest, BlockSource, BlockStatus};
use weir_worker::origins::Origins;

use crate::connection::{ConnectionError, Connections};
use crate::local::LocalWorker;
use crate::metrics::{ClientMetrics, ReadSource, ReasonLabel};
use crate::reader::BlockError;

/// Workers that are asked for a block before the client reads the origin.
const MAX_OWNERS: usize = 2;
/// How long a worker that did not answer is passed over.
const SUSPECT_FOR: Duration = Duration::from_secs(2);

/// What a cluster reader is made of.
pub struct ClusterConfig {
    /// The machine that this process runs on.
    pub node: NodeName,
    /// The cluster map, kept fresh by [`crate::map::follow`].
    pub map: watch::Receiver<Arc<ClusterMap>>,
    /// Asks for a newer map.
    pub hurry: Arc<Notify>,
    /// How the origin is read when no worker answers.
    pub fetch: Arc<FetchPolicy>,
    /// Metrics of the client.
    pub metrics: Arc<ClientMetrics>,
    /// Metrics of direct reads from the origin.
    pub origin_metrics: Arc<OriginMetrics>,
}

/// Reads blocks from the workers that own them.
pub struct ClusterReader {
    config: ClusterConfig,
    remote: Connections,
    local: Mutex<Option<Arc<LocalWorker>>>,
    suspects: Mutex<HashMap<WorkerId, Instant>>,
    origins: Origins,
}

/// What one worker's answer means for the read.
enum Answer {
    Bytes(Bytes, ReadSource),
    Final(BlockError),
    Next(&'static str, String),
}

impl ClusterReader {
    /// A reader without connections.
    pub fn new(config: ClusterConfig) -> Self {
        Self {
            config,
            remote: Connections::default(),
            local: Mutex::default(),
            suspects: Mutex::default(),
            origins: Origins::new(None),
        }
    }

    /// The bytes of `range` of a block. `spec` is the origin's, from the manifest, for the case that no worker
    /// answers.
    pub(crate) async fn read(
        &self,
        dataset: &str,
        spec: &str,
        block: &Block,
        range: Range<u32>,
    ) -> Result<(Vec<Bytes>, ReadSource), BlockError> {
        let map = self.config.map.borrow().clone();
        let request = BlockRequest {
            epoch: map.epoch,
            dataset: dataset.to_owned(),
            origin: block.origin.0,
            key: block.object.key.to_string(),
            object_size: block.object.size,
            object_version: block.object.version.to_string(),
            block_index: block.index,
            offset: range.start,
            length: range.end - range.start,
            accept_descriptor: false,
            report_damaged: false,
        };
        let mut last = String::from("no worker is in the cluster map");
        for worker in map.owners(&block.key(), MAX_OWNERS) {
            if self.is_suspect(&worker.id) {
                last = format!("worker {} did not answer a moment ago", worker.id);
                continue;
            }
            match self.ask(worker, &request).await {
                Answer::Bytes(bytes, source) => return Ok((vec![bytes], source)),
                Answer::Final(error) => return Err(error),
                Answer::Next(reason, message) => {
                    let label = ReasonLabel { reason };
                    self.config.metrics.failovers.get_or_create(&label).inc();
                    tracing::debug!(worker = %worker.id, reason, message, "the next worker is asked");
                    last = message;
                }
            }
        }
        self.read_origin(spec, block, range)
            .await
            .map(|bytes| (bytes, ReadSource::Origin))
            .map_err(|error| match error {
                OriginError::Changed { .. } => BlockError::Changed(error.to_string()),
                error => BlockError::Failed(format!("{error} (and before that: {last})")),
            })
    }

    fn is_suspect(&self, worker: &WorkerId) -> bool {
        let mut suspects = self.suspects.lock();
        suspects.retain(|_, until| *until > Instant::now());
        suspects.contains_key(worker)
    }

    async fn ask(&self, worker: &WorkerInfo, request: &BlockRequest) -> Answer {
        let near = worker.node == self.config.node;
        let answer = async {
            if near && let Ok(answer) = self.local(worker).request(request.clone()).await {
                return Ok(answer);
            }
            self.remote.request(&worker.data_address, request).await
        };
        let outcome = tokio::select! {
            outcome = answer => outcome,
            () = self.left_the_map(worker) => {
                return Answer::Next("left", format!("worker {} left the cluster", worker.id));
            }
        };
        match outcome {
            Ok((reply, bytes)) => self.judge(worker, near, reply, bytes),
            Err(error) => {
                let until = Instant::now() + SUSPECT_FOR;
                self.suspects.lock().insert(worker.id.clone(), until);
                self.config.hurry.notify_one();
                let reason = match error {
                    ConnectionError::Io(_) | ConnectionError::Closed => "unreachable",
                    ConnectionError::Frame(_) | ConnectionError::Length(..) => "protocol",
                };
                Answer::Next(reason, format!("worker {}: {error}", worker.id))
            }
        }
    }

    fn judge(&self, worker: &WorkerInfo, near: bool, reply: BlockReply, bytes: Bytes) -> Answer {
        if reply.epoch > self.config.map.borrow().epoch {
            self.config.hurry.notify_one();
        }
        let source = match (reply.source(), near) {
            (BlockSource::Origin, _) => ReadSource::Origin,
            (_, false) => ReadSource::Remote,
            (BlockSource::Memory, true) => ReadSource::Memory,
            (_, true) => ReadSource::Ssd,
        };
        match reply.status() {
            BlockStatus::Ok => Answer::Bytes(bytes, source),
            BlockStatus::Changed => Answer::Final(BlockError::Changed(reply.message)),
            BlockStatus::OriginError => Answer::Final(BlockError::Failed(format!(
                "worker {}: {}",
                worker.id, reply.message
            ))),
            BlockStatus::UnknownOrigin => Answer::Next("unknown_origin", reply.message),
            BlockStatus::Unavailable => Answer::Next("unavailable", reply.message),
            BlockStatus::BadRequest | BlockStatus::Unspecified => {
                Answer::Next("protocol", reply.message)
            }
        }
    }

    fn local(&self, worker: &WorkerInfo) -> Arc<LocalWorker> {
        let mut local = self.local.lock();
        match &*local {
            Some(known) if known.socket() == worker.local_socket => known.clone(),
            _ => local
                .insert(Arc::new(LocalWorker::new(worker.local_socket.clone())))
                .clone(),
        }
    }

    /// Waits until the worker is no longer in the map; for ever while it is.
    async fn left_the_map(&self, worker: &WorkerInfo) {
        let mut map = self.config.map.clone();
        let gone = map.wait_for(|map| !map.workers.iter().any(|w| w.id == worker.id));
        if gone.await.is_err() {
            std::future::pending::<()>().await; // the map is no longer followed
        }
        let map = self.config.map.borrow().clone();
        let known = |address: &str| map.workers.iter().any(|w| w.data_address == address);
        self.remote.retain(known);
    }

    async fn read_origin(
        &self,
        spec: &str,
        block: &Block,
        range: Range<u32>,
    ) -> Result<Vec<Bytes>, OriginError> {
        let unknown = || OriginError::unknown(block.origin);
        let spec: OriginSpec = serde_json::from_str(spec).map_err(|_| unknown())?;
        self.origins.add(spec);
        let origin = self.origins.get(block.origin).await.ok_or_else(unknown)??;
        let start = block.range().start;
        let wanted = start + u64::from(range.start)..start + u64::from(range.end);
        let mut stream = std::pin::pin!(weir_origin::fetch(
            origin,
            block.object.clone(),
            wanted,
            self.config.fetch.clone(),
            self.config.origin_metrics.clone(),
        ));
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.push(chunk?);
        }
        Ok(bytes)
    }
}
