//! Threads that read and compare while a test does something to the system.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::fs::{Advice, fadvise};

/// Longest wait for readers to end.
const END_DEADLINE: Duration = Duration::from_mins(1);

/// Readers of random files.
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<ReadersReport>>,
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
        let threads = (0..count)
            .map(|_| {
                let (root, files, stop) = (root.to_owned(), files.clone(), stop.clone());
                std::thread::spawn(move || read_until(&root, &files, &stop))
            })
            .collect();
        Self { stop, threads }
    }

    /// Ends the readers. Panics when one of them hangs.
    #[track_caller]
    pub fn finish(self) -> ReadersReport {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + END_DEADLINE;
        let mut all = ReadersReport::default();
        for thread in self.threads {
            while !thread.is_finished() {
                assert!(Instant::now() < deadline, "a reader hangs");
                std::thread::sleep(Duration::from_millis(10));
            }
            let report = thread.join().unwrap();
            all.reads += report.reads;
            all.longest = all.longest.max(report.longest);
            all.errors.extend(report.errors);
        }
        all
    }
}

fn read_until(root: &Path, files: &BTreeMap<String, Vec<u8>>, stop: &AtomicBool) -> ReadersReport {
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
