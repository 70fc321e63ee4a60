//! A storm: workers, zones and the master of a cluster are killed, frozen and cut off, disks are full and slow, and workers are drained,
//! come, and leave for good, in an order that follows from a seed, while readers near each zone read verified epochs of two datasets.
//!
//! No read fails, none takes long, and the origin sends again what was lost, once, and no more: nothing, where all was planned.
//!
//! `make chaos ROUNDS=50 SEED=7` does so many rounds of a seed; without one there is a new one each time, which is printed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use weir_tests::{
    Cluster, DiskFault, Epochs, FaultyDisk, Lab, Mount, Network, Process, content, wait_until,
};

use self::plan::{Blow, Kind, Round, Target, WORKERS, ZONES, rounds, workers_of, zone_of};
use super::table::{Allowed, Outcome, Row};
use super::world::{Effort, Files};

mod changes;
pub(crate) mod plan;

/// Small files of each dataset, and readers of each mount.
const FILES: u64 = 100;
const READERS: usize = 1;
/// How late a slow disk answers each request: three times the seek of a disk that turns.
const LATE: Duration = Duration::from_millis(25);
/// Longest wait until all that was hit is in use again.
const SETTLED: Duration = Duration::from_mins(1);
/// What may be saved up for requests beside workers that are silent, of each mount, and the part of the reads that is added (`core/race_budget.rs`).
const SAVED_RACES: u64 = 16;
const READS_OF_A_RACE: u64 = 20;
const DATASETS: [&str; 2] = ["wide", "near"];
const ZONE_NAMES: [&str; ZONES] = ["zone-0", "zone-1"];

pub(crate) const ROWS: &[Row] = &[Row {
    name: "a_storm",
    what: "any workers, zone, the master or all of them are killed, frozen or cut off, their disks are full or slow; workers are drained, join and leave",
    allowed: Allowed::Longest(Duration::from_secs(3)),
    run: storm,
}];

/// What a storm is done to.
struct World<'a> {
    lab: &'a Lab,
    cluster: Cluster<'a>,
    network: &'a Network,
    /// The workers of the cluster; those that have left are none any more.
    workers: Vec<usize>,
    /// Of all workers that there ever were.
    disks: Vec<FaultyDisk>,
    mounts: Vec<Mount<'a>>,
    readers: Epochs,
    /// Bytes of the origin's objects that were sent.
    sent: &'a dyn Fn() -> u64,
    /// Bytes of a file, on average.
    mean: u64,
    /// What workers held that were away in the round before, and the origin has not sent since.
    owed: u64,
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

