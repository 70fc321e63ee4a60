//! Further copies of blocks that many want at once, beside those of their owners.
//!
//! A reader who was told to spread asks this worker for a block and names the workers that it may be copied from: first one that
//! is to have a copy, too, and the owner last. So copies go from worker to worker as a tree. Each worker has a *place* in
//! that tree, the owner place 0. A copy under way is waited for only by those who ask for a place that is not lower than the
//! one that it is made for, and it asks for lower ones itself: so no two workers wait for each other, whatever their maps are.
//!
//! The origin is never asked, and whoever gets nothing goes to the owner. Copies are kept while they are read, within a bound of
//! bytes, and make room before anything else does.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use weir_core::{Block, BlockKey, WorkerId, WorkerInfo};
use weir_wire::{MAX_COPIES, way_down};

use super::filling::{LEAST_PREFETCHED, units_of};
use super::place::Place;
use super::{Cached, Worker};
use crate::copies::{Answer, Copies};
use crate::fill::{Given, LEAST_TAKEN};
use crate::read_source::Source;

/// Copies that are made at once, and those that wait with them for their turns: whoever asks may go away, and come again.
const AT_ONCE: usize = 16;
const MAX_UNDER_WAY: usize = 1024;
/// Longest wait of one for its turn, and for memory.
const TURN_DEADLINE: Duration = Duration::from_secs(1);
/// Longest wait for one worker to give a block: it may wait for one that it asks itself, and many readers share what it sends.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long a copy is kept that nobody reads.
const IDLE: Duration = Duration::from_mins(2);
/// A copy that was read within this time does not make room for another one.
const IN_USE: Duration = Duration::from_secs(5);
/// Workers on the longest way down to an owner.
const MAX_WAY: usize = MAX_COPIES.ilog2() as usize + 1;

/// What is known of the copies that are kept here.
#[derive(Debug)]
pub(crate) struct Copying {
    /// Most bytes of them.
    most: u64,
    turns: Arc<Semaphore>,
    under_way: Mutex<HashMap<BlockKey, UnderWay>>,
    kept: Mutex<Kept>,
    /// Bytes of those in `kept`, so that those who have none look at no lock.
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    blocks: HashMap<BlockKey, (u32, Instant)>,
    /// The map that they were made by.
    epoch: u64,
}

/// A copy that is being made.
#[derive(Clone, Debug)]
struct UnderWay {
    place: u32,
    outcome: watch::Receiver<Outcome>,
}

/// What making a copy has come to.
#[derive(Clone, PartialEq, Debug)]
enum Outcome {
    Open,
    Made(Bytes),
    Failed,
}

impl Copying {
    pub(super) fn new(most: u64) -> Self {
        Self {
            most,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            under_way: Mutex::default(),
            kept: Mutex::default(),
            bytes: AtomicU64::new(0),
        }
    }

    /// Bytes of copies that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether a copy of a block is being made.
    pub(super) fn is_making(&self, key: &BlockKey) -> bool {
        self.under_way.lock().contains_key(key)
    }

    /// A copy is read.
    fn used(&self, key: &BlockKey) {
        if let Some((_, used)) = self.kept.lock().blocks.get_mut(key) {
            *used = Instant::now();
        }
    }

    /// Blocks are wanted of this worker as of their owner, or its fallback: they are no mere copies any more.
    pub(crate) fn forget(&self, key: &BlockKey) {
        if self.bytes() == 0 {
            return;
        }
        if let Some((len, _)) = self.kept.lock().blocks.remove(key) {
            self.bytes.fetch_sub(len.into(), Ordering::Relaxed);
        }
    }

