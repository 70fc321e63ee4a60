//! Connections to workers, and exchanges over them.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use weir_core::BLOCK_SIZE;
use weir_proto::v1::{BlockReply, BlockRequest};
use weir_worker::stream::{Frame, FrameError, Incoming, Link, Socket};

/// Longest wait for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// Idle connections kept to one worker.
const MAX_IDLE: usize = 64;

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
}

/// A socket that can be connected to an address.
pub(crate) trait Connect: Socket + Sized {
    fn connect(address: &str) -> impl Future<Output = io::Result<Self>> + Send;
}

impl Connect for TcpStream {
    async fn connect(address: &str) -> io::Result<Self> {
        let stream = Self::connect(address).await?;
        stream.set_nodelay(true)?;
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
    idle: Mutex<HashMap<String, Vec<Link<S>>>>,
}

/// What a worker said about a block. There is a descriptor if the reply tells a place in its file.
pub(crate) struct Answer {
    pub(crate) reply: BlockReply,
    pub(crate) descriptor: Option<OwnedFd>,
}

impl<S> Default for Connections<S> {
    fn default() -> Self {
        Self {
            idle: Mutex::default(),
        }
    }
}

impl<S: Connect> Connections<S> {
    /// Sends a request and gives the answer with its bytes.
    pub(crate) async fn request(
        &self,
        address: &str,
        request: &BlockRequest,
    ) -> Result<(Answer, Bytes), ConnectionError> {
        if let Some(mut link) = self.idle(address) {
            match exchange(&mut link, request).await {
                Ok(answer) => return Ok(self.put_back(address, link, answer)),
                Err(error) => self.distrust(address, &error),
            }
        }
        let mut link = connect(address).await?;
        let answer = exchange(&mut link, request).await?;
        Ok(self.put_back(address, link, answer))
    }

    /// Sends requests together. The bytes of each answer, if there are any, go to the request's place, which is as
    /// long as what is asked for.
    pub(crate) async fn request_together(
        &self,
        address: &str,
        requests: &[BlockRequest],
        places: &mut [&mut [u8]],
    ) -> Result<Vec<Answer>, ConnectionError> {
        if let Some(mut link) = self.idle(address) {
            match exchange_together(&mut link, requests, places).await {
                Ok(answers) => return Ok(self.put_back(address, link, answers)),
                Err(error) => self.distrust(address, &error),
            }
        }
        let mut link = connect(address).await?;
        let answers = exchange_together(&mut link, requests, places).await?;
        Ok(self.put_back(address, link, answers))
    }

    fn idle(&self, address: &str) -> Option<Link<S>> {
        self.idle.lock().get_mut(address).and_then(Vec::pop)
    }

    /// Keeps a connection after an exchange; gives what came of it.
    fn put_back<T>(&self, address: &str, link: Link<S>, answer: T) -> T {
        let mut idle = self.idle.lock();
        let list = idle.entry(address.to_owned()).or_default();
        if list.len() < MAX_IDLE {
            list.push(link);
        }
        answer
    }

    /// Forgets connections of which one broke, maybe while it was idle: a new one is made instead.
    fn distrust(&self, address: &str, error: &ConnectionError) {
        tracing::debug!(%error, address, "a kept connection was of no use");
        self.idle.lock().remove(address);
    }

    /// Forgets the connections to workers that `keep` does not name.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.idle.lock().retain(|address, _| keep(address));
    }
}

async fn connect<S: Connect>(address: &str) -> Result<Link<S>, ConnectionError> {
    let connected = timeout(CONNECT_DEADLINE, S::connect(address)).await;
    let socket = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(Link::of_client(socket))
}

async fn exchange<S: Socket>(
    link: &mut Link<S>,
    request: &BlockRequest,
) -> Result<(Answer, Bytes), ConnectionError> {
    let (outgoing, mut incoming) = link.split();
    outgoing.send(&[Frame::new(request, Vec::new())]).await?;
    let answer = receive(&mut incoming, request).await?;
    let payload = incoming.payload(answer.reply.length as usize).await?;
    Ok((answer, payload))
}

async fn exchange_together<S: Socket>(
    link: &mut Link<S>,
    requests: &[BlockRequest],
    places: &mut [&mut [u8]],
) -> Result<Vec<Answer>, ConnectionError> {
    let (outgoing, mut incoming) = link.split();
    let send = async {
        let frames = requests.iter().map(|each| Frame::new(each, Vec::new()));
        let sent = outgoing.send(&frames.collect::<Vec<_>>()).await;
        sent.map_err(ConnectionError::from)
    };
    let receive = async {
        let mut answers = Vec::with_capacity(requests.len());
        for (request, place) in requests.iter().zip(places) {
            let answer = receive(&mut incoming, request).await?;
            let length = answer.reply.length as usize;
            let wanted = request.length;
            let short = || ConnectionError::Length(answer.reply.length, wanted);
            let place = place.get_mut(..length).ok_or_else(short)?;
            incoming.payload_to(place).await?;
            answers.push(answer);
        }
        Ok(answers)
    };
    // Side by side: a worker answers before it has read everything, and neither side may wait for the other's buffer.
    let ((), answers) = tokio::try_join!(send, receive)?;
    Ok(answers)
}

/// The head of an answer. There is no deadline for it: a fill has the origin's budget, and a worker that dies leaves
/// the cluster map.
async fn receive<S: Socket>(
    incoming: &mut Incoming<'_, S>,
    request: &BlockRequest,
) -> Result<Answer, ConnectionError> {
    let reply: BlockReply = incoming.message().await?.ok_or(ConnectionError::Closed)?;
    // No bytes come when it is not a success, or with a descriptor.
    let expected = [0, request.length];
    if u64::from(reply.length) > BLOCK_SIZE || !expected.contains(&reply.length) {
        return Err(ConnectionError::Length(reply.length, request.length));
    }
    let with_descriptor = reply.location.is_some();
    let descriptor = with_descriptor.then(|| incoming.descriptor()).flatten();
    Ok(Answer { reply, descriptor })
}
