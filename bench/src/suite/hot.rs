//! One file that many read at once: copies spread from worker to worker, beside one owner that serves all.
//!
//! What each worker sends is limited, so that the machine's cores do not decide.

use std::time::{Duration, Instant};

use anyhow::ensure;
use weir_demo::ending::tell;

use super::{Bench, Measured};
use crate::loopback::LoopbackClient;
use crate::metrics::Scrape;
use crate::server::Bucket;
use crate::stats::median;
use crate::system::{Cluster, Tiers};
use crate::table::{Table, Unit};

/// Names of the two systems in the table.
const SPREAD: &str = "Weir, copies spread";
const ONE: &str = "one owner serves all";
const WORKERS: usize = 6;
const READERS: usize = 200;
const FILE: u64 = 1 << 30;
/// Bytes that each worker may send in a second.
const EGRESS: u64 = 192 << 20;
/// Time, as a part of what cannot be less: what is sent at the egress of all, and one copy after the other.
const MOST: f64 = 1.3;
/// Time, as a part of that of one owner.
const MOST_OF_ONE: f64 = 0.25;
/// Bytes from the origin, of those of the file.
const MOST_FROM_THE_ORIGIN: f64 = 1.0;
/// Longest wait until copies that nobody reads are gone.
const GONE: Duration = Duration::from_mins(5);
const LOOK: Duration = Duration::from_secs(1);
const DATASET: &str = "model";

/// How much is read.
#[derive(Clone, Copy)]
struct Size {
    file: u64,
    readers: usize,
    egress: u64,
}

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let size = Size {
        file: bench.scaled(FILE),
        readers: if bench.quick { READERS / 5 } else { READERS },
        egress: bench.scaled(EGRESS),
    };
    let Size {
        file,
        readers,
        egress,
    } = size;
    let tree = bench.data("model", 1, file, 1)?;
    let server = bench.serve(&[Bucket {
        name: "model",
        tree: &tree,
    }])?;
    let mut table = Table::default();
    let mut spread = Vec::new();
    for number in 0..bench.runs {
        tell(format_args!("hot, run {}: copies spread", number + 1));
        let found = read(bench, server.endpoint(), size, true)?;
        found.note(&mut table, size);
        spread.push(found.seconds);
    }
    // It takes six times as long.
    tell(format_args!("hot: one owner serves all"));
    let one = read(bench, server.endpoint(), size, false)?.seconds;
    table.state(ONE, "until all have it", Unit::Seconds, one, None);
    let ratio = median(&spread) / one;
    table.state(
        SPREAD,
        "the time, of that of one owner",
        Unit::Ratio,
        ratio,
        Some(MOST_OF_ONE),
    );
    Ok(Measured {
        title: format!("{readers} readers of one file of {} MiB on {WORKERS} workers", file >> 20),
        source: format!("data from {}", server.name()),
        runs: bench.runs,
        notes: vec![
            format!("The dataset has one copy on one node. Each worker sends at most {} MiB in a second. The readers are {readers} clients with connections and choices of their own in one process, without mounts; all begin at the same time with nothing cached, and read 1 MiB at once, one after the other. The row of one owner is of one run, of workers that make no copies.", egress >> 20),
            "The least possible is what was sent, of readers and copies, at the egress of all workers together, and log2(6) copies of the file one after the other.".to_owned(),
        ],
        table,
    })
}

/// What was seen.
struct Found {
    seconds: f64,
    /// Bytes that readers got, and that workers gave each other.
    read: u64,
    copied: f64,
    from_origin: f64,
    /// How much the worker that sent the most has sent, of all.
    most_of_one: f64,
    /// Time until copies that nobody reads were gone.
    gone: f64,
}

impl Found {
    /// The least time that it can take, in seconds.
    fn least(&self, size: Size) -> f64 {
        let (egress, file) = (size.egress as f64, size.file as f64);
        let sent = (self.read as f64 + self.copied) / (WORKERS as f64 * egress);
        sent + (WORKERS as f64).log2() * file / egress
    }

    fn note(&self, table: &mut Table, size: Size) {
        let mut note = |what: &str, unit, value, most| {
            table.state(SPREAD, what, unit, value, most);
        };
        note("until all have it", Unit::Seconds, self.seconds, None);
        let (file, least) = (size.file as f64, self.least(size));
        note(
            "the time, of the least possible",
            Unit::Ratio,
            self.seconds / least,
            Some(MOST),
        );
        note(
            "bytes from the origin, of those of the file",
            Unit::Ratio,
            self.from_origin / file,
            Some(MOST_FROM_THE_ORIGIN),
        );
        note(
            "bytes between workers, of those of the file",
            Unit::Ratio,
            self.copied / file,
            None,
        );
        note(
            "sent by the worker that sent the most, of all",
            Unit::Ratio,
            self.most_of_one,
            None,
        );
        note(
            "until copies that nobody reads are gone",
            Unit::Seconds,
            self.gone,
            None,
        );
    }
}

fn read(bench: &Bench, endpoint: &str, size: Size, spread: bool) -> anyhow::Result<Found> {
    let scratch = bench.scratch().join(if spread { "spread" } else { "one" });
    let _ = std::fs::remove_dir_all(&scratch);
    let tiers = Tiers {
        memory: size.file * 3 / 2 + (64 << 20),
        ssd: 9 * size.file + (1 << 30),
    };
    let mut flags = vec!["--egress-limit".to_owned(), size.egress.to_string()];
    if !spread {
        flags.extend(["--copies", "0"].map(str::to_owned));
    }
    let cluster = Cluster::start_with(&scratch, WORKERS, tiers, &flags)?;
    cluster.weir(&[
        "dataset",
        "create",
        DATASET,
        "s3://model",
        "--endpoint",
        endpoint,
        "--anonymous",
        "--spread",
        "node",
    ])?;
    let clients = LoopbackClient::connect_many(&cluster, DATASET, size.readers)?;
    let pass = clients.read_with_all()?;
    let sum = |name: &str| -> anyhow::Result<Vec<f64>> {
        let urls = cluster.metrics().into_iter();
        urls.map(|url| Ok(Scrape::fetch(&url)?.sum(name, "")))
            .collect()
    };
    let given = sum("weir_worker_read_bytes_total")?;
    let all: f64 = given.iter().sum();
    ensure!(
        pass.bytes == size.file * size.readers as u64,
        "not all was read"
    );
    let mut found = Found {
        seconds: pass.seconds,
        read: pass.bytes,
        copied: sum("weir_worker_handed_over_bytes_total")?.iter().sum(),
        from_origin: sum("weir_origin_read_bytes_total")?.iter().sum(),
        most_of_one: given.iter().copied().fold(0.0, f64::max) / all.max(1.0),
        gone: 0.0,
    };
    tell(format_args!(
        "hot: {:.1} s, {:.2} of the least possible; the busiest sent {:.2} of all",
        found.seconds,
        found.seconds / found.least(size),
        found.most_of_one
    ));
    let ended = Instant::now();
    while spread
        && sum("weir_worker_kept_copies_bytes")?
            .iter()
            .any(|kept| *kept > 0.0)
    {
        ensure!(
            ended.elapsed() < GONE,
            "copies stay though nobody reads them"
        );
        std::thread::sleep(LOOK);
    }
    found.gone = ended.elapsed().as_secs_f64();
    Ok(found)
}
