//! The supervisor's loop: one thread that waits for the kernel, the server, commands and signals at once.
//!
//! Invariant: the connection to the kernel is never closed while the mount is in use, and a server is always running
//! or about to be started.
#![forbid(unsafe_code)]

mod beginning;
mod commands;
mod ending;
mod servers;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weir_process::fdpass;
use weir_process::signals::Signals;

use super::holder::Holder;
use super::peer;
use super::request::StartRequest;
use super::running::Running;
use super::server::{Pulse, Server};
use crate::kept::Kept;
use crate::mounting::{self, MountError};
use crate::runtime::{self, MountInfo};
use crate::state::MountState;

/// Longest time that a server gets to finish when the mount has ended or is taken over.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// Who is told that the mount became usable, or why it did not.
pub(super) enum Audience {
    /// The process on the other side of this socket; when it goes away before the mount is usable, the mount ends.
    Requester(OwnedFd),
    /// This process's own caller.
    Foreground(Box<dyn FnOnce()>),
    /// Nobody: the mount was usable before.
    Nobody,
}

pub(super) struct Daemon {
    state: MountState,
    kept: Kept,
    control: Option<OwnedFd>,
    signals: Signals,
    server: Option<Server>,
    /// By what the holders see that this process runs, where there is another pod.
    running: Option<Running>,
    /// Brings this process and the server back should both die.
    holder: Option<Holder>,
    /// When the next holder is started, while there is none.
    hold_at: Option<Instant>,
    /// Where the other pod is asked for a holder, if there is another one.
    peer_socket: Option<PathBuf>,
    /// Brings the mount back should all processes of this pod die.
    peer: Option<Holder>,
    /// When the other pod is asked for the next one, while there is none.
    peer_at: Option<Instant>,
    /// When the next server is started, while there is none.
    start_at: Option<Instant>,
    /// Servers in a row that ended without becoming ready.
    failures: u32,
    /// Commands that have not asked yet, and since when they are connected.
    clients: Vec<(OwnedFd, Instant)>,
    /// The mount has been taken out of the tree; who waits for its end.
    ending: Option<Ending>,
    /// The request to go back to if no server starts with the new one.
    before: Option<StartRequest>,
    /// When the server that was asked to stop is killed.
    stop_by: Option<Instant>,
    /// Why the mount never became usable, and since when it is given up.
    failed: Option<(MountError, Instant)>,
}

/// The mount has been taken out of the tree.
#[derive(Default)]
struct Ending {
    /// Who waits for its end.
    waiting: Vec<OwnedFd>,
    kill_at: Option<Instant>,
}

impl Daemon {
    fn new(state: MountState, kept: Kept, control: Option<OwnedFd>, signals: Signals) -> Self {
        Self {
            state,
            kept,
            control,
            signals,
            server: None,
            running: None,
            holder: None,
            hold_at: None,
            peer_socket: peer::address(),
            peer: None,
            peer_at: None,
            start_at: None,
            failures: 0,
            clients: Vec::new(),
            ending: None,
            before: None,
            stop_by: None,
            failed: None,
        }
    }

    /// Keeps the mount alive until it ends. Fails when it never became usable.
    pub(in crate::supervisor) fn run(mut self, mut audience: Audience) -> Result<(), MountError> {
        if self.server.is_none() {
            self.start_at = Some(Instant::now());
        }
        self.be_seen();
        self.save();
        if matches!(audience, Audience::Nobody) && !self.state.was_ready {
            self.give_up_for("its supervisor died before it was usable");
        }
        loop {
            if (self.failed.is_some() || mounting::is_gone(&self.kept.fuse)) && self.has_ended() {
                break;
            }
            self.start_server_when_due();
            self.start_holder_when_due();
            self.ask_peer_when_due();
            self.wait(&audience);
            self.hear_peer();
            if self.peer.as_ref().is_some_and(Holder::serves) {
                self.give_way();
                return Ok(());
            }
            self.hear_server(&mut audience);
            self.reap_server(&mut audience);
            self.hear_holder();
            self.hear_signals();
            self.hear_clients(&mut audience);
            let pulse = self.pulse();
            if let Some(server) = &mut self.server {
                server.check(pulse);
            }
            self.beat();
            self.enforce_deadlines();
        }
        self.finish(audience)
    }

