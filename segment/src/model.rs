//! The store against a model, through random operations, restarts and deaths in the middle of a write.
//!
//! What is checked after every step: a read gives exactly the right bytes or nothing; what was stored is there
//! unless it was removed or counted as evicted, also after a death; what was removed is not; the files keep to
//! the capacity.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;
use weir_core::BlockKey;

use super::aligned::PAGE;
use super::faulty::{FaultyDisk, Torn};
use super::record::record_len;
use super::store::{Admission, Clock, SegmentStore};
use super::{Pieces, SegmentConfig, SegmentError};

const KEYS: u8 = 96;
const CAPACITY: u64 = 4 << 20;
const SEGMENT: u64 = 512 << 10;
const IDLE_MS: u64 = 1000;

fn key_of(k: u8) -> BlockKey {
    BlockKey([k; 16])
}

/// A key's content never changes, as with real blocks. Lengths lie around the sizes of units, pages and chunks.
fn content(k: u8) -> &'static [u8] {
    static CONTENTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| (0..KEYS).map(make).collect());
    &CONTENTS[usize::from(k)]
}

fn make(k: u8) -> Vec<u8> {
    let sizes = [1, 63, 4096, 20_000, 65_536, 65_537, 131_073, 200_000];
    let len = sizes[usize::from(k) % sizes.len()] + usize::from(k) / sizes.len();
    (0..len)
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ k)
        .collect()
}

#[derive(Debug, Clone)]
enum Op {
    Put(Vec<u8>),
    Read(u8, Range<u32>),
    ReadWhole(Vec<u8>),
    Remove(Vec<u8>),
    Compact,
    Reopen,
    Advance(u64),
    /// Dies after this many more bytes were written, during these operations.
    Die(u64, Torn, Vec<Op>),
}

fn change() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => vec(0..KEYS, 1..12).prop_map(Op::Put),
        2 => vec(0..KEYS, 1..24).prop_map(Op::Remove),
        1 => Just(Op::Compact),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let torn = prop_oneof![Just(Torn::Short), Just(Torn::Zeros)];
    prop_oneof![
        12 => change(),
        6 => (0..KEYS, 0..200_100_u32, 1..200_100_u32)
            .prop_map(|(k, start, len)| Op::Read(k, start..start + len)),
        3 => vec(0..KEYS, 1..24).prop_map(Op::ReadWhole),
        1 => Just(Op::Reopen),
        2 => (0..2 * IDLE_MS).prop_map(Op::Advance),
        2 => (0..1_500_000_u64, torn, vec(change(), 1..6))
            .prop_map(|(bytes, torn, ops)| Op::Die(bytes, torn, ops)),
    ]
}

struct Machine {
    dir: TempDir,
    disk: Arc<FaultyDisk>,
    millis: Arc<AtomicU64>,
    store: Option<SegmentStore>,
    held: BTreeSet<u8>,
    evicted: u64,
}

fn open(dir: &Path, disk: &Arc<FaultyDisk>, millis: &Arc<AtomicU64>) -> SegmentStore {
    let config = SegmentConfig {
        segment_size: SEGMENT,
        idle_after: Duration::from_millis(IDLE_MS),
        ..SegmentConfig::new(dir, CAPACITY)
    };
    let millis = Arc::clone(millis);
    let clock: Clock = Arc::new(move || Duration::from_millis(millis.load(Relaxed)));
    SegmentStore::open_with(config, clock, Arc::clone(disk) as _).unwrap()
}

impl Machine {
    fn new() -> Self {
        let (dir, disk, millis) = (
            tempfile::tempdir().unwrap(),
            FaultyDisk::new(),
            Arc::default(),
        );
        let store = open(dir.path(), &disk, &millis);
        Self {
            dir,
            disk,
            millis,
            store: Some(store),
            held: BTreeSet::new(),
            evicted: 0,
        }
    }

    fn store(&self) -> &SegmentStore {
        self.store.as_ref().unwrap()
    }

