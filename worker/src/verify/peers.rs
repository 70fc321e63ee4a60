//! The other workers of a cluster: the blocks of an object are at several, and one of them compares.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;
use weir_core::{BlockKey, ClusterMap, WorkerId, WorkerInfo};
use weir_proto::v1;
use weir_proto::v1::worker_client::WorkerClient;
use weir_trust::{Dial, Role};

/// Longest wait for a connection, and for an answer that may have to wait for the origin.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const ORIGIN_DEADLINE: Duration = Duration::from_secs(20);
/// A worker answers once what it drops can no longer be read.
const DROP_DEADLINE: Duration = Duration::from_secs(12);
/// How often a worker is told that blocks are wrong, and the pauses between.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(3);
/// Workers that are being told at once that blocks are wrong, and connections that are kept.
pub(super) const MAX_TELLING: usize = 64;
const MAX_CHANNELS: usize = 256;

pub(crate) struct Peers {
    own: WorkerId,
    map: watch::Receiver<Arc<ClusterMap>>,
    dial: Dial,
    channels: Mutex<HashMap<String, Channel>>,
    telling: Semaphore,
}

impl Peers {
    pub(super) fn new(own: WorkerId, map: watch::Receiver<Arc<ClusterMap>>, dial: Dial) -> Self {
        Self {
            own,
            map,
            dial,
            channels: Mutex::default(),
            telling: Semaphore::new(MAX_TELLING),
        }
    }

    /// The worker that compares an object: the owner of its first block. `None` if it is this one.
    pub(super) fn collector(&self, id: &BlockKey) -> Option<WorkerInfo> {
        let map = self.map.borrow();
        map.owner(id).filter(|owner| owner.id != self.own).cloned()
    }

    /// Whether this worker is to fetch a block.
    pub(super) fn owns(&self, key: &BlockKey) -> bool {
        self.collector(key).is_none()
    }

    /// The map as it is now.
    pub(super) fn map(&self) -> Arc<ClusterMap> {
        self.map.borrow().clone()
    }

    /// The workers of a map without this one.
    pub(super) fn others<'a>(
        &'a self,
        map: &'a ClusterMap,
    ) -> impl Iterator<Item = &'a WorkerInfo> {
        map.workers().iter().filter(|worker| worker.id != self.own)
    }

    fn client(&self, worker: &WorkerInfo) -> Result<WorkerClient<Channel>, Status> {
        let address = &worker.control_address;
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(WorkerClient::new(channel.clone()));
        }
        let channel = self.dial.channel(address, Role::Worker, CONNECT_DEADLINE);
        let channel = channel.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let map = self.map.borrow();
        channels.retain(|known, _| map.workers().iter().any(|w| w.control_address == *known));
        if channels.len() >= MAX_CHANNELS {
            channels.clear(); // calls that are under way keep theirs
        }
        channels.insert(address.clone(), channel.clone());
        Ok(WorkerClient::new(channel))
    }

    /// Tells the worker that compares an object of blocks, or asks it for the checksum alone.
    pub(super) async fn report(
        &self,
        worker: &WorkerInfo,
        request: v1::ReportChecksumsRequest,
    ) -> Result<v1::ReportChecksumsReply, Status> {
        let mut client = self.client(worker)?;
        let reply = client.report_checksums(request);
        let reply = timeout(ORIGIN_DEADLINE, reply).await.map_err(late)?;
        Ok(reply?.into_inner())
    }

    /// Tells a worker that blocks are wrong, some times if it does not answer.
    pub(super) async fn drop_blocks(&self, worker: &WorkerInfo, request: &v1::DropBlocksRequest) {
        for attempt in 1..=ATTEMPTS {
            let told = async {
                let _turn = self.telling.acquire().await;
                let mut client = self.client(worker)?;
                let reply = client.drop_blocks(request.clone());
                timeout(DROP_DEADLINE, reply).await.map_err(late)?
            };
            let Err(status) = told.await else { return };
            let is_there = self.map().worker(&worker.id).is_some();
            if attempt == ATTEMPTS || !is_there || status.code() == tonic::Code::Unimplemented {
                tracing::warn!(
                    worker = %worker.id, message = status.message(),
                    "a worker could not be told that it may hold wrong bytes"
                );
                return;
            }
            sleep(PAUSE).await;
        }
    }
}

fn late<T>(_: T) -> Status {
    Status::deadline_exceeded("no answer in time")
}
