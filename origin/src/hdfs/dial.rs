//! Connections to NameNodes and DataNodes, which go only where this process may connect.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use hdfs_native::{Dial, Peer};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::sources::{Forbidden, Reach, hdfs_uri};
use crate::spec::hdfs::split_address;
use crate::transport::names::Names;

/// Longest wait for a connection to one address.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// A refusal explains a failure that comes so soon after it.
const JUST_NOW: Duration = Duration::from_secs(10);

/// Makes the connections of one origin.
#[derive(Clone, Debug)]
pub(super) struct Dialer(Arc<State>);

struct State {
    reach: Reach,
    names: Names,
    /// Whether the operator names every NameNode that was connected to: where its DataNodes are is meant, too.
    vouched: AtomicBool,
    /// Why the last DataNode was not connected to, and when, if that was not allowed.
    refused: Mutex<Option<(Instant, Forbidden)>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer")
            .field("reach", &self.reach)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    pub(super) fn new(reach: Reach) -> Self {
        Self(Arc::new(State {
            reach,
            names: Names::of_system(),
            vouched: AtomicBool::new(true),
            refused: Mutex::default(),
        }))
    }

    /// Why a DataNode was not connected to just now.
    pub(super) fn take_refused(&self) -> Option<Forbidden> {
        let (at, refused) = self.0.refused.lock().take()?;
        (at.elapsed() < JUST_NOW).then_some(refused)
    }

    async fn connect(self, peer: Peer, address: String) -> io::Result<TcpStream> {
        let invalid = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{address:?} is no address"),
            )
        };
        let (host, port) = split_address(&address).ok_or_else(invalid)?;
        let uri = hdfs_uri(&address).ok_or_else(invalid)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let found = if let Ok(ip) = bare.parse::<IpAddr>() {
            vec![SocketAddr::new(ip, port)]
        } else {
            let found = self.0.names.resolve(bare.to_owned()).await?;
            let with_port = |found: SocketAddr| SocketAddr::new(found.ip(), port);
            found.into_iter().map(with_port).collect()
        };
        let admitted = match peer {
            Peer::NameNode => {
                let reach = &self.0.reach;
                reach.admit(&uri, found).inspect(|admitted| {
                    let vouched = reach.vouches_for(&uri, admitted);
                    self.0.vouched.fetch_and(vouched, Ordering::Relaxed);
                })
            }
            Peer::DataNode if self.0.vouched.load(Ordering::Relaxed) => Ok(found),
            Peer::DataNode => {
                self.0
                    .reach
                    .admit_named_by_other(&uri, found)
                    .inspect_err(|refused| {
                        *self.0.refused.lock() = Some((Instant::now(), refused.clone()));
                    })
            }
        };
        let admitted =
            admitted.map_err(|refused| io::Error::new(io::ErrorKind::PermissionDenied, refused))?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in admitted {
            match timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => {
                    let text = format!("no connection to {address} within {CONNECT_DEADLINE:?}");
                    last = io::Error::new(io::ErrorKind::TimedOut, text);
                }
            }
        }
        Err(last)
    }
}

impl Dial for Dialer {
    fn dial(&self, peer: Peer, address: String) -> BoxFuture<'static, io::Result<TcpStream>> {
        self.clone().connect(peer, address).boxed()
    }
}
