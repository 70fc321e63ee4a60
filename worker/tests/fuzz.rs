//! Requests of any bytes: nothing panics, hangs or takes memory without bound.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weir_core::{ByteSize, ClusterMap};
use weir_fuzz::{Counting, Target};
use weir_proto::v1::BlockRequest;
use weir_worker::stream::serve_local;
use weir_worker::{WorkerConfig, testing};

#[global_allocator]
static COUNTING: Counting = Counting;

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
    let config = WorkerConfig {
        memory: ByteSize(1 << 20),
        ..testing::config("w").unwrap()
    };
    let (stop, (_map, seen)) = (
        CancellationToken::new(),
        watch::channel(Arc::new(ClusterMap::default())),
    );
    let local = tokio::task::LocalSet::new();
    let (worker, listener) = local.block_on(&runtime, async {
        let worker = testing::open(config).unwrap();
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
