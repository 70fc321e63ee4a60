//! Segment files and frames of any bytes: nothing panics, hangs or takes memory without bound, and no wrong byte is read.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weir_core::{BLOCK_SIZE, BlockKey, ByteSize, ClusterMap};
use weir_fuzz::{Counting, Target};
use weir_origin::{FetchPolicy, OriginMetrics};
use weir_proto::v1::{BlockReply, BlockRequest};
use weir_worker::segment::{SegmentConfig, SegmentStore};
use weir_worker::stream::{Link, have_checksums, serve_local};
use weir_worker::{Worker, WorkerConfig, WorkerMetrics};

#[global_allocator]
static COUNTING: Counting = Counting;

const CAPACITY: u64 = 128 << 20;
/// Lengths of the blocks in the files that are damaged.
const LENGTHS: [usize; 6] = [1, 100, 4096, 5000, 70_000, 3];
/// Bytes of a header before the checksums of its chunks, and of a footer's trailer.
const HEAD: usize = 44;
const TRAILER: usize = 64;

fn key(n: usize) -> BlockKey {
    BlockKey([n as u8 + 1; 16])
}

fn content(n: usize) -> Vec<u8> {
    (0..LENGTHS[n]).map(|at| (at * 7 + n) as u8).collect()
}

fn open(dir: &Path) -> SegmentStore {
    SegmentStore::open(SegmentConfig::new(dir, CAPACITY)).unwrap()
}

/// The only file in a directory with this ending, if there is one.
fn file(dir: &Path, ending: &str) -> Vec<u8> {
    let mut paths = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let path = paths.find(|path| path.extension().is_some_and(|e| e == ending));
    path.map_or_else(Vec::new, |path| std::fs::read(path).unwrap())
}

/// A journal and a segment, as one input: the journal's length stands before it.
fn input(dir: &Path) -> Vec<u8> {
    let (journal, segment) = (file(dir, "journal"), file(dir, "segment"));
    let length = (journal.len() as u16).to_le_bytes();
    [&length[..], &journal, &segment].concat()
}

/// Directories of a store that was closed, and of one whose process died.
fn seeds() -> [Vec<u8>; 2] {
    let (closed, dead) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(closed.path());
    for n in 0..LENGTHS.len() {
        store.put(key(n), &content(n)).unwrap();
    }
    drop(store);
    let store = open(dead.path());
    for n in 0..LENGTHS.len() {
        store.put(key(n), &content(n)).unwrap();
    }
    // Enough small ones for a journal.
    for n in 0..40 {
        store.put(BlockKey([n + 100; 16]), b"small").unwrap();
    }
    let seed = input(dead.path());
    [input(closed.path()), seed]
}

/// Opens a directory with these files, reads all that is found, and gives the number of blocks and of what was read.
fn recover(input: &[u8], known: bool) -> (usize, usize) {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    let dir = in_memory.or_else(|_| tempfile::tempdir()).unwrap();
    let (length, rest) = input.split_first_chunk::<2>().unwrap_or((&[0; 2], input));
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (journal, segment) = rest.split_at(length);
    // The number of the segment is in its headers.
    let number = segment.get(16..24).and_then(|id| id.try_into().ok());
    let number = number.map_or(1, u64::from_le_bytes);
    let path = dir.path().join(format!("{number:016x}.segment"));
    std::fs::write(&path, segment).unwrap();
    if !journal.is_empty() {
        std::fs::write(path.with_extension("journal"), journal).unwrap();
    }
    let store = open(dir.path());
    let mut found = Vec::new();
    store.for_each(|key, _| found.push(key));
    let mut read = 0;
    for block in &found {
        if let Some(bytes) = store.read(block, 0..u32::MAX).unwrap() {
            read += 1;
            let expected = (0..LENGTHS.len()).find(|n| key(*n) == *block);
            if known && let Some(n) = expected {
                assert!(bytes == content(n), "wrong bytes of block {n}");
            }
        }
    }
    // It can be used on.
    store.put(BlockKey([255; 16]), b"later").unwrap();
    (found.len(), read)
}

/// Makes the checksums of the first header and of the footer right.
fn sum(input: &mut [u8]) {
    let crc = |bytes: &[u8]| crc_fast::crc32_iscsi(bytes).to_le_bytes();
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map_or(0, u32::from_le_bytes) as usize
    };
    let Some((length, rest)) = input.split_first_chunk_mut::<2>() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let segment = &mut rest[length..];
    let chunks = word(segment, 40).min(64);
    if let Some(header) = segment.get(8..HEAD + 4 * chunks) {
        // Of what it says, and of its place.
        let (own, place) = (crc(header), crc(&[0; 4]));
        let sum = u32::from_le_bytes(own) ^ u32::from_le_bytes(place);
        segment[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    if let Some(trailer) = segment.len().checked_sub(TRAILER) {
        let (offset, table) = (word(segment, trailer + 24), word(segment, trailer + 32));
        if let Some(table) = segment.get(offset..offset.saturating_add(table)) {
            let sum = crc(table);
            segment[trailer + 40..trailer + 44].copy_from_slice(&sum);
        }
        let sum = crc(&segment[trailer..trailer + 44]);
        segment[trailer + 44..trailer + 48].copy_from_slice(&sum);
    }
}

#[test]
fn segments_of_any_bytes_give_right_bytes_or_none() {
    let mut target = Target::new("segment")
        .memory(64 << 20)
        .words(&["WBLK", "WEIRSEGM"]);
    for seed in seeds() {
        target = target.seed(seed);
    }
    target.run(|input| recover(input, true));
}

#[test]
fn segment_headers_of_any_content_with_right_checksums() {
    let mut target = Target::new("segment-header").memory(64 << 20).repair(sum);
    for seed in seeds() {
        target = target.seed(seed);
    }
    target.run(|input| recover(input, false));
}

/// Whether some task has panicked: the runtime catches that.
static PANICKED: AtomicBool = AtomicBool::new(false);

fn note_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::Relaxed);
        before(info);
    }));
}

