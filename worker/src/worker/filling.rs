//! Fills: started by a read that misses, by a warm job or by a prefetch, fetched within the budget, and offered to the
//! tiers.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::{TryStreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tracing::{Instrument, trace_span};
use weir_core::{BLOCK_SIZE, Block, BlockKey, WorkerInfo};
use weir_origin::OriginError;

use super::place::Place;
use super::{ReadError, Worker};
use crate::copies::{Answer, Asker, Copies, Route, Turn};
use crate::fill::{Fill, Given, LEAST_TAKEN};
use crate::fills::{self, Keeper, Started};
use crate::metrics::ResultLabel;
use crate::ssd::Write;
use weir_segment::{Admission, BlockData, Pieces};

/// The fills' byte budget is counted in pieces of this size, so that it fits a semaphore's 32 bits.
pub(super) const BUDGET_UNIT: u64 = 4096;
/// What even a small block counts against it that nobody waits for: with many requests under way it is connections that take
/// memory.
pub(super) const LEAST_PREFETCHED: u64 = 256 << 10;
/// How long a block that nobody waits for may wait for its place.
const PLACE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a reader's block that another worker may give waits for its place: others wait for its turn to ask meanwhile.
const COPY_PLACE_DEADLINE: Duration = Duration::from_secs(1);
/// The same of one that another worker fetches if it has to: waited for as the origin is, but not as long.
const FILLER_PLACE_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for a block to be, or to be gone from, where it is written to; and how often it is looked for.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
const SETTLE_POLL: Duration = Duration::from_millis(5);

/// Waits until what is under way has come to its end; gives whether it has.
pub(crate) async fn settled(is_over: impl Fn() -> bool) -> bool {
    let settled = async {
        while !is_over() {
            tokio::time::sleep(SETTLE_POLL).await;
        }
    };
    timeout(SETTLE_DEADLINE, settled).await.is_ok()
}

/// What a block counts against a budget in which it counts so many bytes at least.
pub(super) fn units_of(block: &Block, least: u64) -> u32 {
    u64::from(block.len()).max(least).div_ceil(BUDGET_UNIT) as u32
}

/// The answer to a request to prefetch a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrefetchAnswer {
    /// It is being fetched for this request.
    Accepted,
    /// It is cached, or on its way.
    NotNeeded,
    /// There is no room for guesses, the origin answers as soon as the disk, or whoever would fetch it cannot be asked.
    Refused,
}

/// What became of a block that was to be taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Taken {
    /// It was here, or came otherwise.
    Held,
    /// The other worker gave it.
    Copied,
    /// The other worker does not have it, or nobody is to have it any more.
    NotThere,
    /// No tier took it.
    NoRoom,
    /// The other worker did not give it, though it may have it, or whoever fetched it here failed.
    Failed,
}

/// The work of a fill: resolves when its block is complete and was given to the tiers, or when it has failed. The fill
/// makes progress only while somebody polls it.
pub type FillWork = BoxFuture<'static, ()>;

impl Worker {
    /// Makes sure that a block is held; gives whether the origin has sent it for this. The caller polls a fill that
    /// this starts to its end.
    pub async fn warm(self: &Arc<Self>, block: &Block) -> Result<bool, ReadError> {
        let key = block.key();
        if self.holds(&key) {
            self.copying.forget(&key);
            return Ok(false);
        }
        let (fill, work) = self.start_fill(block, key)?;
        let is_new = work.is_some();
        if let Some(work) = work {
            work.await;
        }
        fill.finished().await?;
        Ok(is_new && fill.was_fetched())
    }

    /// How many whole blocks that nobody waits for are fetched at once.
    pub fn prefetch_blocks(&self) -> u32 {
        u32::try_from(self.config.prefetch_budget() / BLOCK_SIZE).unwrap_or(u32::MAX)
    }

    /// Fetches a block before anybody reads it, in the background and once there is a place for it among others that
    /// nobody waits for.
    pub async fn prefetch(self: &Arc<Self>, block: &Block) -> PrefetchAnswer {
        self.prefetch_for(block, Asker::default()).await
    }

