//! Connections to workers, and exchanges over them.
//!
//! An exchange has no deadline of its own: whoever waits for it watches its [`Activity`]. It begins with a hello where the
//! connection is new, which tells whether the worker is one that says so when it is busy.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use weir_core::{BLOCK_SIZE, Block};
use weir_proto::v1::{BlockReply, BlockRequest, BlockStatus};
use weir_trust::Access;

use crate::activity::Activity;
use crate::checksums::have_checksums;
use crate::link::{Frame, FrameError, Incoming, Link};
use crate::opening::OpeningError;
use crate::socket::Socket;
use crate::version::{COPY_VERSION, HELD_ONLY_VERSION, STREAM_VERSION};

/// Longest wait for a connection. The kernel asks again after one second for one of which the first packet was lost; nobody
/// waits for that alone, since the worker is silent meanwhile.
pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_millis(2500);
/// Idle connections kept to one worker.
const MAX_IDLE: usize = 64;
/// How long a connection is kept without use: for less than workers wait before they close it.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Why a worker did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The connection could not be made, or broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came was no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The worker ended the connection instead of an answer.
    #[error("the worker closed the connection")]
    Closed,
    /// Another number of bytes came than was asked for.
    #[error("the worker sent {0} bytes for {1}")]
    Length(u32, u32),
    /// The bytes are not those that were sent.
    #[error("the bytes do not have the checksums that they were sent with")]
    Damaged,
    /// The opening of the connection failed.
    #[error("{0}")]
    Opening(#[from] OpeningError),
    /// The worker and this process do not accept each other.
    #[error("{0}")]
    Refused(String),
    /// The worker would not heed that it must not ask the origin.
    #[error("the worker is of an older version, which would fetch what it does not hold")]
    TooOld,
}

/// How connections to workers are made.
pub trait Connect: Send + Sync + 'static {
    /// What the connections are made of.
    type Socket: Socket;
    /// What is known of a worker.
    type Peer: ?Sized + Sync;

    /// What tells a worker's connections from others'.
    fn address(peer: &Self::Peer) -> &str;

    /// A new connection. What the worker itself says meanwhile is noted in `activity`.
    fn connect(
        &self,
        peer: &Self::Peer,
        activity: &Activity,
    ) -> impl Future<Output = Result<Opened<Self::Socket>, ConnectionError>> + Send;
}

/// A new connection.
pub struct Opened<S> {
    /// The connection.
    pub link: Link<S>,
    /// The version of the stream, where the opening has told it.
    pub version: Option<u32>,
}

/// Connects to workers on this machine, by the paths of their sockets. Only to those of this process's user and of root:
/// whatever else listens there is not trusted with descriptors.
pub struct NearWorkers;

impl Connect for NearWorkers {
    type Socket = UnixStream;
    type Peer = str;

    fn address(socket: &str) -> &str {
        socket
    }

    async fn connect(
        &self,
        socket: &str,
        _: &Activity,
    ) -> Result<Opened<UnixStream>, ConnectionError> {
        let connected = timeout(CONNECT_DEADLINE, UnixStream::connect(socket)).await;
        let socket = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        // The path is a claim of a worker's, and descriptors come over it.
        Access::local(socket.peer_cred()?.uid())?;
        Ok(Opened {
            link: Link::of_client(socket),
            version: None,
        })
    }
}

/// Connections to workers, of which idle ones are kept by address.
pub struct Connections<C: Connect> {
    connector: C,
    idle: Arc<Mutex<Idle<C::Socket>>>,
}

struct Idle<S> {
    by_address: HashMap<String, Vec<Connection<S>>>,
    has_sweeper: bool,
}

/// A connection to a worker.
struct Connection<S> {
    link: Link<S>,
    /// The version of the stream, once the worker has told its own.
    version: Option<u32>,
    /// A hello was sent: the version is the worker's newest. That of an opening is only the one which openings came with.
    greeted: bool,
    last_use: Instant,
}

/// What a worker said about a block. There is a descriptor if the reply tells a place in its file.
pub struct Answer {
    /// Its head.
    pub reply: BlockReply,
    /// Of the worker's file.
    pub descriptor: Option<OwnedFd>,
}

impl<C: Connect> Connections<C> {
    /// None yet.
    pub fn new(connector: C) -> Self {
        let idle = Idle {
            by_address: HashMap::new(),
            has_sweeper: false,
        };
        Self {
            connector,
            idle: Arc::new(Mutex::new(idle)),
        }
    }

    /// What makes them.
    pub fn connector(&self) -> &C {
        &self.connector
    }

    /// Sends a request and gives the answer with its bytes.
    ///
    /// # Errors
    /// When no answer came that can be read; what the worker says of the block is in the answer.
    pub async fn request(
        &self,
        peer: &C::Peer,
        request: &BlockRequest,
        activity: &Activity,
    ) -> Result<(Answer, Bytes), ConnectionError> {
        let address = C::address(peer);
        if let Some(mut kept) = self.idle(address) {
            match kept.exchange(request, activity).await {
                Ok(answer) => return Ok(self.put_back(address, kept, answer)),
                Err(error @ (ConnectionError::Damaged | ConnectionError::TooOld)) => {
                    return Err(error);
                }
                Err(error) => self.distrust(address, &error),
            }
        }
        let mut new = self.connect(peer, activity).await?;
        let answer = new.exchange(request, activity).await?;
        Ok(self.put_back(address, new, answer))
    }

