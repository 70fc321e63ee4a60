//! The hosts' clocks, of which no two agree.
//!
//! Each runs at a speed of its own and jumps forward now and then, as those of a machine that was suspended. The time of day
//! is another one on each host, and jumps in both directions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, advance, sleep};
use weir_core::wall_clock;

/// How often a clock that is too fast is put forward.
const STEP: Duration = Duration::from_secs(1);
/// The fastest clock gains so much in that time. Others are slow beside it.
const MOST_GAINED: Duration = Duration::from_millis(100);
/// The longest jump, and how far days may be wrong.
const MOST_JUMPED: Duration = Duration::from_secs(4);
const MOST_WRONG: Duration = Duration::from_hours(72);

/// The hosts that run, by their runtimes: some of them work on other threads, too.
static HOSTS: LazyLock<Mutex<HashMap<Id, Host>>> = LazyLock::new(Mutex::default);

struct Host {
    name: String,
    /// What time of day it was at some time.
    set_to: SystemTime,
    at: Instant,
}

fn time_of_day() -> Option<SystemTime> {
    let host = Handle::try_current().ok()?.id();
    let hosts = HOSTS.lock();
    let Host { set_to, at, .. } = hosts.get(&host)?;
    Some(*set_to + at.elapsed())
}

/// The name of the host that asks.
pub(crate) fn host() -> String {
    let host = Handle::current().id();
    let hosts = HOSTS.lock();
    let name = hosts.get(&host).map(|host| host.name.clone());
    name.unwrap_or_default()
}

/// The clock of one host.
#[derive(Clone)]
pub(crate) struct Clock {
    gained: Duration,
    /// When it jumps, how far, and what time of day it is then.
    jumps: Vec<(Duration, Duration, SystemTime)>,
    /// What it has been put forward, in microseconds.
    ahead: Arc<AtomicU64>,
}

impl Clock {
    /// One that is right.
    pub(crate) fn right() -> Self {
        Self {
            gained: Duration::ZERO,
            jumps: vec![(Duration::ZERO, Duration::ZERO, SystemTime::now())],
            ahead: Arc::default(),
        }
    }

    /// What a seed makes of it, without a jump.
    pub(crate) fn steady(random: &mut SmallRng) -> Self {
        let clock = Self::of_seed(random, Duration::ZERO);
        let jumps = clock.jumps.into_iter();
        Self {
            jumps: jumps.filter(|(_, forward, _)| forward.is_zero()).collect(),
            ..clock
        }
    }

    /// What a seed makes of it, within a time.
    pub(crate) fn of_seed(random: &mut SmallRng, time: Duration) -> Self {
        let mut day = || {
            let wrong = MOST_WRONG.mul_f64(random.random_range(0.0..1.0));
            let now = SystemTime::now();
            if random.random() {
                now + wrong
            } else {
                now - wrong
            }
        };
        let days = [day(), day(), day()];
        let jumps = random.random_range(0..=2);
        let jumps = days.into_iter().take(1 + jumps).enumerate();
        let jumps = jumps.map(|(number, day)| {
            if number == 0 {
                return (Duration::ZERO, Duration::ZERO, day);
            }
            let at = time.mul_f64(random.random_range(0.0..0.9));
            (at, MOST_JUMPED.mul_f64(random.random_range(0.0..1.0)), day)
        });
        let mut jumps: Vec<_> = jumps.collect();
        jumps.sort_by_key(|(at, ..)| *at);
        Self {
            gained: MOST_GAINED.mul_f64(random.random_range(0.0..1.0)),
            jumps,
            ahead: Arc::default(),
        }
    }

    /// Runs for as long as the host does. To be called when that starts, by what is spawned there.
    pub(crate) async fn run(self, name: String) {
        static ASKED: OnceLock<()> = OnceLock::new();
        ASKED.get_or_init(|| wall_clock::simulate(time_of_day));
        let host = Handle::current().id();
        let start = Instant::now();
        let mut jumps = self.jumps.iter();
        let mut next = jumps.next();
        loop {
            while let Some((at, forward, day)) = next
                && start.elapsed() >= *at
            {
                let host_now = Host {
                    name: name.clone(),
                    set_to: *day,
                    at: Instant::now(),
                };
                HOSTS.lock().insert(host, host_now);
                self.put_forward(*forward).await;
                next = jumps.next();
            }
            sleep(STEP).await;
            self.put_forward(self.gained).await;
        }
    }

    async fn put_forward(&self, by: Duration) {
        if !by.is_zero() {
            self.ahead
                .fetch_add(by.as_micros() as u64, Ordering::Relaxed);
            advance(by).await;
        }
    }
}

/// The time that has passed, as nobody in the simulation knows it.
#[derive(Clone, Default, Debug)]
pub(crate) struct TrueTime(Arc<AtomicU64>);

impl TrueTime {
    pub(crate) fn set(&self, now: Duration) {
        self.0.store(now.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}
