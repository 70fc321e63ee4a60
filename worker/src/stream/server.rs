//! The serving side of the block stream.

use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::{BLOCK_SIZE, Block, BlockKey, ClusterMap, LogLimit, ObjectRef, OriginId};
use weir_origin::OriginError;
use weir_proto::v1::{BlockLocation, BlockReply, BlockRequest, BlockSource, BlockStatus};
use weir_segment::CHUNK_SIZE;
use weir_trust::{Caller, Role, Simulated};
use weir_wire::{
    Frame, FrameError, Incoming, LOCATION_FORMAT, OpeningError, Outgoing, STREAM_VERSION, Socket,
    checksums, keep_alive,
};

use super::admission::{Admission, Admitted, admit_local, admit_simulated};
use super::connections::{Connections, Limits, Place};
use super::refusals::{NotAdmitted, Refusals};
use super::turns::{SLOW, Turn};
use crate::copies::Asker;
use crate::demand::ObjectId;
use crate::metrics::ResultLabel;
use crate::read_source::Source;
use crate::sources::Claim;
use crate::worker::{Cached, PrefetchAnswer, ReadError, Worker};

/// Pause after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Workers whose silence a request may tell of; a reader asks few others.
const MAX_SILENT: usize = 16;
/// How often idle connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);
/// How often a client is told that its requests are worked on: it gives up on a worker that says nothing for some times as
/// long.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How long requests may be said to be queued, counted anew from each answer: whatever holds them up for longer (a disk that
/// hangs) is better got around, so the worker falls silent. A fill is bounded by the origin's patience.
const LONGEST_QUEUED: Duration = Duration::from_secs(5);
/// Longest wait for a newer placement that a request names, before a block is fetched that others may have by that.
const LEARN_DEADLINE: Duration = Duration::from_millis(500);
/// Requests of one connection that are worked on at once.
const AT_ONCE: usize = 24;
/// Bytes of requests that are worked on together; the last one may go beyond.
const MAX_TOGETHER: u64 = BLOCK_SIZE;

/// Turns that a copy for many takes at once where what is sent is limited: many wait for it.
const TURNS_OF_COPIES: usize = 8;
/// Readers of a smaller part of a block are not spread: of 128 KiB of a whole one, which is what a kernel reads at least when it
/// reads ahead.
const LEAST_SPREAD: u64 = 32;

type Map = watch::Receiver<Arc<ClusterMap>>;

/// Serves those clients on other machines whom `admission` admits, until `stop`.
pub fn serve_tcp(
    worker: Arc<Worker>,
    map: Map,
    listener: TcpListener,
    admission: Arc<Admission>,
    stop: CancellationToken,
) -> BoxFuture<'static, ()> {
    async move {
        let listener = Arc::new(listener);
        let accept = || {
            let listener = listener.clone();
            async move {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                io::Result::Ok(stream)
            }
        };
        let epochs = map.clone();
        let admit = move |stream| {
            let (admission, epoch) = (admission.clone(), epochs.borrow().epoch());
            async move { admission.admit(stream, epoch).await }
        };
        accept_loop(worker, map, Limits::default(), stop, accept, admit).await;
    }
    .boxed()
}

/// Serves processes of the worker's own user, and root's, on this machine until `stop`.
pub fn serve_local(
    worker: Arc<Worker>,
    map: Map,
    listener: UnixListener,
    stop: CancellationToken,
) -> BoxFuture<'static, ()> {
    async move {
        let listener = Arc::new(listener);
        let accept = || {
            let listener = listener.clone();
            async move { listener.accept().await.map(|(stream, _)| stream) }
        };
        let admit = |stream| std::future::ready(admit_local(stream));
        accept_loop(worker, map, Limits::default(), stop, accept, admit).await;
    }
    .boxed()
}