    /// Sends requests together. The bytes of each answer, if there are any, go to the request's place, which is as
    /// long as what is asked for.
    ///
    /// # Errors
    /// As [`Self::request`], for all of them.
    pub async fn request_together(
        &self,
        peer: &C::Peer,
        requests: &[BlockRequest],
        places: &mut [&mut [u8]],
        activity: &Activity,
    ) -> Result<Vec<Answer>, ConnectionError> {
        let address = C::address(peer);
        if let Some(mut kept) = self.idle(address) {
            match kept.exchange_together(requests, places, activity).await {
                Ok(answers) => return Ok(self.put_back(address, kept, answers)),
                Err(error @ ConnectionError::Damaged) => return Err(error),
                Err(error) => self.distrust(address, &error),
            }
        }
        let mut new = self.connect(peer, activity).await?;
        let answers = new.exchange_together(requests, places, activity).await?;
        Ok(self.put_back(address, new, answers))
    }

    /// Asks a worker, over a connection of its own, for a sign of life.
    ///
    /// # Errors
    /// When there is none, or the worker does not accept this process.
    pub async fn probe(&self, peer: &C::Peer) -> Result<(), ConnectionError> {
        let activity = Activity::default();
        let mut new = self.connect(peer, &activity).await?;
        let (outgoing, mut incoming) = new.link.split();
        outgoing.send(&[hello()]).await?;
        let reply: Option<BlockReply> = incoming.message().await?;
        let reply = reply.ok_or(ConnectionError::Closed)?;
        admitted(&reply)
    }

    async fn connect(
        &self,
        peer: &C::Peer,
        activity: &Activity,
    ) -> Result<Connection<C::Socket>, ConnectionError> {
        let Opened { link, version } = self.connector.connect(peer, activity).await?;
        Ok(Connection {
            link,
            version,
            greeted: false,
            last_use: Instant::now(),
        })
    }

    fn idle(&self, address: &str) -> Option<Connection<C::Socket>> {
        let mut idle = self.idle.lock();
        let kept = idle.by_address.get_mut(address).and_then(Vec::pop);
        kept.filter(|kept| kept.last_use.elapsed() < IDLE_LIMIT)
    }

    /// Keeps a connection after an exchange; gives what came of it.
    fn put_back<T>(&self, address: &str, mut used: Connection<C::Socket>, answer: T) -> T {
        used.last_use = Instant::now();
        let mut idle = self.idle.lock();
        let list = match idle.by_address.get_mut(address) {
            Some(list) => list,
            None => idle.by_address.entry(address.to_owned()).or_default(),
        };
        if list.len() < MAX_IDLE {
            list.push(used);
        }
        if !std::mem::replace(&mut idle.has_sweeper, true) {
            tokio::spawn(sweep(self.idle.clone()));
        }
        answer
    }

    /// Forgets connections of which one broke, maybe while it was idle: a new one is made instead.
    fn distrust(&self, address: &str, error: &ConnectionError) {
        tracing::debug!(%error, address, "a kept connection was of no use");
        self.idle.lock().by_address.remove(address);
    }

    /// Forgets the connections to a worker.
    pub fn forget(&self, address: &str) {
        self.idle.lock().by_address.remove(address);
    }

    /// Forgets the connections to workers that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut idle = self.idle.lock();
        idle.by_address.retain(|address, _| keep(address));
    }
}

/// Closes connections that were not used for a while, until none is left.
async fn sweep<S>(idle: Arc<Mutex<Idle<S>>>) {
    loop {
        tokio::time::sleep(IDLE_LIMIT / 4).await;
        let mut idle = idle.lock();
        idle.by_address.retain(|_, list| {
            list.retain(|kept| kept.last_use.elapsed() < IDLE_LIMIT);
            !list.is_empty()
        });
        if idle.by_address.is_empty() {
            idle.has_sweeper = false;
            return;
        }
    }
}

/// A request for a whole block, before it says for which dataset, and by which map and placement.
pub fn request_of(block: &Block) -> BlockRequest {
    BlockRequest {
        origin: block.origin.0,
        key: block.object.key.to_string(),
        object_size: block.object.size,
        object_version: block.object.version.to_string(),
        object_modified_ns: block.object.modified_ns,
        block_index: block.index,
        length: block.len(),
        ..BlockRequest::default()
    }
}

fn hello() -> Frame {
    let hello = BlockRequest {
        stream_version: STREAM_VERSION,
        ..BlockRequest::default()
    };
    Frame::new(&hello, Vec::new())
}