    /// How the server is watched.
    fn pulse(&self) -> Pulse {
        match self.peer_socket {
            Some(_) => Pulse::IN_POD,
            None => Pulse::USUAL,
        }
    }

    /// Waits until something happens or is due.
    fn wait(&self, audience: &Audience) {
        let mut until = Instant::now() + self.pulse().interval;
        for due in [self.start_at, self.stop_by, self.hold_at, self.peer_at] {
            until = due.map_or(until, |due| due.min(until));
        }
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.server.is_none() || !mounting::is_gone(&self.kept.fuse) {
            // Asks for nothing: the end of the connection is always told.
            fds.push(PollFd::new(&self.kept.fuse, PollFlags::empty()));
        }
        fds.extend(
            self.control
                .iter()
                .map(|listener| PollFd::new(listener, PollFlags::IN)),
        );
        fds.extend(
            self.clients
                .iter()
                .map(|(client, _)| PollFd::new(client, PollFlags::IN)),
        );
        if let Some(server) = &self.server {
            fds.push(PollFd::new(&server.process, PollFlags::IN));
            if server.listens() {
                fds.push(PollFd::new(&server.line, PollFlags::IN));
            }
        }
        for holder in [&self.holder, &self.peer].into_iter().flatten() {
            fds.push(PollFd::new(holder.line(), PollFlags::IN));
        }
        if let (Audience::Requester(socket), None) = (audience, &self.failed) {
            fds.push(PollFd::new(socket, PollFlags::IN));
        }
        // An interrupted wait is a short wait.
        let _ = poll(&mut fds, Some(&timeout));
    }

    fn enforce_deadlines(&mut self) {
        let now = Instant::now();
        let overdue = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let kill_at = self.ending.as_ref().and_then(|ending| ending.kill_at);
        if overdue(self.stop_by) || overdue(kill_at) {
            if let Some(server) = &self.server {
                tracing::warn!(pid = server.pid, "the server does not end; it is killed");
                server.kill();
            }
            // Reaping it clears the deadline.
            if let Some(stop_by) = &mut self.stop_by {
                *stop_by = now + STOP_DEADLINE;
            }
        }
    }

    /// Shows the mount to others, and keeps the holder up to date. They can do without; the mount itself goes on.
    fn save(&self) {
        let (server, line) = (self.server.as_ref(), self.peer.as_ref().map(Holder::line));
        if let Some(holder) = &self.holder {
            holder.tell(&self.state, server, line);
        }
        if let Some(peer) = &self.peer {
            peer.tell(&self.state, server, None);
        }
        let info = MountInfo {
            mountpoint: self.state.request.mountpoint.clone(),
            source: self.state.request.source.clone(),
            properties: self.state.properties.clone(),
            supervisor_pid: std::process::id(),
            server_pid: self.state.server_pid,
            holder_pid: self.holder.as_ref().and_then(Holder::pid),
            detached: self.state.detached,
            has_peer: self.peer_socket.is_some(),
            held_elsewhere: self.peer.as_ref().and_then(Holder::pid).is_some(),
            is_served: self.server.as_ref().is_some_and(|server| server.ready),
            dir: self.state.dir.clone(),
        };
        if let Err(error) = runtime::write_state(&self.state.dir, &info) {
            tracing::warn!("the state of the mount could not be written: {error}");
        }
    }
}

fn answer<T: serde::Serialize>(client: &OwnedFd, message: &T) {
    if let Err(error) = fdpass::send(client.as_fd(), message, &[]) {
        tracing::debug!("a command did not wait for its answer: {error}");
    }
}
