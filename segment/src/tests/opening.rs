//! What a directory still holds when it is opened.

use super::*;
use crate::record;

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

/// Where each block's header is.
fn headers(store: &SegmentStore, blocks: std::ops::Range<u32>, len: u32) -> Vec<u64> {
    let of = |i| store.locate(&key(i)).unwrap().offset - record::header_len(len);
    blocks.map(of).collect()
}

#[test]
fn a_damaged_header_and_a_damaged_footer_cost_one_block() {
    for (len, damaged) in [
        (100_000, 0),
        (100_000, 4),
        (100_000, 9),
        (700, 500),
        (300_000, 1),
    ] {
        let bed = Bed::new();
        let store = bed.open();
        let count = 1_000_000 / len;
        let batch: Vec<_> = (0..count)
            .map(|i| (key(i), data(i, len as usize)))
            .collect();
        for part in batch.chunks(7) {
            store.put_many(part).unwrap();
        }
        let header = headers(&store, 0..count, len)[damaged as usize];
        drop(store);
        let path = &bed.segments()[0];
        let footer = fs::metadata(path).unwrap().len() - 64;
        flip(path, header + 30);
        flip(path, footer);
        for opened in 0..2 {
            let store = bed.open();
            for i in 0..count {
                assert_eq!(holds(&store, i, len as usize), i != damaged, "block {i}");
            }
            assert_eq!(
                store.stats().torn_records,
                u64::from(opened == 0 && damaged < count - 1)
            );
        }
    }
}

#[test]
fn bytes_of_a_block_do_not_pass_for_a_header() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..2, 10_000);
    // A block that is a copy of the file so far, and one of it moved by some units.
    let path = bed.segments()[0].clone();
    let copy = fs::read(&path).unwrap();
    for (i, from) in [(10, 0), (11, 64), (12, 4096)] {
        store.put(key(i), &copy[from..]).unwrap();
    }
    store_blocks(&store, 2..3, 10_000);
    let copies = headers(&store, 10..13, copy.len() as u32);
    drop(store);
    for at in copies {
        flip(&path, at + 20);
    }
    flip(&path, fs::metadata(&path).unwrap().len() - 64);
    let store = bed.open();
    assert!((0..3).all(|i| holds(&store, i, 10_000)));
    assert_eq!(
        store.stats().blocks,
        3,
        "what the copies hold is none of it"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 48, failure_persistence: None, ..Default::default()
    })]

    /// Each flip costs the block that it hits, and no other one.
    #[test]
    fn flips_cost_the_blocks_that_they_hit(
        lens in proptest::collection::vec(1_usize..150_000, 1..12),
        flips in proptest::collection::vec(0.0_f64..1.0, 1..6),
    ) {
        let bed = Bed::new();
        let store = bed.open();
        let mut places = Vec::new();
        for (i, len) in lens.iter().enumerate() {
            let i = i as u32;
            assert_eq!(store.put(key(i), &data(i, *len)).unwrap(), Admission::Stored);
            let end = store.locate(&key(i)).unwrap().offset + *len as u64;
            let head = record::header_len(*len as u32);
            places.push((end - *len as u64 - head, end, store.locate(&key(i)).unwrap().file.clone()));
        }
        drop(store);
        let mut hit = std::collections::HashSet::new();
        for path in bed.segments() {
            let file = fs::metadata(&path).unwrap();
            for part in &flips {
                let at = (file.len() as f64 * part) as u64;
                flip(&path, at);
                let is_here = |place: &std::fs::File| place.metadata().unwrap().ino() == file.ino();
                let of = places.iter().position(|(start, end, own)| {
                    is_here(own) && (*start..*end).contains(&at)
                });
                hit.extend(of);
            }
            flip(&path, file.len() - 64);
        }
        let store = bed.open();
        for (i, len) in lens.iter().enumerate() {
            let held = holds(&store, i as u32, *len);
            assert!(held || hit.contains(&i), "block {i} of {len} bytes was not hit");
        }
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
        !crate::journal::path_of(&bed.segments()[0]).exists(),
        "the footer replaces it"
    );
}

#[test]
fn a_damaged_journal_costs_time_and_no_block() {
    let whole = {
        let bed = died_with_a_journal();
        fs::metadata(crate::journal::path_of(&bed.segments()[0]))
            .unwrap()
            .len()
    };
    for at in [0, 5, 20, whole / 2, whole - 1] {
        let bed = died_with_a_journal();
        let journal = crate::journal::path_of(&bed.segments()[0]);
        flip(&journal, at);
        let store = bed.open();
        assert!((0..9).all(|i| holds(&store, i, 100_000)), "byte {at}");

        let bed = died_with_a_journal();
        let journal = crate::journal::path_of(&bed.segments()[0]);
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
fn files_of_a_newer_version_are_left_alone_until_that_uses_them_again() {
    let bed = Bed::new();
    let store = bed.open();
    store_blocks(&store, 0..9, 100_000);
    let headers = headers(&store, 0..9, 100_000);
    drop(store);
    let path = &bed.segments()[0];
    let len = fs::metadata(path).unwrap().len();
    // The versions of its records, and that of its footer.
    let change_version = || {
        for at in &headers {
            flip(path, at + 8);
        }
        flip(path, len - 64 + 8);
    };
    change_version();
    let newer = fs::read(path).unwrap();
    let store = bed.open();
    let stats = store.stats();
    assert_eq!((stats.blocks, stats.lost_segments), (0, 0));
    assert!(store.used() >= len, "it takes its room");
    store_blocks(&store, 10..13, 100_000);
    drop(store);
    assert!(fs::read(path).unwrap() == newer);
    change_version();
    let store = bed.open();
    assert!((0..9).chain(10..13).all(|i| holds(&store, i, 100_000)));
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
    let taken = crate::lock::DirLock::acquire(bed.dir.path()).unwrap();
    store.check_files();
    assert_eq!(store.put(key(1), b"x").unwrap(), Admission::Full);
    assert!(holds(&store, 0, 1000));
    drop(taken);
    store.check_files();
    assert_eq!(store.put(key(1), b"x").unwrap(), Admission::Stored);
}

#[test]
fn a_block_found_twice_is_gone_once_it_is_removed() {
    let bed = Bed::new();
    let copy = bed.dir.path().join("copy");
    let store = bed.open();
    store_blocks(&store, 0..4, 100_000);
    store.seal().unwrap();
    let first = bed.segments()[0].clone();
    fs::copy(&first, &copy).unwrap();
    // Compaction moves the last block; the copy is the file that a death would have left.
    assert_eq!(store.remove(&[key(0), key(1), key(2)]), 300_000);
    assert_eq!(store.stats().compacted_segments, 1);
    drop(store);
    fs::rename(&copy, first).unwrap();
    let store = bed.open();
    assert_eq!(store.stats().blocks, 4);
    assert_eq!(store.remove(&[key(3)]), 100_000);
    drop(store);
    let store = bed.open();
    assert_eq!(store.stats().blocks, 3);
    assert!(!store.contains(&key(3)));
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
