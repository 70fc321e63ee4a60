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
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use weir_core::{Block, ClusterMap, NodeName, WorkerId, WorkerInfo};
use weir_origin::{FetchPolicy, OriginError, OriginMetrics, OriginSpec};
use weir_proto::v1::{BlockReply, BlockRequest, BlockSource, BlockStatus};
use weir_worker::Ahead;
use weir_worker::origins::Origins;
use weir_worker::stream::FrameError;

use crate::connection::{Answer, ConnectionError, Connections};
use crate::local::LocalWorkers;
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
    remote: Connections<TcpStream>,
    local: LocalWorkers,
    suspects: Mutex<HashMap<WorkerId, Instant>>,
    origins: Origins,
}

/// Why a worker gave no bytes.
enum Refusal {
    /// No other would.
    Final(BlockError),
    /// The next one is asked, for this reason.
    Next(&'static str, String),
}

/// What became of a block that was asked for with others.
pub(crate) enum Whole {
    /// It is at its place, and came from there.
    Read(ReadSource),
    /// It cannot be read; whoever asks for it is told why.
    Refused,
    /// It is to be read alone.
    Alone,
}

/// Blocks that are asked of one worker together.
struct Together<'a, 'p> {
    worker: &'a WorkerInfo,
    requests: Vec<BlockRequest>,
    /// Their numbers, and where their bytes go.
    numbers: Vec<usize>,
    places: Vec<&'p mut [u8]>,
}

impl ClusterReader {
    /// A reader without connections.
    pub fn new(config: ClusterConfig) -> Self {
        Self {
            config,
            remote: Connections::default(),
            local: LocalWorkers::new(),
            suspects: Mutex::default(),
            origins: Origins::new(None),
        }
    }

