//! The rules of the SSD tier, one by one.

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

#[test]
fn every_range_of_a_block_reads_as_it_was_written() {
    for bed in [Bed::new(), Bed::on(FaultyDisk::new())] {
        let store = bed.open();
        for (i, len) in [1, 100, 4096, 65_535, 65_536, 65_537, 131_072, 300_000]
            .into_iter()
            .enumerate()
        {
            let (i, len) = (i as u32, len as u32);
            let whole = data(i, len as usize);
            assert_eq!(store.put(key(i), &whole).unwrap(), Admission::Stored);
            assert_eq!(store.put(key(i), &whole).unwrap(), Admission::AlreadyStored);
            for start in [0, 1, 65_535, 65_536, len / 2, len - 1] {
                for end in [start + 1, start + 4096, 65_536, len, u32::MAX] {
                    let (start, cut) = (start.min(len), end.min(len));
                    let expected = whole.slice(start as usize..cut.max(start) as usize);
                    let read = store.read(&key(i), start..end).unwrap();
                    assert_eq!(read, Some(expected), "{len}: {start}..{end}");
                }
            }
        }
        assert_eq!(store.read(&key(99), 0..1).unwrap(), None);
    }
}

#[test]
fn a_full_sized_block_fits_the_smallest_store_of_default_segments() {
    let dir = tempfile::tempdir().unwrap();
    let store = SegmentStore::open(SegmentConfig::new(dir.path(), 17 << 20)).unwrap();
    let whole = data(1, MAX_BLOCK_LEN as usize);
    assert_eq!(store.put(key(1), &whole).unwrap(), Admission::Stored);
    assert_eq!(store.read(&key(1), 0..MAX_BLOCK_LEN).unwrap(), Some(whole));
}

#[test]
fn a_block_of_a_length_that_cannot_be_is_an_error() {
    let bed = Bed::new();
    let store = bed.open();
    for len in [0, SEGMENT as usize, MAX_BLOCK_LEN as usize + 1] {
        let error = store.put(key(1), &vec![0; len]).unwrap_err();
        assert!(matches!(error, SegmentError::BlockLength { .. }), "{error}");
        if let SegmentError::BlockLength { limit, .. } = error {
            let longest = vec![1; limit as usize];
            assert_ne!(store.put(key(2), &longest).unwrap(), Admission::Full);
        }
    }
}

#[test]
fn a_batch_of_small_blocks_takes_little_more_than_their_bytes() {
    let bed = Bed::new();
    let store = bed.open();
    let batch: Vec<_> = (0..1000).map(|i| (key(i), data(i, 4096))).collect();
    let admissions = store.put_many(&batch).unwrap();
    assert!(admissions.iter().all(|a| *a == Admission::Stored));
    assert!(
        store.stats().used_bytes < 1000 * 4096 * 105 / 100,
        "{:?}",
        store.stats()
    );
    assert!((0..1000).all(|i| holds(&store, i, 4096)));
}

#[test]
fn a_block_twice_in_a_batch_is_stored_once() {
    let bed = Bed::new();
    let store = bed.open();
    let batch = [
        (key(1), data(1, 500)),
        (key(2), data(2, 9)),
        (key(1), data(1, 500)),
    ];
    assert_eq!(
        store.put_many(&batch).unwrap(),
        [
            Admission::Stored,
            Admission::Stored,
            Admission::AlreadyStored
        ]
    );
    assert_eq!(
        store.put_many(&batch).unwrap(),
        [Admission::AlreadyStored; 3]
    );
    assert_eq!(store.stats().blocks, 2);
}

#[test]
fn blocks_are_there_after_closing_and_after_dying() {
    for dies in [false, true] {
        let disk = FaultyDisk::new();
        let mut bed = Bed::on(Arc::clone(&disk) as _);
        let store = bed.open();
        store_blocks(&store, 0..30, 100_000);
        if dies {
            disk.die_after(0, Torn::Short);
        }
        drop(store);
        bed.disk = Arc::new(LocalDisk);
        for _ in 0..2 {
            let store = bed.open();
            assert_eq!(store.stats().recovered_blocks, 30);
            assert!((0..30).all(|i| holds(&store, i, 100_000)));
            let mut seen = 0;
            store.for_each(|key, len| seen += u64::from(store.contains(&key)) * u64::from(len));
            assert_eq!(seen, 30 * 100_000);
        }
    }
}