    /// The same for somebody on another machine.
    pub(crate) async fn prefetch_for(
        self: &Arc<Self>,
        block: &Block,
        asker: Asker,
    ) -> PrefetchAnswer {
        let key = block.key();
        let refusal = || {
            if self.keeps(&key) || self.fills.running(&key).is_some() {
                Some(PrefetchAnswer::NotNeeded)
            } else if self.has_room()
                && (self.origins.wants_more(block.origin) || self.is_forwarded(block))
            {
                None
            } else {
                Some(PrefetchAnswer::Refused)
            }
        };
        if let Some(refusal) = refusal() {
            return refusal;
        }
        let units = units_of(block, LEAST_PREFETCHED);
        let place = self.prefetch_budget.clone().acquire_many_owned(units);
        let Ok(place) = timeout(PLACE_DEADLINE, place).await else {
            return PrefetchAnswer::Refused;
        };
        if let Some(refusal) = refusal() {
            return refusal;
        }
        match self.start_fill_for(block, key, asker) {
            Ok((_, Some(work))) => {
                tokio::spawn(async move {
                    work.await;
                    drop(place);
                });
                PrefetchAnswer::Accepted
            }
            Ok((_, None)) => PrefetchAnswer::NotNeeded,
            Err(_) => PrefetchAnswer::Refused,
        }
    }

    /// Finds the block's fill or starts one, as a task of its own.
    pub(super) fn spawn_fill(
        self: &Arc<Self>,
        block: &Block,
        key: BlockKey,
        asker: Asker,
    ) -> Result<Arc<Fill>, ReadError> {
        let (fill, work) = self.start_fill_for(block, key, asker)?;
        if let Some(work) = work {
            tokio::spawn(work);
        }
        Ok(fill)
    }

    /// Finds the block's fill or starts one. A new fill comes with the future that does its work.
    pub(super) fn start_fill(
        self: &Arc<Self>,
        block: &Block,
        key: BlockKey,
    ) -> Result<(Arc<Fill>, Option<FillWork>), ReadError> {
        self.start_fill_for(block, key, Asker::default())
    }

    /// The same for somebody on another machine.
    pub(super) fn start_fill_for(
        self: &Arc<Self>,
        block: &Block,
        key: BlockKey,
        asker: Asker,
    ) -> Result<(Arc<Fill>, Option<FillWork>), ReadError> {
        if self.stop.is_cancelled() {
            return Err(ReadError::ShuttingDown);
        }
        if let Some(error) = self.verifier.refusal(block) {
            return Err(error.into());
        }
        let started = match fills::start(self, key, block.len(), &block.object.key) {
            Ok(started) => started,
            Err(running) => return Ok((running, None)),
        };
        let fill = started.fill().clone();
        let object = &*block.object.key;
        let span = trace_span!(target: "weir::read", "fill", object, block = block.index);
        let (worker, block) = (self.clone(), block.clone());
        let work = async move { worker.run_fill(&block, started, asker).await };
        let work = work.instrument(span);
        Ok((fill, Some(self.tasks.track_future(work).boxed())))
    }

    async fn run_fill(self: Arc<Self>, block: &Block, started: Started<Self>, asker: Asker) {
        let since = Instant::now();
        let result = tokio::select! {
            () = self.stop.cancelled() => Err(OriginError::interrupted(&block.object.key)),
            result = self.fetch_block(block, &started, &asker) => result,
        };
        let labels = ResultLabel {
            result: if result.is_ok() { "ok" } else { "error" },
        };
        self.metrics.fills.get_or_create(&labels).inc();
        match result {
            Ok(place) => {
                self.metrics
                    .fill_duration
                    .observe(since.elapsed().as_secs_f64());
                let is_from_origin = place.is_some() && !started.fill().is_copied();
                if is_from_origin && !self.verifier.fetched(block, started.fill()) {
                    self.metrics.unverified_blocks.inc();
                }
                if self.has_place_for(block) {
                    self.keep(started, place).await;
                } else {
                    self.keep_for_a_moment(&started);
                }
            }
            Err(error) => {
                // Each reader of an object that fails makes one.
                if let Some(left_out) = self.failures.line() {
                    tracing::warn!(%error, block = block.index, object = %block.object.key, left_out, "a block could not be fetched");
                }
                started.fail(error);
            }
        }
    }

