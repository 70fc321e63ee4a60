//! Whole files through every system: the first epoch, epochs from the SSD tier, and epochs from the kernel's cache.

use std::path::PathBuf;

use weir_demo::ending::tell;

use super::{Bench, Measured, accept};
use crate::data::Tree;
use crate::device::write_rate;
use crate::fill::{Fill, Objects, first_epoch, warm_job};
use crate::metrics::Scrape;
use crate::readers::compare_files;
use crate::server::{Bucket, Server};
use crate::system::{DATASET, Kind, Mount, System, Tiers};
use crate::table::{Goal, Table, Unit};
use crate::turns::{Buffers, Side, Turns};

/// Readers of rows that are not about their number.
pub(super) const THREADS: usize = 4;
/// Name of the references in tables.
pub(super) const NATIVE: &str = "native";
pub(super) const RAW: &str = "raw client";
/// Name of the rows of warm jobs.
pub(super) const WARM: &str = "`weir warm`, raw client with 16 threads";

/// What is read, and what Weir is to reach.
pub(super) struct Plan {
    /// Name of the data and the bucket.
    pub(super) name: &'static str,
    pub(super) count: u64,
    pub(super) size: u64,
    pub(super) directories: usize,
    /// Numbers of readers; the last one is that of rows that are measured once.
    pub(super) threads: &'static [usize],
    /// Passes over the warm cache in each order.
    pub(super) pairs: u64,
    pub(super) unit: Unit,
    /// Ratios to the native file system.
    pub(super) warm: f64,
    pub(super) dropped: f64,
    /// Ratios to the raw client of the first epoch and of `weir warm`, where they are measured.
    pub(super) fill: Option<(f64, f64)>,
    /// Whether page-aligned buffers have rows of their own.
    pub(super) aligned: bool,
    /// Files that other programs read.
    pub(super) peer_files: u64,
}

/// Measures all systems, `bench.runs` times.
pub(super) fn measure(bench: &Bench, plan: &Plan) -> anyhow::Result<(Measured, Tree)> {
    let tree = bench.data(plan.name, plan.count, plan.size, plan.directories)?;
    let bucket = Bucket {
        name: plan.name,
        tree: &tree,
    };
    let server = bench.serve(&[bucket])?;
    let (kinds, mut notes) = bench.systems(&server);
    let mut run = Run {
        bench,
        plan,
        tree: &tree,
        server: &server,
        table: Table::default(),
        reads: Vec::new(),
        notes: Vec::new(),
    };
    for kind in &kinds {
        let outcome = run.system(kind);
        accept(kind, outcome, &mut notes)?;
    }
    if kinds.iter().any(|kind| !kind.is_weir()) {
        let files = plan.peer_files.min(plan.count);
        notes.push(format!(
            "Other mounts read {files} of the files once, and are compared with the native file system and the raw client reading the same."
        ));
    }
    notes.extend(run.notes);
    if plan.fill.is_some() {
        notes.push(match write_rate(&bench.scratch(), tree.bytes) {
            Ok(rate) => format!(
                "What is filled is also written to SSD, which takes {:.0} MB/s in direct writes of 4 MiB.",
                rate / 1e6
            ),
            Err(error) => format!("{error:#}."),
        });
    }
    notes.push(format!(
        "Reads that reached Weir while the kernel's cache was warm, in each run (`weir_fuse_requests_total`): {}.",
        run.reads.join(", ")
    ));
    notes.push("Every byte was compared with its source in an extra pass.".to_owned());
    let measured = Measured {
        title: format!("{} files of {} bytes", plan.count, plan.size),
        source: format!("data from {}", server.name()),
        runs: bench.runs,
        notes,
        table: run.table,
    };
    Ok((measured, tree))
}

struct Run<'a> {
    bench: &'a Bench,
    plan: &'a Plan,
    tree: &'a Tree,
    server: &'a Server,
    table: Table,
    reads: Vec<String>,
    notes: Vec<String>,
}

