//! The wait for the first byte of a big object that nobody has cached.

use std::fs::File;
use std::io::Read;
use std::time::Instant;

use anyhow::Context;
use weir_demo::ending::tell;

use super::epochs::{RAW, THREADS};
use super::{Bench, Measured, accept};
use crate::data::Tree;
use crate::http::Http;
use crate::kernel::drop_caches;
use crate::readers::{compare_files, get_objects, object_path};
use crate::server::Bucket;
use crate::system::{Kind, Tiers};
use crate::table::{Goal, Table, Unit};

/// Cold reads of each system in a run.
const READS: u64 = 5;
const COST: f64 = 1.5;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let size = bench.scaled(1 << 30);
    let tree = bench.data("first", 1, size, 1)?;
    let server = bench.serve(&[Bucket {
        name: "first",
        tree: &tree,
    }])?;
    let (kinds, mut notes) = bench.systems(&server);
    let mut table = Table::default();
    for kind in &kinds {
        tell(format_args!("first byte: {}", kind.name()));
        let outcome = measure(bench, kind, server.endpoint(), &tree, &mut table);
        accept(kind, outcome, &mut notes)?;
    }
    notes.push("From `open` to the end of a read of 4 KiB; the raw client connects, asks for the whole object and waits for its first byte.".to_owned());
    Ok(Measured {
        title: format!("First byte of a cold file of {} MiB", size >> 20),
        source: format!("data from {}", server.name()),
        runs: bench.runs * READS,
        notes,
        table,
    })
}

fn measure(
    bench: &Bench,
    kind: &Kind,
    endpoint: &str,
    tree: &Tree,
    table: &mut Table,
) -> anyhow::Result<()> {
    let file = tree.files.first().context("no file")?;
    let path = object_path("first", file);
    let raw = || {
        let started = Instant::now();
        let connection = Http::connect(endpoint)?.first_byte(&path)?;
        let taken = milliseconds(started);
        drop(connection);
        anyhow::Ok(taken)
    };
    let scratch = bench.scratch().join("system");
    let system = kind.start(&scratch, endpoint, "first", Tiers::ssd_for(tree.bytes))?;
    let goal = Goal::new("first byte of a cold file", Unit::Milliseconds).as_cheap(RAW, COST);
    for number in 0..bench.runs * READS {
        if number > 0 && !system.evict()? {
            break; // its cache cannot be emptied
        }
        drop_caches()?;
        // Before either the server has sent the whole object, so that it has it in its caches and nothing to do: a
        // request right behind one that was broken off takes several times as long.
        let whole = || get_objects(endpoint, "first", &tree.files, 1, 1);
        whole()?;
        let beside = raw()?;
        whole()?;
        let started = Instant::now();
        File::open(system.dir.join(file))?.read_exact(&mut [0; 4096])?;
        let value = milliseconds(started);
        let row = table.row(&goal);
        row.note(RAW, beside, None);
        row.note(&system.name, value, Some(beside));
    }
    if kind.is_weir() {
        compare_files(&system.dir, &tree.root, &tree.files, 1, THREADS)?;
    }
    system.end()
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
