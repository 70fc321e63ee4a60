//! Whom a server admits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::caller::Caller;
use crate::error::{TrustError, refused};
use crate::identity::Identity;
use crate::local::user_of_peer;
use crate::stream::Stream;
use crate::subject::Peer;

/// Longest time from a connection to the end of its handshake.
pub(crate) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Whom a server admits.
#[derive(Clone, Debug)]
pub enum Access {
    /// Those who show a certificate of the cluster's authority, over TLS.
    Certificates(Arc<Identity>),
    /// Processes of the server's own user, and of root, on this machine.
    SameUser,
    /// Everybody who can reach it.
    Anybody,
}

impl Access {
    /// What is right for a server at `listen`: TLS if it has an identity, else processes of the same user on loopback.
    ///
    /// # Errors
    /// When others could reach it, it has no identity, and nobody said that it is to be open.
    pub fn new(
        listen: SocketAddr,
        identity: Option<Arc<Identity>>,
        insecure: bool,
    ) -> Result<Self, TrustError> {
        match identity {
            Some(identity) => Ok(Self::Certificates(identity)),
            None if insecure => Ok(Self::Anybody),
            None if listen.ip().to_canonical().is_loopback() => Ok(Self::SameUser),
            None => Err(TrustError::Open(listen)),
        }
    }

    /// Finds out who has connected. An error says why that one is not admitted.
    ///
    /// # Errors
    /// When the caller has no valid certificate, is another user's, or says nothing for 10 s.
    pub fn admit(&self, stream: TcpStream) -> BoxFuture<'_, io::Result<(Stream, Caller)>> {
        Box::pin(async move {
            let from = stream.peer_addr()?.ip().to_canonical();
            let admitted = self.admit_from(from, stream).await;
            admitted.map_err(|error| io::Error::new(error.kind(), format!("{from}: {error}")))
        })
    }

    async fn admit_from(&self, from: IpAddr, stream: TcpStream) -> io::Result<(Stream, Caller)> {
        match self {
            Self::Anybody => Ok((Stream::Plain(stream), Caller::Anybody { from: Some(from) })),
            Self::SameUser => {
                let caller = Self::same_user(&stream).await?;
                Ok((Stream::Plain(stream), caller))
            }
            Self::Certificates(identity) => {
                let acceptor = TlsAcceptor::from(identity.server_config());
                let handshake = timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream));
                let stream = handshake.await.map_err(|_| late())??;
                let peer = Peer::shown(stream.get_ref().1.peer_certificates())?;
                let peer = peer.ok_or_else(|| refused("no certificate was shown".to_owned()))?;
                let (peer, from) = (Arc::new(peer), Some(from));
                let stream = Box::new(TlsStream::Server(stream));
                Ok((Stream::Tls(stream), Caller::Peer { peer, from }))
            }
        }
    }

    /// Who is at the other end of a connection inside this machine, if that is a process of the same user or root.
    ///
    /// # Errors
    /// When it is another user's, or of another machine.
    pub async fn same_user(stream: &TcpStream) -> io::Result<Caller> {
        let uid = user_of_peer(stream).await?;
        let nobody = || refused("no process of this machine has the other end".to_owned());
        Self::local(uid.ok_or_else(nobody)?)
    }

    /// Finds out who has connected to a Unix socket: always processes of the same user or root alone.
    ///
    /// # Errors
    /// When the caller is another user's.
    pub fn admit_unix(stream: UnixStream) -> io::Result<(Stream, Caller)> {
        let uid = stream.peer_cred()?.uid();
        Ok((Stream::Unix(stream), Self::local(uid)?))
    }

    /// A process of this machine whose user is known.
    ///
    /// # Errors
    /// When that is another user than this process's, and not root.
    pub fn local(uid: u32) -> io::Result<Caller> {
        if uid == 0 || uid == rustix::process::geteuid().as_raw() {
            return Ok(Caller::Local { uid });
        }
        Err(refused(format!("user {uid} is another user")))
    }

    /// For those who look after the cluster: how callers are known.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Certificates(_) => "certificates",
            Self::SameUser => "same user",
            Self::Anybody => "insecure",
        }
    }
}

fn late() -> io::Error {
    let why = format!("no handshake within {HANDSHAKE_DEADLINE:?}");
    io::Error::new(io::ErrorKind::TimedOut, why)
}
