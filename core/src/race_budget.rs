//! How many requests may be made beside others that are slow.
//!
//! A request beside a slow one helps where one server of many is slow. Where all are, because there is too much to do, it is
//! more to do. So a part of the requests may be raced, and a few that were saved up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What one race costs, what a request earns, and what may be saved up: races are a twentieth of the requests, and 16 more.
const RACE: u64 = 100;
const EARNED: u64 = 5;
const MOST_SAVED: u64 = 16 * RACE;

/// The races that may be started, in hundredths.
#[derive(Debug)]
pub struct RaceBudget(AtomicU64);

impl Default for RaceBudget {
    fn default() -> Self {
        Self(AtomicU64::new(MOST_SAVED))
    }
}

impl RaceBudget {
    /// A request is made.
    pub fn earn(&self) {
        let saved = self.0.load(Relaxed);
        if saved < MOST_SAVED {
            // One that is lost to another thread does not matter.
            let more = (saved + EARNED).min(MOST_SAVED);
            let _ = self.0.compare_exchange(saved, more, Relaxed, Relaxed);
        }
    }

    /// Whether a race may be started, which is then taken from the budget.
    pub fn take(&self) -> bool {
        let take = |saved: u64| saved.checked_sub(RACE);
        self.0.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn races_are_a_twentieth_of_the_requests_and_a_few_more() {
        let budget = RaceBudget::default();
        let races = |most| (0..most).filter(|_| budget.take()).count();
        assert_eq!(races(100), 16);
        for _ in 0..100 {
            budget.earn();
        }
        assert_eq!(races(100), 5);
        for _ in 0..100_000 {
            budget.earn();
        }
        assert_eq!(races(100), 16);
    }
}
