//! The worker itself: where a block is looked for, and what happens when it is nowhere.
//!
//! Order of a read: memory, a fill under way, SSD, a new fill. Invariant: at any time at most one fill of a block
//! is under way, and a fill stays findable until its block is readable from a tier (or was refused by all).

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::{BLOCK_SIZE, Block, BlockKey, ByteSize, NodeName, WorkerId};
use weir_origin::{FetchPolicy, OriginError, OriginMetrics};

use crate::fill::Fill;
use crate::memory::MemoryTier;
use crate::metrics::{EvictionLabels, ResultLabel, TierLabels, WorkerMetrics};
use crate::origins::Origins;
use crate::segment::{Admission, BlockLocation, Pieces, SegmentError, SegmentStats};
use crate::ssd::{SsdTier, Write};

/// How often cache files are checked for changes by others, and gauges are brought up to date.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The part of a tier that must be free before blocks are added that nobody waits for.
const FREE_SHARE: u64 = 8;
/// The fills' byte budget is counted in pieces of this size, so that it fits a semaphore's 32 bits.
const BUDGET_UNIT: u64 = 4096;
/// What even a small block counts against it: the pieces that came from the network lie in buffers of this size.
const LEAST_TAKEN: u64 = 128 << 10;
/// How long a block that nobody waits for may wait for its place.
const PLACE_DEADLINE: Duration = Duration::from_secs(10);
/// The part of the budget that blocks may take which nobody waits for yet: five eighths. And what even a small one
/// counts against that: with many requests under way it is connections that take memory.
const AHEAD_SHARE: (u64, u64) = (5, 8);
const LEAST_AHEAD: u64 = 256 << 10;

/// One SSD directory and the most bytes that it takes.
#[derive(Clone, Debug)]
pub struct SsdConfig {
    /// Directory for segment files; made if it is missing.
    pub dir: PathBuf,
    /// Most bytes of files in it.
    pub capacity: ByteSize,
}

/// What a worker is made of.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// The worker's name.
    pub id: WorkerId,
    /// The machine that it runs on.
    pub node: NodeName,
    /// Bytes of the memory tier; 0 turns it off.
    pub memory: ByteSize,
    /// The SSD tier's devices.
    pub ssd: Vec<SsdConfig>,
    /// Most bytes of blocks on their way from an origin or to a device.
    pub fill_budget: ByteSize,
    /// Where the list of origins is kept over a restart.
    pub origins_file: Option<PathBuf>,
    /// How origins are read.
    pub fetch: FetchPolicy,
}

impl WorkerConfig {
    /// Bytes of the fill budget.
    fn budget(&self) -> u64 {
        self.fill_budget.max(LEAST_FILL_BUDGET).0
    }

    /// Those of it that blocks may take which nobody waits for yet.
    fn ahead_budget(&self) -> u64 {
        let (part, of) = AHEAD_SHARE;
        self.budget() / of * part
    }
}

/// Default of [`WorkerConfig::fill_budget`]: eight whole blocks, enough to keep a fast origin busy.
pub const FILL_BUDGET: ByteSize = ByteSize(8 * BLOCK_SIZE);
/// The least [`WorkerConfig::fill_budget`]; a smaller one is taken for this.
pub const LEAST_FILL_BUDGET: ByteSize = ByteSize(2 * BLOCK_SIZE);

/// Where the bytes of a read came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The memory tier, or a block on its way to the SSD tier.
    Memory,
    /// The SSD tier.
    Ssd,
    /// The origin.
    Origin,
}

impl Source {
    /// All sources, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Ssd, Self::Origin];

    /// The source as a metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Ssd => "ssd",
            Self::Origin => "origin",
        }
    }
}

/// The pieces of a read that needed no origin, and where they were.
pub type Cached = (Vec<Bytes>, Source);

/// What a block counts against a budget in which it counts so many bytes at least.
fn units_of(block: &Block, least: u64) -> u32 {
    u64::from(block.len()).max(least).div_ceil(BUDGET_UNIT) as u32
}

fn from_ssd(data: Bytes) -> Cached {
    (vec![data], Source::Ssd)
}

