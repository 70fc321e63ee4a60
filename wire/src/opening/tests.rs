use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::*;

const CLIENT_NAME: &str = "mount m";
const WORKER_NAME: &str = "worker w";
const ID: [u8; KEY_ID_LENGTH] = [3; KEY_ID_LENGTH];

fn key(byte: u8) -> StreamKey {
    StreamKey::new(&ID, &[byte; KEY_LENGTH]).unwrap()
}

fn ends() -> Ends<'static> {
    Ends {
        client: CLIENT_NAME,
        worker: WORKER_NAME,
    }
}

/// The worker's side with a key of these bytes; what became of it.
async fn worker(socket: UnixStream, byte: u8) -> Result<u8, OpeningError> {
    let mut link = Link::of_server(socket);
    let find = |id: &[u8]| {
        if id != ID {
            return Err(OpeningError::UnknownKey);
        }
        Ok(Known {
            key: key(byte),
            client: CLIENT_NAME.to_owned(),
            caller: byte,
        })
    };
    admit(&mut link, WORKER_NAME, 7, find).await
}

async fn client(socket: UnixStream, byte: u8, ends: Ends<'_>) -> Result<(), OpeningError> {
    let mut link = Link::of_client(socket);
    open(&mut link, &key(byte), ends, &Activity::default()).await
}

/// What two sides make of each other without anybody between them.
async fn meet(
    client_key: u8,
    worker_key: u8,
    ends: Ends<'_>,
) -> (Result<(), OpeningError>, Result<u8, OpeningError>) {
    let (here, there) = UnixStream::pair().unwrap();
    tokio::join!(client(here, client_key, ends), worker(there, worker_key))
}

#[tokio::test]
async fn two_sides_with_one_key_know_each_other() {
    let (client, worker) = meet(1, 1, ends()).await;
    client.unwrap();
    assert_eq!(worker.unwrap(), 1);
}

#[tokio::test]
async fn requests_may_follow_the_proof_at_once() {
    let (here, there) = UnixStream::pair().unwrap();
    let (mut here, mut there) = (Link::of_client(here), Link::of_server(there));
    let request = BlockRequest {
        key: "train/1".to_owned(),
        ..BlockRequest::default()
    };
    let activity = Activity::default();
    let ask = async {
        let key = key(1);
        open(&mut here, &key, ends(), &activity).await.unwrap();
        let frame = Frame::new(&request, Vec::new());
        here.split().0.send(&[frame]).await.unwrap();
    };
    let answer = async {
        let known = Known {
            key: key(1),
            client: CLIENT_NAME.to_owned(),
            caller: (),
        };
        let admitted = admit(&mut there, WORKER_NAME, 7, |_| Ok(known)).await;
        admitted.unwrap();
        there.split().1.message::<BlockRequest>().await.unwrap()
    };
    let ((), asked) = tokio::join!(ask, answer);
    assert_eq!(asked, Some(request));
}

#[tokio::test]
async fn another_key_or_another_name_is_found_out_by_both() {
    let other_client = Ends {
        client: "mount n",
        ..ends()
    };
    let other_worker = Ends {
        worker: "worker x",
        ..ends()
    };
    // Moving a byte from one name to the other is no way around it.
    let moved = Ends {
        client: "mount mw",
        worker: "orker w",
    };
    for (byte, ends) in [
        (2, ends()),
        (1, other_client),
        (1, other_worker),
        (1, moved),
    ] {
        let (client, worker) = meet(byte, 1, ends).await;
        assert!(matches!(client, Err(OpeningError::Proof)), "{client:?}");
        assert!(worker.is_err(), "{worker:?}");
    }
}

/// Changes what passes between the two sides.
#[derive(Clone, Copy)]
struct Between {
    hello: fn(&mut StreamOpening),
    challenge: fn(&mut StreamOpening),
    answer: fn(&mut StreamOpening),
}

const NOTHING: Between = Between {
    hello: |_| {},
    challenge: |_| {},
    answer: |_| {},
};

async fn read_frame<M: Message + Default>(socket: &mut UnixStream) -> Option<M> {
    let length = socket.read_u32_le().await.ok()?;
    let mut header = vec![0; length as usize];
    socket.read_exact(&mut header).await.ok()?;
    M::decode(&header[..]).ok()
}

