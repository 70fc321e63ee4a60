//! What readers lose while workers come and go as planned: one is added, one is drained, one comes back.
//!
//! What each worker sends is limited, and readers pause after each read as a training step does, so that neither the machine's cores
//! nor a link that is full decide. Each change is compared with the time right before it in the same run.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use weir_demo::ending::tell;

use super::{Bench, Measured};
use crate::data::Tree;
use crate::loopback::{LoopbackClient, Steady};
use crate::metrics::Scrape;
use crate::server::Bucket;
use crate::system::{Cluster, Tiers};
use crate::table::{Table, Unit};
use crate::wait::wait_for;

const SYSTEM: &str = "Weir, 4 workers and a fifth";
const WORKERS: usize = 4;
const DATASET: &str = "moving";
const FILES: u64 = 16;
const FILE: u64 = 128 << 20;
const READERS: usize = 12;
/// What a reader does with 1 MiB before it wants the next.
const THINKS: Duration = Duration::from_millis(50);
/// Bytes that each worker may send in a second, and the part of that at which blocks leave a worker that is drained.
const EGRESS: u64 = 192 << 20;
const DRAIN_PART: u64 = 6;
/// How long readers are watched before each change, and at least during it.
const WATCHED: Duration = Duration::from_secs(8);
/// Speed during a change, of that before it.
const LEAST_KEPT: f64 = 0.9;
/// A worker has what is its own once it has taken nothing over for so long.
const QUIET: Duration = Duration::from_secs(4);
/// Longest wait for that, and for a worker to be in the map.
const SETTLED: Duration = Duration::from_mins(3);
const LOOK: Duration = Duration::from_millis(500);
/// Bytes that workers took from each other, and from the origin.
const COPIED: &str = "weir_worker_copied_bytes_total";
const FETCHED: &str = "weir_origin_read_bytes_total";

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let tree = bench.data("moving", FILES, bench.scaled(FILE), 1)?;
    let server = bench.serve(&[Bucket {
        name: DATASET,
        tree: &tree,
    }])?;
    let mut table = Table::default();
    for number in 0..bench.runs {
        tell(format_args!("drain, run {}", number + 1));
        let home = bench.scratch().join("drain");
        let load = Load {
            readers: READERS,
            thinks: THINKS,
            egress: EGRESS,
            watched: WATCHED,
        };
        measure(&home, server.endpoint(), &tree, load)?.note(&mut table);
        let _ = std::fs::remove_dir_all(&home);
    }
    Ok(Measured {
        title: "What readers lose while workers come and go".to_owned(),
        source: format!("data from {}", server.name()),
        runs: bench.runs,
        notes: vec![format!(
            "{FILES} files of {} MiB on the SSD of {WORKERS} workers, which may send {} MiB in a second each. {READERS} readers are clients with connections of their own in one process, without mounts; each compares 1 MiB with the source, waits for {} ms, and reads the next. A drain takes {} MiB in a second, a worker that comes 64. Speeds are those of the whole change and of the {} s right before it.",
            bench.scaled(FILE) >> 20,
            EGRESS >> 20,
            THINKS.as_millis(),
            (EGRESS / DRAIN_PART) >> 20,
            WATCHED.as_secs(),
        )],
        table,
    })
}

/// How much is read.
#[derive(Clone, Copy)]
struct Load {
    readers: usize,
    thinks: Duration,
    egress: u64,
    watched: Duration,
}

/// What readers had before and during a change.
#[derive(Clone, Debug)]
struct Change {
    name: &'static str,
    /// Bytes in a second.
    before: f64,
    during: f64,
    seconds: f64,
    /// Bytes that workers took from each other.
    moved: f64,
    /// The longest read.
    longest: Duration,
}

impl Change {
    fn kept(&self) -> f64 {
        self.during / self.before
    }
}

#[derive(Debug)]
struct Found {
    changes: Vec<Change>,
    /// Reads that failed, or gave other bytes than the source has.
    wrong: u64,
    /// Bytes from the origin after the dataset was cached.
    from_origin: f64,
}

impl Found {
    fn note(&self, table: &mut Table) {
        let mut note = |what: &str, unit, value, limit| {
            table.state(SYSTEM, what, unit, value, limit);
        };
        for change in &self.changes {
            let name = change.name;
            let of = |what: &str| format!("{name}: {what}");
            let (before, during) = (change.before / 1e6, change.during / 1e6);
            note(&of("speed before"), Unit::MegabytesPerSecond, before, None);
            note(&of("speed during"), Unit::MegabytesPerSecond, during, None);
            let what = of("speed during, of that before");
            note(&what, Unit::Share, change.kept(), Some(LEAST_KEPT));
            let longest = change.longest.as_secs_f64() * 1e3;
            note(&of("longest read"), Unit::Milliseconds, longest, None);
            note(&of("it takes"), Unit::Seconds, change.seconds, None);
            let moved = change.moved / f64::from(1 << 20);
            note(&of("moved"), Unit::Mebibytes, moved, None);
        }
        note(
            "reads that failed or gave wrong bytes",
            Unit::Count,
            self.wrong as f64,
            Some(0.0),
        );
        note(
            "bytes from the origin meanwhile",
            Unit::Bytes,
            self.from_origin,
            Some(0.0),
        );
    }
}

