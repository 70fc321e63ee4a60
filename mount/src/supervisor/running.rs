//! That this process runs, for those who cannot see it: the holders of a mount in pods.
//!
//! All processes of a pod may be frozen (SIGSTOP, a freezer of control groups). They do not work then, do not end, and nobody in
//! another pod can kill them. So a thread of the supervisor counts, and does nothing else: it waits for no disk and for no lock that
//! others hold while they wait. Whoever sees that it does not count any more knows that its process does not run.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

/// Between two counts.
const INTERVAL: Duration = Duration::from_millis(100);

/// Counters that go on while this process runs, each for as long as it is kept.
pub(super) struct Running {
    counters: Arc<Mutex<Vec<Weak<OwnedFd>>>>,
}

impl Running {
    /// Starts to count, until this is dropped.
    pub(super) fn start() -> io::Result<Self> {
        let counters = Arc::new(Mutex::new(Vec::new()));
        let counted = Arc::downgrade(&counters);
        std::thread::Builder::new()
            .name("running".to_owned())
            .spawn(move || {
                while let Some(counters) = counted.upgrade() {
                    count(&mut counters.lock());
                    drop(counters);
                    std::thread::sleep(INTERVAL);
                }
            })?;
        Ok(Self { counters })
    }

    /// One more counter, which can be read at once.
    pub(super) fn counter(&self) -> io::Result<Arc<OwnedFd>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let counter = Arc::new(eventfd(1, flags)?);
        self.counters.lock().push(Arc::downgrade(&counter));
        Ok(counter)
    }
}

fn count(counters: &mut Vec<Weak<OwnedFd>>) {
    counters.retain(|counter| {
        let Some(counter) = counter.upgrade() else {
            return false;
        };
        // One that nobody reads goes up to the end of its numbers, in two thousand million years.
        let _ = rustix::io::write(&*counter, &1_u64.to_ne_bytes());
        true
    });
}

/// Whether the process at the other end has counted since the last look.
pub(super) fn has_counted(counter: &OwnedFd) -> bool {
    rustix::io::read(counter, &mut [0; 8]).is_ok()
}

/// How regularly the process at the other end was seen to count: on a machine that has more to do than it can, it waits for its turn.
#[derive(Debug)]
pub(super) struct Rhythm {
    /// The longest pauses between two counts, of the time since `since` and of as long before.
    longest: [Duration; 2],
    since: Instant,
}

impl Rhythm {
    /// How long a pause counts, once or twice.
    const REMEMBERED: Duration = Duration::from_secs(15);
    /// A pause of so many times the longest is another thing.
    const TIMES: u32 = 4;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            longest: [Duration::ZERO; 2],
            since: now,
        }
    }

    /// Notes a pause that has ended.
    pub(super) fn note(&mut self, pause: Duration, now: Instant) {
        if now.duration_since(self.since) >= Self::REMEMBERED {
            self.longest = [Duration::ZERO, self.longest[0]];
            self.since = now;
        }
        self.longest[0] = self.longest[0].max(pause);
    }

    /// How long a pause may be: `usual`, or longer where long ones are usual, up to `most`.
    pub(super) fn patience(&self, usual: Duration, most: Duration) -> Duration {
        let [last, before] = self.longest;
        (last.max(before) * Self::TIMES).clamp(usual, most)
    }
}

#[cfg(test)]
mod tests {
    use weir_process::fdpass::readable;

    use super::*;

    #[test]
    fn each_counter_goes_on_until_the_end_of_who_counts() {
        const SOON: Duration = Duration::from_secs(20);
        let running = Running::start().unwrap();
        let (first, second) = (running.counter().unwrap(), running.counter().unwrap());
        drop(second);
        for _ in 0..3 {
            assert!(readable(&*first, SOON).unwrap());
            assert!(has_counted(&first) && !has_counted(&first));
        }
        let counters = Arc::downgrade(&running.counters);
        assert_eq!(running.counters.lock().len(), 1);
        drop(running);
        while counters.strong_count() > 0 {
            std::thread::yield_now();
        }
        let _ = has_counted(&first); // what was counted before
        assert!(!readable(&*first, 3 * INTERVAL).unwrap());
    }

    #[test]
    fn a_process_that_waits_for_its_turn_is_given_more_time_for_a_while() {
        let (usual, most) = (5 * INTERVAL, 60 * INTERVAL);
        let mut now = Instant::now();
        let mut rhythm = Rhythm::new(now);
        let mut count = |rhythm: &mut Rhythm, pause: Duration| {
            now += pause;
            rhythm.note(pause, now);
            rhythm.patience(usual, most)
        };
        assert_eq!(count(&mut rhythm, INTERVAL), usual);
        assert_eq!(count(&mut rhythm, 3 * INTERVAL), 12 * INTERVAL);
        assert_eq!(count(&mut rhythm, INTERVAL), 12 * INTERVAL);
        assert_eq!(count(&mut rhythm, 40 * INTERVAL), most);
        let seconds = Rhythm::REMEMBERED.as_secs() as u32;
        for _ in 0..20 * seconds {
            count(&mut rhythm, INTERVAL);
        }
        assert_eq!(count(&mut rhythm, INTERVAL), usual);
    }
}
