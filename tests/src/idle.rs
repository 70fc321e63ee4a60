//! Connections that say nothing.

use std::net::TcpStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are left for everything else.
const SPARE: u64 = 1000;

/// Makes so many connections to a port of this machine, or as many as the limit of open files allows. That limit is raised
/// as far as it may be.
pub fn idle_connections(port: u16, count: usize) -> Vec<TcpStream> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let most = limit.maximum.unwrap_or(u64::MAX).saturating_sub(SPARE);
    let count = count.min(usize::try_from(most).unwrap_or(usize::MAX));
    let connect = || TcpStream::connect(("127.0.0.1", port));
    (0..count).map_while(|_| connect().ok()).collect()
}