    fn put(&mut self, keys: &[u8]) -> Result<(), SegmentError> {
        let cut = |data: &'static [u8]| {
            // Where a piece ends says nothing about chunks.
            let mut rest = Bytes::from_static(data);
            let first = rest.split_to(rest.len() / 3);
            let second = rest.split_to(rest.len() / 2);
            Pieces::new(vec![first, second, rest])
        };
        let batch: Vec<_> = keys
            .iter()
            .map(|k| (key_of(*k), cut(content(*k))))
            .collect();
        let admissions = self.store().put_many(&batch)?;
        let mut fresh: BTreeSet<u8> = keys.iter().copied().collect();
        for (k, admission) in keys.iter().zip(admissions) {
            let first = fresh.remove(k);
            match admission {
                Admission::Stored => assert!(first && self.held.insert(*k), "{k} was stored twice"),
                Admission::AlreadyStored => {
                    assert!(!first || self.held.contains(k), "{k} was not there");
                }
                Admission::Full => {
                    assert!(!self.held.contains(k), "{k} was there");
                    let needed = record_len(content(*k).len() as u32) + 4 * PAGE;
                    let stats = self.store().stats();
                    assert!(
                        stats.used_bytes + needed > CAPACITY - SEGMENT,
                        "{k} was refused, {stats:?}"
                    );
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, keys: &[u8]) {
        let unique: BTreeSet<u8> = keys.iter().copied().collect();
        let expected: usize = unique
            .iter()
            .filter(|k| self.held.remove(k))
            .map(|k| content(*k).len())
            .sum();
        let keys: Vec<_> = keys.iter().copied().map(key_of).collect();
        assert_eq!(self.store().remove(&keys), expected as u64);
    }

    fn read(&self, k: u8, range: Range<u32>) -> bool {
        let Some(bytes) = self.store().read(&key_of(k), range.clone()).unwrap() else {
            return false;
        };
        let whole = content(k);
        let end = whole.len().min(range.end as usize);
        assert_eq!(
            bytes,
            whole[end.min(range.start as usize)..end],
            "{k} {range:?}"
        );
        true
    }

    fn reopen(&mut self, disk: Arc<FaultyDisk>) {
        self.store = None;
        self.disk = disk;
        self.store = Some(open(self.dir.path(), &self.disk, &self.millis));
        assert_eq!(self.store().stats().evicted_blocks, 0);
        self.evicted = 0;
    }

    /// Blocks may leave only by being counted as evicted.
    fn settle_evictions(&mut self) {
        let evicted = self.store().stats().evicted_blocks;
        let gone: Vec<u8> = self.missing();
        assert_eq!(
            gone.len() as u64,
            evicted - self.evicted,
            "missing: {gone:?}"
        );
        self.evicted = evicted;
        self.held.retain(|k| !gone.contains(k));
    }

    fn missing(&self) -> Vec<u8> {
        let missing = |k: &&u8| !self.store().contains(&key_of(**k));
        self.held.iter().filter(missing).copied().collect()
    }

    fn read_whole(&self, keys: &[u8]) {
        let read = self
            .store()
            .read_whole(&keys.iter().map(|k| key_of(*k)).collect::<Vec<_>>());
        for (k, bytes) in keys.iter().zip(read) {
            let expected = self
                .held
                .contains(k)
                .then(|| Bytes::from_static(content(*k)));
            assert!(bytes == expected, "wrong bytes of {k}, or it was not there");
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Put(keys) => self.put(&keys).unwrap(),
            Op::Read(k, range) => assert_eq!(self.read(k, range), self.held.contains(&k)),
            Op::ReadWhole(keys) => self.read_whole(&keys),
            Op::Remove(keys) => self.remove(&keys),
            Op::Compact => drop(self.store().compact().unwrap()),
            Op::Reopen => {
                self.reopen(Arc::clone(&self.disk));
                assert_eq!(self.store().stats().lost_segments, 0);
                assert_eq!(self.store().stats().torn_records, 0);
            }
            Op::Advance(millis) => {
                self.millis.fetch_add(millis, Relaxed);
            }
            Op::Die(bytes, torn, ops) => self.die(bytes, torn, ops),
        }
        self.settle_evictions();
        self.check();
    }

    fn die(&mut self, bytes: u64, torn: Torn, ops: Vec<Op>) {
        self.disk.die_after(bytes, torn);
        for op in ops {
            match op {
                // From the first error on the process is dead.
                Op::Put(keys) if self.put(&keys).is_err() => break,
                Op::Remove(keys) => self.remove(&keys),
                Op::Compact if self.store().compact().is_err() => break,
                _ => {}
            }
            self.settle_evictions();
        }
        // Evictions of a put that failed in the end.
        let evicted = self.store().stats().evicted_blocks - self.evicted;
        let gone = self.missing();
        assert_eq!(gone.len() as u64, evicted, "missing: {gone:?}");
        self.held.retain(|k| !gone.contains(k));
        self.reopen(FaultyDisk::new());
        // A segment that died before its first header was whole.
        assert!(self.store().stats().lost_segments <= 1);
        let lost = self.missing();
        assert!(lost.is_empty(), "lost by the death: {lost:?}");
        // What was removed, evicted or being written when it died may be back.
        self.held = (0..KEYS)
            .filter(|k| self.store().contains(&key_of(*k)))
            .collect();
        for k in self.held.clone() {
            assert!(
                self.read(k, 0..u32::MAX),
                "{k} was recovered without its data"
            );
        }
    }

    fn check(&self) {
        let stats = self.store().stats();
        assert_eq!(stats.blocks, self.held.len() as u64);
        assert!(stats.used_bytes <= CAPACITY, "{stats:?}");
        assert_eq!((stats.corrupt_blocks, stats.unreadable_blocks), (0, 0));
        let files: u64 = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "segment"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert!(
            files <= stats.used_bytes,
            "{files} bytes of files: {stats:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_holds_what_the_model_holds(ops in vec(op(), 1..80)) {
        let mut machine = Machine::new();
        for op in ops {
            machine.step(op);
        }
        machine.reopen(Arc::clone(&machine.disk));
        machine.settle_evictions();
        machine.check();
        for k in 0..KEYS {
            assert_eq!(machine.read(k, 0..u32::MAX), machine.held.contains(&k));
        }
    }
}
