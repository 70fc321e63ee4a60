//! One master with many small datasets: its memory, how soon it is there again, and whether it hears its workers.

use anyhow::ensure;
use weir_demo::ending::tell;

use super::many::{Watched, until_looked_up};
use super::{Bench, Measured};
use crate::server::Builtin;
use crate::stats::median;
use crate::system::{Cluster, Tiers};
use crate::table::{Table, Unit};
use crate::usage::memory;

/// Name of the only system in the table.
const SYSTEM: &str = "Weir, master and two workers";
const DATASETS: u64 = 500;
const FILES: u64 = 1000;
const MIB: f64 = 1_048_576.0;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let datasets = bench.scaled(DATASETS);
    let server = Builtin::generated("listed", FILES)?;
    let home = bench.scratch().join("datasets");
    let mut cluster = Cluster::start(&home, super::many::WORKERS, Tiers::ssd_for(0))?;
    let mut table = Table::default();
    let mut note = |what: &str, unit, value, limit| table.state(SYSTEM, what, unit, value, limit);
    let empty = memory(cluster.master_pid()).1;
    note(
        "memory of the master without datasets",
        Unit::Mebibytes,
        empty as f64 / MIB,
        None,
    );

    let creating = Watched::over(&cluster, |started| {
        for number in 0..datasets {
            cluster.create_dataset(&format!("set-{number}"), &server.endpoint, "listed")?;
        }
        let seconds = started.elapsed().as_secs_f64();
        tell(format_args!(
            "datasets: {datasets} created in {seconds:.1} s"
        ));
        Ok(())
    })?;
    creating.note("while they are created", &mut note);
    until_looked_up(&cluster, datasets)?;
    let full = memory(cluster.master_pid()).1;
    note(
        "memory of the master with all of them",
        Unit::Mebibytes,
        full as f64 / MIB,
        None,
    );

    let mut starts = Vec::new();
    for _ in 0..3 {
        starts.push(cluster.restart_master()?.as_secs_f64());
    }
    note(
        "start of the master with all of them, to its first answer",
        Unit::Seconds,
        median(&starts),
        None,
    );
    let list = cluster.weir(&["dataset", "list", "-o", "json"])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let known = list.as_array().map_or(0, Vec::len) as u64;
    ensure!(known == datasets, "{known} datasets of {datasets}: {list}");
    Watched::over(&cluster, |_| Ok(()))?.note("after its start", &mut note);
    note(
        "memory of the master a minute after its start",
        Unit::Mebibytes,
        memory(cluster.master_pid()).1 as f64 / MIB,
        None,
    );
    Ok(Measured {
        title: format!("{datasets} datasets of {FILES} files in one master"),
        source: "listings from weir-s3-server".to_owned(),
        runs: 1,
        notes: vec![
            "Datasets are created one after another by `weir dataset create`. The start is the median of 3, from the start of the process to the end of the first `weir status`.".to_owned(),
        ],
        table,
    })
}