    /// Fetches a block, unless a tier got it between the caller's look and the start of this fill.
    async fn fetch_block(
        self: &Arc<Self>,
        block: &Block,
        started: &Started<Self>,
        asker: &Asker,
    ) -> Result<Option<Place>, OriginError> {
        let (key, fill) = (started.key(), started.fill());
        let units = units_of(block, LEAST_TAKEN);
        let found = match self.memory.get(&key) {
            None => self.ssd.read_in_background(key, 0..block.len()).await,
            found => found,
        };
        if let Some(data) = found {
            fill.push(data);
            return Ok(None);
        }
        let copied = self.copy(block, &key, fill, units, asker).await;
        fill.forward(false);
        if let Some((given, place)) = copied {
            fill.copy(given);
            return Ok(Some(place));
        }
        let open = match self.origins.get_or_learn(block.origin).await {
            None => return Err(OriginError::unknown(block.origin)),
            Some(opened) => opened?,
        };
        let place = Place::take(Some(open.share), self.budget.clone(), units).await;
        let mut place = place.ok_or_else(|| OriginError::interrupted(&block.object.key))?;
        let chunks = weir_origin::fetch(
            open.origin,
            block.object.clone(),
            block.range(),
            open.policy,
            open.pace,
            self.origin_metrics.clone(),
        );
        let counted = chunks.inspect_ok(|chunk| {
            self.metrics.fill_bytes.inc_by(chunk.len() as u64);
        });
        let counted = std::pin::pin!(counted);
        let in_place = stream::unfold((counted, &mut place), async |(mut chunks, place)| {
            let chunk = place.next(&mut chunks).await?;
            Some((chunk, (chunks, place)))
        });
        fill.take(in_place).await?;
        Ok(Some(place))
    }

    /// The way to a block that is not here.
    pub(super) fn route(
        &self,
        copies: &Copies,
        block: &Block,
        key: &BlockKey,
        asker: &Asker,
    ) -> Route {
        let object = &*block.object.key;
        copies.route(key, asker, || {
            self.origins.datasets_of(block.origin, object)
        })
    }

    /// Whether a block that is not here would be fetched by another worker.
    fn is_forwarded(&self, block: &Block) -> bool {
        let copies = self.copies.get();
        copies.is_some_and(|copies| {
            let route = self.route(copies, block, &block.key(), &Asker::default());
            matches!(route, Route::Filler(..) | Route::Kept(..))
        })
    }

    /// Takes a block from another worker that holds it, or that is the one to fetch it.
    async fn copy(
        &self,
        block: &Block,
        key: &BlockKey,
        fill: &Fill,
        units: u32,
        asker: &Asker,
    ) -> Option<(Given, Place)> {
        let copies = self.copies.get()?;
        match self.route(copies, block, key, asker) {
            Route::Held(dataset, holders) if !holders.is_empty() => {
                let turn = copies.turn_of(block.origin).await?;
                let place = Place::take(None, self.budget.clone(), units);
                let place = timeout(COPY_PLACE_DEADLINE, place).await.ok()??;
                let given = copies.fetch(&turn, &holders, &dataset, block).await?;
                Some((given, place))
            }
            // One that is avoided has the origin asked instead.
            Route::Kept(_, filler) if !copies.answers(&filler.id, asker) => None,
            Route::Filler(dataset, filler) | Route::Kept(dataset, filler) if !asker.is_worker => {
                fill.forward(true);
                let turn = copies.turn_of_filler().await?;
                let place = Place::take(None, self.copy_budget.clone(), units);
                let place = timeout(FILLER_PLACE_DEADLINE, place).await.ok()??;
                let given = copies.fetch_of_filler(&turn, &filler, &dataset, block);
                Some((given.await?, place))
            }
            Route::Origin | Route::Held(..) | Route::Filler(..) | Route::Kept(..) => None,
        }
    }

    /// Whether the tier that is to keep blocks holds one: SSD, or memory where there is none.
    pub(crate) fn keeps_for_long(&self, key: &BlockKey) -> bool {
        if self.config.ssd.iter().all(|device| device.capacity.0 == 0) {
            self.memory.contains(key)
        } else {
            self.ssd.contains(key)
        }
    }

    /// Takes over a block that nobody waits for from a worker that may hold it, by the name of a dataset that has it. A worker
    /// that closes ends that, and waits until it has ended.
    pub(crate) async fn take_block_over(
        self: &Arc<Self>,
        dataset: &str,
        block: &Block,
        from: &WorkerInfo,
    ) -> Taken {
        let taking = self.take_if_open(dataset, block, from);
        let taking = self
            .tasks
            .track_future(self.stop.run_until_cancelled(taking));
        taking.await.unwrap_or(Taken::Failed)
    }

