//! The store itself: what a worker calls.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use weir_core::{BlockKey, ByteSize};

use super::aligned::{BufferPool, PAGE};
use super::appender::{Appender, Room, Staged, WRITE_MAX, batches};
use super::config::SegmentConfig;
use super::data::BlockData;
use super::disk::{Disk, LocalDisk};
use super::error::SegmentError;
use super::file::Segment;
use super::index::{Index, Slot};
use super::lock::DirLock;
use super::record::{Checksums, MAX_BLOCK_LEN, record_len};
use super::recover;
use super::removed;
use super::stats::{Counters, SegmentStats, count};

/// Most bytes of ordinary read buffers that are kept for reuse.
const POOL_BYTES: usize = 8 << 20;

/// Time since some fixed moment; must not run backwards.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What became of a block that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It was written.
    Stored,
    /// It was there.
    AlreadyStored,
    /// There is no room, and everything that is held is in use; or there was none a moment ago, or none on the device.
    Full,
}

/// Immutable blocks on local disk. See the [module](super) for how and what it promises.
///
/// All operations block on the disk, so an asynchronous caller runs them on threads of their own. Any number of
/// threads may use one store; reads do not wait for writes. Each segment holds a descriptor: a store of terabytes
/// needs a limit of open files in the tens of thousands.
///
/// ```
/// use weir_core::BlockKey;
/// use weir_segment::{Admission, SegmentConfig, SegmentStore};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dir = tempfile::tempdir()?;
/// let store = SegmentStore::open(SegmentConfig::new(dir.path(), 64 << 20))?;
/// let key = BlockKey([7; 16]);
/// assert_eq!(store.put(key, b"some bytes")?, Admission::Stored);
/// assert_eq!(store.read(&key, 5..10)?.as_deref(), Some(&b"bytes"[..]));
/// # Ok(())
/// # }
/// ```
pub struct SegmentStore {
    pub(super) dir: PathBuf,
    pub(super) capacity: u64,
    /// What of the capacity may be used now.
    limit: AtomicU64,
    pub(super) segment_bytes: u64,
    pub(super) batch_bytes: u64,
    pub(super) idle_after: Duration,
    pub(super) disk: Arc<dyn Disk>,
    clock: Clock,
    pub(super) pool: Arc<BufferPool>,
    pub(super) index: Index,
    /// All segment files, the one being written included.
    pub(super) segments: Mutex<BTreeMap<u64, Arc<Segment>>>,
    /// Held for writing and for deleting files; taken before any other lock.
    pub(super) appender: Mutex<Appender>,
    used: AtomicU64,
    /// Until when blocks of a length are refused, in milliseconds of the clock, and from which length on. Changed only
    /// under the appender's lock.
    full_until: AtomicU64,
    full_from: AtomicU32,
    pub(super) counters: Counters,
    said_buffered: AtomicBool,
    /// `None` once the directory belongs to another process.
    pub(super) lock: Mutex<Option<DirLock>>,
}

