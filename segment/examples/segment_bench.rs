//! Measures the SSD tier: writing, random reads from four threads, and opening 20,000 blocks of 100 KiB.
//!
//! `cargo run --release -p weir-segment --example segment_bench [DIR]`; DIR should lie on the device to measure
//! and have 2.5 GiB free. The page cache plays no part where the file system takes direct I/O.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use weir_core::BlockKey;
use weir_segment::{SegmentConfig, SegmentStore};

const BLOCKS: u64 = 20_000;
const BLOCK: usize = 100 << 10;
const SMALL_BLOCKS: u64 = 50_000;
const SMALL: usize = 4 << 10;
const THREADS: u64 = 4;
const READS: u64 = 5_000;

fn key(i: u64) -> BlockKey {
    // Spreads like the hash that real keys are.
    let a = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&a.rotate_left(29).to_le_bytes());
    key[8..].copy_from_slice(&i.to_le_bytes());
    BlockKey(key)
}

fn mib_per_second(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / took.as_secs_f64()
}

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    let dir = parent.join(format!("segment-bench-{}", std::process::id()));
    let config = || SegmentConfig::new(&dir, 16 << 30);
    let result = run(&config);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn run(config: &dyn Fn() -> SegmentConfig) -> Result<(), Box<dyn Error>> {
    let data: Vec<u8> = (0..BLOCK).map(|i| (i * 31 % 251) as u8).collect();
    let store = SegmentStore::open(config())?;

    let start = Instant::now();
    for i in 0..BLOCKS {
        store.put(key(i), &data)?;
    }
    let rate = mib_per_second(BLOCKS * BLOCK as u64, start.elapsed());
    println!("write, 100 KiB one at a time: {rate:8.0} MiB/s");

    let start = Instant::now();
    let mut times = thread::scope(|scope| {
        let readers: Vec<_> = (0..THREADS)
            .map(|t| {
                scope.spawn({
                    let store = &store;
                    move || read_some(store, t)
                })
            })
            .collect();
        readers
            .into_iter()
            .flat_map(|r| r.join().unwrap_or_default())
            .collect::<Vec<_>>()
    });
    let took = start.elapsed();
    times.sort();
    let slowest = times.last().copied().unwrap_or_default();
    let rate = mib_per_second(times.len() as u64 * BLOCK as u64, took);
    println!(
        "read, 100 KiB at random, {THREADS} threads: median {:?}, 99% {:?}, slowest {slowest:?}, {rate:.0} MiB/s",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
    );
    // The first opening finds what a death would have left: the last segment without a footer, its journal beside it.
    let crashed = copy_unsealed(&config().dir)?;
    drop(store);
    for how in ["died", "closed", "closed"] {
        if how == "died" {
            crashed.restore()?;
        }
        let start = Instant::now();
        let store = SegmentStore::open(config())?;
        let took = start.elapsed();
        println!("open, {} blocks, {how}: {took:?}", store.stats().blocks);
    }

    let store = SegmentStore::open(config())?;
    let used = store.stats().used_bytes;
    let start = Instant::now();
    for first in (0..SMALL_BLOCKS).step_by(256) {
        let batch: Vec<_> = (first..(first + 256).min(SMALL_BLOCKS))
            .map(|i| (key(BLOCKS + i), &data[..SMALL]))
            .collect();
        store.put_many(&batch)?;
    }
    let took = start.elapsed();
    let rate = mib_per_second(SMALL_BLOCKS * SMALL as u64, took);
    let each = (store.stats().used_bytes - used) / SMALL_BLOCKS;
    println!("write, 4 KiB in batches of 256: {rate:8.0} MiB/s, {each} bytes of disk each");
    Ok(())
}

/// The last segment as it was before it was sealed.
struct Unsealed {
    segment: PathBuf,
    len: u64,
    journal: Vec<u8>,
}

fn copy_unsealed(dir: &Path) -> std::io::Result<Unsealed> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|e| e == "segment"));
    let segment = paths.into_iter().max().unwrap_or_default();
    let len = std::fs::metadata(&segment)?.len();
    let journal = std::fs::read(segment.with_extension("journal"))?;
    Ok(Unsealed {
        segment,
        len,
        journal,
    })
}

impl Unsealed {
    fn restore(&self) -> std::io::Result<()> {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&self.segment)?;
        file.set_len(self.len)?;
        std::fs::write(self.segment.with_extension("journal"), &self.journal)
    }
}

fn read_some(store: &SegmentStore, thread: u64) -> Vec<Duration> {
    let mut state = thread + 1;
    let mut times = Vec::with_capacity(READS as usize);
    for _ in 0..READS {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let start = Instant::now();
        let read = store.read(&key((state >> 33) % BLOCKS), 0..BLOCK as u32);
        times.push(start.elapsed());
        assert_eq!(read.ok().flatten().map_or(0, |b| b.len()), BLOCK);
    }
    times
}
