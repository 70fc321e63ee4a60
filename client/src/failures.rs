//! Blocks that could not be read a moment ago, after a long wait.
//!
//! When a read of several pages fails, the kernel asks again, for a single page. If the failure were not remembered, the
//! reader would wait twice for as long as an origin that fails is waited for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::BlockError;

/// A failure that cost its reader so much is remembered, and for how long.
const COSTLY: Duration = Duration::from_millis(500);
const REMEMBERED: Duration = Duration::from_secs(1);
/// Blocks remembered at most.
const MOST: usize = 4096;

/// A file and the number of one of its blocks.
type Key = (u32, u32);

/// The failures of one mount.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// Whether there are any: the usual read looks at nothing else.
    any: AtomicBool,
    recent: Mutex<HashMap<Key, (Instant, BlockError)>>,
}

impl Failures {
    /// The failure of a block, if it was a moment ago.
    pub(crate) fn get(&self, key: Key) -> Option<BlockError> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mut recent = self.recent.lock();
        recent.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        self.any.store(!recent.is_empty(), Ordering::Relaxed);
        recent.get(&key).map(|(_, error)| error.clone())
    }

    /// Remembers a failure after a read that began at `started`, if it was costly.
    pub(crate) fn add(&self, key: Key, error: &BlockError, started: Instant) {
        if started.elapsed() < COSTLY {
            return;
        }
        let mut recent = self.recent.lock();
        if recent.len() >= MOST {
            recent.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        }
        if recent.len() < MOST {
            recent.insert(key, (Instant::now(), error.clone()));
            self.any.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_costly_failure_is_remembered_for_its_block_alone() {
        let failures = Failures::default();
        let error = BlockError::Failed("no answer".to_owned());
        failures.add((1, 0), &error, Instant::now());
        assert!(failures.get((1, 0)).is_none(), "it cost nothing");
        let long_ago = Instant::now().checked_sub(COSTLY).unwrap();
        failures.add((1, 0), &error, long_ago);
        assert!(
            matches!(failures.get((1, 0)), Some(BlockError::Failed(text)) if text == "no answer")
        );
        assert!(failures.get((1, 1)).is_none());
        for entry in failures.recent.lock().values_mut() {
            entry.0 = entry.0.checked_sub(REMEMBERED).unwrap();
        }
        assert!(failures.get((1, 0)).is_none());
        assert!(!failures.any.load(Ordering::Relaxed));
    }
}
