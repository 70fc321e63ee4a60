use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use weir_core::placement::domains::Spread;
use weir_core::{Hashing, Location, ObjectRef, OriginId};
use weir_wire::{Frame, Link, STREAM_VERSION, checksums};

use super::*;
use crate::error::BatchError;

const LENGTH: usize = 1000;
/// What each worker fills its blocks with, so that one tells who answered.
const BYTES: [u8; 3] = [7, 8, 9];

/// What a worker of a test does with requests.
#[derive(Default)]
struct Script {
    /// It is of a version that answers no hello.
    is_old: bool,
    /// Nobody hears from it while this is not 0.
    is_frozen: AtomicU32,
    /// Whom the last request named as silent.
    silent: parking_lot::Mutex<Vec<String>>,
    /// It closes connections on which something is asked.
    is_closing: AtomicBool,
    requests: AtomicU32,
    /// Those for copies.
    copies: AtomicU32,
}

fn frame(status: BlockStatus) -> Frame {
    let reply = BlockReply {
        status: status.into(),
        ..BlockReply::default()
    };
    Frame::new(&reply, Vec::new())
}

fn spread(copies: u32, owner_is_busy: bool) -> Frame {
    let reply = BlockReply {
        status: BlockStatus::Spread.into(),
        copies,
        owner_is_busy,
        ..BlockReply::default()
    };
    Frame::new(&reply, Vec::new())
}

fn bytes(script: &Script, byte: u8, damaged: bool) -> Frame {
    let payload = vec![Bytes::from(vec![byte; LENGTH])];
    let mut sums = checksums(&payload, 0, LENGTH as u32, None);
    if damaged {
        sums[0] ^= 1;
    }
    let reply = BlockReply {
        status: BlockStatus::Ok.into(),
        length: LENGTH as u32,
        checksums: if script.is_old { Vec::new() } else { sums },
        ..BlockReply::default()
    };
    Frame::new(&reply, payload)
}

/// Serves a connection of a worker that answers requests as their keys say, until one tells it to close it.
async fn serve(socket: TcpStream, script: Arc<Script>, byte: u8) {
    let mut link = Link::of_server(socket);
    let (outgoing, mut incoming) = link.split();
    while let Ok(Some(request)) = incoming.message::<BlockRequest>().await {
        while script.is_frozen.load(Ordering::Relaxed) != 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if script.is_closing.load(Ordering::Relaxed) {
            break;
        }
        let frame = if request.stream_version > 0 {
            let reply = BlockReply {
                stream_version: STREAM_VERSION,
                ..BlockReply::default()
            };
            if script.is_old {
                frame(BlockStatus::BadRequest)
            } else {
                Frame::new(&reply, Vec::new())
            }
        } else {
            if !request.held_only {
                script.silent.lock().clone_from(&request.silent);
                script.requests.fetch_add(1, Ordering::Relaxed);
            }
            let first = byte == BYTES[0];
            match request.key.split('.').next().unwrap() {
                "close" => break,
                // The first holds them, or all but the first do, and the origin is away.
                "of_first" | "of_others" | "lost" if request.held_only => {
                    let is_of_first = request.key.starts_with("of_first");
                    if first == is_of_first {
                        bytes(&script, byte, false)
                    } else {
                        frame(BlockStatus::NotHeld)
                    }
                }
                "of_first" if first => bytes(&script, byte, false),
                "of_first" | "of_others" => loop {
                    tokio::time::sleep(SILENCE / 4).await;
                    if outgoing.send(&[frame(BlockStatus::Filling)]).await.is_err() {
                        return;
                    }
                },
                "lost" | "refused" => frame(BlockStatus::OriginError),
                "busy" if request.held_only => frame(BlockStatus::NotHeld),
                "changed" => frame(BlockStatus::Changed),
                "leaving" => frame(BlockStatus::Unavailable),
                "nothing" => frame(BlockStatus::Ok),
                "denied" if first => frame(BlockStatus::Denied),
                "mute" if first => std::future::pending().await,
                "late" => {
                    tokio::time::sleep(2 * SILENCE).await;
                    bytes(&script, byte, false)
                }
                "busy" => {
                    for status in [BlockStatus::Queued, BlockStatus::Filling].repeat(6) {
                        tokio::time::sleep(SILENCE / 4).await;
                        outgoing.send(&[frame(status)]).await.unwrap();
                    }
                    bytes(&script, byte, false)
                }
                "moved" => {
                    let reply = BlockReply {
                        status: BlockStatus::OriginError.into(),
                        placement_version: request.placement_version + 1,
                        ..BlockReply::default()
                    };
                    Frame::new(&reply, Vec::new())
                }
                "many" | "many_lacking" | "many_mute" if request.copy_place > 0 => {
                    assert_eq!((request.copy_place, request.reader), (1, 0));
                    assert_eq!(request.copy_from, ["worker-0"]);
                    script.copies.fetch_add(1, Ordering::Relaxed);
                    match request.key.split('.').next().unwrap() {
                        "many_lacking" => frame(BlockStatus::NotHeld),
                        "many_mute" => std::future::pending().await,
                        _ => bytes(&script, byte, false),
                    }
                }
                "many" | "many_lacking" | "many_mute" if request.copies == 0 => {
                    assert_ne!(request.reader, 0);
                    spread(1, false)
                }
                "many_busy" if request.copy_place > 0 => {
                    script.copies.fetch_add(1, Ordering::Relaxed);
                    // One of the two has no copies.
                    if byte == BYTES[1] {
                        frame(BlockStatus::NotHeld)
                    } else {
                        bytes(&script, byte, false)
                    }
                }
                "many_busy" if request.copies != INSIST => spread(2, true),
                "flipped" => bytes(&script, byte, first),
                "flipped_in_memory" => bytes(&script, byte, !request.report_damaged),
                _ => bytes(&script, byte, false),
            }
        };
        outgoing.send(&[frame]).await.unwrap();
    }
}

