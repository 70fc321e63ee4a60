//! Threads that read and compare while a test does something to the system.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::fs::{Advice, fadvise};

use crate::wait_until;

/// Longest wait for readers to end, and for them to get on.
const END_DEADLINE: Duration = Duration::from_mins(1);
const PROGRESS_DEADLINE: Duration = Duration::from_mins(1);
/// Readers of whom none has read a file for so long are stuck.
const STUCK: Duration = Duration::from_millis(200);

/// Readers of random files.
pub struct Readers {
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<ReadersReport>>,
}

/// How far readers have come, all together.
#[derive(Debug, Default)]
struct Progress {
    reads: AtomicUsize,
    errors: AtomicUsize,
}

/// What readers saw.
#[derive(Debug, Default)]
pub struct ReadersReport {
    /// Files that were read whole.
    pub reads: usize,
    /// The longest of them.
    pub longest: Duration,
    /// What went wrong.
    pub errors: Vec<String>,
}

impl Readers {
    /// Starts `count` readers of the files below `root`. Each file is compared with what it must hold.
    pub fn start(root: &Path, files: &Arc<BTreeMap<String, Vec<u8>>>, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Arc::<Progress>::default();
        let threads = (0..count)
            .map(|_| {
                let (root, files, stop) = (root.to_owned(), files.clone(), stop.clone());
                let progress = progress.clone();
                std::thread::spawn(move || read_until(&root, &files, &stop, &progress))
            })
            .collect();
        Self {
            stop,
            progress,
            threads,
        }
    }

    /// Waits until so many more files were read, well or not.
    #[track_caller]
    pub fn read_more(&self, files: usize) {
        let reads = || self.progress.reads.load(Ordering::Relaxed);
        let goal = reads() + files;
        wait_until("the readers get on", PROGRESS_DEADLINE, || reads() >= goal);
    }

    /// Lets them read for so long: what the time is for is to be read in, not to wait for something.
    pub fn read_for(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Waits until a read has failed.
    #[track_caller]
    pub fn wait_for_error(&self) {
        let errors = || self.progress.errors.load(Ordering::Relaxed);
        wait_until("a read fails", PROGRESS_DEADLINE, || errors() > 0);
    }

    /// Waits until no reader gets on.
    #[track_caller]
    pub fn wait_until_stuck(&self) {
        let mut last = (0, Instant::now());
        wait_until("the readers are stuck", PROGRESS_DEADLINE, || {
            let reads = self.progress.reads.load(Ordering::Relaxed);
            if reads != last.0 {
                last = (reads, Instant::now());
            }
            last.1.elapsed() > STUCK
        });
    }

    /// Ends the readers. Panics when one of them hangs.
    #[track_caller]
    pub fn finish(self) -> ReadersReport {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = ReadersReport::default();
        for thread in self.threads {
            wait_until("no reader hangs", END_DEADLINE, || thread.is_finished());
            all.add(thread.join().unwrap());
        }
        all
    }
}

impl ReadersReport {
    /// Takes in what others saw.
    pub fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.longest = self.longest.max(other.longest);
        self.errors.extend(other.errors);
    }
}

fn read_until(
    root: &Path,
    files: &BTreeMap<String, Vec<u8>>,
    stop: &AtomicBool,
    progress: &Progress,
) -> ReadersReport {
    let names: Vec<&String> = files.keys().collect();
    let mut report = ReadersReport::default();
    let mut random = rand::rng();
    while !stop.load(Ordering::Relaxed) {
        let name = names[random.random_range(0..names.len())];
        let path = root.join(name);
        let started = Instant::now();
        match read_evicted(&path) {
            Ok(bytes) if bytes == files[name] => {}
            Ok(bytes) => report
                .errors
                .push(format!("{name}: {} wrong bytes", bytes.len())),
            Err(error) => report.errors.push(format!("{name}: {error}")),
        }
        report.longest = report.longest.max(started.elapsed());
        report.reads += 1;
        progress
            .errors
            .fetch_max(report.errors.len(), Ordering::Relaxed);
        progress.reads.fetch_add(1, Ordering::Relaxed);
    }
    report
}

/// Reads a file after its pages were dropped from the kernel's cache.
pub fn read_evicted(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a part of a file as one who reads here and there: the kernel reads nothing else.
pub fn read_at_random(path: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    fadvise(&file, 0, None, Advice::Random)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Drops the pages of these files from the kernel's cache.
pub fn drop_pages(files: impl IntoIterator<Item = PathBuf>) {
    for path in files {
        fadvise(File::open(path).unwrap(), 0, None, Advice::DontNeed).unwrap();
    }
}
