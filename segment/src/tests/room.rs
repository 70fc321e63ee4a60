//! Stores and devices that are full.

use super::*;

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
        let block = data(i, LEN);
        assert_eq!(store.put(key(i), &block).unwrap(), Admission::Stored);
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
fn a_store_that_may_take_less_gives_back_what_was_idle_longest_and_grows_again() {
    let bed = Bed::new();
    let store = bed.open();
    let count = fill_up(&store, 100_000);
    bed.pass(Duration::from_secs(1));
    // The first are in use, and stay.
    let used = count / 4;
    assert!((0..used).all(|i| holds(&store, i, 100_000)));
    assert!(!store.limit_to(CAPACITY / 2));
    while store.shrink() > 0 {}
    let (limit, taken) = store.space();
    assert_eq!(limit, CAPACITY / 2);
    assert!(taken <= limit && taken > limit - 2 * SEGMENT, "{taken}");
    assert!((0..used).all(|i| holds(&store, i, 100_000)));
    let stats = store.stats();
    assert_eq!(stats.capacity, CAPACITY);
    assert_eq!(u64::from(count) - stats.blocks, stats.shrunk_blocks);
    assert_eq!(stats.shrunk_bytes, stats.shrunk_blocks * 100_000);
    assert_eq!(stats.evicted_blocks, 0);
    let next = (key(count), data(count, 100_000));
    assert_eq!(store.put(next.0, &next.1).unwrap(), Admission::Full);
    // In use or not, all of it goes if nothing may be held.
    store.limit_to(0);
    while store.shrink() > 0 {}
    assert_eq!(store.space(), (0, 0));
    assert_eq!(store.stats().blocks, 0);
    assert!(store.limit_to(u64::MAX));
    assert_eq!(store.space().0, CAPACITY);
    assert_eq!(store.put(next.0, &next.1).unwrap(), Admission::Stored);
}
