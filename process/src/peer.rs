//! Who is at the other end of a Unix socket.
//!
//! rustix tells this, too, with the process, which it takes for one that has a number. The kernel says 0 of a process that is not
//! seen from here: one of another container, in a namespace of its own.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use rustix::process::Uid;

/// The user of the process that listens at the other end, or has connected.
///
/// # Errors
/// When it is no Unix socket, or has no other end.
pub fn user(socket: impl AsFd) -> io::Result<Uid> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call, which writes at most `length` bytes into `peer`; any bytes are valid there.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if peer.uid == u32::MAX {
        return Err(io::ErrorKind::NotConnected.into());
    }
    Ok(Uid::from_raw(peer.uid))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_user_at_the_other_end_is_told_and_none_where_there_is_nobody() {
        let (here, _there) = UnixStream::pair().unwrap();
        assert_eq!(user(&here).unwrap(), rustix::process::geteuid());
        assert!(user(tempfile::tempfile().unwrap()).is_err());
    }
}
