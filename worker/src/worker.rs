//! The worker itself: where a block is looked for, and what happens when it is nowhere.
//!
//! Order of a read: memory, a fill under way, one that no tier took a moment ago, SSD, a new fill. Invariant: at any time
//! at most one fill of a block is under way, and a fill stays findable until its block is readable elsewhere (`fills.rs`).

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, trace_span};
use weir_core::{Block, BlockKey, ClusterMap, LogLimit};
use weir_origin::{OriginError, OriginMetrics};
use weir_trust::Dial;

use crate::config::WorkerConfig;
use crate::copies::{Asker, Copies};
use crate::demand::Demand;
use crate::fill::Fill;
use crate::fills::{self, Fills, Keeper};
use crate::memory::{Checked, MemoryTier};
use crate::metrics::{EvictionLabels, WorkerMetrics};
use crate::origins::Origins;
use crate::placements::Placements;
use crate::read_source::Source;
use crate::ssd::SsdTier;
use crate::stream::Turns;
use crate::verify::Verifier;
use weir_segment::{BlockLocation, Checksums, SegmentError, SegmentStats};
use weir_wire::Pacer;

mod copying;
mod filling;
mod gauges;
mod keeping;
mod place;
mod unowned;

use copying::Copying;
use filling::BUDGET_UNIT;
pub use filling::{FillWork, PrefetchAnswer};
pub(crate) use filling::{Taken, settled};
use keeping::Keeping;
pub(crate) use unowned::Unowned;

/// How often cache files are checked for changes by others, and gauges are brought up to date.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Blocks that are dropped at once by those who drop many: fills wait meanwhile.
pub(crate) const EVICT_BATCH: usize = 4096;
/// Longest wait for a block that is on its way, on behalf of a worker that asks for what is held.
const HELD_DEADLINE: Duration = Duration::from_secs(1);
/// The part of a tier that must be free before blocks are added that nobody waits for.
const FREE_SHARE: u64 = 8;

/// The pieces of a read that needed no origin, and where they were.
pub type Cached = (Vec<Bytes>, Source);

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

/// A cache of blocks. Shared by reference.
pub struct Worker {
    config: WorkerConfig,
    memory: MemoryTier,
    ssd: Arc<SsdTier>,
    fills: Fills,
    budget: Arc<Semaphore>,
    /// As much again for copies of blocks that other workers fetch: workers wait for each other's fills, and none of those may
    /// wait for such a copy.
    copy_budget: Arc<Semaphore>,
    /// What blocks may take of the budget that nobody waits for yet.
    prefetch_budget: Arc<Semaphore>,
    origins: Origins,
    placements: Arc<Placements>,
    metrics: Arc<WorkerMetrics>,
    origin_metrics: Arc<OriginMetrics>,
    pub(crate) verifier: Verifier,
    /// Which objects many want at once, and the copies of others' blocks because of that.
    demand: Demand,
    copying: Copying,
    /// The blocks of others that are here for this node alone.
    keeping: Keeping,
    pacer: Option<Pacer>,
    /// Whose answers come next.
    turns: Arc<Turns>,
    /// The other workers, in a cluster.
    pub(crate) copies: OnceLock<Arc<Copies>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    /// Grows whenever the set of held blocks may have changed.
    generation: AtomicU64,
    /// What each store had counted when the metrics were last brought up to date.
    seen_stats: Mutex<HashMap<PathBuf, SegmentStats>>,
    /// When blocks that are other workers' were looked for.
    looked_for_unowned: Mutex<Option<Instant>>,
    /// Fills that failed, in the log.
    failures: LogLimit,
}

/// Bytes that blocks had in the tiers.
pub(crate) struct Removed {
    memory: u64,
    ssd: u64,
}

impl Keeper for Worker {
    type Removed = Removed;

    fn fills(&self) -> &Fills {
        &self.fills
    }

    fn keeps(&self, key: &BlockKey) -> bool {
        self.memory.contains(key) || self.ssd.contains(key)
    }

