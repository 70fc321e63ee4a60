//! The rules of the SSD tier, one by one.

mod damage;
mod opening;
mod reading;
mod room;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tempfile::TempDir;
use weir_core::BlockKey;

use super::aligned::BufferPool;
use super::disk::{Disk, LocalDisk};
use super::faulty::{FaultyDisk, Torn};
use super::store::{Admission, Clock, SegmentStore};
use super::{MAX_BLOCK_LEN, ReadFault, SegmentConfig, SegmentError};

const SEGMENT: u64 = 1 << 20;
const CAPACITY: u64 = 8 << 20;
const IDLE: Duration = Duration::from_mins(1);

fn key(i: u32) -> BlockKey {
    let mut key = [i.to_le_bytes()[0]; 16];
    key[8..12].copy_from_slice(&i.to_le_bytes());
    BlockKey(key)
}

fn data(i: u32, len: usize) -> Bytes {
    (0..len)
        .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ (i as u8))
        .collect()
}

/// A directory, a clock that stands still until told, and a store over them.
struct Bed {
    dir: TempDir,
    seconds: Arc<AtomicU64>,
    disk: Arc<dyn Disk>,
}

impl Bed {
    fn new() -> Self {
        Self::on(Arc::new(LocalDisk))
    }

    fn on(disk: Arc<dyn Disk>) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            seconds: Arc::default(),
            disk,
        }
    }

    fn config(&self) -> SegmentConfig {
        SegmentConfig {
            segment_size: SEGMENT,
            idle_after: IDLE,
            ..SegmentConfig::new(self.dir.path(), CAPACITY)
        }
    }

    fn try_open(&self, config: SegmentConfig) -> Result<SegmentStore, SegmentError> {
        let seconds = Arc::clone(&self.seconds);
        let clock: Clock = Arc::new(move || Duration::from_secs(seconds.load(Relaxed)));
        SegmentStore::open_with(config, clock, Arc::clone(&self.disk))
    }

    fn open(&self) -> SegmentStore {
        self.try_open(self.config()).unwrap()
    }

    fn pass(&self, time: Duration) {
        self.seconds.fetch_add(time.as_secs(), Relaxed);
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "segment"))
            .collect();
        paths.sort();
        paths
    }
}

fn store_blocks(store: &SegmentStore, range: std::ops::Range<u32>, len: usize) {
    for i in range {
        assert_eq!(store.put(key(i), &data(i, len)).unwrap(), Admission::Stored);
    }
}

fn holds(store: &SegmentStore, i: u32, len: usize) -> bool {
    let read = store.read(&key(i), 0..u32::MAX).unwrap();
    assert!(
        read.as_ref().is_none_or(|bytes| *bytes == data(i, len)),
        "wrong bytes of {i}"
    );
    read.is_some()
}

fn fill_up(store: &SegmentStore, len: usize) -> u32 {
    (0..10_000)
        .find(|i| store.put(key(*i), &data(*i, len)).unwrap() == Admission::Full)
        .unwrap()
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}
