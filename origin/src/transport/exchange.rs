//! HTTP/1.1 as reads of objects want it: one exchange at a time on a connection that the exchange itself drives.
//!
//! A general client gives each connection a task of its own, which hands every piece of a body over to the reader's
//! task. Here the reader polls the connection, and the kernel is told how many bytes are worth a wake-up, so a small
//! object costs two.
//!
//! Invariant: a connection in the pool has no answer outstanding, and is used again only by the runtime that opened
//! it. The threads that answer the kernel have runtimes of their own, which stand still between two reads.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, timeout};

use super::connect::{CONNECT_DEADLINE, Connector, Socket, Stream};
use super::failure::{Cause, HttpError};

/// Idle connections kept of one runtime to one service, and for how long: shorter than the usual keep-alive of 20 s.
const MAX_IDLE: usize = 128;
const IDLE_FOR: Duration = Duration::from_secs(15);
/// Lines of a head at most, once an answer had more than the 100 that are read without an allocation. Each piece of an
/// object's own metadata is one.
const MAX_HEADERS: usize = 1024;
/// Most bytes of a head, and of a body that are read at once. A piece keeps a buffer of this size alive.
const PIECE: usize = 128 << 10;
/// Bytes that the kernel gathers before it wakes the reader of a body: at first few, so that whoever waits for the
/// first has it soon, then twice as many each time. And how long it may take over them: a slow body is seen to move.
const FIRST_GATHER: u64 = 16 << 10;
const GATHER: u64 = 128 << 10;
const GATHER_FOR: Duration = Duration::from_millis(20);

/// Whose connections may stand in for each other.
type Key = (Id, Scheme, Authority);