/// Puts what was read of the SSD tier where nothing was found before.
fn put_absent(found: &mut [Option<Cached>], read: Vec<Option<Bytes>>) {
    let absent = found.iter_mut().filter(|place| place.is_none());
    for (place, data) in absent.zip(read) {
        *place = data.map(from_ssd);
    }
}

/// What became of a wish to have a block before anybody reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ahead {
    /// It is being fetched for this.
    Begun,
    /// It is here, or on its way.
    Needless,
    /// There is no room for guesses, the origin answers as soon as the disk, or whoever would fetch it cannot be asked.
    Unwanted,
}

/// Why a block could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The origin could not give the bytes.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The worker is shutting down.
    #[error("the worker is shutting down")]
    ShuttingDown,
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// An SSD directory could not be opened.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

/// The work of a fill: resolves when its block is complete and was given to the tiers, or when it has failed.
pub type Drive = BoxFuture<'static, ()>;

/// A fill that is listed among those under way. Dropped before its end, which happens when a runtime shuts down, it
/// fails, so that nobody waits for it for ever.
struct StartedFill {
    worker: Arc<Worker>,
    object: Arc<str>,
    key: BlockKey,
    fill: Arc<Fill>,
    ended: bool,
}

impl StartedFill {
    fn fail(&mut self, error: OriginError) {
        self.ended = true;
        self.fill.fail(error);
        self.worker.finish_fill(&self.key);
    }
}

impl Drop for StartedFill {
    fn drop(&mut self) {
        if !self.ended {
            let interrupted = OriginError::interrupted(&self.object);
            self.fail(interrupted);
        }
    }
}

/// A cache of blocks. Shared by reference.
pub struct Worker {
    config: WorkerConfig,
    memory: MemoryTier,
    ssd: Arc<SsdTier>,
    fills: Mutex<HashMap<BlockKey, Arc<Fill>>>,
    budget: Arc<Semaphore>,
    /// What blocks may take of the budget that nobody waits for yet.
    ahead_budget: Arc<Semaphore>,
    origins: Origins,
    policy: Arc<FetchPolicy>,
    metrics: Arc<WorkerMetrics>,
    origin_metrics: Arc<OriginMetrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Grows whenever the set of held blocks may have changed.
    generation: AtomicU64,
    /// What each store had counted when the metrics were last brought up to date.
    seen_stats: Mutex<HashMap<PathBuf, SegmentStats>>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Worker({})", self.config.id)
    }
}

impl Worker {
    /// Opens the tiers, with what they held before, and starts the periodic checks. Call inside a tokio runtime.
    pub fn open(
        config: WorkerConfig,
        metrics: Arc<WorkerMetrics>,
        origin_metrics: Arc<OriginMetrics>,
    ) -> Result<Arc<Self>, WorkerError> {
        let units = |bytes: u64| Arc::new(Semaphore::new((bytes / BUDGET_UNIT) as usize));
        let worker = Arc::new(Self {
            memory: MemoryTier::new(config.memory.0),
            ssd: Arc::new(SsdTier::open(&config.ssd)?),
            fills: Mutex::default(),
            budget: units(config.budget()),
            ahead_budget: units(config.ahead_budget()),
            origins: Origins::new(config.origins_file.clone()),
            policy: Arc::new(config.fetch.clone()),
            metrics,
            origin_metrics,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            generation: AtomicU64::new(1),
            seen_stats: Mutex::default(),
            config,
        });
        let checks = worker.clone();
        worker.tasks.spawn(async move { checks.check_loop().await });
        Ok(worker)
    }

    /// What the worker was made with.
    pub fn config(&self) -> &WorkerConfig {
        &self.config
    }

    /// The origins that this worker may read.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// The worker's metrics.
    pub fn metrics(&self) -> &Arc<WorkerMetrics> {
        &self.metrics
    }

    /// Bytes of cache in all tiers: the worker's weight in placement.
    pub fn capacity(&self) -> u64 {
        let ssd: u64 = self.config.ssd.iter().map(|d| d.capacity.0).sum();
        if ssd > 0 { ssd } else { self.config.memory.0 }
    }

