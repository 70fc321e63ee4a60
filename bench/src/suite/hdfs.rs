//! HDFS beside S3, in one run: what Weir reads is compared with what a raw client reads from either, and the two ratios
//! with one another. Epochs that come from Weir's own tiers are compared with those of a mount of S3.

use std::cell::Cell;
use std::time::Instant;

use anyhow::ensure;
use weir_demo::ending::tell;

use super::epochs::{RAW, THREADS, note_fill, readers};
use super::{Bench, Measured, big, small};
use crate::data::Tree;
use crate::fill::{Fill, RawClient, first_epoch_beside, warm_job_beside};
use crate::hdfs::{Cluster, LISTED, Raw};
use crate::readers::{Pass, compare_files, get_objects};
use crate::server::{Bucket, Builtin, Server};
use crate::system::{self, EMBEDDED, Kind, Place, System, Tiers};
use crate::table::{Goal, Table, Unit};
use crate::turns::{Side, Turns};
use crate::usage::Meter;

/// Names of references and of another program in the table.
const ON_S3: &str = "mount of S3";
const GET: &str = "hdfs dfs -get";
/// What fills a cache, and by how many readers.
const EPOCH: [&str; 2] = ["first epoch", "4 threads"];
const JOB: [&str; 2] = ["`weir warm`", "raw client with 16 threads"];
/// Ratio of an epoch that comes from Weir's tiers to the same of a mount of S3: as fast, but for noise.
const SAME: f64 = 0.95;
/// Passes over the warm cache in each order.
const PAIRS: u64 = 3;
/// Calls of the NameNode, for each that the raw client makes.
const CALLS: f64 = 1.05;
/// With fewer files it counts that each worker opens a file, and opens it again after a while.
const FEW: usize = 1000;
/// A cluster beside the embedded mount has its rows from one run.
const CLUSTER_RUNS: u64 = 1;
/// Files that are listed.
const LISTED_FILES: u64 = 1_000_000;
/// Runs of a listing.
const LISTINGS: u64 = 3;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let small = bench.data(
        "small",
        small::files(bench),
        small::SIZE,
        small::DIRECTORIES,
    )?;
    let big = bench.data("big", big::FILES, big::size(bench), 1)?;
    let trees = [("small", &small), ("big", &big)];
    let trees = trees.map(|(name, tree)| Bucket { name, tree });
    let server = bench.serve(&trees)?;
    let cluster = Cluster::start(&bench.out.join("hdfs"), &trees)?;
    let mut table = Table::default();
    for tree in &trees {
        let raw = cluster.raw(tree.name)?;
        let (paths, _) = raw.list()?;
        let files = tree.tree.files.len();
        ensure!(paths.len() == files, "{} files of {files}", paths.len());
        let mut run = Run {
            bench,
            name: tree.name,
            tree: tree.tree,
            server: &server,
            cluster: &cluster,
            raw,
            paths,
            table: &mut table,
        };
        run.get()?;
        run.systems(&Kind::Embedded, bench.runs)?;
        run.systems(&Kind::Cluster, CLUSTER_RUNS)?;
    }
    drop(cluster);
    let files = bench.scaled(LISTED_FILES);
    listings(bench, files, &mut table)?;
    Ok(Measured {
        title: format!(
            "HDFS beside S3: {} files of 100 KiB, {} files of {} MiB, and a listing of {files} files",
            small.files.len(),
            big.files.len(),
            big::size(bench) >> 20
        ),
        source: format!(
            "data from {} and from a NameNode and a DataNode of Hadoop 3.4",
            server.name()
        ),
        runs: bench.runs,
        notes: vec![
            format!("The raw client of HDFS is hdfs-native, which Weir reads with, too, with as many readers. `{GET}` runs once, with as many threads, into a directory of the disk; its time has that of starting a JVM in it."),
            "A ratio of ratios is Weir's to the raw client of HDFS, by Weir's to the raw client of S3 in the same run.".to_owned(),
            format!("Rows of the cluster with two workers are of {CLUSTER_RUNS} run. Listings are of {LISTINGS} runs; the NameNode has {} files in each directory.", 1000.min(files)),
            "Every byte was compared with its source in an extra pass.".to_owned(),
        ],
        table,
    })
}

/// The measurements of one tree.
struct Run<'a> {
    bench: &'a Bench,
    /// Of the bucket, and of the directory.
    name: &'a str,
    tree: &'a Tree,
    server: &'a Server,
    cluster: &'a Cluster,
    raw: Raw,
    /// The tree's files in HDFS.
    paths: Vec<String>,
    table: &'a mut Table,
}

/// Fills of a mount of S3 and of one of HDFS, and the NameNode's calls for the raw client and for the mount.
struct Filled {
    s3: Fill,
    hdfs: Fill,
    calls: [u64; 2],
}

