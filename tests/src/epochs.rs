//! Readers as jobs have them: each reads all files in an order of its own, compares them, and begins anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::readers::{ReadersReport, read_evicted};
use crate::wait_until;

/// Longest wait for readers to end, and to read an epoch.
const DEADLINE: Duration = Duration::from_mins(2);
/// Reads that take longer are told one by one.
const SLOW: Duration = Duration::from_millis(200);

/// Readers of several mounts.
pub struct Epochs {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    reads: AtomicUsize,
    bytes: AtomicU64,
    /// Epochs that each reader has read.
    epochs: Vec<AtomicUsize>,
    slow: Mutex<Vec<SlowRead>>,
    report: Mutex<ReadersReport>,
}

/// A file that took long.
#[derive(Clone, Debug)]
pub struct SlowRead {
    /// When it was opened.
    pub began: Instant,
    /// How long that took.
    pub took: Duration,
    /// Its path.
    pub path: PathBuf,
}

impl Epochs {
    /// Starts `count` readers of each mount's files, each in an order that follows from `seed`.
    pub fn start(
        mounts: &[(PathBuf, Arc<BTreeMap<String, Vec<u8>>>)],
        count: usize,
        seed: u64,
    ) -> Self {
        let readers = mounts.len() * count;
        let shared = Arc::new(Shared {
            epochs: (0..readers).map(|_| AtomicUsize::new(0)).collect(),
            ..Shared::default()
        });
        let threads = (0..readers).map(|number| {
            let ((root, files), shared) = (mounts[number % mounts.len()].clone(), shared.clone());
            let random = SmallRng::seed_from_u64(seed.wrapping_add(number as u64));
            std::thread::spawn(move || read_epochs(&root, &files, number, random, &shared))
        });
        Self {
            threads: threads.collect(),
            shared,
        }
    }

    /// Waits until each reader has read all files, from the first one on.
    #[track_caller]
    pub fn read_an_epoch(&self) {
        let epochs = self.shared.epochs.iter();
        // What is under way does not count.
        let goals: Vec<usize> = epochs
            .map(|read| read.load(Ordering::Relaxed) + 2)
            .collect();
        wait_until("each reader reads an epoch", DEADLINE, || {
            let mut readers = self.shared.epochs.iter().zip(&goals);
            readers.all(|(read, goal)| read.load(Ordering::Relaxed) >= *goal)
        });
    }

    /// Bytes that were read so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Reads that took long and have ended since this was asked last.
    pub fn slow(&self) -> Vec<SlowRead> {
        std::mem::take(&mut self.shared.slow.lock())
    }

    /// Ends the readers. Panics when one of them hangs.
    #[track_caller]
    pub fn finish(self) -> ReadersReport {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            wait_until("no reader hangs", DEADLINE, || thread.is_finished());
            thread.join().unwrap();
        }
        let mut report = std::mem::take(&mut *self.shared.report.lock());
        report.reads = self.shared.reads.load(Ordering::Relaxed);
        report
    }
}

fn read_epochs(
    root: &Path,
    files: &BTreeMap<String, Vec<u8>>,
    number: usize,
    mut random: SmallRng,
    shared: &Shared,
) {
    let mut names: Vec<&String> = files.keys().collect();
    loop {
        names.shuffle(&mut random);
        for name in &names {
            if shared.stop.load(Ordering::Relaxed) {
                return;
            }
            read(&root.join(name), &files[*name], shared);
        }
        shared.epochs[number].fetch_add(1, Ordering::Relaxed);
    }
}

fn read(path: &Path, content: &[u8], shared: &Shared) {
    let began = Instant::now();
    let outcome = read_evicted(path);
    let took = began.elapsed();
    let error = match outcome {
        Ok(bytes) if bytes == content => None,
        Ok(bytes) => Some(format!("{}: {} wrong bytes", path.display(), bytes.len())),
        Err(error) => Some(format!("{}: {error}", path.display())),
    };
    shared.reads.fetch_add(1, Ordering::Relaxed);
    shared
        .bytes
        .fetch_add(content.len() as u64, Ordering::Relaxed);
    if took >= SLOW {
        let path = path.to_owned();
        shared.slow.lock().push(SlowRead { began, took, path });
    }
    let mut report = shared.report.lock();
    report.longest = report.longest.max(took);
    report.errors.extend(error);
}