async fn write_frame(socket: &mut UnixStream, message: &impl Message) {
    let header = message.encode_to_vec();
    let length = (header.len() as u32).to_le_bytes();
    // The other side may have given up.
    let _ = socket.write_all(&[&length[..], &header].concat()).await;
}

async fn pass_on(
    near: &mut UnixStream,
    far: &mut UnixStream,
    between: Between,
    seen: &Mutex<Vec<BlockRequest>>,
) -> Option<()> {
    let mut hello: BlockRequest = read_frame(near).await?;
    seen.lock().push(hello.clone());
    (between.hello)(hello.opening.as_mut()?);
    write_frame(far, &hello).await;
    let mut challenge: BlockReply = read_frame(far).await?;
    if let Some(opening) = challenge.opening.as_mut() {
        (between.challenge)(opening);
    }
    write_frame(near, &challenge).await;
    let mut answer: BlockRequest = read_frame(near).await?;
    seen.lock().push(answer.clone());
    (between.answer)(answer.opening.as_mut()?);
    write_frame(far, &answer).await;
    Some(())
}

/// What two sides with one key make of each other when somebody is between them.
async fn meet_with(
    between: Between,
) -> (
    Result<(), OpeningError>,
    Result<u8, OpeningError>,
    Vec<BlockRequest>,
) {
    let (here, mut near) = UnixStream::pair().unwrap();
    let (mut far, there) = UnixStream::pair().unwrap();
    let seen = Mutex::new(Vec::new());
    let relay = async {
        // Both sides are closed once one has given up.
        let _ = pass_on(&mut near, &mut far, between, &seen).await;
        let _ = near.shutdown().await;
        let _ = far.shutdown().await;
    };
    let (client, worker, ()) = tokio::join!(client(here, 1, ends()), worker(there, 1), relay);
    (client, worker, seen.into_inner())
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
}

#[tokio::test]
async fn no_bit_of_an_opening_may_be_changed_on_the_way() {
    let (client, worker, _) = meet_with(NOTHING).await;
    client.unwrap();
    worker.unwrap();
    let changed = [
        Between {
            hello: |step| flip(&mut step.key_id),
            ..NOTHING
        },
        Between {
            hello: |step| flip(&mut step.nonce),
            ..NOTHING
        },
        Between {
            hello: |step| step.nonce.truncate(31),
            ..NOTHING
        },
        Between {
            challenge: |step| flip(&mut step.nonce),
            ..NOTHING
        },
        Between {
            challenge: |step| flip(&mut step.proof),
            ..NOTHING
        },
        Between {
            challenge: |step| step.proof.clear(),
            ..NOTHING
        },
        Between {
            answer: |step| flip(&mut step.proof),
            ..NOTHING
        },
        Between {
            answer: |step| step.proof.truncate(31),
            ..NOTHING
        },
        Between {
            answer: |step| step.proof.clear(),
            ..NOTHING
        },
    ];
    for (number, between) in changed.into_iter().enumerate() {
        let (_, worker, _) = meet_with(between).await;
        assert!(worker.is_err(), "change {number} went through: {worker:?}");
    }
}

#[tokio::test]
async fn what_was_overheard_opens_no_other_connection() {
    let (client, worker_outcome, overheard) = meet_with(NOTHING).await;
    client.unwrap();
    worker_outcome.unwrap();
    let (mut here, there) = UnixStream::pair().unwrap();
    let replay = async {
        for request in &overheard {
            write_frame(&mut here, request).await;
            read_frame::<BlockReply>(&mut here).await;
        }
    };
    let (replayed, ()) = tokio::join!(worker(there, 1), replay);
    assert!(matches!(replayed, Err(OpeningError::Proof)), "{replayed:?}");
}

#[tokio::test]
async fn a_workers_own_proof_sent_back_is_none() {
    let (mut here, there) = UnixStream::pair().unwrap();
    let reflect = async {
        let hello = step(StreamOpening {
            key_id: ID.to_vec(),
            nonce: vec![9; NONCE],
            proof: Vec::new(),
        });
        write_frame(&mut here, &hello).await;
        let challenge: BlockReply = read_frame(&mut here).await.unwrap();
        let answer = step(challenge.opening.unwrap());
        write_frame(&mut here, &answer).await;
        read_frame::<BlockReply>(&mut here).await.unwrap()
    };
    let (reflected, refusal) = tokio::join!(worker(there, 1), reflect);
    assert!(
        matches!(reflected, Err(OpeningError::Proof)),
        "{reflected:?}"
    );
    assert_eq!(refusal.status(), BlockStatus::Denied);
}

