//! Fills of an empty cache beside a raw client that gets the same objects from the same server.

use std::path::PathBuf;
use std::time::Instant;

use crate::kernel::drop_caches;
use crate::readers::{Pass, get_objects, read_files};
use crate::system::{DATASET, System};
use crate::usage::{Meter, Usage};

/// Readers of the raw client that `weir warm` is compared with: it fetches many objects at once.
const WARM_THREADS: usize = 16;

/// Where objects are and which are read.
#[derive(Clone, Copy)]
pub struct Objects<'a> {
    /// URL of the server.
    pub endpoint: &'a str,
    /// The bucket.
    pub bucket: &'a str,
    /// The files of the mount, which are the keys of objects.
    pub files: &'a [PathBuf],
}

/// What a fill took beside the raw client.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// The raw client.
    pub raw: Pass,
    /// The system.
    pub own: Pass,
    /// What the system's processes cost.
    pub usage: Usage,
}

/// A raw client: reads all files once, with so many readers, in an order that a seed decides.
pub type RawClient<'a> = dyn Fn(usize, u64) -> anyhow::Result<Pass> + 'a;

/// Reads all files once through a mount whose cache is empty.
pub fn first_epoch(
    objects: Objects<'_>,
    system: &System,
    threads: usize,
    seed: u64,
) -> anyhow::Result<Fill> {
    let raw = |threads, seed| objects.get(threads, seed);
    first_epoch_beside(&raw, objects.files, system, threads, seed)
}

/// As [`first_epoch`], beside another raw client of the same files.
pub fn first_epoch_beside(
    raw: &RawClient<'_>,
    files: &[PathBuf],
    system: &System,
    threads: usize,
    seed: u64,
) -> anyhow::Result<Fill> {
    let raw = twice(raw, threads, seed)?;
    let pids = system.pids()?;
    let before = system.origin_bytes()?;
    let meter = Meter::start(&pids);
    let own = read_files(&system.dir, files, seed + 1, threads)?;
    let usage = meter.stop();
    ensure_fetched(system, before, raw.bytes)?;
    Ok(Fill { raw, own, usage })
}

/// Runs `weir warm` with an empty cache.
pub fn warm_job(objects: Objects<'_>, system: &System, seed: u64) -> anyhow::Result<Fill> {
    warm_job_beside(&|threads, seed| objects.get(threads, seed), system, seed)
}

/// As [`warm_job`], beside another raw client of the same files.
pub fn warm_job_beside(raw: &RawClient<'_>, system: &System, seed: u64) -> anyhow::Result<Fill> {
    let raw = twice(raw, WARM_THREADS, seed)?;
    let pids = system.pids()?;
    let before = system.origin_bytes()?;
    let meter = Meter::start(&pids);
    let started = Instant::now();
    system.weir(&["warm", DATASET, "--wait", "-o", "json"])?;
    let own = Pass {
        seconds: started.elapsed().as_secs_f64(),
        ..raw
    };
    let usage = meter.stop();
    ensure_fetched(system, before, raw.bytes)?;
    Ok(Fill { raw, own, usage })
}

/// Fails when Weir did not have to fetch all the bytes: then its cache was not empty.
fn ensure_fetched(system: &System, before: f64, bytes: u64) -> anyhow::Result<()> {
    let fetched = system.origin_bytes()? - before;
    anyhow::ensure!(
        system.mount().is_none() || fetched >= bytes as f64,
        "{}: only {fetched} bytes of {bytes} came from the origin",
        system.name
    );
    Ok(())
}

impl Objects<'_> {
    fn get(&self, threads: usize, seed: u64) -> anyhow::Result<Pass> {
        get_objects(self.endpoint, self.bucket, self.files, seed, threads)
    }
}

/// The raw client with the kernel's caches dropped but for the server's: what it reads is read once before.
fn twice(raw: &RawClient<'_>, threads: usize, seed: u64) -> anyhow::Result<Pass> {
    drop_caches()?;
    raw(threads, seed)?;
    raw(threads, seed)
}
