//! When a peer last sent something: the deadline of a request is on its silence, not on its answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// What one request knows of its peer. Each byte that arrives counts.
#[derive(Debug)]
pub struct Activity {
    start: Instant,
    /// Milliseconds from the start to the last sign of life.
    last: AtomicU64,
    /// It is of a version that says nothing while it works.
    excused: AtomicBool,
    /// It is not its turn.
    paused: AtomicBool,
    /// It said last that it waits for the origin.
    fetching: AtomicBool,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
            excused: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            fetching: AtomicBool::new(false),
        }
    }
}

impl Activity {
    /// The peer has sent something.
    pub fn note(&self) {
        self.last
            .store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    /// The peer's silence means nothing: it is of a version that says nothing while it works.
    pub fn excuse(&self) {
        self.excused.store(true, Relaxed);
    }

    /// The peer has said whether it waits for the origin, or is busy otherwise.
    pub(crate) fn waits(&self, for_the_origin: bool) {
        self.fetching.store(for_the_origin, Relaxed);
    }

    /// Whether the peer waits for the origin, as far as it says.
    pub fn waits_for_the_origin(&self) -> bool {
        self.fetching.load(Relaxed)
    }

    /// The peer is not waited for until [`Self::resume`].
    pub fn pause(&self) {
        self.paused.store(true, Relaxed);
    }

    /// The peer is waited for again.
    pub fn resume(&self) {
        self.note();
        self.paused.store(false, Relaxed);
    }

    /// How long the peer has been silent; `None` when that means nothing.
    pub fn silence(&self) -> Option<Duration> {
        let last = Duration::from_millis(self.last.load(Relaxed));
        let silence = self.start.elapsed().saturating_sub(last);
        let counts = !self.excused.load(Relaxed) && !self.paused.load(Relaxed);
        counts.then_some(silence)
    }

    /// Ends once the peer has been silent for `limit`; never if that means nothing.
    pub async fn silent_for(&self, limit: Duration) {
        loop {
            let left = match self.silence() {
                Some(silence) if silence >= limit => return,
                Some(silence) => limit.saturating_sub(silence),
                None => limit,
            };
            tokio::time::sleep(left).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_from_the_last_sign_of_life() {
        let limit = Duration::from_millis(600);
        let (activity, start) = (Activity::default(), Instant::now());
        let signs = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                activity.note();
            }
        };
        tokio::join!(signs, activity.silent_for(limit));
        assert_eq!(start.elapsed(), Duration::from_millis(2600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_excused_is_never_silent() {
        let activity = Activity::default();
        activity.excuse();
        let silent = activity.silent_for(Duration::from_millis(600));
        let waited = tokio::time::timeout(Duration::from_mins(1), silent).await;
        assert!(waited.is_err());
        assert_eq!(activity.silence(), None);
    }
}
