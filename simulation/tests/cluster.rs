//! A whole cluster while the network loses and delays messages, hosts crash, and no two clocks agree.
//!
//! `SEEDS=1000 cargo test -p weir-simulation` tries so many seeds, `SEED=7` that one.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod cluster {
    pub(crate) mod admin;
    pub(crate) mod clocks;
    pub(crate) mod faults;
    pub(crate) mod hosts;
    pub(crate) mod origin;
    pub(crate) mod reads;
    pub(crate) mod store;
    pub(crate) mod views;
}

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::admin::{self, Asking, Wanted};
use crate::cluster::clocks::{Clock, TrueTime};
use crate::cluster::faults::{self, Fault, Time};
use crate::cluster::hosts::{DATASETS, MASTER, Setup, World, reader, worker};
use crate::cluster::origin::{Bucket, Health};
use crate::cluster::reads::Reads;

const SEEDS: u64 = 100;
const WORKERS: usize = 4;
/// Those who follow the map alone, and those who read: one of each dataset in each zone.
const READERS: usize = 2;
const BLOCK_READERS: usize = 4;
/// How long things go wrong, and how long it may take then until all agree.
const STORM: Duration = Duration::from_secs(45);
const CONVERGED: Duration = Duration::from_mins(1);
/// The same while blocks are read.
const BLOCK_STORM: Duration = Duration::from_secs(25);
/// Longest time until the datasets are made.
const MADE: Duration = Duration::from_mins(1);
/// How far a host runs before the next one does: less where somebody waits for each message.
const COARSE: Duration = Duration::from_millis(50);
const FINE: Duration = Duration::from_millis(30);
/// Objects of each dataset.
const OBJECTS: usize = 8;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// Tries all seeds on two threads. Panics with the seed of one that fails.
fn each_seed(try_one: fn(u64)) {
    let seeds: Vec<u64> = match number("SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SEEDS").unwrap_or(SEEDS)).collect(),
    };
    std::thread::scope(|scope| {
        for part in 0..2 {
            let seeds = seeds.iter().skip(part).step_by(2);
            scope.spawn(move || {
                for seed in seeds {
                    let outcome = std::panic::catch_unwind(|| try_one(*seed));
                    assert!(outcome.is_ok(), "SEED={seed} fails: see above");
                }
            });
        }
    });
}

fn simulation(seed: u64, tick: Duration, latest: Duration) -> turmoil::Sim<'static> {
    turmoil::Builder::new()
        .rng_seed(seed)
        .enable_random_order()
        .tick_duration(tick)
        .simulation_duration(2 * (STORM + 2 * CONVERGED))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(latest)
        .build()
}

/// Of hosts whose clocks follow from the seed.
fn clocks(seed: u64, time: Duration) -> Box<dyn FnMut() -> Clock> {
    let mut random = SmallRng::seed_from_u64(!seed);
    Box::new(move || Clock::of_seed(&mut random, time))
}

/// Members alone: nothing is read.
fn members(seed: u64) -> Setup {
    Setup {
        seed,
        workers: WORKERS,
        late: Vec::new(),
        readers: READERS,
        reads: None,
        bucket: Bucket::new(seed, &[], 0, Health::GOOD, TrueTime::default()),
        clock: clocks(seed, STORM),
    }
}

#[test]
fn views_converge_and_no_acknowledged_change_is_lost() {
    each_seed(|seed| {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut sim = simulation(seed, COARSE, Duration::from_millis(400));
        let setup = members(seed);
        let bucket = setup.bucket.clone();
        let world = World::start(&mut sim, setup);
        let wanted = Arc::<Wanted>::default();
        let asking = Asking {
            from: STORM / 10,
            to: STORM,
            most: 15,
            of_datasets: false,
        };
        let operations = admin::operations(&mut random, WORKERS, asking);
        let (views, judge) = (world.views.clone(), wanted.clone());
        sim.client("admin", async move {
            let ended = Instant::now() + STORM;
            admin::run(operations, &judge, &bucket, None).await;
            // The last faults end with the storm.
            sleep_until(ended).await;
            admin::until_agreed(&views, &judge, 0, CONVERGED).await;
            Ok(())
        });
        let time = Time {
            from: Duration::ZERO,
            to: STORM,
            most: Duration::from_secs(25),
        };
        let faults = faults::of_master(&mut random, (WORKERS, READERS), time);
        faults::run(&mut sim, &TrueTime::default(), faults);
        world.views.check();
        assert!(wanted.acknowledged() > 0, "nothing was asked for");
    });
}

#[test]
fn a_master_that_nobody_reaches_loses_no_worker() {
    each_seed(|seed| {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut sim = simulation(seed, COARSE, Duration::from_millis(400));
        let mut setup = members(seed);
        // One whose clock jumps is itself away for as long.
        setup.clock = Box::new(Clock::right);
        let world = World::start(&mut sim, setup);
        let cut = Duration::from_secs(random.random_range(12..50));
        let views = world.views.clone();
        sim.client("admin", async move {
            views.until_all_see(Duration::from_secs(20)).await;
            let before = views.map_of(&worker(0)).epoch();
            sleep(cut + CONVERGED).await;
            views.until_all_see(CONVERGED).await;
            assert_eq!(
                views.map_of(&worker(0)).epoch(),
                before,
                "somebody was taken out of the map"
            );
            Ok(())
        });
        let others = (0..WORKERS).map(worker).chain((0..READERS).map(reader));
        let faults = others.map(|other| Fault::cut(MASTER, &other, Duration::from_secs(25), cut));
        faults::run(&mut sim, &TrueTime::default(), faults.collect());
        world.views.check();
    });
}

