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
    /// Nobody.
    None,
    Worker,
    /// Some workers, each by something else.
    Several,
    Zone,
    Master,
    Everything,
}

/// How the cluster's workers change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// One is drained, and owns blocks again afterwards.
    Drain(usize),
    /// A new one joins, and the old one is drained and stopped for good.
    Relieve { old: usize, new: usize },
    /// The old one is killed for good, and a new one joins.
    Replace { old: usize, new: usize },
}

/// What is done at the same time, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Round {
    pub(crate) scope: Scope,
    /// Begins before the blows, and ends after them.
    pub(crate) change: Option<Change>,
    pub(crate) blows: Vec<Blow>,
    /// Time between two blows.
    pub(crate) apart: Duration,
    /// Time from the last one until all is well again.
    pub(crate) hold: Duration,
}

impl Round {
    /// The longest that a read may take.
    pub(crate) fn longest(&self) -> Duration {
        let of_one = Duration::from_secs(1);
        match self.scope {
            // Two may be silent one after the other.
            Scope::Worker if matches!(self.change, Some(Change::Replace { .. })) => 2 * of_one,
            Scope::None | Scope::Worker | Scope::Master => of_one,
            Scope::Several | Scope::Zone | Scope::Everything => 3 * of_one,
        }
    }

    /// The workers of so many that give no answer.
    pub(crate) fn away(&self, workers: &[usize]) -> Vec<usize> {
        let is_away = |worker: usize| {
            let blows = self.blows.iter().filter(|blow| blow.kind.takes_away());
            blows.map(|blow| blow.target).any(|target| {
                target == Target::Worker(worker) || target == Target::ZoneBorder(zone_of(worker))
            }) || matches!(self.change, Some(Change::Replace { old, .. }) if old == worker)
        };
        let workers = workers.iter().copied();
        workers.filter(|worker| is_away(*worker)).collect()
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.change {
            None => {}
            Some(Change::Drain(worker)) => write!(f, "worker {worker} drained, ")?,
            Some(Change::Relieve { old, new }) => {
                write!(f, "worker {new} new, worker {old} drained for good, ")?;
            }
            Some(Change::Replace { old, new }) => {
                write!(f, "worker {old} killed for good, worker {new} new, ")?;
            }
        }
        for Blow { kind, target } in &self.blows {
            let what = match kind {
                Kind::Kill => "killed",
                Kind::Freeze => "frozen",
                Kind::Cut => "cut off",
                Kind::FullDisk => "disk full",
                Kind::SlowDisk => "disk slow",
            };
            match target {
                Target::Worker(worker) => write!(f, "worker {worker} {what}, ")?,
                Target::ZoneBorder(zone) => write!(f, "zone {zone} {what}, ")?,
                Target::Master => write!(f, "master {what}, ")?,
            }
        }
        write!(f, "{:.1} s", self.hold.as_secs_f64())
    }
}

/// The rounds of a seed. Each kind of round comes once before any comes again.
pub(crate) fn rounds(seed: u64, count: usize, effort: Effort) -> Vec<Round> {
    let mut dealer = Dealer {
        random: SmallRng::seed_from_u64(seed),
        effort,
        workers: (0..WORKERS).collect(),
        next: WORKERS,
    };
    let mut rounds = Vec::new();
    while rounds.len() < count {
        let mut deck = deck();
        deck.shuffle(&mut dealer.random);
        if effort == Effort::Short {
            one_of_each_family_first(&mut deck);
        }
        deck.truncate(count - rounds.len());
        rounds.extend(deck.into_iter().map(|card| dealer.round(card)));
    }
    rounds
}

/// How many workers there are in all rounds together.
pub(crate) fn workers_of(rounds: &[Round]) -> usize {
    let is_new = |round: &&Round| !matches!(round.change, None | Some(Change::Drain(_)));
    WORKERS + rounds.iter().filter(is_new).count()
}

