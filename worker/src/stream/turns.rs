//! Turns to be answered: how many bytes of answers there are at once, and whose come next.
//!
//! Answers take memory from when their bytes are read until they are sent. Beyond a bound requests wait for their turn, and
//! datasets take turns by bytes: one that ten times as many readers want gets no more than another, as long as that one wants as
//! much. A reader that is slow to take its answer gives its turn to others meanwhile, up to another bound. Each connection waits
//! for one turn at a time, so no more wait than there may be connections (`connections.rs`).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Bytes of answers at once, and of further ones whose readers are slow.
const MOST: u64 = 16 << 20;
const MOST_SLOW: u64 = 512 << 20;
/// How long an answer is being sent until its reader counts as slow.
pub(super) const SLOW: Duration = Duration::from_millis(500);
/// What even a short answer counts for.
const LEAST: u64 = 16 << 10;
/// As long as somebody got a turn within this time, those who wait for theirs wait for nothing that is stuck.
const MOVING: Duration = Duration::from_secs(2);

/// The turns of all connections.
#[derive(Debug)]
pub(crate) struct Turns {
    most: u64,
    most_slow: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes of answers with a turn, and of slow ones.
    taken: u64,
    slow: u64,
    /// The datasets with requests that wait, by the bytes that each has had.
    next: BTreeSet<(u64, Arc<str>)>,
    datasets: HashMap<Arc<str>, Queue>,
    /// The bytes that the dataset had of which a request came to its turn last: one that waits for the first time in a while
    /// begins there.
    had: u64,
    moved: Instant,
}

/// The requests of one dataset that wait, the first one first.
#[derive(Debug, Default)]
struct Queue {
    had: u64,
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// The turn of one answer, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    bytes: u64,
    is_slow: bool,
}

impl Default for Turns {
    fn default() -> Self {
        Self::new(MOST, MOST_SLOW)
    }
}

impl Turns {
    fn new(most: u64, most_slow: u64) -> Self {
        Self {
            most,
            most_slow,
            state: Mutex::new(State {
                taken: 0,
                slow: 0,
                next: BTreeSet::new(),
                datasets: HashMap::new(),
                had: 0,
                moved: Instant::now(),
            }),
        }
    }

    /// Waits for a turn to answer a dataset's readers with so many bytes.
    pub(crate) async fn take(self: &Arc<Self>, dataset: &str, bytes: u64) -> Turn {
        let bytes = self.counted(bytes);
        let waits = {
            let mut state = self.state.lock();
            if state.next.is_empty() && state.taken + bytes <= self.most {
                state.taken += bytes;
                state.moved = Instant::now();
                None
            } else {
                let (sender, waits) = oneshot::channel();
                state.wait(dataset, bytes, sender);
                Some(waits)
            }
        };
        if let Some(waits) = waits {
            let mut waiting = Waiting {
                turns: self,
                bytes,
                waits,
                is_over: false,
            };
            // The sender goes only with the turns themselves.
            let _ = (&mut waiting.waits).await;
            waiting.is_over = true;
        }
        self.turn(bytes)
    }

    /// A turn at once, for a worker that makes a copy for many: there are few such questions.
    pub(crate) fn take_first(self: &Arc<Self>, bytes: u64) -> Turn {
        let bytes = self.counted(bytes);
        self.state.lock().taken += bytes;
        self.turn(bytes)
    }

    /// What an answer of so many bytes counts for. One that is longer than all may be has its turn alone.
    fn counted(&self, bytes: u64) -> u64 {
        bytes.clamp(LEAST.min(self.most), self.most)
    }

    /// A turn for which so many bytes are taken.
    fn turn(self: &Arc<Self>, bytes: u64) -> Turn {
        Turn {
            turns: self.clone(),
            bytes,
            is_slow: false,
        }
    }

    /// Whether an answer of so many bytes would wait for its turn.
    pub(crate) fn would_wait(&self, bytes: u64) -> bool {
        let state = self.state.lock();
        !state.next.is_empty() || state.taken + self.counted(bytes) > self.most
    }

    /// Whether those who wait get on.
    pub(crate) fn is_moving(&self) -> bool {
        self.state.lock().moved.elapsed() < MOVING
    }

    /// Gives turns to those who come next, as far as there is room.
    fn give(&self, state: &mut State) {
        while let Some((had, dataset)) = state.next.pop_first() {
            let Some(queue) = state.datasets.get_mut(&dataset) else {
                continue;
            };
            let Some((bytes, sender)) = queue.waiting.pop_front() else {
                state.datasets.remove(&dataset);
                continue;
            };
            if sender.is_closed() {
                state.next.insert((had, dataset));
                continue;
            }
            if state.taken + bytes > self.most {
                queue.waiting.push_front((bytes, sender));
                state.next.insert((had, dataset));
                return;
            }
            state.had = had;
            queue.had = had + bytes;
            if queue.waiting.is_empty() {
                state.datasets.remove(&dataset);
            } else {
                state.next.insert((queue.had, dataset));
            }
            if sender.send(()).is_ok() {
                state.taken += bytes;
                state.moved = Instant::now();
            }
        }
    }
}

impl State {
    fn wait(&mut self, dataset: &str, bytes: u64, sender: oneshot::Sender<()>) {
        let known = self.datasets.get_key_value(dataset);
        let name = known.map_or_else(|| Arc::from(dataset), |(name, _)| name.clone());
        let queue = self.datasets.entry(name.clone()).or_default();
        if queue.waiting.is_empty() {
            queue.had = self.had;
            self.next.insert((queue.had, name));
        }
        queue.waiting.push_back((bytes, sender));
    }
}

