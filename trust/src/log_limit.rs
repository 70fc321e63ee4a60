//! Lines of the log that others cause: there are some at once, and then no more for a while.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Says of how many lines one may be written.
#[derive(Debug)]
pub struct LogLimit {
    burst: u64,
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    started: Option<Instant>,
    told: u64,
    left_out: u64,
}

impl LogLimit {
    /// So many lines in each window.
    pub fn new(burst: u64, window: Duration) -> Self {
        Self {
            burst,
            window,
            state: Mutex::default(),
        }
    }

    /// Whether a line is to be written now, and then how many before it were not.
    pub fn line(&self) -> Option<u64> {
        self.line_at(Instant::now())
    }

    /// Lines that were not written since the last one.
    pub fn left_out(&self) -> u64 {
        self.state.lock().left_out
    }

    fn line_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let is_over = |started| now.saturating_duration_since(started) >= self.window;
        if state.started.is_none_or(is_over) {
            state.started = Some(now);
            state.told = 0;
        }
        if state.told >= self.burst {
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
        let (window, start) = (Duration::from_secs(10), Instant::now());
        let log = LogLimit::new(10, window);
        let told = (0..1000).filter_map(|_| log.line_at(start));
        assert_eq!(told.collect::<Vec<_>>(), [0; 10]);
        assert_eq!(log.line_at(start + window), Some(990));
        assert_eq!(log.line_at(start + window), Some(0));
    }
}