/// Serves everybody in a network that is simulated, until `stop`. `accept` gives connections, and where they come from.
pub fn serve_simulated<F>(
    worker: Arc<Worker>,
    map: Map,
    accept: impl Fn() -> F + Send + Sync + 'static,
    stop: CancellationToken,
) -> BoxFuture<'static, ()>
where
    F: Future<Output = io::Result<(Box<dyn Simulated>, IpAddr)>> + Send + 'static,
{
    async move {
        let admit = |(stream, from)| std::future::ready(Ok(admit_simulated(stream, from)));
        accept_loop(worker, map, Limits::default(), stop, accept, admit).await;
    }
    .boxed()
}

async fn accept_loop<A, S, F, B>(
    worker: Arc<Worker>,
    map: Map,
    limits: Limits,
    stop: CancellationToken,
    accept: impl Fn() -> B,
    admit: impl Fn(A) -> F,
) where
    B: Future<Output = io::Result<A>>,
    S: Socket,
    F: Future<Output = Result<Admitted<S>, OpeningError>> + Send + 'static,
{
    let open = Connections::new(limits);
    let connections = TaskTracker::new();
    let refusals = Arc::<Refusals>::default();
    let failures = LogLimit::default();
    let sweep = async {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            open.close_idle();
        }
    };
    let accept = async {
        loop {
            let socket = match accept().await {
                Ok(socket) => socket,
                Err(error) => {
                    if let Some(left_out) = failures.line() {
                        tracing::warn!(%error, left_out, "a connection could not be accepted");
                    }
                    open.close_idlest(); // its descriptor may be what is missing
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (unknown, admitted) = (open.begin(), admit(socket));
            let (open, refusals) = (open.clone(), refusals.clone());
            let (worker, map, stop) = (worker.clone(), map.clone(), stop.clone());
            connections.spawn(async move {
                let find_place = async {
                    let admitted = admitted.await?;
                    let place = open.place(&admitted.caller).await;
                    Ok::<_, NotAdmitted>((place.ok_or(NotAdmitted::Crowded)?, admitted))
                };
                let outcome = tokio::select! {
                    outcome = find_place => outcome,
                    () = unknown.close().cancelled() => Err(NotAdmitted::Crowded),
                    () = stop.cancelled() => return,
                };
                drop(unknown);
                let (place, admitted) = match outcome {
                    Ok(found) => found,
                    Err(why) => return refusals.note(&why, worker.metrics()),
                };
                let gauge = worker.metrics().stream_connections.clone();
                gauge.inc();
                if let Err(error) = serve_connection(&worker, &map, admitted, &place, &stop).await {
                    tracing::debug!(%error, "a client's connection ended");
                }
                gauge.dec();
            });
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = sweep => {}
        () = accept => {}
    }
    connections.close();
    connections.wait().await;
}

async fn serve_connection<S: Socket>(
    worker: &Arc<Worker>,
    map: &Map,
    admitted: Admitted<S>,
    place: &Place,
    stop: &CancellationToken,
) -> Result<(), FrameError> {
    let Admitted {
        mut link,
        mut version,
        caller,
    } = admitted;
    let (outgoing, mut incoming) = link.split();
    let outgoing = outgoing.paced(worker.pacer().filter(|_| !S::CARRIES_DESCRIPTORS));
    let mut ended = std::pin::pin!(certificate_ends(&caller));
    let mut closed = std::pin::pin!(place.close().cancelled());
    let mut stopped = std::pin::pin!(stop.cancelled());
    loop {
        place.idle();
        let first: Option<BlockRequest> = tokio::select! {
            biased;
            // However much it asks. Whoever has a new one connects again.
            () = &mut ended => return Ok(()),
            first = incoming.message() => first?,
            () = &mut closed => return Ok(()),
            () = &mut stopped => return Ok(()),
        };
        let Some(first) = first else { return Ok(()) };
        place.busy();
        if first.stream_version > 0 {
            version = first.stream_version.min(STREAM_VERSION);
            let epoch = map.borrow().epoch();
            outgoing.send(&[hello(epoch)]).await?;
            continue;
        }
        let requests = with_others(worker, first, version, &mut incoming)?;
        // Who shares this machine takes nothing of what others want.
        let _answering = (!S::CARRIES_DESCRIPTORS).then(|| worker.demand().answering());
        let epoch = map.borrow().epoch();
        let client = Client {
            outgoing: &outgoing,
            version,
            caller: &caller,
            stop,
        };
        if !answer_together(worker, requests, epoch, &client).await? {
            return Ok(()); // the worker is stopping
        }
    }
}

/// Waits until the certificate ends that a connection was opened with; for ever if there was none.
async fn certificate_ends(caller: &Caller) {
    match caller.peer() {
        Some(peer) => tokio::time::sleep(peer.time_left()).await,
        None => std::future::pending().await,
    }
}

fn hello(epoch: u64) -> Frame {
    let reply = BlockReply {
        status: BlockStatus::Ok.into(),
        epoch,
        stream_version: STREAM_VERSION,
        ..BlockReply::default()
    };
    Frame::new(&reply, Vec::new())
}

/// Answers requests in their order. False when the worker stops: those that have no answer yet are told so.
async fn answer_together<S: Socket>(
    worker: &Arc<Worker>,
    requests: Vec<Request>,
    epoch: u64,
    client: &Client<'_, S>,
) -> io::Result<bool> {
    let keys: Vec<Option<BlockKey>> = requests.iter().map(Request::key).collect();
    let mut answered = 0;
    let status = |answered: usize| match keys.get(answered) {
        Some(Some(key)) if worker.is_on_its_way(key) => Waits::ForTheOrigin,
        _ => Waits::Here,
    };
    // Those who wait for an origin, or to be known, do so without a turn: what is on its way is bounded by the fills.
    let is_held = requests.iter().all(|request| request.is_held(worker));
    let bytes = requests.iter().map(Request::bytes);
    let bytes: u64 = bytes.sum();
    let dataset = requests.first().map(|first| first.message.dataset.clone());
    let dataset = dataset.unwrap_or_default();
    // Readers may say that, too.
    let for_copy = client.caller.is_one_of(&[Role::Worker])
        && requests
            .iter()
            .all(|each| each.message.for_copy || each.message.as_filler);
    let turns = if for_copy { TURNS_OF_COPIES } else { 1 };
    let take = async |bytes: u64| {
        if S::CARRIES_DESCRIPTORS || bytes == 0 {
            return None;
        }
        if for_copy {
            return Some(worker.turns().take_first(bytes));
        }
        Some(worker.turns().take(&dataset, bytes).await)
    };
    let queued = || {
        if worker.turns().is_moving() {
            Waits::ForOthers
        } else {
            Waits::Here
        }
    };
    let mut turn = None;
    if is_held {
        match client.wait_for(take(bytes), queued).await? {
            Some(taken) => turn = taken,
            None => return client.stopping(requests.len(), epoch).await,
        }
    }
    let finding = find_together(worker, &requests);
    let Some(found) = client.wait_for(finding, || status(0)).await? else {
        return client.stopping(requests.len(), epoch).await;
    };
    let answers = requests
        .into_iter()
        .zip(found)
        .map(|(request, found)| answer(worker.clone(), request, found, epoch, client.caller));
    let answers = stream::iter(answers).buffered(AT_ONCE);
    let mut answers = std::pin::pin!(answers.ready_chunks(AT_ONCE));
    while answered < keys.len() {
        let next = client.wait_for(answers.next(), || status(answered));
        match unless_slow(next, turn.as_mut()).await? {
            Some(Some(frames)) => {
                if !is_held {
                    let bytes = frames.iter().map(Frame::payload_bytes).sum();
                    match client.wait_for(take(bytes), queued).await? {
                        Some(taken) => turn = taken,
                        None => return client.stopping(keys.len() - answered, epoch).await,
                    }
                }
                client.send(&frames, turns, turn.as_mut()).await?;
                answered += frames.len();
                if !is_held {
                    turn = None; // the next may have to wait for the origin
                }
            }
            Some(None) => break,
            None => return client.stopping(keys.len() - answered, epoch).await,
        }
    }
    Ok(true)
}

/// Does some work. Others may have its turn if it takes long.
async fn unless_slow<T>(work: impl Future<Output = T>, turn: Option<&mut Turn>) -> T {
    let mut work = std::pin::pin!(work);
    if let Some(turn) = turn {
        if let Ok(done) = tokio::time::timeout(SLOW, &mut work).await {
            return done;
        }
        turn.slow();
    }
    work.await
}

/// What a client waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// A block that is on its way from the origin.
    ForTheOrigin,
    /// Its turn among others, who get theirs.
    ForOthers,
    /// The disk, or a turn that does not come.
    Here,
}

/// A client that waits for answers.
struct Client<'a, S> {
    outgoing: &'a Outgoing<'a, S>,
    /// The version of the stream that it speaks.
    version: u32,
    /// Whose it is.
    caller: &'a Caller,
    stop: &'a CancellationToken,
}