#[test]
fn a_flipped_bit_drops_the_block_and_only_where_it_is_read() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..3, 200_000);
    let place = store.locate(&key(1)).unwrap();
    flip(&bed.segments()[0], place.offset + 150_000);
    let early = store.read(&key(1), 0..65_536).unwrap();
    assert_eq!(
        early,
        Some(data(1, 200_000).slice(..65_536)),
        "its first chunk is intact"
    );
    let pool = BufferPool::new(0);
    let fault = place.read(150_000..150_001, &pool).unwrap_err();
    assert!(matches!(fault, ReadFault::Corrupt { chunk: 2 }), "{fault}");
    assert!(!holds(&store, 1, 200_000));
    assert!(!store.contains(&key(1)));
    assert_eq!(store.stats().corrupt_blocks, 1);
    assert!(holds(&store, 0, 200_000) && holds(&store, 2, 200_000));
    store_blocks(&store, 1..2, 200_000);
    assert!(holds(&store, 1, 200_000));
}

/// Where a store's first block, a long one, has its data, and before it the checksums of its pages.
const LONG_DATA: u64 = 4096;

#[test]
fn a_short_read_of_a_long_block_reads_its_pages_and_no_more() {
    let disk = FaultyDisk::new();
    let bed = Bed::on(disk.clone());
    let store = bed.open();
    let (len, whole) = (300_000, data(0, 300_000));
    store_blocks(&store, 0..1, len);
    let reads = |range: std::ops::Range<usize>| {
        disk.take_read();
        let read = store.read(&key(0), range.start as u32..range.end as u32);
        assert_eq!(read.unwrap(), Some(whole.slice(range)));
        disk.take_read()
    };
    assert_eq!(reads(8192..12_288), 2 * 4096, "its checksums, and the page");
    assert_eq!(reads(100_000..100_001), 4096);
    assert_eq!(reads(4095..4097), 2 * 4096);
    assert_eq!(reads(65_535..65_537), 2 * 4096, "pages of two chunks");
    assert_eq!(reads(299_999..300_000), 4096);
    assert_eq!(reads(0..40_000), 65_536, "a whole chunk is not much more");
}

#[test]
fn page_checksums_kept_of_another_block_in_the_same_place_are_read_again() {
    let disk = FaultyDisk::new();
    let bed = Bed::on(disk.clone());
    let store = bed.open();
    let whole = data(0, 300_000);
    store_blocks(&store, 0..1, whole.len());
    let at = store.locate(&key(0)).unwrap();
    let file = at.file.metadata().unwrap();
    let place = (file.dev(), file.ino(), at.page_checksums_at.unwrap());
    store.pool.page_sums().insert(place, vec![1; 74].into());
    for wanted in [2 * 4096, 4096] {
        disk.take_read();
        let read = store.read(&key(0), 8192..8200).unwrap();
        assert_eq!(read, Some(whole.slice(8192..8200)));
        assert_eq!(disk.take_read(), wanted);
    }
}

#[test]
fn damage_is_found_by_short_reads_too_and_that_of_page_checksums_costs_no_block() {
    for reads_before in [false, true] {
        let bed = Bed::new();
        let store = bed.open();
        store_blocks(&store, 0..1, 300_000);
        let short = |start: u32| store.read(&key(0), start..start + 100).unwrap();
        if reads_before {
            assert_eq!(
                short(200_000),
                Some(data(0, 300_000).slice(200_000..200_100))
            );
        }
        for at in 64..LONG_DATA {
            flip(&bed.segments()[0], at);
        }
        assert_eq!(short(0), Some(data(0, 300_000).slice(0..100)));
        assert_eq!(
            short(200_000),
            Some(data(0, 300_000).slice(200_000..200_100))
        );
        flip(&bed.segments()[0], LONG_DATA + 200_099);
        assert!(short(0).is_some());
        assert!(short(200_000).is_none());
        assert_eq!(store.stats().corrupt_blocks, 1);
        assert!(!store.contains(&key(0)));
    }
}