/// A worker; its address.
async fn worker(script: Arc<Script>, byte: u8) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, script.clone(), byte));
        }
    });
    address
}

async fn reader_of(scripts: &[Arc<Script>]) -> ClusterReader {
    let mut workers = Vec::new();
    for (number, script) in scripts.iter().enumerate() {
        workers.push(WorkerInfo {
            id: format!("worker-{number}").parse().unwrap(),
            data_address: worker(script.clone(), BYTES[number]).await,
            control_address: String::new(),
            node: "there".parse().unwrap(),
            location: Location::default(),
            local_socket: String::new(),
            weight: 1,
            cordoned_weight: 0,
        });
    }
    ClusterReader::of_map(ClusterMap::new(1, Hashing::NEWEST, workers))
}

async fn reader() -> ClusterReader {
    reader_of(&[Arc::default()]).await
}

fn block(key: &str) -> Block {
    Block {
        origin: OriginId(1),
        object: ObjectRef {
            key: key.into(),
            size: LENGTH as u64,
            version: "1".into(),
            modified_ns: 0,
        },
        index: 0,
    }
}

/// A block of the first worker's, on which it is to do so.
fn block_of_first(reader: &ClusterReader, action: &str) -> Block {
    let map = reader.config.map.borrow().clone();
    let mut blocks = (0..).map(|number| block(&format!("{action}.{number}")));
    let is_first = |block: &Block| map.owner(&block.key()).unwrap().id == map.workers()[0].id;
    blocks.find(is_first).unwrap()
}

/// Reads a block; gives who answered, and in which time.
async fn read_one(reader: &ClusterReader, block: &Block) -> (u8, Duration) {
    let start = Instant::now();
    let read = reader.read("set", "{}", block, 0..LENGTH as u32).await;
    let read = read.unwrap().0.concat();
    assert!(read.iter().all(|byte| *byte == read[0]));
    (read[0], start.elapsed())
}

/// Reads blocks of these keys together, and tells of each what came of it.
async fn read(reader: &ClusterReader, keys: &[&str]) -> Vec<&'static str> {
    let mut memory = vec![0; keys.len() * LENGTH];
    let blocks: Vec<_> = keys.iter().map(|key| block(key)).collect();
    let places = memory.chunks_exact_mut(LENGTH);
    let wanted = blocks.iter().zip(places).collect();
    let outcomes = reader.read_together("set", wanted).await;
    let outcomes = outcomes.iter().zip(memory.chunks_exact(LENGTH));
    let told = outcomes.map(|(outcome, bytes)| match outcome {
        Ok(ReadSource::Remote) if bytes == [BYTES[0]; LENGTH] => "read",
        Ok(_) => "wrong",
        Err(BatchError::Unreadable) => "refused",
        Err(BatchError::NotTogether) => "alone",
    });
    told.collect()
}

fn failovers(reader: &ClusterReader, reason: &'static str) -> u64 {
    let failovers = &reader.config.metrics.failovers;
    failovers.get_or_create(&ReasonLabel { reason }).get()
}

