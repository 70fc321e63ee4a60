//! Members, the cluster map, cordons and drains while the network loses and delays messages and hosts crash.
//!
//! `SEEDS=1000 cargo test -p weir-simulation` tries so many seeds, `SEED=7` that one.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod membership {
    pub(crate) mod admin;
    pub(crate) mod faults;
    pub(crate) mod hosts;
    pub(crate) mod store;
    pub(crate) mod views;
}

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::membership::admin::{self, Wanted};
use crate::membership::faults::{self, Fault};
use crate::membership::hosts::{MASTER, READERS, World, reader, worker};

const SEEDS: u64 = 100;
const WORKERS: usize = 4;
/// How long things go wrong, and how long it may take then until all agree.
const STORM: Duration = Duration::from_mins(1);
const CONVERGED: Duration = Duration::from_mins(1);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// Tries seeds on two threads. Panics with the seed of one that fails.
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

/// A simulation of all hosts, and what else is random in it.
fn simulation(seed: u64) -> (turmoil::Sim<'static>, World, SmallRng) {
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .enable_random_order()
        .tick_duration(Duration::from_millis(20))
        .simulation_duration(2 * (STORM + 2 * CONVERGED))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(400))
        .build();
    let world = World::start(&mut sim, WORKERS);
    (sim, world, SmallRng::seed_from_u64(seed))
}

#[test]
fn views_converge_and_no_acknowledged_change_is_lost() {
    each_seed(|seed| {
        let (mut sim, world, mut random) = simulation(seed);
        let wanted = Arc::<Wanted>::default();
        let (views, operations) = (
            world.views.clone(),
            admin::operations(&mut random, WORKERS, STORM),
        );
        let judge = wanted.clone();
        sim.client("admin", async move {
            let ended = Instant::now() + STORM;
            admin::run(operations, &judge).await;
            // The last faults end with the storm.
            tokio::time::sleep_until(ended).await;
            admin::until_agreed(&views, &judge, WORKERS, CONVERGED).await;
            Ok(())
        });
        let faults = faults::of_seed(&mut random, WORKERS, STORM);
        faults::run(&mut sim, faults);
        world.views.check();
        assert!(wanted.acknowledged() > 0, "nothing was asked for");
    });
}

#[test]
fn a_master_that_nobody_reaches_loses_no_worker() {
    each_seed(|seed| {
        let (mut sim, world, mut random) = simulation(seed);
        let cut = Duration::from_secs(random.random_range(12..50));
        let views = world.views.clone();
        sim.client("admin", async move {
            views.until_all_see(WORKERS, Duration::from_secs(20)).await;
            let before = views.of(&worker(0)).epoch();
            tokio::time::sleep(cut + CONVERGED).await;
            views.until_all_see(WORKERS, CONVERGED).await;
            assert_eq!(
                views.of(&worker(0)).epoch(),
                before,
                "somebody was taken out of the map"
            );
            Ok(())
        });
        let others = (0..WORKERS).map(worker).chain((0..READERS).map(reader));
        let faults = others.map(|other| Fault::cut(MASTER, &other, Duration::from_secs(25), cut));
        faults::run(&mut sim, faults.collect());
        world.views.check();
    });
}