#[test]
fn a_block_reported_bad_is_dropped_only_if_it_is() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..2, 1000);
    flip(&bed.segments()[0], store.locate(&key(0)).unwrap().offset);
    store.report_bad(&key(0));
    store.report_bad(&key(1));
    store.report_bad(&key(9));
    assert!(!store.contains(&key(0)) && store.contains(&key(1)));
}

#[test]
fn a_corrupt_block_stays_dropped_after_closing() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..2, 1000);
    flip(&bed.segments()[0], store.locate(&key(0)).unwrap().offset);
    assert!(!holds(&store, 0, 1000));
    drop(store);
    let store = bed.open();
    assert!(!store.contains(&key(0)) && store.contains(&key(1)));
}

#[test]
fn a_segment_cut_short_under_a_live_store_gives_nothing_wrong_and_is_dropped() {
    for len in [0, 150_000] {
        let bed = Bed::new();
        let store = bed.open();
        store_blocks(&store, 0..5, 100_000);
        let path = &bed.segments()[0];
        OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(len)
            .unwrap();
        assert_eq!(holds(&store, 0, 100_000), len > 0);
        assert!(!holds(&store, 4, 100_000));
        assert_eq!(store.check_files(), 1);
        assert_eq!((store.stats().blocks, store.stats().used_bytes), (0, 0));
        assert_eq!(store.stats().lost_segments, 1);
        store_blocks(&store, 0..5, 100_000);
        assert!((0..5).all(|i| holds(&store, i, 100_000)));
        assert_eq!(store.check_files(), 0);
    }
}

#[test]
fn a_deleted_segment_is_dropped_and_the_others_stay() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..25, 100_000);
    fs::remove_file(&bed.segments()[0]).unwrap();
    assert!(holds(&store, 0, 100_000), "the descriptor still reads");
    assert_eq!(store.check_files(), 1);
    assert!(!holds(&store, 0, 100_000) && holds(&store, 24, 100_000));
    let stats = store.stats();
    assert_eq!(stats.blocks + stats.lost_blocks, 25);
}

#[test]
fn two_segments_swapped_give_nothing_wrong_and_are_dropped() {
    for live in [true, false] {
        let bed = Bed::new();
        let mut store = bed.open();
        store_blocks(&store, 0..35, 100_000);
        let paths = bed.segments();
        let swap = || {
            let aside = bed.dir.path().join("aside");
            fs::rename(&paths[0], &aside).unwrap();
            fs::rename(&paths[1], &paths[0]).unwrap();
            fs::rename(&aside, &paths[1]).unwrap();
        };
        if live {
            swap();
            assert!((0..35).all(|i| holds(&store, i, 100_000)));
            assert_eq!(store.check_files(), 2);
        } else {
            drop(store);
            swap();
            store = bed.open();
        }
        assert_eq!(store.stats().lost_segments, 2);
        let held = (0..35).filter(|i| holds(&store, *i, 100_000)).count();
        assert!(held > 0 && held < 35);
        assert_eq!(held as u64, store.stats().blocks);
        assert_eq!(bed.segments().len() as u64, store.stats().segments);
    }
}

#[test]
fn the_directory_deleted_under_a_live_store_is_made_anew() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..15, 100_000);
    fs::remove_dir_all(bed.dir.path()).unwrap();
    assert_eq!(store.check_files(), store.stats().lost_segments);
    assert_eq!(store.stats().blocks, 0);
    store_blocks(&store, 0..15, 100_000);
    assert!(holds(&store, 14, 100_000));
    assert!(matches!(
        bed.try_open(bed.config()),
        Err(SegmentError::Locked { .. })
    ));
}

#[test]
fn a_damaged_footer_costs_time_and_no_block() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..25, 100_000);
    drop(store);
    let paths = bed.segments();
    assert_eq!(paths.len(), 3);
    let len = |path: &Path| fs::metadata(path).unwrap().len();
    flip(&paths[0], len(&paths[0]) - 64);
    flip(&paths[1], len(&paths[1]) - 4096);
    for _ in 0..2 {
        let store = bed.open();
        assert_eq!(store.stats().recovered_blocks, 25);
        assert!((0..25).all(|i| holds(&store, i, 100_000)));
    }
}