/// A cluster under readers.
struct Under<'a> {
    cluster: Cluster,
    tiers: Tiers,
    steady: &'a Steady,
    load: Load,
}

impl Under<'_> {
    /// Makes a change, and gives what readers had before and during it.
    fn change(
        &mut self,
        name: &'static str,
        make: impl FnOnce(&mut Cluster, Tiers) -> anyhow::Result<()>,
    ) -> anyhow::Result<Change> {
        let load = self.load;
        self.steady.take();
        std::thread::sleep(load.watched);
        let before = self.steady.take();
        let (began, copied) = (Instant::now(), counts(&self.cluster, COPIED));
        make(&mut self.cluster, self.tiers)?;
        std::thread::sleep(load.watched.saturating_sub(began.elapsed()));
        let during = self.steady.take();
        let change = Change {
            name,
            before: before.bytes_per_second(),
            during: during.bytes_per_second(),
            seconds: began.elapsed().as_secs_f64(),
            moved: grown(&copied, &counts(&self.cluster, COPIED)),
            longest: during.longest,
        };
        tell(format_args!(
            "drain: {name}: {:.0} MB/s before, {:.0} during, {:.2} of it, longest {:.0?}, {:.0} MiB moved",
            change.before / 1e6,
            change.during / 1e6,
            change.kept(),
            change.longest,
            change.moved / f64::from(1 << 20),
        ));
        ensure!(change.moved > 0.0, "{name}: nothing was moved");
        Ok(change)
    }
}

/// What each worker has counted, those that are away nothing.
fn counts(cluster: &Cluster, name: &str) -> Vec<f64> {
    let scrapes = cluster.metrics().into_iter().map(|url| Scrape::fetch(&url));
    let counts = scrapes.map(|scrape| scrape.map_or(0.0, |scrape| scrape.sum(name, "")));
    counts.collect()
}

/// What they have counted since. Those that were started again, or came, begin with nothing.
fn grown(before: &[f64], now: &[f64]) -> f64 {
    let before = before.iter().copied().chain(std::iter::repeat(0.0));
    let each = now.iter().zip(before);
    each.map(|(now, before)| if *now < before { *now } else { now - before })
        .sum()
}

/// Waits until workers have taken blocks over, and take no more.
fn until_moved(cluster: &Cluster) -> anyhow::Result<()> {
    let (began, mut changed) = (Instant::now(), Instant::now());
    let mut last = counts(cluster, COPIED);
    let mut has_moved = false;
    while !has_moved || changed.elapsed() < QUIET {
        ensure!(
            began.elapsed() < SETTLED,
            "nothing is moved, or there is no end of it"
        );
        std::thread::sleep(LOOK);
        let now = counts(cluster, COPIED);
        if grown(&last, &now) > 0.0 {
            (changed, has_moved) = (Instant::now(), true);
        }
        last = now;
    }
    Ok(())
}

fn measure(home: &Path, endpoint: &str, tree: &Tree, load: Load) -> anyhow::Result<Found> {
    let tiers = Tiers::ssd_for(tree.bytes);
    let flags = ["--egress-limit".to_owned(), load.egress.to_string()];
    let cluster = Cluster::start_with(home, WORKERS, tiers, &flags)?;
    let create = [
        "dataset",
        "create",
        DATASET,
        "s3://moving",
        "--endpoint",
        endpoint,
    ];
    let spread = ["--anonymous", "--spread", "cluster"];
    cluster.weir(&[&create[..], &spread[..]].concat())?;
    cluster.weir(&["warm", DATASET, "--wait", "-o", "json"])?;
    let fetched = counts(&cluster, FETCHED);
    let clients = LoopbackClient::connect_following(&cluster, DATASET, load.readers)?;
    let steady = clients.read_steadily(&tree.root, load.thinks);
    let mut under = Under {
        cluster,
        tiers,
        steady: &steady,
        load,
    };
    let mut changes = vec![under.change("a fifth worker comes", |cluster, tiers| {
        cluster.add_worker(tiers)?;
        until_moved(cluster)
    })?];
    let rate = (load.egress / DRAIN_PART).to_string();
    changes.push(under.change("a worker is drained", |cluster, _| {
        let drain = ["worker", "drain", "node-1", "--rate", &rate];
        cluster.weir(&[&drain[..], &["--wait", "-o", "json"]].concat())?;
        Ok(())
    })?);
    changes.push(under.change("it comes back empty", |cluster, tiers| {
        cluster.restart_empty(1, tiers)?;
        wait_for("the worker", SETTLED, || {
            // Not before it is in the map.
            Ok(cluster.weir(&["worker", "uncordon", "node-1"]).ok())
        })?;
        until_moved(cluster)
    })?);
    let from_origin = grown(&fetched, &counts(&under.cluster, FETCHED));
    let wrong = steady.wrong();
    if let Some(first) = steady.first_wrong() {
        tell(format_args!("drain: {first}"));
    }
    Ok(Found {
        changes,
        wrong,
        from_origin: from_origin + clients.from_origin(),
    })
}
