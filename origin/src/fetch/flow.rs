//! How fast a body comes.

use std::time::Duration;

/// Bytes a second that a body brings at least, or another request for what is missing is raced against it. A block takes
/// 8 s then; connections to object stores bring ten times as much and more.
const FLOOR: u64 = 512 << 10;
/// Races that one read starts for this at most: an origin that is slow for everybody gets no more requests.
pub(super) const MAX_RACES: u32 = 3;

/// What came in the time that was spent waiting for it.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Flow {
    waited: Duration,
    bytes: u64,
}

impl Flow {
    /// So many bytes came after such a wait.
    pub(super) fn add(&mut self, bytes: usize, waited: Duration) {
        self.bytes += bytes as u64;
        self.waited += waited;
    }

    /// Whether the body has been below the floor for as long as `patience`, and would take longer than that for what is
    /// missing.
    pub(super) fn is_slow(&self, patience: Duration, missing: u64) -> bool {
        let waited = self.waited.as_secs_f64();
        self.waited >= patience
            && (self.bytes as f64) < FLOOR as f64 * waited
            && missing as f64 * waited > self.bytes as f64 * patience.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_slow_when_it_stays_below_the_floor_and_much_is_missing() {
        let second = Duration::from_secs(1);
        let slow = |bytes: u64, waited: Duration, missing: u64| {
            let mut flow = Flow::default();
            flow.add(bytes as usize, waited);
            flow.is_slow(second, missing)
        };
        assert!(slow(64 << 10, second, 4 << 20));
        assert!(!slow(64 << 10, second / 2, 4 << 20), "too soon to tell");
        assert!(!slow(FLOOR, second, 4 << 20), "fast enough");
        assert!(!slow(64 << 10, second, 10 << 10), "nearly done");
    }
}
