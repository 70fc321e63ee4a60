//! The opening of an authenticated connection: a challenge, answered with a key that came another way.
//!
//! Both sides prove that they know the key before anything else is said; `proto/weir/v1/worker.proto` has the exchange.
//! Each proof covers the nonces of both sides, which are made for one connection, the names of both, and whose proof it is.
//! So one that was overheard is of no use on another connection, for another pair, or sent back to where it came from.

use std::time::Duration;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::timeout;
use weir_proto::v1::{BlockReply, BlockRequest, BlockStatus, StreamOpening};

use super::activity::Activity;
use super::link::{Frame, FrameError, Link};
use super::socket::Socket;

/// Longest time that an opening takes, or the handshake of TLS.
pub const OPENING_DEADLINE: Duration = Duration::from_secs(5);
/// The version of the stream from which on there are openings.
pub const OPENING_VERSION: u32 = 2;
/// Bytes of a key, of its id and of a nonce.
pub const KEY_LENGTH: usize = 32;
/// Bytes of a key's id.
pub const KEY_ID_LENGTH: usize = 16;
const NONCE: usize = 32;
/// Longest header before a peer is known, in bytes: those of an opening are of less than 200.
const MAX_HEADER: usize = 1024;
/// Longest message of a peer that is told further, in bytes.
const MAX_MESSAGE: usize = 512;
const CLIENT: &str = "weir block stream 2: client";
const WORKER: &str = "weir block stream 2: worker";

/// A key of connections between one client and one worker.
#[derive(Clone, Debug)]
pub struct StreamKey {
    id: [u8; KEY_ID_LENGTH],
    // Says nothing of the key in its Debug output.
    key: hmac::Key,
}

impl StreamKey {
    /// A key with its id; `None` if one of them has another length than it must have.
    pub fn new(id: &[u8], key: &[u8]) -> Option<Self> {
        let id = id.try_into().ok()?;
        let key = (key.len() == KEY_LENGTH).then(|| hmac::Key::new(hmac::HMAC_SHA256, key));
        Some(Self { id, key: key? })
    }
}

/// Who is at the ends of a connection, as their certificates name them: `mount gpu-7`, `worker gpu-3`.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Who asks.
    pub client: &'a str,
    /// Who answers.
    pub worker: &'a str,
}

/// A key that a client names, with what its worker knows of it.
pub struct Known<C> {
    /// The key.
    pub key: StreamKey,
    /// The name of the client that it was given to.
    pub client: String,
    /// Who that is.
    pub caller: C,
}

/// Why a connection was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// It broke, or what came was not readable.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The peer closed it.
    #[error("the peer closed the connection during its opening")]
    Closed,
    /// The peer took too long.
    #[error("the opening of a connection was not done within {} s", OPENING_DEADLINE.as_secs())]
    Late,
    /// The worker does not know the key (any more).
    #[error("the worker does not know the key of the connection")]
    UnknownKey,
    /// One side refuses the other.
    #[error("{0}")]
    Refused(String),
    /// The peer does not know the key that it must know.
    #[error("the other side's proof is wrong")]
    Proof,
    /// There are no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// What both proofs of an opening cover.
struct Transcript<'a> {
    key: &'a StreamKey,
    client_nonce: &'a [u8],
    worker_nonce: &'a [u8],
    ends: Ends<'a>,
}

impl Transcript<'_> {
    fn message(&self, label: &str) -> Vec<u8> {
        let mut message = Vec::with_capacity(256);
        for part in [
            label.as_bytes(),
            &self.key.id,
            self.client_nonce,
            self.worker_nonce,
        ] {
            message.extend_from_slice(part); // each has one length
        }
        for name in [self.ends.client, self.ends.worker] {
            message.extend_from_slice(&(name.len() as u32).to_le_bytes());
            message.extend_from_slice(name.as_bytes());
        }
        message
    }

    fn proof(&self, label: &str) -> Vec<u8> {
        let tag = hmac::sign(&self.key.key, &self.message(label));
        tag.as_ref().to_vec()
    }

    /// Compares in constant time.
    fn check(&self, label: &str, proof: &[u8]) -> Result<(), OpeningError> {
        hmac::verify(&self.key.key, &self.message(label), proof).map_err(|_| OpeningError::Proof)
    }
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], OpeningError> {
    let mut bytes = [0; LENGTH];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| OpeningError::Random)?;
    Ok(bytes)
}

