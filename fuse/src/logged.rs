//! One line in the log for each file whose reads fail, however many pages of it the kernel asks for.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A file is not named again for so long.
const INTERVAL: Duration = Duration::from_secs(10);
/// Files that are named within that time, at most; the others are counted.
const MAX_NAMED: usize = 100;

/// The files that were named last.
#[derive(Debug, Default)]
pub(crate) struct Logged(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    named: HashMap<u32, Instant>,
    /// Errors of files that found no place.
    others: u64,
}

/// What is said of an error.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    /// The error, and how many of other files were not named before.
    Error {
        others: u64,
    },
}

impl Logged {
    /// Tells of a read that has failed.
    pub(crate) fn error(&self, file: u32, error: &impl Display) {
        match self.0.lock().say(file, Instant::now()) {
            Said::Nothing => {}
            Said::Error { others: 0 } => tracing::error!("read failed: {error}"),
            Said::Error { others } => {
                tracing::error!(
                    "read failed: {error}; {others} errors of other files were not logged"
                );
            }
        }
    }
}

impl State {
    fn say(&mut self, file: u32, now: Instant) -> Said {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < INTERVAL;
        if self.named.get(&file).is_some_and(is_recent) {
            return Said::Nothing;
        }
        if self.named.len() >= MAX_NAMED {
            self.named.retain(|_, at| is_recent(at));
        }
        if self.named.len() >= MAX_NAMED {
            self.others += 1;
            return Said::Nothing;
        }
        self.named.insert(file, now);
        Said::Error {
            others: std::mem::take(&mut self.others),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: Said = Said::Error { others: 0 };

    #[test]
    fn each_failing_file_is_named_once_in_a_while_also_if_they_take_turns() {
        let (mut state, start) = (State::default(), Instant::now());
        assert_eq!(state.say(1, start), NAMED);
        assert_eq!(state.say(2, start), NAMED);
        for _ in 0..5 {
            assert_eq!(state.say(1, start), Said::Nothing);
            assert_eq!(state.say(2, start), Said::Nothing);
        }
        assert_eq!(state.say(1, start + INTERVAL), NAMED);
    }

    #[test]
    fn of_very_many_files_some_are_named_and_the_others_counted() {
        let (mut state, start) = (State::default(), Instant::now());
        let named = (0..1000).filter(|file| state.say(*file, start) == NAMED);
        assert_eq!(named.count(), MAX_NAMED);
        assert_eq!(state.named.len(), MAX_NAMED);
        let later = state.say(7, start + INTERVAL);
        assert_eq!(later, Said::Error { others: 900 });
    }
}
