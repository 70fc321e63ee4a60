//! Reads at random places of big files: records of shards that are shuffled within.

use std::path::Path;

use weir_demo::ending::tell;

use super::big::{FILES, size};
use super::epochs::{NATIVE, THREADS, readers};
use super::{Bench, Measured, accept};
use crate::data::Tree;
use crate::kernel::drop_caches;
use crate::offsets::{Place, compare_places, places, read_places};
use crate::readers::{Pass, read_files};
use crate::server::Bucket;
use crate::system::{DATASET, Kind, System, Tiers};
use crate::table::{Goal, Table, Unit};
use crate::usage::{Meter, Usage};

/// Lengths of reads, and how many of a warm and of a cold cache.
const KINDS: [(u64, usize, usize); 2] = [(4 << 10, 200_000, 20_000), (128 << 10, 20_000, 4_000)];
/// Warm passes in each order.
const PAIRS: usize = 3;
/// A read from a page cache costs a microsecond: cold ones of other programs are fewer.
const PEER_PART: usize = 10;
const WARM: f64 = 0.95;
const DROPPED: f64 = 0.9;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let tree = bench.data("big", FILES, size(bench), 1)?;
    let server = bench.serve(&[Bucket {
        name: "big",
        tree: &tree,
    }])?;
    let (kinds, mut notes) = bench.systems(&server);
    let mut table = Table::default();
    for number in 0..bench.runs {
        for kind in kinds.iter().filter(|kind| kind.is_weir() || number == 0) {
            tell(format_args!("random, run {}: {}", number + 1, kind.name()));
            let outcome = measure(bench, kind, server.endpoint(), &tree, number, &mut table);
            accept(kind, outcome, &mut notes)?;
        }
    }
    notes.push("A sample of the places is compared byte for byte.".to_owned());
    Ok(Measured {
        title: format!(
            "Random places in {FILES} files of {} MiB",
            size(bench) >> 20
        ),
        source: format!("data from {}", server.name()),
        runs: bench.runs,
        notes,
        table,
    })
}

fn measure(
    bench: &Bench,
    kind: &Kind,
    endpoint: &str,
    tree: &Tree,
    number: u64,
    table: &mut Table,
) -> anyhow::Result<()> {
    let scratch = bench.scratch().join("system");
    let system = kind.start(&scratch, endpoint, "big", Tiers::ssd_for(tree.bytes))?;
    if kind.is_weir() {
        system.weir(&["warm", DATASET, "--wait", "-o", "json"])?;
    } else {
        read_files(&system.dir, &tree.files, number, THREADS)?;
    }
    let pids = system.pids()?;
    let sides = [
        (tree.root.as_path(), &[][..]),
        (system.dir.as_path(), &pids),
    ];
    for (length, warm, cold) in KINDS {
        let part = if kind.is_weir() { 1 } else { PEER_PART };
        let (warm, cold) = (bench.scaled(warm as u64) as usize, cold / part);
        let cold = bench.scaled(cold as u64) as usize;
        let places = |count, seed| places(tree.files.len(), size(bench), length, count, seed);
        for order in [0, 1] {
            drop_caches()?;
            let chosen = places(cold, 10 * number + order as u64);
            let taken = both(sides, order, tree, &chosen, length)?;
            note(table, &goal(length, false), &system, kind, taken);
        }
        for order in [0, 1] {
            drop_caches()?;
            for side in [order, 1 - order] {
                read_files(sides[side].0, &tree.files, number, THREADS)?;
            }
            for pair in 0..PAIRS {
                let chosen = places(warm, 100 * number + 10 * order as u64 + pair as u64);
                let taken = both(sides, order, tree, &chosen, length)?;
                note(table, &goal(length, true), &system, kind, taken);
            }
        }
        let sample = places(cold / 10 + 1, number);
        compare_places(
            [sides[0].0, sides[1].0],
            &tree.files,
            &sample,
            length as usize,
        )?;
    }
    system.end()
}

/// Reads the same places on both sides, one after the other.
fn both(
    sides: [(&Path, &[u32]); 2],
    order: usize,
    tree: &Tree,
    chosen: &[Place],
    length: u64,
) -> anyhow::Result<[(Pass, Usage); 2]> {
    let read = |number: usize| {
        let (root, pids) = sides[number];
        let meter = Meter::start(pids);
        let pass = read_places(root, &tree.files, chosen, length as usize, THREADS)?;
        anyhow::Ok((pass, meter.stop()))
    };
    let (first, second) = (read(order)?, read(1 - order)?);
    Ok(if order == 0 {
        [first, second]
    } else {
        [second, first]
    })
}

fn note(table: &mut Table, goal: &Goal, system: &System, kind: &Kind, taken: [(Pass, Usage); 2]) {
    let [native, own] = taken.map(|(pass, _)| pass.megabytes_per_second());
    let row = table.row(goal);
    if kind.is_weir() {
        row.note(NATIVE, native, None);
    }
    let [_, (pass, usage)] = taken;
    row.note(&system.name, own, Some(native))
        .cost(usage, pass.bytes);
}

fn goal(length: u64, warm: bool) -> Goal {
    let (state, ratio) = if warm {
        ("warm", WARM)
    } else {
        ("kernel cache dropped, blocks on SSD", DROPPED)
    };
    let name = format!("{} KiB, {state}, {}", length >> 10, readers(THREADS));
    Goal::new(name, Unit::MegabytesPerSecond).as_fast(NATIVE, ratio)
}
