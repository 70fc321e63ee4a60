//! Lines of the log that others cause: there are some at once, and then no more for a while.
//!
//! Whatever somebody else can make happen again and again must not fill the disk. Lines that were left out are counted,
//! and the next one says how many there were.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines that are usually written in one window, and how long that is.
const BURST: u64 = 10;
const WINDOW: Duration = Duration::from_secs(10);

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

impl Default for LogLimit {
    /// Ten lines in ten seconds.
    fn default() -> Self {
        Self::new(BURST, WINDOW)
    }
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

/// Says which of many things a line may be written about: of each one in a while, and of so many at most.
#[derive(Debug)]
pub struct LogLimitByKey<K> {
    interval: Duration,
    most: usize,
    state: Mutex<Keys<K>>,
}

#[derive(Debug)]
struct Keys<K> {
    told: HashMap<K, Instant>,
    left_out: u64,
}

impl<K: Eq + Hash> LogLimitByKey<K> {
    /// One line of each thing in `interval`, and of `most` things in that time.
    pub fn new(most: usize, interval: Duration) -> Self {
        Self {
            interval,
            most,
            state: Mutex::new(Keys {
                told: HashMap::new(),
                left_out: 0,
            }),
        }
    }

    /// Whether a line about this is to be written now, and then how many before it were not because there were too many
    /// things. Lines about a thing that was told of a moment ago are not counted.
    pub fn line(&self, key: K) -> Option<u64> {
        self.line_at(key, Instant::now())
    }

    /// How many things are remembered.
    pub fn remembered(&self) -> usize {
        self.state.lock().told.len()
    }

    fn line_at(&self, key: K, now: Instant) -> Option<u64> {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < self.interval;
        let mut state = self.state.lock();
        if state.told.get(&key).is_some_and(is_recent) {
            return None;
        }
        if state.told.len() >= self.most {
            state.told.retain(|_, at| is_recent(at));
        }
        if state.told.len() >= self.most {
            state.left_out += 1;
            return None;
        }
        state.told.insert(key, now);
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

    #[test]
    fn each_thing_is_told_of_once_in_a_while_also_if_they_take_turns() {
        let (interval, start) = (Duration::from_secs(10), Instant::now());
        let log = LogLimitByKey::new(100, interval);
        assert_eq!(log.line_at(1, start), Some(0));
        assert_eq!(log.line_at(2, start), Some(0));
        for _ in 0..5 {
            assert_eq!(log.line_at(1, start), None);
            assert_eq!(log.line_at(2, start), None);
        }
        assert_eq!(log.line_at(1, start + interval), Some(0));
    }

    #[test]
    fn of_very_many_things_some_are_told_of_and_the_others_counted() {
        let (interval, start) = (Duration::from_secs(10), Instant::now());
        let log = LogLimitByKey::new(100, interval);
        let told = (0..1000).filter(|key| log.line_at(*key, start) == Some(0));
        assert_eq!(told.count(), 100);
        assert_eq!(log.remembered(), 100);
        assert_eq!(log.line_at(7, start + interval), Some(900));
    }
}