    /// The bytes of `range` of a block when its place on this machine's SSD is known. Blocks on the disk.
    pub(crate) fn read_known(&self, block: &Block, range: &Range<u32>) -> Option<Bytes> {
        self.local.read_known(|| block.key(), range)
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
        let request = request(map.epoch, dataset, block, &range);
        let mut last = String::from("no worker is in the cluster map");
        for worker in map.owners(&block.key(), MAX_OWNERS) {
            if self.is_suspect(&worker.id) {
                last = format!("worker {} did not answer a moment ago", worker.id);
                continue;
            }
            match self.ask(worker, block, &request).await {
                Ok((bytes, source)) => return Ok((vec![bytes], source)),
                Err(Refusal::Final(error)) => return Err(error),
                Err(Refusal::Next(reason, message)) => {
                    self.passed_over(worker, 1, reason, &message);
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

    /// Wishes that a block's owner fetch it before anybody reads it. What goes wrong has no effect on reads.
    pub(crate) async fn fill_ahead(&self, dataset: &str, block: &Block) -> Ahead {
        let map = self.config.map.borrow().clone();
        let Some(owner) = map.owner(&block.key()) else {
            return Ahead::Unwanted;
        };
        if self.is_suspect(&owner.id) {
            return Ahead::Unwanted;
        }
        let request = BlockRequest {
            ahead: true,
            ..request(map.epoch, dataset, block, &(0..0))
        };
        let asked = self.remote.request(&owner.data_address, &request);
        let reply = match self.unless_it_leaves(owner, asked).await {
            Some(Ok((Answer { reply, .. }, _))) => reply,
            Some(Err(error)) => {
                tracing::debug!(worker = %owner.id, %error, "a wish was not answered");
                return Ahead::Unwanted;
            }
            None => return Ahead::Unwanted,
        };
        self.compare_epoch(&reply);
        // A worker that knows no wishes answers that they make no sense.
        match (reply.status(), reply.source()) {
            (BlockStatus::Ok, BlockSource::Origin) => Ahead::Begun,
            (BlockStatus::Ok, BlockSource::Memory | BlockSource::Ssd) => Ahead::Needless,
            _ => Ahead::Unwanted,
        }
    }

    /// Asks for a newer map when a worker has one.
    fn compare_epoch(&self, reply: &BlockReply) {
        if reply.epoch > self.config.map.borrow().epoch {
            self.config.hurry.notify_one();
        }
    }

    /// Counts reads that the next worker or the origin is asked for.
    fn passed_over(&self, worker: &WorkerInfo, reads: usize, reason: &'static str, message: &str) {
        let failovers = &self.config.metrics.failovers;
        let label = ReasonLabel { reason };
        failovers.get_or_create(&label).inc_by(reads as u64);
        tracing::debug!(worker = %worker.id, reason, message, "the next worker is asked");
    }

    fn is_suspect(&self, worker: &WorkerId) -> bool {
        let mut suspects = self.suspects.lock();
        suspects.retain(|_, until| *until > Instant::now());
        suspects.contains_key(worker)
    }

    async fn ask(
        &self,
        worker: &WorkerInfo,
        block: &Block,
        request: &BlockRequest,
    ) -> Result<(Bytes, ReadSource), Refusal> {
        let near = self.is_near(worker);
        let answer = async {
            if near {
                let (socket, key) = (&worker.local_socket, block.key());
                let local = self.local.request(socket, key, request.clone());
                if let Ok(answer) = local.await {
                    return Ok(answer);
                }
            }
            let remote = self.remote.request(&worker.data_address, request).await;
            remote.map(|(answer, bytes)| (answer.reply, bytes))
        };
        let (reply, bytes) = self.while_in_the_map(worker, answer).await?;
        Ok((bytes, self.judge(worker, near, reply)?))
    }

    /// Reads whole blocks to their places, all of one worker's with one exchange.
    pub(crate) async fn read_whole(
        &self,
        dataset: &str,
        blocks: impl IntoIterator<Item = (Block, &mut [u8])>,
    ) -> Vec<Whole> {
        let map = self.config.map.borrow().clone();
        let mut groups: HashMap<&WorkerId, Together<'_, '_>> = HashMap::new();
        let mut outcomes = Vec::new();
        for (number, (block, place)) in blocks.into_iter().enumerate() {
            outcomes.push(Whole::Alone);
            let Some(worker) = map.owner(&block.key()) else {
                continue;
            };
            if self.is_suspect(&worker.id) {
                continue;
            }
            let group = groups.entry(&worker.id).or_insert_with(|| Together {
                worker,
                requests: Vec::new(),
                numbers: Vec::new(),
                places: Vec::new(),
            });
            let whole = 0..block.len();
            group
                .requests
                .push(request(map.epoch, dataset, &block, &whole));
            group.numbers.push(number);
            group.places.push(place);
        }
        let asked = groups.into_values().map(|group| self.ask_together(group));
        for (number, outcome) in join_all(asked).await.into_iter().flatten() {
            outcomes[number] = outcome;
        }
        outcomes
    }

    /// Gives what became of each block, with its number.
    async fn ask_together(&self, group: Together<'_, '_>) -> Vec<(usize, Whole)> {
        let Together {
            worker,
            requests,
            numbers,
            mut places,
        } = group;
        let near = self.is_near(worker);
        let answers = async {
            if near {
                let socket = &worker.local_socket;
                let local = self
                    .local
                    .request_together(socket, requests.clone(), &mut places);
                if let Ok(replies) = local.await {
                    return Ok(replies);
                }
            }
            let address = &worker.data_address;
            let remote = self
                .remote
                .request_together(address, &requests, &mut places)
                .await?;
            Ok(remote.into_iter().map(|answer| answer.reply).collect())
        };
        let replies = match self.while_in_the_map(worker, answers).await {
            Ok(replies) => replies,
            Err(refusal) => {
                if let Refusal::Next(reason, message) = refusal {
                    self.passed_over(worker, requests.len(), reason, &message);
                }
                return Vec::new();
            }
        };
        let answered = numbers.into_iter().zip(&requests).zip(replies);
        let outcomes = answered.map(|((number, request), reply)| {
            let is_here = reply.length == request.length;
            let outcome = match self.judge(worker, near, reply) {
                Ok(source) if is_here => Whole::Read(source),
                Err(Refusal::Final(_)) => Whole::Refused,
                Ok(_) | Err(Refusal::Next(..)) => Whole::Alone,
            };
            (number, outcome)
        });
        outcomes.collect()
    }

    fn is_near(&self, worker: &WorkerInfo) -> bool {
        worker.node == self.config.node
    }

    /// Waits for a worker's answer for as long as it is in the cluster map; `None` when it has left.
    async fn unless_it_leaves<T>(
        &self,
        worker: &WorkerInfo,
        answer: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            answer = answer => Some(answer),
            () = self.left_the_map(worker) => None,
        }
    }

    /// As [`Self::unless_it_leaves`]; readers avoid a worker that does not answer for a while.
    async fn while_in_the_map<T>(
        &self,
        worker: &WorkerInfo,
        answer: impl Future<Output = Result<T, ConnectionError>>,
    ) -> Result<T, Refusal> {
        let Some(outcome) = self.unless_it_leaves(worker, answer).await else {
            let message = format!("worker {} left the cluster", worker.id);
            return Err(Refusal::Next("left", message));
        };
        outcome.map_err(|error| {
            let until = Instant::now() + SUSPECT_FOR;
            self.suspects.lock().insert(worker.id.clone(), until);
            self.config.hurry.notify_one();
            let reason = match error {
                ConnectionError::Io(_)
                | ConnectionError::Closed
                | ConnectionError::Frame(FrameError::Io(_)) => "unreachable",
                ConnectionError::Frame(_) | ConnectionError::Length(..) => "protocol",
            };
            Refusal::Next(reason, format!("worker {}: {error}", worker.id))
        })
    }

    /// Where the bytes that came with a reply are from.
    fn judge(
        &self,
        worker: &WorkerInfo,
        near: bool,
        reply: BlockReply,
    ) -> Result<ReadSource, Refusal> {
        self.compare_epoch(&reply);
        match reply.status() {
            BlockStatus::Ok => Ok(match (reply.source(), near) {
                (BlockSource::Origin, _) => ReadSource::Origin,
                (_, false) => ReadSource::Remote,
                (BlockSource::Memory, true) => ReadSource::Memory,
                (_, true) => ReadSource::Ssd,
            }),
            BlockStatus::Changed => Err(Refusal::Final(BlockError::Changed(reply.message))),
            BlockStatus::OriginError => {
                let message = format!("worker {}: {}", worker.id, reply.message);
                Err(Refusal::Final(BlockError::Failed(message)))
            }
            BlockStatus::UnknownOrigin => Err(Refusal::Next("unknown_origin", reply.message)),
            BlockStatus::Unavailable => Err(Refusal::Next("unavailable", reply.message)),
            BlockStatus::BadRequest | BlockStatus::Unspecified => {
                Err(Refusal::Next("protocol", reply.message))
            }
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
        let known = |socket: &str| map.workers.iter().any(|w| w.local_socket == socket);
        self.local.retain(known);
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
        let open = self.origins.get(block.origin).await.ok_or_else(unknown)??;
        let start = block.range().start;
        let wanted = start + u64::from(range.start)..start + u64::from(range.end);
        let mut stream = std::pin::pin!(weir_origin::fetch(
            open.origin,
            block.object.clone(),
            wanted,
            self.config.fetch.clone(),
            open.pace,
            self.config.origin_metrics.clone(),
        ));
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.push(chunk?);
        }
        Ok(bytes)
    }
}

fn request(epoch: u64, dataset: &str, block: &Block, range: &Range<u32>) -> BlockRequest {
    BlockRequest {
        epoch,
        dataset: dataset.to_owned(),
        origin: block.origin.0,
        key: block.object.key.to_string(),
        object_size: block.object.size,
        object_version: block.object.version.to_string(),
        block_index: block.index,
        offset: range.start,
        length: range.end - range.start,
        location_format: 0,
        report_damaged: false,
        reads_before: 0,
        bytes_before: 0,
        ahead: false,
    }
}

#[cfg(test)]
impl ClusterReader {
    /// A reader on the node `here` of a cluster that stays as it is.
    pub(crate) fn of_map(map: ClusterMap) -> Self {
        let mut registry = prometheus_client::registry::Registry::default();
        Self::new(ClusterConfig {
            node: "here".parse().unwrap(),
            map: watch::Sender::new(Arc::new(map)).subscribe(),
            hurry: Arc::default(),
            fetch: Arc::default(),
            metrics: ClientMetrics::register(&mut registry),
            origin_metrics: OriginMetrics::register(&mut registry),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use weir_core::{ObjectRef, OriginId};
    use weir_worker::stream::{Frame, Link};

    use super::*;

    const LENGTH: usize = 1000;

    /// A worker that answers to requests as their keys say, until one tells it to close the connection. It takes one
    /// connection.
    async fn script(listener: TcpListener) {
        let (socket, _) = listener.accept().await.unwrap();
        let mut link = Link::of_server(socket);
        let (outgoing, mut incoming) = link.split();
        while let Ok(Some(request)) = incoming.message::<BlockRequest>().await {
            let (status, length) = match request.key.as_str() {
                "close" => break,
                "refused" => (BlockStatus::OriginError, 0),
                "changed" => (BlockStatus::Changed, 0),
                "leaving" => (BlockStatus::Unavailable, 0),
                "nothing" => (BlockStatus::Ok, 0),
                _ => (BlockStatus::Ok, LENGTH),
            };
            let reply = BlockReply {
                status: status.into(),
                length: length as u32,
                ..BlockReply::default()
            };
            let payload = vec![Bytes::from(vec![7; length])];
            outgoing.send(&[Frame::new(&reply, payload)]).await.unwrap();
        }
    }

    async fn reader() -> ClusterReader {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let worker = WorkerInfo {
            id: "worker".parse().unwrap(),
            data_address: listener.local_addr().unwrap().to_string(),
            control_address: String::new(),
            node: "there".parse().unwrap(),
            local_socket: String::new(),
            weight: 1,
        };
        tokio::spawn(script(listener));
        let map = ClusterMap {
            epoch: 1,
            workers: vec![worker],
        };
        ClusterReader::of_map(map)
    }

    /// Reads blocks of these keys together, and tells of each what came of it.
    async fn read(reader: &ClusterReader, keys: &[&str]) -> Vec<&'static str> {
        let mut memory = vec![0; keys.len() * LENGTH];
        let blocks = keys.iter().map(|key| Block {
            origin: OriginId(1),
            object: ObjectRef {
                key: (*key).into(),
                size: LENGTH as u64,
                version: "1".into(),
            },
            index: 0,
        });
        let places = memory.chunks_exact_mut(LENGTH);
        let outcomes = reader.read_whole("set", blocks.zip(places)).await;
        let outcomes = outcomes.iter().zip(memory.chunks_exact(LENGTH));
        let told = outcomes.map(|(outcome, bytes)| match outcome {
            Whole::Read(ReadSource::Remote) if bytes == [7; LENGTH] => "read",
            Whole::Read(_) => "wrong",
            Whole::Refused => "refused",
            Whole::Alone => "alone",
        });
        told.collect()
    }

    fn failovers(reader: &ClusterReader, reason: &'static str) -> u64 {
        let failovers = &reader.config.metrics.failovers;
        failovers.get_or_create(&ReasonLabel { reason }).get()
    }

    #[tokio::test]
    async fn each_block_of_a_batch_has_an_answer_of_its_own() {
        let reader = reader().await;
        let keys = ["a", "refused", "b", "leaving", "nothing", "changed", "c"];
        let wanted = [
            "read", "refused", "read", "alone", "alone", "refused", "read",
        ];
        assert_eq!(read(&reader, &keys).await, wanted);
        // The connection is still of use.
        assert_eq!(read(&reader, &["d"]).await, ["read"]);
    }

    #[tokio::test]
    async fn a_batch_whose_worker_goes_away_is_as_many_fail_overs() {
        let reader = reader().await;
        assert_eq!(read(&reader, &["a", "close", "b"]).await, ["alone"; 3]);
        assert_eq!(failovers(&reader, "unreachable"), 3);
        // It is passed over for a moment, without being asked.
        assert_eq!(read(&reader, &["a"]).await, ["alone"]);
        assert_eq!(failovers(&reader, "unreachable"), 3);
    }
}
