//! Connections to workers, and one request over one of them.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use weir_core::BLOCK_SIZE;
use weir_proto::v1::{BlockReply, BlockRequest};
use weir_worker::stream::{FrameError, read_message, write_message};

/// Longest wait for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// Longest pause between two pieces of a block's bytes.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(10);
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

/// Idle TCP connections by address.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    idle: Mutex<HashMap<String, Vec<TcpStream>>>,
}

impl Connections {
    /// Sends a request and gives the answer with its bytes. A connection that broke while it was idle is replaced
    /// by a new one once.
    pub(crate) async fn request(
        &self,
        address: &str,
        request: &BlockRequest,
    ) -> Result<(BlockReply, Bytes), ConnectionError> {
        let idle = self.idle.lock().get_mut(address).and_then(Vec::pop);
        if let Some(mut stream) = idle
            && let Ok(answer) = exchange(&mut stream, request).await
        {
            self.put_back(address, stream);
            return Ok(answer);
        }
        let connect = TcpStream::connect(address);
        let mut stream = tokio::time::timeout(CONNECT_DEADLINE, connect)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let answer = exchange(&mut stream, request).await?;
        self.put_back(address, stream);
        Ok(answer)
    }

    fn put_back(&self, address: &str, stream: TcpStream) {
        let mut idle = self.idle.lock();
        let list = idle.entry(address.to_owned()).or_default();
        if list.len() < MAX_IDLE {
            list.push(stream);
        }
    }

    /// Forgets the connections to workers that `keep` does not name.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.idle.lock().retain(|address, _| keep(address));
    }
}

async fn exchange(
    stream: &mut TcpStream,
    request: &BlockRequest,
) -> Result<(BlockReply, Bytes), ConnectionError> {
    write_message(stream, request, &[]).await?;
    // No deadline of its own: a fill has the origin's budget, and a worker that dies leaves the cluster map.
    let reply: BlockReply = read_message(stream).await?.ok_or(ConnectionError::Closed)?;
    let payload = read_payload(stream, &reply, request.length).await?;
    Ok((reply, payload))
}

/// Reads the bytes that follow a reply, of which there are none when it is not a success.
pub(crate) async fn read_payload(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    reply: &BlockReply,
    wanted: u32,
) -> Result<Bytes, ConnectionError> {
    let expected = [0, wanted];
    if u64::from(reply.length) > BLOCK_SIZE || !expected.contains(&reply.length) {
        return Err(ConnectionError::Length(reply.length, wanted));
    }
    let mut payload = BytesMut::with_capacity(reply.length as usize);
    while payload.len() < reply.length as usize {
        let missing = reply.length as usize - payload.len();
        let mut rest = (&mut *stream).take(missing as u64);
        let read = tokio::time::timeout(PROGRESS_DEADLINE, rest.read_buf(&mut payload));
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        if read.await.map_err(late)?? == 0 {
            return Err(ConnectionError::Closed);
        }
    }
    Ok(payload.freeze())
}
