//! How many files a server is asked about at a time.
//!
//! Small servers queue a handful of connections (Python's http.server: 5), and the kernel drops those beyond. A dropped
//! one is tried again only after a second, so too many at a time are far slower than few. The number grows while answers
//! come as fast as before, and is halved when one took as long as a connection that was dropped.

use std::time::Duration;

use tokio::time::Instant;

/// Files asked about at a time: at first, at least and at most.
const FIRST: usize = 4;
const LEAST: usize = 2;
const MOST: usize = 32;
/// The kernel's wait before it tries a dropped connection again is a second.
const DROPPED: Duration = Duration::from_millis(900);
/// A server whose fastest answer takes an eighth of that is only slow.
const FAR_SLOWER: u32 = 8;
/// Answers for each further file, once too many at a time were seen.
const PATIENT_GROWTH: usize = 64;

/// The number of files that are asked about at a time.
#[derive(Debug)]
pub(super) struct Window {
    size: usize,
    /// The fastest answer.
    fastest: Duration,
    /// When the size was halved.
    halved: Option<Instant>,
    /// Answers since the size was changed.
    answers: usize,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            size: FIRST,
            fastest: Duration::MAX,
            halved: None,
            answers: 0,
        }
    }

    /// How many may be asked about at a time now.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Learns of an answer to a question that was asked at `asked`.
    pub(super) fn answered(&mut self, asked: Instant, now: Instant) {
        let took = now - asked;
        self.fastest = self.fastest.min(took);
        if took >= DROPPED && took / FAR_SLOWER > self.fastest {
            // Those that were asked before tell of the size before.
            if self.halved.is_none_or(|halved| asked >= halved) {
                self.size = (self.size / 2).max(LEAST);
                self.halved = Some(now);
                self.answers = 0;
            }
            return;
        }
        self.answers += 1;
        let growth = if self.halved.is_some() {
            PATIENT_GROWTH
        } else {
            1
        };
        if self.answers >= growth && self.size < MOST {
            self.size += 1;
            self.answers = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells of so many answers that took so long, and gives the size then.
    fn after(window: &mut Window, now: &mut Instant, answers: usize, took: Duration) -> usize {
        for _ in 0..answers {
            let asked = *now;
            *now += took;
            window.answered(asked, *now);
        }
        window.size()
    }

    #[test]
    fn it_grows_fast_until_connections_are_dropped_and_slowly_then() {
        let (mut window, mut now) = (Window::new(), Instant::now());
        let fast = Duration::from_millis(2);
        let dropped = Duration::from_millis(1002);
        assert_eq!(window.size(), FIRST);
        assert_eq!(after(&mut window, &mut now, 10, fast), FIRST + 10);
        assert_eq!(after(&mut window, &mut now, 1000, fast), MOST);
        assert_eq!(after(&mut window, &mut now, 1, dropped), MOST / 2);
        assert_eq!(after(&mut window, &mut now, PATIENT_GROWTH - 1, fast), 16);
        assert_eq!(after(&mut window, &mut now, 1, fast), 17);
        assert_eq!(after(&mut window, &mut now, 100, dropped), LEAST);
    }

    #[test]
    fn those_asked_before_it_was_halved_do_not_halve_it_again() {
        let (mut window, mut now) = (Window::new(), Instant::now());
        after(&mut window, &mut now, 100, Duration::from_millis(2));
        let late = now + Duration::from_secs(1);
        for _ in 0..MOST {
            window.answered(now, late);
        }
        assert_eq!(window.size(), MOST / 2);
    }

    #[test]
    fn a_server_that_is_slow_for_all_is_asked_as_much_as_another() {
        let (mut window, mut now) = (Window::new(), Instant::now());
        let slow = Duration::from_millis(1500);
        assert_eq!(after(&mut window, &mut now, 100, slow), MOST);
    }
}
