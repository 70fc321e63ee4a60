//! Owners of blocks at 1,000 and 10,000 workers: shares, what moves, the time of a look-up and of a new map; and what such a
//! cluster takes of its master (`placement/fleet.rs`).

use std::collections::HashMap;
use std::hint::black_box;

use prost::Message;
use rustix::time::{ClockId, clock_gettime};
use weir_core::{BlockKey, ClusterMap, Hashing, Location, WorkerInfo};
use weir_demo::ending::tell;
use weir_proto::v1;
use weir_worker::service::cluster_map;

use super::{Bench, Measured};
use crate::table::{Table, Unit};
use crate::usage::memory;

mod fleet;

use fleet::{Found, Size};

/// Name of the only system in the table.
const SYSTEM: &str = "Weir";
/// Weights of the workers, in turn.
const WEIGHTS: [u64; 3] = [1 << 40, 2 << 40, 4 << 40];
/// Workers that join or leave; a part of the cluster, so that a sample sees what moves.
const CHANGED: usize = 20;
/// A look-up takes no longer than this at 1,000 workers, in µs.
const MOST_MICROSECONDS: f64 = 1.0;
/// By which part shares may differ from what the weights ask for.
const MOST_OFF: f64 = 0.05;
/// Bytes that move, relative to those that must.
const MOST_MOVED: f64 = 1.1;
/// Maps that are held at once to see what one takes.
const MAPS: usize = 40;
const MIB: f64 = 1_048_576.0;
/// The blocks of 500 datasets are a billion; so many datasets are measured, and fewer with more workers.
const DATASET_BLOCKS: u64 = 2_000_000;
const DATASETS: [(usize, usize); 2] = [(1000, 20), (10_000, 5)];
/// What a heartbeat may carry when nothing has changed, in bytes.
const MOST_QUIET: f64 = 1024.0;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let mut table = Table::default();
    for (workers, promised) in [(1000, true), (10_000, false)] {
        tell(format_args!("placement: {workers} workers"));
        measure(bench, &mut table, workers, promised)?;
    }
    for (workers, datasets) in DATASETS {
        let size = Size {
            // One more comes while they are asked, and a map holds no more than 10,000.
            workers: bench.scaled(workers as u64) as usize - 1,
            datasets,
            blocks: bench.scaled(DATASET_BLOCKS),
        };
        tell(format_args!("placement: a master with {size:?}"));
        let home = bench.scratch().join(workers.to_string());
        std::fs::create_dir(&home)?;
        note(&mut table, size.workers, &fleet::measure(&home, size)?);
        let _ = std::fs::remove_dir_all(&home);
    }
    Ok(Measured {
        title: "Owners of blocks, and a master of many workers".to_owned(),
        source: "generated workers of 1, 2 and 4 TiB, keys, and datasets of sparse files".to_owned(),
        runs: bench.runs,
        notes: vec![
            "Times are CPU time of one thread. The difference of shares is the standard deviation over all workers, without the noise of the sample, or the difference of all workers of a weight, if that is larger.".to_owned(),
            "The hash of clusters that were made before, which scores all workers, stands beside.".to_owned(),
            format!("The master's part: a real master, and workers that are made up, of which each tells that it holds its share of all blocks of each dataset. With 1,000 workers {} datasets of {DATASET_BLOCKS} blocks each, with 10,000 workers {}; 500 of them have a billion blocks.", DATASETS[0].1, DATASETS[1].1),
        ],
        table,
    })
}