    async fn take_if_open(
        self: &Arc<Self>,
        dataset: &str,
        block: &Block,
        from: &WorkerInfo,
    ) -> Taken {
        let key = block.key();
        let Some(copies) = self.copies.get() else {
            return Taken::Failed;
        };
        if self.verifier.refusal(block).is_some() || copies.is_wrong(&key) {
            return Taken::NotThere;
        }
        let fill = if let Some(running) = self.fills.running(&key) {
            running
        } else if self.keeps_for_long(&key) {
            self.copying.forget(&key);
            return Taken::Held;
        } else {
            let places = timeout(PLACE_DEADLINE, self.places_of(copies, block)).await;
            let Ok(Some((_guess, turn, place))) = places else {
                return Taken::Failed;
            };
            let given = match copies.take(&turn, from, dataset, block).await {
                Answer::Held(given) => given,
                Answer::NotHeld => return Taken::NotThere,
                Answer::Failed => return Taken::Failed,
            };
            drop(turn);
            match self.start_given(copies, block, key, given) {
                Ok(started) => {
                    let fill = started.fill().clone();
                    self.keep(started, Some(place)).await;
                    return self.settled_as(&key, &fill, Taken::Copied).await;
                }
                // A reader's that has begun meanwhile will do.
                Err(running) => running,
            }
        };
        self.settled_as(&key, &fill, Taken::Held).await
    }

    /// Starts a fill for a block that another worker gave; or gives the one that is under way.
    pub(super) fn start_given(
        self: &Arc<Self>,
        copies: &Copies,
        block: &Block,
        key: BlockKey,
        given: Given,
    ) -> Result<Started<Self>, Arc<Fill>> {
        let started = fills::start(self, key, block.len(), &block.object.key)?;
        // From the start on those who drop the block find the fill; this is for who did before.
        if copies.is_wrong(&key) {
            started.fill().discard();
        }
        started.fill().copy(given);
        Ok(started)
    }

    /// What a block needs that is taken over: its part of what nobody waits for, a turn to ask, and memory. `None` when the
    /// worker ends.
    async fn places_of(
        &self,
        copies: &Copies,
        block: &Block,
    ) -> Option<(OwnedSemaphorePermit, Turn, Place)> {
        let units = units_of(block, LEAST_PREFETCHED);
        let guess = self.prefetch_budget.clone().acquire_many_owned(units);
        let guess = guess.await.ok()?;
        let turn = copies.turn().await?;
        let units = units_of(block, LEAST_TAKEN);
        let place = Place::take(None, self.budget.clone(), units).await?;
        Some((guess, turn, place))
    }

    /// Waits until a fill has ended, and looks whether its block is where it is kept.
    async fn settled_as(&self, key: &BlockKey, fill: &Arc<Fill>, kept: Taken) -> Taken {
        let is_running = |running: &Arc<Fill>| Arc::ptr_eq(running, fill);
        let is_over = || !self.fills.running(key).as_ref().is_some_and(is_running);
        if !settled(is_over).await || fill.has_failed() {
            Taken::Failed
        } else if self.keeps_for_long(key) {
            kept
        } else if fill.is_discarded() {
            Taken::NotThere
        } else {
            Taken::NoRoom
        }
    }

    /// Offers a fetched block to the memory tier; gives its bytes if it is complete.
    pub(super) fn keep_in_memory(&self, started: &Started<Self>) -> Option<Pieces> {
        let mut data = Pieces::new(started.fill().complete()?);
        if !started.fill().is_discarded() && self.memory.capacity() > 0 {
            let sums = data.checksums();
            self.memory.insert(started.key(), data.bytes(), sums);
        }
        Some(data)
    }

    /// Offers a fetched block to the tiers. The fill is under way until the SSD tier has it.
    pub(super) async fn keep(&self, started: Started<Self>, place: Option<Place>) {
        let Some(place) = place else {
            return started.was_held();
        };
        let Some(data) = self.keep_in_memory(&started) else {
            return started.was_held();
        };
        let key = started.key();
        let metrics = self.metrics.clone();
        let bytes = data.total() as u64;
        let write = Write {
            key,
            data,
            done: Box::new(move |outcome| {
                let is_full = match outcome {
                    Ok(admission) => admission == Admission::Full,
                    Err(error) => error.is_disk_full(),
                };
                if is_full {
                    metrics.refused.inc();
                    metrics.refused_bytes.inc_by(bytes);
                }
                drop(started);
                drop(place);
            }),
        };
        // Without an SSD tier, or while it closes, the fill ends with the write that is given back.
        drop(self.ssd.write(write).await);
    }
}

#[cfg(test)]
mod tests;
