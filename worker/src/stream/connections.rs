//! The connections of a listener: how many there may be, which are idle, and which one goes when a new one wants its
//! place.
//!
//! While it is found out who has connected, a connection has no place yet. There may be some of these at once; of more those
//! go that have taken long, so that who never says a word keeps nobody out who does. Many honest clients may come at once
//! (a worker was started again), and they are quick.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_trust::{Caller, Counted};

/// How long a new connection waits before it is looked again for one that has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Marks a connection that is not idle.
const BUSY: u64 = u64::MAX;

/// What the connections of a listener may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once. A new one takes the place of the one that is idle the longest, or waits if none is.
    pub(super) connections: usize,
    /// Connections of one caller: a certificate's name, a user of this machine, or an address. As above, among its own.
    pub(super) per_caller: usize,
    /// Connections of which it is not known yet whose they are. A new one takes the place of the oldest if that has had
    /// `grace`, or if there are `unknown_most`.
    pub(super) unknown: usize,
    pub(super) unknown_most: usize,
    /// A time in which honest clients say who they are.
    pub(super) grace: Duration,
    /// How long one may wait for a place.
    pub(super) place: Duration,
    /// How long one may be idle. Clients give up theirs sooner.
    pub(super) idle: Duration,
    /// How long one may be open without a word.
    pub(super) first_word: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            per_caller: 2048,
            unknown: 256,
            unknown_most: 2048,
            grace: Duration::from_millis(500),
            place: Duration::from_secs(10),
            idle: Duration::from_mins(1),
            first_word: Duration::from_secs(10),
        }
    }
}

/// The open connections of a listener.
pub(super) struct Connections {
    limits: Limits,
    start: Instant,
    table: Mutex<Table>,
    freed: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<Open>>,
    /// How many of them each caller has; nobody is in it who has none.
    by_caller: HashMap<Counted, usize>,
    /// In the order in which they came, and since when.
    unknown: BTreeMap<u64, (CancellationToken, Instant)>,
}

struct Open {
    caller: Counted,
    /// Milliseconds from the start to when it became idle, or `BUSY`.
    idle_since: AtomicU64,
    has_spoken: AtomicBool,
    close: CancellationToken,
}

/// A connection of which it is not known yet whose it is, until it is dropped.
pub(super) struct Unknown {
    connections: Arc<Connections>,
    number: u64,
    close: CancellationToken,
}

/// The place of one connection, until it is dropped.
pub(super) struct Place {
    connections: Arc<Connections>,
    number: u64,
    open: Arc<Open>,
}

impl Connections {
    /// None are open yet.
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            start: Instant::now(),
            table: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// One has come. If there are too many already, the oldest are closed.
    pub(super) fn begin(self: &Arc<Self>) -> Unknown {
        let mut table = self.table.lock();
        let number = table.number();
        let (close, now) = (CancellationToken::new(), Instant::now());
        table.unknown.insert(number, (close.clone(), now));
        while table.unknown.len() > self.limits.unknown {
            let is_full = table.unknown.len() > self.limits.unknown_most;
            let Some(oldest) = table.unknown.first_entry() else {
                break;
            };
            if !is_full && now.duration_since(oldest.get().1) < self.limits.grace {
                break;
            }
            oldest.remove().0.cancel();
        }
        Unknown {
            connections: self.clone(),
            number,
            close,
        }
    }

    /// A place for one more of a caller's, once there is one; `None` if that takes too long.
    pub(super) async fn place(self: &Arc<Self>, caller: &Caller) -> Option<Place> {
        let caller = Counted::of(caller);
        let find = async {
            loop {
                let freed = self.freed.notified();
                if let Some(place) = self.free_place(&caller) {
                    return place;
                }
                // One that is busy now may be idle soon.
                let _ = tokio::time::timeout(LOOK_AGAIN, freed).await;
            }
        };
        tokio::time::timeout(self.limits.place, find).await.ok()
    }

    /// A place if one is free; else the idlest connection that may make room is closed.
    fn free_place(self: &Arc<Self>, caller: &Counted) -> Option<Place> {
        let mut table = self.table.lock();
        let own = table.by_caller.get(caller).copied().unwrap_or(0);
        if own >= self.limits.per_caller {
            table.close_idlest(|open| open.caller == *caller);
            return None;
        }
        if table.open.len() >= self.limits.connections {
            table.close_idlest(|_| true);
            return None;
        }
        let number = table.number();
        let open = Arc::new(Open {
            caller: caller.clone(),
            idle_since: AtomicU64::new(self.now()),
            has_spoken: AtomicBool::new(false),
            close: CancellationToken::new(),
        });
        table.open.insert(number, open.clone());
        table.by_caller.insert(caller.clone(), own + 1);
        Some(Place {
            connections: self.clone(),
            number,
            open,
        })
    }

    /// Closes the connection that has been idle the longest, if one is.
    pub(super) fn close_idlest(&self) {
        self.table.lock().close_idlest(|_| true);
    }

