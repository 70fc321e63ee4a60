//! Block reads from the workers of a cluster.
//!
//! The owner of the nearest copy is asked first, then that of the next nearest, or the next worker in the hash order of the only
//! one, then the origin itself. If a worker says nothing, the
//! next place is asked beside it (`silence.rs`). One that leaves the cluster map is given up on at once, even in the middle
//! of a request.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use weir_core::placement::domains::{Keep, Owners, Placement};
use weir_core::{
    Block, BlockKey, ClusterMap, Location, LogLimit, NodeName, RaceBudget, WorkerInfo,
};
use weir_origin::{FetchPolicy, OriginError, OriginMetrics, OriginSpec, SourcePolicy};
use weir_proto::v1::{BlockReply, BlockRequest, BlockSource, BlockStatus};
use weir_trust::Dial;
use weir_wire::{
    Activity, Answer, ConnectionError, Connections, FarWorkers, FrameError, OpeningError,
    request_of,
};
use weir_worker::PrefetchAnswer;
use weir_worker::origins::Origins;

use crate::error::BlockError;
use crate::local::LocalWorkers;
use crate::metrics::{ClientMetrics, ReadSource, ReasonLabel};
use crate::silence::{SILENCE, Suspects};

mod elsewhere;
mod race;
mod spread;
mod together;

use race::{Place, Wanted};
use spread::{INSIST, Spreading};

/// Workers that are asked for a block before the client reads the origin.
const MAX_OWNERS: usize = 2;
/// Workers that are passed over, since they did not answer a moment ago, to find as many. If all of them are such, so is most
/// of the cluster.
const MAX_PASSED_OVER: usize = 6;

/// What a cluster reader is made of.
pub struct ClusterConfig {
    /// The machine that this process runs on.
    pub node: NodeName,
    /// Where that stands; as a worker on the same machine does, what is not said.
    pub location: Location,
    /// The cluster map, kept fresh by [`crate::map::follow`].
    pub map: watch::Receiver<Arc<ClusterMap>>,
    /// Which workers hold the dataset, kept fresh by the same.
    pub placement: watch::Receiver<Arc<Placement>>,
    /// Has the map looked at now, since there is a newer one.
    pub refresh_now: Arc<Notify>,
    /// How workers are called.
    pub dial: Dial,
    /// How the origin is read when no worker answers.
    pub fetch: Arc<FetchPolicy>,
    /// Which origins are.
    pub sources: SourcePolicy,
    /// Whether any is: else workers alone are asked.
    pub origin_fallback: bool,
    /// Metrics of the client.
    pub metrics: Arc<ClientMetrics>,
    /// Metrics of direct reads from the origin.
    pub origin_metrics: Arc<OriginMetrics>,
}

/// Reads blocks from the workers that own them.
pub struct ClusterReader {
    config: ClusterConfig,
    remote: Arc<Connections<FarWorkers>>,
    local: LocalWorkers,
    view: Mutex<Arc<View>>,
    suspects: Arc<Suspects>,
    budget: RaceBudget,
    spreading: Spreading,
    origins: Origins,
    /// A worker decides how often bytes come damaged.
    damage_lines: LogLimit,
}

/// The cluster as this reader sees it.
struct View {
    owners: Owners,
    /// What the owners are made of, to tell whether it is the newest: a version comes again when a dataset is made anew.
    placement: Arc<Placement>,
    /// Where the reader stands.
    at: Location,
    /// The places in the map of this machine's workers, if they keep what it reads.
    keepers: Vec<usize>,
}

