//! Memory while a file is read that is larger than any tier in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use weir_demo::ending::tell;

use super::{Bench, Measured, limited};
use crate::data::Tree;
use crate::readers::{compare_files, read_from};
use crate::server::Bucket;
use crate::stats::median;
use crate::system::{Kind, System, Tiers};
use crate::table::{Goal, Table, Unit};
use crate::usage::{Meter, memory};

/// The memory tier, or both workers' together.
const TIER: u64 = 256 << 20;
/// What a process may take beside its tier, and how much more at the end than in the middle still counts as flat.
const BESIDE: f64 = 150.0;
const FLAT: f64 = 32.0;
/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(100);
const MIB: f64 = 1_048_576.0;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let size = bench.scaled(10 << 30);
    let tree = bench.data("huge", 1, size, 1)?;
    let server = bench.serve(&[Bucket {
        name: "huge",
        tree: &tree,
    }])?;
    let tier = bench.scaled(TIER);
    let mut table = Table::default();
    let mut notes = Vec::new();
    for kind in [Kind::Embedded, Kind::Cluster] {
        tell(format_args!("memory: {}", kind.name()));
        let tiers = Tiers {
            memory: tier,
            ssd: Tiers::ssd_for(size).ssd,
        };
        let scratch = bench.scratch().join("system");
        let system = kind.start(&scratch, server.endpoint(), "huge", tiers)?;
        measure(&system, &tree, tier, &mut table)?;
        compare_files(&system.dir, &tree.root, &tree.files, 1, 1)?;
        system.end()?;
    }
    let weir = Kind::Embedded;
    notes.extend(limited::measure(
        bench,
        &server,
        &tree,
        weir.name(),
        &mut table,
    )?);
    Ok(Measured {
        title: format!(
            "One file of {:.1} GiB, two readers",
            size as f64 / f64::from(1 << 30)
        ),
        source: format!("data from {}", server.name()),
        runs: 1,
        notes: [format!(
            "Memory tier: {} MiB, shared by the workers of the cluster. One reader begins at the start, one in the middle; the peak is that of the largest process beside its tier. Every byte was compared in an extra pass.",
            tier >> 20
        )]
        .into_iter()
        .chain(notes)
        .collect(),
        table,
    })
}

fn measure(system: &System, tree: &Tree, tier: u64, table: &mut Table) -> anyhow::Result<()> {
    let pids = system.pids()?;
    let file = tree.files.first().context("no file")?;
    let path = system.dir.join(file);
    let done = AtomicBool::new(false);
    let started = std::time::Instant::now();
    let meter = Meter::start(&pids);
    let (samples, read) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&pids, &done));
        let readers = [0, tree.bytes / 2].map(|start| {
            let path = &path;
            scope.spawn(move || read_from(path, start, tree.bytes))
        });
        let read = readers.map(std::thread::ScopedJoinHandle::join);
        done.store(true, Ordering::Relaxed);
        (watcher.join(), read)
    });
    let seconds = started.elapsed().as_secs_f64();
    let usage = meter.stop();
    for reader in read {
        reader.map_err(|_| anyhow::anyhow!("a reader panicked"))??;
    }
    let samples = samples.map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
    let bytes = 2 * tree.bytes;
    let rate = Goal::new("both readers together", Unit::MegabytesPerSecond);
    let row = table.row(&rate);
    row.note(&system.name, bytes as f64 / seconds / 1e6, None)
        .cost(usage, bytes);
    let peaks = pids.iter().map(|pid| memory(*pid).0);
    // Two workers have half of it each.
    let tier = if system.name == Kind::Cluster.name() {
        tier / 2
    } else {
        tier
    };
    let beside = (peaks.max().unwrap_or(0) as f64 - tier as f64) / MIB;
    let goal = Goal::new("peak memory beside the tier", Unit::Mebibytes).at_most(BESIDE);
    table.row(&goal).note(&system.name, beside, None);
    let goal = Goal::new("last quarter's memory over the second's", Unit::Mebibytes);
    let growth = growth(&samples);
    table
        .row(&goal.at_most(FLAT))
        .note(&system.name, growth, None);
    Ok(())
}

/// Resident memory of the processes together, again and again, in bytes.
fn watch(pids: &[u32], done: &AtomicBool) -> Vec<f64> {
    let mut samples = Vec::new();
    while !done.load(Ordering::Relaxed) {
        samples.push(pids.iter().map(|pid| memory(*pid).1 as f64).sum());
        std::thread::sleep(INTERVAL);
    }
    samples
}

/// How much more it is in the last quarter of the time than in the second, in MiB.
fn growth(samples: &[f64]) -> f64 {
    let quarter = samples.len() / 4;
    let second = median(&samples[quarter..2 * quarter]);
    let last = median(&samples[samples.len() - quarter..]);
    (last - second) / MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_compares_the_last_quarter_with_the_second() {
        let flat = [0.0, 0.0, MIB, MIB, MIB, MIB, MIB, MIB];
        assert!(growth(&flat).abs() < 1e-9);
        let rising: Vec<f64> = (0..8).map(|n| f64::from(n) * MIB).collect();
        assert!((growth(&rising) - 4.0).abs() < 1e-9);
    }
}
