//! Workers that hold a block, and those that do not answer as they should.

use std::sync::atomic::{AtomicU32, Ordering};

use prometheus_client::registry::Registry;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use weir_core::placement::Hashing;
use weir_core::{Location, ObjectRef};
use weir_proto::v1::BlockReply;
use weir_wire::{Frame, Link, STREAM_VERSION, checksums};

use super::*;

const LENGTH: usize = 100_000;
/// Longest wait for anything. Generous: other tests run on the same cores.
const PATIENCE: Duration = Duration::from_mins(1);

/// How a worker answers.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Holds,
    Lacks,
    /// It says that it is busy for longer than a silent one is waited for.
    Busy,
    /// Its kernel accepts, and nobody says a word.
    Frozen,
    /// A byte now and then.
    Slow,
    /// Its bytes are not those that the checksums are of.
    Lying,
    /// It has fewer bytes than it was asked for.
    Short,
    /// It answers as if it had the bytes, and sends none.
    Empty,
    /// It says that it waits, for ever.
    Waiting,
    Closing,
    Refusing,
    /// It knows hellos, and not that it must not fetch.
    Old,
    /// It knows no hellos.
    Older,
}

struct Peer {
    info: WorkerInfo,
    asked: Arc<AtomicU32>,
}

fn content() -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8).collect()
}

fn block() -> Block {
    Block {
        origin: OriginId(7),
        object: ObjectRef {
            key: "a/b".into(),
            size: LENGTH as u64,
            version: "v".into(),
            modified_ns: 0,
        },
        index: 0,
    }
}

fn status(status: BlockStatus) -> Frame {
    let reply = BlockReply {
        status: status.into(),
        ..BlockReply::default()
    };
    Frame::new(&reply, Vec::new())
}

fn bytes_of(content: &[u8], sent: usize) -> Frame {
    let sums = checksums(&[Bytes::from(self::content())], 0, LENGTH as u32, None);
    let reply = BlockReply {
        status: BlockStatus::Ok.into(),
        length: sent as u32,
        checksums: sums,
        ..BlockReply::default()
    };
    Frame::new(&reply, vec![Bytes::copy_from_slice(&content[..sent])])
}

async fn serve(mut socket: TcpStream, kind: Kind, asked: Arc<AtomicU32>) {
    if kind == Kind::Slow {
        // A frame that says how long it is, and then has a byte each time that a silent worker is nearly given up on.
        let _ = socket.write_all(&[1]).await;
    }
    let mut link = Link::of_server(socket);
    let (outgoing, mut incoming) = link.split();
    while let Ok(Some(request)) = incoming.message::<BlockRequest>().await {
        if kind == Kind::Frozen {
            std::future::pending::<()>().await;
        }
        if request.stream_version > 0 {
            let version = if kind == Kind::Old { 2 } else { STREAM_VERSION };
            let reply = BlockReply {
                status: BlockStatus::Ok.into(),
                stream_version: version,
                ..BlockReply::default()
            };
            let hello = match kind {
                Kind::Older => status(BlockStatus::BadRequest),
                _ => Frame::new(&reply, Vec::new()),
            };
            outgoing.send(&[hello]).await.unwrap();
            continue;
        }
        asked.fetch_add(1, Ordering::Relaxed);
        assert!(request.held_only, "it would fetch");
        let mut damaged = content();
        damaged[70_000] ^= 1;
        let frame = match kind {
            Kind::Lacks => status(BlockStatus::NotHeld),
            Kind::Refusing => status(BlockStatus::Denied),
            Kind::Lying => bytes_of(&damaged, LENGTH),
            Kind::Short => bytes_of(&content(), LENGTH / 2),
            Kind::Empty => status(BlockStatus::Ok),
            Kind::Closing => return,
            Kind::Waiting => loop {
                tokio::time::sleep(SILENCE / 4).await;
                let waits = status(BlockStatus::Queued);
                if outgoing.send(&[waits]).await.is_err() {
                    return;
                }
            },
            Kind::Busy => {
                for busy in [BlockStatus::Queued, BlockStatus::Filling].repeat(3) {
                    tokio::time::sleep(SILENCE / 4).await;
                    outgoing.send(&[status(busy)]).await.unwrap();
                }
                bytes_of(&content(), LENGTH)
            }
            _ => bytes_of(&content(), LENGTH),
        };
        outgoing.send(&[frame]).await.unwrap();
    }
}

async fn peer(name: &str, kind: Kind) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asked = Arc::<AtomicU32>::default();
    let info = WorkerInfo {
        id: name.parse().unwrap(),
        data_address: listener.local_addr().unwrap().to_string(),
        control_address: String::new(),
        node: "n".parse().unwrap(),
        location: Location::default(),
        local_socket: String::new(),
        weight: 1,
        cordoned_weight: 0,
    };
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, kind, count.clone()));
        }
    });
    Peer { info, asked }
}

fn copies() -> Arc<Copies> {
    copies_of(ClusterMap::default())
}

