//! Frames: a length, a protobuf header, and possibly a descriptor.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use prost::Message;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest header, in bytes: a key of 1,024 bytes and its version fit many times.
pub const MAX_HEADER: u32 = 64 << 10;
/// Longest time that a peer may take for one frame once it has begun.
pub(super) const FRAME_DEADLINE: Duration = Duration::from_secs(30);

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The header is longer than [`MAX_HEADER`].
    #[error("a header of {0} bytes is too long")]
    TooLong(u32),
    /// The header is not what it should be.
    #[error("a header is not readable: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// Reads a header; `None` when the peer closed the connection between two frames.
pub async fn read_message<M: Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<M>, FrameError> {
    let mut length = [0; 4];
    // Only the first byte may keep us waiting without limit: between two requests a connection is idle.
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    let rest = async {
        stream.read_exact(&mut length[1..]).await?;
        let length = u32::from_le_bytes(length);
        if length > MAX_HEADER {
            return Err(FrameError::TooLong(length));
        }
        let mut header = vec![0; length as usize];
        stream.read_exact(&mut header).await?;
        Ok(M::decode(header.as_slice())?)
    };
    match tokio::time::timeout(FRAME_DEADLINE, rest).await {
        Ok(message) => message.map(Some),
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

fn encode(message: &impl Message) -> Vec<u8> {
    let mut frame = (message.encoded_len() as u32).to_le_bytes().to_vec();
    // A Vec grows as needed, so encoding into it does not fail.
    let _ = message.encode(&mut frame);
    frame
}

/// Writes a header and the bytes that belong to it.
pub async fn write_message(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Message,
    payload: &[bytes::Bytes],
) -> io::Result<()> {
    let header = encode(message);
    let write = async {
        stream.write_all(&header).await?;
        for piece in payload {
            stream.write_all(piece).await?;
        }
        stream.flush().await
    };
    tokio::time::timeout(FRAME_DEADLINE, write)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Writes a header with a descriptor beside it.
pub async fn send_descriptor(
    stream: &mut UnixStream,
    message: &impl Message,
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    let frame = encode(message);
    let send = || {
        let descriptors = [descriptor];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let parts = [io::IoSlice::new(&frame)];
        sendmsg(&*stream, &parts, &mut control, SendFlags::NOSIGNAL).map_err(io::Error::from)
    };
    let sent = loop {
        stream.writable().await?;
        match stream.try_io(tokio::io::Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => break outcome?,
        }
    };
    stream.write_all(&frame[sent..]).await
}
