//! Whose the other end of a connection inside this machine is: sock_diag(7), or proc_net_tcp(5) where the kernel does not
//! answer that.
//!
//! Only an end counts that a process still has open. The kernel writes user 0 for one that was closed, whoever had it: a
//! program could send its request, close, and be taken for root.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;

mod diag;

/// The user of the process at the other end of a connection over loopback; `None` when it is not to be found.
pub(crate) async fn user_of_peer(stream: &TcpStream) -> io::Result<Option<u32>> {
    let (theirs, ours) = (stream.peer_addr()?, stream.local_addr()?);
    if !theirs.ip().to_canonical().is_loopback() {
        return Ok(None);
    }
    if let Ok(found) = diag::user_of(theirs, ours) {
        return Ok(found);
    }
    let look = move || user_of(theirs, ours);
    tokio::task::spawn_blocking(look)
        .await
        .map_err(io::Error::other)
}

fn user_of(theirs: SocketAddr, ours: SocketAddr) -> Option<u32> {
    // A program may have connected with a socket of the newer kind to an address of the older.
    let families = [
        ("/proc/net/tcp", plain(theirs), plain(ours)),
        ("/proc/net/tcp6", Some(mapped(theirs)), Some(mapped(ours))),
    ];
    families.into_iter().find_map(|(table, theirs, ours)| {
        let (theirs, ours) = (hex(theirs?), hex(ours?));
        user_in(&std::fs::read_to_string(table).ok()?, &theirs, &ours)
    })
}

/// The state of a connection that neither end has closed, of `tcp_states.h`.
const ESTABLISHED: &str = "01";

/// The user of the open socket with these two ends, its own first.
fn user_in(table: &str, own: &str, other: &str) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid ...
        let mut fields = line.split_ascii_whitespace().skip(1);
        if fields.next()? != own || fields.next()? != other || fields.next()? != ESTABLISHED {
            return None;
        }
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?;
        (inode != "0").then_some(uid)
    })
}

fn plain(address: SocketAddr) -> Option<SocketAddr> {
    let ip = address.ip().to_canonical();
    ip.is_ipv4().then(|| SocketAddr::new(ip, address.port()))
}

fn mapped(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddr::new(ip.into(), address.port())
}

/// As the kernel writes it: words of four bytes in the machine's order, and the port.
fn hex(address: SocketAddr) -> String {
    let bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut text = String::new();
    for word in bytes.chunks_exact(4) {
        let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        // Writing into a String does not fail.
        let _ = write!(text, "{word:08X}");
    }
    let _ = write!(text, ":{:04X}", address.port());
    text
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_user_at_the_other_end_of_a_connection_is_found() {
        let own = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address).await else {
                continue; // a machine without IPv6
            };
            let client = TcpStream::connect(listener.local_addr().unwrap());
            let (client, server) = tokio::join!(client, listener.accept());
            let (_client, server) = (client.unwrap(), server.unwrap().0);
            assert_eq!(user_of_peer(&server).await.unwrap(), Some(own), "{address}");
        }
    }

    #[tokio::test]
    async fn who_has_closed_its_end_is_nobody_and_not_root() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (server, _) = listener.accept().await.unwrap();
        drop(client.unwrap());
        assert_eq!(user_of_peer(&server).await.unwrap(), None);
    }

    #[test]
    fn a_line_is_found_by_both_its_ends() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1D10 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1\n\
            1: 0100007F:8000 0100007F:1D10 01 00000000:00000000 00:00000000 00000000 65534        0 2 1\n\
            2: 0100007F:8001 0100007F:1D10 04 00000000:00000000 00:00000000 00000000     0        0 0 1\n\
            3: 0100007F:8002 0100007F:1D10 01 00000000:00000000 00:00000000 00000000     0        0 0 1\n";
        let (own, other) = ("127.0.0.1:32768", "127.0.0.1:7440");
        let (own, other) = (hex(own.parse().unwrap()), hex(other.parse().unwrap()));
        if cfg!(target_endian = "little") {
            assert_eq!(user_in(table, &own, &other), Some(65534));
        }
        assert_eq!(user_in(table, &other, &own), None);
        for closed in ["127.0.0.1:32769", "127.0.0.1:32770"] {
            let closed = hex(closed.parse().unwrap());
            assert_eq!(user_in(table, &closed, &other), None, "{closed}");
        }
    }
}