    /// Notes a copy that is kept; gives those that make room for it. `None` if there is none: it is not to be kept.
    fn add(&self, key: BlockKey, len: u32, epoch: u64, now: Instant) -> Option<Vec<BlockKey>> {
        let mut kept = self.kept.lock();
        if kept.blocks.is_empty() {
            kept.epoch = epoch;
        }
        let mut dropped = Vec::new();
        let excess = (self.bytes() + u64::from(len)).saturating_sub(self.most);
        if excess > 0 {
            if u64::from(len) > self.most {
                return None;
            }
            // An eighth at once: to find the oldest takes a look at all.
            dropped = kept.oldest(excess.max(self.most / 8), now, IN_USE);
            if bytes_of(&dropped) < excess {
                return None;
            }
        }
        let dropped = self.take_out(&mut kept, &dropped);
        if let Some((before, _)) = kept.blocks.insert(key, (len, now)) {
            self.bytes.fetch_sub(before.into(), Ordering::Relaxed);
        }
        self.bytes.fetch_add(len.into(), Ordering::Relaxed);
        Some(dropped)
    }

    /// Takes out what nobody reads any more; of all `excess` bytes, the oldest first, if room is short. By another map blocks may be
    /// this worker's own: then they are copies no more, and none is taken out.
    fn expire(&self, epoch: u64, excess: u64, now: Instant) -> Vec<BlockKey> {
        let mut kept = self.kept.lock();
        if kept.epoch != epoch {
            kept.blocks.clear();
            self.bytes.store(0, Ordering::Relaxed);
            return Vec::new();
        }
        let mut dropped = kept.oldest(u64::MAX, now, IDLE);
        if bytes_of(&dropped) < excess {
            dropped = kept.oldest(excess, now, Duration::ZERO);
        }
        self.take_out(&mut kept, &dropped)
    }

    /// Gives the keys of those that are taken out.
    fn take_out(&self, kept: &mut Kept, dropped: &[(BlockKey, u32)]) -> Vec<BlockKey> {
        for (key, _) in dropped {
            kept.blocks.remove(key);
        }
        self.bytes.fetch_sub(bytes_of(dropped), Ordering::Relaxed);
        dropped.iter().map(|(key, _)| *key).collect()
    }
}

fn bytes_of(blocks: &[(BlockKey, u32)]) -> u64 {
    blocks.iter().map(|(_, len)| u64::from(*len)).sum()
}

impl Kept {
    /// So many bytes of copies that nobody has read for so long, the oldest first.
    fn oldest(&self, bytes: u64, now: Instant, unread: Duration) -> Vec<(BlockKey, u32)> {
        let mut oldest: Vec<_> = self
            .blocks
            .iter()
            .filter(|(_, (_, used))| now.saturating_duration_since(*used) >= unread)
            .map(|(key, (len, used))| (*used, *key, *len))
            .collect();
        oldest.sort_unstable_by_key(|(used, key, _)| (*used, key.0));
        let mut sum = 0;
        let enough = oldest.into_iter().take_while(|(_, _, len)| {
            let is_needed = sum < bytes;
            sum += u64::from(*len);
            is_needed
        });
        enough.map(|(_, key, len)| (key, len)).collect()
    }
}

/// A copy that is under way until this is dropped.
struct Making {
    worker: Arc<Worker>,
    key: BlockKey,
    outcome: watch::Sender<Outcome>,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.worker.copying.under_way.lock().remove(&self.key);
        self.outcome.send_if_modified(|outcome| {
            let is_open = *outcome == Outcome::Open;
            if is_open {
                *outcome = Outcome::Failed;
            }
            is_open
        });
    }
}

impl Worker {
    /// A part of a block of which this worker is to have a copy, at `place` of the block's tree; it may be copied from the
    /// workers of these names, the nearest one first. `None` if it is not to be had so.
    pub(crate) async fn read_copy(
        self: &Arc<Self>,
        dataset: &str,
        block: &Block,
        range: std::ops::Range<u32>,
        place: u32,
        from: &[String],
    ) -> Option<Cached> {
        let key = block.key();
        if let Some(found) = self.read_held(block, range.clone()).await {
            self.copying.used(&key);
            return Some(found);
        }
        let mut outcome = self.copy_under_way(dataset, block, place, from)?;
        let is_over = |outcome: &Outcome| *outcome != Outcome::Open;
        let outcome = outcome.wait_for(is_over).await.ok()?.clone();
        let Outcome::Made(data) = outcome else {
            return None;
        };
        let span = range.start as usize..range.end as usize;
        let part = data.get(span.clone()).map(|_| data.slice(span))?;
        Some((vec![part], Source::Worker))
    }

