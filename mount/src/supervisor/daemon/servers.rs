//! Starting servers, hearing them, and what follows from their end.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use weir_process::fdpass;

use super::{Audience, Daemon, STOP_DEADLINE, answer};
use crate::mounting::{self, MountError, table};
use crate::state::{FromServer, Outcome, ServerFailure};
use crate::supervisor::holder::Holder;
use crate::supervisor::peer;
use crate::supervisor::running::Running;
use crate::supervisor::server::Server;

/// How far the kernel reads ahead, in bytes; it splits this into requests of 1 MiB, so that several are under way.
const READ_AHEAD: u64 = 8 << 20;
/// Wait before a server that failed to start is started again: doubled each time up to the longest.
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Wait before a holder that died is followed by another one.
const HOLDER_PAUSE: Duration = Duration::from_millis(500);
/// Wait before the other pod is asked again to hold the mount.
const PEER_PAUSE: Duration = Duration::from_millis(200);

impl Daemon {
    pub(super) fn start_server_when_due(&mut self) {
        if self.server.is_some()
            || self.failed.is_some()
            || self.start_at.is_none_or(|at| at > Instant::now())
        {
            return;
        }
        self.start_at = None;
        let holder = self.holder.as_ref().map(Holder::line);
        let peer = self.peer.as_ref().map(Holder::line);
        match Server::start(&self.state, &self.kept, holder, peer) {
            Ok(server) => {
                self.state.server_pid = Some(server.pid);
                self.server = Some(server);
                self.save();
            }
            Err(error) => {
                tracing::error!("the server could not be started: {error}");
                self.start_later();
            }
        }
    }

    pub(super) fn start_later(&mut self) {
        let pause = if self.failures == 0 {
            Duration::ZERO
        } else {
            LONGEST_PAUSE.min(SHORTEST_PAUSE * 2_u32.saturating_pow(self.failures - 1))
        };
        self.failures += 1;
        self.start_at = Some(Instant::now() + pause);
    }

    pub(super) fn hear_server(&mut self, audience: &mut Audience) {
        let mut changed = false;
        while let Some(message) = self.server.as_mut().and_then(Server::receive) {
            match message {
                FromServer::Answering(reply) => self.state.init.reply = Some(reply),
                FromServer::Answered => self.state.init.answered = true,
                FromServer::Ready => self.became_ready(audience),
                FromServer::Publish { key, value } => {
                    self.state.properties.insert(key, value);
                    changed = true;
                }
                FromServer::Pong(_) | FromServer::Failed(_) => {
                    unreachable!("kept by the server's record")
                }
            }
        }
        if changed {
            self.save();
        }
    }

    pub(super) fn became_ready(&mut self, audience: &mut Audience) {
        if let Some(server) = &mut self.server {
            server.ready = true;
        }
        self.failures = 0;
        self.before = None;
        if !std::mem::replace(&mut self.state.was_ready, true)
            && let Err(error) = table::set_read_ahead(&self.state.device, READ_AHEAD)
        {
            tracing::info!("the kernel reads ahead as far as it does by default: {error}");
        }
        // Before anybody is told that the mount is usable.
        if self.holder.is_none() {
            self.hold_at = Some(Instant::now());
            self.start_holder_when_due();
        }
        if self.peer.is_none() {
            self.peer_at = Some(Instant::now());
            self.ask_peer_when_due();
        }
        // Whoever is told that the mount is usable may ask about it at once.
        self.save();
        match std::mem::replace(audience, Audience::Nobody) {
            Audience::Requester(socket) => {
                answer(
                    &socket,
                    &Outcome::Ready {
                        supervisor_pid: std::process::id(),
                    },
                );
            }
            Audience::Foreground(ready) => ready(),
            Audience::Nobody => {}
        }
    }

    /// Decides what follows when the server has ended.
    pub(super) fn reap_server(&mut self, audience: &mut Audience) {
        let ended =
            |server: &Server| fdpass::readable(&server.process, Duration::ZERO).unwrap_or(false);
        if !self.server.as_ref().is_some_and(ended) {
            return;
        }
        // What it said last must be read before it is forgotten.
        self.hear_server(audience);
        let Some(server) = self.server.take() else {
            return;
        };
        let how = server.reap();
        self.state.server_pid = None;
        let stopped = self.stop_by.take().is_some();
        if mounting::is_gone(&self.kept.fuse)
            || self
                .ending
                .as_ref()
                .is_some_and(|ending| ending.kill_at.is_some())
        {
            return;
        }
        if !self.state.was_ready {
            let how = format!("the server {how} before the mount was usable");
            self.give_up(failed(server.failure, how));
            return;
        }
        if !stopped {
            let why = server
                .failure
                .as_ref()
                .map_or("no reason given", |failure| &failure.reason);
            tracing::warn!(
                pid = server.pid,
                "the server {how} ({why}); starting another one"
            );
        }
        if server.ready || stopped {
            self.failures = 0;
        } else if let Some(before) = self.before.take() {
            tracing::error!(
                "no server starts with the new arguments; going back to those of before"
            );
            self.state.request = before;
            if let Audience::Requester(socket) = std::mem::replace(audience, Audience::Nobody) {
                let error = failed(server.failure, how);
                answer(&socket, &Outcome::Failed(error));
            }
        }
        self.start_later();
        self.save();
    }

