//! Requests to the services that give out keys: few and small, each on a connection of its own, with a deadline.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connect::Connector;
use super::environment::Environment;
use super::failure::HttpError;
use super::proxy::Proxies;
use super::trust::Trust;
use crate::error::OriginError;
use crate::sources::Reach;

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 256 << 10;

/// How the services are reached.
#[derive(Clone)]
pub(crate) struct Calls {
    trust: Trust,
    proxies: Arc<Proxies>,
}

/// How long a connection, and the whole exchange, may take.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    pub(crate) whole: Duration,
}

/// A service's answer.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// What a status other than success means: that it may pass, or the remedy. `word` is the service's own.
    pub(crate) fn refused(&self, what: &str, word: &str, remedy: &'static str) -> Refused {
        let detail = format!("{what}: {} {}", self.status.as_u16(), plain(word));
        let detail = detail.trim_end().to_owned();
        if self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS {
            Refused::Unavailable(detail)
        } else {
            Refused::Denied(detail, remedy)
        }
    }
}

/// Why there is none.
pub(crate) enum CallError {
    /// The settings make no sense.
    Settings(OriginError),
    /// No connection was made.
    Connect(String),
    /// A connection was made, and no answer came.
    Broken(String),
}

/// Why a service gave no keys.
pub(crate) enum Refused {
    /// A final error.
    Error(OriginError),
    /// It refused, and will do so again: what, and what to do.
    Denied(String, &'static str),
    /// There seems to be no such service here.
    Absent(String),
    /// It does not answer, or not now.
    Unavailable(String),
}

impl CallError {
    /// The refusal of a service that has to be there. `what` is the service.
    pub(crate) fn of_service(self, what: &str) -> Refused {
        match self {
            Self::Settings(error) => Refused::Error(error),
            Self::Connect(detail) | Self::Broken(detail) => {
                Refused::Unavailable(format!("{what}: {detail}"))
            }
        }
    }

    /// The refusal of a service of the platform, which many have not.
    pub(crate) fn of_platform(self, what: &str) -> Refused {
        match self {
            Self::Settings(error) => Refused::Error(error),
            Self::Connect(detail) | Self::Broken(detail) => {
                Refused::Absent(format!("{what} does not answer ({detail})"))
            }
        }
    }
}

impl Calls {
    pub(crate) fn new(trust: Trust, environment: &Environment) -> Self {
        Self {
            trust,
            proxies: Arc::new(Proxies::of(environment)),
        }
    }

    /// The same without proxies: the services of a machine or a container are where it is.
    pub(crate) fn direct(&self) -> Self {
        Self {
            trust: self.trust.clone(),
            proxies: Arc::new(Proxies::none()),
        }
    }

    /// Sends a request and waits for the answer to its end.
    pub(crate) async fn ask(
        &self,
        method: Method,
        uri: &Uri,
        mut headers: HeaderMap,
        body: impl Into<Bytes>,
        limits: Limits,
    ) -> Result<Reply, CallError> {
        let with_tls = uri.scheme_str() == Some("https");
        let connector = Connector::new(
            with_tls.then_some(&self.trust),
            self.proxies.clone(),
            Reach::anywhere(),
        );
        let connector = connector.map_err(CallError::Settings)?;
        let late = |limit: Duration| format!("nothing came within {limit:?}");
        let opened = timeout(limits.connect, connector.open(uri)).await;
        let (stream, _) = opened
            .map_err(|_| CallError::Connect(format!("no connection within {:?}", limits.connect)))?
            .map_err(|error| CallError::Connect(HttpError::Connect(error).to_string()))?;
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let broken = |error: HttpError| CallError::Broken(error.to_string());
        let host =
            HeaderValue::from_str(host).map_err(|error| broken(http::Error::from(error).into()))?;
        headers.insert(header::HOST, host);
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = method;
        *request.uri_mut() = if let Some(proxy) = connector.forwarder(uri) {
            if let Some(credentials) = proxy.basic_auth() {
                headers.insert(header::PROXY_AUTHORIZATION, credentials.clone());
            }
            uri.clone()
        } else {
            let path = uri.path_and_query().cloned();
            path.unwrap_or(PathAndQuery::from_static("/")).into()
        };
        *request.headers_mut() = headers;
        let exchange = async {
            let (mut sender, connection) = http1::handshake(stream).await?;
            // Ends when this future does, however that is.
            let mut driver = JoinSet::new();
            driver.spawn(connection);
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|_| HttpError::TooLong(MAX_ANSWER))?;
            Ok::<_, HttpError>(Reply {
                status: head.status,
                headers: head.headers,
                body: body.to_bytes().to_vec(),
            })
        };
        timeout(limits.whole, exchange)
            .await
            .map_err(|_| CallError::Broken(late(limits.whole)))?
            .map_err(broken)
    }
}

/// The token of an answer (RFC 6749, 5.1) as the header of requests, and how long it lives.
pub(crate) fn bearer(
    reply: &Reply,
    what: &impl Fn() -> String,
    remedy: &'static str,
) -> Result<(HeaderValue, Option<Duration>), Refused> {
    #[derive(serde::Deserialize)]
    struct Token {
        access_token: String,
        /// Seconds: a number, or a string in Azure's older services.
        #[serde(default)]
        expires_in: serde_json::Value,
    }
    #[derive(serde::Deserialize, Default)]
    struct Problem {
        #[serde(default)]
        error: serde_json::Value,
    }
    if !reply.status.is_success() {
        let problem: Problem = serde_json::from_slice(&reply.body).unwrap_or_default();
        let word = problem.error.as_str().unwrap_or_default();
        return Err(reply.refused(&what(), word, remedy));
    }
    let no_token = || Refused::Denied(format!("{} did not answer with a token", what()), remedy);
    let token: Token = serde_json::from_slice(&reply.body).map_err(|_| no_token())?;
    let header = HeaderValue::from_str(&format!("Bearer {}", token.access_token.trim()));
    let mut header = header.map_err(|_| no_token())?;
    header.set_sensitive(true);
    let seconds = match &token.expires_in {
        serde_json::Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    Ok((header, seconds.map(Duration::from_secs)))
}

/// The address of who gives tokens: with TLS, but on this machine.
pub(crate) fn token_service(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    let is_near = host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => Some(uri),
        Some("http") if is_near => Some(uri),
        _ => None,
    }
}

/// A service's word in a message, if it is one.
pub(crate) fn plain(word: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    word.chars().take(64).take_while(|c| fits(*c)).collect()
}
