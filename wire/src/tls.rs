//! The block stream over TLS, and the connection that is either that, plain, or of a simulation.
//!
//! rustls encrypts and decrypts in memory; here its records go to and from the socket, many with one call. Both directions
//! of a connection are used from one task, so the lock is free when it is taken, and it is never held across an `await`.

use std::collections::VecDeque;
use std::io::{self, BufRead, IoSlice, IoSliceMut, Write};
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use bytes::BufMut;
use parking_lot::Mutex;
use rustls::Connection;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use weir_trust::Simulated;

use super::simulated::SimulatedSocket;
use super::socket::Socket;

/// Bytes that are encrypted ahead of what the socket has taken, at most.
const UNSENT: usize = 256 << 10;
/// Bytes that are read from the socket at once: four of the longest records.
const RECEIVED: usize = 64 << 10;

/// A connection to another machine: plain TCP, TLS over it, or what stands for it in a simulation.
#[derive(Debug)]
pub enum Remote {
    /// TCP as it is. Whoever is at the other end was found out otherwise, or is not to be.
    Plain(TcpStream),
    /// TLS, after its handshake.
    Tls(Box<TlsSocket>),
    /// In a simulation.
    Simulated(SimulatedSocket),
}

impl From<Box<dyn Simulated>> for Remote {
    fn from(stream: Box<dyn Simulated>) -> Self {
        Self::Simulated(SimulatedSocket::new(stream))
    }
}

impl From<TlsStream<TcpStream>> for Remote {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        let (tcp, connection) = match stream {
            TlsStream::Client(stream) => {
                let (tcp, connection) = stream.into_inner();
                (tcp, Connection::from(connection))
            }
            TlsStream::Server(stream) => {
                let (tcp, connection) = stream.into_inner();
                (tcp, Connection::from(connection))
            }
        };
        Self::Tls(Box::new(TlsSocket::new(tcp, connection)))
    }
}

macro_rules! each {
    ($remote:expr, $socket:ident => $do:expr) => {
        match $remote {
            Remote::Plain($socket) => $do,
            Remote::Tls($socket) => $do,
            Remote::Simulated($socket) => $do,
        }
    };
}

impl Socket for Remote {
    const CARRIES_DESCRIPTORS: bool = false;

    async fn ready(&self, interest: Interest) -> io::Result<()> {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.tcp,
            Self::Simulated(socket) => return socket.ready(interest).await,
        };
        tcp.ready(interest).await.map(drop)
    }

    fn try_send(
        &self,
        pieces: &[IoSlice<'_>],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<usize> {
        each!(self, socket => socket.try_send(pieces, descriptors))
    }

    fn try_flush(&self) -> io::Result<()> {
        each!(self, socket => socket.try_flush())
    }

    fn try_receive(
        &self,
        into: &mut [IoSliceMut<'_>],
        descriptors: &mut VecDeque<OwnedFd>,
    ) -> io::Result<usize> {
        each!(self, socket => socket.try_receive(into, descriptors))
    }

    fn try_read(&self, into: &mut impl BufMut) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => Socket::try_read(tcp, into),
            Self::Tls(tls) => tls.try_read(into),
            Self::Simulated(socket) => socket.try_read(into),
        }
    }
}

/// TLS over TCP, after its handshake.
#[derive(Debug)]
pub struct TlsSocket {
    tcp: TcpStream,
    session: Mutex<Session>,
}

struct Session {
    connection: Connection,
    /// What came from the socket and was not decrypted yet.
    received: Box<[u8]>,
    unread: Range<usize>,
    /// What is wrong with what came, once something is.
    failure: Option<rustls::Error>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl TlsSocket {
    fn new(tcp: TcpStream, mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(UNSENT));
        let session = Session {
            connection,
            received: vec![0; RECEIVED].into_boxed_slice(),
            unread: 0..0,
            failure: None,
        };
        Self {
            tcp,
            session: Mutex::new(session),
        }
    }

