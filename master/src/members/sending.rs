//! How much of changed cluster maps is sent.
//!
//! A map of thousands of workers has a megabyte, and each worker that comes changes it for all. Were it sent with each heartbeat,
//! a large cluster that starts would keep its master so busy that heartbeats are late, workers are taken out of the map for that,
//! and the map changes again. So those that know a map wait for the next one, in which more has changed, until there is room for it.
//! Maps of up to 500 workers or so never wait.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes of maps in a second, and in how many seconds what was not sent is made up for.
const RATE: f64 = 128.0 * 1024.0 * 1024.0;
const BURST: Duration = Duration::from_secs(2);

/// What may be sent now.
#[derive(Debug)]
pub(super) struct Sending {
    bytes: f64,
    since: Instant,
}

impl Sending {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            bytes: RATE * BURST.as_secs_f64(),
            since: now,
        }
    }

    /// Whether a map of this size may be sent. One that is larger than all that may be sent at once waits until nothing else was.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let most = RATE * BURST.as_secs_f64();
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.bytes = (self.bytes + passed * RATE).min(most);
        self.since = self.since.max(now);
        let needed = (bytes as f64).min(most);
        let is_room = self.bytes >= needed;
        if is_room {
            self.bytes -= needed;
        }
        is_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_sent_up_to_a_rate_and_a_burst() {
        let start = Instant::now();
        let mut sending = Sending::new(start);
        let megabyte = 1 << 20;
        let sent =
            |sending: &mut Sending, at| (0..1000).filter(|_| sending.take(megabyte, at)).count();
        assert_eq!(sent(&mut sending, start), 256);
        assert_eq!(sent(&mut sending, start + Duration::from_millis(500)), 64);
        assert_eq!(sent(&mut sending, start + Duration::from_mins(1)), 256);
        // A clock that goes back gives nothing, and takes nothing.
        assert!(!sending.take(megabyte, start));
        // A map that is too large for any burst is sent at last.
        let (later, huge) = (start + Duration::from_mins(2), 1 << 30);
        assert!(sending.take(huge, later));
        assert!(!sending.take(1, later));
    }
}
