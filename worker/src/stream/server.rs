//! The serving side of the block stream.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::{BLOCK_SIZE, Block, ClusterMap, ObjectRef, OriginId};
use weir_origin::OriginError;
use weir_proto::v1::{BlockLocation, BlockReply, BlockRequest, BlockSource, BlockStatus};

use super::link::{Frame, FrameError, Incoming, Link};
use super::socket::Socket;
use crate::metrics::ResultLabel;
use crate::segment::{self, CHUNK_SIZE};
use crate::worker::{Ahead, Cached, ReadError, Source, Worker};

/// Most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// Pause after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Requests of one connection that are worked on at once.
const AT_ONCE: usize = 24;
/// Bytes of requests that are worked on together; the last one may go beyond.
const MAX_TOGETHER: u64 = BLOCK_SIZE;

/// The form of a block's location that is written and understood here. Another one has another number: client and
/// worker may be of different versions.
pub const LOCATION_FORMAT: u32 = 2;

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

async fn accept_loop<S: Socket>(
    worker: Arc<Worker>,
    map: Map,
    stop: CancellationToken,
    accept: impl AsyncFn() -> io::Result<S>,
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
        let socket = match accepted {
            Ok(socket) => socket,
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
                result = serve_connection(&worker, &map, socket) => {
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

async fn serve_connection<S: Socket>(
    worker: &Arc<Worker>,
    map: &Map,
    socket: S,
) -> Result<(), FrameError> {
    let mut link = Link::of_server(socket);
    let (outgoing, mut incoming) = link.split();
    while let Some(first) = incoming.message().await? {
        let requests = with_others(first, &mut incoming)?;
        let epoch = map.borrow().epoch;
        let found = find_together(worker, &requests).await;
        let answers = requests
            .into_iter()
            .zip(found)
            .map(|(request, found)| answer(worker.clone(), request, found, epoch));
        let answers = stream::iter(answers).buffered(AT_ONCE);
        let mut answers = std::pin::pin!(answers.ready_chunks(AT_ONCE));
        while let Some(frames) = answers.next().await {
            outgoing.send(&frames).await?;
        }
    }
    Ok(())
}

/// A request with those that came together with it, up to a bound of their bytes.
fn with_others<S: Socket>(
    first: BlockRequest,
    incoming: &mut Incoming<'_, S>,
) -> Result<Vec<Request>, FrameError> {
    let mut bytes = u64::from(first.length);
    let mut requests = vec![Request::new::<S>(first)];
    while bytes < MAX_TOGETHER
        && let Some(next) = incoming.arrived::<BlockRequest>()?
    {
        bytes += u64::from(next.length);
        requests.push(Request::new::<S>(next));
    }
    Ok(requests)
}

/// A request, and the part of a block that it means, if it makes sense.
struct Request {
    message: BlockRequest,
    wanted: Option<(Block, Range<u32>)>,
}

impl Request {
    fn new<S: Socket>(mut message: BlockRequest) -> Self {
        if !S::CARRIES_DESCRIPTORS {
            message.location_format = 0;
            message.report_damaged = false;
            (message.reads_before, message.bytes_before) = (0, 0);
        }
        let wanted = parse(&message);
        Self { message, wanted }
    }
}

/// The whole blocks among the parts of blocks that several requests mean, as far as they are cached.
async fn find_together(worker: &Worker, requests: &[Request]) -> Vec<Option<Cached>> {
    let mut found = vec![None; requests.len()];
    let whole = requests.iter().enumerate().filter_map(|(at, request)| {
        let (block, range) = request.wanted.as_ref()?;
        let takes_descriptor = request.message.location_format == LOCATION_FORMAT;
        let is_whole = *range == (0..block.len()) && !takes_descriptor;
        is_whole.then(|| (at, (block.key(), block.len())))
    });
    let (places, blocks): (Vec<usize>, Vec<_>) = whole.unzip();
    if blocks.len() < 2 {
        return found; // nothing is gained
    }
    for (at, bytes) in places.into_iter().zip(worker.find_whole(&blocks).await) {
        found[at] = bytes;
    }
    found
}

/// The answer to a request, for which something may have been found already.
async fn answer(worker: Arc<Worker>, request: Request, found: Option<Cached>, epoch: u64) -> Frame {
    let failed = |status: BlockStatus, message: String| {
        count(&worker, "error");
        let reply = BlockReply {
            status: status.into(),
            message,
            epoch,
            ..BlockReply::default()
        };
        Frame::new(&reply, Vec::new())
    };
    let message = &request.message;
    let Some((block, range)) = &request.wanted else {
        return failed(
            BlockStatus::BadRequest,
            format!(
                "no bytes {}+{} in block {} of {:?}",
                message.offset, message.length, message.block_index, message.key
            ),
        );
    };
    let count_read = |source, bytes| {
        count(&worker, "ok");
        let reads = worker.metrics().dataset(&message.dataset);
        reads.count(source, bytes);
    };
    if message.reads_before > 0 {
        let reads = worker.metrics().dataset(&message.dataset);
        reads.count_many(Source::Ssd, message.reads_before, message.bytes_before);
    }
    if message.report_damaged {
        worker.report_damaged(block.key()).await;
    }
    if message.ahead {
        let reply = BlockReply {
            status: BlockStatus::Ok.into(),
            source: match worker.fill_ahead(block).await {
                Ahead::Begun => BlockSource::Origin,
                Ahead::Needless => BlockSource::Ssd,
                Ahead::Unwanted => BlockSource::Unspecified,
            }
            .into(),
            epoch,
            ..BlockReply::default()
        };
        count(&worker, "ok");
        return Frame::new(&reply, Vec::new());
    }
    if message.location_format == LOCATION_FORMAT
        && let Some(location) = worker.locate(&block.key())
    {
        count_read(Source::Ssd, u64::from(message.length));
        return at_location(&location, epoch);
    }
    let outcome = match found {
        Some(found) => Ok(found),
        None => worker.read(block, range.clone()).await,
    };
    match outcome {
        Ok((payload, source)) => {
            let length: usize = payload.iter().map(Bytes::len).sum();
            count_read(source, length as u64);
            let reply = BlockReply {
                status: BlockStatus::Ok.into(),
                length: length as u32,
                source: match source {
                    Source::Memory => BlockSource::Memory,
                    Source::Ssd => BlockSource::Ssd,
                    Source::Origin => BlockSource::Origin,
                }
                .into(),
                epoch,
                ..BlockReply::default()
            };
            Frame::new(&reply, payload)
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

/// The answer that a block lies in a file.
fn at_location(location: &segment::BlockLocation, epoch: u64) -> Frame {
    let reply = BlockReply {
        status: BlockStatus::Ok.into(),
        source: BlockSource::Ssd.into(),
        epoch,
        location: Some(BlockLocation {
            file_offset: location.offset,
            block_length: location.len,
            chunk_size: CHUNK_SIZE,
            checksums: location.checksums.to_vec(),
            page_checksums_offset: location.page_checksums_at.unwrap_or(0),
            direct: location.direct,
        }),
        ..BlockReply::default()
    };
    Frame::with_descriptor(&reply, location.file.clone())
}

fn count(worker: &Worker, result: &'static str) {
    let labels = ResultLabel { result };
    let requests = &worker.metrics().stream_requests;
    requests.get_or_create(&labels).inc();
}

/// The block and the range that a request means, if it makes sense.
fn parse(request: &BlockRequest) -> Option<(Block, Range<u32>)> {
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
    let has_length = (request.length == 0) == request.ahead && block.len() > 0;
    (has_length && end <= block.len()).then_some((block, request.offset..end))
}
