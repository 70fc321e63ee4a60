//! Small files in shuffled order: what most training data is.

use super::epochs::{Plan, THREADS, measure};
use super::far::{self, Far};
use super::{Bench, Measured};
use crate::table::Unit;

/// Files that readers read from a service that answers late.
const FAR_FILES: usize = 4000;

/// Files; in a quick run as many as leave a cache of half of them its least size.
pub(crate) fn files(bench: &Bench) -> u64 {
    bench.scaled(20_000).max(2000)
}

/// Bytes of each file.
pub(crate) const SIZE: u64 = 100 << 10;
/// Their directories.
pub(crate) const DIRECTORIES: usize = 100;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let plan = Plan {
        name: "small",
        count: files(bench),
        size: SIZE,
        directories: DIRECTORIES,
        threads: &[1, THREADS],
        pairs: 5,
        unit: Unit::MegabytesPerSecond,
        warm: 0.95,
        dropped: 0.9,
        fill: Some((0.8, 0.9)),
        aligned: true,
        peer_files: 1000,
    };
    let (mut measured, tree) = measure(bench, &plan)?;
    let far = Far {
        name: "small",
        tree: &tree,
        files: &tree.files[..FAR_FILES.min(tree.files.len())],
        threads: &[THREADS],
    };
    far::measure(bench, &far, &mut measured.table)?;
    measured.title = format!(
        "{} files of 100 KiB in {} directories, shuffled",
        plan.count, plan.directories
    );
    Ok(measured)
}
