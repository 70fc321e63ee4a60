//! Times as `kubectl` shows ages.

use std::time::Duration;

/// A time in the largest unit that leaves at least two of it.
pub(crate) fn for_people(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}
