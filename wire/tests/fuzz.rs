//! Replies of any bytes: nothing panics, hangs or takes memory without bound.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use weir_core::BLOCK_SIZE;
use weir_fuzz::{Counting, Target};
use weir_proto::v1::BlockReply;
use weir_wire::{Link, have_checksums};

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