    fn try_send(&self, pieces: &[IoSlice<'_>], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut session = self.session.lock();
        session.send_records(&self.tcp)?;
        let taken = session.connection.writer().write_vectored(pieces)?;
        match session.send_records(&self.tcp) {
            // They go with the next bytes, or with the flush.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(taken),
            outcome => outcome.map(|()| taken),
        }
    }

    fn try_flush(&self) -> io::Result<()> {
        self.session.lock().send_records(&self.tcp)
    }

    fn try_receive(
        &self,
        into: &mut [IoSliceMut<'_>],
        _: &mut VecDeque<OwnedFd>,
    ) -> io::Result<usize> {
        let mut session = self.session.lock();
        let mut total = 0;
        for piece in into {
            let mut place = &mut piece[..];
            while !place.is_empty() {
                let read = session.read(&self.tcp, place.len(), |bytes| {
                    place[..bytes.len()].copy_from_slice(bytes);
                });
                match read {
                    Ok(0) => return Ok(total),
                    Ok(read) => {
                        total += read;
                        place = &mut place[read..];
                    }
                    // An error comes again when nothing else does.
                    Err(_) if total > 0 => return Ok(total),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(total)
    }

    fn try_read(&self, into: &mut impl BufMut) -> io::Result<usize> {
        let most = into.remaining_mut();
        let mut session = self.session.lock();
        session.read(&self.tcp, most, |bytes| into.put_slice(bytes))
    }
}

impl Drop for TlsSocket {
    fn drop(&mut self) {
        let session = self.session.get_mut();
        session.connection.send_close_notify();
        // The peer finds out anyway.
        let _ = session.send_records(&self.tcp);
    }
}

impl Session {
    /// Sends all records that wait.
    fn send_records(&mut self, tcp: &TcpStream) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut Unblocking(tcp))?;
        }
        Ok(())
    }

    /// Gives `take` up to `most` decrypted bytes; how many they are. 0 at the end of the stream: frames tell their own
    /// lengths, so it does not matter whether the peer has said goodbye.
    fn read(
        &mut self,
        tcp: &TcpStream,
        most: usize,
        take: impl FnOnce(&[u8]),
    ) -> io::Result<usize> {
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.connection.reader().into_first_chunk() {
                Ok(bytes) => {
                    let now = bytes.len().min(most);
                    take(&bytes[..now]);
                    self.connection.reader().consume(now);
                    return Ok(now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive(tcp)?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
        }
    }

    /// Decrypts a piece of what has come.
    fn receive(&mut self, tcp: &TcpStream) -> io::Result<()> {
        if let Some(failure) = &self.failure {
            return Err(io::Error::new(io::ErrorKind::InvalidData, failure.clone()));
        }
        if self.unread.is_empty() {
            let read = tcp.try_read(&mut self.received)?;
            self.unread = 0..read;
        }
        let mut unread = &self.received[self.unread.clone()];
        self.unread.start += self.connection.read_tls(&mut unread)?;
        if let Err(error) = self.connection.process_new_packets() {
            self.failure = Some(error.clone());
            // An alert tells the peer; it may be gone.
            let _ = self.send_records(tcp);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(())
    }
}

/// A socket for those who know no waiting.
struct Unblocking<'a>(&'a TcpStream);

impl Write for Unblocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use weir_proto::v1::BlockReply;
    use weir_trust::{Access, Dial, Identity, Role, Stream};

    use super::*;
    use crate::link::{Frame, FrameError, Link};

    /// Lengths around those of records and buffers, and more than a socket holds.
    const LENGTHS: [usize; 9] = [
        0,
        1,
        100,
        16_383,
        16_384,
        16_385,
        RECEIVED + 1,
        UNSENT + 1,
        5 << 20,
    ];

    fn identity(dir: &Path, role: Role) -> Arc<Identity> {
        weir_trust::testing::identity(dir, role, "a".parse().unwrap()).unwrap()
    }

    fn remote(stream: Stream) -> Remote {
        match stream {
            Stream::Tls(stream) => Remote::from(*stream),
            other => panic!("not TLS: {other:?}"),
        }
    }

    /// Both ends of a connection, with `relay` between them.
    async fn pair_over<F: Future<Output = ()> + Send + 'static>(
        relay: impl FnOnce(TcpStream, TcpStream) -> F,
    ) -> (Link<Remote>, Link<Remote>) {
        let dir = tempfile::tempdir().unwrap();
        let (server, client) = (
            identity(dir.path(), Role::Worker),
            identity(dir.path(), Role::Mount),
        );
        let (near, far) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let dial = Dial::new(Some(client)).expecting("a");
        let address = near.local_addr().unwrap().to_string();
        let connect = async { dial.connect(&address, Role::Worker).await.unwrap() };
        let accept = async {
            let (here, _) = near.accept().await.unwrap();
            let there = TcpStream::connect(far.local_addr().unwrap()).await;
            tokio::spawn(relay(here, there.unwrap()));
            let (stream, _) = far.accept().await.unwrap();
            let admitted = Access::Certificates(server).admit(stream).await;
            admitted.unwrap().0
        };
        let (client, server) = tokio::join!(connect, accept);
        (
            Link::of_client(remote(client)),
            Link::of_server(remote(server)),
        )
    }

    async fn pass_on(mut here: TcpStream, mut there: TcpStream) {
        let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
    }

    fn payload(length: usize) -> Bytes {
        (0..length).map(|at| (at * 31 + length) as u8).collect()
    }

    fn frames() -> Vec<Frame> {
        let frames = LENGTHS.iter().map(|&length| {
            let header = BlockReply {
                length: length as u32,
                ..BlockReply::default()
            };
            let all = payload(length);
            let cut = length / 3;
            Frame::new(&header, vec![all.slice(..cut), all.slice(cut..)])
        });
        frames.collect()
    }

    #[tokio::test]
    async fn frames_arrive_whole_in_both_directions_at_once() {
        let (mut client, mut server) = pair_over(pass_on).await;
        let exchange = async |link: &mut Link<Remote>| {
            let (outgoing, mut incoming) = link.split();
            let all = frames();
            let receive = async {
                for (number, length) in LENGTHS.into_iter().enumerate() {
                    let header: BlockReply = incoming.message().await.unwrap().unwrap();
                    assert_eq!(header.length as usize, length);
                    if number % 2 == 0 {
                        let bytes = incoming.payload(length).await.unwrap();
                        assert!(bytes == payload(length), "{length}");
                    } else {
                        let mut place = vec![0; length];
                        incoming.payload_to(&mut place).await.unwrap();
                        assert!(place == payload(length), "{length}");
                    }
                }
            };
            let (sent, ()) = tokio::join!(outgoing.send(&all), receive);
            sent.unwrap();
        };
        tokio::join!(exchange(&mut client), exchange(&mut server));
        drop(server);
        let end = client.split().1.message::<BlockReply>().await;
        assert!(matches!(end, Ok(None)), "{end:?}");
    }

    #[tokio::test]
    async fn a_byte_that_is_changed_on_the_way_ends_the_connection() {
        // Behind the handshake, which is of fewer bytes.
        const CHANGED: usize = 100_000;
        let damage = |here: TcpStream, there: TcpStream| async move {
            let ((mut from_here, mut to_here), (mut from_there, mut to_there)) =
                (here.into_split(), there.into_split());
            let back = async move {
                let mut seen = 0;
                let mut buffer = vec![0; 4096];
                while let Ok(read @ 1..) = from_there.read(&mut buffer).await {
                    if (seen..seen + read).contains(&CHANGED) {
                        buffer[CHANGED - seen] ^= 1;
                    }
                    seen += read;
                    if to_here.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            };
            let forth = async move {
                let _ = tokio::io::copy(&mut from_here, &mut to_there).await;
            };
            tokio::join!(back, forth);
        };
        let (mut client, mut server) = pair_over(damage).await;
        let all = frames();
        let (outgoing, _) = server.split();
        let receive = async {
            let (_, mut incoming) = client.split();
            let mut arrived = 0;
            loop {
                let header: BlockReply = match incoming.message().await {
                    Ok(Some(header)) => header,
                    outcome => break (arrived, outcome.err()),
                };
                match incoming.payload(header.length as usize).await {
                    Ok(bytes) => assert!(bytes == payload(bytes.len())),
                    Err(error) => break (arrived, Some(FrameError::Io(error))),
                }
                arrived += 1;
            }
        };
        let (_, (arrived, error)) = tokio::join!(outgoing.send(&all), receive);
        assert!(arrived < LENGTHS.len());
        let message = error.unwrap().to_string();
        assert!(message.contains("decrypt"), "{message}");
    }
}
