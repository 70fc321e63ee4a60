//! The state that Weir's threads share, under schedules of all kinds.
//!
//! Which thread goes on is decided by [shuttle] whenever one of them takes a lock or uses an atomic: at random, and, so
//! that rare orders come up too, with few changes at any place (PCT). A schedule that fails is printed with its seed, and
//! `SHUTTLE_RANDOM_SEED` tries it again.
//!
//! The files under test are compiled here once more, with shuttle's types for those of their crate's `sync.rs`. So the
//! program itself knows nothing of this, and costs nothing. What is not in these files is played by each scenario: the
//! tiers, the origin, processes. This crate must not know more of a file than its own crate does.

#![forbid(unsafe_code)]

mod sync;

#[allow(dead_code, unreachable_pub)]
#[path = "../../worker/src/fill.rs"]
mod fill;
#[allow(dead_code)]
#[path = "../../worker/src/fills.rs"]
mod fills;
#[path = "../../worker/src/recent.rs"]
mod recent;

#[allow(unreachable_pub)]
#[path = "../../fuse/src/duty.rs"]
mod duty;
#[path = "../../mount/src/succession.rs"]
mod succession;
#[allow(dead_code, unreachable_pub)]
#[path = "../../mount/src/handover/term.rs"]
mod term;

/// In place of what a server does to its memory.
mod buffer {
    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn keep_from_children<T>(_: &T) -> std::io::Result<()> {
        Ok(())
    }
}

pub mod filling;
pub mod processes;
pub mod serving;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// Schedules of each kind that a scenario runs under.
const SCHEDULES: usize = 400;
/// Where the schedules come from: a failure is not to depend on luck.
const SEED: u64 = 13;
/// Changes of the running thread that a PCT schedule is made for.
const CHANGES: usize = 4;

/// Runs a scenario under many schedules. Panics if it does under one of them, or if all its threads wait.
pub fn check(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = Config::new();
    config.silence_warnings = true;
    let random = RandomScheduler::new_from_seed(SEED, SCHEDULES);
    Runner::new(random, config.clone()).run(scenario.clone());
    let few_changes = PctScheduler::new_from_seed(SEED, CHANGES, SCHEDULES);
    Runner::new(few_changes, config).run(scenario);
}
