//! The listener, and the faults of connections and answers.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::host::SingleDomain;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use crate::body::faulty;
use crate::bucket::Bucket;
use crate::fault::{Fault, Faults, Target};
use crate::keys::Keys;
use crate::service::{Buckets, Service, Stats};

/// How a server is set up.
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Access key and secret; `None` lets everybody in.
    pub credentials: Option<(String, String)>,
    /// Domain of virtual-hosted requests. Without it all are path-style.
    pub domain: Option<String>,
    /// What it shows to clients, which must speak TLS then.
    pub identity: Option<Identity>,
}

/// A certificate and its key, in DER.
pub struct Identity {
    /// The certificate.
    pub certificate: Vec<u8>,
    /// Its private key, as PKCS #8.
    pub key: Vec<u8>,
}

impl Identity {
    fn acceptor(self) -> io::Result<TlsAcceptor> {
        let key = PrivatePkcs8KeyDer::from(self.key).into();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.into()], key)
            .map_err(io::Error::other)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            credentials: None,
            domain: None,
            identity: None,
        }
    }
}

/// A running server. It ends when it goes out of scope.
pub struct S3Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Dropped in the background, so that a server may end within another runtime.
    runtime: Option<Runtime>,
}

struct Shared {
    buckets: Buckets,
    faults: Faults,
    stats: Arc<Stats>,
    service: S3Service,
    keys: Option<Keys>,
    tls: Option<TlsAcceptor>,
}

type Answer = Response<Either<s3s::Body, UnsyncBoxBody<Bytes, io::Error>>>;

impl S3Server {
    /// Starts a server on threads of its own.
    pub fn start(config: Config) -> io::Result<Self> {
        let buckets: Buckets = Arc::default();
        let stats = Arc::new(Stats::default());
        let mut builder = S3ServiceBuilder::new(Service {
            buckets: buckets.clone(),
            stats: stats.clone(),
        });
        let keys = config
            .credentials
            .map(|(key, secret)| Keys::new(key, secret));
        if let Some(keys) = keys.clone() {
            builder.set_auth(keys.clone());
            builder.set_access(keys);
        }
        if let Some(domain) = config.domain {
            builder.set_host(SingleDomain::new(&domain).map_err(io::Error::other)?);
        }
        let shared = Arc::new(Shared {
            buckets,
            faults: Faults::default(),
            stats,
            service: builder.build(),
            keys,
            tls: config.identity.map(Identity::acceptor).transpose()?,
        });
        let listener = StdListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server")
            .enable_all()
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, shared.clone()));
        Ok(Self {
            address,
            shared,
            runtime: Some(runtime),
        })
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        let scheme = if self.shared.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a bucket, or replaces the one of that name.
    pub fn add_bucket(&self, name: &str, bucket: Bucket) {
        self.shared.buckets.write().insert(name.to_owned(), bucket);
    }

    /// Removes a bucket with all it holds.
    pub fn remove_bucket(&self, name: &str) {
        self.shared.buckets.write().remove(name);
    }

    /// Changes a bucket, which is made when it is missing.
    pub fn edit<T>(&self, name: &str, change: impl FnOnce(&mut Bucket) -> T) -> T {
        change(
            self.shared
                .buckets
                .write()
                .entry(name.to_owned())
                .or_default(),
        )
    }

    /// Makes these the valid keys of a server that has some; those before them have expired.
    pub fn replace_keys(&self, key: &str, secret: &str) {
        if let Some(keys) = &self.shared.keys {
            keys.replace(key, secret);
        }
    }

    /// Makes keys valid for one bucket, beside those of a server that has some.
    pub fn add_account(&self, key: &str, secret: &str, bucket: &str) {
        if let Some(keys) = &self.shared.keys {
            keys.add_account(key, secret, bucket);
        }
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// What it was asked for.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, shared.clone()));
            }
            // Out of descriptors: wait until some are free.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    // Without them the connection works too, only slower, or cannot be reset on purpose.
    let _ = stream.set_nodelay(true);
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    let socket = Arc::new(socket);
    match shared.tls.clone() {
        None => serve(stream, shared, socket).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, shared, socket).await;
            }
        }
    }
}

async fn serve<S>(stream: S, shared: Arc<Shared>, socket: Arc<OwnedFd>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, shared.clone(), socket.clone()));
    // A client that goes away is no error of ours.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Answers a request. An error ends the connection without an answer.
async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    socket: Arc<OwnedFd>,
) -> io::Result<Answer> {
    let asked = asked(&request);
    shared.stats.count(asked);
    let fault = shared.faults.choose(asked, request.uri().path());
    match &fault {
        Some(Fault::Status(status, code)) => return Ok(refusal(*status, code, "on request")),
        Some(Fault::WantsKey) => return Ok(refusal(400, "InvalidRequest", WANTS_KEY)),
        Some(Fault::Reset) => {
            // Closing sends a reset instead of the end of the stream.
            rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Some(Fault::Stall(time)) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let mut request = request.map(s3s::Body::from);
    if let Some(fault) = &fault {
        request.extensions_mut().insert(fault.clone());
    }
    let response = shared
        .service
        .call(request)
        .await
        .map_err(io::Error::other)?;
    let mut response = response;
    if let Some(fault) = &fault {
        bend(response.headers_mut(), fault);
    }
    Ok(match fault {
        Some(fault) => response.map(|body| {
            let frames = faulty(body, &fault).map(|piece| piece.map(Frame::data));
            Either::Right(StreamBody::new(frames).boxed_unsync())
        }),
        None => response.map(Either::Left),
    })
}

/// What a request is about.
fn asked<T>(request: &Request<T>) -> Target {
    let query = request.uri().query().unwrap_or_default();
    if query.contains("list-type=") {
        Target::List
    } else if request.method() == Method::HEAD || query.starts_with("attributes") {
        Target::Head
    } else {
        Target::Get
    }
}

/// The head of an answer with the fault, if it is one of heads.
fn bend(headers: &mut HeaderMap, fault: &Fault) {
    match fault {
        Fault::Unpacked(_) => {
            headers.remove(header::CONTENT_LENGTH);
        }
        Fault::WrongLength(more) => {
            let length = headers.get(header::CONTENT_LENGTH);
            let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            if let Some(length) = length {
                headers.insert(header::CONTENT_LENGTH, (length + *more as u64).into());
            }
        }
        _ => {}
    }
}

/// What S3 says of an object with a customer's key.
const WANTS_KEY: &str = "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object.";

fn refusal(status: u16, code: &str, message: &str) -> Answer {
    let document = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    // In chunks, without a length, as S3 sends its errors.
    let frames = stream::iter([Ok(Frame::data(Bytes::from(document)))]);
    let body = StreamBody::new(frames).boxed_unsync();
    let mut response = Response::new(Either::Right(body));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let xml = header::HeaderValue::from_static("application/xml");
    response.headers_mut().insert(header::CONTENT_TYPE, xml);
    response
}
