//! Connections for a gRPC server, of callers who were admitted.
//!
//! Handshakes go on beside each other, and there are limits: on handshakes under way, on connections of one caller, and on
//! those of all. Who is over one is refused; the others do not notice.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use weir_core::LogLimit;

use crate::access::{Access, HANDSHAKE_DEADLINE};
use crate::caller::Caller;
use crate::counted::{Counted, Place, Places};
use crate::identity::Identity;
use crate::refusals::Refusals;
use crate::stream::{Simulated, Stream};

/// Pause after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Admitted connections that wait for the server.
const QUEUE: usize = 16;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Handshakes under way.
    pub handshakes: usize,
    /// Handshakes under way with one address, which must not keep all others from theirs.
    pub handshakes_per_address: usize,
    /// Of one caller: a certificate's name, a user, or an address.
    pub per_caller: usize,
    /// Of all.
    pub total: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 256,
            handshakes_per_address: 64,
            per_caller: 1024,
            total: 16_384,
        }
    }
}

/// A connection of somebody who was admitted, until its certificate ends: whoever has a new one connects again.
pub struct Connection {
    stream: Stream,
    caller: Caller,
    end: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    fn new(stream: Stream, caller: Caller, place: Place) -> Self {
        let end = caller.peer().map(|peer| Box::pin(sleep(peer.time_left())));
        Self {
            stream,
            caller,
            end,
            _place: place,
        }
    }
}

/// Connections for a gRPC server.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// Connections of callers whom `access` admits, for [`tonic::transport::server::Router::serve_with_incoming`], until `stop`.
pub fn incoming(
    listener: TcpListener,
    access: Access,
    limits: Limits,
    stop: CancellationToken,
) -> Incoming {
    let (listener, access) = (Arc::new(listener), Arc::new(access));
    let accept = move || {
        let listener = listener.clone();
        async move {
            let (stream, from) = listener.accept().await?;
            Ok((stream, Some(from.ip().to_canonical())))
        }
    };
    let admit = move |stream: TcpStream| {
        let access = access.clone();
        async move {
            stream.set_nodelay(true)?;
            access.admit(stream).await
        }
    };
    start(accept, admit, limits, stop)
}

/// As [`incoming`], over TLS, where everybody is admitted: callers learn who the server is, and show who they are by what they ask.
pub fn incoming_shown(
    listener: TcpListener,
    identity: Arc<Identity>,
    limits: Limits,
    stop: CancellationToken,
) -> Incoming {
    let listener = Arc::new(listener);
    let accept = move || {
        let listener = listener.clone();
        async move {
            let (stream, from) = listener.accept().await?;
            let from = Some(from.ip().to_canonical());
            Ok(((stream, from), from))
        }
    };
    let admit = move |(stream, from): (TcpStream, _)| {
        let acceptor = TlsAcceptor::from(identity.shown_config());
        async move {
            stream.set_nodelay(true)?;
            let stream = timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await;
            let stream = TlsStream::Server(stream.map_err(|_| io::ErrorKind::TimedOut)??);
            Ok((Stream::Tls(Box::new(stream)), Caller::Anybody { from }))
        }
    };
    start(accept, admit, limits, stop)
}

/// As [`incoming`], of a Unix socket: processes of the same user and of root are admitted.
pub fn incoming_unix(listener: UnixListener, limits: Limits, stop: CancellationToken) -> Incoming {
    let listener = Arc::new(listener);
    let accept = move || {
        let listener = listener.clone();
        async move { Ok((listener.accept().await?.0, None)) }
    };
    let admit = async |stream| Access::admit_unix(stream);
    start(accept, admit, limits, stop)
}

/// As [`incoming`], of a network that is simulated, where everybody is admitted. `accept` gives connections, and where they come
/// from.
pub fn incoming_simulated<F>(
    accept: impl Fn() -> F + Send + Sync + 'static,
    limits: Limits,
    stop: CancellationToken,
) -> Incoming
where
    F: Future<Output = io::Result<(Box<dyn Simulated>, IpAddr)>> + Send + 'static,
{
    let accept = move || {
        let accepted = accept();
        async move {
            let (stream, from) = accepted.await?;
            Ok(((stream, from), Some(from)))
        }
    };
    let admit = async |(stream, from)| {
        let caller = Caller::Anybody { from: Some(from) };
        Ok((Stream::Simulated(stream), caller))
    };
    start(accept, admit, limits, stop)
}

fn start<S, A, F, G>(
    accept: A,
    admit: impl Fn(S) -> G + Send + Sync + 'static,
    limits: Limits,
    stop: CancellationToken,
) -> Incoming
where
    S: Send + 'static,
    A: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<(S, Option<IpAddr>)>> + Send + 'static,
    G: Future<Output = io::Result<(Stream, Caller)>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (open, handshakes) = (Places::new("connections"), Places::new("handshakes"));
    let log = Arc::new(Refusals::default());
    let admit = Arc::new(admit);
    let failures = LogLimit::default();
    let accepting = async move {
        loop {
            let (stream, from) = match accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(left_out) = failures.line() {
                        tracing::warn!(%error, left_out, "a connection could not be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (each, all) = (limits.handshakes_per_address, limits.handshakes);
            let handshake = match handshakes.take(Counted::Address(from), each, all) {
                Ok(handshake) => handshake,
                Err(error) => {
                    // Closed: those under way end within their deadline.
                    log.tell(&error);
                    continue;
                }
            };
            let (admit, open, sender) = (admit.clone(), open.clone(), sender.clone());
            let log = log.clone();
            // Its handshake has a deadline, and what waits for it is dropped with the receiver.
            tokio::spawn(async move {
                let connection = admit(stream).await.and_then(|(stream, caller)| {
                    let counted = Counted::of(&caller);
                    let place = open.take(counted, limits.per_caller, limits.total);
                    let place = place.map_err(io::Error::other)?;
                    Ok(Connection::new(stream, caller, place))
                });
                drop(handshake);
                match connection {
                    // The server has ended if nobody takes it.
                    Ok(connection) => drop(sender.send(Ok(connection)).await),
                    Err(error) => log.tell(&error.to_string()),
                }
            });
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = accepting => {}
        }
    });
    ReceiverStream::new(receiver)
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(end) = &mut this.end
            && end.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::other("the caller's certificate has ended")));
        }
        Pin::new(&mut this.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
