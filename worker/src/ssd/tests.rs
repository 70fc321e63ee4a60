//! Blocks on their way to devices, and back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use tempfile::TempDir;
use weir_core::{ByteSize, FreeSpace};

use super::*;

const LEN: usize = 50_000;

fn key(n: u32) -> BlockKey {
    let mut key = [0; 16];
    // As evenly spread as hashes are.
    key[8..].copy_from_slice(
        &u64::from(n)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes(),
    );
    key[..4].copy_from_slice(&n.to_le_bytes());
    BlockKey(key)
}

fn content(n: u32) -> Bytes {
    vec![n as u8; LEN + n as usize].into()
}

fn configs(dirs: &[(&TempDir, u64)]) -> Vec<SsdConfig> {
    let config = |(dir, capacity): &(&TempDir, u64)| SsdConfig {
        dir: dir.path().to_owned(),
        capacity: ByteSize(*capacity),
        evict_idle: crate::EVICT_IDLE,
        left_free: FreeSpace::NONE,
    };
    dirs.iter().map(config).collect()
}

/// Queues a block; gives where its outcome will be told.
async fn queue(tier: &SsdTier, n: u32) -> mpsc::Receiver<Result<Admission, String>> {
    let (told, outcome) = mpsc::channel();
    let write = Write {
        key: key(n),
        data: Pieces::new(vec![content(n)]),
        done: Box::new(move |outcome| {
            let _ = told.send(outcome.map_err(ToString::to_string));
        }),
    };
    assert!(tier.write(write).await.is_ok());
    outcome
}

async fn store(tier: &SsdTier, n: u32) -> Admission {
    let outcome = queue(tier, n).await;
    let told = tokio::task::spawn_blocking(move || outcome.recv_timeout(Duration::from_mins(1)));
    told.await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn blocks_are_spread_over_devices_by_their_capacities_and_found_again() {
    let (small, large) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let configs = configs(&[(&small, 64 << 20), (&large, 192 << 20)]);
    let tier = SsdTier::open(&configs).unwrap();
    for n in 0..200 {
        assert_eq!(store(&tier, n).await, Admission::Stored);
        assert_eq!(store(&tier, n).await, Admission::AlreadyStored);
    }
    let blocks: Vec<u64> = tier.usage().iter().map(|used| used.stats.blocks).collect();
    assert_eq!(blocks.iter().sum::<u64>(), 200);
    assert!(
        (30..70).contains(&blocks[0]),
        "{blocks:?} of capacities 1 and 3"
    );
    tier.close();
    drop(tier);
    let tier = SsdTier::open(&configs).unwrap();
    assert!((0..200).all(|n| tier.read(&key(n), 0..u32::MAX) == Some(content(n))));
}

#[tokio::test]
async fn blocks_of_several_devices_are_given_in_the_order_in_which_they_were_asked_for() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let all = dirs.each_ref().map(|dir| (dir, 64 << 20));
    let tier = SsdTier::open(&configs(&all)).unwrap();
    for n in (0..60).step_by(2) {
        store(&tier, n).await;
    }
    let asked: Vec<u32> = (0..60).rev().collect();
    let keys: Vec<BlockKey> = asked.iter().copied().map(key).collect();
    let wanted = asked.iter().map(|n| (n % 2 == 0).then(|| content(*n)));
    let wanted: Vec<_> = wanted.collect();
    assert_eq!(tier.read_whole(&keys), wanted);
    assert_eq!(tier.read_whole_in_background(&keys).await, wanted);
    for (key, wanted) in keys.iter().zip(wanted) {
        let part = tier.read_in_background(*key, 10..20).await;
        assert_eq!(part, wanted.map(|block| block.slice(10..20)));
        assert_eq!(tier.contains(key), part.is_some());
        assert_eq!(tier.locate(key).is_some(), part.is_some());
    }
}

#[tokio::test]
async fn what_was_queued_is_written_before_the_tier_closes_and_nothing_after() {
    let dir = tempfile::tempdir().unwrap();
    let configs = configs(&[(&dir, 128 << 20)]);
    let tier = SsdTier::open(&configs).unwrap();
    let mut outcomes = Vec::new();
    for n in 0..300 {
        outcomes.push(queue(&tier, n).await);
    }
    tier.close();
    for outcome in outcomes {
        assert_eq!(outcome.try_recv().unwrap(), Ok(Admission::Stored));
    }
    let late = Write {
        key: key(1000),
        data: Pieces::new(vec![content(1000)]),
        done: Box::new(|_| panic!("it is given back")),
    };
    assert!(tier.write(late).await.is_err());
    drop(tier);
    let tier = SsdTier::open(&configs).unwrap();
    assert!((0..300).all(|n| tier.contains(&key(n))) && !tier.contains(&key(1000)));
}

#[tokio::test]
async fn a_full_device_refuses_at_once_and_each_write_is_told_its_outcome_once() {
    let dir = tempfile::tempdir().unwrap();
    let tier = SsdTier::open(&configs(&[(&dir, 24 << 20)])).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    for n in 0..1000 {
        let told = told.clone();
        let write = Write {
            key: key(n),
            data: Pieces::new(vec![content(n)]),
            done: Box::new(move |outcome| {
                assert!(outcome.is_ok());
                told.fetch_add(1, Ordering::Relaxed);
            }),
        };
        assert!(tier.write(write).await.is_ok());
    }
    tier.close();
    assert_eq!(told.load(Ordering::Relaxed), 1000);
    let stats = &tier.usage()[0].stats;
    assert!(
        stats.blocks > 100 && stats.refused_blocks > 100,
        "{stats:?}"
    );
    assert_eq!(stats.blocks + stats.refused_blocks, 1000);
    let (capacity, used) = tier.space();
    assert!(used <= capacity && capacity == 24 << 20);
}

#[tokio::test]
async fn without_a_device_a_write_is_given_back_and_nothing_is_found() {
    let tier = SsdTier::open(&[]).unwrap();
    let write = Write {
        key: key(1),
        data: Pieces::new(vec![content(1)]),
        done: Box::new(|_| panic!("it is given back")),
    };
    assert!(tier.write(write).await.is_err());
    assert_eq!(
        tier.read_whole_in_background(&[key(1), key(2)]).await,
        [None, None]
    );
    assert_eq!((tier.remove(&[key(1)]), tier.space()), (0, (0, 0)));
}

#[tokio::test]
async fn removed_and_damaged_blocks_are_gone_and_can_be_written_again() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let tier = SsdTier::open(&configs(&[(&dir, 64 << 20)])).unwrap();
    for n in 0..3 {
        store(&tier, n).await;
    }
    assert_eq!(tier.remove(&[key(0), key(7)]), content(0).len() as u64);
    assert_eq!(tier.read(&key(0), 0..10), None);
    let located = tier.locate(&key(1)).unwrap();
    let mut segments = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let segment = segments.find(|path| path.extension().is_some_and(|e| e == "segment"));
    let file = std::fs::File::options()
        .write(true)
        .open(segment.unwrap())
        .unwrap();
    file.write_all_at(&[0xff], located.offset + 100).unwrap();
    tier.report_bad(key(2)).await;
    assert!(tier.contains(&key(2)), "it is as it was");
    tier.report_bad(key(1)).await;
    assert!(!tier.contains(&key(1)));
    assert_eq!(store(&tier, 1).await, Admission::Stored);
    assert_eq!(tier.read(&key(1), 0..u32::MAX), Some(content(1)));
}
