//! How connections to workers on other machines are opened.
//!
//! Without a certificate they are plain, and the worker knows of this process what it can see. With one the worker is asked
//! over its control service, once for many connections: it says TLS, or gives a key with which both sides then prove on
//! plain connections who they are. A worker that has been started again knows its keys no more, or wants another way: it is
//! asked again where what it said before is of no use.
//!
//! Nothing here is a sign of life but what the worker itself has sent: the kernel accepts connections for one that is
//! frozen.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::Code;
use weir_core::{ClusterMap, WorkerInfo};
use weir_proto::v1::worker_client::WorkerClient;
use weir_proto::v1::{OpenStreamReply, OpenStreamRequest, StreamMode};
use weir_trust::{Dial, Role, Stream};

use crate::activity::Activity;
use crate::connection::{CONNECT_DEADLINE, Connect, ConnectionError, Connections, Opened};
use crate::link::Link;
use crate::opening::{Ends, OPENING_DEADLINE, OPENING_VERSION, OpeningError, StreamKey, open};
use crate::socket::keep_alive;
use crate::tls::Remote;

/// Longest wait for a worker to say how its connections are opened.
const ASK_DEADLINE: Duration = Duration::from_secs(3);
/// How long it is remembered that a worker wants TLS.
const TLS_VALID: Duration = Duration::from_mins(10);

/// Connects to workers over TCP.
pub struct FarWorkers {
    dial: Dial,
    /// How each worker's connections are opened, by its address.
    ways: Mutex<HashMap<String, Way>>,
}

/// How the connections to a worker are opened, as far as it is known.
enum Way {
    Known(Arc<Known>),
    Asking(Asking, Instant),
}

struct Known {
    how: How,
    valid: Duration,
    used: Mutex<Instant>,
}

enum How {
    Tls,
    Key(StreamKey),
}

/// One question for all who want to know.
type Asking = Shared<BoxFuture<'static, Result<Arc<Known>, Arc<str>>>>;

impl FarWorkers {
    /// To be called by `dial`.
    pub fn new(dial: Dial) -> Self {
        Self {
            dial,
            ways: Mutex::default(),
        }
    }

    /// How a worker's connections are opened, and whether that was known before.
    async fn way(&self, worker: &WorkerInfo) -> Result<(Arc<Known>, bool), ConnectionError> {
        let asking = {
            let mut ways = self.ways.lock();
            match ways.get(&worker.data_address) {
                Some(Way::Known(known)) if known.is_fresh() => return Ok((known.clone(), true)),
                // One that nobody went on with is too late.
                Some(Way::Asking(asking, since)) if since.elapsed() < ASK_DEADLINE => {
                    asking.clone()
                }
                _ => {
                    let asking = ask(self.dial.clone(), worker.clone()).boxed().shared();
                    let way = Way::Asking(asking.clone(), Instant::now());
                    ways.retain(|_, way| way.is_of_use());
                    ways.insert(worker.data_address.clone(), way);
                    asking
                }
            }
        };
        let answer = asking.clone().await;
        let mut ways = self.ways.lock();
        let way = ways.get(&worker.data_address);
        if matches!(way, Some(Way::Asking(other, _)) if other.ptr_eq(&asking)) {
            match &answer {
                Ok(known) => {
                    let known = Way::Known(known.clone());
                    ways.insert(worker.data_address.clone(), known);
                }
                Err(_) => drop(ways.remove(&worker.data_address)),
            }
        }
        let known = answer.map_err(|why| ConnectionError::Refused(why.to_string()))?;
        Ok((known, false))
    }

    /// What a worker said is of no use any more.
    fn forget(&self, worker: &WorkerInfo, stale: &Arc<Known>) {
        let mut ways = self.ways.lock();
        let way = ways.get(&worker.data_address);
        if matches!(way, Some(Way::Known(known)) if Arc::ptr_eq(known, stale)) {
            ways.remove(&worker.data_address);
        }
    }

    async fn open(
        &self,
        how: &How,
        worker: &WorkerInfo,
        activity: &Activity,
    ) -> Result<Opened<Remote>, ConnectionError> {
        let tcp = connect(&worker.data_address).await?;
        match how {
            How::Key(key) => {
                let client = self.dial.identity().map(|identity| identity.subject());
                let client = client.map(|subject| subject.to_string());
                let ends = Ends {
                    client: client.as_deref().unwrap_or_default(),
                    worker: &format!("{} {}", Role::Worker, worker.id),
                };
                let mut link = Link::of_client(Remote::Plain(tcp));
                open(&mut link, key, ends, activity).await?;
                Ok(Opened {
                    link,
                    version: Some(OPENING_VERSION),
                })
            }
            How::Tls => {
                let dial = self.dial.expecting(worker.id.as_str());
                let handshake = dial.handshake(tcp, Role::Worker);
                let stream = timeout(OPENING_DEADLINE, handshake).await;
                let stream = stream
                    .map_err(|_| OpeningError::Late)?
                    .map_err(|error| ConnectionError::Refused(error.to_string()))?;
                activity.note();
                let Stream::Tls(stream) = stream else {
                    return Err(ConnectionError::Refused("it is not TLS".to_owned()));
                };
                Ok(Opened {
                    link: Link::of_client(Remote::from(*stream)),
                    version: None,
                })
            }
        }
    }
}

