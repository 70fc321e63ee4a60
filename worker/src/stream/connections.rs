//! The connections of a listener: how many there may be, which are idle, and which one goes when a new one wants its
//! place.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a new connection waits before it is looked again for one that has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Marks a connection that is not idle.
const BUSY: u64 = u64::MAX;

/// What the connections of a listener may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once. A new one takes the place of the one that is idle the longest, or waits if none is.
    pub(super) connections: usize,
    /// How long one may be idle. Clients give up theirs sooner.
    pub(super) idle: Duration,
    /// How long one may be open without a word.
    pub(super) first_word: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
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
}

struct Open {
    /// Milliseconds from the start to when it became idle, or `BUSY`.
    idle_since: AtomicU64,
    has_spoken: AtomicBool,
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

    /// A place for one more, once there is one.
    pub(super) async fn place(self: &Arc<Self>) -> Place {
        loop {
            let freed = self.freed.notified();
            if let Some(place) = self.free_place() {
                return place;
            }
            self.close_idlest();
            // One that is busy now may be idle soon.
            let _ = tokio::time::timeout(LOOK_AGAIN, freed).await;
        }
    }

    fn free_place(self: &Arc<Self>) -> Option<Place> {
        let mut table = self.table.lock();
        if table.open.len() >= self.limits.connections {
            return None;
        }
        let number = table.next;
        table.next += 1;
        let open = Arc::new(Open {
            idle_since: AtomicU64::new(self.now()),
            has_spoken: AtomicBool::new(false),
            close: CancellationToken::new(),
        });
        table.open.insert(number, open.clone());
        Some(Place {
            connections: self.clone(),
            number,
            open,
        })
    }

    /// Closes the connection that has been idle the longest, if one is.
    pub(super) fn close_idlest(&self) {
        let table = self.table.lock();
        let open = table
            .open
            .values()
            .filter(|open| !open.close.is_cancelled());
        let idlest = open.min_by_key(|open| open.idle_since.load(Relaxed));
        if let Some(idlest) = idlest.filter(|open| open.idle_since.load(Relaxed) != BUSY) {
            idlest.close.cancel();
        }
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
        self.connections.table.lock().open.remove(&self.number);
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

    fn is_closed(place: &Place) -> bool {
        place.close().is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn the_idlest_makes_room_for_a_new_one_and_a_busy_one_does_not() {
        let connections = connections(3);
        let mut places = Vec::new();
        for _ in 0..3 {
            places.push(connections.place().await);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        places[0].busy();
        let last = tokio::spawn({
            let connections = connections.clone();
            async move { connections.place().await }
        });
        places[1].close().cancelled().await;
        assert!(!is_closed(&places[0]) && !is_closed(&places[2]));
        places.remove(1);
        last.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn with_all_busy_a_new_one_waits_for_the_first_that_is_idle() {
        let connections = connections(1);
        let place = connections.place().await;
        place.busy();
        let waiting = tokio::spawn({
            let connections = connections.clone();
            async move { connections.place().await }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!is_closed(&place) && !waiting.is_finished());
        place.idle();
        place.close().cancelled().await;
        drop(place);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_closed_when_it_is_idle_or_says_nothing_for_too_long() {
        let connections = connections(9);
        let (mute, idle, busy) = (
            connections.place().await,
            connections.place().await,
            connections.place().await,
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