    pub(super) fn start_holder_when_due(&mut self) {
        if self.holder.is_some() || self.hold_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.hold_at = None;
        let server = self.server.as_ref();
        let tell = |line: &OwnedFd| {
            if let Some(server) = server {
                server.tell_holder(line);
            }
        };
        match Holder::start(&self.state, server, &self.kept, tell) {
            Ok(mut holder) => {
                if let Some(running) = &self.running {
                    holder.show(running, false);
                }
                self.holder = Some(holder);
            }
            Err(error) => {
                tracing::warn!("the mount's third holder could not be started: {error}");
                self.hold_at = Some(Instant::now() + LONGEST_PAUSE);
            }
        }
    }

    /// Asks the other pod, if there is one, to hold the mount.
    pub(super) fn ask_peer_when_due(&mut self) {
        let is_due = self.peer_at.is_some_and(|at| at <= Instant::now());
        if !is_due || self.peer.is_some() || self.failed.is_some() {
            return;
        }
        self.peer_at = None;
        let Some(socket) = self.peer_socket.as_ref().filter(|_| self.ending.is_none()) else {
            return;
        };
        let asked = peer::connect(socket).and_then(|line| {
            // First those who must outlive it: were it the only end, the other pod would see this one's death.
            let server = self.server.as_ref();
            if let Some(holder) = &self.holder {
                holder.tell(&self.state, server, Some(&line));
            }
            if let Some(server) = server {
                server.tell_peer(&line);
            }
            Holder::elsewhere(line, &self.state, server, &self.kept)
        });
        match asked {
            Ok(mut peer) => {
                if let Some(running) = &self.running {
                    peer.show(running, true);
                }
                self.peer = Some(peer);
            }
            Err(error) => {
                tracing::debug!("the other pod does not hold the mount yet: {error}");
                self.peer_at = Some(Instant::now() + PEER_PAUSE);
            }
        }
    }

    pub(super) fn hear_peer(&mut self) {
        let Some(peer) = &mut self.peer else {
            return;
        };
        let before = peer.pid();
        let lives = peer.listen();
        if peer.serves() {
            return; // it has nothing more to say
        }
        if !lives {
            tracing::warn!("the other pod does not hold the mount any more; it is asked again");
            self.peer = None;
            self.peer_at = Some(Instant::now() + PEER_PAUSE);
            self.save();
        } else if peer.pid() != before {
            self.save();
        }
    }

    pub(super) fn hear_holder(&mut self) {
        let Some(holder) = &mut self.holder else {
            return;
        };
        let before = holder.pid();
        if !holder.listen() {
            tracing::warn!("the mount's third holder died; starting another one");
            self.holder = None;
            self.hold_at = Some(Instant::now() + HOLDER_PAUSE);
        } else if holder.pid() != before {
            self.save();
        }
    }

    /// In pods: lets the holders see that this process runs.
    pub(super) fn be_seen(&mut self) {
        if self.peer_socket.is_none() {
            return;
        }
        self.running = Running::start()
            .inspect_err(|error| {
                tracing::warn!("no holder sees whether this process runs: {error}");
            })
            .ok();
        let Some(running) = &self.running else {
            return;
        };
        for (holder, elsewhere) in [(&mut self.holder, false), (&mut self.peer, true)] {
            if let Some(holder) = holder {
                holder.show(running, elsewhere);
            }
        }
    }

    /// Tells the holders that this process lives, and replaces those that do not answer.
    pub(super) fn beat(&mut self) {
        if let Some(holder) = self.holder.take_if(|holder| !holder.beat()) {
            self.replace_holder(holder);
        }
        if let Some(peer) = self.peer.take_if(|peer| !peer.beat()) {
            tracing::warn!("the other pod does not answer (stopped?); it is asked again");
            // It reads that when it goes on.
            peer.dismiss();
            self.peer_at = Some(Instant::now());
            self.save();
        }
    }

    fn replace_holder(&mut self, mut holder: Holder) {
        tracing::warn!("the mount's third holder does not answer (stopped?); it is replaced");
        holder.dismiss();
        holder.kill();
        self.hold_at = Some(Instant::now());
        self.save();
    }

    pub(super) fn stop_server(&mut self) {
        if let Some(server) = &self.server {
            server.stop();
            self.stop_by = Some(Instant::now() + STOP_DEADLINE);
        }
    }
}

/// What a server said when it ended, or else how it did.
fn failed(said: Option<ServerFailure>, how: String) -> MountError {
    let ServerFailure { reason, code } = said.unwrap_or(ServerFailure {
        reason: how,
        code: 1,
    });
    MountError::Server { reason, code }
}