fn measure(bench: &Bench, table: &mut Table, workers: usize, promised: bool) -> anyhow::Result<()> {
    let mut note = |what: &str, unit, value, limit| {
        let what = format!("{workers} workers: {what}");
        table.state(SYSTEM, &what, unit, value, limit);
    };
    // First, since memory that was given back to the allocator would be taken again.
    let resident = || memory(std::process::id()).1;
    let start = resident();
    let maps = (0..MAPS)
        .map(|_| cluster(Hashing::Seats, workers))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let listed = resident();
    for map in &maps {
        black_box(map.owner(&key(0)));
    }
    let tables = resident().saturating_sub(listed) as f64 / MAPS as f64;
    let lists = listed.saturating_sub(start) as f64 / MAPS as f64;
    for (what, bytes) in [
        ("memory of the list", lists),
        ("memory of the seats", tables),
    ] {
        note(what, Unit::Mebibytes, bytes / MIB, None);
    }
    let map = cluster(Hashing::Seats, workers)?;
    let before = cluster(Hashing::Scored, workers)?;
    let lookups = bench.scaled(2_000_000);
    for _ in 0..bench.runs {
        for (what, owners) in [("owner of a block", 1), ("owner and next owner", 2)] {
            let taken = look_up(&map, owners, lookups);
            let most = promised.then_some(MOST_MICROSECONDS);
            note(what, Unit::Microseconds, taken, most);
        }
        let scored = look_up(&before, 2, lookups / workers as u64 / 4);
        let what = "owner and next owner, all scored";
        note(what, Unit::Microseconds, scored, None);
        let update = first_look_up(workers)?;
        let what = "first look-up with a new map";
        note(what, Unit::Milliseconds, update, None);
        let update = update_of_a_client(&map)?;
        let what = "a client's new map, from the message to the first look-up";
        note(what, Unit::Milliseconds, update, None);
    }
    let differs = difference(&map, bench.scaled(workers as u64 * 2000));
    let what = "difference of shares from the weights";
    note(what, Unit::Ratio, differs, Some(MOST_OFF));
    let fewer = cluster(Hashing::Seats, workers - CHANGED)?;
    let moved = moved(&fewer, &map, lookups);
    let what = format!("bytes moved when {CHANGED} join or leave, of the least possible");
    note(&what, Unit::Ratio, moved, Some(MOST_MOVED));
    Ok(())
}

fn note(table: &mut Table, workers: usize, found: &Found) {
    let mut note = |what: &str, unit, value, limit| {
        let what = format!("{workers} workers: {what}");
        table.state(SYSTEM, &what, unit, value, limit);
    };
    for (what, bytes, most) in [
        ("first heartbeat", found.first_sent, None),
        ("its answer, with the map", found.first_answer, None),
        (
            "heartbeat when nothing has changed",
            found.quiet_sent,
            Some(MOST_QUIET),
        ),
        ("its answer", found.quiet_answer, Some(MOST_QUIET)),
        ("answer after a worker came", found.joined_answer, None),
        (
            "heartbeat with the reads of 500 datasets",
            found.all_reads_sent,
            None,
        ),
        (
            "the next, when one of them was read",
            found.one_read_sent,
            Some(MOST_QUIET),
        ),
        ("answer of `where`", found.located, None),
    ] {
        note(what, Unit::Bytes, bytes as f64, most);
    }
    let what = "CPU of the master for a heartbeat when nothing has changed";
    note(what, Unit::Microseconds, found.heartbeat, None);
    let what = "memory of the master for each dataset";
    note(what, Unit::Mebibytes, found.per_dataset / MIB, None);
    let what = "the same for each of its blocks";
    note(what, Unit::Bytes, found.per_block, None);
    let what = "`where`, counted anew";
    note(what, Unit::Milliseconds, found.first_question, None);
    let what = "`where`, asked again within a second";
    note(what, Unit::Microseconds, found.question, None);
    let what = "CPU of the master for that";
    note(what, Unit::Microseconds, found.question_cpu, None);
}

fn cluster(hashing: Hashing, workers: usize) -> anyhow::Result<ClusterMap> {
    let workers = (0..workers).map(|number| {
        Ok(WorkerInfo {
            id: id(number).parse()?,
            data_address: format!("{}:7002", host(number)),
            control_address: format!("{}:7001", host(number)),
            node: format!("node-{number}").parse()?,
            location: Location::default(),
            local_socket: "/run/weir/worker.sock".to_owned(),
            weight: weight(number),
            cordoned_weight: 0,
        })
    });
    let workers = workers.collect::<anyhow::Result<_>>()?;
    Ok(ClusterMap::new(1, hashing, workers))
}

fn id(number: usize) -> String {
    format!("worker-{number}.cache.example")
}

