//! Many datasets of many files: whether the cluster stays quiet while its workers find out what they hold of each.

use std::time::{Duration, Instant};

use anyhow::ensure;
use weir_demo::ending::tell;

use super::{Bench, Measured};
use crate::metrics::Scrape;
use crate::server::Builtin;
use crate::stats::median;
use crate::system::{Cluster, Tiers};
use crate::table::{Table, Unit};
use crate::usage::{Meter, Usage};

/// Name of the only system in the table.
const SYSTEM: &str = "Weir, master and two workers";
const DATASETS: u64 = 20;
const FILES: u64 = 1_000_000;
pub(super) const WORKERS: usize = 2;
/// How long each state is watched, the time between two heartbeats of a worker, and the silence after which it is taken
/// out of the cluster map.
const WATCHED: Duration = Duration::from_mins(1);
const HEARTBEAT: Duration = Duration::from_secs(2);
const EXPIRY: Duration = Duration::from_secs(10);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// What of each dataset is warmed, which changes what workers hold: 1,000 files of some 128 KiB.
const WARMED_BYTES: u64 = 1000 * (192 << 10);
/// Longest wait for all datasets to be looked up.
const LOOKED_UP: Duration = Duration::from_mins(20);
const MIB: f64 = 1_048_576.0;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let files = bench.scaled(FILES);
    let server = Builtin::generated("listed", files)?;
    let tiers = Tiers::ssd_for(2 * DATASETS * WARMED_BYTES);
    let cluster = Cluster::start(&bench.scratch().join("many"), WORKERS, tiers)?;
    let mut table = Table::default();
    let mut note = |what: &str, unit, value, limit| table.state(SYSTEM, what, unit, value, limit);
    let started = Instant::now();
    for number in 0..DATASETS {
        tell(format_args!("many: dataset {number} of {files} files"));
        cluster.create_dataset(&name(number), &server.endpoint, "listed")?;
    }
    let seconds = started.elapsed().as_secs_f64();
    note(
        "`weir dataset create`, each",
        Unit::Seconds,
        seconds / DATASETS as f64,
        None,
    );

    let started = Instant::now();
    let mut states = vec![(
        "while they are looked up for the first time",
        Watched::over(&cluster, |started| warm_each(&cluster, 0, started))?,
    )];
    until_looked_up(&cluster, DATASETS)?;
    let seconds = started.elapsed().as_secs_f64();
    note(
        "until each worker has looked all of them up",
        Unit::Seconds,
        seconds,
        None,
    );
    let watched = Watched::over(&cluster, |started| warm_each(&cluster, DATASETS, started));
    states.push(("afterwards", watched?));

    for (state, watched) in states {
        watched.note(state, &mut note);
    }
    Ok(Measured {
        title: format!("{DATASETS} datasets of {files} files, two workers"),
        source: "listings from weir-s3-server".to_owned(),
        runs: 1,
        notes: vec![format!(
            "Each state is watched for {} s, in which 1,000 files of each dataset are warmed one after another: so there is always one that has changed. What a warm job takes is in the figures.",
            WATCHED.as_secs()
        )],
        table,
    })
}

fn name(number: u64) -> String {
    format!("set-{number}")
}

