//! Who was refused, in the log: others cause these lines, so there are some at once, and then no more for a while.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines that are written in one window, and how long that is.
const BURST: u64 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Tells those who look after the cluster of callers who were refused.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    begun: Option<Instant>,
    told: u64,
    left_out: u64,
}

impl Refusals {
    /// Writes why somebody was refused into the log, unless there were many such lines in the last 10 s.
    pub fn tell(&self, why: &str) {
        match self.line_at(Instant::now()) {
            Some(0) => tracing::warn!("refused: {why}"),
            Some(left_out) => tracing::warn!(left_out, "refused: {why}"),
            None => {}
        }
    }

    /// Whether a line is to be written, and then how many before it were not.
    fn line_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let is_over = |begun| now.saturating_duration_since(begun) >= WINDOW;
        if state.begun.is_none_or(is_over) {
            state.begun = Some(now);
            state.told = 0;
        }
        if state.told >= BURST {
            state.left_out += 1;
            return None;
        }
        state.told += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ten_lines_and_a_number() {
        let (log, start) = (Refusals::default(), Instant::now());
        let told = (0..1000).filter_map(|_| log.line_at(start));
        assert_eq!(told.collect::<Vec<_>>(), [0; BURST as usize]);
        assert_eq!(log.line_at(start + WINDOW), Some(990));
        assert_eq!(log.line_at(start + WINDOW), Some(0));
    }
}
