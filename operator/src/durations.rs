//! Times as `kubectl` shows ages, and waits that differ.

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

/// A wait with up to a tenth more, so that what began together does not stay together.
pub(crate) fn spread(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(());
    wait + wait.mul_f64(0.1 * (random % 1024) as f64 / 1024.0)
}