    fn remove(&self, keys: &[BlockKey]) -> Removed {
        Removed {
            memory: keys.iter().map(|key| self.memory.remove(key)).sum(),
            ssd: self.ssd.remove(keys),
        }
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }
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
        let count = |bytes: u64| (bytes / BUDGET_UNIT) as usize;
        let units = |bytes: u64| Arc::new(Semaphore::new(count(bytes)));
        let (verifier, queues) = Verifier::new(config.budget());
        let worker = Arc::new(Self {
            memory: MemoryTier::new(config.memory.0),
            ssd: Arc::new(SsdTier::open(&config.ssd)?),
            fills: Fills::new(config.memory.0),
            budget: units(config.budget()),
            copy_budget: units(config.budget()),
            prefetch_budget: units(config.prefetch_budget()),
            origins: Origins::with_share(
                config.origins_file.clone(),
                Arc::new(config.fetch.clone()),
                config.sources.clone(),
                count(config.budget()),
            ),
            placements: Arc::default(),
            metrics,
            origin_metrics,
            verifier,
            demand: Demand::default(),
            copying: Copying::new(config.copies()),
            keeping: Keeping::new(config.keep()),
            turns: Arc::default(),
            pacer: config.egress_limit.map(|limit| Pacer::new(limit.0)),
            copies: OnceLock::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            generation: AtomicU64::new(1),
            seen_stats: Mutex::default(),
            looked_for_unowned: Mutex::default(),
            failures: LogLimit::default(),
            config,
        });
        let checks = worker.clone();
        worker.tasks.spawn(async move { checks.check_loop().await });
        worker.verify(queues);
        Ok(worker)
    }

    /// Reads that wait for an origin that has failed or was silent.
    pub(crate) fn waiting_reads(&self) -> u64 {
        self.origin_metrics.waiting_reads()
    }

    /// What the worker was made with.
    pub fn config(&self) -> &WorkerConfig {
        &self.config
    }

    /// The origins that this worker may read.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Where datasets are.
    pub(crate) fn placements(&self) -> &Placements {
        &self.placements
    }

    /// What many readers want at once.
    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }

    /// The copies that are here because of that.
    pub(crate) fn copying(&self) -> &Copying {
        &self.copying
    }

    /// The limit of what is sent to other machines, if there is one.
    pub(crate) fn pacer(&self) -> Option<&Pacer> {
        self.pacer.as_ref()
    }

    /// The turns to be answered of those on other machines.
    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Workers beside this one, also those that own nothing now.
    pub(crate) fn others(&self) -> usize {
        self.copies
            .get()
            .map_or(0, |copies| copies.map().workers().len().saturating_sub(1))
    }

    /// The worker's metrics.
    pub fn metrics(&self) -> &Arc<WorkerMetrics> {
        &self.metrics
    }

    pub(crate) fn origin_metrics(&self) -> &OriginMetrics {
        &self.origin_metrics
    }

    /// Bytes of cache in all tiers: the worker's weight in placement.
    pub fn capacity(&self) -> u64 {
        self.config.capacity()
    }

    /// Whether blocks may be worth fetching before anybody reads them: an eighth of the tier that keeps blocks is free,
    /// and an origin is slow. From one that is as near as the disk a block is as soon to be had.
    pub fn wants_prefetch(&self) -> bool {
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
        let is_complete = |fill: Arc<Fill>| fill.is_complete();
        self.keeps(key) || self.fills.running(key).is_some_and(is_complete)
    }

    /// The bytes of `range`, if they can be had without the origin. May block on the disk, but never waits for
    /// the network.
    pub fn read_cached(&self, key: &BlockKey, range: &Range<u32>) -> Option<Cached> {
        let _span = trace_span!(target: "weir::read", "look_up", %key, ?range).entered();
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
        let pieces = self.fills.find(key)?.try_read(range)?;
        Some((pieces, Source::Memory))
    }

    /// The bytes of `range` of a block, from wherever they are. Joins a fill that is under way, or starts one.
    pub fn read(
        self: &Arc<Self>,
        block: &Block,
        range: Range<u32>,
    ) -> impl Future<Output = Result<(Vec<Bytes>, Source), ReadError>> + Send {
        self.read_for(block, range, Asker::default())
    }

    /// The same for somebody on another machine.
    pub(crate) fn read_for(
        self: &Arc<Self>,
        block: &Block,
        range: Range<u32>,
        asker: Asker,
    ) -> impl Future<Output = Result<(Vec<Bytes>, Source), ReadError>> + Send {
        let span = span(block, &range);
        let read = async move {
            let key = block.key();
            if let Some(found) = self.find(key, &range).await {
                return Ok(found);
            }
            let fill = self.spawn_fill(block, key, asker)?;
            let pieces = fill.read(range).await?;
            Ok((pieces, source_of(&fill)))
        };
        read.instrument(span)
    }

    /// As [`Self::read`], but a fill that this read starts is no task of its own: the caller polls it, here until the
    /// range has arrived. What is left of it is pushed to `unfinished`, to be awaited soon. That saves a reader the
    /// switch to another task and back. A fill that is dropped instead fails for all its readers.
    pub fn read_and_fill(
        self: &Arc<Self>,
        block: &Block,
        range: Range<u32>,
        unfinished: &mut Vec<FillWork>,
    ) -> impl Future<Output = Result<(Vec<Bytes>, Source), ReadError>> + Send {
        let span = span(block, &range);
        let read = async move {
            let key = block.key();
            if let Some(found) = self.find(key, &range).await {
                return Ok(found);
            }
            let (fill, work) = self.start_fill(block, key)?;
            let pieces = match work {
                None => fill.read(range).await?,
                Some(mut work) => {
                    let arrived = tokio::select! {
                        biased;
                        () = &mut work => None,
                        arrived = fill.read(range.clone()) => Some(arrived),
                    };
                    match arrived {
                        None => fill.read(range).await?, // the fill has ended, so this does not wait
                        Some(arrived) => {
                            unfinished.push(work);
                            arrived?
                        }
                    }
                }
            };
            Ok((pieces, source_of(&fill)))
        };
        read.instrument(span)
    }

    /// As [`Self::read`], for a worker that is to hold another copy. `None` if the block is on its way from another worker: the
    /// two might wait for each other. What was not fetched because of this comes from memory.
    pub(crate) async fn read_for_copy(
        self: &Arc<Self>,
        block: &Block,
        range: Range<u32>,
        asker: Asker,
    ) -> Result<Option<Cached>, ReadError> {
        let key = block.key();
        if let Some(found) = self.find(key, &range).await {
            return Ok(Some(found));
        }
        let (fill, work) = self.start_fill_for(block, key, asker)?;
        let is_new = work.is_some();
        if let Some(work) = work {
            tokio::spawn(work);
        }
        if fill.is_forwarded() {
            return Ok(None);
        }
        let pieces = fill.read(range).await?;
        let source = if is_new {
            source_of(&fill)
        } else {
            Source::Memory
        };
        Ok(Some((pieces, source)))
    }

    /// The bytes of `range` of a block if it is held, or about to come from the origin. Fetches nothing.
    pub(crate) async fn read_held(&self, block: &Block, range: Range<u32>) -> Option<Cached> {
        let key = block.key();
        if let Some(found) = self.find(key, &range).await {
            return Some(found);
        }
        // Not one that itself asks other workers: two would wait for each other.
        let fetching = self.fills.running(&key).filter(|fill| fill.is_fetching());
        // Nor for long: who asks takes a late answer for a worker that is stuck.
        if let Some(fill) = fetching
            && let Ok(Ok(pieces)) = timeout(HELD_DEADLINE, fill.read(range.clone())).await
        {
            return Some((pieces, Source::Memory));
        }
        // It may have ended between the two looks.
        self.find(key, &range).await
    }

    /// Asks the other workers of this map for blocks that they held before this one became their owner. They are called by
    /// `dial`.
    pub fn copy_from_others(self: &Arc<Self>, map: watch::Receiver<Arc<ClusterMap>>, dial: Dial) {
        let (own, metrics) = (self.config.id.clone(), self.metrics.clone());
        let placements = self.placements.clone();
        let copies = Arc::new(Copies::new(own, map, placements, dial, metrics));
        // There is one cluster in a worker's life.
        if self.copies.set(copies.clone()).is_ok() {
            let stop = self.stop.clone();
            let following = async move { copies.follow().await };
            self.tasks.spawn(stop.run_until_cancelled_owned(following));
        }
    }

    /// [`Self::read_cached`] without blocking the caller's thread.
    async fn find(&self, key: BlockKey, range: &Range<u32>) -> Option<Cached> {
        if let Some(found) = self.read_memory(&key, range) {
            return Some(found);
        }
        let data = self.ssd.read_in_background(key, range.clone()).await;
        data.map(from_ssd)
    }

    /// Where a block lies on SSD, for a client that reads the file itself.
    pub fn locate(&self, key: &BlockKey) -> Option<BlockLocation> {
        self.ssd.locate(key)
    }

    /// The checksums that a tier holds of a block.
    pub(crate) fn held_checksums(&self, key: &BlockKey) -> Option<Checksums> {
        let in_memory = self.memory.checksums(key);
        in_memory.or_else(|| self.ssd.locate(key).map(|location| location.checksums))
    }

    /// Whether a block is on its way from the origin, here or to a worker that was asked for it, or a copy of it from another worker.
    pub(crate) fn is_on_its_way(&self, key: &BlockKey) -> bool {
        let running = self.fills.running(key);
        running.is_some_and(|fill| fill.is_fetching() || fill.is_forwarded())
            || self.copying.is_making(key)
    }

    /// Whether a block that was dropped is still on its way to a tier, from which it will be taken again.
    pub(crate) fn is_settling(&self, key: &BlockKey) -> bool {
        let running = self.fills.running(key);
        running.is_some_and(|fill| fill.is_discarded())
    }

    /// Checks a block that a client found damaged, and drops it if it is.
    pub async fn report_damaged(&self, key: BlockKey) {
        if self.memory.check(&key) == Checked::Damaged {
            self.count_damaged(1);
        }
        self.ssd.report_bad(key).await;
    }

    /// Drops blocks from every tier; gives the bytes that they had.
    pub fn evict(&self, keys: &[BlockKey]) -> u64 {
        self.evict_for(keys, "request")
    }

    /// As [`Self::evict`], counted under a reason.
    pub(crate) fn evict_for(&self, keys: &[BlockKey], reason: &'static str) -> u64 {
        let removed = fills::evict(self, keys);
        for (tier, bytes) in [("memory", removed.memory), ("ssd", removed.ssd)] {
            let labels = EvictionLabels { tier, reason };
            self.metrics
                .evicted_bytes
                .get_or_create(&labels)
                .inc_by(bytes);
        }
        removed.memory + removed.ssd
    }

    async fn check_loop(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
            self.origins.close_idle();
            let worker = self.clone();
            // A panic in the check would be logged by tokio; the next round tries again.
            let upkeep = move || {
                worker.ssd.check_files();
                worker.ssd.leave_room();
                worker.drop_copies();
                worker.drop_kept();
                worker.drop_unowned();
                worker.ssd.compact();
                let damaged = worker.memory.scrub(CHECK_INTERVAL);
                worker.count_damaged(damaged);
            };
            let _ = tokio::task::spawn_blocking(upkeep).await;
            self.update_gauges();
        }
    }

    /// Stops fills, writes what is queued and closes the tiers. Waits for them, at most `deadline`.
    pub fn close(&self, deadline: Duration) -> BoxFuture<'_, ()> {
        async move {
            self.stop.cancel();
            self.tasks.close();
            let ssd = self.ssd.clone();
            let closing = async {
                self.tasks.wait().await;
                // A panic while closing leaves an unsealed segment, which the next start scans.
                let _ = tokio::task::spawn_blocking(move || ssd.close()).await;
            };
            if timeout(deadline, closing).await.is_err() {
                tracing::warn!(
                    ?deadline,
                    "the cache was not closed in time; the next start scans its last segment"
                );
            }
        }
        .boxed()
    }
}