impl<S: Socket> Connection<S> {
    async fn exchange(
        &mut self,
        request: &BlockRequest,
        activity: &Activity,
    ) -> Result<(Answer, Bytes), ConnectionError> {
        let (outgoing, incoming) = self.link.split();
        let mut incoming = incoming.noted_in(activity);
        let question = Frame::new(request, Vec::new());
        let least = least_version(request);
        if least > 0 && self.version.is_none_or(|known| known < least) {
            // Not before the worker has said that it heeds it.
            if !self.greeted {
                outgoing.send(&[hello()]).await?;
                self.version = None;
                self.greeted = true;
            }
            let version = greeted(&mut self.version, &mut incoming, activity).await?;
            if version < least {
                return Err(ConnectionError::TooOld);
            }
            outgoing.send(&[question]).await?;
        } else if self.version.is_none() {
            self.greeted = true;
            outgoing.send(&[hello(), question]).await?;
        } else {
            outgoing.send(&[question]).await?;
        }
        let version = greeted(&mut self.version, &mut incoming, activity).await?;
        let answer = receive(&mut incoming, request).await?;
        let payload = incoming.payload(answer.reply.length as usize).await?;
        check(version, request, &answer, &payload)?;
        Ok((answer, payload))
    }

    async fn exchange_together(
        &mut self,
        requests: &[BlockRequest],
        places: &mut [&mut [u8]],
        activity: &Activity,
    ) -> Result<Vec<Answer>, ConnectionError> {
        let (outgoing, incoming) = self.link.split();
        let mut incoming = incoming.noted_in(activity);
        let greeting = self.version.is_none().then(hello);
        self.greeted |= greeting.is_some();
        let send = async {
            let frames = requests.iter().map(|each| Frame::new(each, Vec::new()));
            let frames: Vec<_> = greeting.into_iter().chain(frames).collect();
            outgoing.send(&frames).await.map_err(ConnectionError::from)
        };
        let receive = async {
            let version = greeted(&mut self.version, &mut incoming, activity).await?;
            let mut answers = Vec::with_capacity(requests.len());
            for (request, place) in requests.iter().zip(places) {
                let answer = receive(&mut incoming, request).await?;
                let length = answer.reply.length as usize;
                let wanted = request.length;
                let short = || ConnectionError::Length(answer.reply.length, wanted);
                let place = place.get_mut(..length).ok_or_else(short)?;
                incoming.payload_to(place).await?;
                check(version, request, &answer, place)?;
                answers.push(answer);
            }
            Ok(answers)
        };
        // Side by side: a worker answers before it has read everything, and neither side may wait for the other's buffer.
        let ((), answers) = tokio::try_join!(send, receive)?;
        Ok(answers)
    }
}

/// The version that a worker must speak to be asked this: an older one would go to the origin.
fn least_version(request: &BlockRequest) -> u32 {
    if request.copy_place > 0 {
        COPY_VERSION
    } else if request.held_only {
        HELD_ONLY_VERSION
    } else {
        0
    }
}

/// The version of a connection, from the answer to the hello where it is new. A worker of version 0 says nothing while it
/// works: then a fill has the origin's budget, and a worker that dies leaves the cluster map.
async fn greeted<S: Socket>(
    known: &mut Option<u32>,
    incoming: &mut Incoming<'_, S>,
    activity: &Activity,
) -> Result<u32, ConnectionError> {
    let version = if let Some(version) = *known {
        version
    } else {
        let reply: BlockReply = incoming.message().await?.ok_or(ConnectionError::Closed)?;
        if reply.length > 0 {
            return Err(ConnectionError::Length(reply.length, 0));
        }
        admitted(&reply)?;
        *known.insert(reply.stream_version)
    };
    if version == 0 {
        activity.excuse();
    }
    Ok(version)
}

/// Whether the answer to a hello is one to those who may ask.
fn admitted(reply: &BlockReply) -> Result<(), ConnectionError> {
    match reply.status() {
        BlockStatus::Denied => Err(ConnectionError::Refused(reply.message.clone())),
        _ => Ok(()),
    }
}

/// Checks bytes against what was sent with them.
fn check(
    version: u32,
    request: &BlockRequest,
    answer: &Answer,
    bytes: &[u8],
) -> Result<(), ConnectionError> {
    if version == 0 || have_checksums(bytes, request.offset, &answer.reply.checksums) {
        return Ok(());
    }
    Err(ConnectionError::Damaged)
}

/// The head of an answer, after those that say that there will be one.
async fn receive<S: Socket>(
    incoming: &mut Incoming<'_, S>,
    request: &BlockRequest,
) -> Result<Answer, ConnectionError> {
    loop {
        let reply: BlockReply = incoming.message().await?.ok_or(ConnectionError::Closed)?;
        // No bytes come when it is not a success, or with a descriptor.
        let expected = [0, request.length];
        if u64::from(reply.length) > BLOCK_SIZE || !expected.contains(&reply.length) {
            return Err(ConnectionError::Length(reply.length, request.length));
        }
        match reply.status() {
            status @ (BlockStatus::Filling | BlockStatus::Queued) if reply.length == 0 => {
                incoming.note_wait(status == BlockStatus::Filling);
            }
            _ => {
                let with_descriptor = reply.location.is_some();
                let descriptor = with_descriptor.then(|| incoming.descriptor()).flatten();
                return Ok(Answer { reply, descriptor });
            }
        }
    }
}
