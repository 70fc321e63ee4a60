//! The time budget of a read.
//!
//! The budget pays for time in which nothing arrived: for silence that is still going on, and for what past failures
//! cost, from the last byte before a failure to the next byte after it. Progress therefore never refills it, and a
//! body that is merely slow never drains it.

use std::time::Duration;

use tokio::time::Instant;

pub(super) struct Clock {
    budget: Duration,
    /// Cost of failures that were overcome.
    spent: Duration,
    /// When the current silence began.
    since: Instant,
    failing: bool,
}

impl Clock {
    pub(super) fn start(budget: Duration) -> Self {
        Self {
            budget,
            spent: Duration::ZERO,
            since: Instant::now(),
            failing: false,
        }
    }

    /// A wait begins. Time that the reader took to come back is not the origin's fault.
    pub(super) fn wait_begins(&mut self) {
        if !self.failing {
            self.since = Instant::now();
        }
    }

    /// A request failed.
    pub(super) fn failed(&mut self) {
        self.failing = true;
    }

    /// Bytes arrived.
    pub(super) fn progress(&mut self) {
        if self.failing {
            self.spent += self.since.elapsed();
            self.failing = false;
        }
        self.since = Instant::now();
    }

    /// When the budget is used up if nothing arrives.
    pub(super) fn deadline(&self) -> Instant {
        self.since + self.budget.saturating_sub(self.spent)
    }

    /// Time since something arrived.
    pub(super) fn silence(&self) -> Duration {
        self.since.elapsed()
    }

    /// Time lost in all.
    pub(super) fn lost(&self) -> Duration {
        self.spent + self.since.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_secs(30);

    fn left(clock: &Clock) -> u64 {
        (clock.deadline() - Instant::now()).as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_cost_their_time_and_slow_bytes_cost_none() {
        let mut clock = Clock::start(BUDGET);
        for _ in 0..10 {
            clock.wait_begins();
            tokio::time::advance(Duration::from_secs(20)).await;
            assert_eq!(left(&clock), 10);
            clock.progress();
        }
        assert_eq!(left(&clock), 30);
        for expected in [20, 10, 0] {
            clock.wait_begins();
            clock.failed();
            tokio::time::advance(Duration::from_secs(10)).await;
            clock.progress();
            assert_eq!(left(&clock), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_its_time_loses_nothing() {
        let mut clock = Clock::start(BUDGET);
        tokio::time::advance(Duration::from_secs(100)).await;
        clock.wait_begins();
        assert_eq!(left(&clock), 30);
    }
}
