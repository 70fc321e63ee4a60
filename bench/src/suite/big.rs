//! Shards: big files that are read from one end to the other.

use super::epochs::{Plan, THREADS, measure};
use super::far::{self, Far};
use super::{Bench, Measured};
use crate::table::Unit;

/// Files, and those that other programs read.
pub(crate) const FILES: u64 = 8;
const PEER_FILES: u64 = 2;

/// Bytes of each file.
pub(crate) fn size(bench: &Bench) -> u64 {
    bench.scaled(256 << 20) / (1 << 20) * (1 << 20)
}

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let plan = Plan {
        name: "big",
        count: FILES,
        size: size(bench),
        directories: 1,
        threads: &[1, THREADS],
        pairs: 3,
        unit: Unit::MegabytesPerSecond,
        warm: 0.8,
        dropped: 0.95,
        fill: Some((0.8, 0.8)),
        aligned: false,
        peer_files: PEER_FILES,
    };
    let (mut measured, tree) = measure(bench, &plan)?;
    let far = Far {
        name: "big",
        tree: &tree,
        files: &tree.files,
        threads: plan.threads,
    };
    far::measure(bench, &far, &mut measured.table)?;
    measured.title = format!("{FILES} files of {} MiB, sequentially", plan.size >> 20);
    Ok(measured)
}