/// A kind of round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Card {
    Blows(Scope, Kind),
    /// Workers and maybe the master, each hit by something else.
    Several,
    /// A change, and maybe one worker is hit meanwhile.
    Change(Planned, Option<Kind>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planned {
    Drain,
    Relieve,
    Replace,
}

impl Card {
    fn family(self) -> usize {
        match self {
            Self::Change(_, None) => 0,
            Self::Change(_, Some(_)) => 1,
            Self::Several => 2,
            Self::Blows(..) => 3,
        }
    }
}

fn deck() -> Vec<Card> {
    let of = |scope: Scope, kinds: &[Kind]| {
        let cards = kinds.iter().map(|kind| Card::Blows(scope, *kind));
        cards.collect::<Vec<_>>()
    };
    let changes = [Planned::Drain, Planned::Relieve, Planned::Replace];
    let alone = changes.map(|change| Card::Change(change, None));
    let beside = [Kind::Kill, Kind::Freeze, Kind::Cut, Kind::FullDisk];
    let beside = beside.map(|kind| Card::Change(Planned::Drain, Some(kind)));
    let joining = [
        (Planned::Relieve, Kind::Kill),
        (Planned::Relieve, Kind::Freeze),
        (Planned::Replace, Kind::Cut),
    ];
    let joining = joining.map(|(change, kind)| Card::Change(change, Some(kind)));
    [
        of(Scope::Worker, &KINDS),
        of(Scope::Zone, &KINDS),
        of(Scope::Master, &KINDS_OF_MASTER),
        // Of those without a kind of their own each target has another one.
        of(Scope::Everything, &KINDS_OF_MASTER),
        vec![Card::Several; 3],
        alone.to_vec(),
        beside.to_vec(),
        joining.to_vec(),
    ]
    .concat()
}

/// A short run has something of all of them. Changes come before disks that are full: a worker tries such a disk again after half a
/// minute, for which a drain would wait.
fn one_of_each_family_first(deck: &mut Vec<Card>) {
    let mut seen = Vec::new();
    let (mut first, rest): (Vec<Card>, Vec<Card>) = deck.iter().copied().partition(|card| {
        let is_new = !seen.contains(&card.family());
        seen.push(card.family());
        is_new
    });
    first.sort_by_key(|card| card.family());
    *deck = [first, rest].concat();
}

/// Makes rounds of cards, and knows which workers there are.
struct Dealer {
    random: SmallRng,
    effort: Effort,
    workers: Vec<usize>,
    /// The number of the next new one.
    next: usize,
}

impl Dealer {
    fn round(&mut self, card: Card) -> Round {
        let random = &mut self.random;
        let (scope, kind, change, mut blows) = match card {
            Card::Blows(scope, kind) => {
                let blows = match scope {
                    Scope::Worker => vec![Blow {
                        kind,
                        target: Target::Worker(*self.workers.choose(random).unwrap()),
                    }],
                    Scope::Zone => zone(kind, random.random_range(0..ZONES), &self.workers),
                    Scope::Everything => everything(kind, random, &self.workers),
                    Scope::Master | Scope::Several | Scope::None => vec![Blow {
                        kind,
                        target: Target::Master,
                    }],
                };
                (scope, kind, None, blows)
            }
            Card::Several => {
                let blows = several(random, &self.workers);
                (Scope::Several, Kind::Kill, None, blows)
            }
            Card::Change(planned, kind) => {
                let (change, spared) = self.change(planned);
                let others = self.workers.iter().copied();
                let others: Vec<usize> = others.filter(|it| !spared.contains(it)).collect();
                let blow = kind.map(|kind| Blow {
                    kind,
                    target: Target::Worker(*others.choose(&mut self.random).unwrap()),
                });
                let scope = blow.map_or(Scope::None, |_| Scope::Worker);
                let kind = kind.unwrap_or(Kind::Kill);
                (scope, kind, Some(change), blow.into_iter().collect())
            }
        };
        let random = &mut self.random;
        blows.shuffle(random);
        Round {
            scope,
            change,
            hold: if blows.is_empty() {
                Duration::ZERO
            } else {
                hold(kind, random, self.effort)
            },
            apart: Duration::from_millis(random.random_range(0..200)),
            blows,
        }
    }

    /// A change, and the workers that it is about.
    fn change(&mut self, planned: Planned) -> (Change, [usize; 2]) {
        let new = self.next;
        // Each zone keeps as many.
        let in_zone = self.workers.iter().copied();
        let in_zone = in_zone.filter(|worker| zone_of(*worker) == zone_of(new));
        let in_zone: Vec<usize> = in_zone.collect();
        let old = *in_zone.choose(&mut self.random).unwrap();
        let change = match planned {
            Planned::Drain => return (Change::Drain(old), [old; 2]),
            Planned::Relieve => Change::Relieve { old, new },
            Planned::Replace => Change::Replace { old, new },
        };
        self.workers.retain(|worker| *worker != old);
        self.workers.push(new);
        self.next += 1;
        (change, [old, new])
    }
}

fn zone(kind: Kind, zone: usize, workers: &[usize]) -> Vec<Blow> {
    if kind == Kind::Cut {
        return vec![Blow {
            kind,
            target: Target::ZoneBorder(zone),
        }];
    }
    let workers = workers.iter().filter(|worker| zone_of(**worker) == zone);
    workers
        .map(|worker| Blow {
            kind,
            target: Target::Worker(*worker),
        })
        .collect()
}

/// The master and each worker; half of them by something else.
fn everything(kind: Kind, random: &mut SmallRng, workers: &[usize]) -> Vec<Blow> {
    let mut blow = |target: Target, kinds: &[Kind]| {
        let other = kinds.choose(random).copied().unwrap_or(kind);
        let kind = if random.random() { kind } else { other };
        Blow { kind, target }
    };
    let master = blow(Target::Master, &KINDS_OF_MASTER);
    let workers = workers
        .iter()
        .map(|worker| blow(Target::Worker(*worker), &KINDS));
    workers.chain([master]).collect()
}

/// Three or four of the workers and sometimes the master: one killed, one frozen, one with a full disk, and one by whatever it is.
fn several(random: &mut SmallRng, workers: &[usize]) -> Vec<Blow> {
    let mut workers = workers.to_vec();
    workers.shuffle(random);
    let other = *KINDS.choose(random).unwrap();
    let mut kinds = vec![Kind::Kill, Kind::Freeze, Kind::FullDisk];
    kinds.extend(random.random::<bool>().then_some(other));
    let blows = workers.into_iter().zip(kinds).map(|(worker, kind)| Blow {
        kind,
        target: Target::Worker(worker),
    });
    let mut blows: Vec<Blow> = blows.collect();
    if random.random_bool(0.3) {
        let kind = *KINDS_OF_MASTER.choose(random).unwrap();
        let target = Target::Master;
        blows.push(Blow { kind, target });
    }
    blows
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
