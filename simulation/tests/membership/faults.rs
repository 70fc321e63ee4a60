//! What goes wrong, and when: all of it from a seed.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::hosts::{MASTER, READERS, reader, worker};

/// Something that goes wrong for a while.
#[derive(Debug)]
pub(crate) struct Fault {
    kind: Kind,
    at: Duration,
    until: Duration,
    state: State,
}

#[derive(Debug)]
enum Kind {
    /// Nothing comes through between two hosts.
    Cut(String, String),
    /// Nothing comes through in one direction.
    Deaf(String, String),
    /// What is said is heard later, all at once.
    Held(String, String),
    /// A host dies, and starts again.
    Crash(String),
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Ahead,
    On,
    Over,
}

impl Fault {
    pub(crate) fn cut(one: &str, other: &str, at: Duration, lasts: Duration) -> Self {
        Self::new(Kind::Cut(one.to_owned(), other.to_owned()), at, lasts)
    }

    fn new(kind: Kind, at: Duration, lasts: Duration) -> Self {
        Self {
            kind,
            at,
            until: at + lasts,
            state: State::Ahead,
        }
    }

    fn begin(&self, sim: &mut turmoil::Sim<'_>) {
        match &self.kind {
            Kind::Cut(one, other) => sim.partition(&**one, &**other),
            Kind::Deaf(from, to) => sim.partition_oneway(&**from, &**to),
            Kind::Held(one, other) => sim.hold(&**one, &**other),
            Kind::Crash(host) => sim.crash(&**host),
        }
    }

    fn end(&self, sim: &mut turmoil::Sim<'_>) {
        match &self.kind {
            Kind::Cut(one, other) => sim.repair(&**one, &**other),
            Kind::Deaf(from, to) => sim.repair_oneway(&**from, &**to),
            Kind::Held(one, other) => sim.release(&**one, &**other),
            Kind::Crash(host) => sim.bounce(&**host),
        }
    }
}

/// Faults of a time, each over at its end. Of two that meet between the same hosts the first to end ends both.
pub(crate) fn of_seed(random: &mut SmallRng, workers: usize, time: Duration) -> Vec<Fault> {
    let count = random.random_range(4..14);
    let faults = (0..count).map(|_| {
        let host = match random.random_range(0..workers + READERS) {
            number if number < workers => worker(number),
            number => reader(number - workers),
        };
        let master = MASTER.to_owned();
        let kind = match random.random_range(0..6) {
            0 => Kind::Cut(master, host),
            1 => Kind::Deaf(master, host),
            2 => Kind::Deaf(host, master),
            3 => Kind::Held(master, host),
            4 => Kind::Crash(host),
            _ => Kind::Crash(master),
        };
        let at = time.mul_f64(random.random_range(0.0..0.9));
        let most = time.saturating_sub(at).min(Duration::from_secs(25));
        let lasts = most.mul_f64(random.random_range(0.02..1.0));
        Fault::new(kind, at, lasts)
    });
    faults.collect()
}

/// Runs a simulation to its end, with these faults.
pub(crate) fn run(sim: &mut turmoil::Sim<'_>, mut faults: Vec<Fault>) {
    loop {
        let now = sim.elapsed();
        for fault in &mut faults {
            if fault.state == State::Ahead && fault.at <= now {
                fault.begin(sim);
                fault.state = State::On;
            } else if fault.state == State::On && fault.until <= now {
                fault.end(sim);
                fault.state = State::Over;
            }
        }
        match sim.step() {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => panic!("{error}"),
        }
    }
}