fn copies_of(map: ClusterMap) -> Arc<Copies> {
    let map = watch::Sender::new(Arc::new(map)).subscribe();
    let metrics = WorkerMetrics::register(&mut Registry::default());
    let own = "own".parse().unwrap();
    Arc::new(Copies::new(own, map, Dial::default(), metrics))
}

fn counted(copies: &Copies, result: &'static str) -> u64 {
    let label = ResultLabel { result };
    copies.metrics.copies.get_or_create(&label).get()
}

/// Asks one worker, then one that holds the block. Gives how long that took, and whether the first one is left out then.
async fn passed_over(kind: Kind, result: &'static str) -> (Duration, bool) {
    let copies = copies();
    let (first, second) = (peer("first", kind).await, peer("second", Kind::Holds).await);
    let holders = [first.info.clone(), second.info];
    let since = Instant::now();
    let fetched = timeout(PATIENCE, copies.fetch(&holders, "set", &block())).await;
    let took = since.elapsed();
    assert_eq!(
        fetched.unwrap().as_deref(),
        Some(&content()[..]),
        "{kind:?}"
    );
    assert_eq!(counted(&copies, result), 1, "{kind:?}");
    assert_eq!(counted(&copies, "ok"), 1, "{kind:?}");
    let too_old = matches!(kind, Kind::Old | Kind::Older);
    assert!(
        !too_old || first.asked.load(Ordering::Relaxed) == 0,
        "{kind:?}"
    );
    let avoided = copies.avoided.lock().contains_key(&first.info.id);
    (took, avoided)
}

#[tokio::test]
async fn whoever_does_not_give_a_block_is_passed_over_and_the_silent_are_left_out() {
    for (kind, result, left_out) in [
        (Kind::Lacks, "not_held", false),
        (Kind::Refusing, "refused", false),
        (Kind::Empty, "refused", false),
        (Kind::Lying, "damaged", false),
        (Kind::Short, "unreachable", true),
        (Kind::Closing, "unreachable", true),
        (Kind::Frozen, "silent", true),
        (Kind::Waiting, "late", true),
        (Kind::Slow, "silent", true),
        (Kind::Old, "too_old", true),
        (Kind::Older, "too_old", true),
    ] {
        let (took, avoided) = passed_over(kind, result).await;
        assert_eq!(avoided, left_out, "{kind:?}");
        assert!(kind != Kind::Frozen || took >= SILENCE, "{took:?}");
    }
}

#[tokio::test]
async fn a_worker_that_says_that_it_is_busy_is_waited_for() {
    let copies = copies();
    let busy = peer("busy", Kind::Busy).await;
    let fetched = copies.fetch(&[busy.info], "set", &block()).await;
    assert_eq!(fetched.as_deref(), Some(&content()[..]));
    assert_eq!(copies.metrics.copied_bytes.get(), LENGTH as u64);
}

#[tokio::test]
async fn what_is_cold_everywhere_is_seldom_asked_for_until_somebody_has_it() {
    let copies = copies();
    let (lacks, holds) = (
        peer("lacks", Kind::Lacks).await,
        peer("holds", Kind::Holds).await,
    );
    let cold = [lacks.info];
    for _ in 0..COLD_AFTER {
        assert!(copies.fetch(&cold, "set", &block()).await.is_none());
    }
    let asked = || lacks.asked.load(Ordering::Relaxed);
    assert_eq!(asked(), COLD_AFTER);
    for _ in 0..10 * STILL_ASKED {
        assert!(copies.fetch(&cold, "set", &block()).await.is_none());
    }
    assert!((5..=15).contains(&(asked() - COLD_AFTER)), "{}", asked());
    // Another origin's are asked for.
    let other = Block {
        origin: OriginId(8),
        ..block()
    };
    let before = asked();
    assert!(copies.fetch(&cold, "set", &other).await.is_none());
    assert_eq!(asked(), before + 1);
    // Somebody has one: then others are worth it, too.
    let warm = [holds.info];
    let mut found = false;
    for _ in 0..STILL_ASKED {
        found |= copies.fetch(&warm, "set", &block()).await.is_some();
    }
    assert!(found && copies.fetch(&warm, "set", &block()).await.is_some());
}

#[tokio::test]
async fn nobody_is_asked_for_a_block_that_was_wrong() {
    let peer = peer("a", Kind::Holds).await;
    let own = WorkerInfo {
        id: "own".parse().unwrap(),
        ..peer.info.clone()
    };
    let copies = copies_of(ClusterMap::new(2, Hashing::NEWEST, vec![peer.info, own]));
    copies.see(&copies.map());
    let mut keys = (0..).map(|n: u64| {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        BlockKey(key)
    });
    let key = keys.find(|key| !copies.holders(key).is_empty()).unwrap();
    copies.distrust(&[key]);
    assert!(copies.holders(&key).is_empty());
    let many: Vec<BlockKey> = keys.take(2 * MAX_WRONG).collect();
    copies.distrust(&many);
    assert!(copies.wrong.lock().len() <= MAX_WRONG);
}
