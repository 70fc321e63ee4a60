//! Workers for tests: they hold a block, or do not answer as they should.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use weir_core::{Block, ObjectRef, OriginId, WorkerInfo};
use weir_proto::v1::{BlockReply, BlockRequest, BlockStatus};
use weir_wire::{Frame, Link, STREAM_VERSION, checksums};

use super::SILENCE;
use crate::testing;

pub(crate) const LENGTH: usize = 100_000;

/// How a worker answers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Kind {
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

pub(crate) struct Peer {
    pub(crate) info: WorkerInfo,
    /// Blocks that it was asked for.
    pub(crate) asked: Arc<AtomicU32>,
}

pub(crate) fn content() -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8).collect()
}

pub(crate) fn block() -> Block {
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
        assert!(
            request.held_only || request.for_copy || request.as_filler,
            "it is no reader"
        );
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

pub(crate) async fn peer(name: &str, kind: Kind) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asked = Arc::<AtomicU32>::default();
    let info = WorkerInfo {
        data_address: listener.local_addr().unwrap().to_string(),
        ..testing::info(name).unwrap()
    };
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, kind, count.clone()));
        }
    });
    Peer { info, asked }
}
