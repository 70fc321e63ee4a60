//! Opening a connection: names, proxies, TLS.
//!
//! The addresses that were checked are those that are connected to: a name is looked up once for both.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

use super::low_water::set_low_water;
use super::names::{Guarded, Names};
use super::proxy::Proxies;
use super::trust::Trust;
use crate::error::OriginError;
use crate::sources::Reach;

/// Longest wait for a connection: name, address, proxy and TLS.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// A connection's bytes, deciphered.
pub(crate) type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A proxy is of a kind that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {0} cannot be used; write http://HOST:PORT")]
pub(crate) struct ProxyUnusable(Uri);

/// More than one TLS record: what the TLS layer may hold of bytes that the kernel has handed over.
const RECORD: u64 = 20 << 10;

/// Opens connections, through a proxy or not.
pub(crate) struct Connector {
    names: Names,
    reach: Reach,
    pub(crate) tls: ClientConfig,
    proxies: Arc<Proxies>,
}

impl Connector {
    /// Reads certificates if there is to be TLS, which is when `trust` says whose: that takes milliseconds, and an image
    /// need not have any.
    pub(crate) fn new(
        trust: Option<&Trust>,
        proxies: Arc<Proxies>,
        reach: Reach,
    ) -> Result<Self, OriginError> {
        // A second installation is refused, which is fine: the first is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = match trust {
            Some(trust) => trust.tls()?,
            None => ClientConfig::builder()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth(),
        };
        Ok(Self {
            names: Names::of_system(),
            reach,
            tls,
            proxies,
        })
    }

    /// The proxy that requests for `uri` are given to as they are. Those with TLS go through it unseen.
    pub(crate) fn forwarder(&self, uri: &Uri) -> Option<Intercept> {
        if uri.scheme_str() == Some("https") {
            return None;
        }
        self.proxies.intercept(uri)
    }

    /// Whether requests to `uri` go through a proxy.
    pub(crate) fn uses_proxy(&self, uri: &Uri) -> bool {
        self.proxies.intercept(uri).is_some()
    }

    /// Opens a connection for requests to `uri`.
    pub(crate) async fn open(&self, uri: &Uri) -> Result<(Stream, Socket), BoxError> {
        let proxy = self.proxies.intercept(uri);
        if let Some(proxy) = &proxy
            && proxy.uri().scheme_str() != Some("http")
        {
            return Err(ProxyUnusable(proxy.uri().clone()).into());
        }
        self.reach.check_name(uri, proxy.is_some())?;
        let stream = match proxy {
            Some(proxy) if uri.scheme_str() == Some("https") => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp(None));
                if let Some(credentials) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(credentials.clone());
                }
                HttpsConnector::from((tunnel, self.tls.clone()))
                    .call(uri.clone())
                    .await?
            }
            Some(proxy) => {
                let proxy = proxy.uri().clone();
                self.tls_over(self.tcp(None)).call(proxy).await?
            }
            None => {
                let tcp = self.tcp(Some(uri));
                self.tls_over(tcp).call(uri.clone()).await?
            }
        };
        let socket = Socket::of(&stream)?;
        Ok((stream, socket))
    }

    /// Opens connections to the service at `uri`, at addresses that this process may connect to; without one to a proxy,
    /// wherever that is: the operator has chosen it.
    pub(crate) fn tcp(&self, uri: Option<&Uri>) -> HttpConnector<Guarded> {
        let mut tcp = HttpConnector::new_with_resolver(Guarded {
            names: self.names.clone(),
            reach: uri.map(|uri| (self.reach.clone(), uri.clone())),
        });
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp
    }

    fn tls_over(&self, tcp: HttpConnector<Guarded>) -> HttpsConnector<HttpConnector<Guarded>> {
        HttpsConnector::from((tcp, self.tls.clone()))
    }
}

/// The socket below a connection, for its options.
pub(crate) struct Socket {
    descriptor: OwnedFd,
    /// Bytes that may be on their way between the socket and the stream.
    between: u64,
}

impl Socket {
    fn of(stream: &Stream) -> std::io::Result<Self> {
        let (descriptor, between): (BorrowedFd<'_>, u64) = match stream {
            MaybeHttpsStream::Http(tcp) => (tcp.inner().as_fd(), 0),
            MaybeHttpsStream::Https(tls) => {
                (tls.inner().get_ref().0.inner().inner().as_fd(), RECORD)
            }
        };
        Ok(Self {
            descriptor: descriptor.try_clone_to_owned()?,
            between,
        })
    }

    /// Has the kernel wake the reader only when so many bytes of the body have come. False when that is not worth it.
    pub(crate) fn gather(&self, bytes: u64) -> bool {
        let Some(bytes) = bytes.checked_sub(self.between).filter(|bytes| *bytes > 0) else {
            return false;
        };
        set_low_water(&self.descriptor, bytes)
    }

    /// Has the kernel wake the reader at once again.
    pub(crate) fn gather_no_more(&self) {
        set_low_water(&self.descriptor, 1);
    }
}

#[cfg(test)]
mod tests;
