//! Small files in shuffled order: what most training data is.

use super::epochs::{Plan, RAW, THREADS, measure, readers};
use super::{Bench, Measured};
use crate::data::Tree;
use crate::readers::{compare_files, get_objects, read_files};
use crate::server::Builtin;
use crate::system::{EMBEDDED, Kind, Tiers};
use crate::table::{Goal, Unit};
use crate::usage::Meter;

/// Milliseconds to the first byte of a service in the same region, and the files that are read from there.
const LATENCY: u64 = 10;
const FAR_FILES: usize = 4000;

/// Files; in a quick run as many as leave a cache of half of them its least size.
pub(super) fn files(bench: &Bench) -> u64 {
    bench.scaled(20_000).max(2000)
}

/// Bytes of each file.
pub(super) const SIZE: u64 = 100 << 10;
/// Their directories.
pub(super) const DIRECTORIES: usize = 100;

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
    for number in 0..bench.runs {
        far(bench, &tree, number, &mut measured)?;
    }
    measured.title = format!(
        "{} files of 100 KiB in {} directories, shuffled",
        plan.count, plan.directories
    );
    Ok(measured)
}

/// The first epoch from a service that answers late.
fn far(bench: &Bench, tree: &Tree, number: u64, measured: &mut Measured) -> anyhow::Result<()> {
    let server = Builtin::start([("small", tree.root.as_path())], LATENCY)?;
    let files = &tree.files[..FAR_FILES.min(tree.files.len())];
    let seed = 1000 * number + 500;
    let raw = get_objects(&server.endpoint, "small", files, seed, THREADS)?;
    let tiers = Tiers::ssd_for(tree.bytes);
    let scratch = bench.scratch().join("far");
    let system = Kind::Embedded.start(&scratch, &server.endpoint, "small", tiers)?;
    let pids = system.pids()?;
    let meter = Meter::start(&pids);
    let own = read_files(&system.dir, files, seed + 1, THREADS)?;
    let usage = meter.stop();
    if number == 0 {
        compare_files(&system.dir, &tree.root, files, seed + 2, THREADS)?;
    }
    system.end()?;
    let name = format!(
        "first epoch of {} files, answers {LATENCY} ms late (weir-s3-server), {}",
        files.len(),
        readers(THREADS)
    );
    let goal = Goal::new(name, Unit::MegabytesPerSecond).beside(RAW);
    let row = measured.table.row(&goal);
    row.note(RAW, raw.megabytes_per_second(), None);
    let beside = Some(raw.megabytes_per_second());
    row.note(EMBEDDED, own.megabytes_per_second(), beside)
        .cost(usage, own.bytes);
    Ok(())
}
