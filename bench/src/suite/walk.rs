//! Walking a tree of a million files.

use anyhow::ensure;
use weir_demo::ending::tell;

use super::epochs::NATIVE;
use super::{Bench, Measured};
use crate::kernel::drop_caches;
use crate::server::Builtin;
use crate::system::{EMBEDDED, Kind, Tiers};
use crate::table::{Goal, Table, Unit};
use crate::usage::Meter;
use crate::walk::{mirror, walk};

const FILES: u64 = 1_000_000;
const FIRST: f64 = 1.0;
const AGAIN: f64 = 0.8;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let files = bench.scaled(FILES);
    let server = Builtin::generated("listed", files)?;
    let scratch = bench.scratch().join("system");
    let tiers = Tiers::ssd_for(0);
    let system = Kind::Embedded.start(&scratch, &server.endpoint, "listed", tiers)?;
    let native = bench.out.join("data/listed");
    mirror(&system.dir, &native, files)?;
    let pids = system.pids()?;
    let first = Goal::new("walk and stat, kernel cache dropped", Unit::FilesPerSecond);
    let again = Goal::new("walk and stat, again", Unit::FilesPerSecond);
    let goals = [first.as_fast(NATIVE, FIRST), again.as_fast(NATIVE, AGAIN)];
    let mut table = Table::default();
    for number in 0..bench.runs {
        tell(format_args!("walk, run {}", number + 1));
        drop_caches()?;
        for goal in &goals {
            let beside = walk(&native)?;
            let meter = Meter::start(&pids);
            let own = walk(&system.dir)?;
            let usage = meter.stop();
            ensure!(
                (own.files, own.bytes) == (beside.files, beside.bytes) && own.files == files,
                "the trees differ: {own:?}, {beside:?}"
            );
            let row = table.row(goal);
            let beside = beside.files_per_second();
            row.note(NATIVE, beside, None);
            let cell = row.note(EMBEDDED, own.files_per_second(), Some(beside));
            cell.cost(usage, 0);
        }
    }
    system.end()?;
    Ok(Measured {
        title: format!(
            "Walk and stat of {files} files in {} directories",
            files / 1000
        ),
        source: "listing from weir-s3-server, native files without blocks".to_owned(),
        runs: bench.runs,
        notes: vec!["Names and sizes of both trees are the same.".to_owned()],
        table,
    })
}
