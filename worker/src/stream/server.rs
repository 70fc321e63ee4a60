//! The serving side of the block stream.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::{Block, ClusterMap, ObjectRef, OriginId};
use weir_origin::OriginError;
use weir_proto::v1::{BlockLocation, BlockReply, BlockRequest, BlockSource, BlockStatus};

use super::frame::{FrameError, read_message, send_descriptor, write_message};
use crate::metrics::ResultLabel;
use crate::segment::CHUNK_SIZE;
use crate::worker::{ReadError, Source, Worker};

/// Most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// Pause after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Map = watch::Receiver<Arc<ClusterMap>>;

/// Serves clients on other machines until `stop`.
pub async fn serve_tcp(
    worker: Arc<Worker>,
    map: Map,
    listener: TcpListener,
    stop: CancellationToken,
) {
    accept_loop(worker, map, stop, async || {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
    .await;
}

/// Serves clients on this machine until `stop`.
pub async fn serve_local(
    worker: Arc<Worker>,
    map: Map,
    listener: UnixListener,
    stop: CancellationToken,
) {
    accept_loop(worker, map, stop, async || Ok(listener.accept().await?.0)).await;
}

/// A connection, of which only the local kind can carry descriptors.
trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn answer_descriptor(
        &mut self,
        reply: &BlockReply,
        file: &(impl AsFd + Sync),
    ) -> impl Future<Output = Option<io::Result<()>>> + Send;
}

impl Connection for TcpStream {
    async fn answer_descriptor(
        &mut self,
        _: &BlockReply,
        _: &(impl AsFd + Sync),
    ) -> Option<io::Result<()>> {
        None
    }
}

impl Connection for UnixStream {
    async fn answer_descriptor(
        &mut self,
        reply: &BlockReply,
        file: &(impl AsFd + Sync),
    ) -> Option<io::Result<()>> {
        Some(send_descriptor(self, reply, file.as_fd()).await)
    }
}

async fn accept_loop<C: Connection>(
    worker: Arc<Worker>,
    map: Map,
    stop: CancellationToken,
    accept: impl AsyncFn() -> io::Result<C>,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept() => accepted,
        };
        let connection = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (worker, map, stop) = (worker.clone(), map.clone(), stop.clone());
        connections.spawn(async move {
            let gauge = worker.metrics().stream_connections.clone();
            gauge.inc();
            tokio::select! {
                () = stop.cancelled() => {}
                result = serve_connection(&worker, &map, connection) => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a client's connection ended");
                    }
                }
            }
            gauge.dec();
            drop(slot);
        });
    }
    connections.close();
    connections.wait().await;
}

async fn serve_connection<C: Connection>(
    worker: &Arc<Worker>,
    map: &Map,
    mut connection: C,
) -> Result<(), FrameError> {
    while let Some(request) = read_message::<BlockRequest>(&mut connection).await? {
        let epoch = map.borrow().epoch;
        if let Some((block, _)) = parse(&request)
            && request.accept_descriptor
            && let Some(location) = locate(worker, &block, request.report_damaged).await
        {
            let reply = BlockReply {
                status: BlockStatus::Ok.into(),
                source: BlockSource::Ssd.into(),
                epoch,
                location: Some(BlockLocation {
                    file_offset: location.offset,
                    block_length: location.len,
                    chunk_size: CHUNK_SIZE,
                    checksums: location.checksums.to_vec(),
                    direct: location.direct,
                }),
                ..BlockReply::default()
            };
            if let Some(sent) = connection.answer_descriptor(&reply, &location.file).await {
                sent?;
                count(worker, &request, Source::Ssd, u64::from(request.length));
                continue;
            }
        }
        let (mut reply, payload) = answer(worker, &request).await;
        reply.epoch = epoch;
        write_message(&mut connection, &reply, &payload).await?;
    }
    Ok(())
}

async fn locate(
    worker: &Arc<Worker>,
    block: &Block,
    damaged: bool,
) -> Option<crate::segment::BlockLocation> {
    let key = block.key();
    if damaged {
        let worker = worker.clone();
        // The check reads the disk; if it panics, the read below finds out about the block by itself.
        let _ = tokio::task::spawn_blocking(move || worker.report_damaged(&key)).await;
        return None;
    }
    worker.locate(&key)
}

fn count(worker: &Worker, request: &BlockRequest, source: Source, bytes: u64) {
    worker
        .metrics()
        .dataset(&request.dataset)
        .count(source, bytes);
    let labels = ResultLabel { result: "ok" };
    worker
        .metrics()
        .stream_requests
        .get_or_create(&labels)
        .inc();
}

/// The block and the range that a request means, if it makes sense.
fn parse(request: &BlockRequest) -> Option<(Block, std::ops::Range<u32>)> {
    request.dataset.parse::<weir_core::DatasetName>().ok()?;
    let block = Block {
        origin: OriginId(request.origin),
        object: ObjectRef {
            key: request.key.as_str().into(),
            size: request.object_size,
            version: request.object_version.as_str().into(),
        },
        index: request.block_index,
    };
    let end = request.offset.checked_add(request.length)?;
    (request.length > 0 && end <= block.len()).then_some((block, request.offset..end))
}

async fn answer(worker: &Arc<Worker>, request: &BlockRequest) -> (BlockReply, Vec<Bytes>) {
    let failed = |status: BlockStatus, message: String| {
        let labels = ResultLabel { result: "error" };
        worker
            .metrics()
            .stream_requests
            .get_or_create(&labels)
            .inc();
        let reply = BlockReply {
            status: status.into(),
            message,
            ..BlockReply::default()
        };
        (reply, Vec::new())
    };
    let Some((block, range)) = parse(request) else {
        return failed(
            BlockStatus::BadRequest,
            format!(
                "no bytes {}+{} in block {} of {:?}",
                request.offset, request.length, request.block_index, request.key
            ),
        );
    };
    match worker.read(&block, range).await {
        Ok((payload, source)) => {
            let length: usize = payload.iter().map(Bytes::len).sum();
            count(worker, request, source, length as u64);
            let reply = BlockReply {
                status: BlockStatus::Ok.into(),
                length: length as u32,
                source: match source {
                    Source::Memory => BlockSource::Memory,
                    Source::Ssd => BlockSource::Ssd,
                    Source::Origin => BlockSource::Origin,
                }
                .into(),
                ..BlockReply::default()
            };
            (reply, payload)
        }
        Err(error) => {
            let status = match &error {
                ReadError::Origin(OriginError::Unknown { .. }) => BlockStatus::UnknownOrigin,
                ReadError::Origin(OriginError::Changed { .. }) => BlockStatus::Changed,
                ReadError::Origin(_) => BlockStatus::OriginError,
                ReadError::ShuttingDown => BlockStatus::Unavailable,
            };
            failed(status, error.to_string())
        }
    }
}
