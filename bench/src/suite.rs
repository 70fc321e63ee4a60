//! The suites: each makes its data, measures, and gives a section of the results.

use std::path::PathBuf;

use clap::ValueEnum;
use weir_demo::ending::tell;

use crate::data::{Tree, generated};
use crate::report::Section;
use crate::server::{self, Bucket, Server};
use crate::stats::machine;
use crate::system::{self, PeerCommand};
use crate::table::Table;

pub(crate) mod big;
mod datasets;
mod drain;
mod epochs;
mod far;
mod first_byte;
mod half;
mod hdfs;
mod hot;
mod limited;
mod manifest;
mod many;
mod memory;
mod overload;
mod placement;
mod random;
pub(crate) mod small;
mod stream;
mod tiny;
mod walk;

/// A quick run has this part of the files, or of their bytes.
const QUICK_PART: u64 = 20;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Small data, to see that everything works.
    pub quick: bool,
    /// Runs of each row; the median is reported. Suites that take minutes run less often.
    pub runs: u64,
    /// Where the data comes from.
    pub server: server::Kind,
    /// Other programs to measure.
    pub peers: Vec<PeerCommand>,
    /// Scratch directory, with the data that is kept for the next run.
    pub out: PathBuf,
}

/// What can be chosen on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// 20,000 files of 100 KiB
    Small,
    /// 100,000 files of 4 KiB
    Tiny,
    /// 8 files of 256 MiB, sequentially
    Big,
    /// Random places in big files
    Random,
    /// Memory while a file of 10 GiB is read
    Memory,
    /// Walk and stat of a million files
    Walk,
    /// Memory and times of manifests of 1 and 10 million files
    Manifest,
    /// 20 datasets of a million files: heartbeats, CPU time and memory of a cluster
    Many,
    /// 500 datasets of 1,000 files: memory, start and heartbeats of a master
    Datasets,
    /// Owners of blocks at 1,000 and 10,000 workers: shares, moves and times
    Placement,
    /// Workers in other processes, and sendfile
    Stream,
    /// A cache of half the data
    Half,
    /// First byte of a cold file of 1 GiB
    FirstByte,
    /// 200 readers of one file on 6 workers
    Hot,
    /// Ten times more readers than the workers can serve
    Overload,
    /// What readers lose while workers come and go
    Drain,
    /// HDFS beside S3: first epochs, warm jobs, later epochs, and a listing of a million files
    Hdfs,
}

impl Suite {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Measures.
    pub fn run(self, bench: &Bench) -> anyhow::Result<Section> {
        bench.clear_scratch()?;
        let measured = match self {
            Self::Small => small::run(bench),
            Self::Tiny => tiny::run(bench),
            Self::Big => big::run(bench),
            Self::Random => random::run(bench),
            Self::Memory => memory::run(bench),
            Self::Walk => walk::run(bench),
            Self::Manifest => manifest::run(bench),
            Self::Many => many::run(bench),
            Self::Datasets => datasets::run(bench),
            Self::Placement => placement::run(bench),
            Self::Stream => stream::run(bench),
            Self::Half => half::run(bench),
            Self::FirstByte => first_byte::run(bench),
            Self::Hot => hot::run(bench),
            Self::Overload => overload::run(bench),
            Self::Drain => drain::run(bench),
            Self::Hdfs => hdfs::run(bench),
        }?;
        // Caches of many gigabytes are of no more use.
        bench.clear_scratch()?;
        let quick = if bench.quick {
            ", quick run with less data"
        } else {
            ""
        };
        Ok(Section {
            suite: self.name(),
            title: measured.title,
            conditions: format!(
                "`make bench SUITE={}` on {}{quick}; {}; medians of {} runs, each ratio with its neighbour in time.",
                self.name(),
                machine(),
                measured.source,
                measured.runs
            ),
            notes: measured.notes,
            table: measured.table,
        })
    }
}

/// What a suite gives.
struct Measured {
    title: String,
    /// Where the data came from.
    source: String,
    runs: u64,
    notes: Vec<String>,
    table: Table,
}

impl Bench {
    /// Directory of caches and mounts, emptied before each suite. Short: sockets live there.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.out.join("run")
    }

    /// Empties it, also of what an interrupted run has left mounted.
    pub(crate) fn clear_scratch(&self) -> anyhow::Result<()> {
        let scratch = self.scratch();
        crate::kernel::unmount_below(&scratch);
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir_all(&scratch)?;
        Ok(())
    }

    /// `full`, or a part of it in a quick run.
    pub(crate) fn scaled(&self, full: u64) -> u64 {
        if self.quick { full / QUICK_PART } else { full }
    }

    /// Files of random bytes, kept for the next run.
    pub(crate) fn data(
        &self,
        name: &str,
        count: u64,
        size: u64,
        directories: usize,
    ) -> anyhow::Result<Tree> {
        let root = self.out.join("data").join(name);
        generated(&root, count as usize, size, directories)
    }

    /// A server with these buckets.
    pub(crate) fn serve(&self, buckets: &[Bucket<'_>]) -> anyhow::Result<Server> {
        Server::start(self.server, &self.out, buckets)
    }

    /// The mounts to compare, and what is to be said about those that are not there.
    fn systems(&self, server: &Server) -> (Vec<system::Kind>, Vec<String>) {
        let mut kinds = vec![system::Kind::Embedded, system::Kind::Cluster];
        let mut notes = Vec::new();
        for peer in &self.peers {
            if !server.lists_directories() {
                notes.push(format!(
                    "{} is left out: {} lists no directories.",
                    peer.name,
                    server.name()
                ));
            } else if peer.is_installed() {
                kinds.push(system::Kind::Peer(peer.clone()));
            } else {
                notes.push(format!("{} is left out: it is not installed.", peer.name));
            }
        }
        (kinds, notes)
    }
}

/// The outcome of measuring a system. Another program that fails is noted and left out; Weir must not fail.
fn accept(
    kind: &system::Kind,
    outcome: anyhow::Result<()>,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    match outcome {
        Err(error) if !kind.is_weir() => {
            tell(format_args!("{} failed: {error:#}", kind.name()));
            let error = error.to_string();
            let first = error.lines().next().unwrap_or_default();
            notes.push(format!("{} failed: {first}", kind.name()));
            Ok(())
        }
        outcome => outcome,
    }
}