#[tokio::test]
async fn a_client_hears_that_its_key_is_not_known() {
    let (here, there) = UnixStream::pair().unwrap();
    let mut link = Link::of_client(here);
    let other = StreamKey::new(&[4; KEY_ID_LENGTH], &[1; KEY_LENGTH]).unwrap();
    let activity = Activity::default();
    let opening = open(&mut link, &other, ends(), &activity);
    let (client, worker) = tokio::join!(opening, worker(there, 1));
    assert!(
        matches!(client, Err(OpeningError::UnknownKey)),
        "{client:?}"
    );
    assert!(
        matches!(worker, Err(OpeningError::UnknownKey)),
        "{worker:?}"
    );
}

#[tokio::test]
async fn clients_of_before_are_told_what_they_lack() {
    let hello = |stream_version| BlockRequest {
        stream_version,
        ..BlockRequest::default()
    };
    let request = BlockRequest {
        key: "train/1".to_owned(),
        length: 5,
        ..BlockRequest::default()
    };
    let long = BlockRequest {
        key: "k".repeat(5000),
        ..request.clone()
    };
    for (first, answers) in [(hello(1), 2), (hello(2), 2), (request, 1), (long, 1)] {
        let (mut here, there) = UnixStream::pair().unwrap();
        let ask = async {
            write_frame(&mut here, &first).await;
            let mut told = Vec::new();
            while let Some(reply) = read_frame::<BlockReply>(&mut here).await {
                told.push(reply);
            }
            told
        };
        let serve = async {
            let outcome = worker(there, 1).await;
            assert!(matches!(outcome, Err(OpeningError::Refused(_))));
        };
        let (told, ()) = tokio::join!(ask, serve);
        assert_eq!(told.len(), answers);
        for reply in told {
            assert_eq!(reply.status(), BlockStatus::Denied);
            assert!(reply.message.contains("--certs"), "{}", reply.message);
            assert!(reply.opening.is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_side_that_falls_silent_is_waited_for_a_few_seconds() {
    let step = |id: &[u8]| {
        step(StreamOpening {
            key_id: id.to_vec(),
            nonce: vec![9; NONCE],
            proof: Vec::new(),
        })
    };
    for says_hello in [false, true] {
        let (mut here, there) = UnixStream::pair().unwrap();
        if says_hello {
            write_frame(&mut here, &step(&ID)).await;
        }
        let start = Instant::now();
        let outcome = worker(there, 1).await;
        assert!(matches!(outcome, Err(OpeningError::Late)), "{outcome:?}");
        assert_eq!(start.elapsed(), OPENING_DEADLINE);
    }
    let (here, _there) = UnixStream::pair().unwrap();
    let start = Instant::now();
    let outcome = client(here, 1, ends()).await;
    assert!(matches!(outcome, Err(OpeningError::Late)), "{outcome:?}");
    assert_eq!(start.elapsed(), OPENING_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_does_not_hold_an_opening_open() {
    let (mut here, there) = UnixStream::pair().unwrap();
    let drip = async {
        let hello = step(StreamOpening {
            key_id: ID.to_vec(),
            nonce: vec![9; NONCE],
            proof: Vec::new(),
        });
        let header = hello.encode_to_vec();
        let _ = here.write_all(&(header.len() as u32).to_le_bytes()).await;
        for byte in header {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if here.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    };
    let start = Instant::now();
    let serve = async {
        let outcome = worker(there, 1).await;
        assert!(matches!(outcome, Err(OpeningError::Late)), "{outcome:?}");
        assert_eq!(start.elapsed(), OPENING_DEADLINE);
    };
    tokio::join!(serve, drip);
}

#[test]
fn a_key_of_another_length_is_none_and_a_key_is_never_shown() {
    assert!(StreamKey::new(&ID, &[1; 31]).is_none());
    assert!(StreamKey::new(&ID[1..], &[1; KEY_LENGTH]).is_none());
    assert!(!format!("{:?}", key(0xab)).contains("171"));
    let (first, second) = (new_key().unwrap(), new_key().unwrap());
    assert!(first.0 != second.0 && first.1 != second.1);
}