/// A new key, as bytes: its id and the key.
///
/// # Errors
/// When the system gives no random numbers.
pub fn new_key() -> Result<([u8; KEY_ID_LENGTH], [u8; KEY_LENGTH]), OpeningError> {
    Ok((random()?, random()?))
}

/// Opens a connection to a worker. Afterwards the stream's version is [`OPENING_VERSION`], and requests may be sent.
///
/// # Errors
/// When the worker refuses, cannot prove that it knows the key, or takes too long.
pub async fn open<S: Socket>(
    link: &mut Link<S>,
    key: &StreamKey,
    ends: Ends<'_>,
    activity: &Activity,
) -> Result<(), OpeningError> {
    let opened = timeout(OPENING_DEADLINE, open_in_time(link, key, ends, activity)).await;
    opened.unwrap_or(Err(OpeningError::Late))
}

async fn open_in_time<S: Socket>(
    link: &mut Link<S>,
    key: &StreamKey,
    ends: Ends<'_>,
    activity: &Activity,
) -> Result<(), OpeningError> {
    let (outgoing, incoming) = link.split();
    let mut incoming = incoming.noted_in(activity).up_to(MAX_HEADER);
    let client_nonce = random::<NONCE>()?;
    let hello = step(StreamOpening {
        key_id: key.id.to_vec(),
        nonce: client_nonce.to_vec(),
        proof: Vec::new(),
    });
    let hello = [Frame::new(&hello, Vec::new())];
    outgoing.send(&hello).await.map_err(FrameError::from)?;
    let reply: BlockReply = incoming.message().await?.ok_or(OpeningError::Closed)?;
    match reply.status() {
        BlockStatus::Ok => {}
        BlockStatus::UnknownKey => return Err(OpeningError::UnknownKey),
        _ => {
            let message = reply.message.chars().take(MAX_MESSAGE).collect();
            return Err(OpeningError::Refused(message));
        }
    }
    let challenge = reply.opening.unwrap_or_default();
    if challenge.nonce.len() != NONCE || reply.length > 0 {
        return Err(OpeningError::Proof);
    }
    let transcript = Transcript {
        key,
        client_nonce: &client_nonce,
        worker_nonce: &challenge.nonce,
        ends,
    };
    transcript.check(WORKER, &challenge.proof)?;
    let answer = step(StreamOpening {
        proof: transcript.proof(CLIENT),
        ..StreamOpening::default()
    });
    let answer = [Frame::new(&answer, Vec::new())];
    Ok(outgoing.send(&answer).await.map_err(FrameError::from)?)
}

fn step(opening: StreamOpening) -> BlockRequest {
    BlockRequest {
        stream_version: OPENING_VERSION,
        opening: Some(opening),
        ..BlockRequest::default()
    }
}

/// Finds out who has connected to a worker. `find` looks a key up by its id, and refuses if it is not to be used here;
/// `epoch` is that of the worker's map.
///
/// # Errors
/// When the client cannot prove that it knows such a key, is of a version that knows no openings, or takes too long. It was
/// told why, as far as that helps.
pub async fn admit<S: Socket, C>(
    link: &mut Link<S>,
    worker: &str,
    epoch: u64,
    find: impl FnOnce(&[u8]) -> Result<Known<C>, OpeningError>,
) -> Result<C, OpeningError> {
    let admitted = timeout(OPENING_DEADLINE, admit_in_time(link, worker, epoch, find)).await;
    admitted.unwrap_or(Err(OpeningError::Late))
}