/// A store of nine blocks in one segment whose process died; the journal names all or all but a few.
fn died_with_a_journal() -> Bed {
    let disk = FaultyDisk::new();
    let mut bed = Bed::on(Arc::clone(&disk) as _);
    let store = bed.open();
    store_blocks(&store, 0..9, 100_000);
    disk.die_after(0, Torn::Short);
    drop(store);
    assert_eq!(bed.segments().len(), 1);
    bed.disk = Arc::new(LocalDisk);
    bed
}

#[test]
fn a_record_that_the_journal_names_needs_no_header() {
    let bed = died_with_a_journal();
    flip(&bed.segments()[0], 20);
    let store = bed.open();
    assert!((0..9).all(|i| holds(&store, i, 100_000)));
    assert!(
        !super::journal::path_of(&bed.segments()[0]).exists(),
        "the footer replaces it"
    );
}

#[test]
fn a_damaged_journal_costs_time_and_no_block() {
    let whole = {
        let bed = died_with_a_journal();
        fs::metadata(super::journal::path_of(&bed.segments()[0]))
            .unwrap()
            .len()
    };
    for at in [0, 5, 20, whole / 2, whole - 1] {
        let bed = died_with_a_journal();
        let journal = super::journal::path_of(&bed.segments()[0]);
        flip(&journal, at);
        let store = bed.open();
        assert!((0..9).all(|i| holds(&store, i, 100_000)), "byte {at}");

        let bed = died_with_a_journal();
        let journal = super::journal::path_of(&bed.segments()[0]);
        OpenOptions::new()
            .write(true)
            .open(journal)
            .unwrap()
            .set_len(at)
            .unwrap();
        let store = bed.open();
        assert!((0..9).all(|i| holds(&store, i, 100_000)), "cut at {at}");
        assert_eq!(store.stats().torn_records, 0);
    }
}

#[test]
fn garbage_in_place_of_a_segment_is_deleted_and_counted() {
    let bed = Bed::new();
    store_blocks(&bed.open(), 0..3, 100_000);
    let path = &bed.segments()[0];
    fs::write(path, data(1, 300_000)).unwrap();
    let store = bed.open();
    assert_eq!((store.stats().blocks, store.stats().lost_segments), (0, 1));
    assert!(!path.exists());
    store_blocks(&store, 0..3, 100_000);
}

#[test]
fn a_directory_in_use_is_refused_with_the_holders_process_id() {
    let bed = Bed::new();
    let store = bed.open();
    let error = bed.try_open(bed.config()).unwrap_err();
    let pid = std::process::id();
    assert!(
        matches!(error, SegmentError::Locked { holder: Some(p), .. } if p == pid),
        "{error}"
    );
    assert!(
        error.to_string().contains(&format!("process {pid}")),
        "{error}"
    );
    drop(store);
    bed.open();
}

#[test]
fn a_store_whose_directory_was_taken_over_writes_no_more() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..1, 1000);
    fs::remove_file(bed.dir.path().join("LOCK")).unwrap();
    let taken = super::lock::DirLock::acquire(bed.dir.path()).unwrap();
    store.check_files();
    assert_eq!(store.put(key(1), b"x").unwrap(), Admission::Full);
    assert!(holds(&store, 0, 1000));
    drop(taken);
    store.check_files();
    assert_eq!(store.put(key(1), b"x").unwrap(), Admission::Stored);
}

#[test]
fn nothing_is_evicted_while_all_is_in_use() {
    let bed = Bed::new();
    let store = bed.open();
    let count = fill_up(&store, 100_000);
    assert!(u64::from(count) * 100_000 > (CAPACITY - SEGMENT) * 9 / 10);
    bed.pass(IDLE.checked_sub(Duration::from_secs(1)).unwrap());
    for i in count..count + 50 {
        assert_eq!(
            store.put(key(i), &data(i, 100_000)).unwrap(),
            Admission::Full
        );
    }
    assert!((0..count).all(|i| holds(&store, i, 100_000)));
    let stats = store.stats();
    assert_eq!((stats.evicted_blocks, stats.refused_blocks), (0, 51));
    assert!(stats.used_bytes <= CAPACITY);
}

