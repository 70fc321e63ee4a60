//! Files of one page: all of it is overhead.

use super::epochs::{Plan, THREADS, measure};
use super::{Bench, Measured};
use crate::table::Unit;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let plan = Plan {
        name: "tiny",
        count: bench.scaled(100_000),
        size: 4 << 10,
        directories: 100,
        threads: &[THREADS],
        pairs: 3,
        unit: Unit::FilesPerSecond,
        warm: 0.9,
        dropped: 0.9,
        fill: None,
        aligned: false,
        peer_files: 1000,
    };
    let (mut measured, _) = measure(bench, &plan)?;
    measured.title = format!(
        "{} files of 4 KiB in {} directories, shuffled",
        plan.count, plan.directories
    );
    Ok(measured)
}
