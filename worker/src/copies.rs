//! Blocks that other workers hold, and this one is to.
//!
//! When the cluster map changes, some blocks have a new owner, and the former one still holds them. The new owner asks it
//! before it goes to the origin, so that the origin sends nothing again because workers come or go as planned. It is asked
//! for what it holds only, so no question leads to another one, and no two workers wait for each other.
//! While maps differ, a worker may be asked for what it does not own by its own map: then it asks those that do.
//!
//! Of a dataset with several copies only the first is filled from the origin (`placed.rs`): the owner of another one asks that of
//! the first, and waits for as long as that one says that it works on it, but not for ever.
//!
//! A worker that does not answer costs one read 0.75 s, or two seconds if it is slow, and is then left out for a
//! while. What nobody has, or is damaged on its way, comes from the origin.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};
use weir_core::{Block, BlockKey, ClusterMap, LogLimit, OriginId, WorkerId, WorkerInfo};
use weir_proto::v1::{BlockRequest, BlockSource, BlockStatus};
use weir_trust::Dial;
use weir_wire::{Activity, ConnectionError, Connections, FarWorkers, request_of};

use crate::fill::Given;
use crate::metrics::{ResultLabel, WorkerMetrics};
use crate::placements::Placements;

mod former;
mod placed;

use former::Former;
pub(crate) use former::uncordoned;
use placed::Placed;
pub(crate) use placed::Route;

/// Silence after which a worker is given up on: one that is busy says something every 100 ms. A read that waits for that is to take less
/// than a second.
const SILENCE: Duration = Duration::from_millis(750);
/// Longest wait for a block that a worker says it has.
const DEADLINE: Duration = Duration::from_secs(2);
/// The same of a worker that fetches the block. A reader may be the next to wait for that, who has waited for another worker.
const FILLER_SILENCE: Duration = Duration::from_millis(600);
/// Longest wait for a block that a worker says it fetches: after that it is asked for at the origin itself.
const FILLER_DEADLINE: Duration = Duration::from_secs(10);
/// Blocks that are asked for at once of workers that fetch them.
const FILLERS_AT_ONCE: usize = 256;
/// Blocks that are asked for at once, and the longest wait for one's turn.
const AT_ONCE: usize = 64;
const TURN_DEADLINE: Duration = Duration::from_secs(1);
/// How long a worker that did not answer is not asked; twice as long when it does not answer the next time, up to so many
/// times. And how long one that is too old to be asked.
const AVOIDED_FOR: Duration = Duration::from_secs(10);
const MAX_DOUBLINGS: u32 = 4;
const TOO_OLD_FOR: Duration = Duration::from_mins(5);
/// Blocks of an origin in a row that no worker had, after which one in so many is still asked for: most of what is cold here
/// is cold everywhere.
const COLD_AFTER: u32 = 256;
const STILL_ASKED: u32 = 8;
/// Origins of which that is known.
const MAX_ORIGINS: usize = 1024;
/// How long a block that was wrong is fetched from its origin alone: others may not have dropped it yet. And how many are.
const WRONG_FOR: Duration = Duration::from_mins(1);
const MAX_WRONG: usize = 65_536;

/// Who asks for a block, as far as that decides where it may come from.
#[derive(Clone, Default, Debug)]
pub(crate) struct Asker {
    /// A worker: nobody else is asked to fetch the block. That one would wait for this one, and this one for a third.
    pub(crate) is_worker: bool,
    /// It goes by another map or placement than this worker, whose owners may hold the block. Who goes by the same asks a worker that
    /// is no owner only when the owners say nothing, and has waited for them already.
    pub(crate) has_other_view: bool,
    /// Workers that it has found silent: it has waited for them, and would wait for them once more.
    pub(crate) silent: Vec<String>,
}

impl Asker {
    fn has_found_silent(&self, id: &WorkerId) -> bool {
        self.silent.iter().any(|silent| silent == id.as_str())
    }
}