impl View {
    fn new(config: &ClusterConfig, map: Arc<ClusterMap>, placement: Arc<Placement>) -> Self {
        let mut workers = map.workers().iter();
        let beside = workers.find(|worker| is_beside(worker, &config.node));
        let beside = beside.map(|worker| worker.location.clone());
        let beside = beside.unwrap_or_default();
        let keeps = |worker: &WorkerInfo| {
            placement.keep == Some(Keep::Node)
                && worker.weight > 0
                && is_beside(worker, &config.node)
        };
        let workers = map.workers().iter().enumerate();
        let keepers = workers.filter(|(_, worker)| keeps(worker));
        let keepers = keepers.map(|(place, _)| place).collect();
        let (own, is_own) = (&config.location, config.location.zone.is_some());
        let at = Location {
            zone: own.zone.clone().or(beside.zone),
            // A group is one of its zone.
            group: if is_own || own.group.is_some() {
                own.group.clone()
            } else {
                beside.group
            },
            ..Location::default()
        };
        Self {
            owners: Owners::new(map, &placement),
            placement,
            at,
            keepers,
        }
    }

    /// The worker on this machine that keeps a block.
    fn keeper(&self, block: &BlockKey) -> Option<&WorkerInfo> {
        let of = |place: &usize| &self.owners.map().workers()[*place];
        if let [place] = &self.keepers[..] {
            return Some(of(place));
        }
        let keepers = self.keepers.iter().map(of);
        keepers.max_by_key(|worker| {
            let mut hasher = DefaultHasher::new();
            (block.0, worker.id.as_str()).hash(&mut hasher);
            hasher.finish()
        })
    }
}

/// Whether a worker runs on a machine.
fn is_beside(worker: &WorkerInfo, machine: &NodeName) -> bool {
    worker.node == *machine || worker.location.machine.as_ref() == Some(machine)
}

/// Why a worker gave no bytes.
enum Refusal {
    /// No other would.
    Final(BlockError),
    /// The next one is asked, for this reason.
    Next(&'static str, String),
}

impl ClusterReader {
    /// A reader without connections.
    pub fn new(config: ClusterConfig) -> Self {
        let remote = Arc::new(Connections::new(FarWorkers::new(config.dial.clone())));
        let (map, placement) = (
            config.map.borrow().clone(),
            config.placement.borrow().clone(),
        );
        Self {
            view: Mutex::new(Arc::new(View::new(&config, map, placement))),
            local: LocalWorkers::new(),
            suspects: Suspects::new(
                config.map.clone(),
                remote.clone(),
                config.metrics.suspects.clone(),
            ),
            remote,
            budget: RaceBudget::default(),
            spreading: Spreading::new(random()),
            damage_lines: LogLimit::default(),
            origins: Origins::new(None, config.fetch.clone(), config.sources.clone()),
            config,
        }
    }

    /// The cluster as it is now.
    fn view(&self) -> Arc<View> {
        let map = self.config.map.borrow().clone();
        let placement = self.config.placement.borrow().clone();
        let mut view = self.view.lock();
        let is_same = Arc::ptr_eq(view.owners.map(), &map);
        if !is_same || !Arc::ptr_eq(&view.placement, &placement) {
            *view = Arc::new(View::new(&self.config, map, placement));
        }
        view.clone()
    }

