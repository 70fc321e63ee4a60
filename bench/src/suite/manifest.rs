//! Manifests of many files: what master and clients need for them, and how soon another mount is there.

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use weir_demo::ending::tell;

use super::{Bench, Measured};
use crate::server::Builtin;
use crate::system::{Cluster, Mount, Tiers};
use crate::table::{Goal, Table, Unit};
use crate::usage::{Meter, Usage, memory};

/// Name of the only system in the table.
const SYSTEM: &str = "Weir, master and worker";
/// Files of a listing that costs next to nothing: what a client takes without a manifest.
const FEW: u64 = 1000;
const BYTES_PER_FILE: f64 = 120.0;
const FIRST_LS: f64 = 2.0;
/// Most memory of a master while it lists, however much that is.
const MASTER_PEAK: f64 = 600.0;
const MIB: f64 = 1_048_576.0;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let mut table = Table::default();
    let tiers = Tiers::ssd_for(0);
    let scratch = bench.scratch();
    let empty = {
        let cluster = Cluster::start(&scratch.join("few"), 1, tiers)?;
        measure(&cluster, &scratch, FEW)?.client
    };
    for (files, promised) in [(1_000_000, true), (10_000_000, false)] {
        let files = bench.scaled(files);
        tell(format_args!("manifest: {files} files"));
        let cluster = Cluster::start(&scratch.join("many"), 1, tiers)?;
        let taken = measure(&cluster, &scratch, files)?;
        drop(cluster);
        let per_file = taken.client.saturating_sub(empty) as f64 / files as f64;
        note(&mut table, files, promised, taken, per_file);
        let _ = std::fs::remove_dir_all(scratch.join("many"));
    }
    Ok(Measured {
        title: "Manifests of many files".to_owned(),
        source: "listings from weir-s3-server".to_owned(),
        runs: 1,
        notes: vec![format!(
            "Names and ETags are as hard to compress as random ones. Bytes per file are the resident memory of a mount's server over that of one with {FEW} files ({:.0} MiB).",
            empty as f64 / MIB
        )],
        table,
    })
}

/// What one listing took.
struct Taken {
    create_seconds: f64,
    /// The master's while it listed.
    create: Usage,
    refresh_seconds: f64,
    /// The master's while it listed the same again, and while two clients fetched the manifest.
    refresh: Usage,
    fetch: Usage,
    /// Resident bytes of the master afterwards, and of a client's server.
    master: u64,
    client: u64,
    /// From the start of `weir mount` to the end of the first `ls`, on a second mount.
    first_ls: f64,
}

fn measure(cluster: &Cluster, scratch: &Path, files: u64) -> anyhow::Result<Taken> {
    let server = Builtin::generated("listed", files)?;
    let master = [cluster.master_pid()];
    let meter = Meter::start(&master);
    let started = Instant::now();
    cluster.create_dataset("listed", &server.endpoint, "listed")?;
    let create_seconds = started.elapsed().as_secs_f64();
    let create = meter.stop();
    let meter = Meter::start(&master);
    let started = Instant::now();
    cluster.weir(&["dataset", "refresh", "listed"])?;
    let refresh_seconds = started.elapsed().as_secs_f64();
    let refresh = meter.stop();
    let meter = Meter::start(&master);
    let first = cluster.mount("listed", &scratch.join("first"), "elsewhere")?;
    list(&first, files)?;
    let started = Instant::now();
    let second = cluster.mount("listed", &scratch.join("second"), "elsewhere")?;
    list(&second, files)?;
    let first_ls = started.elapsed().as_secs_f64();
    let taken = Taken {
        create_seconds,
        create,
        refresh_seconds,
        refresh,
        fetch: meter.stop(),
        master: memory(master[0]).1,
        client: memory(second.status()?.server_pid).1,
        first_ls,
    };
    second.end()?;
    first.end()?;
    Ok(taken)
}

/// `ls` of the mountpoint.
fn list(mount: &Mount, files: u64) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(&mount.dir)?.count() as u64;
    ensure!(
        entries == files.div_ceil(1000),
        "{entries} directories of {files} files"
    );
    Ok(())
}

fn note(table: &mut Table, files: u64, promised: bool, taken: Taken, per_file: f64) {
    let goal = |what: &str, unit| Goal::new(format!("{files} files: {what}"), unit);
    let (mut bytes, mut ls) = (
        goal("memory of a client", Unit::BytesPerFile),
        goal(
            "`weir mount` to the end of the first `ls`, second mount",
            Unit::Seconds,
        ),
    );
    if promised {
        bytes = bytes.at_most(BYTES_PER_FILE);
        ls = ls.at_most(FIRST_LS);
    }
    for (what, seconds, usage) in [
        (
            "`weir dataset create`",
            Some(taken.create_seconds),
            taken.create,
        ),
        (
            "`weir dataset refresh`",
            Some(taken.refresh_seconds),
            taken.refresh,
        ),
        ("two mounts fetch the manifest", None, taken.fetch),
    ] {
        if let Some(seconds) = seconds {
            let time = goal(what, Unit::Seconds);
            let cell = table.row(&time).note(SYSTEM, seconds, None);
            cell.cost(usage, 0);
        }
        let peak = goal(
            &format!("{what}, peak memory of the master"),
            Unit::Mebibytes,
        );
        let peak = peak.at_most(MASTER_PEAK);
        let mebibytes = usage.peak_bytes as f64 / MIB;
        table.row(&peak).note(SYSTEM, mebibytes, None);
    }
    let mut state = |goal: Goal, value: f64| {
        table.row(&goal).note(SYSTEM, value, None);
    };
    let master = goal("memory of the master afterwards", Unit::Mebibytes);
    state(master, taken.master as f64 / MIB);
    let client = goal("memory of a client's server", Unit::Mebibytes);
    state(client, taken.client as f64 / MIB);
    state(bytes, per_file);
    state(ls, taken.first_ls);
}