fn frame(message: &impl prost::Message) -> Vec<u8> {
    let length = message.encoded_len() as u32;
    [&length.to_le_bytes()[..], &message.encode_to_vec()].concat()
}

fn request() -> BlockRequest {
    BlockRequest {
        dataset: "set".to_owned(),
        origin: 7,
        key: "train/0001".to_owned(),
        object_size: 5 << 20,
        object_version: "etag".to_owned(),
        offset: 100,
        length: 4096,
        ..BlockRequest::default()
    }
}

#[test]
fn requests_of_any_bytes_are_answered_or_refused() {
    note_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true) // an origin that nobody knows is waited for
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let mut registry = prometheus_client::registry::Registry::default();
    let config = WorkerConfig {
        id: "w".parse().unwrap(),
        node: "n".parse().unwrap(),
        memory: ByteSize(1 << 20),
        ssd: Vec::new(),
        fill_budget: ByteSize(0),
        origins_file: None,
        fetch: FetchPolicy::default(),
    };
    let (stop, (_map, seen)) = (
        CancellationToken::new(),
        watch::channel(Arc::new(ClusterMap::default())),
    );
    let local = tokio::task::LocalSet::new();
    let (worker, listener) = local.block_on(&runtime, async {
        let metrics = WorkerMetrics::register(&mut registry);
        let origin_metrics = OriginMetrics::register(&mut registry);
        let worker = Worker::open(config, metrics, origin_metrics).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        (worker, listener)
    });
    let serving = local.spawn_local(serve_local(worker, seen, listener, stop.clone()));
    let hello = BlockRequest {
        stream_version: 1,
        ..BlockRequest::default()
    };
    let ahead = BlockRequest {
        ahead: true,
        length: 0,
        offset: 0,
        ..request()
    };
    let located = BlockRequest {
        location_format: 2,
        report_damaged: true,
        reads_before: 3,
        bytes_before: 5,
        ..request()
    };
    let together = [hello.clone(), request(), ahead, located];
    Target::new("requests")
        .memory(32 << 20)
        .seed(frame(&request()))
        .seed(together.iter().flat_map(frame).collect::<Vec<u8>>())
        .run(|input| {
            let replies = local.block_on(&runtime, async {
                let mut here = UnixStream::connect(&socket).await.unwrap();
                let talk = async {
                    // It may be refused in the middle.
                    let _ = here.write_all(input).await;
                    let _ = here.shutdown().await;
                    let mut replies = Vec::new();
                    let _ = here.read_to_end(&mut replies).await;
                    replies
                };
                tokio::time::timeout(Duration::from_hours(1), talk)
                    .await
                    .unwrap()
            });
            assert!(
                !PANICKED.load(Ordering::Relaxed),
                "a connection's task panicked"
            );
            replies.len()
        });
    stop.cancel();
    local.block_on(&runtime, serving).unwrap();
}

#[test]
fn replies_of_any_bytes_are_read_or_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let reply = |length: u32, checksums: Vec<u32>| BlockReply {
        status: 1,
        length,
        checksums,
        message: "a word".to_owned(),
        ..BlockReply::default()
    };
    let with_bytes = |length: usize| {
        let bytes = vec![7; length];
        let sums = vec![0; length.div_ceil(65_536)];
        [frame(&reply(length as u32, sums)), bytes].concat()
    };
    Target::new("replies")
        .seed(with_bytes(10))
        .seed([with_bytes(0), with_bytes(70_000)].concat())
        .memory(2 * BLOCK_SIZE as usize)
        .run(|input| {
            runtime.block_on(async {
                let (mut here, there) = UnixStream::pair().unwrap();
                let send = async {
                    let _ = here.write_all(input).await;
                    drop(here);
                };
                let receive = async {
                    let mut link = Link::of_client(there);
                    let (_, mut incoming) = link.split();
                    let mut read = 0;
                    while let Ok(Some(reply)) = incoming.message::<BlockReply>().await {
                        if u64::from(reply.length) > BLOCK_SIZE {
                            break;
                        }
                        let Ok(bytes) = incoming.payload(reply.length as usize).await else {
                            break;
                        };
                        let right = have_checksums(&bytes, 0, &reply.checksums);
                        read += 1 + bytes.len() + usize::from(right);
                    }
                    read
                };
                tokio::join!(send, receive).1
            })
        });
}