/// A turn that is waited for.
struct Waiting<'a> {
    turns: &'a Arc<Turns>,
    bytes: u64,
    waits: oneshot::Receiver<()>,
    is_over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.waits.close();
        // Who goes away while the turn is given gives it back.
        if !self.is_over && self.waits.try_recv().is_ok() {
            drop(self.turns.turn(self.bytes));
        }
    }
}

impl Turn {
    /// Its reader is slow: others may have the turn, if there are not too many such.
    pub(crate) fn slow(&mut self) {
        if self.is_slow {
            return;
        }
        let turns = self.turns.clone();
        let mut state = turns.state.lock();
        if state.slow + self.bytes <= turns.most_slow {
            state.slow += self.bytes;
            state.taken -= self.bytes;
            self.is_slow = true;
            turns.give(&mut state);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        if self.is_slow {
            state.slow -= self.bytes;
        } else {
            state.taken -= self.bytes;
        }
        self.turns.give(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::stream::{FuturesUnordered, StreamExt};

    use super::*;

    const PIECE: u64 = 1 << 20;

    fn turns(pieces: u64) -> Arc<Turns> {
        Arc::new(Turns::new(pieces * PIECE, 2 * PIECE))
    }

    fn taken(turns: &Turns) -> u64 {
        turns.state.lock().taken / PIECE
    }

    /// The datasets in the order in which they come to their turns, which wait for so many bytes each until `held` is dropped.
    async fn order<T>(
        turns: &Arc<Turns>,
        held: T,
        waiting: impl Iterator<Item = (&'static str, u64)>,
    ) -> Vec<&'static str> {
        let mut takes = FuturesUnordered::new();
        for (dataset, bytes) in waiting {
            let mut take = async move { (dataset, turns.take(dataset, bytes).await) }.boxed();
            assert!((&mut take).now_or_never().is_none());
            takes.push(take);
        }
        drop(held);
        let mut order = Vec::new();
        while let Some((dataset, turn)) = takes.next().await {
            order.push(dataset);
            drop(turn);
        }
        order
    }

    /// How often a dataset is among the first twenty.
    fn early(order: &[&str], dataset: &str) -> usize {
        order[..20].iter().filter(|one| **one == dataset).count()
    }

    #[tokio::test]
    async fn a_dataset_that_many_want_gets_no_more_than_another() {
        let turns = turns(4);
        let held: Vec<Turn> = (0..4)
            .map(|_| turns.take("many", PIECE).now_or_never().unwrap())
            .collect();
        let dataset = |number| if number % 10 == 9 { "few" } else { "many" };
        let waiting = (0..100).map(|number| (dataset(number), PIECE));
        let order = order(&turns, held, waiting).await;
        let early = early(&order, "few");
        assert!((8..=10).contains(&early), "{early}: {order:?}");
        assert_eq!((order.len(), taken(&turns)), (100, 0));
        let state = turns.state.lock();
        assert!(state.next.is_empty() && state.datasets.is_empty());
    }

    #[tokio::test]
    async fn longer_answers_count_for_more() {
        let turns = turns(4);
        let held = turns.take("x", 4 * PIECE).await;
        let waiting = (0..40).map(|number| [("long", 4 * PIECE), ("short", PIECE)][number % 2]);
        let order = order(&turns, held, waiting).await;
        let long = early(&order, "long");
        assert!((3..=6).contains(&long), "{long}: {order:?}");
    }

    #[tokio::test]
    async fn whoever_goes_away_takes_no_turn() {
        let turns = turns(1);
        let held = turns.take("set", PIECE).await;
        let mut gone = Box::pin(turns.take("set", PIECE));
        let mut given = Box::pin(turns.take("other", PIECE));
        let mut last = Box::pin(turns.take("set", PIECE));
        for take in [&mut gone, &mut given, &mut last] {
            assert!(take.now_or_never().is_none());
        }
        drop(gone);
        drop(held);
        // It is given, and nobody has seen that yet.
        drop(given);
        let turn = last.now_or_never().unwrap();
        assert_eq!(taken(&turns), 1);
        drop(turn);
        assert_eq!(taken(&turns), 0);
    }

    #[tokio::test]
    async fn slow_readers_give_their_turn_to_others_but_not_without_end() {
        let turns = turns(2);
        let mut slow: Vec<Turn> = Vec::new();
        for _ in 0..2 {
            for _ in 0..2 {
                slow.push(turns.take("set", PIECE).now_or_never().unwrap());
            }
            slow.iter_mut().for_each(Turn::slow);
        }
        assert_eq!((taken(&turns), turns.state.lock().slow), (2, 2 * PIECE));
        let mut waits = Box::pin(turns.take("set", PIECE));
        assert!((&mut waits).now_or_never().is_none(), "too many are slow");
        drop(slow);
        assert!(waits.now_or_never().is_some());
        let state = turns.state.lock();
        assert_eq!(state.slow, 0);
    }

    #[tokio::test]
    async fn copies_come_first() {
        let turns = turns(1);
        let held = turns.take("set", PIECE).await;
        let mut waits = Box::pin(turns.take("set", PIECE));
        assert!((&mut waits).now_or_never().is_none());
        let copy = turns.take_first(PIECE);
        drop(held);
        assert!((&mut waits).now_or_never().is_none());
        drop(copy);
        assert!(waits.now_or_never().is_some());
    }

    #[tokio::test]
    async fn an_answer_longer_than_all_has_its_turn_alone() {
        let turns = turns(1);
        let alone = turns.take("set", 100 * PIECE).await;
        assert_eq!(taken(&turns), 1);
        assert!(turns.take("set", 1).now_or_never().is_none());
        drop(alone);
        assert!(turns.take("set", 1).now_or_never().is_some());
    }
}