    /// Whether blocks may be worth fetching before anybody reads them: an eighth of the tier that keeps blocks is free,
    /// and an origin is slow. From one that is as near as the disk a block is as soon to be had.
    pub fn wants_ahead(&self) -> bool {
        self.origins.any_wants_more() && self.has_room()
    }

    fn has_room(&self) -> bool {
        let (capacity, used) = match self.ssd.space() {
            (0, _) => (self.memory.capacity(), self.memory.used()),
            ssd => ssd,
        };
        capacity - used.min(capacity) > capacity / FREE_SHARE
    }

    /// A number that grows whenever the set of held blocks may have changed.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether a tier holds the block, or will as soon as a write has finished.
    pub fn holds(&self, key: &BlockKey) -> bool {
        self.memory.contains(key)
            || self.ssd.contains(key)
            || self
                .fills
                .lock()
                .get(key)
                .is_some_and(|fill| fill.is_complete())
    }

    /// The bytes of `range`, if they can be had without the origin. May block on the disk, but never waits for
    /// the network.
    pub fn read_cached(&self, key: &BlockKey, range: &Range<u32>) -> Option<Cached> {
        let found = self.read_memory(key, range);
        found.or_else(|| self.ssd.read(key, range.clone()).map(from_ssd))
    }

    /// As [`Self::read_cached`] of whole blocks, given with their lengths, with few reads of the disk.
    pub fn read_cached_whole(&self, blocks: &[(BlockKey, u32)]) -> Vec<Option<Cached>> {
        let (mut found, absent) = self.read_memory_whole(blocks);
        put_absent(&mut found, self.ssd.read_whole(&absent));
        found
    }

    /// [`Self::read_cached_whole`] without blocking the caller's thread.
    pub(crate) async fn find_whole(&self, blocks: &[(BlockKey, u32)]) -> Vec<Option<Cached>> {
        let (mut found, absent) = self.read_memory_whole(blocks);
        put_absent(&mut found, self.ssd.read_whole_in_background(&absent).await);
        found
    }

    /// Those of several blocks that are in memory, and the keys of the others.
    fn read_memory_whole(
        &self,
        blocks: &[(BlockKey, u32)],
    ) -> (Vec<Option<Cached>>, Vec<BlockKey>) {
        let mut absent = Vec::new();
        let found = blocks.iter().map(|(key, length)| {
            let found = self.read_memory(key, &(0..*length));
            if found.is_none() {
                absent.push(*key);
            }
            found
        });
        let found = found.collect();
        (found, absent)
    }

    /// The bytes of `range`, if they are in memory.
    fn read_memory(&self, key: &BlockKey, range: &Range<u32>) -> Option<Cached> {
        if let Some(data) = self.memory.get(key) {
            let span = range.start as usize..range.end as usize;
            if span.end <= data.len() {
                return Some((vec![data.slice(span)], Source::Memory));
            }
        }
        let filling = self.fills.lock().get(key).cloned();
        let pieces = filling?.try_read(range)?;
        Some((pieces, Source::Memory))
    }

    /// The bytes of `range` of a block, from wherever they are. Joins a fill that is under way, or starts one.
    pub async fn read(
        self: &Arc<Self>,
        block: &Block,
        range: Range<u32>,
    ) -> Result<(Vec<Bytes>, Source), ReadError> {
        let key = block.key();
        if let Some(found) = self.find(key, &range).await {
            return Ok(found);
        }
        let pieces = self.spawn_fill(block, key)?.read(range).await?;
        Ok((pieces, Source::Origin))
    }

    /// As [`Self::read`], but a fill that this read starts makes progress only while the caller polls: it is driven
    /// here until the range has arrived, and what is left of it is pushed to `unfinished`, to be awaited soon. That
    /// saves a reader the switch to another task and back. A fill that is dropped instead fails for all its readers.
    pub async fn read_driving(
        self: &Arc<Self>,
        block: &Block,
        range: Range<u32>,
        unfinished: &mut Vec<Drive>,
    ) -> Result<(Vec<Bytes>, Source), ReadError> {
        let key = block.key();
        if let Some(found) = self.find(key, &range).await {
            return Ok(found);
        }
        let (fill, drive) = self.start_fill(block, key)?;
        let pieces = match drive {
            None => fill.read(range).await?,
            Some(mut drive) => {
                let arrived = tokio::select! {
                    biased;
                    () = &mut drive => None,
                    arrived = fill.read(range.clone()) => Some(arrived),
                };
                match arrived {
                    None => fill.read(range).await?, // the fill has ended, so this does not wait
                    Some(arrived) => {
                        unfinished.push(drive);
                        arrived?
                    }
                }
            }
        };
        Ok((pieces, Source::Origin))
    }

