//! A cache that holds half of what is read in each epoch: the part of bytes that comes from it cannot be more than
//! half, and should not be less.

use weir_demo::ending::tell;

use super::epochs::{RAW, THREADS, readers};
use super::small::{DIRECTORIES, SIZE, files};
use super::{Bench, Measured};
use crate::kernel::drop_caches;
use crate::metrics::Scrape;
use crate::readers::{compare_files, get_objects, read_files};
use crate::server::Bucket;
use crate::system::{Kind, System, Tiers};
use crate::table::{Goal, Table, Unit};
use crate::usage::Meter;

const EPOCHS: u64 = 5;
const HIT_RATIO: f64 = 0.49;
const SPEED: f64 = 0.8;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let tree = bench.data("small", files(bench), SIZE, DIRECTORIES)?;
    let server = bench.serve(&[Bucket {
        name: "small",
        tree: &tree,
    }])?;
    let tiers = Tiers {
        memory: 0,
        ssd: tree.bytes / 2,
    };
    let mut table = Table::default();
    for kind in [Kind::Embedded, Kind::Cluster] {
        tell(format_args!("half: {}", kind.name()));
        let scratch = bench.scratch().join("system");
        let system = kind.start(&scratch, server.endpoint(), "small", tiers)?;
        let pids = system.pids()?;
        let mut before = Bytes::now(&system)?;
        for epoch in 1..=EPOCHS {
            drop_caches()?;
            get_objects(server.endpoint(), "small", &tree.files, epoch, THREADS)?;
            let raw = get_objects(server.endpoint(), "small", &tree.files, epoch, THREADS)?;
            let meter = Meter::start(&pids);
            let own = read_files(&system.dir, &tree.files, 100 + epoch, THREADS)?;
            let usage = meter.stop();
            let now = Bytes::now(&system)?;
            let hits = now.since(before).hit_ratio();
            before = now;
            if epoch == 1 {
                continue; // nothing is cached yet
            }
            let name = format!("byte hit ratio, epoch {epoch}");
            let goal = Goal::new(name, Unit::Share).at_least(HIT_RATIO);
            table.row(&goal).note(&system.name, hits, None);
            let name = format!("epochs 2 to {EPOCHS}, {}", readers(THREADS));
            let goal = Goal::new(name, Unit::MegabytesPerSecond).as_fast(RAW, SPEED);
            let row = table.row(&goal);
            let beside = raw.megabytes_per_second();
            row.note(RAW, beside, None);
            let cell = row.note(&system.name, own.megabytes_per_second(), Some(beside));
            cell.cost(usage, own.bytes);
        }
        compare_files(&system.dir, &tree.root, &tree.files, 1, THREADS)?;
        system.end()?;
    }
    Ok(Measured {
        title: format!(
            "A cache of half of {} files of 100 KiB, shuffled",
            tree.files.len()
        ),
        source: format!("data from {}", server.name()),
        runs: 1,
        notes: vec![
            "The kernel's caches are dropped before each epoch. The raw client gets all files. Every byte was compared in an extra pass.".to_owned(),
        ],
        table,
    })
}

/// Bytes that were read, and those of them that came from an origin.
#[derive(Clone, Copy)]
struct Bytes {
    all: f64,
    origin: f64,
}

impl Bytes {
    /// Up to now. A mount does not see whether a remote worker had to ask the origin, so the bytes that came from
    /// origins are counted where they come.
    fn now(system: &System) -> anyhow::Result<Self> {
        let mut bytes = Self {
            all: 0.0,
            origin: 0.0,
        };
        let Some(mount) = system.mount() else {
            return Ok(bytes);
        };
        let scrape = Scrape::fetch(&mount.status()?.metrics)?;
        bytes.all = scrape.sum("weir_client_read_bytes_total", "");
        bytes.origin = system.origin_bytes()?;
        Ok(bytes)
    }

    fn since(self, before: Self) -> Self {
        Self {
            all: self.all - before.all,
            origin: self.origin - before.origin,
        }
    }

    fn hit_ratio(self) -> f64 {
        1.0 - self.origin / self.all.max(1.0)
    }
}
