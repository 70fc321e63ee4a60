//! What a storm does, round by round. It follows from a seed.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use crate::chaos::world::Effort;

pub(crate) const WORKERS: usize = 6;
pub(crate) const ZONES: usize = 2;

/// The zone of a worker.
pub(crate) fn zone_of(worker: usize) -> usize {
    worker % ZONES
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Kill,
    Freeze,
    Cut,
    FullDisk,
    SlowDisk,
}

const KINDS: [Kind; 5] = [
    Kind::Kill,
    Kind::Freeze,
    Kind::Cut,
    Kind::FullDisk,
    Kind::SlowDisk,
];
/// The master's disk is the machine's own.
const KINDS_OF_MASTER: [Kind; 3] = [Kind::Kill, Kind::Freeze, Kind::Cut];

impl Kind {
    /// Whether what is hit gives no answer meanwhile.
    pub(crate) fn takes_away(self) -> bool {
        matches!(self, Self::Kill | Self::Freeze | Self::Cut)
    }
}

/// To whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Worker(usize),
    /// The network between a zone and all others.
    ZoneBorder(usize),
    Master,
}

/// One thing that is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Blow {
    pub(crate) kind: Kind,
    pub(crate) target: Target,
}

/// Who is hit in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    Worker,
    Zone,
    Master,
    Everything,
}

/// What is done at the same time, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Round {
    pub(crate) scope: Scope,
    pub(crate) blows: Vec<Blow>,
    /// Time between two blows.
    pub(crate) apart: Duration,
    /// Time from the last one until all is well again.
    pub(crate) hold: Duration,
}

impl Round {
    /// The longest that a read may take.
    pub(crate) fn longest(&self) -> Duration {
        match self.scope {
            Scope::Worker | Scope::Master => Duration::from_secs(1),
            Scope::Zone | Scope::Everything => Duration::from_secs(3),
        }
    }

    /// The workers that give no answer.
    pub(crate) fn away(&self) -> Vec<usize> {
        let workers = 0..WORKERS;
        let is_away = |worker: usize| {
            let blows = self.blows.iter().filter(|blow| blow.kind.takes_away());
            blows.map(|blow| blow.target).any(|target| {
                target == Target::Worker(worker) || target == Target::ZoneBorder(zone_of(worker))
            })
        };
        workers.filter(|worker| is_away(*worker)).collect()
    }

    /// Whether some worker's disk is full.
    pub(crate) fn fills_a_disk(&self) -> bool {
        self.blows.iter().any(|blow| blow.kind == Kind::FullDisk)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, Blow { kind, target }) in self.blows.iter().enumerate() {
            let separator = if number > 0 { ", " } else { "" };
            let what = match kind {
                Kind::Kill => "killed",
                Kind::Freeze => "frozen",
                Kind::Cut => "cut off",
                Kind::FullDisk => "disk full",
                Kind::SlowDisk => "disk slow",
            };
            match target {
                Target::Worker(worker) => write!(f, "{separator}worker {worker} {what}")?,
                Target::ZoneBorder(zone) => write!(f, "{separator}zone {zone} {what}")?,
                Target::Master => write!(f, "{separator}master {what}")?,
            }
        }
        write!(f, ", {:.1} s", self.hold.as_secs_f64())
    }
}

/// The rounds of a seed. Each kind of round comes once before any comes again.
pub(crate) fn rounds(seed: u64, count: usize, effort: Effort) -> Vec<Round> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut rounds = Vec::new();
    while rounds.len() < count {
        let mut deck = deck();
        deck.shuffle(&mut random);
        let dealt = deck
            .into_iter()
            .map(|(scope, kind)| round(scope, kind, &mut random, effort));
        rounds.extend(dealt.collect::<Vec<_>>());
    }
    rounds.truncate(count);
    rounds
}

fn deck() -> Vec<(Scope, Kind)> {
    let worker = KINDS.map(|kind| (Scope::Worker, kind));
    let zone = KINDS.map(|kind| (Scope::Zone, kind));
    let master = KINDS_OF_MASTER.map(|kind| (Scope::Master, kind));
    // Of those without a kind of their own each target has another one.
    let everything = [Kind::Kill, Kind::Freeze, Kind::Cut].map(|kind| (Scope::Everything, kind));
    worker
        .into_iter()
        .chain(zone)
        .chain(master)
        .chain(everything)
        .collect()
}

fn round(scope: Scope, kind: Kind, random: &mut SmallRng, effort: Effort) -> Round {
    let blow = |target| Blow { kind, target };
    let mut blows = match scope {
        Scope::Worker => vec![blow(Target::Worker(random.random_range(0..WORKERS)))],
        Scope::Master => vec![blow(Target::Master)],
        Scope::Zone => zone(kind, random.random_range(0..ZONES)),
        Scope::Everything => everything(kind, random),
    };
    blows.shuffle(random);
    Round {
        scope,
        hold: hold(kind, random, effort),
        apart: Duration::from_millis(random.random_range(0..200)),
        blows,
    }
}

fn zone(kind: Kind, zone: usize) -> Vec<Blow> {
    if kind == Kind::Cut {
        return vec![Blow {
            kind,
            target: Target::ZoneBorder(zone),
        }];
    }
    let workers = (0..WORKERS).filter(|worker| zone_of(*worker) == zone);
    workers
        .map(|worker| Blow {
            kind,
            target: Target::Worker(worker),
        })
        .collect()
}

/// The master and each worker; half of them by something else.
fn everything(kind: Kind, random: &mut SmallRng) -> Vec<Blow> {
    let mut blow = |target: Target, kinds: &[Kind]| {
        let other = kinds.choose(random).copied().unwrap_or(kind);
        let kind = if random.random() { kind } else { other };
        Blow { kind, target }
    };
    let master = blow(Target::Master, &KINDS_OF_MASTER);
    let workers = (0..WORKERS).map(|worker| blow(Target::Worker(worker), &KINDS));
    workers.chain([master]).collect()
}

/// How long it lasts: shorter and longer than it takes the master to give a worker up, which a short run does not wait for.
fn hold(kind: Kind, random: &mut SmallRng, effort: Effort) -> Duration {
    let millis: RangeInclusive<u64> = match (effort, kind) {
        (Effort::Short, _) => 1500..=2500,
        (Effort::Full, Kind::Freeze) => 60_000..=60_000,
        (Effort::Full, Kind::Kill | Kind::Cut) => 1000..=25_000,
        (Effort::Full, Kind::FullDisk | Kind::SlowDisk) => 5000..=15_000,
    };
    Duration::from_millis(random.random_range(millis))
}
