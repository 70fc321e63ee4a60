//! Blocks from workers in other processes: over TCP beside sendfile, and on the same machine beside a worker in the
//! mount's own process.

use std::path::PathBuf;

use weir_demo::ending::tell;

use super::big::{FILES, size};
use super::epochs::{THREADS, readers};
use super::{Bench, Measured};
use crate::data::Tree;
use crate::kernel::drop_caches;
use crate::loopback::LoopbackClient;
use crate::readers::{Pass, compare_files, read_files};
use crate::sendfile::{Source, transfer};
use crate::server::{Bucket, Server};
use crate::system::{Cluster, DATASET, EMBEDDED, Kind, Protection, Tiers};
use crate::table::{Goal, Table, Unit};
use crate::usage::{Meter, Usage};

const SENDFILE: &str = "sendfile";
const WRITE: &str = "plain write";
const REMOTE: &str = "Weir, remote worker";
/// The same, in clusters with certificates. TLS has no target: it is for those who prefer it to speed.
const AUTHENTICATED: &str = "Weir, authenticated";
const TLS: &str = "remote worker over TLS";
const LOCAL: &str = "Weir, worker on the same node";
const STREAMS: [usize; 2] = [1, 8];
/// Passes of each number of streams in a run.
const PASSES: u64 = 3;
const SPEED: f64 = 0.8;
const CPU: f64 = 1.2;
const LOCAL_SPEED: f64 = 0.95;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let tree = bench.data("big", FILES, size(bench), 1)?;
    let server = bench.serve(&[Bucket {
        name: "big",
        tree: &tree,
    }])?;
    let mut table = Table::default();
    remote(bench, &tree, &server, &mut table)?;
    for number in 0..bench.runs {
        tell(format_args!(
            "stream, run {}: a worker on the same node",
            number + 1
        ));
        local(bench, &tree, &server, number, &mut table)?;
    }
    Ok(Measured {
        title: "Workers in other processes".to_owned(),
        source: format!("data from {}", server.name()),
        runs: bench.runs,
        notes: vec![
            "Streams: Weir's client without a mount reads all files from a worker's memory over loopback TCP, 1 MiB at once as a mount does; sendfile sends the same files from the page cache, plain write as many bytes from memory. CPU time is that of both ends. Every byte was compared in an extra pass, which also checked that it came over TCP. Authenticated and TLS: the same in clusters with certificates, whose connections are opened by a challenge, or encrypted.".to_owned(),
        ],
        table,
    })
}

/// A client and the cluster that it reads from.
struct Remote {
    name: &'static str,
    client: LoopbackClient,
    /// Of both ends.
    pids: Vec<u32>,
    _cluster: Cluster,
}

