//! A server's line to its supervisor: it answers pings, carries news, and brings the supervisor back when it dies.
//!
//! Invariant: while this process lives, its mount has a supervisor or is about to get one. The end of the socket is
//! how its death is seen, so it takes no time to notice.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::{fmt, io};

use parking_lot::Mutex;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use weir_process::fdpass::{self, Slot};

use super::LetGo;
use super::term::{Ended, Term};
use crate::adoption::adopting_supervisor;
use crate::kept::Kept;
use crate::state::{FromServer, MountState, ToServer};
use crate::succession::{Successor, stand_by};

pub(super) struct Link {
    kept: Kept,
    /// The line to the mount's third holder, for the next supervisor.
    holder: Mutex<Option<OwnedFd>>,
    /// The line to the mount's holder in another pod, which must not end before this process does.
    peer: Mutex<Option<OwnedFd>>,
    line: Mutex<Line>,
    term: Term,
    let_go: Mutex<Option<Arc<LetGo>>>,
}

/// The socket and the state change together: a supervisor that adopts this server starts with all that was said to
/// the one before.
struct Line {
    socket: Arc<OwnedFd>,
    state: MountState,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn start(
        socket: OwnedFd,
        kept: Kept,
        holder: Option<OwnedFd>,
        peer: Option<OwnedFd>,
        state: MountState,
    ) -> io::Result<Arc<Self>> {
        let link = Arc::new(Self {
            kept,
            holder: Mutex::new(holder),
            peer: Mutex::new(peer),
            line: Mutex::new(Line {
                socket: Arc::new(socket),
                state,
            }),
            term: Term::default(),
            let_go: Mutex::default(),
        });
        let thread = link.clone();
        std::thread::Builder::new()
            .name("supervisor-link".to_owned())
            .spawn(move || {
                if let Err(error) = stand_by(&mut &*thread) {
                    tracing::error!("the mount is without a supervisor: {error}");
                }
            })?;
        Ok(link)
    }

    /// The kernel's end of the mount.
    pub(super) fn fuse(&self) -> BorrowedFd<'_> {
        self.kept.fuse.as_fd()
    }

    /// Which requests are under way, where the kernel sends none again.
    pub(super) fn in_flight(&self) -> Option<BorrowedFd<'_>> {
        self.kept.in_flight.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn send(&self, message: &FromServer) {
        self.line.lock().send(message);
    }

    pub(super) fn answering(&self, reply: &[u8]) {
        let mut line = self.line.lock();
        line.state.init.reply = Some(reply.to_owned());
        line.send(&FromServer::Answering(reply.to_owned()));
    }

    pub(super) fn answered(&self) {
        let mut line = self.line.lock();
        line.state.init.answered = true;
        line.send(&FromServer::Answered);
    }

    pub(super) fn ready(&self) {
        let mut line = self.line.lock();
        line.state.was_ready = true;
        line.send(&FromServer::Ready);
    }

    pub(super) fn publish(&self, key: &str, value: &str) {
        let mut line = self.line.lock();
        line.state
            .properties
            .insert(key.to_owned(), value.to_owned());
        line.send(&FromServer::Publish {
            key: key.to_owned(),
            value: value.to_owned(),
        });
    }

    pub(super) fn set_let_go(&self, let_go: LetGo) {
        *self.let_go.lock() = Some(Arc::new(let_go));
    }

    /// Whether this server goes on.
    pub(super) fn term(&self) -> &Term {
        &self.term
    }

    /// Answers the supervisor until it is gone.
    fn listen(&self) {
        let socket = self.line.lock().socket.clone();
        loop {
            // The session itself ends only with its last thread, and that may be waiting for an origin.
            if crate::mounting::is_gone(&self.kept.fuse) {
                self.term.end(Ended::Unmounted);
            }
            match fdpass::receive::<ToServer>(socket.as_fd()) {
                Ok(Some((ToServer::Ping(number), _))) => {
                    self.send(&FromServer::Pong(number));
                }
                Ok(Some((ToServer::Holder, mut descriptors))) => {
                    *self.holder.lock() = descriptors.take(Slot::Holder);
                }
                Ok(Some((ToServer::Peer, mut descriptors))) => {
                    *self.peer.lock() = descriptors.take(Slot::Peer);
                }
                Ok(Some((ToServer::Stop, _))) => self.term.end(Ended::Replaced),
                Ok(Some((ToServer::LetGo, _))) => {
                    let let_go = self.let_go.lock().clone();
                    if let Some(let_go) = let_go {
                        let_go();
                    }
                }
                Ok(None) => return,
                // A newer supervisor may say what this version does not know.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!("the supervisor sent an unknown message: {error}");
                }
                Err(error) => {
                    tracing::error!("the line to the supervisor broke: {error}");
                    return;
                }
            }
        }
    }

    /// Starts a supervisor that takes this very process for its server.
    fn replace_supervisor(&self) -> io::Result<()> {
        let mut line = self.line.lock();
        let this = pidfd_open(getpid(), PidfdFlags::empty())?;
        let (holder, peer) = (self.holder.lock(), self.peer.lock());
        let mut descriptors = self.kept.descriptors();
        descriptors.push((Slot::Server, this.as_fd()));
        descriptors.extend(holder.iter().map(|line| (Slot::Holder, line.as_fd())));
        descriptors.extend(peer.iter().map(|line| (Slot::Peer, line.as_fd())));
        let ours = adopting_supervisor(&line.state, Slot::Link, &descriptors)?;
        line.socket = Arc::new(ours);
        Ok(())
    }
}

impl Successor for &Link {
    fn follow(&mut self) -> io::Result<bool> {
        self.listen();
        Ok(true)
    }

    /// The end of the mount ends the supervisor too.
    fn is_needed(&self) -> bool {
        let needed = !crate::mounting::is_gone(&self.kept.fuse);
        if needed {
            tracing::warn!("the supervisor died; starting another one");
        }
        needed
    }

    fn start_supervisor(&mut self) -> io::Result<()> {
        self.replace_supervisor()
    }
}

impl Line {
    /// Never waits: a supervisor that does not read must not hold up the server. One that is dead gets the state.
    fn send(&self, message: &FromServer) {
        match fdpass::send(self.socket.as_fd(), message, &[]) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => tracing::warn!("the supervisor could not be told: {error}"),
        }
    }
}