impl Run<'_> {
    /// What Hadoop's own client takes.
    fn get(&mut self) -> anyhow::Result<()> {
        tell(format_args!("hdfs, {}: {GET}", self.name));
        let into = self.bench.scratch().join("get");
        std::fs::create_dir_all(&into)?;
        let beside = self.read_hdfs(THREADS, 1)?.megabytes_per_second();
        let (threads, url) = (THREADS.to_string(), self.cluster.url(self.name));
        let target = into.display().to_string();
        let started = Instant::now();
        self.cluster
            .shell(&["-get", "-t", &threads, &url, &target])?;
        let seconds = started.elapsed().as_secs_f64();
        let bytes = Tree::scan(&into)?.bytes;
        ensure!(bytes == self.tree.bytes, "{GET} got {bytes} bytes");
        std::fs::remove_dir_all(&into)?;
        let goal = self.goal(EPOCH, "HDFS");
        let rate = bytes as f64 / seconds / 1e6;
        self.table.row(&goal).note(GET, rate, Some(beside));
        Ok(())
    }

    /// All runs of a mount of S3 and of one of HDFS by the same program, side by side.
    fn systems(&mut self, kind: &Kind, runs: u64) -> anyhow::Result<()> {
        let scratch = self.bench.scratch();
        let tiers = Tiers::ssd_for(self.tree.bytes);
        let bucket = Place::Bucket {
            endpoint: self.server.endpoint(),
            bucket: self.name,
        };
        let url = self.cluster.url(self.name);
        let s3 = kind.start_at(&scratch.join("s3"), bucket, tiers)?;
        let hdfs = kind.start_at(&scratch.join("hdfs"), Place::Hdfs(&url), tiers)?;
        for number in 0..runs {
            tell(format_args!(
                "hdfs, {}, run {}: {}",
                self.name,
                number + 1,
                kind.name()
            ));
            let seed = 1000 * number;
            let files = &self.tree.files;
            let epoch = self.fill([&s3, &hdfs], |raw, system| {
                first_epoch_beside(raw, files, system, THREADS, seed)
            })?;
            self.note(EPOCH, &hdfs, epoch);
            let job = self.fill([&s3, &hdfs], |raw, system| {
                warm_job_beside(raw, system, seed + 50)
            })?;
            self.note(JOB, &hdfs, job);
            self.turns([&s3, &hdfs], seed + 100)?;
        }
        compare_files(&hdfs.dir, &self.tree.root, &self.tree.files, 8, THREADS)?;
        s3.end()?;
        hdfs.end()
    }

    /// Fills a mount of S3 and one of HDFS.
    fn fill(
        &self,
        systems: [&System; 2],
        fill: impl Fn(&RawClient<'_>, &System) -> anyhow::Result<Fill>,
    ) -> anyhow::Result<Filled> {
        for system in systems {
            system.evict()?;
        }
        let [s3, hdfs] = systems;
        let (endpoint, files) = (self.server.endpoint(), &self.tree.files);
        let get = |threads, seed| get_objects(endpoint, self.name, files, seed, threads);
        let s3 = fill(&get, s3)?;
        // The calls before and after the last pass.
        let calls = Cell::new([0, self.cluster.calls()?]);
        let read = |threads, seed| {
            let pass = self.read_hdfs(threads, seed)?;
            let [_, before] = calls.get();
            calls.set([before, self.cluster.calls()?]);
            Ok(pass)
        };
        let hdfs = fill(&read, hdfs)?;
        let [before, between] = calls.get();
        let after = self.cluster.calls()?;
        let calls = [between - before, after - between];
        Ok(Filled { s3, hdfs, calls })
    }

    fn note(&mut self, what: [&str; 2], system: &System, filled: Filled) {
        let Filled { s3, hdfs, calls } = filled;
        let mut ratios = Vec::new();
        for (from, fill) in [("S3", s3), ("HDFS", hdfs)] {
            let goal = self.goal(what, from);
            let [raw, own] = [fill.raw, fill.own].map(|pass| pass.megabytes_per_second());
            note_fill(self.table, &goal, system, fill, [raw, own]);
            ratios.push(own / raw);
        }
        let [fill, readers] = what;
        let name = format!(
            "{}, {fill}, {readers}: ratio from HDFS by that from S3",
            self.name
        );
        let goal = Goal::new(name, Unit::Times).at_least(1.0);
        let value = ratios[1] / ratios[0];
        self.table.row(&goal).note(&system.name, value, None);
        let name = format!("{}, {fill} from HDFS: calls of the NameNode", self.name);
        let mut goal = Goal::new(name, Unit::Count).as_cheap(RAW, CALLS);
        if self.paths.len() < FEW {
            goal.target = None;
        }
        let [raw, own] = calls.map(|calls| calls as f64);
        let row = self.table.row(&goal);
        if system.name == EMBEDDED {
            row.note(RAW, raw, None);
        }
        row.note(&system.name, own, Some(raw));
    }

    fn goal(&self, [what, readers]: [&str; 2], from: &str) -> Goal {
        let name = format!("{}, {what} from {from}, {readers}", self.name);
        Goal::new(name, Unit::MegabytesPerSecond).beside(RAW)
    }

    /// Epochs from the SSD tier and from the kernel's cache.
    fn turns(&mut self, systems: [&System; 2], seed: u64) -> anyhow::Result<()> {
        let pids = [systems[0].pids()?, systems[1].pids()?];
        let turns = Turns {
            files: &self.tree.files,
            threads: &[THREADS],
            pairs: PAIRS,
            aligned: false,
            seed,
            counter: &|| Ok(0.0),
        };
        let side = |number: usize| Side {
            root: &systems[number].dir,
            pids: &pids[number],
        };
        let (taken, _) = turns.run([side(0), side(1)])?;
        let name = &systems[1].name;
        for kind in taken {
            let cache = if kind.cold {
                "kernel cache dropped, blocks on SSD"
            } else {
                "warm"
            };
            // A column of references for each system would say the same again.
            let of = if *name == EMBEDDED {
                ""
            } else {
                ", two workers"
            };
            let what = format!("{}, {cache}, {}{of}", self.name, readers(THREADS));
            let goal = Goal::new(what, Unit::MegabytesPerSecond).as_fast(ON_S3, SAME);
            let rate = |side: usize| self.tree.bytes as f64 / kind.sides[side].seconds / 1e6;
            let row = self.table.row(&goal);
            row.note(ON_S3, rate(0), None);
            let cell = row.note(name, rate(1), Some(rate(0)));
            cell.cost(kind.sides[1].usage, kind.sides[1].bytes);
        }
        Ok(())
    }

    fn read_hdfs(&self, threads: usize, seed: u64) -> anyhow::Result<Pass> {
        let pass = self.raw.read(self.paths.clone(), seed, threads)?;
        let (read, all) = (pass.bytes, self.tree.bytes);
        ensure!(read == all, "the raw client read {read} bytes of {all}");
        Ok(pass)
    }
}

