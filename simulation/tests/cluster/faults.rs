//! What goes wrong, and when: all of it from a seed.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::clocks::TrueTime;
use super::hosts::{MASTER, reader, worker};
use super::origin::Bucket;

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
    /// The origin answers nobody.
    Away(Bucket),
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

    /// The origin is away for a while.
    pub(crate) fn away(bucket: &Bucket, at: Duration, lasts: Duration) -> Self {
        Self::new(Kind::Away(bucket.clone()), at, lasts)
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
            Kind::Away(bucket) => bucket.set_away(true),
        }
    }

    fn end(&self, sim: &mut turmoil::Sim<'_>) {
        match &self.kind {
            Kind::Cut(one, other) => sim.repair(&**one, &**other),
            Kind::Deaf(from, to) => sim.repair_oneway(&**from, &**to),
            Kind::Held(one, other) => sim.release(&**one, &**other),
            Kind::Crash(host) => sim.bounce(&**host),
            Kind::Away(bucket) => bucket.set_away(false),
        }
    }
}

/// When faults may be, and how long one lasts at most.
#[derive(Clone, Copy)]
pub(crate) struct Time {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) most: Duration,
}

impl Time {
    fn of_one(self, random: &mut SmallRng) -> (Duration, Duration) {
        let time = self.to.saturating_sub(self.from);
        let at = time.mul_f64(random.random_range(0.0..0.9));
        let most = time.saturating_sub(at).min(self.most);
        (self.from + at, most.mul_f64(random.random_range(0.02..1.0)))
    }
}

/// Faults between the master and the others, each over at its end. Of two that meet between the same hosts the first to end ends
/// both.
pub(crate) fn of_master(
    random: &mut SmallRng,
    (workers, readers): (usize, usize),
    time: Time,
) -> Vec<Fault> {
    let count = random.random_range(4..14);
    let faults = (0..count).map(|_| {
        let host = any_host(random, workers, readers);
        let master = MASTER.to_owned();
        let kind = match random.random_range(0..6) {
            0 => Kind::Cut(master, host),
            1 => Kind::Deaf(master, host),
            2 => Kind::Deaf(host, master),
            3 => Kind::Held(master, host),
            4 => Kind::Crash(host),
            _ => Kind::Crash(master),
        };
        let (at, lasts) = time.of_one(random);
        Fault::new(kind, at, lasts)
    });
    faults.collect()
}

/// The same between workers, and between them and readers.
pub(crate) fn of_blocks(
    random: &mut SmallRng,
    (workers, readers): (usize, usize),
    time: Time,
) -> Vec<Fault> {
    let count = random.random_range(4..16);
    let faults = (0..count).map(|_| {
        let own = random.random_range(0..workers);
        let own = worker(own);
        let mut other = any_host(random, workers, readers);
        while other == own {
            other = any_host(random, workers, readers);
        }
        let kind = match random.random_range(0..5) {
            0 => Kind::Cut(own, other),
            1 => Kind::Deaf(own, other),
            2 => Kind::Deaf(other, own),
            3 => Kind::Held(own, other),
            _ => Kind::Crash(own),
        };
        let (at, lasts) = time.of_one(random);
        Fault::new(kind, at, lasts)
    });
    faults.collect()
}

fn any_host(random: &mut SmallRng, workers: usize, readers: usize) -> String {
    match random.random_range(0..workers + readers) {
        number if number < workers => worker(number),
        number => reader(number - workers),
    }
}

/// Runs a simulation to its end, with these faults.
pub(crate) fn run(sim: &mut turmoil::Sim<'_>, time: &TrueTime, mut faults: Vec<Fault>) {
    loop {
        let now = sim.elapsed();
        time.set(now);
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