fn host(number: usize) -> String {
    format!("10.0.{}.{}", number / 250, number % 250)
}

fn weight(number: usize) -> u64 {
    WEIGHTS[number % WEIGHTS.len()]
}

fn key(number: u64) -> BlockKey {
    let mut key = [0; 16];
    key.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
    BlockKey(key)
}

/// CPU time of this thread, in seconds.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Time to look the owners of a block up, in µs.
fn look_up(map: &ClusterMap, owners: usize, lookups: u64) -> f64 {
    let keys: Vec<_> = (0..4096).map(key).collect();
    black_box(map.owner(&keys[0]));
    let start = cpu_seconds();
    let lookups = lookups.max(1);
    for (_, key) in (0..lookups).zip(keys.iter().cycle()) {
        black_box(map.owners(key, owners));
    }
    (cpu_seconds() - start) * 1e6 / lookups as f64
}

/// Time of the first look-up with a map that has just come, in ms.
fn first_look_up(workers: usize) -> anyhow::Result<f64> {
    let map = cluster(Hashing::Seats, workers)?;
    let start = cpu_seconds();
    black_box(map.owner(&key(0)));
    Ok((cpu_seconds() - start) * 1e3)
}

/// Time that a client takes for a map that has come as a message, to its first look-up, in ms.
fn update_of_a_client(map: &ClusterMap) -> anyhow::Result<f64> {
    let worker = |worker: &WorkerInfo| v1::WorkerInfo {
        id: worker.id.to_string(),
        data_address: worker.data_address.clone(),
        control_address: worker.control_address.clone(),
        node: worker.node.to_string(),
        local_socket: worker.local_socket.clone(),
        weight: worker.weight,
        ..v1::WorkerInfo::default()
    };
    let message = v1::ClusterMap {
        epoch: map.epoch(),
        workers: map.workers().iter().map(worker).collect(),
        hashing: map.hashing().number(),
    };
    let message = message.encode_to_vec();
    let start = cpu_seconds();
    let map = cluster_map(v1::ClusterMap::decode(&message[..])?)?;
    black_box(map.owner(&key(0)));
    Ok((cpu_seconds() - start) * 1e3)
}

/// How far shares are from what the weights ask for, as a part of that: the standard deviation over the workers without
/// the sample's noise, or the difference of all workers of a weight, if that is larger.
fn difference(map: &ClusterMap, blocks: u64) -> f64 {
    let mut owned: HashMap<&str, f64> = HashMap::new();
    for number in 0..blocks {
        if let Some(owner) = map.owner(&key(number)) {
            *owned.entry(owner.id.as_str()).or_default() += 1.0;
        }
    }
    let total: u64 = map.workers().iter().map(|worker| worker.weight).sum();
    let mut variance = 0.0;
    let mut classes: HashMap<u64, (f64, f64)> = HashMap::new();
    for worker in map.workers() {
        let expected = worker.weight as f64 / total as f64 * blocks as f64;
        let owned = owned.get(worker.id.as_str()).copied().unwrap_or(0.0);
        variance += (owned / expected - 1.0).powi(2) - 1.0 / expected;
        let class = classes.entry(worker.weight).or_default();
        *class = (class.0 + owned, class.1 + expected);
    }
    let spread = (variance / map.workers().len() as f64).max(0.0).sqrt();
    let classes = classes
        .values()
        .map(|(owned, expected)| (owned / expected - 1.0).abs());
    classes.fold(spread, f64::max)
}

/// Bytes that have another owner in another map, relative to the least that must: what is owned by those that are in only
/// one of them.
fn moved(one: &ClusterMap, other: &ClusterMap, blocks: u64) -> f64 {
    let weight = |map: &ClusterMap| map.workers().iter().map(|w| w.weight as f64).sum::<f64>();
    let (least, most) = (
        weight(one).min(weight(other)),
        weight(one).max(weight(other)),
    );
    let moves = (0..blocks).map(key).filter(|key| {
        let owners = (one.owner(key), other.owner(key));
        owners.0.map(|worker| &worker.id) != owners.1.map(|worker| &worker.id)
    });
    moves.count() as f64 / blocks as f64 / (1.0 - least / most)
}