#[test]
fn of_a_batch_that_does_not_fit_as_much_is_stored_as_does() {
    let bed = Bed::new();
    let store = bed.open();
    let count = fill_up(&store, 100_000);
    let long = (key(count + 12), data(count + 12, 200_000));
    let small = (count..count + 12).map(|i| (key(i), data(i, 10_000)));
    let blocks: Vec<_> = small.chain([long]).collect();
    let admissions = store.put_many(&blocks).unwrap();
    let stored = admissions.iter().filter(|a| **a == Admission::Stored);
    let stored = stored.count();
    assert!((1..12).contains(&stored), "{stored}");
    for (admission, i) in admissions.iter().zip(count..count + 12) {
        assert_eq!(holds(&store, i, 10_000), *admission == Admission::Stored);
    }
}

#[test]
fn a_full_store_takes_blocks_again_as_soon_as_others_are_removed() {
    let bed = Bed::new();
    let store = bed.open();
    let count = fill_up(&store, 100_000);
    assert!(store.is_full(100_000) && !store.is_full(99_999));
    assert_eq!(
        store.put(key(0), &data(0, 10)).unwrap(),
        Admission::AlreadyStored
    );
    assert_eq!(
        store.put(key(count), &data(count, 100_000)).unwrap(),
        Admission::Full
    );
    let keys: Vec<_> = (0..20).map(key).collect();
    assert_eq!(store.remove(&keys), 20 * 100_000);
    store_blocks(&store, count..count + 10, 100_000);
}

#[test]
fn the_segment_idle_longest_makes_room() {
    let bed = Bed::new();
    let store = bed.open();
    let count = fill_up(&store, 100_000);
    bed.pass(Duration::from_secs(1));
    // The first segment was used last; the second goes first.
    assert!(holds(&store, 0, 100_000));
    bed.pass(IDLE);
    store_blocks(&store, count..count + 1, 100_000);
    assert!(store.contains(&key(0)) && !store.contains(&key(12)));
    let stats = store.stats();
    assert!(stats.evicted_blocks > 0 && stats.evicted_bytes == stats.evicted_blocks * 100_000);
    assert_eq!(stats.blocks, u64::from(count) + 1 - stats.evicted_blocks);
    assert!(stats.used_bytes <= CAPACITY);
}

#[test]
fn what_was_located_stays_readable_after_its_segment_is_deleted() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..9, 100_000);
    let place = store.locate(&key(3)).unwrap();
    let keys: Vec<_> = (0..9).map(key).collect();
    assert_eq!(store.remove(&keys), 900_000);
    assert_eq!(bed.segments(), Vec::<PathBuf>::new());
    assert_eq!(store.stats().used_bytes, 0);
    let pool = BufferPool::new(1 << 20);
    assert_eq!(place.read(0..u32::MAX, &pool).unwrap(), data(3, 100_000));
    let write = place.file.write_at(b"x", 0).unwrap_err();
    assert_eq!(Errno::from_io_error(&write), Some(Errno::BADF));
}

#[test]
fn whole_blocks_are_read_together_and_a_damaged_one_spoils_no_other() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..60, 5000);
    store_blocks(&store, 60..62, 200_000);
    let place = store.locate(&key(30)).unwrap();
    flip(&bed.segments()[0], place.offset + 4321);
    let wanted = [61, 40, 3, 30, 99, 31, 59, 0, 60, 3];
    let read = store.read_whole(&wanted.map(key));
    for (i, bytes) in wanted.into_iter().zip(read) {
        let len = if i < 60 { 5000 } else { 200_000 };
        let expected = (i != 30 && i != 99).then(|| data(i, len));
        assert!(bytes == expected, "block {i}");
    }
    assert_eq!(store.stats().corrupt_blocks, 1);
    assert!(!store.contains(&key(30)));
}