impl std::fmt::Debug for SegmentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentStore")
            .field("dir", &self.dir)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl SegmentStore {
    /// Opens a directory, creates it if needed, and recovers the blocks in it.
    ///
    /// # Errors
    /// [`SegmentError::Locked`] if another process uses it, [`SegmentError::Capacity`] if the capacity is too
    /// small, [`SegmentError::Io`] if the directory or one of its files cannot be opened.
    pub fn open(config: SegmentConfig) -> Result<Self, SegmentError> {
        let start = Instant::now();
        let clock: Clock = Arc::new(move || start.elapsed());
        Self::open_with(config, clock, Arc::new(LocalDisk))
    }

    /// As [`SegmentStore::open`], with a clock and a disk of the caller's.
    pub fn open_with(
        config: SegmentConfig,
        clock: Clock,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, SegmentError> {
        let segment_bytes = config.segment_bytes()?;
        let lock = DirLock::acquire(&config.dir)?;
        let pool = BufferPool::new(POOL_BYTES);
        let found = recover::recover(&*disk, &config.dir, clock(), &pool)?;
        let store = Self {
            capacity: config.capacity,
            limit: AtomicU64::new(config.capacity),
            segment_bytes,
            batch_bytes: WRITE_MAX.min(segment_bytes / 2),
            idle_after: config.idle_after,
            disk,
            clock,
            pool,
            index: Index::new(),
            segments: Mutex::default(),
            appender: Mutex::new(Appender::new(found.next_id)),
            used: AtomicU64::new(0),
            full_until: AtomicU64::new(0),
            full_from: AtomicU32::new(0),
            counters: Counters::default(),
            said_buffered: AtomicBool::new(false),
            lock: Mutex::new(Some(lock)),
            dir: config.dir,
        };
        store.adopt(found);
        Ok(store)
    }

    /// Takes over recovered segments, older ones first, so that of two records of a block the newer wins.
    fn adopt(&self, found: recover::Recovered) {
        count(&self.counters.torn_records, found.torn_records);
        count(&self.counters.lost_segments, found.lost_segments);
        if found.lost_segments > 0 {
            tracing::warn!(
                dir = %self.dir.display(), files = found.lost_segments,
                "cache files that were damaged, or of an earlier version, were deleted; their blocks are fetched again"
            );
        }
        if found.newer_segments > 0 {
            tracing::warn!(
                dir = %self.dir.display(), files = found.newer_segments, bytes = %ByteSize(found.newer_bytes),
                "cache files of a newer version of Weir are left alone, and take their room: start that version again, or delete them"
            );
        }
        self.used.fetch_add(found.newer_bytes, Relaxed);
        let mut app = self.appender.lock();
        let mut superseded = Vec::new();
        for f in found.segments {
            let segment = Arc::new(f.segment);
            self.note_buffered(segment.direct);
            segment.add_records(f.records.iter().map(|r| record_len(r.len)).sum());
            self.used.fetch_add(segment.charged(), Relaxed);
            self.segments
                .lock()
                .insert(segment.id, Arc::clone(&segment));
            for record in f.records.iter().filter(|r| !f.removed.contains(&r.unit)) {
                let older = self.index.insert(record.key, Slot::new(&segment, record));
                superseded.extend(older);
            }
        }
        // Death between a compaction's copy and its deletion leaves a block twice. Were the older record not noted,
        // it would be back after the newer one is removed.
        self.bury_all(&mut app, superseded);
        let all: Vec<_> = self.segments.lock().values().cloned().collect();
        for segment in all {
            // The capacity may have been made smaller.
            if segment.live_blocks() == 0 || self.used() > self.capacity {
                let (blocks, bytes) = self.drop_segment(&mut app, &segment);
                count(&self.counters.evicted_blocks, blocks);
                count(&self.counters.evicted_bytes, bytes);
            }
        }
        count(&self.counters.recovered_blocks, self.index.len());
    }

    /// Stores one block. When this returns, the block survives the death of the process.
    ///
    /// # Errors
    /// [`SegmentError::BlockLength`] for an empty block or one that does not fit a segment; [`SegmentError::Io`]
    /// if it could not be written.
    pub fn put(&self, key: BlockKey, data: &[u8]) -> Result<Admission, SegmentError> {
        let admissions = self.put_many(&[(key, data)])?;
        Ok(admissions.first().copied().unwrap_or(Admission::Full))
    }

    /// Stores many blocks with few writes: small ones share an aligned write, which for files of a few KiB halves
    /// the space and saves nearly all the time. Returns what became of each, in order.
    ///
    /// # Errors
    /// As [`SegmentStore::put`]. Nothing is stored if a length is wrong; after a failed write the blocks before
    /// it are stored.
    pub fn put_many<B: BlockData>(
        &self,
        batch: &[(BlockKey, B)],
    ) -> Result<Vec<Admission>, SegmentError> {
        for (key, data) in batch {
            self.check_len(key, data.total() as u64)?;
        }
        let mut admissions = vec![Admission::AlreadyStored; batch.len()];
        let mut places: HashMap<BlockKey, usize> = HashMap::with_capacity(batch.len());
        // Checksums are computed before the lock is taken, so that writers compute theirs side by side.
        let mut staged = Vec::new();
        for (place, (key, data)) in batch.iter().enumerate() {
            if !self.index.contains(key)
                && let Entry::Vacant(vacant) = places.entry(*key)
            {
                vacant.insert(place);
                let len = data.total() as u32;
                if self.is_full(len) {
                    admissions[place] = self.refuse(1);
                    continue;
                }
                let pieces = data.pieces();
                let pages = data.page_sums();
                staged.push(Staged {
                    key: *key,
                    len,
                    pieces,
                    sums: Checksums::of_pages(&pages),
                    pages,
                });
            }
        }
        if staged.is_empty() {
            return Ok(admissions);
        }
        let disowned = self.lock.lock().is_none();

        let mut app = self.appender.lock();
        // Another writer may have been first.
        staged.retain(|s| !self.index.contains(&s.key));
        let mut groups: Vec<_> = batches(&staged, self.batch_bytes).collect();
        groups.reverse();
        while let Some(group) = groups.pop() {
            let refused = disowned || group.iter().all(|s| self.is_full(s.len));
            let written = if refused {
                None
            } else {
                self.append(&mut app, group, Room::ForBlocks)?
            };
            let outcome = if let Some((segment, records)) = written {
                count(&self.counters.stored_blocks, group.len() as u64);
                for record in &records {
                    self.index.insert(record.key, Slot::new(&segment, record));
                }
                Admission::Stored
            } else if group.len() > 1 && !refused {
                let (first, second) = group.split_at(group.len() / 2);
                groups.extend([second, first]);
                continue; // there may be room for some of them
            } else {
                self.refuse(group.len() as u64)
            };
            for place in group.iter().filter_map(|s| places.get(&s.key)) {
                admissions[*place] = outcome;
            }
        }
        Ok(admissions)
    }

    /// Whether a block of so many bytes is refused for now: the device was full, or a search for room in vain, and
    /// nothing was given back since. A full store is offered a block with every miss; to search all segments for each
    /// would be wasted.
    pub fn is_full(&self, len: u32) -> bool {
        self.full_until.load(Relaxed) > self.now().as_millis() as u64
            && len >= self.full_from.load(Relaxed)
    }

    /// Counts blocks that are refused.
    pub fn refuse(&self, blocks: u64) -> Admission {
        count(&self.counters.refused_blocks, blocks);
        Admission::Full
    }

    /// Has blocks of so many bytes and more refused for so long, unless something is given back before.
    pub(super) fn be_full(&self, len: u32, time: Duration) {
        let now = self.now();
        let until = (now + time).as_millis() as u64;
        if self.full_until.load(Relaxed) > now.as_millis() as u64 {
            self.full_from.fetch_min(len, Relaxed);
            self.full_until.fetch_max(until, Relaxed);
        } else {
            self.full_from.store(len, Relaxed);
            self.full_until.store(until, Relaxed);
        }
    }

    fn check_len(&self, key: &BlockKey, len: u64) -> Result<(), SegmentError> {
        // A header takes two pages at most, the padding less than one, and the footer of one block takes one.
        let fits = self.segment_bytes.saturating_sub(4 * PAGE);
        let limit = u64::from(MAX_BLOCK_LEN).min(fits);
        if len == 0 || len > limit {
            return Err(SegmentError::BlockLength {
                key: *key,
                len,
                limit,
            });
        }
        Ok(())
    }

    /// Forgets blocks; returns their length together, in bytes. They stay forgotten after the store is opened
    /// again.
    ///
    /// A segment of which nothing is left is deleted at once, and one that is more than half dead may be
    /// compacted: at most one per call; [`SegmentStore::compact`] does the rest.
    pub fn remove(&self, keys: &[BlockKey]) -> u64 {
        let mut app = self.appender.lock();
        let dead: Vec<_> = keys.iter().filter_map(|k| self.index.remove(k)).collect();
        let freed = dead.iter().map(|slot| u64::from(slot.len)).sum();
        self.bury_all(&mut app, dead);
        if freed > 0 {
            self.compact_if_mostly_dead(&mut app);
        }
        freed
    }

    /// Buries records that the index no longer refers to, segment by segment.
    fn bury_all(&self, app: &mut Appender, slots: Vec<Slot>) {
        let mut dead: HashMap<u64, (Arc<Segment>, Vec<u32>)> = HashMap::new();
        for slot in slots {
            dead.entry(slot.segment.id)
                .or_insert_with(|| (slot.segment, Vec::new()))
                .1
                .push(slot.unit);
        }
        for (segment, units) in dead.into_values() {
            self.bury(app, &segment, &units);
        }
    }

    /// Sees to it that records which the index no longer refers to do not come back, and deletes a segment
    /// without any left.
    pub(super) fn bury(&self, app: &mut Appender, segment: &Arc<Segment>, units: &[u32]) {
        self.full_until.store(0, Relaxed); // what follows may find their space
        if segment.live_blocks() == 0 {
            self.drop_segment(app, segment);
            return;
        }
        // Failing that, the blocks come back with the next opening, with the right bytes.
        if let Err(error) = removed::note(&*self.disk, &segment.path, segment.id, units) {
            let path = segment.path.display();
            tracing::debug!(%path, %error, "cannot note removed blocks");
        }
    }

    /// Calls `visit` with the key and the length in bytes of each block held. Blocks that come or go meanwhile
    /// may or may not be among them.
    pub fn for_each(&self, visit: impl FnMut(BlockKey, u32)) {
        self.index.for_each(visit);
    }

    /// Bytes that the segment files may take now, and that they take. Costs the same however many there are.
    pub fn space(&self) -> (u64, u64) {
        (self.limit(), self.used())
    }

    /// The store's figures. Looks at each segment.
    pub fn stats(&self) -> SegmentStats {
        let segments = self.segments.lock();
        SegmentStats {
            capacity: self.capacity,
            limit: self.limit(),
            used_bytes: self.used(),
            live_bytes: segments.values().map(|s| s.live_bytes()).sum(),
            blocks: segments.values().map(|s| s.live_blocks()).sum(),
            segments: segments.len() as u64,
            ..self.counters.snapshot()
        }
    }

    /// Ends the segment being written with its table, so that the next opening is quick. Dropping the store does
    /// the same; the store can be used on.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if the table cannot be written; nothing is lost then, the next opening is only slower.
    pub fn seal(&self) -> Result<(), SegmentError> {
        self.seal_active(&mut self.appender.lock())
    }

    pub(super) fn now(&self) -> Duration {
        (self.clock)()
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// Has the segment files take so many bytes at most, and never more than the capacity; gives whether they may take more than
    /// before. What they take beyond it is given back by [`SegmentStore::shrink`].
    pub fn limit_to(&self, bytes: u64) -> bool {
        let limit = bytes.min(self.capacity);
        let grows = self.limit.swap(limit, Relaxed) < limit;
        if grows {
            self.full_until.store(0, Relaxed);
        }
        grows
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Changes what a segment counts against the capacity. Only under the appender's lock.
    pub(super) fn charge(&self, segment: &Segment, bytes: u64) {
        let before = segment.charged.swap(bytes, Relaxed);
        self.used.fetch_add(bytes, Relaxed);
        self.used.fetch_sub(before, Relaxed);
        if bytes < before {
            self.full_until.store(0, Relaxed);
        }
    }

    /// Says once if the file system refuses direct I/O.
    pub(super) fn note_buffered(&self, direct: bool) {
        if !direct && !self.said_buffered.swap(true, Relaxed) {
            let dir = self.dir.display();
            tracing::warn!(%dir, "the file system does not take direct I/O; using buffered I/O");
        }
    }
}

impl Drop for SegmentStore {
    fn drop(&mut self) {
        if let Err(error) = self.seal() {
            tracing::warn!(%error, "cannot seal a segment; the next opening walks its headers");
        }
    }
}
