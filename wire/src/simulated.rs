//! The block stream over a network that is simulated.
//!
//! Such a connection is polled, while the stream tries first and waits then. So what has come and what is still to be sent lie here in
//! between. The lock is never held across an `await`.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BufMut, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use weir_trust::Simulated;

use crate::socket::Socket;

/// Bytes that are read at once.
const RECEIVED: usize = 16 << 10;
/// Bytes that are taken ahead of what the connection takes, at most.
const UNSENT: usize = 64 << 10;

/// A connection of a simulated network.
#[derive(Debug)]
pub struct SimulatedSocket(Mutex<State>);

#[derive(Debug)]
struct State {
    stream: Box<dyn Simulated>,
    received: BytesMut,
    has_ended: bool,
    unsent: BytesMut,
}

impl SimulatedSocket {
    pub(crate) fn new(stream: Box<dyn Simulated>) -> Self {
        Self(Mutex::new(State {
            stream,
            received: BytesMut::new(),
            has_ended: false,
            unsent: BytesMut::new(),
        }))
    }
}

impl State {
    /// Ends when something has come, or nothing will.
    fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.received.is_empty() || self.has_ended {
            return Poll::Ready(Ok(()));
        }
        let mut space = [0; RECEIVED];
        let mut space = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut space))?;
        self.has_ended = space.filled().is_empty();
        self.received.extend_from_slice(space.filled());
        Poll::Ready(Ok(()))
    }

    /// Ends when all that was taken is on its way.
    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = Pin::new(&mut self.stream).poll_write(context, &self.unsent);
            match ready!(sent)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.unsent.advance(sent),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What has become of an attempt, made without waiting.
fn now<T>(attempt: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>) -> io::Result<T> {
    match attempt(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Socket for SimulatedSocket {
    const CARRIES_DESCRIPTORS: bool = false;

    async fn ready(&self, interest: Interest) -> io::Result<()> {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if interest.is_readable() {
                state.poll_received(context)
            } else {
                state.poll_sent(context)
            }
        })
        .await
    }

    fn try_send(&self, pieces: &[IoSlice<'_>], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut state = self.0.lock();
        now(|context| state.poll_sent(context))?;
        for piece in pieces {
            let room = UNSENT - state.unsent.len();
            state.unsent.put_slice(&piece[..piece.len().min(room)]);
        }
        let taken = state.unsent.len();
        match now(|context| state.poll_sent(context)) {
            // The rest goes with the next bytes, or with the flush.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(taken),
            outcome => outcome.map(|()| taken),
        }
    }

    fn try_flush(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        now(|context| state.poll_sent(context))
    }

    fn try_receive(
        &self,
        into: &mut [IoSliceMut<'_>],
        _: &mut VecDeque<OwnedFd>,
    ) -> io::Result<usize> {
        let mut state = self.0.lock();
        now(|context| state.poll_received(context))?;
        let mut total = 0;
        for piece in into {
            let some = piece.len().min(state.received.len());
            state.received.copy_to_slice(&mut piece[..some]);
            total += some;
        }
        Ok(total)
    }

    fn try_read(&self, into: &mut impl BufMut) -> io::Result<usize> {
        let mut state = self.0.lock();
        now(|context| state.poll_received(context))?;
        let some = into.remaining_mut().min(state.received.len());
        into.put(state.received.split_to(some));
        Ok(some)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weir_proto::v1::BlockReply;

    use super::*;
    use crate::link::{Frame, Link};

    /// More than the connection holds, and more than is taken at once.
    const LENGTHS: [usize; 4] = [0, 1, 1000, 300_000];

    #[tokio::test]
    async fn frames_come_through_a_connection_that_takes_little_at_a_time() {
        let (here, there) = tokio::io::duplex(1000);
        let mut here = Link::of_server(SimulatedSocket::new(Box::new(here)));
        let mut there = Link::of_client(SimulatedSocket::new(Box::new(there)));
        let frames = LENGTHS.map(|length| {
            let reply = BlockReply {
                length: length as u32,
                ..BlockReply::default()
            };
            Frame::new(&reply, vec![Bytes::from(vec![length as u8; length])])
        });
        let send = async move {
            here.split().0.send(&frames).await.unwrap();
            // The end of the stream comes behind them.
        };
        let receive = async {
            let (_, mut incoming) = there.split();
            for length in LENGTHS {
                let reply: BlockReply = incoming.message().await.unwrap().unwrap();
                assert_eq!(reply.length as usize, length);
                let bytes = incoming.payload(length).await.unwrap();
                assert_eq!(bytes, vec![length as u8; length]);
            }
            let end = incoming.message::<BlockReply>().await;
            assert!(matches!(end, Ok(None)));
        };
        tokio::join!(send, receive);
    }
}