#[test]
fn a_segment_more_than_half_dead_is_compacted_and_removed_blocks_stay_away() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..40, 100_000);
    let before = store.stats().used_bytes;
    let (gone, kept): (Vec<u32>, Vec<u32>) = (0..40).partition(|i| i % 4 != 0);
    let keys: Vec<_> = gone.iter().copied().map(key).collect();
    assert_eq!(store.remove(&keys), 30 * 100_000);
    while store.compact().unwrap() > 0 {}
    let check = |store: &SegmentStore| {
        assert!(kept.iter().all(|i| holds(store, *i, 100_000)));
        assert!(gone.iter().all(|i| !store.contains(&key(*i))));
        assert_eq!(store.stats().blocks, 10);
    };
    check(&store);
    assert!(store.stats().compacted_segments > 1);
    assert!(store.stats().used_bytes < before / 2);
    drop(store);
    check(&bed.open());
}

#[test]
fn a_block_found_twice_is_gone_once_it_is_removed() {
    let bed = Bed::new();
    let copy = bed.dir.path().join("copy");
    let store = bed.open();
    store_blocks(&store, 0..4, 100_000);
    store.seal().unwrap();
    fs::copy(&bed.segments()[0], &copy).unwrap();
    // Compaction moves the last block; the copy is the file that a death would have left.
    assert_eq!(store.remove(&[key(0), key(1), key(2)]), 300_000);
    assert_eq!(store.stats().compacted_segments, 1);
    drop(store);
    fs::rename(&copy, super::file::path_of(bed.dir.path(), 1)).unwrap();
    let store = bed.open();
    assert_eq!(store.stats().blocks, 4);
    assert_eq!(store.remove(&[key(3)]), 100_000);
    drop(store);
    let store = bed.open();
    assert_eq!(store.stats().blocks, 3);
    assert!(!store.contains(&key(3)));
}

#[test]
fn dead_space_spread_over_all_segments_is_won_back_when_it_is_needed() {
    let bed = Bed::new();
    let store = bed.open();
    let count = fill_up(&store, 50_000);
    let gone: Vec<u32> = (0..count).filter(|i| i % 3 == 0).collect();
    let keys: Vec<_> = gone.iter().copied().map(key).collect();
    store.remove(&keys);
    let new = gone.len() as u32 * 9 / 10;
    store_blocks(&store, count..count + new, 50_000);
    assert!((0..count + new).all(|i| gone.contains(&i) || holds(&store, i, 50_000)));
    let stats = store.stats();
    assert!(stats.used_bytes <= CAPACITY && stats.evicted_blocks == 0);
}

#[test]
fn damaged_blocks_of_a_full_store_are_stored_again() {
    const LEN: usize = 20_000; // far less than what is worth a compaction otherwise
    let bed = Bed::new();
    let store = bed.open();
    let count = fill_up(&store, LEN);
    store.seal().unwrap();
    let paths = bed.segments();
    for path in &paths {
        flip(path, 10_000);
    }
    let damaged: Vec<u32> = (0..count).filter(|i| !holds(&store, *i, LEN)).collect();
    assert_eq!(damaged.len(), paths.len());
    for i in damaged {
        // One at once, and another one whenever some time has passed.
        let block = data(i, LEN);
        assert_eq!(store.put(key(i), &block).unwrap(), Admission::Stored);
        bed.pass(Duration::from_secs(10));
    }
    assert!((0..count).all(|i| holds(&store, i, LEN)));
    let stats = store.stats();
    assert!(stats.used_bytes <= CAPACITY && stats.evicted_blocks == 0);
}

#[test]
fn a_full_device_is_an_error_once_and_then_a_refusal_for_a_while() {
    let disk = FaultyDisk::new();
    let bed = Bed::on(Arc::clone(&disk) as _);
    let store = bed.open();
    store_blocks(&store, 0..2, 100_000);
    disk.fail_writes(Some(Errno::NOSPC));
    let error = store.put(key(2), &data(2, 100_000)).unwrap_err();
    assert!(error.is_disk_full());
    assert!(
        error
            .to_string()
            .contains(bed.segments()[0].to_str().unwrap()),
        "{error}"
    );
    disk.fail_writes(None);
    assert_eq!(
        store.put(key(2), &data(2, 100_000)).unwrap(),
        Admission::Full
    );
    bed.pass(Duration::from_secs(29));
    assert!(store.is_full(1));
    store.be_full(100_000, Duration::from_millis(100)); // no room was found meanwhile
    bed.pass(Duration::from_secs(1));
    assert!(!store.is_full(1));
    store_blocks(&store, 2..4, 100_000);
    assert!((0..4).all(|i| holds(&store, i, 100_000)));
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    let disk = FaultyDisk::new();
    let bed = Bed::on(Arc::clone(&disk) as _);
    let store = bed.open();
    store_blocks(&store, 0..3, 100_000);
    disk.fail_writes(Some(Errno::IO));
    assert!(store.put(key(3), &data(3, 100_000)).is_err());
    disk.fail_writes(None);
    assert!(!store.contains(&key(3)));
    store_blocks(&store, 4..6, 20_000);
    drop(store);
    let store = bed.open();
    assert_eq!((store.stats().blocks, store.stats().torn_records), (5, 0));
    assert!((0..3).all(|i| holds(&store, i, 100_000)) && (4..6).all(|i| holds(&store, i, 20_000)));
}

