//! A mount with all defaults in a control group that allows it little memory.

use std::path::Path;

use anyhow::Context;
use weir_demo::ending::tell;
use weir_demo::mount::program_of;
use weir_tests::MemoryGroup;

use super::Bench;
use crate::data::Tree;
use crate::kernel::drop_caches;
use crate::process::binary;
use crate::readers::read_from;
use crate::server::Server;
use crate::system::{DATASET, Mount};
use crate::table::{Goal, Table, Unit};
use crate::usage::Meter;

/// What a container may give, in MiB.
const LIMITS: [u64; 2] = [256, 512];
const MIB: f64 = 1_048_576.0;

/// Reads the file of `tree` with two readers at each limit, first from the origin and then from SSD. Gives what is to be
/// said where no group can be made.
pub(super) fn measure(
    bench: &Bench,
    server: &Server,
    tree: &Tree,
    system: &str,
    table: &mut Table,
) -> anyhow::Result<Option<String>> {
    for limit in LIMITS {
        let group = match MemoryGroup::new(limit << 20) {
            Ok(group) => group,
            Err(reason) => {
                let reason = format!(
                    "Limits of memory are left out, since no control group can be made: {reason}."
                );
                return Ok(Some(reason));
            }
        };
        tell(format_args!("memory: {limit} MiB for all"));
        let home = bench.scratch().join("limited");
        let _ = std::fs::remove_dir_all(&home); // a cache of another limit would not be empty
        std::fs::create_dir_all(&home)?;
        group.wrap(&binary("weir")?, &program_of(&home));
        let mount = mount(server, tree, &home)?;
        let status = mount.status()?;
        let pids = [status.server_pid, status.supervisor_pid];
        let path = mount.dir.join(tree.files.first().context("no file")?);
        let mut peak = 0;
        for state in ["first read", "kernel cache dropped, blocks on SSD"] {
            drop_caches()?;
            let (started, meter) = (std::time::Instant::now(), Meter::start(&pids));
            std::thread::scope(|scope| {
                let readers = [0, tree.bytes / 2].map(|start| {
                    let path = &path;
                    scope.spawn(move || read_from(path, start, tree.bytes))
                });
                readers.into_iter().try_for_each(|reader| {
                    let read = reader.join();
                    read.map_err(|_| anyhow::anyhow!("a reader panicked"))?
                })
            })?;
            let (seconds, bytes) = (started.elapsed().as_secs_f64(), 2 * tree.bytes);
            let name = format!("all defaults in {limit} MiB, {state}, both readers together");
            let goal = Goal::new(name, Unit::MegabytesPerSecond);
            let cell = table
                .row(&goal)
                .note(system, bytes as f64 / seconds / 1e6, None);
            let usage = meter.stop();
            peak = peak.max(usage.peak_bytes);
            cell.cost(usage, bytes);
        }
        let goal = Goal::new(
            format!("all defaults in {limit} MiB, peak memory"),
            Unit::Mebibytes,
        );
        let goal = goal.at_most(limit as f64);
        table.row(&goal).note(system, peak as f64 / MIB, None);
        let goal = Goal::new(
            format!("all defaults in {limit} MiB, processes killed for it"),
            Unit::Count,
        );
        table
            .row(&goal.at_most(0.0))
            .note(system, group.kills() as f64, None);
        mount.end()?;
    }
    Ok(None)
}

fn mount(server: &Server, tree: &Tree, home: &Path) -> anyhow::Result<Mount> {
    let ssd = format!(
        "{}:{}",
        home.join("ssd").display(),
        2 * tree.bytes + (1 << 30)
    );
    let args = [
        "--endpoint",
        server.endpoint(),
        "--anonymous",
        "--dataset",
        DATASET,
        "--ssd",
        &ssd,
    ];
    Mount::new("s3://huge", &home.join("mnt"), home, &args)
}
