//! Files that are damaged, cut, exchanged or deleted, and devices that cannot read.

use super::*;

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