/// The block stream beside sendfile.
fn remote(bench: &Bench, tree: &Tree, server: &Server, table: &mut Table) -> anyhow::Result<()> {
    let tiers = Tiers {
        memory: tree.bytes + (256 << 20),
        ..Tiers::ssd_for(tree.bytes)
    };
    let start = |name, protection: Protection| -> anyhow::Result<Remote> {
        let scratch = bench.scratch().join(format!("remote-{protection:?}"));
        let cluster = Cluster::start_protected(&scratch, 1, tiers, protection)?;
        cluster.create_dataset(DATASET, server.endpoint(), "big")?;
        cluster.warm()?;
        let client = LoopbackClient::connect(&cluster, DATASET)?;
        client.compare(&tree.root)?;
        let pids = [&cluster.pids()[..], &[std::process::id()]].concat();
        Ok(Remote {
            name,
            client,
            pids,
            _cluster: cluster,
        })
    };
    let remotes = [
        start(REMOTE, Protection::SameUser)?,
        start(AUTHENTICATED, Protection::Authenticated)?,
        start(TLS, Protection::Tls)?,
    ];
    let files: Vec<PathBuf> = tree.files.iter().map(|file| tree.root.join(file)).collect();
    let memory = std::fs::read(&files[0])?;
    transfer(Source::Files(&files), 1)?; // brings them into the page cache
    let own = [std::process::id()];
    for number in 0..bench.runs * PASSES {
        for streams in STREAMS {
            tell(format_args!(
                "stream, pass {}: {streams} streams",
                number + 1
            ));
            let beside = metered(&own, || transfer(Source::Files(&files), streams))?;
            let memory = Source::Memory(&memory, files.len());
            let write = metered(&own, || transfer(memory, streams))?;
            // Each of them is next to sendfile in its turn.
            let mut passes = vec![None; remotes.len()];
            for turn in 0..remotes.len() {
                let at = (turn + number as usize) % remotes.len();
                let Remote { client, pids, .. } = &remotes[at];
                passes[at] = Some(metered(pids, || client.read(streams))?);
            }
            let passes: Vec<_> = remotes.iter().zip(passes.into_iter().flatten()).collect();
            let name = format!("{streams} stream{}", if streams == 1 { "" } else { "s" });
            let speed = Goal::new(&name, Unit::MegabytesPerSecond).as_fast(SENDFILE, SPEED);
            let row = table.row(&speed);
            row.note(SENDFILE, beside.0.megabytes_per_second(), None);
            let rate = |pass: Pass| pass.megabytes_per_second();
            row.note(WRITE, rate(write.0), Some(rate(beside.0)));
            for (remote, pass) in &passes {
                row.note(remote.name, rate(pass.0), Some(rate(beside.0)))
                    .cost(pass.1, pass.0.bytes);
            }
            let cpu = Goal::new(format!("{name}, CPU time"), Unit::CpuSecondsPerGib);
            let row = table.row(&cpu.as_cheap(SENDFILE, CPU));
            let per_gib = |(pass, usage): (Pass, Usage)| {
                usage.cpu_seconds / (pass.bytes as f64 / f64::from(1 << 30))
            };
            row.note(SENDFILE, per_gib(beside), None);
            // A pass that is shorter than the kernel's clock says nothing about a ratio.
            let other = Some(per_gib(beside)).filter(|cpu| *cpu > 0.0);
            row.note(WRITE, per_gib(write), other);
            for (remote, pass) in passes {
                row.note(remote.name, per_gib(pass), other);
            }
        }
    }
    Ok(())
}

fn metered(
    pids: &[u32],
    read: impl FnOnce() -> anyhow::Result<Pass>,
) -> anyhow::Result<(Pass, Usage)> {
    let meter = Meter::start(pids);
    let pass = read()?;
    Ok((pass, meter.stop()))
}

/// Mounts with a worker in their own process and on their node, read in turns without the kernel's caches.
fn local(
    bench: &Bench,
    tree: &Tree,
    server: &Server,
    number: u64,
    table: &mut Table,
) -> anyhow::Result<()> {
    let tiers = Tiers::ssd_for(tree.bytes);
    let scratch = bench.scratch();
    let endpoint = server.endpoint();
    let embedded = Kind::Embedded.start(&scratch.join("system"), endpoint, "big", tiers)?;
    embedded.weir(&["warm", DATASET, "--wait", "-o", "json"])?;
    let home = scratch.join("local");
    let _ = std::fs::remove_dir_all(&home);
    let cluster = Cluster::start(&home, 1, tiers)?;
    cluster.create_dataset(DATASET, endpoint, "big")?;
    cluster.warm()?;
    let mount = cluster.mount(DATASET, &home.join("mnt"), "node-0")?;
    let mut pids = cluster.pids();
    let status = mount.status()?;
    pids.extend([status.server_pid, status.supervisor_pid]);
    let own = embedded.pids()?;
    for threads in [1, THREADS] {
        let name = format!(
            "sequential, kernel cache dropped, blocks on SSD, {}",
            readers(threads)
        );
        let goal = Goal::new(name, Unit::MegabytesPerSecond).as_fast(EMBEDDED, LOCAL_SPEED);
        for order in [0, 1] {
            drop_caches()?;
            let mut passes = [None, None];
            for side in [order, 1 - order] {
                let (dir, pids) = [(&embedded.dir, &own), (&mount.dir, &pids)][side];
                let seed = 10 * number + order as u64;
                let read = || read_files(dir, &tree.files, seed, threads);
                passes[side] = Some(metered(pids, read)?);
            }
            let [Some(beside), Some(pass)] = passes else {
                continue;
            };
            let row = table.row(&goal);
            row.note(EMBEDDED, beside.0.megabytes_per_second(), None)
                .cost(beside.1, beside.0.bytes);
            let value = pass.0.megabytes_per_second();
            row.note(LOCAL, value, Some(beside.0.megabytes_per_second()))
                .cost(pass.1, pass.0.bytes);
        }
    }
    if number == 0 {
        compare_files(&mount.dir, &tree.root, &tree.files, 1, THREADS)?;
    }
    mount.end()?;
    embedded.end()
}
