//! One segment file in memory: its descriptor, how much of it is live, when it was last read.

use std::fs::{self, File, Metadata};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::record::record_len;

/// The file name's ending of a segment.
pub(super) const EXTENSION: &str = "segment";

/// The path of segment `id`.
pub(super) fn path_of(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.{EXTENSION}"))
}

/// The number of the next segment after one of number `last`. Each segment's number is in the headers of its records, and its
/// lower half is random, so that nobody can make an object whose bytes look like a record of the segment that holds it.
pub(super) fn next_id(last: u64) -> u64 {
    let random = RandomState::new().build_hasher().finish() as u32;
    let next = last.saturating_add(1 << 32);
    (next & !u64::from(u32::MAX)) | u64::from(random)
}

/// The segment that a file in the directory holds, if it is one.
pub(super) fn id_of(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    let named = path.extension()? == EXTENSION && stem.len() == 16;
    named.then(|| u64::from_str_radix(stem, 16).ok())?
}

/// A segment file. Slots of the index share it, and so does every descriptor that was handed out.
#[derive(Debug)]
pub(super) struct Segment {
    /// Grows with each new segment, so a higher one holds newer records.
    pub(super) id: u64,
    pub(super) path: PathBuf,
    /// Open for reading only.
    pub(super) file: Arc<File>,
    pub(super) direct: bool,
    /// Device and inode of `file`.
    identity: (u64, u64),
    /// What the file counts against the capacity, in bytes: its length once sealed, and the length it would have if
    /// it were sealed now before.
    pub(super) charged: AtomicU64,
    /// A file shorter than this lost something.
    pub(super) written_len: AtomicU64,
    /// No more records are appended.
    pub(super) sealed: AtomicBool,
    /// Bytes of all records, and of those that the index refers to.
    record_bytes: AtomicU64,
    live_bytes: AtomicU64,
    live_blocks: AtomicU64,
    /// The clock's time of the last read or write, in milliseconds.
    used_at: AtomicU64,
}

impl Segment {
    pub(super) fn new(
        id: u64,
        path: PathBuf,
        file: Arc<File>,
        direct: bool,
        metadata: &Metadata,
        now: Duration,
    ) -> Self {
        Self {
            id,
            path,
            file,
            direct,
            identity: (metadata.dev(), metadata.ino()),
            charged: AtomicU64::new(0),
            written_len: AtomicU64::new(0),
            sealed: AtomicBool::new(false),
            record_bytes: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            live_blocks: AtomicU64::new(0),
            used_at: AtomicU64::new(now.as_millis() as u64),
        }
    }

    /// Counts a record of a block of `len` bytes that the index is about to refer to.
    pub(super) fn add_live(&self, len: u32) {
        self.live_bytes.fetch_add(record_len(len), Relaxed);
        self.live_blocks.fetch_add(1, Relaxed);
    }

    /// Counts a record that the index no longer refers to.
    pub(super) fn remove_live(&self, len: u32) {
        self.live_bytes.fetch_sub(record_len(len), Relaxed);
        self.live_blocks.fetch_sub(1, Relaxed);
    }

    /// Counts records that were written, live or not.
    pub(super) fn add_records(&self, bytes: u64) {
        self.record_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Relaxed)
    }

    pub(super) fn live_blocks(&self) -> u64 {
        self.live_blocks.load(Relaxed)
    }

    /// Bytes of records that nothing refers to.
    pub(super) fn dead_bytes(&self) -> u64 {
        self.record_bytes
            .load(Relaxed)
            .saturating_sub(self.live_bytes())
    }

    /// True if more than half of what was written is dead.
    pub(super) fn is_mostly_dead(&self) -> bool {
        self.dead_bytes() * 2 > self.record_bytes.load(Relaxed)
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Relaxed)
    }

    pub(super) fn charged(&self) -> u64 {
        self.charged.load(Relaxed)
    }

    /// Notes that something in the segment is in use.
    pub(super) fn touch(&self, now: Duration) {
        let now = now.as_millis() as u64;
        // Seldom true, so that readers on many cores do not pass the counter's cache line around.
        if self.used_at.load(Relaxed) < now {
            self.used_at.fetch_max(now, Relaxed);
        }
    }

    /// How long nothing in the segment was used.
    pub(super) fn idle_for(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_millis(self.used_at.load(Relaxed)))
    }

    /// What happened to the file behind the store's back, if anything.
    pub(super) fn damage(&self) -> Option<&'static str> {
        // Before the file's length is asked for: it only grows.
        let least = self.written_len.load(Relaxed);
        match self.file.metadata() {
            Ok(held) if held.nlink() == 0 => return Some("it was deleted"),
            Ok(held) if held.len() < least => return Some("it was cut short"),
            Ok(_) => {}
            Err(_) => return Some("it cannot be examined"),
        }
        match fs::metadata(&self.path) {
            Ok(named) if (named.dev(), named.ino()) == self.identity => None,
            Ok(_) => Some("another file is in its place"),
            Err(_) => Some("its name is gone"),
        }
    }
}