impl<S: Socket> Client<'_, S> {
    /// Sends answers. Others may have their turn if the client is slow to take them.
    async fn send(
        &self,
        frames: &[Frame],
        turns: usize,
        turn: Option<&mut Turn>,
    ) -> io::Result<()> {
        let mut sent = std::pin::pin!(self.outgoing.send_in_turns(frames, turns));
        let Some(turn) = turn else { return sent.await };
        loop {
            if let Ok(sent) = tokio::time::timeout(SLOW, &mut sent).await {
                return sent;
            }
            if self.outgoing.stalled() >= SLOW {
                turn.slow();
                return sent.await;
            }
        }
    }

    /// Does some work, and tells the client of it for as long as that takes. `None` when the worker stops.
    async fn wait_for<T>(
        &self,
        work: impl Future<Output = T>,
        waits: impl Fn() -> Waits,
    ) -> io::Result<Option<T>> {
        let mut work = std::pin::pin!(work);
        let mut stopped = std::pin::pin!(self.stop.cancelled());
        let mut queued = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(Some(done)),
                () = &mut stopped => return Ok(None),
                () = tokio::time::sleep(PROGRESS_INTERVAL), if self.version > 0 => {}
            }
            let waits = waits();
            if waits == Waits::Here {
                queued += PROGRESS_INTERVAL;
                if queued > LONGEST_QUEUED {
                    continue;
                }
            }
            let status = match waits {
                Waits::ForTheOrigin => BlockStatus::Filling,
                Waits::ForOthers | Waits::Here => BlockStatus::Queued,
            };
            let reply = BlockReply {
                status: status.into(),
                ..BlockReply::default()
            };
            self.outgoing
                .send(&[Frame::new(&reply, Vec::new())])
                .await?;
        }
    }

    /// Tells the client of so many requests that others have to answer them.
    async fn stopping(&self, requests: usize, epoch: u64) -> io::Result<bool> {
        let reply = BlockReply {
            status: BlockStatus::Unavailable.into(),
            message: ReadError::ShuttingDown.to_string(),
            epoch,
            ..BlockReply::default()
        };
        let frames = (0..requests).map(|_| Frame::new(&reply, Vec::new()));
        self.outgoing.send(&frames.collect::<Vec<_>>()).await?;
        Ok(false)
    }
}