impl Run<'_> {
    /// All runs of one system, which stays mounted. Others are there for comparison; one run of them is enough.
    fn system(&mut self, kind: &Kind) -> anyhow::Result<()> {
        let plan = self.plan;
        let (runs, step) = if kind.is_weir() {
            (self.bench.runs, 1)
        } else {
            (1, (plan.count / plan.peer_files).max(1))
        };
        let files = self.tree.files.iter().step_by(step as usize);
        let files: Vec<_> = files.cloned().collect();
        let tiers = Tiers::ssd_for(self.tree.bytes);
        let scratch = self.bench.scratch().join("system");
        let system = kind.start(&scratch, self.server.endpoint(), plan.name, tiers)?;
        for number in 0..runs {
            tell(format_args!(
                "{}, run {}: {}",
                plan.name,
                number + 1,
                kind.name()
            ));
            self.fill(&system, &files, number)?;
            self.turns(&system, &files, number)?;
        }
        compare_files(&system.dir, &self.tree.root, &files, 8, THREADS)?;
        system.end()
    }

    /// Epochs from the SSD tier and from the kernel's cache, beside the native file system.
    fn turns(&mut self, system: &System, files: &[PathBuf], number: u64) -> anyhow::Result<()> {
        let (plan, peer) = (self.plan, system.mount().is_none());
        let pids = system.pids()?;
        let metrics = system.mount().map(Mount::status).transpose()?;
        let counter = || {
            let Some(status) = &metrics else {
                return Ok(0.0);
            };
            let scrape = Scrape::fetch(&status.metrics)?;
            Ok(scrape.sum("weir_fuse_requests_total", "operation=\"read\""))
        };
        let turns = Turns {
            files,
            threads: if peer { &[THREADS] } else { plan.threads },
            pairs: if peer { 1 } else { plan.pairs },
            aligned: plan.aligned && !peer,
            seed: 1000 * number + 100,
            counter: &counter,
        };
        let native = Side {
            root: &self.tree.root,
            pids: &[],
        };
        let own = Side {
            root: &system.dir,
            pids: &pids,
        };
        let before = system.origin_bytes()?;
        let (taken, asked) = turns.run([native, own])?;
        let again = system.origin_bytes()? - before;
        if again > 0.0 {
            self.notes.push(format!(
                "{}, run {}: {:.1} MB of these epochs were not cached and came from the origin.",
                system.name,
                number + 1,
                again / 1e6
            ));
        }
        let per_pass = plan.size * files.len() as u64;
        for kind in taken {
            let goal = self.goal(kind.threads, kind.buffers, kind.cold);
            let [native, own] = kind.sides.map(|side| self.value(per_pass, side.seconds));
            let row = self.table.row(&goal);
            if !peer {
                row.note(NATIVE, native, None);
            }
            let cell = row.note(&system.name, own, Some(native));
            cell.cost(kind.sides[1].usage, kind.sides[1].bytes);
        }
        if !peer {
            self.reads.push(format!("{asked:.0}"));
        }
        Ok(())
    }

    /// Fills the cache, as a measurement where the plan says so.
    fn fill(&mut self, system: &System, files: &[PathBuf], number: u64) -> anyhow::Result<()> {
        let seed = 1000 * number;
        let objects = Objects {
            endpoint: self.server.endpoint(),
            bucket: self.plan.name,
            files,
        };
        let Some((epoch, job)) = self.plan.fill else {
            if system.mount().is_some() && number == 0 {
                system.weir(&["warm", DATASET, "--wait", "-o", "json"])?;
            }
            return Ok(());
        };
        for &threads in self.plan.threads {
            if system.mount().is_none() && threads != THREADS {
                continue; // its cache cannot be emptied
            }
            system.evict()?;
            let fill = first_epoch(objects, system, threads, seed + threads as u64)?;
            let goal = Goal::new(format!("first epoch, {}", readers(threads)), self.plan.unit);
            self.note_fill(&goal.as_fast(RAW, epoch), system, fill);
        }
        if !system.evict()? {
            return Ok(());
        }
        let fill = warm_job(objects, system, seed + 50)?;
        let goal = Goal::new(WARM, self.plan.unit);
        self.note_fill(&goal.as_fast(RAW, job), system, fill);
        Ok(())
    }

    fn note_fill(&mut self, goal: &Goal, system: &System, fill: Fill) {
        let rates = [fill.raw, fill.own].map(|pass| self.value(fill.raw.bytes, pass.seconds));
        note_fill(&mut self.table, goal, system, fill, rates);
    }

    fn goal(&self, threads: usize, buffers: Buffers, cold: bool) -> Goal {
        let readers = readers(threads);
        let (name, ratio) = match (cold, buffers) {
            (true, _) => {
                let name = format!("kernel cache dropped, blocks on SSD, {readers}");
                (name, self.plan.dropped)
            }
            (false, Buffers::Malloc) => (format!("warm, {readers}"), self.plan.warm),
            (false, Buffers::Aligned) => {
                let name = format!("warm, page-aligned buffers, {readers}");
                (name, self.plan.warm)
            }
        };
        Goal::new(name, self.plan.unit).as_fast(NATIVE, ratio)
    }

    /// A rate in the plan's unit.
    fn value(&self, bytes: u64, seconds: f64) -> f64 {
        if self.plan.unit == Unit::FilesPerSecond {
            bytes as f64 / self.plan.size as f64 / seconds
        } else {
            bytes as f64 / seconds / 1e6
        }
    }
}

/// Notes a fill and the raw client beside it, with their rates in the goal's unit.
pub(super) fn note_fill(
    table: &mut Table,
    goal: &Goal,
    system: &System,
    fill: Fill,
    [raw, own]: [f64; 2],
) {
    let row = table.row(goal);
    if system.mount().is_some() {
        row.note(RAW, raw, None);
    }
    let cell = row.note(&system.name, own, Some(raw));
    cell.cost(fill.usage, fill.raw.bytes);
}

/// `4 threads`.
pub(super) fn readers(threads: usize) -> String {
    if threads == 1 {
        "1 thread".to_owned()
    } else {
        format!("{threads} threads")
    }
}