/// The other workers of a cluster, as far as they may hold what this one lacks.
pub(crate) struct Copies {
    own: WorkerId,
    map: watch::Receiver<Arc<ClusterMap>>,
    /// Taken out to be asked: look-ups of owners take too long for a lock that each fill needs.
    former: Mutex<Arc<Former>>,
    placements: Arc<Placements>,
    placed: Placed,
    connections: Connections<FarWorkers>,
    turns: Arc<Semaphore>,
    /// Of those that may have to fetch what they are asked for.
    filler_turns: Arc<Semaphore>,
    /// Where connections live: whoever asks may do so in a runtime that ends, and they are used by others then.
    runtime: Handle,
    /// Workers that did not answer when they were asked last.
    avoided: Mutex<HashMap<WorkerId, Avoided>>,
    /// Blocks of each origin in a row that nobody had.
    cold: Mutex<HashMap<OriginId, u32>>,
    wrong: Mutex<HashMap<BlockKey, Instant>>,
    metrics: Arc<WorkerMetrics>,
    /// Workers that did not answer, in the log.
    failures: LogLimit,
}

/// A worker that is not asked.
struct Avoided {
    until: Instant,
    /// How often in a row it did not answer.
    times: u32,
}

/// A place among the questions that are under way. Each question keeps it until it has ended, whoever waits for it.
#[derive(Clone)]
pub(crate) struct Turn {
    _place: Arc<OwnedSemaphorePermit>,
}

impl Turn {
    async fn take(turns: &Arc<Semaphore>) -> Option<Self> {
        let place = turns.clone().acquire_owned().await.ok()?;
        Some(Self {
            _place: Arc::new(place),
        })
    }
}

/// What a worker said of a block.
pub(crate) enum Answer {
    /// It gave it.
    Held(Given),
    /// It does not have it.
    NotHeld,
    /// It did not give what it may hold.
    Failed,
}

impl Copies {
    /// Nothing is known yet of the maps before. Call inside the runtime that is to hold the connections.
    pub(crate) fn new(
        own: WorkerId,
        map: watch::Receiver<Arc<ClusterMap>>,
        placements: Arc<Placements>,
        dial: Dial,
        metrics: Arc<WorkerMetrics>,
    ) -> Self {
        Self {
            own,
            map,
            former: Mutex::default(),
            placements,
            placed: Placed::default(),
            connections: Connections::new(FarWorkers::new(dial)),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            filler_turns: Arc::new(Semaphore::new(FILLERS_AT_ONCE)),
            runtime: Handle::current(),
            avoided: Mutex::default(),
            cold: Mutex::default(),
            wrong: Mutex::default(),
            metrics,
            failures: LogLimit::default(),
        }
    }

    /// Remembers the maps that there were, for as long as maps come.
    pub(crate) async fn follow(&self) {
        let mut seen = self.map.clone();
        seen.mark_changed();
        while seen.changed().await.is_ok() {
            let map = seen.borrow_and_update().clone();
            self.see(&map);
            self.connections.retain_of(&map);
            let mut avoided = self.avoided.lock();
            avoided.retain(|id, _| map.worker(id).is_some());
        }
    }

    /// Takes note of a map that is in use from now on.
    fn see(&self, map: &Arc<ClusterMap>) {
        let mut former = Former::clone(&self.former());
        former.see(map, &self.own, Instant::now());
        *self.former.lock() = Arc::new(former);
        self.placed.forget();
        self.metrics.map_epoch.set(map.epoch() as i64);
    }

    fn former(&self) -> Arc<Former> {
        self.former.lock().clone()
    }