    /// Whom to ask for a block, the nearest copy's owner first; before it the worker on this machine, if that keeps what is read here.
    fn owners<'a>(&self, view: &'a View, block: &Block, most: usize) -> Vec<&'a WorkerInfo> {
        let (owners, key) = (&view.owners, block.key());
        let mut owners = owners.for_reader(&key, &self.config.node, &view.at, most);
        if let Some(keeper) = view.keeper(&key)
            && !owners
                .first()
                .is_some_and(|owner| is_beside(owner, &self.config.node))
        {
            owners.retain(|owner| owner.id != keeper.id);
            owners.insert(0, keeper);
            owners.truncate(most);
        }
        owners
    }

    /// The bytes of `range` of a block if its place on this machine's SSD is known. Blocks the thread on the disk.
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
        let view = self.view();
        self.budget.earn();
        let wanted = Wanted {
            block,
            view: &view,
            request: request(&view, dataset, block, &range),
            owners: self.owners(&view, block, MAX_OWNERS),
            range,
            spec,
            silent: Mutex::default(),
        };
        let is_suspect = |worker: &&WorkerInfo| self.suspects.contains(&worker.id);
        let owners = wanted.owners.iter().copied();
        let (suspects, mut trusted): (Vec<_>, Vec<_>) = owners.partition(is_suspect);
        if !suspects.is_empty() {
            let names = suspects.iter().map(|worker| worker.id.to_string());
            wanted.silent.lock().extend(names);
            // Others keep the block in their place, and the origin sends it once.
            let more = self.owners(&view, block, MAX_OWNERS + MAX_PASSED_OVER);
            trusted = more
                .into_iter()
                .filter(|worker| !is_suspect(worker))
                .collect();
            trusted.truncate(MAX_OWNERS);
        }
        let before = if let Some(suspect) = suspects.first() {
            format!("worker {} did not answer a moment ago", suspect.id)
        } else {
            String::from("no worker is in the cluster map")
        };
        let places = trusted.into_iter().map(Place::Worker);
        let places = places.chain(self.config.origin_fallback.then_some(Place::Origin));
        let places: Vec<_> = places
            .chain(suspects.into_iter().map(Place::Worker))
            .collect();
        self.read_from(&places, &wanted, before).await
    }

    /// Has a worker asked last until it answers again; whether it was trusted before.
    fn suspect(&self, worker: &WorkerInfo) -> bool {
        let is_new = self.suspects.add(worker);
        self.remote.forget(&worker.data_address);
        self.local.forget(&worker.local_socket);
        self.config.refresh_now.notify_one();
        is_new
    }

    /// Asks a block's owner to fetch it before anybody reads it. What goes wrong has no effect on reads.
    pub(crate) async fn prefetch(&self, dataset: &str, block: &Block) -> PrefetchAnswer {
        let view = self.view();
        let Some(owner) = self.owners(&view, block, 1).pop() else {
            return PrefetchAnswer::Refused;
        };
        if self.suspects.contains(&owner.id) {
            return PrefetchAnswer::Refused;
        }
        let request = BlockRequest {
            ahead: true,
            ..request(&view, dataset, block, &(0..0))
        };
        let activity = Activity::default();
        let asked = self.remote.request(owner, &request, &activity);
        let answer = tokio::select! {
            biased;
            answer = self.unless_it_leaves(owner, asked) => answer,
            () = activity.silent_for(SILENCE) => None,
        };
        let reply = match answer {
            Some(Ok((Answer { reply, .. }, _))) => reply,
            Some(Err(error)) => {
                tracing::debug!(worker = %owner.id, %error, "a request to prefetch was not answered");
                return PrefetchAnswer::Refused;
            }
            None => return PrefetchAnswer::Refused,
        };
        self.compare(&reply);
        // A worker of a version without such requests refuses them.
        match (reply.status(), reply.source()) {
            (BlockStatus::Ok, BlockSource::Origin) => PrefetchAnswer::Accepted,
            (BlockStatus::Ok, BlockSource::Memory | BlockSource::Ssd) => PrefetchAnswer::NotNeeded,
            _ => PrefetchAnswer::Refused,
        }
    }

    /// Asks for a newer map, or placement, when a worker has one.
    fn compare(&self, reply: &BlockReply) {
        let has_newer_map = reply.epoch > self.config.map.borrow().epoch();
        if has_newer_map || reply.placement_version > self.config.placement.borrow().version {
            self.config.refresh_now.notify_one();
        }
    }

    /// Counts reads that the next worker or the origin is asked for.
    fn passed_over(&self, worker: &WorkerInfo, reads: usize, reason: &'static str, message: &str) {
        let failovers = &self.config.metrics.failovers;
        let label = ReasonLabel { reason };
        failovers.get_or_create(&label).inc_by(reads as u64);
        tracing::debug!(worker = %worker.id, reason, message, "the next worker is asked");
    }

    async fn ask(
        &self,
        worker: &WorkerInfo,
        wanted: &Wanted<'_>,
        activity: &Activity,
    ) -> Result<(Bytes, ReadSource), Refusal> {
        let near = is_beside(worker, &self.config.node);
        let mut request = wanted.request.clone();
        request.silent.clone_from(&wanted.silent.lock());
        if !near {
            request.reader = self.spreading.reader();
            request.copies = self.spreading.copies(wanted.block);
            let may_be_owner = true;
            let copied = self.ask_further(worker, wanted, &request, may_be_owner, activity);
            if let Some(copied) = copied.await {
                return Ok(copied);
            }
        }
        let (mut reply, mut bytes) = self
            .ask_owner(worker, near, wanted, &request, activity)
            .await?;
        if !near {
            self.spreading.note(wanted.block, reply.copies);
        }
        if reply.status() == BlockStatus::Spread {
            // Others are to have it, which it knows how many there are of.
            request.copies = reply.copies;
            let may_be_owner = !reply.owner_is_busy;
            let copied = self.ask_further(worker, wanted, &request, may_be_owner, activity);
            if let Some(copied) = copied.await {
                return Ok(copied);
            }
            request.copies = INSIST;
            (reply, bytes) = self
                .ask_owner(worker, near, wanted, &request, activity)
                .await?;
        }
        Ok((bytes, self.judge(worker, near, reply)?))
    }

    /// Asks the further worker that this reader is to go to instead of `owner`, if there is one. Meanwhile the owner's silence means
    /// nothing.
    async fn ask_further(
        &self,
        owner: &WorkerInfo,
        wanted: &Wanted<'_>,
        request: &BlockRequest,
        may_be_owner: bool,
        activity: &Activity,
    ) -> Option<(Bytes, ReadSource)> {
        let (view, block) = (wanted.view, wanted.block);
        let copy = self.copy_of(view, block, owner, request.copies, may_be_owner)?;
        activity.pause();
        let copied = self.ask_for_copy(copy, request, wanted.block.key()).await;
        activity.resume();
        copied
    }

    async fn ask_owner(
        &self,
        worker: &WorkerInfo,
        near: bool,
        wanted: &Wanted<'_>,
        request: &BlockRequest,
        activity: &Activity,
    ) -> Result<(BlockReply, Bytes), Refusal> {
        let answer = async {
            let mut request = request.clone();
            if near {
                let (socket, key) = (&worker.local_socket, wanted.block.key());
                let local = self.local.request(socket, key, request.clone(), activity);
                match local.await {
                    Ok(answer) => return Ok(answer),
                    Err(ConnectionError::Damaged) => self.note_damage(worker, &mut request),
                    Err(_) => {}
                }
            }
            let mut answer = self.remote.request(worker, &request, activity).await;
            if matches!(answer, Err(ConnectionError::Damaged)) {
                // Its memory may have been damaged, and its SSD not.
                self.note_damage(worker, &mut request);
                answer = self.remote.request(worker, &request, activity).await;
            }
            answer.map(|(answer, bytes)| (answer.reply, bytes))
        };
        self.while_in_the_map(worker, answer).await
    }

    /// Counts an answer that was damaged; the next request has the worker look at what it holds.
    fn note_damage(&self, worker: &WorkerInfo, request: &mut BlockRequest) {
        self.config.metrics.damaged.inc();
        if let Some(left_out) = self.damage_lines.line() {
            tracing::warn!(
                worker = %worker.id, key = %request.key, block = request.block_index, left_out,
                "bytes came damaged from a worker; they are asked for again"
            );
        }
        request.report_damaged = true;
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
            if matches!(error, ConnectionError::Damaged) {
                self.config.metrics.damaged.inc();
                return Refusal::Next("damaged", format!("worker {}: {error}", worker.id));
            }
            let is_new = self.suspect(worker);
            let reason = match error {
                ConnectionError::Io(_)
                | ConnectionError::Closed
                | ConnectionError::Frame(FrameError::Io(_))
                | ConnectionError::Opening(
                    OpeningError::Late | OpeningError::Closed | OpeningError::Frame(_),
                ) => "unreachable",
                ConnectionError::Frame(_)
                | ConnectionError::Length(..)
                | ConnectionError::TooOld
                | ConnectionError::Damaged => "protocol",
                ConnectionError::Refused(_) | ConnectionError::Opening(_) => "refused",
            };
            if is_new && reason == "refused" {
                tracing::warn!(worker = %worker.id, "blocks are read elsewhere: {error}");
            }
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
        self.compare(&reply);
        match reply.status() {
            BlockStatus::Ok => Ok(match (reply.source(), near) {
                (BlockSource::Origin, _) => ReadSource::Origin,
                (BlockSource::Worker, _) | (_, false) => ReadSource::Remote,
                (BlockSource::Memory, true) => ReadSource::Memory,
                (_, true) => ReadSource::Ssd,
            }),
            BlockStatus::Changed => Err(Refusal::Final(BlockError::Changed(reply.message))),
            BlockStatus::OriginError => {
                let message = format!("worker {}: {}", worker.id, reply.message);
                Err(Refusal::Final(BlockError::Failed(message)))
            }
            BlockStatus::UnknownOrigin => Err(Refusal::Next("unknown_origin", reply.message)),
            BlockStatus::Unavailable => {
                self.suspect(worker); // it is stopping
                Err(Refusal::Next("unavailable", reply.message))
            }
            BlockStatus::Denied => {
                let message = format!("worker {}: {}", worker.id, reply.message);
                Err(Refusal::Next("denied", message))
            }
            BlockStatus::BadRequest
            | BlockStatus::Unspecified
            | BlockStatus::Filling
            | BlockStatus::Queued
            | BlockStatus::NotHeld
            | BlockStatus::Spread
            | BlockStatus::UnknownKey => Err(Refusal::Next("protocol", reply.message)),
        }
    }

    /// Waits until the worker is no longer in the map; for ever while it is.
    async fn left_the_map(&self, worker: &WorkerInfo) {
        let mut map = self.config.map.clone();
        let gone = map.wait_for(|map| map.worker(&worker.id).is_none());
        if gone.await.is_err() {
            std::future::pending::<()>().await; // the map is no longer followed
        }
        let map = self.config.map.borrow().clone();
        self.remote.retain_of(&map);
        let known = |socket: &str| map.workers().iter().any(|w| w.local_socket == socket);
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
            open.policy,
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

/// A number that no other reader has.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn request(view: &View, dataset: &str, block: &Block, range: &Range<u32>) -> BlockRequest {
    BlockRequest {
        epoch: view.owners.map().epoch(),
        placement_version: view.owners.version(),
        dataset: dataset.to_owned(),
        offset: range.start,
        length: range.end - range.start,
        ..request_of(block)
    }
}

#[cfg(test)]
impl ClusterReader {
    /// A reader on the node `here` of a cluster that stays as it is.
    pub(crate) fn of_map(map: ClusterMap) -> Self {
        Self::new(reader_config(map))
    }
}

#[cfg(test)]
fn reader_config(map: ClusterMap) -> ClusterConfig {
    let mut registry = prometheus_client::registry::Registry::default();
    ClusterConfig {
        node: "here".parse().unwrap(),
        location: Location::default(),
        placement: watch::Sender::new(Arc::default()).subscribe(),
        map: watch::Sender::new(Arc::new(map)).subscribe(),
        refresh_now: Arc::default(),
        dial: Dial::default(),
        fetch: Arc::default(),
        sources: SourcePolicy::unlimited(),
        origin_fallback: true,
        metrics: ClientMetrics::register(&mut registry),
        origin_metrics: OriginMetrics::register(&mut registry),
    }
}

#[cfg(test)]
mod tests;