/// Connections to services, and what they are opened with.
pub(crate) struct Http {
    connector: Connector,
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
    /// Answers have had long heads: new connections read such.
    long_heads: AtomicBool,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Http {
    /// Connections that `connector` opens. None is made yet.
    pub(crate) fn new(connector: Connector) -> Self {
        Self {
            connector,
            idle: Mutex::default(),
            long_heads: AtomicBool::new(false),
        }
    }

    /// Sends a request without a body and waits for the head of its answer. One that fails on a connection that was used before
    /// is sent again: the service may have closed it meanwhile. So is one whose answer's head may have been too long.
    pub(crate) async fn send(
        self: &Arc<Self>,
        method: &Method,
        uri: &Uri,
        headers: HeaderMap,
    ) -> Result<Answer, HttpError> {
        let key = key(uri)?;
        let mut head_is_long = false;
        loop {
            let used = if head_is_long { None } else { self.take(&key) };
            let is_used = used.is_some();
            let reads_long = head_is_long || self.long_heads.load(Ordering::Relaxed);
            let mut connection = match used {
                Some(connection) => connection,
                None => self.connect_sparing(uri, reads_long).await?,
            };
            match connection
                .send(self.request(method, uri, headers.clone())?)
                .await
            {
                Ok(response) => {
                    if head_is_long {
                        self.long_heads.store(true, Ordering::Relaxed);
                    }
                    let (head, body) = response.into_parts();
                    return Ok(Answer {
                        status: head.status,
                        left: content_length(&head.headers),
                        headers: head.headers,
                        body,
                        gather: FIRST_GATHER,
                        connection: Some(connection),
                        home: (self.clone(), key),
                    });
                }
                Err(HttpError::Exchange(error)) if error.is_parse() && !is_used && !reads_long => {
                    head_is_long = true;
                }
                Err(error) if is_used => {
                    tracing::debug!(%error, "a kept connection was of no use");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a service that has not answered well may be asked with TLS alone, or without it alone, other than `uri` says.
    pub(crate) async fn speaks_otherwise(&self, uri: &Uri) -> bool {
        self.connector.speaks_otherwise(uri).await
    }

    fn request(
        &self,
        method: &Method,
        uri: &Uri,
        headers: HeaderMap,
    ) -> Result<Request<Empty<Bytes>>, HttpError> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method.clone();
        *request.headers_mut() = headers;
        let host = uri.authority().map_or("", Authority::as_str);
        let host = HeaderValue::from_str(host).map_err(http::Error::from)?;
        request.headers_mut().insert(header::HOST, host);
        *request.uri_mut() = if let Some(proxy) = self.connector.forwarder(uri) {
            // A proxy is told the whole address.
            if let Some(credentials) = proxy.basic_auth() {
                let name = header::PROXY_AUTHORIZATION;
                request.headers_mut().insert(name, credentials.clone());
            }
            uri.clone()
        } else {
            let path = uri.path_and_query().cloned();
            path.unwrap_or(PathAndQuery::from_static("/")).into()
        };
        Ok(request)
    }

    /// As [`Self::connect`]. Where no descriptor is left for it, connections that nobody uses give theirs.
    async fn connect_sparing(&self, uri: &Uri, reads_long: bool) -> Result<Connection, HttpError> {
        let error = match self.connect(uri, reads_long).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        let spare = if error.cause() == Cause::Descriptors {
            std::mem::take(&mut *self.idle.lock())
        } else {
            HashMap::new()
        };
        if spare.is_empty() {
            return Err(error);
        }
        drop(spare);
        self.connect(uri, reads_long).await
    }

    async fn connect(&self, uri: &Uri, reads_long: bool) -> Result<Connection, HttpError> {
        let opened = async {
            let (stream, socket) = self.connector.open(uri).await.map_err(HttpError::Connect)?;
            let mut builder = http1::Builder::new();
            builder.max_buf_size(PIECE);
            if reads_long {
                builder.max_headers(MAX_HEADERS);
            }
            let (sender, driver) = builder.handshake(stream).await?;
            Ok(Connection {
                sender,
                driver: Box::pin(driver),
                socket,
            })
        };
        timeout(CONNECT_DEADLINE, opened)
            .await
            .map_err(|_| HttpError::ConnectTimeout)?
    }

    /// The connection that was used last, if it is still of use.
    fn take(&self, key: &Key) -> Option<Connection> {
        loop {
            let Idle { connection, since } = self.idle.lock().get_mut(key)?.pop()?;
            if since.elapsed() < IDLE_FOR && connection.sender.is_ready() {
                return Some(connection);
            }
        }
    }

    fn keep(&self, key: &Key, connection: Connection) {
        let since = Instant::now();
        let mut idle = self.idle.lock();
        let kept = idle.entry(key.clone()).or_default();
        if kept.len() == MAX_IDLE {
            kept.remove(0);
        }
        kept.push(Idle { connection, since });
        kept.retain(|idle| idle.since + IDLE_FOR >= since);
    }

    /// Closes the connections that were not used for a while.
    pub(crate) fn close_idle(&self) {
        self.idle.lock().retain(|_, kept| {
            kept.retain(|idle| idle.since.elapsed() < IDLE_FOR);
            !kept.is_empty()
        });
    }
}

type Driver = Pin<Box<http1::Connection<Stream, Empty<Bytes>>>>;

/// The pool of the connections for `uri` of the runtime that calls.
fn key(uri: &Uri) -> Result<Key, HttpError> {
    let scheme = uri.scheme().cloned().unwrap_or(Scheme::HTTP);
    let authority = match uri.authority() {
        Some(authority) => authority.clone(),
        None => Authority::try_from("").map_err(http::Error::from)?,
    };
    Ok((Handle::current().id(), scheme, authority))
}

/// A connection and the future that moves its bytes.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    driver: Driver,
    socket: Socket,
}

impl Connection {
    async fn send(
        &mut self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>, HttpError> {
        let mut response = pin!(self.sender.send_request(request));
        let driver = &mut self.driver;
        poll_fn(|context| {
            let driven = driver.as_mut().poll(context);
            match (response.as_mut().poll(context), driven) {
                (Poll::Ready(response), _) => Poll::Ready(Ok(response?)),
                (Poll::Pending, Poll::Ready(ended)) => {
                    Poll::Ready(Err(ended.err().map_or(HttpError::Closed, Into::into)))
                }
                (Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        })
        .await
    }
}

/// The next piece of `body`, for which its connection is driven.
fn poll_body(
    driver: &mut Driver,
    mut body: Pin<&mut Incoming>,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, HttpError>>> {
    let mut driven = false;
    loop {
        match body.as_mut().poll_frame(context) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(Some(Ok(frame))) => {
                if let Ok(bytes) = frame.into_data() {
                    return Poll::Ready(Some(Ok(bytes)));
                }
            }
            Poll::Pending if driven => return Poll::Pending,
            Poll::Pending => {
                // Its end, good or bad, is seen by the body.
                let _ = driver.as_mut().poll(context);
                driven = true;
            }
        }
    }
}

/// The head of an answer, and the body that is still to come.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    /// Bytes of the body that have not been read, where the head tells.
    left: Option<u64>,
    /// Bytes to gather at the next wait.
    gather: u64,
    /// Given back behind the body's end.
    connection: Option<Connection>,
    home: (Arc<Http>, Key),
}

impl Answer {
    /// The next bytes of the body; `None` behind its end.
    pub(crate) async fn chunk(&mut self) -> Option<Result<Bytes, HttpError>> {
        let Connection { driver, socket, .. } = self.connection.as_mut()?;
        let mut body = Pin::new(&mut self.body);
        let ready = poll_fn(|context| Poll::Ready(poll_body(driver, body.as_mut(), context)));
        let piece = match ready.await {
            Poll::Ready(piece) => piece,
            Poll::Pending => {
                let next = poll_fn(|context| poll_body(driver, body.as_mut(), context));
                let bytes = match self.left {
                    Some(left) if left > GATHER => self.gather,
                    left => left.unwrap_or(0),
                };
                self.gather = (2 * self.gather).min(GATHER);
                gathered(socket, bytes, next).await
            }
        };
        match &piece {
            Some(Ok(bytes)) => {
                self.left = self
                    .left
                    .map(|left| left.saturating_sub(bytes.len() as u64));
                if self.left == Some(0) {
                    self.release().await;
                }
            }
            Some(Err(_)) => self.connection = None,
            None => self.release().await,
        }
        piece
    }

    /// Gives the connection back, if the answer has been read to its end.
    async fn release(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        // Both are there without waiting when the last byte is.
        let ended = poll_fn(|context| {
            let driver = &mut connection.driver;
            let end = poll_body(driver, Pin::new(&mut self.body), context);
            let closed = driver.as_mut().poll(context).is_ready();
            Poll::Ready(matches!(end, Poll::Ready(None)) && !closed)
        });
        if ended.await && connection.sender.is_ready() {
            let (http, key) = &self.home;
            http.keep(key, connection);
        }
    }

    /// The whole body, if it has `most` bytes at most.
    pub(crate) async fn document(mut self, most: usize) -> Result<Vec<u8>, HttpError> {
        let mut document = Vec::new();
        while let Some(chunk) = self.chunk().await {
            document.extend_from_slice(&chunk?);
            if document.len() > most {
                return Err(HttpError::TooLong(most));
            }
        }
        Ok(document)
    }
}

/// Waits for `next` with few wake-ups: the kernel gathers so many bytes.
async fn gathered<T>(socket: &Socket, bytes: u64, next: impl Future<Output = T>) -> T {
    if !socket.gather(bytes) {
        return next.await;
    }
    let mut next = pin!(next);
    let in_time = timeout(GATHER_FOR, next.as_mut()).await;
    socket.gather_no_more();
    match in_time {
        Ok(result) => result,
        Err(_) => next.await,
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
