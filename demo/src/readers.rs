//! Readers: threads that take files from one shuffled list until it is empty.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Context;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::http::Http;

/// What one pass over all files took.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Pass {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

impl Pass {
    /// Files per second.
    pub fn files_per_second(&self) -> f64 {
        self.files as f64 / self.seconds
    }

    /// 10^6 bytes per second.
    pub fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e6
    }
}

/// Reads every item once, in an order that `seed` decides, with `threads` threads. `read` gives the bytes that it
/// read.
pub fn pass<T: Sync, S>(
    items: &[T],
    seed: u64,
    threads: usize,
    start: impl Fn() -> anyhow::Result<S> + Sync,
    read: impl Fn(&mut S, &T) -> anyhow::Result<u64> + Sync,
) -> anyhow::Result<Pass> {
    let mut order: Vec<&T> = items.iter().collect();
    order.shuffle(&mut SmallRng::seed_from_u64(seed));
    let next = AtomicUsize::new(0);
    let bytes = AtomicU64::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    let mut state = start()?;
                    while let Some(item) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        bytes.fetch_add(read(&mut state, item)?, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => anyhow::bail!("a reader panicked"),
            })
    })?;
    Ok(Pass {
        files: items.len() as u64,
        bytes: bytes.into_inner(),
        seconds: started.elapsed().as_secs_f64().max(1e-9),
    })
}

/// What stays as it is in the path of a URL.
const KEEP: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// Size of a reader's buffer.
const BUFFER: usize = 1 << 20;

/// Where large buffers of malloc lie behind a page's start, and with them those of most programs.
const MALLOC_OFFSET: usize = 16;
const PAGE: usize = 4096;

/// A reader's buffer at a chosen distance from a page's start: the kernel copies faster to aligned memory.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new(offset: usize) -> Self {
        let memory = vec![0; BUFFER + 2 * PAGE];
        let start = memory.as_ptr().align_offset(PAGE) + offset;
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BUFFER]
    }
}

/// Reads files below `root` whole, into buffers as malloc gives them.
pub fn read_files(
    root: &Path,
    files: &[PathBuf],
    seed: u64,
    threads: usize,
) -> anyhow::Result<Pass> {
    read_files_at(root, files, seed, threads, MALLOC_OFFSET)
}

/// As [`read_files`], into buffers that lie `offset` bytes behind a page's start.
pub fn read_files_at(
    root: &Path,
    files: &[PathBuf],
    seed: u64,
    threads: usize,
    offset: usize,
) -> anyhow::Result<Pass> {
    pass(
        files,
        seed,
        threads,
        || Ok(Buffer::new(offset)),
        |buffer, file| read_file(&root.join(file), buffer.bytes(), |_| {}),
    )
}

/// Reads one file in pieces of at most the buffer's length.
fn read_file(path: &Path, buffer: &mut [u8], mut see: impl FnMut(&[u8])) -> anyhow::Result<u64> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut total = 0;
    loop {
        let read = file
            .read(buffer)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok(total);
        }
        see(&buffer[..read]);
        total += read as u64;
    }
}

/// As [`read_files`], and compares every byte with the file of the same path below `source`.
pub fn compare_files(
    root: &Path,
    source: &Path,
    files: &[PathBuf],
    seed: u64,
    threads: usize,
) -> anyhow::Result<Pass> {
    let buffers = || Ok((vec![0; BUFFER], vec![0; BUFFER]));
    pass(files, seed, threads, buffers, |(ours, theirs), file| {
        let mut expected = File::open(source.join(file))?;
        let mut wrong = None;
        let mut at = 0;
        let bytes = read_file(&root.join(file), ours, |piece| {
            let theirs = &mut theirs[..piece.len()];
            if expected.read_exact(theirs).is_err() || theirs != piece {
                wrong.get_or_insert(at);
            }
            at += piece.len();
        })?;
        if let Some(at) = wrong {
            anyhow::bail!("{}: wrong bytes behind offset {at}", file.display());
        }
        let length = expected.metadata()?.len();
        anyhow::ensure!(
            bytes == length,
            "{}: {bytes} bytes of {length}",
            file.display()
        );
        Ok(bytes)
    })
}

/// Reads objects with plain GET requests over kept-alive connections, one for each thread.
pub fn get_objects(
    endpoint: &str,
    bucket: &str,
    files: &[PathBuf],
    seed: u64,
    threads: usize,
) -> anyhow::Result<Pass> {
    let client = || Ok((Http::connect(endpoint)?, vec![0; BUFFER]));
    pass(files, seed, threads, client, |(http, buffer), file| {
        http.get(&object_path(bucket, file), buffer, |_| {})
    })
}

/// Path of an object in a URL.
pub fn object_path(bucket: &str, file: &Path) -> String {
    let key = percent_encode(file.as_os_str().as_encoded_bytes(), KEEP);
    format!("/{bucket}/{key}")
}

/// Reads a whole file from `start` to its end and then from its beginning.
pub fn read_from(path: &Path, start: u64, size: u64) -> anyhow::Result<()> {
    let file = File::open(path)?;
    let mut buffer = vec![0; BUFFER];
    for (mut offset, end) in [(start, size), (0, start)] {
        while offset < end {
            let most = (end - offset).min(BUFFER as u64) as usize;
            let read = file.read_at(&mut buffer[..most], offset)?;
            anyhow::ensure!(read > 0, "{} ends at {offset}", path.display());
            offset += read as u64;
        }
    }
    Ok(())
}