/// Longest read while messages are late, hosts die and clocks jump: it may meet several that are silent one after the other.
const LONGEST_IN_A_STORM: Duration = Duration::from_secs(20);

#[test]
fn blocks_are_right_and_readable_while_their_origin_is() {
    each_seed(|seed| {
        let mut random = SmallRng::seed_from_u64(seed);
        let latest = [20, 100, 400][random.random_range(0..3)];
        let mut sim = simulation(seed, FINE, Duration::from_millis(latest));
        let time = TrueTime::default();
        let bucket = Bucket::new(seed, &DATASETS, OBJECTS, Health::BAD, time.clone());
        let reads = Reads::new(bucket.clone(), time.clone());
        let world = World::start(
            &mut sim,
            Setup {
                seed,
                workers: WORKERS,
                late: vec![BLOCK_STORM / 2],
                readers: BLOCK_READERS,
                reads: Some(reads.clone()),
                bucket: bucket.clone(),
                clock: clocks(seed, BLOCK_STORM),
            },
        );
        let wanted = Arc::<Wanted>::default();
        let start = Duration::from_secs(5);
        let asking = Asking {
            from: start,
            to: BLOCK_STORM,
            most: 15,
            of_datasets: true,
        };
        let workers = WORKERS + 1;
        let operations = admin::operations(&mut random, workers, asking);
        let (views, judge) = (world.views.clone(), wanted.clone());
        let (source, readers) = (bucket.clone(), reads.clone());
        sim.client("admin", async move {
            let ended = Instant::now() + BLOCK_STORM;
            admin::make(&judge, &readers, MADE).await;
            admin::run(operations, &judge, &source, Some(&readers)).await;
            sleep_until(ended).await;
            admin::until_agreed(&views, &judge, BLOCK_READERS, CONVERGED).await;
            Ok(())
        });
        let during = Time {
            from: start,
            to: BLOCK_STORM,
            most: Duration::from_secs(15),
        };
        let hosts = (workers, BLOCK_READERS);
        let mut faults = faults::of_blocks(&mut random, hosts, during);
        faults.extend(faults::of_master(&mut random, hosts, during));
        if random.random_bool(0.5) {
            let away = Duration::from_secs(random.random_range(1..6));
            faults.push(Fault::away(&bucket, BLOCK_STORM / 2, away));
        }
        faults::run(&mut sim, &time, faults);
        world.views.check();
        reads.check(40, LONGEST_IN_A_STORM);
    });
}

/// Time in which a change has come to its end, and the longest read meanwhile: nobody is silent.
const CHANGED: Duration = Duration::from_secs(8);
const LONGEST_AS_PLANNED: Duration = Duration::from_secs(2);

#[test]
fn planned_changes_cost_no_read_and_no_byte_of_the_origin() {
    each_seed(|seed| {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut sim = simulation(seed, FINE, Duration::from_millis(30));
        let time = TrueTime::default();
        let bucket = Bucket::new(seed, &DATASETS, OBJECTS, Health::GOOD, time.clone());
        let reads = Reads::new(bucket.clone(), time.clone());
        let mut drifting = SmallRng::seed_from_u64(!seed);
        let late = Duration::from_secs(random.random_range(20..40));
        let world = World::start(
            &mut sim,
            Setup {
                seed,
                workers: WORKERS,
                late: vec![late],
                readers: BLOCK_READERS,
                reads: Some(reads.clone()),
                bucket: bucket.clone(),
                clock: Box::new(move || Clock::steady(&mut drifting)),
            },
        );
        let views = world.views.clone();
        let (readers, wanted) = (reads.clone(), Arc::<Wanted>::default());
        let drained = random.random_range(0..WORKERS);
        let placed = random.random_range(1..4);
        let mut changes = [0, 1, 2];
        changes.shuffle(&mut random);
        sim.client("admin", async move {
            let start = Instant::now();
            admin::make(&wanted, &readers, MADE).await;
            readers.until_read(DATASETS.len() * OBJECTS, MADE).await;
            for change in changes {
                match change {
                    0 => {
                        admin::drain(drained).await?;
                        sleep(CHANGED).await;
                        admin::uncordon(drained).await?;
                    }
                    1 => admin::place(placed).await?,
                    _ => admin::place(0).await?,
                }
                sleep(CHANGED).await;
            }
            sleep_until(start + late + CHANGED).await;
            views.until_all_see(CONVERGED).await;
            Ok(())
        });
        faults::run(&mut sim, &time, Vec::new());
        world.views.check();
        let again = bucket.sent_again();
        assert!(again.is_empty(), "sent again: {}", again.join("\n"));
        reads.check(40, LONGEST_AS_PLANNED);
    });
}
