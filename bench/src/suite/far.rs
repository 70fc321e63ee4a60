//! Fills from a service that answers late, as one in another building does.

use std::path::PathBuf;

use weir_demo::ending::tell;

use super::Bench;
use super::epochs::{RAW, THREADS, WARM, note_fill, readers};
use crate::data::Tree;
use crate::fill::{Fill, Objects, first_epoch, warm_job};
use crate::readers::compare_files;
use crate::server::Builtin;
use crate::system::{Kind, System, Tiers};
use crate::table::{Goal, Table, Unit};

/// Milliseconds to the first byte: those of a service in the same region.
const LATENCY: u64 = 10;

/// What is read from there.
pub(super) struct Far<'a> {
    /// Name of the bucket.
    pub(super) name: &'static str,
    pub(super) tree: &'a Tree,
    /// The files of a first epoch, and the numbers of readers. `weir warm` gets all of the tree's.
    pub(super) files: &'a [PathBuf],
    pub(super) threads: &'a [usize],
}

/// Measures first epochs and `weir warm` of Weir's systems, `bench.runs` times.
pub(super) fn measure(bench: &Bench, far: &Far<'_>, table: &mut Table) -> anyhow::Result<()> {
    let server = Builtin::start([(far.name, far.tree.root.as_path())], LATENCY)?;
    for kind in [Kind::Embedded, Kind::Cluster] {
        tell(format_args!(
            "{}, answers {LATENCY} ms late: {}",
            far.name,
            kind.name()
        ));
        let scratch = bench.scratch().join("far");
        let tiers = Tiers::ssd_for(far.tree.bytes);
        let system = kind.start(&scratch, &server.endpoint, far.name, tiers)?;
        let first = Objects {
            endpoint: &server.endpoint,
            bucket: far.name,
            files: far.files,
        };
        for number in 0..bench.runs {
            let seed = 1000 * number + 500;
            for &threads in far.threads {
                system.evict()?;
                let fill = first_epoch(first, &system, threads, seed)?;
                let files = first.files.len();
                let what = format!("first epoch of {files} files, {}", readers(threads));
                note(table, &what, &system, fill);
            }
            system.evict()?;
            let files = &far.tree.files;
            let fill = warm_job(Objects { files, ..first }, &system, seed + 1)?;
            note(table, WARM, &system, fill);
        }
        compare_files(&system.dir, &far.tree.root, far.files, 8, THREADS)?;
        system.end()?;
    }
    Ok(())
}

fn note(table: &mut Table, what: &str, system: &System, fill: Fill) {
    let name = format!("{what}, answers {LATENCY} ms late (weir-s3-server)");
    let goal = Goal::new(name, Unit::MegabytesPerSecond).beside(RAW);
    let rates = [fill.raw, fill.own].map(|pass| pass.megabytes_per_second());
    note_fill(table, &goal, system, fill, rates);
}