    /// The map that is in use.
    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        self.map.borrow().clone()
    }

    /// Waits a while for a map that is as new as this one.
    pub(crate) async fn learn_map(&self, epoch: u64, most: Duration) {
        let mut map = self.map.clone();
        let _ = timeout(most, map.wait_for(|map| map.epoch() >= epoch)).await;
    }

    /// Whether the map has been as it is for so long.
    pub(crate) fn is_settled_for(&self, time: Duration) -> bool {
        self.former().is_settled_for(time, Instant::now())
    }

    /// The way to a block that this worker lacks. `datasets` gives those that may have it.
    pub(crate) fn route(
        &self,
        key: &BlockKey,
        asker: &Asker,
        datasets: impl FnOnce() -> Vec<Arc<str>>,
    ) -> Route {
        if self.is_wrong(key) {
            return Route::Origin;
        }
        let by_map = self.by_map(key, asker);
        if by_map.is_empty() && self.placements.is_empty() {
            return Route::Origin;
        }
        let maps = self.former();
        let held = |dataset, holders| Route::Held(dataset, self.answering(holders, asker));
        let (mut owned_by_map, mut kept, mut before) = (None, None, None);
        for dataset in datasets() {
            // One that had a placement may still be where it was by that.
            let Some(known) = self.placements.get(&dataset) else {
                owned_by_map.get_or_insert(dataset);
                continue;
            };
            let view = self.placed.view(&dataset, known, &maps);
            match view.route(&dataset, key, &self.own) {
                // It is asked in an owner's place, or by who takes it for one, if it does not own the block of another dataset.
                None => {
                    if before.is_none() {
                        let holders = if asker.has_other_view {
                            view.holders(key, &self.own)
                        } else {
                            view.before(key, &self.own)
                        };
                        before = Some(held(dataset, holders)).filter(Route::has_holders);
                    }
                }
                // The other one takes this one for the filler, and asks nobody else.
                Some(Route::Filler(dataset, _) | Route::Kept(dataset, _))
                    if asker.is_worker && asker.has_other_view =>
                {
                    return held(dataset, view.holders(key, &self.own));
                }
                // Of another dataset it may own the same block.
                Some(route @ Route::Kept(..)) => {
                    kept.get_or_insert(route);
                }
                Some(Route::Filler(dataset, filler)) if !self.answers(&filler.id, asker) => {
                    return held(dataset, view.holders(key, &self.own));
                }
                Some(Route::Held(dataset, holders)) => return held(dataset, holders),
                Some(route) => return route,
            }
        }
        match owned_by_map {
            Some(dataset) if !by_map.is_empty() => Route::Held(dataset, by_map),
            Some(_) => Route::Origin,
            None => kept.or(before).unwrap_or(Route::Origin),
        }
    }

    /// The workers that may hold a block which this one owns and lacks, the likeliest first. Those that do not answer are
    /// left out.
    pub(crate) fn holders(&self, key: &BlockKey) -> Vec<WorkerInfo> {
        self.by_map(key, &Asker::default())
    }

    /// The same; and of one that it does not own, if it is asked by who goes by another map.
    fn by_map(&self, key: &BlockKey, asker: &Asker) -> Vec<WorkerInfo> {
        let map = self.map.borrow().clone();
        let former = self.former();
        let holders = former.holders(key, &map, &self.own, asker.has_other_view, Instant::now());
        if holders.is_empty() || self.is_wrong(key) {
            return Vec::new();
        }
        self.answering(holders, asker)
    }

    /// Those of some workers that answered when they were asked last.
    fn answering(&self, mut workers: Vec<WorkerInfo>, asker: &Asker) -> Vec<WorkerInfo> {
        workers.retain(|worker| self.answers(&worker.id, asker));
        workers
    }

    /// Whether a worker answered when it was asked last, here and by who asks now.
    pub(crate) fn answers(&self, id: &WorkerId, asker: &Asker) -> bool {
        !self.is_avoided(id) && !asker.has_found_silent(id)
    }

    /// The workers that may hold a block of this dataset of which this one is to hold a copy, the likeliest first. Those that do not
    /// answer are left out.
    pub(crate) fn holders_of(&self, dataset: &Arc<str>, key: &BlockKey) -> Vec<WorkerInfo> {
        let Some(known) = self.placements.get(dataset) else {
            return self.holders(key);
        };
        if self.is_wrong(key) {
            return Vec::new();
        }
        let maps = self.former();
        let view = self.placed.view(dataset, known, &maps);
        if !view.is_owner(key, &self.own) {
            return Vec::new();
        }
        self.answering(view.holders(key, &self.own), &Asker::default())
    }

    pub(crate) fn is_avoided(&self, id: &WorkerId) -> bool {
        let avoided = self.avoided.lock();
        let avoided = avoided.get(id);
        avoided.is_some_and(|avoided| Instant::now() < avoided.until)
    }

    /// A turn to ask for a block of an origin for a reader, if that is worth it and the turn comes soon. To be had before
    /// memory is set aside: it is waited for while workers do not answer.
    pub(crate) async fn turn_of(&self, origin: OriginId) -> Option<Turn> {
        if !self.is_worth_it(origin) {
            return None;
        }
        timeout(TURN_DEADLINE, self.turn()).await.ok()?
    }

    /// A turn to ask a worker that may have to fetch the block, waited for as for others.
    pub(crate) async fn turn_of_filler(&self) -> Option<Turn> {
        let turn = Turn::take(&self.filler_turns);
        timeout(TURN_DEADLINE, turn).await.ok()?
    }

    /// A block from the owner of its first copy, which fetches it if it lacks it. `None` if it does not come from there.
    pub(crate) async fn fetch_of_filler(
        self: &Arc<Self>,
        turn: &Turn,
        filler: &WorkerInfo,
        dataset: &str,
        block: &Block,
    ) -> Option<Given> {
        let request = BlockRequest {
            held_only: false,
            as_filler: true,
            ..self.request(dataset, block)
        };
        let turn = Some(turn.clone());
        match self.ask(filler, &request, FILLER_DEADLINE, turn).await {
            Answer::Held(given) => Some(given),
            Answer::NotHeld | Answer::Failed => None,
        }
    }

    /// A block from one of these workers, asked for by the name of a dataset that has it. `None` if none of them has it.
    pub(crate) async fn fetch(
        self: &Arc<Self>,
        turn: &Turn,
        holders: &[WorkerInfo],
        dataset: &str,
        block: &Block,
    ) -> Option<Given> {
        let request = self.request(dataset, block);
        let mut all_answered = true;
        for holder in holders {
            let turn = Some(turn.clone());
            match self.ask(holder, &request, DEADLINE, turn).await {
                Answer::Held(given) => {
                    self.cold.lock().remove(&block.origin);
                    return Some(given);
                }
                Answer::NotHeld => {}
                Answer::Failed => all_answered = false,
            }
        }
        if all_answered {
            let mut cold = self.cold.lock();
            if cold.len() >= MAX_ORIGINS && !cold.contains_key(&block.origin) {
                cold.clear();
            }
            let misses = cold.entry(block.origin).or_default();
            *misses = misses.saturating_add(1);
        }
        None
    }

    /// A block from a worker that may hold it, for whom nobody waits: it is asked though it did not answer a moment ago.
    pub(crate) async fn take(
        self: &Arc<Self>,
        turn: &Turn,
        holder: &WorkerInfo,
        dataset: &str,
        block: &Block,
    ) -> Answer {
        let request = self.request(dataset, block);
        let turn = Some(turn.clone());
        self.ask_in_background(holder, &request, DEADLINE, turn)
            .await
    }

    /// This worker's name.
    pub(crate) fn own(&self) -> &WorkerId {
        &self.own
    }

    /// A block of which copies are made, from the worker at `place` of its tree, which may ask those on its own way down.
    pub(crate) async fn ask_for_copy(
        self: &Arc<Self>,
        worker: &WorkerInfo,
        dataset: &str,
        block: &Block,
        place: u32,
        way: &[WorkerId],
        deadline: Duration,
    ) -> Answer {
        let request = BlockRequest {
            held_only: false,
            for_copy: true,
            copy_place: place,
            copy_from: way.iter().map(ToString::to_string).collect(),
            ..self.request(dataset, block)
        };
        self.ask(worker, &request, deadline, None).await
    }

    /// Waits for a turn to ask. Turns are given for as long as this lives.
    pub(crate) async fn turn(&self) -> Option<Turn> {
        Turn::take(&self.turns).await
    }

    /// Blocks that were wrong: other workers may hold them for a moment longer.
    pub(crate) fn distrust(&self, keys: &[BlockKey]) {
        let now = Instant::now();
        let mut wrong = self.wrong.lock();
        wrong.retain(|_, until| now < *until);
        let room = MAX_WRONG.saturating_sub(wrong.len());
        let until = now + WRONG_FOR;
        wrong.extend(keys.iter().take(room).map(|key| (*key, until)));
    }

    /// Whether a block was wrong a moment ago.
    pub(crate) fn is_wrong(&self, key: &BlockKey) -> bool {
        let wrong = self.wrong.lock();
        wrong.get(key).is_some_and(|until| Instant::now() < *until)
    }

    /// Whether somebody may hold blocks of an origin.
    fn is_worth_it(&self, origin: OriginId) -> bool {
        let mut cold = self.cold.lock();
        let Some(misses) = cold
            .get_mut(&origin)
            .filter(|misses| **misses >= COLD_AFTER)
        else {
            return true;
        };
        *misses = COLD_AFTER + (*misses - COLD_AFTER + 1) % STILL_ASKED;
        *misses == COLD_AFTER
    }

    /// Asks a worker, unless it has been silent to others since it was named.
    async fn ask(
        self: &Arc<Self>,
        worker: &WorkerInfo,
        request: &BlockRequest,
        deadline: Duration,
        turn: Option<Turn>,
    ) -> Answer {
        if self.is_avoided(&worker.id) {
            return Answer::Failed;
        }
        self.ask_in_background(worker, request, deadline, turn)
            .await
    }

    async fn ask_in_background(
        self: &Arc<Self>,
        worker: &WorkerInfo,
        request: &BlockRequest,
        deadline: Duration,
        turn: Option<Turn>,
    ) -> Answer {
        let (copies, worker, request) = (self.clone(), worker.clone(), request.clone());
        // It ends by itself, also if nobody waits for it any more.
        let asking = async move {
            let answer = copies.ask_in_time(&worker, &request, deadline).await;
            drop(turn);
            answer
        };
        let answer = self.runtime.spawn(asking).await.unwrap_or(Answer::Failed);
        if let Answer::Held(given) = &answer {
            let bytes = given.data.len() as u64;
            self.metrics.copied_bytes.inc_by(bytes);
        }
        answer
    }

    async fn ask_in_time(
        &self,
        worker: &WorkerInfo,
        request: &BlockRequest,
        deadline: Duration,
    ) -> Answer {
        let silence = if request.as_filler {
            FILLER_SILENCE
        } else {
            SILENCE
        };
        let activity = Activity::default();
        let asked = self.connections.request(worker, request, &activity);
        let answered = tokio::select! {
            biased;
            answered = timeout(deadline, asked) => answered.map_err(|_| "late"),
            () = activity.silent_for(silence) => Err("silent"),
        };
        let (result, answer) = match answered {
            Ok(Ok((answer, bytes))) => {
                self.avoided.lock().remove(&worker.id); // it has answered
                let reply = &answer.reply;
                self.placements
                    .compare(&request.dataset, reply.placement_version);
                match reply.status() {
                    BlockStatus::Ok if bytes.len() == request.length as usize => {
                        let given = Given {
                            data: bytes,
                            was_fetched: reply.source() == BlockSource::Origin,
                        };
                        ("ok", Answer::Held(given))
                    }
                    BlockStatus::NotHeld => ("not_held", Answer::NotHeld),
                    status => {
                        let message = &reply.message;
                        tracing::debug!(worker = %worker.id, ?status, message, "a block was not handed over");
                        ("refused", Answer::Failed)
                    }
                }
            }
            Ok(Err(error)) => {
                self.tell(worker, &error);
                let result = match error {
                    ConnectionError::TooOld => {
                        // One that makes no copies may give what it holds, and what it fetches.
                        if request.held_only {
                            self.leave_out(worker, TOO_OLD_FOR);
                        }
                        "too_old"
                    }
                    ConnectionError::Damaged => "damaged", // it was one block
                    _ => {
                        self.leave_out(worker, AVOIDED_FOR);
                        "unreachable"
                    }
                };
                (result, Answer::Failed)
            }
            Err(result) => {
                self.connections.forget(&worker.data_address);
                self.tell(worker, &"it does not answer in time");
                self.leave_out(worker, AVOIDED_FOR);
                (result, Answer::Failed)
            }
        };
        let labels = ResultLabel { result };
        self.metrics.copies.get_or_create(&labels).inc();
        answer
    }

    /// Tells the operator why a worker gives nothing.
    fn tell(&self, worker: &WorkerInfo, why: &dyn std::fmt::Display) {
        if let Some(left_out) = self.failures.line() {
            tracing::warn!(worker = %worker.id, left_out, "blocks that it may hold come from the origin: {why}");
        }
    }

    /// Does not ask a worker for so long, or longer if it was left out before.
    fn leave_out(&self, worker: &WorkerInfo, least: Duration) {
        let now = Instant::now();
        let mut avoided = self.avoided.lock();
        let avoided = avoided.entry(worker.id.clone()).or_insert(Avoided {
            until: now,
            times: 0,
        });
        let doublings = avoided.times.min(MAX_DOUBLINGS);
        let time = least.max(AVOIDED_FOR * 2_u32.pow(doublings));
        // Several may have waited for it at once.
        if avoided.until <= now {
            avoided.until = now + time;
            avoided.times += 1;
        }
    }

    /// For a whole block, if it is held.
    fn request(&self, dataset: &str, block: &Block) -> BlockRequest {
        BlockRequest {
            epoch: self.map.borrow().epoch(),
            placement_version: self.placements.version(dataset),
            dataset: dataset.to_owned(),
            held_only: true,
            ..request_of(block)
        }
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