/// A request with those that came together with it, up to a bound of their bytes.
fn with_others<S: Socket>(
    worker: &Worker,
    first: BlockRequest,
    version: u32,
    incoming: &mut Incoming<'_, S>,
) -> Result<Vec<Request>, FrameError> {
    let mut bytes = u64::from(first.length);
    let mut requests = vec![Request::new::<S>(worker, first, version)];
    while bytes < MAX_TOGETHER
        && let Some(next) = incoming.arrived::<BlockRequest>()?
    {
        bytes += u64::from(next.length);
        requests.push(Request::new::<S>(worker, next, version));
    }
    Ok(requests)
}

/// A request, and the part of a block that it means, if it makes sense.
struct Request {
    message: BlockRequest,
    wanted: Option<(Block, Range<u32>)>,
    /// Whether the dataset that it names may have such an object.
    claim: Claim,
    /// Over how many further workers the reader is to spread.
    spread: u32,
    /// Whether it is to go to one of those even if it would choose this one.
    is_passed_on: bool,
    /// The version of the stream that the answer is in.
    version: u32,
}

impl Request {
    fn new<S: Socket>(worker: &Worker, mut message: BlockRequest, version: u32) -> Self {
        if S::CARRIES_DESCRIPTORS {
            message.reader = 0; // nobody is nearer
        } else {
            message.location_format = 0;
            message.report_damaged &= version > 0;
            (message.reads_before, message.bytes_before) = (0, 0);
        }
        let wanted = parse(&message);
        let origin = OriginId(message.origin);
        let origins = worker.origins();
        let claim = origins.claim(&message.dataset, origin, &message.key);
        let spread = match &wanted {
            Some((block, _)) if claim == Claim::Inside => spread_of(worker, &message, block),
            _ => 0,
        };
        // So this worker sends as much as it can, and no reader waits for it while others could serve.
        let is_passed_on = spread > 0
            && message.copies != u32::MAX
            && worker.turns().would_wait(message.length.into());
        Self {
            message,
            wanted,
            claim,
            spread,
            is_passed_on,
            version,
        }
    }

