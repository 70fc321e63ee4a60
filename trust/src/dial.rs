//! Calling servers.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;
use weir_core::NodeName;

use crate::access::HANDSHAKE_DEADLINE;
use crate::error::{TrustError, refused};
use crate::identity::Identity;
use crate::stream::{Simulated, Stream};
use crate::subject::{Peer, Role};

/// How long a server on which something is asked says nothing before it is asked for a sign of life, and how long that may take.
/// The connection to one that is cut off is given up then, and a new one works as soon as the network does: TCP itself would try again
/// after twice the time that it had tried for.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Marks an address as the path of a Unix socket.
const UNIX: &str = "unix:";

/// How a process calls others: with a certificate, and then only those who have one, too, or without.
#[derive(Clone, Debug, Default)]
pub struct Dial {
    identity: Option<Arc<Identity>>,
    /// The only name that a server may have.
    expected: Option<Arc<str>>,
    /// Where others are, if not in the machine's network.
    network: Option<Network>,
}

/// A network that is simulated.
#[derive(Clone)]
struct Network(Arc<dyn Fn(String) -> Connecting + Send + Sync>);

/// A connection of a simulated network that is being made.
pub type Connecting = BoxFuture<'static, io::Result<Box<dyn Simulated>>>;

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Dial {
    /// With this identity, over TLS.
    pub fn new(identity: Option<Arc<Identity>>) -> Self {
        Self {
            identity,
            expected: None,
            network: None,
        }
    }

    /// Without an identity, in a network that is simulated: `connect` gives a connection to an address.
    pub fn simulated(connect: impl Fn(String) -> Connecting + Send + Sync + 'static) -> Self {
        Self {
            network: Some(Network(Arc::new(connect))),
            ..Self::default()
        }
    }

    /// The same, which takes only a server whose certificate has this name: one worker's address may have become
    /// another's. Means nothing without an identity.
    pub fn expecting(&self, name: &str) -> Self {
        Self {
            identity: self.identity.clone(),
            expected: Some(name.into()),
            network: self.network.clone(),
        }
    }

    /// Who this process is, if it has a certificate.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref()
    }

    /// Whether connections are encrypted and both ends known.
    pub fn is_secure(&self) -> bool {
        self.identity.is_some()
    }

    /// A channel to the server at `HOST:PORT`, or at the Unix socket `unix:PATH`, which connects at the first call and again
    /// when it breaks.
    ///
    /// # Errors
    /// When the address is none.
    pub fn channel(
        &self,
        address: &str,
        server: Role,
        connect_deadline: Duration,
    ) -> Result<Channel, TrustError> {
        let (uri, target) = match address.strip_prefix(UNIX) {
            // The name is not looked up.
            Some(path) => ("http://localhost".to_owned(), Target::Unix(path.into())),
            None => (
                format!("http://{address}"),
                Target::Tcp {
                    address: address.to_owned(),
                    dial: self.clone(),
                    server,
                },
            ),
        };
        let endpoint = Endpoint::from_shared(uri)
            .ok()
            .filter(|endpoint| target.is_unix() || endpoint.uri().port_u16().is_some())
            .ok_or_else(|| TrustError::Address(address.to_owned()))?;
        let endpoint = endpoint
            .connect_timeout(connect_deadline)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        Ok(endpoint.connect_with_connector_lazy(Connector(target)))
    }

    /// A connection to the server at `HOST:PORT`.
    ///
    /// # Errors
    /// When it cannot be reached, is not whom its certificate must name, or does not answer for 10 s.
    pub async fn connect(&self, address: &str, server: Role) -> io::Result<Stream> {
        if let Some(connecting) = self.connect_simulated(address) {
            return Ok(Stream::Simulated(connecting.await?));
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        self.handshake(stream, server).await
    }

    /// A connection to an address in a network that is simulated; `None` if this one is not.
    pub fn connect_simulated(&self, address: &str) -> Option<Connecting> {
        let Network(connect) = self.network.as_ref()?;
        Some(connect(address.to_owned()))
    }

    /// A connection to the server at the other end of one that nobody has used yet: TLS with an identity, else as it is.
    ///
    /// # Errors
    /// When it is not whom its certificate must name, or does not answer for 10 s.
    pub fn handshake(&self, stream: TcpStream, server: Role) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let Some(identity) = &self.identity else {
                return Ok(Stream::Plain(stream));
            };
            // The verifier does not look at the name; it must only be one.
            let name = ServerName::from(stream.peer_addr()?.ip());
            let connector = TlsConnector::from(identity.client_config(server));
            let handshake = timeout(HANDSHAKE_DEADLINE, connector.connect(name, stream));
            let stream = handshake.await.map_err(|_| io::ErrorKind::TimedOut)??;
            if let Some(expected) = &self.expected {
                let peer = Peer::shown(stream.get_ref().1.peer_certificates())?;
                let name = peer.map(|peer| peer.subject.name);
                if name.as_ref().map(NodeName::as_str) != Some(&**expected) {
                    let name = name.map_or_else(|| "nobody".to_owned(), |name| name.to_string());
                    return Err(refused(format!(
                        "the certificate is that of {name}, and not of {server} {expected}"
                    )));
                }
            }
            Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
        })
    }
}

#[derive(Clone)]
enum Target {
    Unix(PathBuf),
    Tcp {
        address: String,
        dial: Dial,
        server: Role,
    },
}

impl Target {
    fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

/// Connects a channel, to the same server each time.
struct Connector(Target);

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move {
            let stream = match target {
                Target::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
                Target::Tcp {
                    address,
                    dial,
                    server,
                } => dial.connect(&address, server).await?,
            };
            Ok(TokioIo::new(stream))
        })
    }
}