    /// Closes those that have been idle, or silent from the beginning, for too long.
    pub(super) fn close_idle(&self) {
        let now = self.now();
        for open in self.table.lock().open.values() {
            let since = open.idle_since.load(Relaxed);
            let limit = if open.has_spoken.load(Relaxed) {
                self.limits.idle
            } else {
                self.limits.first_word
            };
            if since != BUSY && now.saturating_sub(since) > limit.as_millis() as u64 {
                open.close.cancel();
            }
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn close_idlest(&self, among: impl Fn(&Open) -> bool) {
        let open = self
            .open
            .values()
            .filter(|open| !open.close.is_cancelled() && among(open));
        let idlest = open.min_by_key(|open| open.idle_since.load(Relaxed));
        if let Some(idlest) = idlest.filter(|open| open.idle_since.load(Relaxed) != BUSY) {
            idlest.close.cancel();
        }
    }
}

impl Unknown {
    /// Is cancelled when another one needs the room.
    pub(super) fn close(&self) -> &CancellationToken {
        &self.close
    }
}

impl Drop for Unknown {
    fn drop(&mut self) {
        self.connections.table.lock().unknown.remove(&self.number);
    }
}

impl Place {
    /// The connection waits for requests.
    pub(super) fn idle(&self) {
        let now = self.connections.now();
        self.open.idle_since.store(now, Relaxed);
    }

    /// The connection has got a request.
    pub(super) fn busy(&self) {
        self.open.idle_since.store(BUSY, Relaxed);
        self.open.has_spoken.store(true, Relaxed);
    }

    /// Is cancelled when the connection is to be closed as soon as it is idle.
    pub(super) fn close(&self) -> &CancellationToken {
        &self.open.close
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.connections.table.lock();
        table.open.remove(&self.number);
        if let Some(own) = table.by_caller.get_mut(&self.open.caller) {
            *own -= 1;
            if *own == 0 {
                table.by_caller.remove(&self.open.caller);
            }
        }
        drop(table);
        self.connections.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(most: usize) -> Arc<Connections> {
        Connections::new(Limits {
            connections: most,
            ..Limits::default()
        })
    }

    fn user(uid: u32) -> Caller {
        Caller::Local { uid }
    }

    async fn place(connections: &Arc<Connections>) -> Place {
        connections.place(&user(0)).await.unwrap()
    }

    fn is_closed(place: &Place) -> bool {
        place.close().is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn the_idlest_makes_room_for_a_new_one_and_a_busy_one_does_not() {
        let connections = connections(3);
        let mut places = Vec::new();
        for _ in 0..3 {
            places.push(place(&connections).await);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        places[0].busy();
        let last = tokio::spawn({
            let connections = connections.clone();
            async move { place(&connections).await }
        });
        places[1].close().cancelled().await;
        assert!(!is_closed(&places[0]) && !is_closed(&places[2]));
        places.remove(1);
        last.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn with_all_busy_a_new_one_waits_for_the_first_that_is_idle_but_not_for_ever() {
        let connections = connections(1);
        let busy = place(&connections).await;
        busy.busy();
        let waiting = tokio::spawn({
            let connections = connections.clone();
            async move { place(&connections).await }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!is_closed(&busy) && !waiting.is_finished());
        busy.idle();
        busy.close().cancelled().await;
        drop(busy);
        let last = waiting.await.unwrap();
        last.busy();
        assert!(connections.place(&user(1)).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_with_too_many_gets_the_place_of_its_own_idlest() {
        let connections = Connections::new(Limits {
            per_caller: 2,
            ..Limits::default()
        });
        let other = connections.place(&user(1)).await.unwrap();
        tokio::time::advance(Duration::from_millis(10)).await;
        let (first, second) = (place(&connections).await, place(&connections).await);
        second.busy();
        let third = tokio::spawn({
            let connections = connections.clone();
            async move { place(&connections).await }
        });
        first.close().cancelled().await;
        assert!(!is_closed(&other) && !is_closed(&second));
        assert!(connections.place(&user(1)).await.is_some());
        drop(first);
        third.await.unwrap();
        drop((other, second));
        assert!(connections.table.lock().by_caller.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_that_are_unknown_those_go_that_have_taken_long() {
        let limits = Limits {
            unknown: 3,
            unknown_most: 5,
            ..Limits::default()
        };
        let connections = Connections::new(limits);
        let closed = |unknown: &[Unknown]| {
            let closed = unknown.iter().map(|one| one.close().is_cancelled());
            closed.collect::<Vec<_>>()
        };
        let mut unknown: Vec<_> = (0..5).map(|_| connections.begin()).collect();
        assert_eq!(closed(&unknown), [false; 5], "they have just come");
        unknown.push(connections.begin());
        assert_eq!(closed(&unknown), [true, false, false, false, false, false]);
        unknown.remove(0);
        tokio::time::advance(limits.grace).await;
        unknown.push(connections.begin());
        assert_eq!(closed(&unknown), [true, true, true, false, false, false]);
        unknown.drain(..4);
        unknown.push(connections.begin());
        assert_eq!(closed(&unknown), [false; 3]);
        drop(unknown);
        assert!(connections.table.lock().unknown.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_closed_when_it_is_idle_or_says_nothing_for_too_long() {
        let connections = connections(9);
        let (mute, idle, busy) = (
            place(&connections).await,
            place(&connections).await,
            place(&connections).await,
        );
        idle.busy();
        idle.idle();
        busy.busy();
        let closed = |after| {
            let connections = connections.clone();
            let places = [&mute, &idle, &busy];
            async move {
                tokio::time::advance(Duration::from_secs(after)).await;
                connections.close_idle();
                places.map(is_closed)
            }
        };
        assert_eq!(closed(9).await, [false, false, false]);
        assert_eq!(closed(2).await, [true, false, false]);
        assert_eq!(closed(50).await, [true, true, false]);
    }
}
