//! Stream sockets, of which only the local kind carries descriptors. The one over TLS is in `tls.rs`.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BufMut;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use crate::pacer::Pacer;

/// Descriptors that go with one message, at most.
pub(super) const MAX_DESCRIPTORS: usize = 64;
/// How long a TCP connection is quiet before the kernel looks whether its peer is still there, how often it looks, and how
/// many looks without an answer end it; and how long bytes may be unacknowledged.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// How often it is noted that a peer still takes nothing.
const STALL_PART: Duration = Duration::from_millis(100);
/// Pieces of one write, at most: the kernel's limit.
const MAX_PIECES: usize = 1024;

/// A connected stream socket. All attempts give `WouldBlock` where they would have to wait.
pub trait Socket: Send + Sync + Unpin + 'static {
    /// Whether descriptors can be sent over it.
    const CARRIES_DESCRIPTORS: bool;

    /// Waits until it may be written to or read from.
    fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<()>> + Send;

    /// Sends a part of some bytes, and the descriptors with the first of them; gives how many were taken.
    fn try_send(&self, pieces: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>])
    -> io::Result<usize>;

    /// Sends what was taken and is still here.
    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Receives what has come; 0 at the end of the stream. Descriptors that come along are added to `descriptors`.
    fn try_receive(
        &self,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> io::Result<usize>;

    /// Reads what has come into the free part of a buffer; 0 at the end of the stream.
    fn try_read(&self, into: &mut impl BufMut) -> io::Result<usize>;
}

macro_rules! socket {
    ($kind:ty, $carries_descriptors:literal) => {
        impl Socket for $kind {
            const CARRIES_DESCRIPTORS: bool = $carries_descriptors;

            async fn ready(&self, interest: Interest) -> io::Result<()> {
                <$kind>::ready(self, interest).await.map(drop)
            }

            fn try_send(
                &self,
                pieces: &[IoSlice<'_>],
                descriptors: &[BorrowedFd<'_>],
            ) -> io::Result<usize> {
                self.try_io(Interest::WRITABLE, || send(self, pieces, descriptors))
            }

            fn try_receive(
                &self,
                into: &mut [IoSliceMut<'_>],
                descriptors: &mut VecDeque<OwnedFd>,
            ) -> io::Result<usize> {
                self.try_io(Interest::READABLE, || receive(self, into, descriptors))
            }

            fn try_read(&self, into: &mut impl BufMut) -> io::Result<usize> {
                self.try_read_buf(into)
            }
        }
    };
}

/// Has the kernel find out about a peer that is gone without a word.
///
/// # Errors
/// When the system refuses an option.
pub fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt::{
        set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
        set_tcp_user_timeout,
    };
    set_socket_keepalive(socket, true)?;
    set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    set_tcp_user_timeout(socket, UNACKNOWLEDGED.as_millis() as u32)?;
    Ok(())
}

socket!(TcpStream, false);
socket!(UnixStream, true);

fn send(
    socket: &impl AsFd,
    pieces: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    Ok(sendmsg(socket, pieces, &mut control, SendFlags::NOSIGNAL)?)
}

fn receive(
    socket: &impl AsFd,
    into: &mut [IoSliceMut<'_>],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // Some are missing, so the others would be taken for those of other frames.
        let lost = "descriptors were lost: too many are open (see `ulimit -n`)";
        return Err(io::Error::other(lost));
    }
    Ok(received.bytes)
}

/// How long a peer has not taken what is sent to it, all waits together.
#[derive(Debug, Default)]
pub(super) struct Stalled(AtomicU64);

impl Stalled {
    /// Nothing was sent yet.
    pub(super) fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub(super) fn time(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    fn add(&self, time: Duration) {
        self.0.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }
}

/// Whose turns a write waits for, and how many of them it takes at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paced<'a> {
    pub(super) pacer: &'a Pacer,
    pub(super) turns: usize,
}

/// Writes everything; the descriptors go with the first byte. What is paced goes a turn at a time. Fails when the peer has taken
/// nothing for `deadline`, all waits together.
pub(super) async fn write_all<S: Socket>(
    socket: &S,
    mut pieces: &mut [IoSlice<'_>],
    mut descriptors: &[BorrowedFd<'_>],
    paced: Option<Paced<'_>>,
    (stalled, deadline): (&Stalled, Duration),
) -> io::Result<()> {
    let mut turn = 0;
    while !pieces.is_empty() {
        let some = &pieces[..pieces.len().min(MAX_PIECES)];
        let sent = match paced {
            None => socket.try_send(some, descriptors),
            Some(Paced { pacer, turns }) => {
                if turn == 0 {
                    let left = some.iter().map(|piece| piece.len()).sum();
                    turn = (pacer.turn_bytes() * turns).min(left);
                    pacer.turn(turn).await;
                }
                socket.try_send(&first_bytes(some, turn), descriptors)
            }
        };
        match sent {
            Ok(written) => {
                IoSlice::advance_slices(&mut pieces, written);
                turn = turn.saturating_sub(written);
                descriptors = &[];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                writable(socket, stalled, deadline).await?;
            }
            Err(error) => return Err(error),
        }
    }
    loop {
        match socket.try_flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                writable(socket, stalled, deadline).await?;
            }
            outcome => return outcome,
        }
    }
}

/// Waits until the peer takes more.
async fn writable<S: Socket>(socket: &S, stalled: &Stalled, deadline: Duration) -> io::Result<()> {
    let mut ready = std::pin::pin!(socket.ready(Interest::WRITABLE));
    while stalled.time() < deadline {
        let since = Instant::now();
        // In parts, so that others see that it waits.
        let waited = timeout(STALL_PART, &mut ready).await;
        stalled.add(since.elapsed());
        if let Ok(ready) = waited {
            return ready;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// So many bytes of these.
fn first_bytes<'a>(pieces: &'a [IoSlice<'_>], mut bytes: usize) -> Vec<IoSlice<'a>> {
    let mut first = Vec::new();
    for piece in pieces {
        if bytes == 0 {
            break;
        }
        let part = &piece[..piece.len().min(bytes)];
        bytes -= part.len();
        first.push(IoSlice::new(part));
    }
    first
}

/// Waits for bytes and reads them; 0 at the end of the stream. Descriptors that come along are added to
/// `descriptors`.
pub(super) async fn read_some<S: Socket>(
    socket: &S,
    into: &mut [IoSliceMut<'_>],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    loop {
        match socket.try_receive(into, descriptors) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.ready(Interest::READABLE).await?;
            }
            outcome => return outcome,
        }
    }
}