async fn admit_in_time<S: Socket, C>(
    link: &mut Link<S>,
    worker: &str,
    epoch: u64,
    find: impl FnOnce(&[u8]) -> Result<Known<C>, OpeningError>,
) -> Result<C, OpeningError> {
    let (outgoing, incoming) = link.split();
    let mut incoming = incoming.up_to(MAX_HEADER);
    let hello = match incoming.message::<BlockRequest>().await {
        Ok(hello) => hello.ok_or(OpeningError::Closed)?,
        // A request of a client that sends no hello may be as long.
        Err(FrameError::TooLong(_)) => BlockRequest::default(),
        Err(error) => return Err(error.into()),
    };
    let Some(opening) = hello.opening.filter(|_| hello.stream_version > 0) else {
        let error = OpeningError::Refused(String::from(
            "this worker admits only those who have a certificate of its cluster: give --certs DIR, and upgrade what is older than the worker",
        ));
        refuse(link, &error, hello.stream_version > 0).await;
        return Err(error);
    };
    let known = match find(&opening.key_id) {
        Ok(known) => known,
        Err(error) => {
            refuse(link, &error, false).await;
            return Err(error);
        }
    };
    if opening.nonce.len() != NONCE {
        return Err(OpeningError::Proof);
    }
    let worker_nonce = random::<NONCE>()?;
    let transcript = Transcript {
        key: &known.key,
        client_nonce: &opening.nonce,
        worker_nonce: &worker_nonce,
        ends: Ends {
            client: &known.client,
            worker,
        },
    };
    let challenge = BlockReply {
        status: BlockStatus::Ok.into(),
        epoch,
        stream_version: OPENING_VERSION,
        opening: Some(StreamOpening {
            nonce: worker_nonce.to_vec(),
            proof: transcript.proof(WORKER),
            ..StreamOpening::default()
        }),
        ..BlockReply::default()
    };
    let challenge = [Frame::new(&challenge, Vec::new())];
    outgoing.send(&challenge).await.map_err(FrameError::from)?;
    let answer: BlockRequest = incoming.message().await?.ok_or(OpeningError::Closed)?;
    let proof = answer.opening.unwrap_or_default().proof;
    if let Err(error) = transcript.check(CLIENT, &proof) {
        refuse(link, &error, false).await;
        return Err(error);
    }
    Ok(known.caller)
}

/// Tells a client why it is refused. One that sent a hello of before openings takes the first answer for that to the
/// hello, so it gets two.
async fn refuse<S: Socket>(link: &mut Link<S>, why: &OpeningError, twice: bool) {
    let status = match why {
        OpeningError::UnknownKey => BlockStatus::UnknownKey,
        _ => BlockStatus::Denied,
    };
    let reply = BlockReply {
        status: status.into(),
        message: why.to_string(),
        ..BlockReply::default()
    };
    let frames = (0..=usize::from(twice)).map(|_| Frame::new(&reply, Vec::new()));
    let frames: Vec<_> = frames.collect();
    // It may be gone.
    let _ = link.split().0.send(&frames).await;
}

/// Refuses a client whatever it asks, and tells it why.
pub async fn turn_away<S: Socket>(link: &mut Link<S>, why: String) -> OpeningError {
    let error = OpeningError::Refused(why);
    let refusal = async {
        let (_, incoming) = link.split();
        let hello = incoming.up_to(MAX_HEADER).message::<BlockRequest>().await;
        let is_hello = matches!(hello, Ok(Some(hello)) if hello.stream_version > 0);
        refuse(link, &error, is_hello).await;
    };
    // One that says nothing is not told.
    let _ = timeout(OPENING_DEADLINE, refusal).await;
    error
}

#[cfg(test)]
mod tests;