#[test]
fn a_block_that_the_device_cannot_read_is_dropped_and_other_errors_are_reported() {
    let disk = FaultyDisk::new();
    let bed = Bed::on(Arc::clone(&disk) as _);
    let store = bed.open();
    store_blocks(&store, 0..2, 1000);
    disk.fail_reads(Some(Errno::NOMEM));
    let error = store.read(&key(0), 0..10).unwrap_err();
    assert!(
        matches!(error, SegmentError::Io { what: "read", .. }),
        "{error}"
    );
    disk.fail_reads(Some(Errno::IO));
    assert_eq!(store.read(&key(0), 0..10).unwrap(), None);
    disk.fail_reads(None);
    assert!(!store.contains(&key(0)) && holds(&store, 1, 1000));
    assert_eq!(store.stats().unreadable_blocks, 1);
}

#[test]
fn a_smaller_capacity_is_kept_to_on_opening() {
    let bed = Bed::new();
    let count = fill_up(&bed.open(), 100_000);
    let config = SegmentConfig {
        capacity: CAPACITY / 2,
        ..bed.config()
    };
    let store = bed.try_open(config).unwrap();
    let stats = store.stats();
    assert!(stats.used_bytes <= CAPACITY / 2 && stats.evicted_blocks > 0);
    assert_eq!(stats.blocks + stats.evicted_blocks, u64::from(count));
    assert!(!store.contains(&key(0)) && holds(&store, count - 1, 100_000));
}

#[test]
fn readers_writers_and_removers_together_see_only_right_bytes() {
    let bed = Bed::new();
    let store = bed.open();
    let stop = AtomicBool::new(false);
    let len = |i: u32| 1000 + (i as usize * 7919) % 150_000;
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2_u32)
            .map(|w| {
                let (store, bed) = (&store, &bed);
                scope.spawn(move || {
                    for i in 0..300 {
                        let i = (i * 2 + w) % 200;
                        store.put(key(i), &data(i, len(i))).unwrap();
                        if i % 10 == w {
                            bed.pass(IDLE);
                            store.remove(&[key(i), key(i + 2), key(i + 3)]);
                            store.check_files();
                        }
                    }
                })
            })
            .collect();
        let readers: Vec<_> = (0..3_u32)
            .map(|r| {
                let (store, stop) = (&store, &stop);
                scope.spawn(move || {
                    let (mut i, mut hits) = (r, 0_u64);
                    // Goes on after the writers until it has read something, so that this cannot pass by reading
                    // nothing.
                    while !stop.load(Relaxed) || hits == 0 {
                        i = (i * 31 + 7) % 200;
                        hits += u64::from(holds(store, i, len(i)));
                    }
                    hits
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        // Something to read for certain.
        for i in 0..20 {
            store.put(key(i), &data(i, len(i))).unwrap();
        }
        stop.store(true, Relaxed);
        assert!(readers.into_iter().all(|r| r.join().unwrap() > 0));
    });
    let stats = store.stats();
    assert_eq!(
        (
            stats.corrupt_blocks,
            stats.unreadable_blocks,
            stats.lost_segments
        ),
        (0, 0, 0)
    );
    assert!(stats.used_bytes <= CAPACITY);
    let live = (0..200).filter(|i| store.contains(&key(*i))).count();
    assert_eq!(live as u64, stats.blocks);
}