/// Waits until each worker has found out what it holds of so many datasets.
pub(super) fn until_looked_up(cluster: &Cluster, datasets: u64) -> anyhow::Result<()> {
    let started = Instant::now();
    for url in cluster.metrics() {
        while (Scrape::fetch(&url)?.samples("weir_worker_cached_bytes") as u64) < datasets {
            ensure!(
                started.elapsed() < LOOKED_UP,
                "not all datasets are looked up"
            );
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// What was seen in a minute.
pub(super) struct Watched {
    /// Heartbeats, as a part of those that were due.
    heartbeats: f64,
    /// The longest time between two heartbeats of a worker that reached the master, in seconds.
    silence: f64,
    /// By how much the epoch grew.
    changes: f64,
    master: Usage,
    workers: Usage,
    /// Times of `weir dataset list`, and the longest of `weir status`, in milliseconds.
    lists: Vec<f64>,
    status: f64,
}

impl Watched {
    /// Watches a cluster of [`WORKERS`] for [`WATCHED`], and longer if `work`, which is given the beginning, takes longer.
    pub(super) fn over(
        cluster: &Cluster,
        work: impl FnOnce(Instant) -> anyhow::Result<()> + Send,
    ) -> anyhow::Result<Self> {
        let pids = cluster.pids();
        let (workers, master) = pids.split_at(WORKERS);
        let heartbeats = || -> anyhow::Result<f64> {
            let scrape = Scrape::fetch(&cluster.master_metrics())?;
            Ok(scrape.sum("weir_master_heartbeats_total", ""))
        };
        let (master, workers) = (Meter::start(master), Meter::start(workers));
        let (started, before) = (Instant::now(), heartbeats()?);
        let (_, epoch) = look(cluster)?;
        let (mut silence, mut lists, mut status) = (Duration::ZERO, Vec::new(), Duration::ZERO);
        let warmed = std::thread::scope(|scope| {
            let warming = scope.spawn(|| work(started));
            while started.elapsed() < WATCHED || !warming.is_finished() {
                let asked = Instant::now();
                silence = silence.max(look(cluster)?.0);
                status = status.max(asked.elapsed());
                let asked = Instant::now();
                cluster.weir(&["dataset", "list", "-o", "json"])?;
                lists.push(asked.elapsed().as_secs_f64() * 1000.0);
                std::thread::sleep(LOOK);
            }
            warming
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))
        });
        warmed??;
        let took = started.elapsed().as_secs_f64();
        let due = WORKERS as f64 * took / HEARTBEAT.as_secs_f64();
        let in_a_minute = |usage: Usage| Usage {
            cpu_seconds: usage.cpu_seconds * 60.0 / took,
            ..usage
        };
        Ok(Self {
            heartbeats: (heartbeats()? - before) / due,
            silence: silence.as_secs_f64(),
            changes: look(cluster)?.1 - epoch,
            master: in_a_minute(master.stop()),
            workers: in_a_minute(workers.stop()),
            lists,
            status: status.as_secs_f64() * 1000.0,
        })
    }

    /// Notes what was seen in a state of the cluster: names, units, values and what they are to reach.
    pub(super) fn note(&self, state: &str, mut note: impl FnMut(&str, Unit, f64, Option<f64>)) {
        let mut note = |what: &str, unit, value, limit| {
            note(&format!("{what}, {state}"), unit, value, limit);
        };
        note(
            "heartbeats of those expected",
            Unit::Share,
            self.heartbeats,
            Some(0.9),
        );
        note(
            "longest silence of a worker",
            Unit::Seconds,
            self.silence,
            Some(EXPIRY.as_secs_f64() / 2.0),
        );
        note(
            "changes of the cluster map",
            Unit::Count,
            self.changes,
            Some(0.0),
        );
        note(
            "CPU of the master in a minute",
            Unit::Seconds,
            self.master.cpu_seconds,
            None,
        );
        note(
            "CPU of both workers in a minute",
            Unit::Seconds,
            self.workers.cpu_seconds,
            None,
        );
        note(
            "peak memory of the master",
            Unit::Mebibytes,
            self.master.peak_bytes as f64 / MIB,
            None,
        );
        note(
            "peak memory of a worker",
            Unit::Mebibytes,
            self.workers.peak_bytes as f64 / MIB / WORKERS as f64,
            None,
        );
        note(
            "`weir dataset list`",
            Unit::Milliseconds,
            median(&self.lists),
            None,
        );
        note(
            "`weir status`, the longest",
            Unit::Milliseconds,
            self.status,
            None,
        );
    }
}

/// Warms a directory of each dataset, from the `first` on, at times that are spread over the minute.
fn warm_each(cluster: &Cluster, first: u64, started: Instant) -> anyhow::Result<()> {
    for number in 0..DATASETS {
        let at = WATCHED.mul_f64(number as f64 / DATASETS as f64);
        std::thread::sleep(at.saturating_sub(started.elapsed()));
        let directory = format!("d{:06}", first + number);
        cluster.weir(&["warm", &name(number), &directory, "--wait"])?;
    }
    Ok(())
}

/// The longest that a worker is silent now, and the epoch of the cluster map.
fn look(cluster: &Cluster) -> anyhow::Result<(Duration, f64)> {
    let status = cluster.weir(&["status", "-o", "json"])?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let master = &status["masters"][0];
    let workers = master["workers"].as_array();
    let silent = workers.into_iter().flatten();
    let silent = silent.filter_map(|worker| worker["last_seen_ms"].as_u64());
    let longest = Duration::from_millis(silent.max().unwrap_or(0));
    Ok((longest, master["epoch"].as_f64().unwrap_or(0.0)))
}
