//! How an origin keeps pace with its readers: whether it is so far away that more requests at once bring more, and
//! whether it asks for fewer, or fails.
//!
//! The time to the first bytes of a single answer does not tell a service that is far from one that is near and busy.
//! The shortest of many does (as BBR's round-trip time): a busy service answers some at once, one that is far none.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_core::RaceBudget;

/// An origin is far once a window's soonest answer took `FAR` or more, and near again once one took less than `NEAR`.
/// 20,000 files read from a service on busy cores of the same machine, by 1 to 64 readers, with and without many requests
/// for files that nobody waited for: the shortest time of a window was hardly ever longer than 5 ms.
const FAR: Duration = Duration::from_millis(5);
const NEAR: Duration = Duration::from_micros(2500);
/// Answers of a window, at least, and for each request that was under way at once.
const WINDOW: u32 = 8;
const WINDOW_FOR_EACH: u32 = 4;
/// How long an origin that has asked for fewer requests, or failed again and again, counts as near: nothing is fetched
/// from it ahead of readers then, and a warm job has fewer requests under way.
const EASED: Duration = Duration::from_secs(2);

/// What all reads of one origin know together.
#[derive(Debug, Default)]
pub struct Pace {
    state: Mutex<State>,
    /// Requests that may be made beside slow bodies.
    races: RaceBudget,
}

#[derive(Debug, Default)]
struct State {
    /// Requests whose first bytes have not come.
    under_way: u32,
    window: Window,
    is_far: bool,
    /// Until when it is spared.
    eased: Option<Instant>,
}

#[derive(Debug, Default)]
struct Window {
    answers: u32,
    /// The most requests that were under way at once.
    most: u32,
    shortest: Option<Duration>,
}

impl Pace {
    /// Whether more requests at once would bring more: the origin is far away, answers, and does not ask for fewer.
    pub fn wants_more(&self) -> bool {
        let state = self.state.lock();
        state.is_far && state.eased.is_none_or(|end| end <= Instant::now())
    }

    /// A request that is sent now.
    pub(crate) fn ask(self: &Arc<Self>) -> Asked {
        self.state.lock().under_way += 1;
        self.races.earn();
        Asked {
            pace: self.clone(),
            at: Instant::now(),
        }
    }

    /// Whether a request may be made beside a body that is slow.
    pub(crate) fn race(&self) -> bool {
        self.races.take()
    }

    /// The origin is to get fewer requests for a while.
    pub(crate) fn ease(&self) {
        self.state.lock().eased = Some(Instant::now() + EASED);
    }
}

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Asked {
    pace: Arc<Pace>,
    at: Instant,
}

impl Asked {
    /// Its first bytes have come.
    pub(crate) fn answered(self) {
        let took = self.at.elapsed();
        let mut state = self.pace.state.lock();
        let most = state.window.most.max(state.under_way);
        let shortest = state.window.shortest.map_or(took, |last| last.min(took));
        state.window = Window {
            answers: state.window.answers + 1,
            most,
            shortest: Some(shortest),
        };
        if state.window.answers >= WINDOW.max(WINDOW_FOR_EACH * most) {
            state.is_far = shortest >= if state.is_far { NEAR } else { FAR };
            state.window = Window::default();
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.pace.state.lock().under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many answers at a time as readers, which take so many milliseconds in turn.
    async fn answers(pace: &Arc<Pace>, readers: usize, rounds: usize, took: &[u64]) {
        for round in 0..rounds {
            let asked: Vec<Asked> = (0..readers).map(|_| pace.ask()).collect();
            tokio::time::advance(Duration::from_millis(took[round % took.len()])).await;
            asked.into_iter().for_each(Asked::answered);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_is_far_when_no_answer_comes_soon_however_many_ask() {
        for readers in [1, 4, 64] {
            let pace = Arc::default();
            answers(&pace, readers, 3, &[30]).await;
            assert!(!pace.wants_more(), "{readers} readers, before it is known");
            answers(&pace, readers, 5, &[30]).await;
            assert!(pace.wants_more(), "{readers} readers");
            answers(&pace, readers, 16, &[30, 3]).await;
            assert!(pace.wants_more(), "{readers} readers, some sooner");
            answers(&pace, readers, 16, &[30, 1]).await;
            assert!(!pace.wants_more(), "{readers} readers, some at once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_is_busy_is_not_far() {
        let pace = Arc::default();
        answers(&pace, 16, 100, &[25, 25, 25, 4]).await;
        assert!(!pace.wants_more());
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_is_spared_for_a_while() {
        let pace = Arc::default();
        answers(&pace, 1, 8, &[30]).await;
        pace.ease();
        assert!(!pace.wants_more());
        tokio::time::advance(EASED).await;
        assert!(pace.wants_more());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_without_an_answer_tell_nothing() {
        let pace: Arc<Pace> = Arc::default();
        for _ in 0..100 {
            let asked = pace.ask();
            tokio::time::advance(Duration::from_millis(30)).await;
            drop(asked);
        }
        assert!(!pace.wants_more());
        assert_eq!(pace.state.lock().under_way, 0);
    }

    #[tokio::test]
    async fn races_are_a_twentieth_of_the_requests_and_a_few_more() {
        let pace = Arc::new(Pace::default());
        let races = || (0..100).filter(|_| pace.race()).count();
        assert_eq!((races(), races()), (16, 0));
        (0..100).for_each(|_| drop(pace.ask()));
        assert_eq!(races(), 5);
    }
}
