//! Replies of any bytes: nothing panics, hangs or takes memory without bound.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use weir_core::BLOCK_SIZE;
use weir_fuzz::{Counting, Target};
use weir_proto::v1::{BlockReply, BlockRequest, StreamOpening};
use weir_wire::{
    Activity, Ends, KEY_ID_LENGTH, KEY_LENGTH, Known, Link, OpeningError, StreamKey, admit,
    have_checksums, open,
};

#[global_allocator]
static COUNTING: Counting = Counting;

fn frame(message: &impl prost::Message) -> Vec<u8> {
    let length = message.encoded_len() as u32;
    [&length.to_le_bytes()[..], &message.encode_to_vec()].concat()
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

const ENDS: Ends<'static> = Ends {
    client: "mount m",
    worker: "worker w",
};

fn key() -> StreamKey {
    StreamKey::new(&[3; KEY_ID_LENGTH], &[5; KEY_LENGTH]).unwrap()
}

fn step(key_id: usize, nonce: usize, proof: usize) -> StreamOpening {
    StreamOpening {
        key_id: vec![3; key_id],
        nonce: vec![7; nonce],
        proof: vec![9; proof],
    }
}

/// Gives one side of an opening these bytes, and then the end of the stream.
fn give(input: &[u8], side: impl AsyncFn(UnixStream) -> Result<(), OpeningError>) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut here, there) = UnixStream::pair().unwrap();
        let send = async {
            let _ = here.write_all(input).await;
            let _ = here.shutdown().await;
        };
        let (outcome, ()) = tokio::join!(side(there), send);
        // Nobody without the key comes through.
        let error = outcome.unwrap_err();
        format!("{error:?}").chars().take(20).collect()
    })
}

#[test]
fn no_bytes_open_a_connection_to_a_worker() {
    let hello = BlockRequest {
        stream_version: 2,
        opening: Some(step(KEY_ID_LENGTH, 32, 0)),
        ..BlockRequest::default()
    };
    let answer = BlockRequest {
        stream_version: 2,
        opening: Some(step(0, 0, 32)),
        ..BlockRequest::default()
    };
    let old = BlockRequest {
        stream_version: 1,
        ..BlockRequest::default()
    };
    Target::new("client-openings")
        .seed([frame(&hello), frame(&answer)].concat())
        .seed([frame(&old), frame(&hello)].concat())
        .run(|input| {
            give(input, async |socket| {
                let mut link = Link::of_server(socket);
                let find = |id: &[u8]| {
                    if id != [3; KEY_ID_LENGTH] {
                        return Err(OpeningError::UnknownKey);
                    }
                    Ok(Known {
                        key: key(),
                        client: ENDS.client.to_owned(),
                        caller: (),
                    })
                };
                admit(&mut link, ENDS.worker, 7, find).await
            })
        });
}

#[test]
fn no_bytes_are_taken_for_a_worker() {
    let challenge = BlockReply {
        status: 1,
        stream_version: 2,
        opening: Some(step(0, 32, 32)),
        ..BlockReply::default()
    };
    let refusal = BlockReply {
        status: 9,
        message: "no".to_owned(),
        ..BlockReply::default()
    };
    Target::new("worker-openings")
        .seed(frame(&challenge))
        .seed(frame(&refusal))
        .run(|input| {
            give(input, async |socket| {
                let mut link = Link::of_client(socket);
                open(&mut link, &key(), ENDS, &Activity::default()).await
            })
        });
}
