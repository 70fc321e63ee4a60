//! This build of Weir beside an earlier one: both are mounted at the same time and read in turns, so that what the
//! machine does meanwhile happens to both. Each pair gives a ratio; their median and its spread say whether a row has
//! become slower.

use std::path::Path;

use anyhow::{Context, ensure};
use weir_demo::ending::tell;

use crate::data::Tree;
use crate::kernel::drop_caches;
use crate::offsets::{compare_places, places, read_places};
use crate::readers::{Pass, compare_files, read_files};
use crate::report::Section;
use crate::server::{Bucket, Server};
use crate::stats::machine;
use crate::suite::{Bench, Suite, big, small};
use crate::system::{DATASET, Kind, System, Tiers};
use crate::table::{Goal, Table, Unit};
use crate::usage::Meter;

mod report;
mod spread;

pub use report::markdown;

/// Names of the two builds in tables.
pub const EARLIER: &str = "earlier";
/// The build that this program belongs to.
pub const NOW: &str = "Weir now";

/// The suites whose rows are compared.
pub const SUITES: [Suite; 4] = [Suite::Small, Suite::Big, Suite::Random, Suite::Stream];

/// Readers of most rows.
const THREADS: usize = 4;
/// Lengths of random reads, and how many there are in a pass.
const PLACES: [(u64, usize); 2] = [(4 << 10, 20_000), (128 << 10, 4_000)];

/// Compares two builds.
pub struct Pairs<'a> {
    /// How to measure; its number of runs is that of the pairs.
    pub bench: &'a Bench,
    /// The earlier build's `weir`.
    pub against: &'a Path,
}

/// What a pass reads.
enum Read<'a> {
    /// All files, with so many threads.
    Files(usize),
    /// So many bytes at each of some places.
    Places(u64, &'a [crate::offsets::Place]),
}

/// The kernel's cache before a pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    /// Dropped.
    Cold,
    /// As the pass before left it.
    Kept,
}

/// Both builds with the same data mounted: the earlier one first.
struct Mounted<'a> {
    systems: [System; 2],
    pids: [Vec<u32>; 2],
    tree: &'a Tree,
    table: &'a mut Table,
}

impl Pairs<'_> {
    /// Measures one suite's rows.
    pub fn run(&self, suite: Suite) -> anyhow::Result<Section> {
        let bench = self.bench;
        ensure!(SUITES.contains(&suite), "{} has no pairs", suite.name());
        bench.clear_scratch()?;
        let mut table = Table::default();
        let (name, tree) = if suite == Suite::Small {
            let count = small::files(bench);
            (
                "small",
                bench.data("small", count, small::SIZE, small::DIRECTORIES)?,
            )
        } else {
            ("big", bench.data("big", big::FILES, big::size(bench), 1)?)
        };
        let server = bench.serve(&[Bucket { name, tree: &tree }])?;
        let mut mounted = self.mount(suite, name, &server, &tree, &mut table)?;
        for pair in 0..bench.runs {
            tell(format_args!(
                "{} in pairs, {} of {}",
                suite.name(),
                pair + 1,
                bench.runs
            ));
            match suite {
                Suite::Random => mounted.random(bench, pair)?,
                _ => mounted.epochs(pair, suite != Suite::Stream)?,
            }
        }
        mounted.end()?;
        bench.clear_scratch()?;
        let title = match suite {
            Suite::Small => format!("{} files of 100 KiB, embedded mount", tree.files.len()),
            Suite::Big => format!(
                "Big files of {} MiB, embedded mount",
                big::size(bench) >> 20
            ),
            Suite::Random => "Random places in big files, embedded mount".to_owned(),
            _ => "Big files from two remote workers over TCP".to_owned(),
        };
        let quick = if bench.quick {
            ", quick run with less data"
        } else {
            ""
        };
        Ok(Section {
            suite: format!("pairs-{}", suite.name()),
            title: format!("This build beside an earlier one: {title}"),
            conditions: format!(
                "`make bench-pairs SUITE={}` on {}{quick}; data from {}; {} pairs, the two builds in turns.",
                suite.name(),
                machine(),
                server.name(),
                bench.runs
            ),
            notes: notes(suite),
            table,
        })
    }

    fn mount<'a>(
        &self,
        suite: Suite,
        bucket: &str,
        server: &Server,
        tree: &'a Tree,
        table: &'a mut Table,
    ) -> anyhow::Result<Mounted<'a>> {
        let kind = if suite == Suite::Stream {
            Kind::Cluster
        } else {
            Kind::Embedded
        };
        let tiers = Tiers::ssd_for(tree.bytes);
        let start = |name: &str, weir: Option<&Path>| {
            let scratch = self.bench.scratch().join(name);
            let system = kind.start_build(weir, &scratch, server.endpoint(), bucket, tiers)?;
            if suite == Suite::Random {
                system.weir(&["warm", DATASET, "--wait", "-o", "json"])?;
            }
            anyhow::Ok(system)
        };
        let against = std::path::absolute(self.against)?;
        let earlier = start("a", Some(&against))
            .with_context(|| format!("cannot mount with {}", against.display()))?;
        let now = start("b", None)?;
        let pids = [earlier.pids()?, now.pids()?];
        Ok(Mounted {
            systems: [earlier, now],
            pids,
            tree,
            table,
        })
    }
}