    /// Whether its reader is to go to another worker, or to come again.
    fn is_spread(&self) -> bool {
        self.spread > self.message.copies || self.is_passed_on
    }

    /// Whether its answer is to be had at once.
    fn is_held(&self, worker: &Worker) -> bool {
        match self.key() {
            Some(key) => self.claim == Claim::Inside && worker.holds(&key),
            None => true, // it makes no sense
        }
    }

    /// Bytes of its answer.
    fn bytes(&self) -> u64 {
        match &self.wanted {
            Some((_, range)) if !self.is_spread() => u64::from(range.end - range.start),
            _ => 0,
        }
    }

    fn key(&self) -> Option<BlockKey> {
        self.wanted.as_ref().map(|(block, _)| block.key())
    }
}

/// The whole blocks among the parts of blocks that several requests mean, as far as they are cached.
async fn find_together(worker: &Worker, requests: &[Request]) -> Vec<Option<Cached>> {
    let mut found = vec![None; requests.len()];
    let whole = requests.iter().enumerate().filter_map(|(at, request)| {
        let (block, range) = request.wanted.as_ref()?;
        if request.claim != Claim::Inside || request.is_spread() {
            return None;
        }
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
async fn answer(
    worker: Arc<Worker>,
    request: Request,
    found: Option<Cached>,
    epoch: u64,
    caller: &Caller,
) -> Frame {
    let message = &request.message;
    let placements = worker.placements();
    let refused = if request.wanted.is_some() && request.claim != Claim::Inside {
        refuse(&worker, message, request.claim, caller).await
    } else {
        None
    };
    // What each answer says.
    let known = BlockReply {
        epoch,
        copies: request.spread,
        // Strangers may name any version: the master is not asked because of theirs.
        placement_version: if request.wanted.is_some() && refused.is_none() {
            placements.compare(&message.dataset, message.placement_version)
        } else {
            placements.version(&message.dataset)
        },
        ..BlockReply::default()
    };
    let without_bytes = |result, status: BlockStatus, message: String| {
        count(&worker, result);
        let reply = BlockReply {
            status: status.into(),
            message,
            ..known.clone()
        };
        Frame::new(&reply, Vec::new())
    };
    let Some((block, range)) = &request.wanted else {
        let message = format!(
            "no bytes {}+{} in block {} of {:?}",
            message.offset, message.length, message.block_index, message.key
        );
        return without_bytes("error", BlockStatus::BadRequest, message);
    };
    if let Some((status, message)) = refused {
        return without_bytes("refused", status, message);
    }
    let count_read = |source, bytes| {
        count(&worker, "ok");
        if message.held_only || message.for_copy || message.as_filler {
            worker.metrics().handed_over_bytes.inc_by(bytes);
            return; // it is no reader
        }
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
    let asker = Asker {
        is_worker: message.as_filler,
        has_other_view: message.epoch != epoch
            || message.placement_version != known.placement_version,
        silent: message.silent.iter().take(MAX_SILENT).cloned().collect(),
    };
    if message.ahead {
        let reply = BlockReply {
            status: BlockStatus::Ok.into(),
            source: match worker.prefetch_for(block, asker).await {
                PrefetchAnswer::Accepted => BlockSource::Origin,
                PrefetchAnswer::NotNeeded => BlockSource::Ssd,
                PrefetchAnswer::Refused => BlockSource::Unspecified,
            }
            .into(),
            ..known
        };
        count(&worker, "ok");
        return Frame::new(&reply, Vec::new());
    }
    if request.is_spread() {
        count(&worker, "spread");
        let reply = BlockReply {
            status: BlockStatus::Spread.into(),
            owner_is_busy: request.is_passed_on,
            ..known
        };
        return Frame::new(&reply, Vec::new());
    }
    if message.copy_place == 0 && !message.held_only && !message.for_copy {
        worker.copying().forget(&block.key());
    }
    if message.location_format == LOCATION_FORMAT
        && !message.held_only
        && let Some(location) = worker.locate(&block.key())
    {
        count_read(Source::Ssd, u64::from(message.length));
        return at_location(&location, known);
    }
    if message.placement_version > known.placement_version
        && found.is_none()
        && !message.held_only
        && message.copy_place == 0
        && !worker.holds(&block.key())
    {
        let version = message.placement_version;
        placements
            .learn(&message.dataset, version, LEARN_DEADLINE)
            .await;
    }
    let outcome = match found {
        Some(found) => Ok(Some(found)),
        None if message.held_only => Ok(worker.read_held(block, range.clone()).await),
        None if message.copy_place > 0 => {
            let (place, from) = (message.copy_place, &message.copy_from);
            let copy = worker.read_copy(&message.dataset, block, range.clone(), place, from);
            Ok(copy.await)
        }
        None if message.as_filler => worker.read_for_copy(block, range.clone(), asker).await,
        None => worker.read_for(block, range.clone(), asker).await.map(Some),
    };
    match outcome {
        Ok(None) => without_bytes("not_held", BlockStatus::NotHeld, String::new()),
        Ok(Some((payload, source))) => {
            let length: usize = payload.iter().map(Bytes::len).sum();
            count_read(source, length as u64);
            let sums = if request.version > 0 {
                let held = worker.held_checksums(&block.key());
                checksums(&payload, range.start, block.len(), held.as_ref())
            } else {
                Vec::new()
            };
            let reply = BlockReply {
                status: BlockStatus::Ok.into(),
                length: length as u32,
                source: match source {
                    Source::Memory => BlockSource::Memory,
                    Source::Ssd => BlockSource::Ssd,
                    Source::Origin => BlockSource::Origin,
                    Source::Worker => BlockSource::Worker,
                }
                .into(),
                checksums: sums,
                ..known
            };
            Frame::new(&reply, payload)
        }
        Err(error) => {
            let status = match &error {
                ReadError::ShuttingDown | ReadError::Origin(OriginError::Interrupted { .. }) => {
                    BlockStatus::Unavailable
                }
                ReadError::Origin(OriginError::Unknown { .. }) => BlockStatus::UnknownOrigin,
                ReadError::Origin(OriginError::Changed { .. }) => BlockStatus::Changed,
                ReadError::Origin(error) if depends_on_the_worker(error) => BlockStatus::Denied,
                ReadError::Origin(_) => BlockStatus::OriginError,
            };
            without_bytes("error", status, error.to_string())
        }
    }
}

/// Over how many further workers a reader is to spread.
fn spread_of(worker: &Worker, request: &BlockRequest, block: &Block) -> u32 {
    let is_of_its_owner = !request.held_only && !request.ahead && request.copy_place == 0;
    // Copies are of whole blocks: for a few bytes at random places they cost more than they save.
    let is_large = u64::from(request.length) * LEAST_SPREAD >= u64::from(block.len());
    if request.reader == 0 || !is_of_its_owner || !is_large {
        return 0;
    }
    let others = worker.others();
    if others == 0 {
        return 0;
    }
    let object = ObjectId::new(block.origin, &block.object.key, &block.object.version);
    let now = Instant::now();
    worker.demand().copies(object, request.reader, others, now)
}

/// What a request is told whose dataset does not have the object; none if the dataset was only new.
async fn refuse(
    worker: &Worker,
    request: &BlockRequest,
    claim: Claim,
    caller: &Caller,
) -> Option<(BlockStatus, String)> {
    let (dataset, key, origin) = (&request.dataset, &request.key, OriginId(request.origin));
    let origins = worker.origins();
    // Of a dataset that is new here nothing is held.
    let claim = if request.held_only {
        claim
    } else {
        origins.claim_or_learn(dataset, origin, key).await
    };
    let refused = match claim {
        Claim::Inside => return None,
        Claim::Unknown => (
            BlockStatus::UnknownOrigin,
            format!("dataset {dataset} is not known here; check that it still exists"),
        ),
        Claim::Outside => (
            BlockStatus::Denied,
            format!(
                "dataset {dataset} has no source with such an object; `weir dataset get {dataset}` shows its sources"
            ),
        ),
    };
    // A worker that asks for what is held may have heard of a dataset sooner, and nobody has to do anything about that.
    if !(request.held_only && claim == Claim::Unknown) {
        origins.refusals.note(caller, dataset, origin, key);
    }
    Some(refused)
}

/// Whether another worker, or the client itself, may have better luck with the origin: credentials, certificates and
/// profiles are those of a process.
fn depends_on_the_worker(error: &OriginError) -> bool {
    [
        "access_denied",
        "credentials_expired",
        "not_allowed",
        "config",
        "untrusted",
        "no_such_host",
        "no_descriptors",
    ]
    .contains(&error.kind())
}

/// The answer that a block lies in a file.
fn at_location(location: &weir_segment::BlockLocation, known: BlockReply) -> Frame {
    let reply = BlockReply {
        status: BlockStatus::Ok.into(),
        source: BlockSource::Ssd.into(),
        location: Some(BlockLocation {
            file_offset: location.offset,
            block_length: location.len,
            chunk_size: CHUNK_SIZE,
            checksums: location.checksums.to_vec(),
            page_checksums_offset: location.page_checksums_at.unwrap_or(0),
            direct: location.direct,
        }),
        ..known
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
    let dataset: weir_core::DatasetName = request.dataset.parse().ok()?;
    // In its one form, since it is a key.
    if dataset.as_str() != request.dataset {
        return None;
    }
    let block = Block {
        origin: OriginId(request.origin),
        object: ObjectRef {
            key: request.key.as_str().into(),
            size: request.object_size,
            version: request.object_version.as_str().into(),
            modified_ns: request.object_modified_ns,
        },
        index: request.block_index,
    };
    let end = request.offset.checked_add(request.length)?;
    let is_copy = request.copy_place > 0 || request.as_filler;
    let makes_sense = !(request.ahead && (request.held_only || is_copy));
    let has_length = makes_sense && (request.length == 0) == request.ahead && block.len() > 0;
    (has_length && end <= block.len()).then_some((block, request.offset..end))
}

#[cfg(test)]
mod tests;
