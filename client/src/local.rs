//! Block reads from a worker on this machine, over its Unix socket.
//!
//! A block on SSD comes as a descriptor of its segment file: this process reads the disk and checks the checksums
//! itself, so the bytes never cross a socket. A block in memory comes as bytes.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use weir_proto::v1::{BlockReply, BlockRequest};
use weir_worker::segment::{BlockLocation, BufferPool, CHUNK_SIZE, Checksums};
use weir_worker::stream::{FrameError, MAX_HEADER, write_message};

use crate::connection::{ConnectionError, read_payload};

/// Longest wait for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);
/// Bytes of read buffers kept for the next reads.
const POOL_BYTES: usize = 16 << 20;
/// Idle connections kept.
const MAX_IDLE: usize = 64;

/// Connections to the worker's Unix socket.
#[derive(Debug)]
pub(crate) struct LocalWorker {
    socket: String,
    idle: Mutex<Vec<UnixStream>>,
    pool: Arc<BufferPool>,
}

impl LocalWorker {
    pub(crate) fn new(socket: String) -> Self {
        Self {
            socket,
            idle: Mutex::default(),
            pool: BufferPool::new(POOL_BYTES),
        }
    }

    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    /// Sends a request; the bytes come back whether the worker sent them or this process read them.
    pub(crate) async fn request(
        &self,
        mut request: BlockRequest,
    ) -> Result<(BlockReply, Bytes), ConnectionError> {
        request.accept_descriptor = true;
        let (reply, payload, descriptor) = self.exchange(&request).await?;
        let (Some(place), Some(descriptor)) = (&reply.location, descriptor) else {
            return Ok((reply, payload));
        };
        let range = request.offset..request.offset + request.length;
        if let Some(bytes) = self.read_file(place, descriptor, range).await {
            Ok((reply, bytes))
        } else {
            tracing::warn!(key = %request.key, block = request.block_index, "a cached block is damaged; it is fetched again");
            request.report_damaged = true;
            let (reply, payload, _) = self.exchange(&request).await?;
            Ok((reply, payload))
        }
    }

    async fn read_file(
        &self,
        place: &weir_proto::v1::BlockLocation,
        descriptor: OwnedFd,
        range: Range<u32>,
    ) -> Option<Bytes> {
        let fits = place.chunk_size == CHUNK_SIZE
            && range.end <= place.block_length
            && place.checksums.len() as u32 == place.block_length.div_ceil(CHUNK_SIZE);
        if !fits {
            return None;
        }
        let location = BlockLocation {
            file: Arc::new(File::from(descriptor)),
            direct: place.direct,
            offset: place.file_offset,
            len: place.block_length,
            checksums: Checksums::from(place.checksums.as_slice()),
        };
        let pool = self.pool.clone();
        let read = tokio::task::spawn_blocking(move || location.read(range, &pool));
        match read.await {
            Ok(Ok(bytes)) => Some(bytes),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a descriptor could not be read");
                None
            }
            Err(_) => None,
        }
    }

    async fn exchange(
        &self,
        request: &BlockRequest,
    ) -> Result<(BlockReply, Bytes, Option<OwnedFd>), ConnectionError> {
        let idle = self.idle.lock().pop();
        if let Some(mut stream) = idle
            && let Ok(answer) = exchange_on(&mut stream, request).await
        {
            self.put_back(stream);
            return Ok(answer);
        }
        let connect = UnixStream::connect(&self.socket);
        let mut stream = tokio::time::timeout(CONNECT_DEADLINE, connect)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let answer = exchange_on(&mut stream, request).await?;
        self.put_back(stream);
        Ok(answer)
    }

    fn put_back(&self, stream: UnixStream) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(stream);
        }
    }
}

async fn exchange_on(
    stream: &mut UnixStream,
    request: &BlockRequest,
) -> Result<(BlockReply, Bytes, Option<OwnedFd>), ConnectionError> {
    write_message(stream, request, &[]).await?;
    let (length, descriptor) = receive_length(stream).await?;
    if length > MAX_HEADER {
        return Err(FrameError::TooLong(length).into());
    }
    let mut header = vec![0; length as usize];
    stream.read_exact(&mut header).await?;
    let reply: BlockReply =
        prost::Message::decode(header.as_slice()).map_err(FrameError::Malformed)?;
    let payload = read_payload(stream, &reply, request.length).await?;
    Ok((reply, payload, descriptor))
}

/// The length at the beginning of a frame, and the descriptor that came with it.
async fn receive_length(
    stream: &mut UnixStream,
) -> Result<(u32, Option<OwnedFd>), ConnectionError> {
    let mut length = [0; 4];
    let mut descriptor = None;
    let mut receive = |into: &mut [u8]| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [io::IoSliceMut::new(into)];
        let received = recvmsg(&*stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                descriptor = fds.next();
            }
        }
        Ok(received.bytes)
    };
    let first = loop {
        stream.readable().await?;
        let attempt = stream.try_io(tokio::io::Interest::READABLE, || receive(&mut length));
        match attempt {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => break outcome?,
        }
    };
    if first == 0 {
        return Err(ConnectionError::Closed);
    }
    stream.read_exact(&mut length[first..]).await?;
    Ok((u32::from_le_bytes(length), descriptor))
}