    /// [`Self::read_cached`] without blocking the caller's thread.
    async fn find(&self, key: BlockKey, range: &Range<u32>) -> Option<Cached> {
        if let Some(found) = self.read_memory(&key, range) {
            return Some(found);
        }
        let data = self.ssd.read_in_background(key, range.clone()).await;
        data.map(from_ssd)
    }

    /// Makes sure that a block is held; gives whether it was fetched for this. A fill that this starts is driven by
    /// the caller, as with [`Self::read_driving`]: to be polled to the end.
    pub async fn warm(self: &Arc<Self>, block: &Block) -> Result<bool, ReadError> {
        let key = block.key();
        if self.holds(&key) {
            return Ok(false);
        }
        let (fill, drive) = self.start_fill(block, key)?;
        let is_new = drive.is_some();
        if let Some(drive) = drive {
            drive.await;
        }
        fill.finished().await?;
        Ok(is_new)
    }

    /// How many whole blocks that nobody waits for are fetched at once.
    pub fn blocks_ahead(&self) -> u32 {
        u32::try_from(self.config.ahead_budget() / BLOCK_SIZE).unwrap_or(u32::MAX)
    }

    /// Fetches a block before anybody reads it, in the background and once there is a place for it among others that
    /// nobody waits for.
    pub async fn fill_ahead(self: &Arc<Self>, block: &Block) -> Ahead {
        let key = block.key();
        let refusal = || {
            if self.holds(&key) || self.fills.lock().contains_key(&key) {
                Some(Ahead::Needless)
            } else if self.origins.wants_more(block.origin) && self.has_room() {
                None
            } else {
                Some(Ahead::Unwanted)
            }
        };
        if let Some(refusal) = refusal() {
            return refusal;
        }
        let units = units_of(block, LEAST_AHEAD);
        let place = self.ahead_budget.clone().acquire_many_owned(units);
        let Ok(place) = timeout(PLACE_DEADLINE, place).await else {
            return Ahead::Unwanted;
        };
        if let Some(refusal) = refusal() {
            return refusal;
        }
        match self.start_fill(block, key) {
            Ok((_, Some(drive))) => {
                tokio::spawn(async move {
                    drive.await;
                    drop(place);
                });
                Ahead::Begun
            }
            Ok((_, None)) => Ahead::Needless,
            Err(_) => Ahead::Unwanted,
        }
    }

    /// Where a block lies on SSD, for a client that reads the file itself.
    pub fn locate(&self, key: &BlockKey) -> Option<BlockLocation> {
        self.ssd.locate(key)
    }

    /// Checks a block that a client found damaged, and drops it if it is.
    pub async fn report_damaged(&self, key: BlockKey) {
        self.ssd.report_bad(key).await;
    }

    /// Drops blocks from every tier; gives the bytes that they had.
    pub fn evict(&self, keys: &[BlockKey]) -> u64 {
        {
            // Before the tiers, so that what has just reached one of them is found there.
            let fills = self.fills.lock();
            keys.iter()
                .filter_map(|key| fills.get(key))
                .for_each(|fill| fill.discard());
        }
        let memory: u64 = keys.iter().map(|key| self.memory.remove(key)).sum();
        let ssd = self.ssd.remove(keys);
        self.generation.fetch_add(1, Ordering::Relaxed);
        for (tier, bytes) in [("memory", memory), ("ssd", ssd)] {
            let labels = EvictionLabels {
                tier,
                reason: "request",
            };
            self.metrics
                .evicted_bytes
                .get_or_create(&labels)
                .inc_by(bytes);
        }
        memory + ssd
    }

    /// Finds the block's fill or starts one, as a task of its own.
    fn spawn_fill(self: &Arc<Self>, block: &Block, key: BlockKey) -> Result<Arc<Fill>, ReadError> {
        let (fill, drive) = self.start_fill(block, key)?;
        if let Some(drive) = drive {
            tokio::spawn(drive);
        }
        Ok(fill)
    }