/// Where a fill's bytes came from.
fn source_of(fill: &Fill) -> Source {
    if fill.is_copied() {
        Source::Worker
    } else {
        Source::Origin
    }
}

/// What a log may say of a read that may wait. Costs nothing unless that is turned on.
fn span(block: &Block, range: &Range<u32>) -> Span {
    let object = &*block.object.key;
    trace_span!(target: "weir::read", "worker_read", object, block = block.index, ?range)
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use weir_core::ByteSize;

    use super::*;
    use crate::copies::fake;
    use crate::testing;

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_what_is_held_is_answered_soon_however_slow_the_origin_is() {
        let config = WorkerConfig {
            memory: ByteSize(64 << 20),
            ..testing::config("w").unwrap()
        };
        let worker = testing::open(config).unwrap();
        let block = fake::block();
        let started = fills::start(&worker, block.key(), block.len(), &block.object.key);
        let started = started.ok().unwrap();
        let chunks = stream::once(async {
            tokio::time::sleep(2 * HELD_DEADLINE).await;
            Ok(Bytes::from(fake::content()))
        });
        let fill = started.fill().clone();
        let filling = tokio::spawn(async move { fill.take(chunks).await });
        tokio::task::yield_now().await;
        let since = tokio::time::Instant::now();
        let held = || worker.read_held(&block, 0..block.len());
        assert!(held().await.is_none());
        assert!(since.elapsed() < HELD_DEADLINE + Duration::from_millis(100));
        tokio::time::sleep(HELD_DEADLINE / 2).await;
        let (pieces, _) = held().await.unwrap();
        assert_eq!(pieces.concat(), fake::content());
        filling.await.unwrap().unwrap();
    }
}