fn storm(effort: Effort) -> Outcome {
    let seed = number("WEIR_STORM_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let count = number("WEIR_STORM_ROUNDS").map_or(effort.of(4, 16), |rounds| rounds as usize);
    // A short run holds its breath for less long.
    let again = match effort {
        Effort::Short => {
            format!("WEIR_STORM_SEED={seed} cargo test --workspace --test chaos -- a_storm")
        }
        Effort::Full => format!("make chaos ROUNDS={count} SEED={seed}"),
    };
    println!("the storm's seed is {seed}; again: {again}");
    let rounds = rounds(seed, count, effort);
    // The last host is the master's.
    let zones = (0..workers_of(&rounds))
        .map(|worker| Some(zone_of(worker)))
        .chain([None]);
    let network = match Network::new(&zones.collect::<Vec<_>>()) {
        Ok(network) => network,
        Err(reason) => return Outcome::skipped(format!("no network can be made ({reason})")),
    };
    let lab = Lab::with(weir_s3_server::Config {
        listen: (network.outside(), 0).into(),
        ..weir_s3_server::Config::default()
    });
    let files = DATASETS.map(|dataset| fill(&lab, dataset));
    let sent = || lab.s3.stats().bytes();
    let mut world = World::new(&lab, &network, &files, seed, &sent);
    let mut wrong = Vec::new();
    for (number, round) in rounds.iter().enumerate() {
        let told = world.suffer(round);
        let faults = told
            .faults
            .iter()
            .map(|fault| format!("seed {seed}, round {number} ({round}): {fault}"));
        wrong.extend(faults);
        println!("{number:>3}: {told} | {round}");
    }
    let World {
        readers, mounts, ..
    } = world;
    let mut outcome = Outcome {
        times: rounds.len(),
        readers: readers.finish(),
        skipped: None,
    };
    outcome.readers.errors.extend(wrong);
    mounts.into_iter().for_each(Mount::unmount);
    outcome
}

/// A dataset's files: of 1 KB to 280 KB, and one of two blocks.
fn fill(lab: &Lab, dataset: &str) -> Files {
    let first = if dataset == DATASETS[0] { 0 } else { 1 << 20 };
    let small = (0..FILES).map(|n| {
        let length = 1000 + 2800 * n as usize;
        (format!("d{}/f{n}", n % 20), content(first + n, length))
    });
    let large = (
        "large".to_owned(),
        content(first + FILES, (4 << 20) + 300_000),
    );
    let files: BTreeMap<String, Vec<u8>> = small.chain([large]).collect();
    let in_bucket = files
        .iter()
        .map(|(name, bytes)| (format!("{dataset}/{name}"), bytes.clone()));
    lab.put_all(&in_bucket.collect());
    Arc::new(files)
}

impl<'a> World<'a> {
    fn new(
        lab: &'a Lab,
        network: &'a Network,
        files: &[Files; 2],
        seed: u64,
        sent: &'a dyn Fn() -> u64,
    ) -> Self {
        let disks = (0..WORKERS).map(|worker| disk(lab, worker)).collect();
        let flags = (0..WORKERS).map(worker_flags);
        let flags: Vec<[&str; 4]> = flags.collect();
        let flags: Vec<&[&str]> = flags.iter().map(|flags| &flags[..]).collect();
        let cluster = Cluster::start_on(lab, network, &flags);
        let [wide, near] = DATASETS;
        cluster.create_dataset_of(wide, "wide/", &[]).ok();
        let copied = ["--spread", "zone", "--copies", "2"];
        cluster.create_dataset_of(near, "near/", &copied).ok();
        let mut mounts = Vec::new();
        let mut read = Vec::new();
        for (dataset, files) in DATASETS.iter().zip(files) {
            for zone in ZONE_NAMES {
                let (dir, node) = (format!("{dataset}-{zone}"), format!("reader-of-{zone}"));
                let flags = ["--zone", zone, "--node", &node];
                let mount = cluster.mount_at(dataset, &dir, &flags);
                read.push((mount.dir.clone(), files.clone()));
                mounts.push(mount);
            }
        }
        let (count, bytes) = files
            .iter()
            .flat_map(|files| files.values())
            .fold((0, 0), |(count, bytes), file| {
                (count + 1, bytes + file.len() as u64)
            });
        let readers = Epochs::start(&read, READERS, seed);
        let world = Self {
            lab,
            cluster,
            network,
            workers: (0..WORKERS).collect(),
            disks,
            mounts,
            readers,
            sent,
            mean: bytes / count,
            owed: 0,
        };
        world.readers.read_an_epoch();
        world.settle();
        world.readers.slow();
        world
    }

    /// Waits until all workers report, and until mounts and the master agree on the map and no mount goes around anybody.
    fn settle(&self) {
        wait_until("the cluster is well again", SETTLED, || {
            let status = self.cluster.status();
            let workers = status["workers"].as_array().unwrap();
            let reports = |worker: &serde_json::Value| {
                worker["last_seen_ms"].as_u64().is_some_and(|ms| ms < 2500)
            };
            let epoch = status["epoch"].as_f64();
            let is_member = |id: &str| self.workers.iter().any(|member| name_of(*member) == id);
            workers.len() == self.workers.len()
                && workers
                    .iter()
                    .all(|worker| worker["id"].as_str().is_some_and(is_member))
                && workers.iter().all(reports)
                && self
                    .mounts
                    .iter()
                    .all(|mount| Some(mount.metric("weir_client_cluster_map_epoch", "")) == epoch)
                && self
                    .mounts
                    .iter()
                    .all(|mount| mount.metric("weir_client_suspects", "") < 1.0)
        });
        // What the workers do not know is fetched, and each file is compared.
        self.readers.read_an_epoch();
    }

    /// Bytes of the datasets that a worker holds.
    fn held(&self, worker: usize) -> u64 {
        self.cluster
            .worker(worker)
            .metric("weir_worker_cached_bytes", "") as u64
    }

    /// Bytes that full disks did not keep, of all workers that there are.
    fn refused(&self) -> BTreeMap<usize, u64> {
        let of = |worker: usize| {
            let name = "weir_worker_admissions_refused_bytes_total";
            self.cluster.worker(worker).metric(name, "") as u64
        };
        let workers = self.workers.iter().copied();
        workers.map(|worker| (worker, of(worker))).collect()
    }

    /// Reads beside a worker that said nothing.
    fn races(&self) -> u64 {
        let of =
            |mount: &Mount<'_>| mount.metric("weir_client_failovers_total", "reason=\"silent\"");
        self.mounts.iter().map(of).sum::<f64>() as u64
    }

    /// Bytes that mounts have read ahead.
    fn ahead(&self) -> u64 {
        let of = |mount: &Mount<'_>| mount.metric("weir_client_prefetched_bytes_total", "");
        self.mounts.iter().map(of).sum::<f64>() as u64
    }

    fn suffer(&mut self, round: &Round) -> Told {
        let away = round.away(&self.workers);
        let held: u64 = away.iter().map(|worker| self.held(*worker)).sum();
        let (sent, read) = ((self.sent)(), self.readers.bytes());
        let (refused, races, ahead) = (self.refused(), self.races(), self.ahead());
        let began = Instant::now();
        if let Some(change) = round.change {
            self.begin(change);
        }
        for blow in &round.blows {
            self.strike(*blow);
            std::thread::sleep(round.apart);
        }
        std::thread::sleep(round.hold);
        let healed = began.elapsed();
        for blow in &round.blows {
            self.heal(*blow);
        }
        if let Some(change) = round.change {
            self.end(change);
        }
        self.settle();
        let settled = began.elapsed();
        let (sent, read) = ((self.sent)() - sent, self.readers.bytes() - read);
        // While nobody is there the origin is read by each reader for itself, and ahead of it: these drop such pages before they read.
        let nobody = if away.len() == WORKERS {
            read + self.ahead() - ahead
        } else {
            0
        };
        // Also of a disk that was full in a round before: a worker tries it again half a minute later.
        let unkept = self.refused().into_iter().map(|(worker, now)| {
            // One that was started again counts from nothing.
            now.saturating_sub(refused.get(&worker).copied().unwrap_or(0))
        });
        let unkept = unkept.sum::<u64>();
        let saved = SAVED_RACES * self.mean * self.mounts.len() as u64;
        let races = (self.races() - races) * self.mean;
        let told = Told {
            sent,
            lost: held + nobody + unkept + self.owed,
            races: races.min(saved + read / READS_OF_A_RACE),
            longest: Duration::ZERO,
            read,
            healed,
            settled,
            faults: Vec::new(),
        };
        // Workers leave out those that did not answer for 10 s and more: what they lack may be fetched in the next round only.
        self.owed = held.min((told.lost + told.races).saturating_sub(told.sent));
        self.judge(round, began, told)
    }

    fn judge(&self, round: &Round, began: Instant, mut told: Told) -> Told {
        for slow in self.readers.slow() {
            told.longest = told.longest.max(slow.took);
            if slow.took > round.longest() {
                told.faults.push(format!(
                    "{} took {:.2} s, from {:.2} s after the first blow on (healed {:.2} s after it)",
                    slow.path.display(),
                    slow.took.as_secs_f64(),
                    slow.began.saturating_duration_since(began).as_secs_f64(),
                    told.healed.as_secs_f64(),
                ));
            }
        }
        if told.sent > told.lost + told.races {
            let fault = format!(
                "the origin sent {} bytes; {} were lost, and {} may be raced for",
                told.sent, told.lost, told.races
            );
            told.faults.push(fault);
        }
        told
    }

    fn strike(&mut self, Blow { kind, target }: Blow) {
        match kind {
            Kind::Kill => self.process(target).kill(),
            Kind::Freeze => self.process(target).signal(Signal::STOP),
            Kind::Cut => self.cut(target, true),
            Kind::FullDisk => self.disk(target).fail(DiskFault::None, DiskFault::FULL),
            Kind::SlowDisk => {
                let slow = DiskFault::Slow(LATE);
                self.disk(target).fail(slow, slow);
            }
        }
    }

    fn heal(&mut self, Blow { kind, target }: Blow) {
        match (kind, target) {
            (Kind::Kill, Target::Worker(worker)) => self.cluster.start_worker(worker),
            (Kind::Kill, _) => self.cluster.start_master(),
            (Kind::Freeze, _) => self.process(target).signal(Signal::CONT),
            (Kind::Cut, _) => self.cut(target, false),
            (Kind::FullDisk | Kind::SlowDisk, _) => self.disk(target).heal(),
        }
    }

    fn process(&mut self, target: Target) -> &mut Process {
        let process = match target {
            Target::Worker(worker) => &mut self.cluster.workers[worker],
            Target::Master => &mut self.cluster.master,
            Target::ZoneBorder(zone) => unreachable!("the border of zone {zone} is no process"),
        };
        process.as_mut().unwrap()
    }

    fn disk(&self, target: Target) -> &FaultyDisk {
        match target {
            Target::Worker(worker) => &self.disks[worker],
            target => unreachable!("{target:?} has no disk"),
        }
    }

    fn cut(&self, target: Target, cut: bool) {
        match target {
            Target::Worker(worker) => self.network.cut(worker, cut),
            Target::ZoneBorder(zone) => self.network.cut_zone(zone, cut),
            Target::Master => self.network.cut(self.network.hosts() - 1, cut),
        }
    }
}

/// The disk of a worker.
fn disk(lab: &Lab, worker: usize) -> FaultyDisk {
    let (dir, files) = (format!("{}/ssd", name_of(worker)), format!("disk-{worker}"));
    FaultyDisk::new(lab.path(&dir), &lab.path(&files)).unwrap()
}

/// All is read from the disks.
fn worker_flags(worker: usize) -> [&'static str; 4] {
    ["--mem", "0", "--zone", ZONE_NAMES[zone_of(worker)]]
}

/// The name of a worker, and of its node.
fn name_of(worker: usize) -> String {
    format!("node-{worker}")
}

/// What came of a round.
struct Told {
    /// Bytes of the origin.
    sent: u64,
    /// Bytes that were lost.
    lost: u64,
    /// Bytes that the races of the mounts may have cost: those that there were, and never more than their budget.
    races: u64,
    read: u64,
    longest: Duration,
    /// From the first blow until all was well again, and until it was in use again.
    healed: Duration,
    settled: Duration,
    faults: Vec<String>,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "read {:.0} MiB, longest {:.2} s, origin {:.1} of {:.1} + {:.1} MiB, healed {:.1} s, settled {:.1} s{}",
            mib(self.read),
            self.longest.as_secs_f64(),
            mib(self.sent),
            mib(self.lost),
            mib(self.races),
            self.healed.as_secs_f64(),
            self.settled.as_secs_f64(),
            if self.faults.is_empty() {
                ""
            } else {
                ", WRONG"
            },
        )
    }
}
