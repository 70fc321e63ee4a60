//! Holders in another pod, so that all processes of a pod may die together.
//!
//! A container that is killed takes all its processes with it: supervisor, server and holder. So each mount has one more
//! holder, which is started by a process of another pod: it listens at a socket that both see, and starts `weir hold` for
//! each supervisor that connects. From there on it is a holder as the other one is. Its line has ends in all processes of
//! the first pod, and so is closed when the last one of them has died; then it starts a supervisor in its own pod, which
//! connects to the first pod's socket as soon as somebody listens there again. Each of the two pods may serve a mount.
//!
//! Invariant: at any time one pod serves a mount, and the other one holds it or is about to.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with};
use weir_process::spawn;

/// Names the socket of the other pod, for all processes of a mount.
pub const PEER_VARIABLE: &str = "WEIR_PEER";
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Between two attempts to accept a connection while descriptors or memory are short.
const SHORT_PAUSE: Duration = Duration::from_millis(100);

/// Where the holder of the other pod is asked for, if there is another pod.
pub(super) fn address() -> Option<PathBuf> {
    let path = std::env::var_os(PEER_VARIABLE).map(PathBuf::from);
    path.filter(|path| path.is_absolute())
}

/// A line to the other pod, where a holder is started for whoever is at the other end. Waits for nobody.
pub(super) fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let line = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&line, &SocketAddrUnix::new(path)?)?;
    Ok(line)
}

/// The socket at which mounts of another pod ask for holders.
#[derive(Debug)]
pub struct PeerSocket {
    listener: OwnedFd,
    /// The other pod's socket, for the mounts that come to be served here.
    other: PathBuf,
}

impl PeerSocket {
    /// Listens at `path`, in place of whoever did before: during an update there are two for a while, and the newer one is to
    /// be found. Nobody else's file is removed, only replaced. This user and root can connect. `other` is the other pod's socket.
    ///
    /// # Errors
    /// When the path is longer than 103 bytes, or what the system says.
    pub fn bind(path: &Path, other: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let listener = rustix::net::socket_with(unix, packets, flags, None)?;
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        rustix::net::bind(&listener, &SocketAddrUnix::new(&new)?)?;
        // Who may write to it may connect, and nobody connects before it listens.
        std::fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        rustix::net::listen(&listener, BACKLOG)?;
        std::fs::rename(&new, path)?;
        Ok(Self {
            listener,
            other: other.to_owned(),
        })
    }

    /// Starts a holder for each mount that asks for one. Returns only when the socket is broken: a lack of descriptors or memory
    /// passes, and this process has mounts to hold.
    pub fn serve(&self) -> io::Error {
        let mut was_short = false;
        loop {
            let line = match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(line) => line,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    if !std::mem::replace(&mut was_short, true) {
                        tracing::error!("mounts of the other pod have to wait: {error}");
                    }
                    std::thread::sleep(SHORT_PAUSE);
                    continue;
                }
                Err(error) => return error.into(),
            };
            was_short = false;
            if let Err(error) = self.hold(&line) {
                tracing::error!(
                    "a holder for a mount of the other pod could not be started: {error}"
                );
            }
        }
    }

    fn hold(&self, line: &OwnedFd) -> io::Result<()> {
        let mut command = spawn::own("hold");
        command.env(PEER_VARIABLE, &self.other);
        spawn::spawn_detached(&mut command, line.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_socket_is_found_and_none_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a.sock"), dir.path().join("b.sock"));
        let first = PeerSocket::bind(&path, &other).unwrap();
        let second = PeerSocket::bind(&path, &other).unwrap();
        let client = || {
            let (unix, packets) = (AddressFamily::UNIX, SocketType::SEQPACKET);
            let line = rustix::net::socket_with(unix, packets, SocketFlags::CLOEXEC, None);
            let line = line.unwrap();
            let address = SocketAddrUnix::new(&path).unwrap();
            rustix::net::connect(&line, &address).map(|()| line)
        };
        let _line = client().unwrap();
        let waits = |socket: &PeerSocket| {
            weir_process::fdpass::readable(&socket.listener, std::time::Duration::ZERO).unwrap()
        };
        assert!(waits(&second) && !waits(&first));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(second);
        assert!(path.exists(), "a newer one may be there");
        assert!(client().is_err());
        assert!(PeerSocket::bind(&dir.path().join("x".repeat(120)), &other).is_err());
    }
}