    /// The copy of a block that is being made, or one that is made from now on. `None` if it is not to be waited for, or
    /// cannot be made.
    fn copy_under_way(
        self: &Arc<Self>,
        dataset: &str,
        block: &Block,
        place: u32,
        from: &[String],
    ) -> Option<watch::Receiver<Outcome>> {
        let key = block.key();
        let copies = self.copies.get()?.clone();
        let way = from.iter().filter_map(|id| id.parse::<WorkerId>().ok());
        let way: Vec<WorkerId> = way.take(MAX_WAY + 1).collect();
        if self.copying.most == 0
            || self.stop.is_cancelled()
            || place > MAX_COPIES
            || way.len() != way_down(place).count()
            || self.verifier.refusal(block).is_some()
            || copies.is_wrong(&key)
        {
            return None;
        }
        let mut under_way = self.copying.under_way.lock();
        if let Some(known) = under_way.get(&key) {
            return (known.place <= place).then(|| known.outcome.clone());
        }
        if under_way.len() >= MAX_UNDER_WAY {
            return None;
        }
        let (sender, outcome) = watch::channel(Outcome::Open);
        let new = UnderWay {
            place,
            outcome: outcome.clone(),
        };
        under_way.insert(key, new);
        drop(under_way);
        let making = Making {
            worker: self.clone(),
            key,
            outcome: sender,
        };
        let (dataset, block) = (dataset.to_owned(), block.clone());
        let stop = self.stop.clone();
        self.tasks.spawn(stop.run_until_cancelled_owned(async move {
            making
                .worker
                .clone()
                .make(making, &copies, &dataset, &block, place, &way)
                .await;
        }));
        Some(outcome)
    }

    async fn make(
        self: Arc<Self>,
        making: Making,
        copies: &Arc<Copies>,
        dataset: &str,
        block: &Block,
        place: u32,
        way: &[WorkerId],
    ) {
        let turn = self.copying.turns.clone().acquire_owned();
        let Ok(Ok(_turn)) = timeout(TURN_DEADLINE, turn).await else {
            return;
        };
        // They take no more of the budget than what nobody waits for: two workers that wait for each other's fills must have some
        // left for these.
        let units = units_of(block, LEAST_PREFETCHED);
        let part = self.prefetch_budget.clone().acquire_many_owned(units);
        let Ok(Ok(_part)) = timeout(TURN_DEADLINE, part).await else {
            return;
        };
        let units = units_of(block, LEAST_TAKEN);
        let memory = Place::take(None, self.budget.clone(), units);
        let Ok(Some(memory)) = timeout(TURN_DEADLINE, memory).await else {
            return;
        };
        let Some(data) = ask_along(copies, dataset, block, place, way).await else {
            return;
        };
        making.outcome.send_replace(Outcome::Made(data.clone()));
        self.keep_copy(making.key, copies, block, data, memory)
            .await;
    }

    /// Keeps a copy in the tiers, as far as it is not in the way of anything else.
    async fn keep_copy(
        self: &Arc<Self>,
        key: BlockKey,
        copies: &Copies,
        block: &Block,
        data: Bytes,
        memory: Place,
    ) {
        let epoch = copies.map().epoch();
        let Some(dropped) = self.copying.add(key, block.len(), epoch, Instant::now()) else {
            return;
        };
        if !dropped.is_empty() {
            self.evict_for(&dropped, "copy");
        }
        let given = Given {
            data,
            was_fetched: false,
        };
        let Ok(started) = self.start_given(copies, block, key, given) else {
            // It comes otherwise, and is kept for that.
            self.copying.forget(&key);
            return;
        };
        if self.has_room() {
            self.keep(started, Some(memory)).await;
        } else {
            self.keep_in_memory(&started);
        }
    }

    /// Drops copies that nobody reads any more, and others if room is short.
    pub(super) fn drop_copies(&self) {
        let Some(copies) = self.copies.get() else {
            return;
        };
        if self.copying.bytes() == 0 {
            return;
        }
        let excess = if self.has_room() {
            0
        } else {
            self.capacity() / super::FREE_SHARE
        };
        let epoch = copies.map().epoch();
        let dropped = self.copying.expire(epoch, excess, Instant::now());
        for keys in dropped.chunks(super::EVICT_BATCH) {
            self.evict_for(keys, "copy");
        }
    }
}

