//! The time of day, as this machine has it: another machine may have another one, and it may jump.
//!
//! It names moments in what is stored or sent; whatever waits, or grows old, goes by the clock that only runs forward. A
//! simulation has clocks of its own, one for each of its machines.

use std::sync::OnceLock;
use std::time::SystemTime;

/// Gives the time of the simulated machine that asks; nothing outside of simulations.
type Simulated = fn() -> Option<SystemTime>;

static SIMULATED: OnceLock<Simulated> = OnceLock::new();

/// The time of day.
pub fn now() -> SystemTime {
    let simulated = SIMULATED.get().and_then(|simulated| simulated());
    simulated.unwrap_or_else(SystemTime::now)
}

/// For simulations: has this one asked first from now on. What is asked first stays so.
#[doc(hidden)]
pub fn simulate(simulated: Simulated) {
    SIMULATED.get_or_init(|| simulated);
}
