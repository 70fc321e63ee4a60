//! A limit of the bytes that a process sends in a second.
//!
//! All its connections take turns with small pieces, in the order in which they come, so that each gets the same part however
//! much it asks for.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// Bytes of one turn: the bytes of a millisecond, but no fewer or more than these.
const LEAST: u64 = 16 << 10;
const MOST: u64 = 1 << 20;
/// What was not sent before may be sent later, as time: timers are late by a millisecond or two.
const SAVED: Duration = Duration::from_millis(10);

/// Bytes in the course of time.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_second: u64,
    /// When the next turn begins.
    next: Mutex<Instant>,
}

impl Pacer {
    /// So many bytes in a second.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Most bytes of one turn.
    pub(crate) fn turn_bytes(&self) -> usize {
        (self.bytes_per_second / 1000).clamp(LEAST, MOST) as usize
    }

    /// Waits for a turn to send so many bytes. Who does not wait to its end leaves the turn unused.
    pub(crate) async fn turn(&self, bytes: usize) {
        let begins = {
            let now = Instant::now();
            let mut next = self.next.lock();
            let begins = (*next).max(now.checked_sub(SAVED).unwrap_or(now));
            *next = begins + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            begins
        };
        if begins > Instant::now() {
            sleep_until(begins).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_together_send_no_more_than_the_limit_and_each_the_same() {
        let pacer = Arc::new(Pacer::new(1_000_000));
        let start = Instant::now();
        let sending = (0..4).map(|_| {
            let pacer = pacer.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    pacer.turn(10_000).await;
                }
                start.elapsed()
            })
        });
        let mut ended = Vec::new();
        for one in sending.collect::<Vec<_>>() {
            ended.push(one.await.unwrap());
        }
        let (first, last) = (ended.iter().min().unwrap(), ended.iter().max().unwrap());
        assert!(
            last.abs_diff(Duration::from_millis(1980)) <= SAVED * 2,
            "{last:?}"
        );
        assert!(
            last.abs_diff(*first) <= Duration::from_millis(100),
            "{ended:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_sent_is_not_sent_all_at_once_later() {
        let pacer = Pacer::new(1_000_000);
        tokio::time::sleep(Duration::from_mins(1)).await;
        let start = Instant::now();
        for _ in 0..100 {
            pacer.turn(10_000).await;
        }
        assert!(start.elapsed() + SAVED * 2 >= Duration::from_millis(990));
    }
}