/// Listings of a NameNode by the raw client and by a master, and by a master from S3.
fn listings(bench: &Bench, files: u64, table: &mut Table) -> anyhow::Result<()> {
    tell(format_args!("hdfs: a NameNode with {files} files"));
    let namenode = Cluster::with_listing(&bench.scratch().join("namenode"), files)?;
    let url = namenode.url(LISTED);
    let raw = namenode.raw(LISTED)?;
    let bucket = Builtin::generated("listed", files)?;
    let bucket = Place::Bucket {
        endpoint: &bucket.endpoint,
        bucket: "listed",
    };
    let master = system::Cluster::start(&bench.scratch().join("master"), 1, Tiers::ssd_for(0))?;
    let pid = [master.master_pid()];
    let goal = |what: &str, unit| Goal::new(format!("{files} files, {what}"), unit);
    let create = "`weir dataset create`";
    for number in 0..LISTINGS {
        tell(format_args!("hdfs, listing, run {}", number + 1));
        let before = namenode.calls()?;
        let (paths, beside) = raw.list()?;
        ensure!(paths.len() as u64 == files, "{} files", paths.len());
        let between = namenode.calls()?;
        let meter = Meter::start(&pid);
        let started = Instant::now();
        master.create_dataset_of(&format!("hdfs-{number}"), Place::Hdfs(&url))?;
        let seconds = started.elapsed().as_secs_f64();
        let usage = meter.stop();
        let after = namenode.calls()?;
        let row = table.row(&goal(&format!("{create} from HDFS"), Unit::Seconds).beside(RAW));
        row.note(RAW, beside, None);
        row.note(EMBEDDED, seconds, Some(beside)).cost(usage, 0);
        let calls = goal(
            &format!("{create} from HDFS: calls of the NameNode"),
            Unit::Count,
        );
        let row = table.row(&calls.as_cheap(RAW, CALLS));
        let beside = (between - before) as f64;
        row.note(RAW, beside, None);
        row.note(EMBEDDED, (after - between) as f64, Some(beside));
        let started = Instant::now();
        master.create_dataset_of(&format!("s3-{number}"), bucket)?;
        let seconds = started.elapsed().as_secs_f64();
        let row = table.row(&goal(
            &format!("{create} from S3 (weir-s3-server)"),
            Unit::Seconds,
        ));
        row.note(EMBEDDED, seconds, None);
    }
    Ok(())
}
