//! An address that says `http://` where the service speaks with TLS, or the other way round.
//!
//! Some services say so; many close the connection or send a record of TLS, as one that is being restarted may, too. So
//! when a service has never answered, it is asked the other way. That shows it nothing: a name in a TLS greeting, or a
//! request without keys for no object.

use std::time::Duration;

use http::Uri;
use hyper_rustls::HttpsConnector;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tower_service::Service;

use super::connect::Connector;
use super::failure::HttpError;

/// Longest time for the question.
const DEADLINE: Duration = Duration::from_secs(1);

impl Connector {
    /// Whether what listens at `uri` speaks TLS although the address says that it does not, or the other way round.
    pub(crate) async fn speaks_otherwise(&self, uri: &Uri) -> bool {
        if self.uses_proxy(uri) {
            return false; // it is the proxy that would answer
        }
        let asked = async {
            match uri.scheme_str() {
                Some("https") => self.speaks_plainly(uri).await,
                _ => Some(self.speaks_tls(uri).await),
            }
        };
        timeout(DEADLINE, asked)
            .await
            .ok()
            .flatten()
            .unwrap_or(false)
    }

    async fn speaks_tls(&self, uri: &Uri) -> bool {
        let Some(uri) = with_scheme(uri, "https", 80) else {
            return false;
        };
        let mut connector = HttpsConnector::from((self.tcp(Some(&uri)), self.tls.clone()));
        match connector.call(uri).await {
            Ok(_) => true,
            // Whatever it dislikes or is disliked for, it has said so in TLS.
            Err(error) => HttpError::Connect(error)
                .source_of()
                .is_some_and(|tls| !matches!(tls, rustls::Error::InvalidMessage(_))),
        }
    }

    async fn speaks_plainly(&self, uri: &Uri) -> Option<bool> {
        let uri = with_scheme(uri, "http", 443)?;
        let request = format!("HEAD / HTTP/1.0\r\nHost: {}\r\n\r\n", uri.host()?);
        let mut stream = self.tcp(Some(&uri)).call(uri).await.ok()?.into_inner();
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer == *b"HTTP/")
    }
}

/// The same host and port by another scheme. `port` is the one that is meant if the address names none.
fn with_scheme(uri: &Uri, scheme: &str, port: u16) -> Option<Uri> {
    let host = uri.host()?;
    let port = uri.port_u16().unwrap_or(port);
    format!("{scheme}://{host}:{port}/").parse().ok()
}
