//! Blocks that other workers may hold, on their way to the tiers.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use weir_core::{ByteSize, ClusterMap, Hashing, Location, ObjectRef};
use weir_origin::{OriginSpec, SourcePolicy};
use weir_proto::v1;
use weir_trust::{Access, Dial};

use super::*;
use crate::config::WorkerConfig;
use crate::copies::fake::{self, Kind, Peer, peer};
use crate::read_source::Source;
use crate::sources::DatasetSources;
use crate::stream::{Admission, StreamMode, serve_tcp};
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
        former: Vec::new(),
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
    let fill = Fill::new(block.len());
    let asker = Asker::default();
    let mut copying = Box::pin(worker.copy(&block, &key, &fill, 100, &asker));
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
    let (key, fill) = (block.key(), Fill::new(block.len()));
    let came = worker
        .copy(&block, &key, &fill, 100, &Asker::default())
        .await;
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

/// Two workers of zones `a` and `b` that serve blocks of a directory's files, each with its own idea of which zone has the first
/// copy.
struct Pair {
    workers: [Arc<Worker>; 2],
    blocks: Vec<Block>,
    content: Vec<u8>,
    _dir: tempfile::TempDir,
    _map: watch::Sender<Arc<ClusterMap>>,
}

impl Pair {
    async fn new(files: usize, domains: [[&str; 2]; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let content = fake::content();
        for n in 0..files {
            std::fs::write(dir.path().join(n.to_string()), &content).unwrap();
        }
        let url = format!("file://{}", dir.path().display());
        let spec = OriginSpec::parse(&url).unwrap();
        let opened = weir_origin::open(&spec, &SourcePolicy::unlimited())
            .await
            .unwrap();
        let mut blocks = Vec::new();
        let mut pages = opened.list("");
        while let Some(page) = pages.next().await {
            blocks.extend(page.unwrap().into_iter().map(|listed| Block {
                origin: opened.id(),
                object: ObjectRef {
                    key: String::from_utf8(listed.key).unwrap().into(),
                    size: listed.size,
                    version: listed.version.into(),
                    modified_ns: listed.mtime_ns,
                },
                index: 0,
            }));
        }
        assert_eq!(blocks.len(), files);
        let mut listeners = Vec::new();
        let mut infos = Vec::new();
        for zone in ["a", "b"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            infos.push(WorkerInfo {
                data_address: listener.local_addr().unwrap().to_string(),
                node: zone.parse().unwrap(),
                location: Location::of_names(zone, "").unwrap(),
                ..testing::info(zone).unwrap()
            });
            listeners.push(listener);
        }
        let map = watch::Sender::new(Arc::new(ClusterMap::new(2, Hashing::NEWEST, infos)));
        let mut workers = Vec::new();
        for (listener, (zone, domains)) in listeners
            .into_iter()
            .zip(["a", "b"].into_iter().zip(domains))
        {
            let config = WorkerConfig {
                memory: ByteSize(64 << 20),
                ..testing::config(zone).unwrap()
            };
            let worker = testing::open(config).unwrap();
            let of_dataset = v1::DatasetSources {
                dataset: "set".to_owned(),
                sources: vec![v1::Source {
                    origin: opened.id().0,
                    prefix: String::new(),
                }],
                placement: Some(v1::Placement {
                    version: 1,
                    spread: v1::Spread::Zone.into(),
                    domains: domains.map(str::to_owned).into(),
                    ..v1::Placement::default()
                }),
                former: Vec::new(),
            };
            worker.placements.set(std::slice::from_ref(&of_dataset));
            worker
                .origins
                .bind(Some(DatasetSources::of_reply(vec![of_dataset])));
            worker.origins.add(spec.clone());
            worker.copy_from_others(map.subscribe(), Dial::default());
            let id = worker.config.id.clone();
            let admission = Admission::new(Access::SameUser, StreamMode::default(), &id);
            let stop = worker.stop.clone();
            tokio::spawn(serve_tcp(
                worker.clone(),
                map.subscribe(),
                listener,
                admission,
                stop,
            ));
            let copies = worker.copies.get().unwrap();
            while !copies.is_settled_for(Duration::ZERO) {
                tokio::task::yield_now().await;
            }
            workers.push(worker);
        }
        Self {
            workers: workers.try_into().unwrap(),
            blocks,
            content,
            _dir: dir,
            _map: map,
        }
    }

    /// Bytes that the origin has sent to each.
    fn fetched(&self) -> [u64; 2] {
        self.workers
            .each_ref()
            .map(|worker| worker.metrics.fill_bytes.get())
    }

    /// Has all blocks read by both at the same time.
    async fn read_all(&self) {
        let reads = self.workers.iter().flat_map(|worker| {
            self.blocks.iter().map(async |block| {
                let (pieces, _) = worker.read(block, 0..block.len()).await.unwrap();
                assert!(pieces.concat() == self.content);
            })
        });
        timeout(PATIENCE, futures::future::join_all(reads))
            .await
            .unwrap();
    }
}

const FILES: usize = 30;

#[tokio::test]
async fn the_owner_of_a_further_copy_has_the_first_one_s_owner_fetch() {
    let pair = Pair::new(FILES, [["b", "a"]; 2]).await;
    pair.read_all().await;
    let all = (FILES * fake::LENGTH) as u64;
    assert_eq!(pair.fetched(), [0, all]);
    assert_eq!(pair.workers[0].metrics.copied_bytes.get(), all);
    for worker in &pair.workers {
        assert!(pair.blocks.iter().all(|block| worker.holds(&block.key())));
    }
}

#[tokio::test]
async fn what_is_fetched_for_a_warm_job_is_counted_once_for_all_copies() {
    let pair = Pair::new(FILES, [["b", "a"]; 2]).await;
    let mut fetched = 0;
    for block in &pair.blocks {
        let warm = async |worker: &Arc<Worker>| worker.warm(block).await.unwrap();
        let both = futures::future::join(warm(&pair.workers[0]), warm(&pair.workers[1]));
        let (one, other) = timeout(PATIENCE, both).await.unwrap();
        fetched += usize::from(one) + usize::from(other);
    }
    assert_eq!(fetched, FILES);
}

/// Each asks the other, which waits for none that asks: one of the two fetches, or both.
#[tokio::test]
async fn workers_that_take_each_other_for_the_first_owner_do_not_wait_for_each_other() {
    let pair = Pair::new(FILES, [["b", "a"], ["a", "b"]]).await;
    let since = Instant::now();
    pair.read_all().await;
    assert!(since.elapsed() < PATIENCE / 6, "{:?}", since.elapsed());
    let all = (FILES * fake::LENGTH) as u64;
    let [one, other] = pair.fetched();
    assert!((all..=2 * all).contains(&(one + other)), "{one}, {other}");
}

#[tokio::test]
async fn without_the_first_one_s_owner_the_origin_is_asked() {
    let pair = Pair::new(FILES, [["b", "a"]; 2]).await;
    let [own, first] = &pair.workers;
    first.stop.cancel();
    let block = &pair.blocks[0];
    let read = own.read(block, 0..block.len());
    let (pieces, source) = timeout(PATIENCE, read).await.unwrap().unwrap();
    assert!(pieces.concat() == pair.content);
    assert_eq!(source, Source::Origin);
}
