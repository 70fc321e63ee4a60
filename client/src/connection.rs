//! Connections to workers, and exchanges over them.
//!
//! An exchange has no deadline of its own: whoever waits for it watches its [`Activity`]. It begins with a hello where the
//! connection is new, which tells whether the worker is one that says so when it is busy.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use weir_core::BLOCK_SIZE;
use weir_proto::v1::{BlockReply, BlockRequest, BlockStatus};
use weir_wire::{
    Activity, Frame, FrameError, Incoming, Link, STREAM_VERSION, Socket, have_checksums, keep_alive,
};

/// Longest wait for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// Idle connections kept to one worker.
const MAX_IDLE: usize = 64;
/// How long a connection is kept without use: for less than workers wait before they close it.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Why a worker did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("the worker closed the connection")]
    Closed,
    #[error("the worker sent {0} bytes for {1}")]
    Length(u32, u32),
    #[error("the bytes do not have the checksums that they were sent with")]
    Damaged,
}

/// A socket that can be connected to an address.
pub(crate) trait Connect: Socket + Sized {
    fn connect(address: &str) -> impl Future<Output = io::Result<Self>> + Send;
}

impl Connect for TcpStream {
    async fn connect(address: &str) -> io::Result<Self> {
        let stream = Self::connect(address).await?;
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        Ok(stream)
    }
}

impl Connect for UnixStream {
    async fn connect(address: &str) -> io::Result<Self> {
        Self::connect(address).await
    }
}

/// Idle connections by address.
pub(crate) struct Connections<S> {
    idle: Arc<Mutex<Idle<S>>>,
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
    last_use: Instant,
}

/// What a worker said about a block. There is a descriptor if the reply tells a place in its file.
pub(crate) struct Answer {
    pub(crate) reply: BlockReply,
    pub(crate) descriptor: Option<OwnedFd>,
}

impl<S> Default for Connections<S> {
    fn default() -> Self {
        let idle = Idle {
            by_address: HashMap::new(),
            has_sweeper: false,
        };
        Self {
            idle: Arc::new(Mutex::new(idle)),
        }
    }
}

impl<S: Connect> Connections<S> {
    /// Sends a request and gives the answer with its bytes.
    pub(crate) async fn request(
        &self,
        address: &str,
        request: &BlockRequest,
        activity: &Activity,
    ) -> Result<(Answer, Bytes), ConnectionError> {
        if let Some(mut kept) = self.idle(address) {
            match kept.exchange(request, activity).await {
                Ok(answer) => return Ok(self.put_back(address, kept, answer)),
                Err(error @ ConnectionError::Damaged) => return Err(error),
                Err(error) => self.distrust(address, &error),
            }
        }
        let mut new = Connection::connect(address).await?;
        let answer = new.exchange(request, activity).await?;
        Ok(self.put_back(address, new, answer))
    }

    /// Sends requests together. The bytes of each answer, if there are any, go to the request's place, which is as
    /// long as what is asked for.
    pub(crate) async fn request_together(
        &self,
        address: &str,
        requests: &[BlockRequest],
        places: &mut [&mut [u8]],
        activity: &Activity,
    ) -> Result<Vec<Answer>, ConnectionError> {
        if let Some(mut kept) = self.idle(address) {
            match kept.exchange_together(requests, places, activity).await {
                Ok(answers) => return Ok(self.put_back(address, kept, answers)),
                Err(error @ ConnectionError::Damaged) => return Err(error),
                Err(error) => self.distrust(address, &error),
            }
        }
        let mut new = Connection::connect(address).await?;
        let answers = new.exchange_together(requests, places, activity).await?;
        Ok(self.put_back(address, new, answers))
    }

    /// Asks a worker, over a connection of its own, for a sign of life.
    pub(crate) async fn probe(address: &str) -> Result<(), ConnectionError> {
        let mut new = Connection::<S>::connect(address).await?;
        let (outgoing, mut incoming) = new.link.split();
        outgoing.send(&[hello()]).await?;
        let reply: Option<BlockReply> = incoming.message().await?;
        reply.map(drop).ok_or(ConnectionError::Closed)
    }

    fn idle(&self, address: &str) -> Option<Connection<S>> {
        let mut idle = self.idle.lock();
        let kept = idle.by_address.get_mut(address).and_then(Vec::pop);
        kept.filter(|kept| kept.last_use.elapsed() < IDLE_LIMIT)
    }

    /// Keeps a connection after an exchange; gives what came of it.
    fn put_back<T>(&self, address: &str, mut used: Connection<S>, answer: T) -> T {
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
    pub(crate) fn forget(&self, address: &str) {
        self.idle.lock().by_address.remove(address);
    }

    /// Forgets the connections to workers that `keep` does not name.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
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

fn hello() -> Frame {
    let hello = BlockRequest {
        stream_version: STREAM_VERSION,
        ..BlockRequest::default()
    };
    Frame::new(&hello, Vec::new())
}

impl<S: Connect> Connection<S> {
    async fn connect(address: &str) -> Result<Self, ConnectionError> {
        let connected = timeout(CONNECT_DEADLINE, S::connect(address)).await;
        let socket = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Self {
            link: Link::of_client(socket),
            version: None,
            last_use: Instant::now(),
        })
    }

    async fn exchange(
        &mut self,
        request: &BlockRequest,
        activity: &Activity,
    ) -> Result<(Answer, Bytes), ConnectionError> {
        let (outgoing, incoming) = self.link.split();
        let mut incoming = incoming.noted_in(activity);
        let question = Frame::new(request, Vec::new());
        if self.version.is_none() {
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
        *known.insert(reply.stream_version)
    };
    if version == 0 {
        activity.excuse();
    }
    Ok(version)
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
            BlockStatus::Filling | BlockStatus::Queued if reply.length == 0 => {}
            _ => {
                let with_descriptor = reply.location.is_some();
                let descriptor = with_descriptor.then(|| incoming.descriptor()).flatten();
                return Ok(Answer { reply, descriptor });
            }
        }
    }
}
