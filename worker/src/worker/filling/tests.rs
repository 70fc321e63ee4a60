//! Blocks that other workers may hold, on their way to the tiers.

use std::sync::atomic::Ordering;

use futures::FutureExt;
use tokio::sync::watch;
use weir_core::{ByteSize, ClusterMap, Hashing, ObjectRef};
use weir_proto::v1;
use weir_trust::Dial;

use super::*;
use crate::config::WorkerConfig;
use crate::copies::fake::{self, Kind, Peer, peer};
use crate::sources::DatasetSources;
use crate::testing;

/// Longest wait for anything. Generous: other tests run on the same cores.
const PATIENCE: Duration = Duration::from_mins(1);

/// A worker of two, which asks the other for what it owns.
async fn worker_beside(other: &Peer) -> Arc<Worker> {
    let config = WorkerConfig {
        memory: ByteSize(64 << 20),
        ..testing::config("own").unwrap()
    };
    let worker = testing::open(config).unwrap();
    let own = WorkerInfo {
        id: worker.config.id.clone(),
        data_address: String::new(),
        ..other.info.clone()
    };
    let map = ClusterMap::new(2, Hashing::NEWEST, vec![other.info.clone(), own]);
    let map = watch::Sender::new(Arc::new(map));
    worker.copy_from_others(map.subscribe(), Dial::default());
    let of_dataset = v1::DatasetSources {
        dataset: "set".to_owned(),
        sources: vec![v1::Source {
            origin: fake::block().origin.0,
            prefix: String::new(),
        }],
        placement: None,
    };
    let sources = DatasetSources::of_reply(vec![of_dataset]);
    worker.origins.bind(Some(sources));
    let (key, copies) = (own_block(&worker).key(), worker.copies.get().unwrap());
    let followed = async {
        while copies.holders(&key).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, followed).await.unwrap();
    worker
}

/// A block that the worker owns, and that the other gives if it has one.
fn own_block(worker: &Worker) -> Block {
    let map = worker.copies.get().unwrap().map();
    let mut blocks = (0..).map(|n| Block {
        object: ObjectRef {
            key: format!("a/{n}").into(),
            ..fake::block().object
        },
        ..fake::block()
    });
    let is_own = |block: &Block| map.owner(&block.key()).unwrap().id == worker.config.id;
    blocks.find(is_own).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_waits_for_its_turn_to_ask_takes_no_memory_meanwhile() {
    let other = peer("other", Kind::Holds).await;
    let worker = worker_beside(&other).await;
    let (block, copies) = (own_block(&worker), worker.copies.get().unwrap());
    let mut turns = Vec::new();
    while let Some(turn) = copies.turn().now_or_never() {
        turns.push(turn);
    }
    let all = worker.budget.available_permits();
    let key = block.key();
    let mut copying = Box::pin(worker.copy(&block, &key, 100));
    assert!(copying.as_mut().now_or_never().is_none());
    assert_eq!(worker.budget.available_permits(), all);
    let came = timeout(PATIENCE, copying).await.unwrap();
    assert!(came.is_none(), "the origin is asked instead");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_may_ask_waits_a_moment_for_its_memory() {
    let other = peer("other", Kind::Holds).await;
    let worker = worker_beside(&other).await;
    let block = own_block(&worker);
    let all = worker.budget.available_permits() as u32;
    let _others = worker.budget.try_acquire_many(all).unwrap();
    let since = tokio::time::Instant::now();
    let came = worker.copy(&block, &block.key(), 100).await;
    assert!(came.is_none() && since.elapsed() >= COPY_PLACE_DEADLINE);
    assert!(since.elapsed() < 2 * COPY_PLACE_DEADLINE);
}

#[tokio::test]
async fn a_takeover_that_finds_a_reader_s_fill_ends_as_that_does() {
    let other = peer("other", Kind::Lacks).await;
    let worker = worker_beside(&other).await;
    let block = own_block(&worker);
    let key = block.key();
    let content = Bytes::from(fake::content());
    for expected in [Taken::Failed, Taken::NotThere, Taken::NoRoom, Taken::Held] {
        let started = fills::start(&worker, key, block.len(), &block.object.key);
        let started = started.ok().unwrap();
        let mut taking = Box::pin(worker.take_block_over("set", &block, &other.info));
        assert!(taking.as_mut().now_or_never().is_none());
        if expected == Taken::NotThere {
            worker.evict(&[key]);
        }
        if expected != Taken::Failed {
            started.fill().push(content.clone());
        }
        if expected == Taken::Held {
            let mut pieces = Pieces::new(vec![content.clone()]);
            let sums = pieces.checksums();
            worker.memory.insert(key, pieces.bytes(), sums);
        }
        drop(started);
        assert_eq!(timeout(PATIENCE, taking).await.unwrap(), expected);
    }
    let again = worker.take_block_over("set", &block, &other.info).await;
    assert_eq!(again, Taken::Held);
}

#[tokio::test]
async fn a_block_that_was_found_wrong_is_not_brought_back() {
    let other = peer("other", Kind::Busy).await;
    let worker = worker_beside(&other).await;
    let block = own_block(&worker);
    let key = block.key();
    let take = || worker.take_block_over("set", &block, &other.info);
    let asked = || other.asked.load(Ordering::Relaxed);
    // While it is on its way, and then before it is asked for.
    let found_wrong = async {
        while asked() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        worker.copies.get().unwrap().distrust(&[key]);
        worker.evict(&[key]);
    };
    let (taken, ()) = timeout(PATIENCE, futures::future::join(take(), found_wrong))
        .await
        .unwrap();
    assert_eq!(taken, Taken::NotThere);
    assert!(!worker.holds(&key));
    assert_eq!((take().await, asked()), (Taken::NotThere, 1));
}

#[tokio::test(start_paused = true)]
async fn a_takeover_does_not_wait_for_ever_nor_for_a_worker_that_closes() {
    let other = peer("other", Kind::Holds).await;
    let worker = worker_beside(&other).await;
    let block = own_block(&worker);
    let all = worker.budget.available_permits() as u32;
    let _others = worker.budget.try_acquire_many(all).unwrap();
    let since = tokio::time::Instant::now();
    let take = || worker.take_block_over("set", &block, &other.info);
    assert_eq!(take().await, Taken::Failed);
    let waited = since.elapsed();
    assert!(waited >= PLACE_DEADLINE && waited < 2 * PLACE_DEADLINE);
    let tasks = worker.tasks.len();
    let mut taking = Box::pin(take());
    assert!(taking.as_mut().now_or_never().is_none());
    assert_eq!(worker.tasks.len(), tasks + 1, "closing waits for it");
    worker.stop.cancel();
    assert_eq!(taking.now_or_never(), Some(Taken::Failed));
}