impl Mounted<'_> {
    /// A first epoch, epochs from the SSD tier, and one from the kernel's cache where that is not the kernel alone.
    fn epochs(&mut self, pair: u64, single: bool) -> anyhow::Result<()> {
        for system in &self.systems {
            system.evict()?;
        }
        let all = Read::Files(THREADS);
        self.pair("first epoch, 4 threads", pair, Cache::Cold, &all)?;
        self.wait_for_fills()?;
        let name = "kernel cache dropped, blocks on SSD";
        self.pair(&format!("{name}, 4 threads"), pair, Cache::Cold, &all)?;
        self.pair(
            &format!("{name}, 1 thread"),
            pair,
            Cache::Cold,
            &Read::Files(1),
        )?;
        if single {
            for side in in_turn(pair) {
                let dir = &self.systems[side].dir;
                read_files(dir, &self.tree.files, pair, THREADS)?;
            }
            self.pair("warm, 4 threads", pair, Cache::Kept, &all)?;
        }
        Ok(())
    }

    fn random(&mut self, bench: &Bench, pair: u64) -> anyhow::Result<()> {
        let files = self.tree.files.len();
        for (length, count) in PLACES {
            let count = bench.scaled(count as u64) as usize;
            let chosen = places(files, big::size(bench), length, count, pair);
            let name = format!("{} KiB, kernel cache dropped, blocks on SSD", length >> 10);
            self.pair(&name, pair, Cache::Cold, &Read::Places(length, &chosen))?;
            if pair == 0 {
                for system in &self.systems {
                    let roots = [self.tree.root.as_path(), &system.dir];
                    compare_places(
                        roots,
                        &self.tree.files,
                        &chosen[..count / 10],
                        length as usize,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// One pass of each build, in turns.
    fn pair(&mut self, row: &str, pair: u64, cache: Cache, what: &Read<'_>) -> anyhow::Result<()> {
        let mut taken = [None, None];
        for side in in_turn(pair) {
            if cache == Cache::Cold {
                drop_caches()?;
            }
            let meter = Meter::start(&self.pids[side]);
            let pass = self.read(side, pair, what)?;
            taken[side] = Some((pass, meter.stop()));
        }
        let [Some(earlier), Some(now)] = taken else {
            return Ok(());
        };
        let goal = Goal::new(row, Unit::MegabytesPerSecond).beside(EARLIER);
        let row = self.table.row(&goal);
        let rate = earlier.0.megabytes_per_second();
        row.note(EARLIER, rate, None)
            .cost(earlier.1, earlier.0.bytes);
        let value = now.0.megabytes_per_second();
        row.note(NOW, value, Some(rate)).cost(now.1, now.0.bytes);
        Ok(())
    }

    fn read(&self, side: usize, pair: u64, what: &Read<'_>) -> anyhow::Result<Pass> {
        let (dir, files) = (&self.systems[side].dir, &self.tree.files);
        match what {
            Read::Files(threads) => read_files(dir, files, pair, *threads),
            Read::Places(length, chosen) => {
                read_places(dir, files, chosen, *length as usize, THREADS)
            }
        }
    }

    /// Blocks on their way to SSD would be read from memory, and their writes would cost the next pass.
    fn wait_for_fills(&self) -> anyhow::Result<()> {
        self.systems.iter().try_for_each(System::wait_for_fills)
    }

    fn end(self) -> anyhow::Result<()> {
        for system in self.systems {
            let (root, files) = (&self.tree.root, &self.tree.files);
            compare_files(&system.dir, root, files, 1, THREADS)?;
            system.end()?;
        }
        Ok(())
    }
}

fn notes(suite: Suite) -> Vec<String> {
    let compared = "Every byte that the mounts gave in an extra pass was compared with its source.";
    let certificates = "Processes of a cluster know each other by certificates, and connections of the block stream are opened by a challenge, where a build has that.";
    let both = [
        Some(compared),
        (suite == Suite::Stream).then_some(certificates),
    ];
    both.into_iter().flatten().map(str::to_owned).collect()
}

/// The sides in the order of a pair: each build comes first in every other one.
fn in_turn(pair: u64) -> [usize; 2] {
    let first = (pair % 2) as usize;
    [first, 1 - first]
}