#[tokio::test]
async fn each_block_of_a_batch_has_an_answer_of_its_own() {
    let reader = reader().await;
    let keys = ["a", "refused", "b", "nothing", "changed", "leaving", "c"];
    let wanted = [
        "read", "refused", "read", "alone", "refused", "alone", "read",
    ];
    assert_eq!(read(&reader, &keys).await, wanted);
}

#[tokio::test]
async fn a_batch_whose_worker_goes_away_is_as_many_fail_overs() {
    let reader = reader().await;
    assert_eq!(read(&reader, &["a", "close", "b"]).await, ["alone"; 3]);
    assert_eq!(failovers(&reader, "unreachable"), 3);
    // It is passed over for a moment, without being asked.
    assert_eq!(read(&reader, &["a"]).await, ["alone"]);
    assert_eq!(failovers(&reader, "unreachable"), 3);
}

#[tokio::test]
async fn a_frozen_owner_costs_one_wait_and_is_trusted_again_once_it_answers() {
    let scripts: [Arc<Script>; 2] = Default::default();
    let reader = reader_of(&scripts).await;
    let block = block_of_first(&reader, "block");
    assert_eq!(read_one(&reader, &block).await.0, BYTES[0]);
    scripts[0].is_frozen.store(1, Ordering::Relaxed);
    let (who, time) = read_one(&reader, &block).await;
    assert_eq!(who, BYTES[1]);
    assert!(time >= SILENCE && time < 5 * SILENCE, "{time:?}");
    for _ in 0..20 {
        let (who, time) = read_one(&reader, &block).await;
        assert_eq!(who, BYTES[1]);
        assert!(time < SILENCE, "a suspect was waited for: {time:?}");
    }
    assert_eq!(failovers(&reader, "silent"), 1);
    scripts[0].is_frozen.store(0, Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(20);
    while read_one(&reader, &block).await.0 != BYTES[0] {
        assert!(Instant::now() < deadline, "it is not trusted again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Blocks of one object, all of them the first worker's.
fn blocks_of_first(reader: &ClusterReader, action: &str, count: usize) -> Vec<Block> {
    let map = reader.config.map.borrow().clone();
    let blocks = (0..).map(|index| Block {
        object: ObjectRef {
            size: u64::from(u32::MAX) * weir_core::BLOCK_SIZE,
            ..block(action).object
        },
        index,
        ..block(action)
    });
    let is_first = |block: &Block| map.owner(&block.key()).unwrap().id == map.workers()[0].id;
    blocks.filter(is_first).take(count).collect()
}

#[tokio::test]
async fn readers_of_what_many_read_are_shared_by_the_workers_that_copies_are_at() {
    let scripts: [Arc<Script>; 2] = Default::default();
    let reader = reader_of(&scripts).await;
    let blocks = blocks_of_first(&reader, "many", 200);
    let mut by_copies = 0;
    for block in &blocks {
        let (who, _) = read_one(&reader, block).await;
        by_copies += u32::from(who == BYTES[1]);
    }
    assert!((60..140).contains(&by_copies), "{by_copies}");
    assert_eq!(scripts[1].copies.load(Ordering::Relaxed), by_copies);
    assert_eq!(scripts[1].requests.load(Ordering::Relaxed), by_copies);
    // Each block is always read at the same place.
    for block in &blocks[..20] {
        let first = read_one(&reader, block).await.0;
        assert_eq!(read_one(&reader, block).await.0, first);
    }
    // Another reader chooses others.
    let other = reader_of(&scripts).await;
    let mut others = 0;
    for block in &blocks {
        let same = read_one(&reader, block).await.0 == read_one(&other, block).await.0;
        others += u32::from(!same);
    }
    assert!(others > 50, "{others}");
    let unread = failovers(&reader, "silent") + failovers(&reader, "protocol");
    assert_eq!(unread, 0);
}

#[tokio::test]
async fn a_worker_that_gives_no_copies_costs_a_question_or_a_wait_once() {
    let scripts: [Arc<Script>; 2] = Default::default();
    let reader = reader_of(&scripts).await;
    for block in blocks_of_first(&reader, "many_lacking", 50) {
        let (who, time) = read_one(&reader, &block).await;
        assert_eq!(who, BYTES[0]);
        assert!(time < SILENCE, "{time:?}");
    }
    assert_eq!(scripts[1].copies.load(Ordering::Relaxed), 1);
    // It is forgiven after a while, which is not waited for here.
    let reader = reader_of(&scripts).await;
    let mut waited = 0;
    for block in blocks_of_first(&reader, "many_mute", 50) {
        let (who, time) = read_one(&reader, &block).await;
        assert_eq!(who, BYTES[0]);
        waited += u32::from(time >= SILENCE);
        assert!(time < 3 * SILENCE, "{time:?}");
    }
    assert_eq!(waited, 1);
    assert_eq!(failovers(&reader, "silent"), 0, "the owner was not silent");
}

#[tokio::test]
async fn an_owner_that_is_busy_is_asked_last_and_a_worker_without_copies_once() {
    let scripts: [Arc<Script>; 3] = Default::default();
    let reader = reader_of(&scripts).await;
    let mut by_owner = 0;
    for block in blocks_of_first(&reader, "many_busy", 100) {
        let (who, _) = read_one(&reader, &block).await;
        by_owner += u32::from(who == BYTES[0]);
    }
    // One that is sent there by the owner comes back to it; the others go to the third.
    let asked = |n: usize| scripts[n].copies.load(Ordering::Relaxed);
    assert_eq!(by_owner + asked(2), 100);
    assert!(by_owner <= asked(1), "{by_owner}");
    assert!((1..=5).contains(&asked(1)), "{} questions", asked(1));
}

#[tokio::test]
async fn a_worker_of_an_older_version_is_asked_for_no_copies() {
    let old = Arc::new(Script {
        is_old: true,
        ..Script::default()
    });
    let scripts = [Arc::<Script>::default(), old];
    let reader = reader_of(&scripts).await;
    for block in blocks_of_first(&reader, "many", 50) {
        assert_eq!(read_one(&reader, &block).await.0, BYTES[0]);
    }
    assert_eq!(scripts[1].requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_block_whose_owners_do_not_answer_is_kept_by_the_next_worker() {
    let scripts: [Arc<Script>; 3] = Default::default();
    let reader = reader_of(&scripts).await;
    let map = reader.config.map.borrow().clone();
    let mut blocks = (0..).map(|number| block(&format!("block.{number}")));
    let is_last_of_third = |block: &Block| {
        let owners = map.owners(&block.key(), 3).into_iter();
        let owners: Vec<_> = owners.map(|owner| owner.id.as_str()).collect();
        owners == ["worker-0", "worker-1", "worker-2"]
    };
    let block = blocks.find(is_last_of_third).unwrap();
    for script in &scripts[..2] {
        script.is_closing.store(true, Ordering::Relaxed);
    }
    // Who is found to be away costs no more than one question each, and this origin is none: it is asked for what it holds.
    assert_eq!(read_one(&reader, &block).await.0, BYTES[2]);
    assert_eq!(failovers(&reader, "unreachable"), 2);
    for _ in 0..5 {
        assert_eq!(read_one(&reader, &block).await.0, BYTES[2]);
    }
    for script in &scripts[..2] {
        script.is_closing.store(false, Ordering::Relaxed);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while read_one(&reader, &block).await.0 != BYTES[0] {
        assert!(Instant::now() < deadline, "the owner is not trusted again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_read_that_waits_for_the_origin_comes_back_to_an_owner_that_answers_again() {
    let script = Arc::<Script>::default();
    script.is_closing.store(true, Ordering::Relaxed);
    let reader = reader_of(std::slice::from_ref(&script)).await;
    // The kernel accepts connections for it, and nobody answers.
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let spec = OriginSpec {
        endpoint: Some(format!("http://{}", origin.local_addr().unwrap())),
        anonymous: true,
        patience_seconds: Some(600),
        ..OriginSpec::parse("s3://bucket").unwrap()
    };
    let block = Block {
        origin: spec.id(),
        ..block("key")
    };
    let spec = serde_json::to_string(&spec).unwrap();
    let answers_again = async {
        let deadline = Instant::now() + Duration::from_secs(20);
        while failovers(&reader, "unreachable") == 0 {
            assert!(Instant::now() < deadline, "the worker was not asked");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        script.is_closing.store(false, Ordering::Relaxed);
    };
    let read = reader.read("set", &spec, &block, 0..LENGTH as u32);
    let read = tokio::time::timeout(Duration::from_secs(20), read);
    let (read, ()) = tokio::join!(read, answers_again);
    let (bytes, source) = read.expect("it waits for the origin").unwrap();
    assert_eq!(source, ReadSource::Remote);
    assert_eq!(bytes.concat(), [BYTES[0]; LENGTH]);
}

#[tokio::test]
async fn a_block_is_read_where_it_is_held_while_its_owner_waits_for_the_origin() {
    let scripts: [Arc<Script>; 3] = Default::default();
    let reader = reader_of(&scripts).await;
    let (who, time) = read_one(&reader, &block_of_first(&reader, "of_others")).await;
    assert_ne!(who, BYTES[0]);
    assert!(time < Duration::from_secs(3), "{time:?}");
    // It was not to fetch it, too.
    let asked = |n: usize| scripts[n].requests.load(Ordering::Relaxed);
    assert_eq!((asked(1), asked(2)), (0, 0));
    // Nor is an owner's failure the last word.
    let (who, _) = read_one(&reader, &block_of_first(&reader, "lost")).await;
    assert_ne!(who, BYTES[0]);
    assert_eq!(failovers(&reader, "slow_origin"), 2);
    // Whom nobody can help is told.
    let nowhere = block_of_first(&reader, "refused");
    let read = reader.read("set", "{}", &nowhere, 0..LENGTH as u32);
    assert!(matches!(read.await, Err(BlockError::Failed(_))));
}

#[tokio::test]
async fn reads_of_who_stands_in_for_an_owner_come_back_to_it() {
    let scripts: [Arc<Script>; 2] = Default::default();
    let reader = reader_of(&scripts).await;
    let block = block_of_first(&reader, "of_first");
    scripts[0].is_frozen.store(1, Ordering::Relaxed);
    let wakes = async {
        let deadline = Instant::now() + Duration::from_secs(20);
        let id = reader.config.map.borrow().workers()[0].id.clone();
        while !reader.suspects.contains(&id) {
            assert!(Instant::now() < deadline, "it is not suspected");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Begins while the owner is asked last, when the other is asked alone.
        let read = read_one(&reader, &block);
        let wake = async { scripts[0].is_frozen.store(0, Ordering::Relaxed) };
        tokio::join!(read, wake).0
    };
    let reads = async { tokio::join!(read_one(&reader, &block), wakes) };
    let reads = tokio::time::timeout(Duration::from_secs(10), Box::pin(reads)).await;
    let (first, second) = reads.expect("they wait for the origin");
    assert_eq!((first.0, second.0), (BYTES[0], BYTES[0]));
}

#[tokio::test]
async fn many_readers_of_a_frozen_owner_all_go_on() {
    let scripts: [Arc<Script>; 2] = Default::default();
    let reader = reader_of(&scripts).await;
    let block = block_of_first(&reader, "mute");
    let reads = (0..200).map(|_| read_one(&reader, &block));
    let longest = join_all(reads).await.into_iter().map(|(who, time)| {
        assert_eq!(who, BYTES[1]);
        time
    });
    let longest = longest.max().unwrap();
    assert!(longest < Duration::from_secs(4), "{longest:?}");
    // The next one is told, and need not wait for it, too.
    let owner = reader.config.map.borrow().workers()[0].id.to_string();
    assert_eq!(*scripts[1].silent.lock(), [owner]);
    assert!(scripts[0].silent.lock().is_empty());
}

#[tokio::test]
async fn an_owner_that_says_that_it_is_busy_is_not_raced() {
    let scripts: [Arc<Script>; 2] = Default::default();
    let reader = reader_of(&scripts).await;
    let (who, time) = read_one(&reader, &block_of_first(&reader, "busy")).await;
    assert_eq!(who, BYTES[0]);
    assert!(time > SILENCE);
    assert_eq!(scripts[1].requests.load(Ordering::Relaxed), 0);
    assert_eq!(failovers(&reader, "silent"), 0);
}

#[tokio::test]
async fn an_owner_of_an_older_version_may_be_silent_while_it_works() {
    let old = Arc::new(Script {
        is_old: true,
        ..Script::default()
    });
    let reader = reader_of(&[old, Arc::default()]).await;
    let late = read_one(&reader, &block_of_first(&reader, "late")).await;
    assert_eq!(late.0, BYTES[0]);
    assert_eq!(failovers(&reader, "silent"), 0);
    // The connection is of use for the next, which has no checksums.
    assert_eq!(
        read_one(&reader, &block_of_first(&reader, "flipped"))
            .await
            .0,
        BYTES[0]
    );
}

#[tokio::test]
async fn damaged_bytes_are_asked_for_again_and_then_of_the_next() {
    let scripts: [Arc<Script>; 2] = Default::default();
    let reader = reader_of(&scripts).await;
    let in_memory = block_of_first(&reader, "flipped_in_memory");
    assert_eq!(read_one(&reader, &in_memory).await.0, BYTES[0]);
    assert_eq!(reader.config.metrics.damaged.get(), 1);
    let flipped = block_of_first(&reader, "flipped");
    assert_eq!(read_one(&reader, &flipped).await.0, BYTES[1]);
    assert_eq!(reader.config.metrics.damaged.get(), 3);
    assert_eq!(failovers(&reader, "damaged"), 1);
    // It answers, so it is no suspect.
    let block = block_of_first(&reader, "block");
    assert_eq!(read_one(&reader, &block).await.0, BYTES[0]);
}

#[tokio::test]
async fn the_next_owner_is_asked_when_the_first_may_not_read_the_origin() {
    let scripts: [Arc<Script>; 2] = Default::default();
    let reader = reader_of(&scripts).await;
    let denied = block_of_first(&reader, "denied");
    assert_eq!(read_one(&reader, &denied).await.0, BYTES[1]);
    assert_eq!(failovers(&reader, "denied"), 1);
}

#[tokio::test]
async fn the_nearest_copy_is_asked_and_a_newer_placement_is_asked_for() {
    let scripts: [Arc<Script>; 2] = Default::default();
    let reader = reader_of(&scripts).await;
    let mut workers = reader.config.map.borrow().workers().to_vec();
    for (worker, zone) in workers.iter_mut().zip(["a", "b"]) {
        worker.location = Location::of_names(zone, "").unwrap();
    }
    let map = watch::Sender::new(Arc::new(ClusterMap::new(2, Hashing::NEWEST, workers)));
    let placement = watch::Sender::new(Arc::new(Placement {
        version: 7,
        spread: Spread::Zone,
        domains: vec!["a".to_owned()],
        ..Placement::default()
    }));
    let of = |zone: &str| {
        ClusterReader::new(ClusterConfig {
            map: map.subscribe(),
            placement: placement.subscribe(),
            location: Location::of_names(zone, "").unwrap(),
            ..reader_config(ClusterMap::default())
        })
    };
    let reads = async |reader: &ClusterReader, byte: u8| {
        for number in 0..20 {
            let block = block(&format!("block.{number}"));
            assert_eq!(read_one(reader, &block).await.0, byte);
        }
    };
    let (in_a, in_b) = (of("a"), of("b"));
    reads(&in_a, BYTES[0]).await;
    reads(&in_b, BYTES[0]).await;
    let before = Placement::clone(&placement.borrow());
    placement.send_replace(Arc::new(Placement {
        version: 8,
        domains: vec!["a".to_owned(), "b".to_owned()],
        ..before
    }));
    reads(&in_a, BYTES[0]).await;
    reads(&in_b, BYTES[1]).await;
    let is_asked = in_b.config.refresh_now.notified().now_or_never();
    assert!(is_asked.is_none(), "nobody has a newer one");
    let moved = block("moved");
    let read = in_b.read("set", "{}", &moved, 0..LENGTH as u32);
    assert!(read.await.is_err());
    let is_asked = in_b.config.refresh_now.notified().now_or_never();
    assert!(is_asked.is_some(), "a worker has a newer one");
}

#[test]
fn a_reader_stands_where_a_worker_on_its_node_does_unless_it_says() {
    let worker = |id: &str, node: &str, zone: &str, group: &str| WorkerInfo {
        id: id.parse().unwrap(),
        data_address: String::new(),
        control_address: String::new(),
        node: node.parse().unwrap(),
        location: Location::of_names(zone, group).unwrap(),
        local_socket: String::new(),
        weight: 1,
        cordoned_weight: 0,
    };
    let workers = vec![
        worker("w1", "there", "a", "r1"),
        worker("w2", "here", "b", "r2"),
    ];
    let map = Arc::new(ClusterMap::new(1, Hashing::NEWEST, workers));
    let at = |zone: &str, group: &str| {
        let config = ClusterConfig {
            location: Location::of_names(zone, group).unwrap(),
            ..reader_config(ClusterMap::default())
        };
        View::new(&config, map.clone(), Arc::default()).at
    };
    let place = |zone: &str, group: &str| Location::of_names(zone, group).unwrap();
    assert_eq!(at("", ""), place("b", "r2"));
    assert_eq!(at("c", ""), place("c", ""));
    assert_eq!(at("", "r9"), place("b", "r9"));
    assert_eq!(at("c", "r9"), place("c", "r9"));
}
