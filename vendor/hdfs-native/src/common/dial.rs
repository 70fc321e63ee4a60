// Added by Weir.
use std::fmt::Debug;
use std::io;

use futures::future::BoxFuture;
use tokio::net::TcpStream;

/// Whom a connection is made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An address that the URL or the configuration names.
    NameNode,
    /// An address that a NameNode named.
    DataNode,
}

/// Makes the connections of a client.
pub trait Dial: Debug + Send + Sync {
    /// Connects to `address`, which is a host or an IP address, and a port.
    fn dial(&self, peer: Peer, address: String) -> BoxFuture<'static, io::Result<TcpStream>>;
}