    /// Finds the block's fill or starts one. A new fill comes with the future that does its work.
    fn start_fill(
        self: &Arc<Self>,
        block: &Block,
        key: BlockKey,
    ) -> Result<(Arc<Fill>, Option<Drive>), ReadError> {
        if self.stop.is_cancelled() {
            return Err(ReadError::ShuttingDown);
        }
        let fill = Fill::new(block.len());
        {
            let mut fills = self.fills.lock();
            if let Some(running) = fills.get(&key) {
                return Ok((running.clone(), None));
            }
            fills.insert(key, fill.clone());
        }
        self.metrics.fills_in_flight.inc();
        let started = StartedFill {
            worker: self.clone(),
            object: block.object.key.clone(),
            key,
            fill: fill.clone(),
            ended: false,
        };
        let (worker, block) = (self.clone(), block.clone());
        let drive = async move { worker.run_fill(&block, started).await };
        Ok((fill, Some(self.tasks.track_future(drive).boxed())))
    }

    async fn run_fill(self: Arc<Self>, block: &Block, mut started: StartedFill) {
        let begun = Instant::now();
        let units = units_of(block, LEAST_TAKEN);
        let result = tokio::select! {
            () = self.stop.cancelled() => Err(OriginError::interrupted(&block.object.key)),
            result = self.fetch_block(block, started.key, &started.fill, units) => result,
        };
        let labels = ResultLabel {
            result: if result.is_ok() { "ok" } else { "error" },
        };
        self.metrics.fills.get_or_create(&labels).inc();
        match result {
            Ok(permit) => {
                self.metrics
                    .fill_duration
                    .observe(begun.elapsed().as_secs_f64());
                self.keep(started.key, &started.fill, permit).await;
                started.ended = true;
            }
            Err(error) => {
                tracing::warn!(%error, block = block.index, object = %block.object.key, "a block could not be fetched");
                started.fail(error);
            }
        }
    }

    /// Fetches a block, unless a tier got it between the caller's look and the start of this fill.
    async fn fetch_block(
        self: &Arc<Self>,
        block: &Block,
        key: BlockKey,
        fill: &Arc<Fill>,
        units: u32,
    ) -> Result<Option<OwnedSemaphorePermit>, OriginError> {
        let found = match self.memory.get(&key) {
            None => self.ssd.read_in_background(key, 0..block.len()).await,
            found => found,
        };
        if let Some(data) = found {
            fill.push(data);
            return Ok(None);
        }
        let open = match self.origins.get_or_learn(block.origin).await {
            None => return Err(OriginError::unknown(block.origin)),
            Some(opened) => opened?,
        };
        let interrupted = || OriginError::interrupted(&block.object.key);
        let permit = self.budget.clone().acquire_many_owned(units).await;
        let permit = permit.map_err(|_| interrupted())?;
        let chunks = weir_origin::fetch(
            open.origin,
            block.object.clone(),
            block.range(),
            self.policy.clone(),
            open.pace,
            self.origin_metrics.clone(),
        );
        let counted = chunks.inspect_ok(|chunk| {
            self.metrics.fill_bytes.inc_by(chunk.len() as u64);
        });
        fill.take(counted).await?;
        Ok(Some(permit))
    }

    /// Offers a fetched block to the tiers. The fill stays findable until the SSD tier has it.
    async fn keep(
        self: &Arc<Self>,
        key: BlockKey,
        fill: &Arc<Fill>,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let data = fill.complete();
        let (Some(data), Some(permit)) = (data, permit) else {
            return self.finish_fill(&key); // it was cached already
        };
        if !fill.is_discarded() {
            self.memory.insert(key, &data);
        }
        let (worker, kept) = (self.clone(), fill.clone());
        let write = Write {
            key,
            data: Pieces(data),
            done: Box::new(move |outcome| {
                if matches!(outcome, Ok(Admission::Full)) {
                    worker.metrics.refused.inc();
                }
                worker.settle(&key, &kept);
                drop(permit);
            }),
        };
        if self.ssd.write(write).await.is_err() {
            self.settle(&key, fill); // no SSD tier, or it is closing
        }
    }