impl Connections<FarWorkers> {
    /// Forgets the workers that a map does not have, and the connections to them.
    pub fn retain_of(&self, map: &ClusterMap) {
        let addresses = map.workers().iter().map(|worker| &*worker.data_address);
        let addresses: HashSet<&str> = addresses.collect();
        self.retain(|address| addresses.contains(address));
        let mut ways = self.connector().ways.lock();
        ways.retain(|address, _| addresses.contains(&**address));
    }
}

impl Connect for FarWorkers {
    type Socket = Remote;
    type Peer = WorkerInfo;

    fn address(worker: &WorkerInfo) -> &str {
        &worker.data_address
    }

    async fn connect(
        &self,
        worker: &WorkerInfo,
        activity: &Activity,
    ) -> Result<Opened<Remote>, ConnectionError> {
        if !self.dial.is_secure() {
            let address = &worker.data_address;
            let remote = match self.dial.connect_simulated(address) {
                None => Remote::Plain(connect(address).await?),
                Some(connecting) => Remote::from(in_time(connecting).await?),
            };
            return Ok(Opened {
                link: Link::of_client(remote),
                version: None,
            });
        }
        loop {
            let (known, is_old) = self.way(worker).await?;
            if !is_old {
                activity.note();
            }
            match self.open(&known.how, worker, activity).await {
                Ok(opened) => {
                    *known.used.lock() = Instant::now();
                    return Ok(opened);
                }
                // Nothing was said that could be wrong.
                Err(
                    error @ (ConnectionError::Io(_) | ConnectionError::Opening(OpeningError::Late)),
                ) => return Err(error),
                Err(error) => {
                    self.forget(worker, &known);
                    if !is_old {
                        return Err(error);
                    }
                    tracing::debug!(worker = %worker.id, %error, "a connection is opened anew");
                }
            }
        }
    }
}

impl Way {
    fn is_of_use(&self) -> bool {
        match self {
            Self::Known(known) => known.is_fresh(),
            Self::Asking(_, since) => since.elapsed() < ASK_DEADLINE,
        }
    }
}

impl Known {
    fn new(reply: OpenStreamReply) -> Result<Arc<Self>, &'static str> {
        let valid = Duration::from_secs(reply.valid_seconds.into());
        let (how, valid) = match reply.mode() {
            StreamMode::Tls => (How::Tls, TLS_VALID),
            StreamMode::Authenticated => {
                let key = StreamKey::new(&reply.key_id, &reply.key);
                (How::Key(key.ok_or("its key is not one")?), valid)
            }
            // Whoever has a certificate wants to know whose the bytes are.
            StreamMode::Plain => return Err("its stream is open to everybody"),
            StreamMode::Unspecified => return Err("its stream is of a newer version"),
        };
        Ok(Arc::new(Self {
            how,
            valid,
            used: Mutex::new(Instant::now()),
        }))
    }

    /// Whether the worker should know it still.
    fn is_fresh(&self) -> bool {
        self.used.lock().elapsed() < self.valid
    }
}

async fn connect(address: &str) -> io::Result<TcpStream> {
    let tcp = in_time(TcpStream::connect(address)).await?;
    tcp.set_nodelay(true)?;
    keep_alive(&tcp)?;
    Ok(tcp)
}

async fn in_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let connected = timeout(CONNECT_DEADLINE, connecting).await;
    connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Asks a worker how its connections are opened.
async fn ask(dial: Dial, worker: WorkerInfo) -> Result<Arc<Known>, Arc<str>> {
    let failed = |why: &dyn std::fmt::Display| -> Arc<str> {
        format!(
            "worker {} at {} does not say how to open its stream: {why}",
            worker.id, worker.control_address
        )
        .into()
    };
    let dial = dial.expecting(worker.id.as_str());
    let channel = dial.channel(&worker.control_address, Role::Worker, CONNECT_DEADLINE);
    let channel = channel.map_err(|error| failed(&error))?;
    let mut client = WorkerClient::new(channel);
    let asked = timeout(ASK_DEADLINE, client.open_stream(OpenStreamRequest {})).await;
    let reply = asked.map_err(|_| failed(&"it does not answer"))?;
    let reply = reply.map_err(|status| match status.code() {
        Code::Unimplemented => failed(&"it is of an older version"),
        _ => failed(&status.message()),
    })?;
    Known::new(reply.into_inner()).map_err(|why| failed(&why))
}
