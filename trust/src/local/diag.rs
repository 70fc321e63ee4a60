//! One connection of this machine, asked of the kernel by its two ends: sock_diag(7).
//!
//! The tables in `/proc` name all connections, and are searched to the end for one that is not there; this costs the same
//! however many there are.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// Of `linux/sock_diag.h`, `linux/netlink.h`, `linux/in.h` and `linux/tcp_states.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const ESTABLISHED: u8 = 1;
const ENOENT: i32 = -2;
/// Bytes of a netlink header, of a socket's id, and where the id, the user and the inode are in the answer behind the header.
const HEADER: usize = 16;
const ID: usize = 48;
const ID_AT: usize = 4;
const USER_AT: usize = ID_AT + ID + 12;
const INODE_AT: usize = USER_AT + 4;

/// It has answered: what it does not find is not there.
static WORKS: AtomicBool = AtomicBool::new(false);

/// The user of the open socket with these two ends, its own first; the inner `None` when there is none.
///
/// # Errors
/// When the kernel does not answer such questions; it may not have the module.
pub(super) fn user_of(own: SocketAddr, other: SocketAddr) -> io::Result<Option<u32>> {
    let (own, other) = (canonical(own), canonical(other));
    let id = id_of(own, other);
    let family = if own.is_ipv4() { AF_INET } else { AF_INET6 };
    let flags = SocketFlags::CLOEXEC;
    let netlink = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        flags,
        Some(SOCK_DIAG),
    )?;
    send(&netlink, &request(family, &id), SendFlags::empty())?;
    // The kernel has answered before it returns.
    let mut answer = [0; 1024];
    let (length, _) = recv(&netlink, &mut answer[..], RecvFlags::DONTWAIT)?;
    let found = parse(&answer[..length.min(answer.len())], &id)?;
    match found {
        Found::User(uid) => {
            WORKS.store(true, Relaxed);
            Ok(Some(uid))
        }
        Found::Closed => Ok(None),
        Found::Nothing if WORKS.load(Relaxed) => Ok(None),
        // Without the module there is the same answer.
        Found::Nothing => Err(io::ErrorKind::Unsupported.into()),
    }
}

enum Found {
    User(u32),
    /// There is one that no process has open.
    Closed,
    Nothing,
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `inet_diag_sockid`: ports and addresses in the network's order, any interface, no cookie.
fn id_of(own: SocketAddr, other: SocketAddr) -> [u8; ID] {
    let mut id = [0; ID];
    id[0..2].copy_from_slice(&own.port().to_be_bytes());
    id[2..4].copy_from_slice(&other.port().to_be_bytes());
    for (at, address) in [(4, own), (20, other)] {
        match address.ip() {
            IpAddr::V4(ip) => id[at..at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => id[at..at + 16].copy_from_slice(&ip.octets()),
        }
    }
    id[40..48].fill(0xff);
    id
}

fn request(family: u8, id: &[u8; ID]) -> Vec<u8> {
    let length = HEADER + 8 + ID;
    let mut request = Vec::with_capacity(length);
    request.extend_from_slice(&(length as u32).to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // sequence and port
    request.extend_from_slice(&[family, IPPROTO_TCP, 0, 0]);
    request.extend_from_slice(&u32::MAX.to_ne_bytes()); // in any state
    request.extend_from_slice(id);
    request
}

fn parse(answer: &[u8], asked: &[u8; ID]) -> io::Result<Found> {
    let unreadable = || io::Error::from(io::ErrorKind::InvalidData);
    let header = answer.get(..HEADER).ok_or_else(unreadable)?;
    let body = &answer[HEADER..];
    let word = |at: usize| {
        let bytes = body.get(at..at + 4).ok_or_else(unreadable)?;
        Ok::<u32, io::Error>(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    match u16::from_ne_bytes([header[4], header[5]]) {
        NLMSG_ERROR => match word(0)? as i32 {
            ENOENT => Ok(Found::Nothing),
            error => Err(io::Error::from_raw_os_error(-error)),
        },
        SOCK_DIAG_BY_FAMILY => {
            let (uid, inode) = (word(USER_AT)?, word(INODE_AT)?);
            // One that listens is found, too, where there is no connection. The addresses of a socket of the newer kind
            // with the older addresses are written another way; its ports tell it from that.
            let is_it = body.get(ID_AT..ID_AT + 4) == Some(&asked[..4]);
            if !is_it || body[1] != ESTABLISHED || inode == 0 {
                return Ok(Found::Closed);
            }
            Ok(Found::User(uid))
        }
        _ => Err(unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_user_of_an_open_connection_is_found_and_none_of_another() {
        let own = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue; // a machine without IPv6
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let (theirs, ours) = (server.peer_addr().unwrap(), server.local_addr().unwrap());
            let found = match user_of(theirs, ours) {
                Err(error) => {
                    // Nobody may read it.
                    let _ = writeln!(io::stderr(), "the kernel does not answer: {error}");
                    return;
                }
                Ok(found) => found,
            };
            assert_eq!(found, Some(own), "{address}");
            // A port at which nobody is connected to that one; the listener is not taken for it.
            let nobody = SocketAddr::new(theirs.ip(), 1);
            assert_eq!(user_of(nobody, ours).unwrap(), None);
            assert_eq!(user_of(ours, nobody).unwrap(), None);
            drop(client);
            assert_eq!(user_of(theirs, ours).unwrap(), None, "it was closed");
        }
    }

    #[test]
    fn answers_of_any_bytes_are_read_or_refused() {
        let id = [7; ID];
        assert!(parse(&[], &id).is_err());
        let mut answer = request(AF_INET, &id);
        for length in 0..answer.len() {
            let _ = parse(&answer[..length], &id);
        }
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        answer[HEADER..HEADER + 4].copy_from_slice(&ENOENT.to_ne_bytes());
        assert!(matches!(parse(&answer, &id), Ok(Found::Nothing)));
        answer[HEADER..HEADER + 4].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert!(parse(&answer, &id).is_err());
    }
}