    /// Ends a fill whose block the tiers were offered. One that was evicted meanwhile is taken from them again.
    fn settle(&self, key: &BlockKey, fill: &Fill) {
        self.finish_fill(key);
        if fill.is_discarded() {
            self.memory.remove(key);
            self.ssd.remove(&[*key]);
        }
    }

    fn finish_fill(&self, key: &BlockKey) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        if self.fills.lock().remove(key).is_some() {
            self.metrics.fills_in_flight.dec();
        }
    }

    async fn check_loop(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
            self.origins.close_idle();
            let ssd = self.ssd.clone();
            // A panic in the check would be logged by tokio; the next round tries again.
            let upkeep = move || {
                ssd.check_files();
                ssd.compact();
            };
            let _ = tokio::task::spawn_blocking(upkeep).await;
            self.update_gauges();
        }
    }

    /// Use of each tier now: labels, capacity, used bytes and blocks.
    pub fn tiers(&self) -> Vec<(TierLabels, u64, u64, u64)> {
        let memory = (
            TierLabels {
                tier: "memory",
                path: String::new(),
            },
            self.memory.capacity(),
            self.memory.used(),
            self.memory.blocks(),
        );
        let ssd = self.ssd.usage().into_iter().map(|device| {
            let labels = TierLabels {
                tier: "ssd",
                path: device.path.display().to_string(),
            };
            let stats = device.stats;
            (labels, stats.capacity, stats.used_bytes, stats.blocks)
        });
        std::iter::once(memory).chain(ssd).collect()
    }

    /// Brings the metrics that are not counted as they happen up to date; called before a scrape.
    pub fn update_gauges(&self) {
        for (labels, capacity, used, blocks) in self.tiers() {
            let metrics = &self.metrics;
            metrics
                .tier_capacity
                .get_or_create(&labels)
                .set(capacity as i64);
            metrics.tier_used.get_or_create(&labels).set(used as i64);
            metrics
                .tier_blocks
                .get_or_create(&labels)
                .set(blocks as i64);
        }
        self.count_store_events();
    }

    /// Adds what the stores have counted since the last look to the metrics.
    fn count_store_events(&self) {
        let mut seen = self.seen_stats.lock();
        for device in self.ssd.usage() {
            let now = device.stats;
            let before = seen.insert(device.path, now).unwrap_or_default();
            let evicted = [
                (
                    "idle",
                    now.evicted_blocks - before.evicted_blocks,
                    now.evicted_bytes - before.evicted_bytes,
                ),
                ("damaged", now.corrupt_blocks - before.corrupt_blocks, 0),
                (
                    "unreadable",
                    now.unreadable_blocks - before.unreadable_blocks,
                    0,
                ),
                ("lost_file", now.lost_blocks - before.lost_blocks, 0),
            ];
            for (reason, blocks, bytes) in evicted {
                let labels = EvictionLabels {
                    tier: "ssd",
                    reason,
                };
                self.metrics
                    .evicted_blocks
                    .get_or_create(&labels)
                    .inc_by(blocks);
                self.metrics
                    .evicted_bytes
                    .get_or_create(&labels)
                    .inc_by(bytes);
            }
            let damaged = now.corrupt_blocks - before.corrupt_blocks;
            let lost = now.lost_segments - before.lost_segments;
            self.metrics.damaged.inc_by(damaged);
            self.metrics.lost_segments.inc_by(lost);
            if damaged + lost > 0 {
                self.generation.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Stops fills, writes what is queued and closes the tiers. Waits for them, at most `deadline`.
    pub async fn close(&self, deadline: Duration) {
        self.stop.cancel();
        self.tasks.close();
        let ssd = self.ssd.clone();
        let closing = async {
            self.tasks.wait().await;
            // A panic while closing leaves an unsealed segment, which the next start scans.
            let _ = tokio::task::spawn_blocking(move || ssd.close()).await;
        };
        if tokio::time::timeout(deadline, closing).await.is_err() {
            tracing::warn!(
                ?deadline,
                "the cache was not closed in time; the next start scans its last segment"
            );
        }
    }
}
