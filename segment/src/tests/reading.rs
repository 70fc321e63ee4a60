//! Blocks that are written and read as they should.

use super::*;

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