/// Asks for a block along the way down to its owner, until one has it.
async fn ask_along(
    copies: &Arc<Copies>,
    dataset: &str,
    block: &Block,
    place: u32,
    way: &[WorkerId],
) -> Option<Bytes> {
    let map = copies.map();
    for (at, (id, place)) in way.iter().zip(way_down(place)).enumerate() {
        let further = &way[at + 1..];
        let worker: Option<&WorkerInfo> = map.worker(id);
        let Some(worker) = worker.filter(|worker| worker.id != *copies.own()) else {
            continue;
        };
        let asked = copies.ask_for_copy(worker, dataset, block, place, further, DEADLINE);
        if let Answer::Held(given) = asked.await {
            return Some(given.data);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use weir_core::ByteSize;

    use super::*;
    use crate::config::WorkerConfig;
    use crate::copies::fake::{self, Kind};
    use crate::testing;
    use crate::worker::settled;

    const MIB: u32 = 1 << 20;

    fn key(n: u8) -> BlockKey {
        BlockKey([n; 16])
    }

    #[test]
    fn no_way_down_to_an_owner_is_longer_than_the_longest() {
        assert!((1..=MAX_COPIES).all(|place| way_down(place).count() <= MAX_WAY));
    }

    #[test]
    fn copies_take_no_more_than_their_part_and_the_ones_unread_the_longest_go() {
        let copying = Copying::new(8 * u64::from(MIB));
        let start = Instant::now();
        for n in 0..8 {
            let at = start + Duration::from_secs(n.into());
            assert_eq!(copying.add(key(n), MIB, 1, at), Some(Vec::new()));
        }
        let soon = start + Duration::from_secs(4);
        assert_eq!(
            copying.add(key(8), 2 * MIB, 1, soon),
            None,
            "all are in use"
        );
        assert_eq!(copying.add(key(9), 9 * MIB, 1, soon), None);
        let later = start + Duration::from_secs(8);
        assert_eq!(
            copying.add(key(8), 2 * MIB, 1, later),
            Some(vec![key(0), key(1)])
        );
        assert_eq!(copying.bytes(), 8 * u64::from(MIB));
        copying.forget(&key(8));
        copying.forget(&key(8));
        assert_eq!(copying.bytes(), 6 * u64::from(MIB));
        // Nobody reads some of them.
        assert_eq!(copying.expire(1, 0, start + Duration::from_secs(9)), []);
        let idle = start + IDLE + Duration::from_secs(4);
        assert_eq!(copying.expire(1, 0, idle), [key(2), key(3), key(4)]);
        // Room is short.
        assert_eq!(copying.expire(1, 1, idle), [key(5)]);
        // Another map.
        assert_eq!(copying.expire(2, 1, idle + IDLE), []);
        assert_eq!(copying.bytes(), 0);
    }

    /// A worker of a map with some others that hold its block or do not, and their names.
    async fn among(
        kinds: &[Kind],
    ) -> (
        Arc<Worker>,
        Vec<fake::Peer>,
        watch::Sender<Arc<weir_core::ClusterMap>>,
    ) {
        let config = WorkerConfig {
            memory: ByteSize(64 << 20),
            copies: Some(ByteSize(32 << 20)),
            ..testing::config("own").unwrap()
        };
        let worker = testing::open(config).unwrap();
        let mut peers = Vec::new();
        for (number, kind) in kinds.iter().enumerate() {
            peers.push(fake::peer(&format!("peer-{number}"), *kind).await);
        }
        let infos = peers.iter().map(|peer| peer.info.clone()).collect();
        let map = weir_core::ClusterMap::new(1, weir_core::Hashing::NEWEST, infos);
        let (sender, map) = watch::channel(Arc::new(map));
        worker.copy_from_others(map, weir_trust::Dial::default());
        (worker, peers, sender)
    }

    async fn read(worker: &Arc<Worker>, place: u32, from: &[&str]) -> Option<Vec<u8>> {
        let from: Vec<String> = from.iter().map(|id| (*id).to_owned()).collect();
        let block = fake::block();
        let read = worker.read_copy("set", &block, 0..block.len(), place, &from);
        read.await.map(|(pieces, _)| pieces.concat())
    }

    #[tokio::test]
    async fn a_copy_is_made_once_from_the_nearest_that_has_it() {
        let (worker, peers, _map) = among(&[Kind::Lacks, Kind::Holds]).await;
        let reads = (0..20).map(|_| read(&worker, 3, &["peer-0", "peer-1"]));
        for content in futures::future::join_all(reads).await {
            assert_eq!(content.unwrap(), fake::content());
        }
        let asked = |n: usize| peers[n].asked.load(Ordering::Relaxed);
        assert_eq!((asked(0), asked(1)), (1, 1));
        let is_kept = || worker.copying.bytes() == fake::LENGTH as u64;
        assert!(settled(is_kept).await, "it is not kept");
        let again = read(&worker, 3, &["peer-0", "peer-1"]).await;
        assert_eq!(again.unwrap(), fake::content());
        assert_eq!((asked(0), asked(1)), (1, 1));
    }

    #[tokio::test]
    async fn workers_that_do_not_give_a_copy_are_passed_over_and_the_origin_is_not_asked() {
        for kind in [
            Kind::Frozen,
            Kind::Lying,
            Kind::Closing,
            Kind::Refusing,
            Kind::Short,
            Kind::Empty,
        ] {
            let (worker, _peers, _map) = among(&[kind, Kind::Holds]).await;
            let content = read(&worker, 3, &["peer-0", "peer-1"]).await;
            assert_eq!(content.as_deref(), Some(&fake::content()[..]), "{kind:?}");
            let (worker, _peers, _map) = among(&[kind]).await;
            assert_eq!(read(&worker, 1, &["peer-0"]).await, None, "{kind:?}");
            assert_eq!(worker.copying.bytes(), 0);
            assert!(worker.copying.under_way.lock().is_empty());
        }
        // Ways that make no sense, and workers that are in no map.
        let (worker, peers, _map) = among(&[Kind::Holds]).await;
        let long = ["peer-0"; 40];
        let senseless: [(u32, &[&str]); 7] = [
            (1, &[]),
            (3, &long[..1]),
            (1, &long[..2]),
            (u32::MAX, &long),
            (1, &["?"]),
            (1, &["own"]),
            (1, &["other"]),
        ];
        for (place, from) in senseless {
            assert_eq!(read(&worker, place, from).await, None, "{place} {from:?}");
        }
        assert_eq!(peers[0].asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_copy_for_a_higher_place_is_not_waited_for() {
        let (worker, _peers, _map) = among(&[Kind::Frozen, Kind::Holds]).await;
        let mut high = std::pin::pin!(read(&worker, 3, &["peer-0", "peer-1"]));
        assert!(futures::poll!(high.as_mut()).is_pending());
        let low = timeout(Duration::from_millis(100), read(&worker, 1, &["peer-1"]));
        assert_eq!(low.await, Ok(None));
        assert_eq!(high.await.unwrap(), fake::content());
    }

    #[tokio::test]
    async fn no_more_copies_are_under_way_than_their_bound() {
        let (worker, peers, _map) = among(&[Kind::Holds]).await;
        let (_sender, outcome) = watch::channel(Outcome::Open);
        let other = UnderWay { place: 1, outcome };
        for n in 0..MAX_UNDER_WAY {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&n.to_be_bytes());
            let mut under_way = worker.copying.under_way.lock();
            under_way.insert(BlockKey(key), other.clone());
        }
        assert_eq!(read(&worker, 1, &["peer-0"]).await, None);
        assert_eq!(peers[0].asked.load(Ordering::Relaxed), 0);
        let key = BlockKey([0; 16]);
        worker.copying.under_way.lock().remove(&key);
        let content = read(&worker, 1, &["peer-0"]).await;
        assert_eq!(content.unwrap(), fake::content());
    }
}
