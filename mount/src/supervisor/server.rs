//! The supervisor's view of one server process: its line, its pulse and its end.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use weir_process::fdpass::{self, Slot};
use weir_process::spawn;

use crate::kept::Kept;
use crate::state::{FromServer, MountState, ServerFailure, ToServer};

/// How a server is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pulse {
    /// Between two questions whether it is well.
    pub(super) interval: Duration,
    /// One that has not said for this long that it is well is taken for hung.
    pub(super) hung_after: Duration,
}

impl Pulse {
    /// On a machine that people use, who suspend it and run more on it than it can.
    pub(super) const USUAL: Self = Self {
        interval: Duration::from_secs(1),
        hung_after: Duration::from_secs(5),
    };
    /// Where readers are promised that none waits for long. To replace a server that was only slow costs little.
    pub(super) const IN_POD: Self = Self {
        interval: Duration::from_millis(120),
        hung_after: Duration::from_millis(500),
    };
}

pub(super) struct Server {
    pub(super) process: OwnedFd,
    pub(super) line: OwnedFd,
    pub(super) pid: u32,
    pub(super) ready: bool,
    /// Its own words on why it cannot serve.
    pub(super) failure: Option<ServerFailure>,
    line_ended: bool,
    /// It has said that it serves or is well since this process knows it.
    has_answered: bool,
    last_pong: Instant,
    last_ping: Instant,
    pings: u64,
}

impl Server {
    /// Starts a server and passes it the mount.
    pub(super) fn start(
        state: &MountState,
        kept: &Kept,
        holder: Option<&OwnedFd>,
        peer: Option<&OwnedFd>,
    ) -> io::Result<Self> {
        let (ours, theirs) = fdpass::pair()?;
        let mut descriptors = kept.descriptors();
        descriptors.extend(holder.map(|line| (Slot::Holder, line.as_fd())));
        descriptors.extend(peer.map(|line| (Slot::Peer, line.as_fd())));
        fdpass::send(ours.as_fd(), state, &descriptors)?;
        let mut command = spawn::own("serve-mount");
        command.args(&state.request.server_args);
        let child = spawn::spawn(&mut command, theirs.as_fd())?;
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self::known(process, ours, child.id(), false))
    }

    /// A server that another supervisor started.
    pub(super) fn known(process: OwnedFd, line: OwnedFd, pid: u32, ready: bool) -> Self {
        let now = Instant::now();
        Self {
            process,
            line,
            pid,
            ready,
            failure: None,
            line_ended: false,
            has_answered: false,
            last_pong: now,
            last_ping: now,
            pings: 0,
        }
    }

    /// Whether its line is worth listening to.
    pub(super) fn listens(&self) -> bool {
        !self.line_ended
    }

    /// The next message that has come.
    pub(super) fn receive(&mut self) -> Option<FromServer> {
        loop {
            match fdpass::try_receive::<FromServer>(self.line.as_fd()) {
                Ok(Some((FromServer::Pong(_), _))) => self.is_well(),
                Ok(Some((FromServer::Failed(reason), _))) => self.failure = Some(reason),
                Ok(Some((message, _))) => {
                    if matches!(message, FromServer::Ready) {
                        self.is_well();
                    }
                    return Some(message);
                }
                Ok(None) => {
                    self.line_ended = true;
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // A newer server may say what this version does not know.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!("the server sent an unknown message: {error}");
                }
                Err(error) => {
                    tracing::warn!("the line to the server broke: {error}");
                    self.line_ended = true;
                    return None;
                }
            }
        }
    }

    fn is_well(&mut self) {
        self.last_pong = Instant::now();
        self.has_answered = true;
    }

    /// Asks whether it is well, if it is time to, and kills it when it has not been for too long.
    pub(super) fn check(&mut self, pulse: Pulse) {
        let now = Instant::now();
        if now.duration_since(self.last_ping) < pulse.interval {
            return;
        }
        // This process itself was stopped (a suspended machine, a debugger): the server gets its time anew.
        if now.duration_since(self.last_ping) > pulse.interval + pulse.hung_after / 2 {
            self.last_pong = now;
        }
        self.last_ping = now;
        // One that is just being started gets its time, however busy the machine is.
        let hung_after = if self.has_answered {
            pulse.hung_after
        } else {
            pulse.hung_after.max(Pulse::USUAL.hung_after)
        };
        if now.duration_since(self.last_pong) > hung_after {
            tracing::error!(
                pid = self.pid,
                "the server hangs; it is killed and replaced"
            );
            self.kill();
            self.last_pong = now;
            return;
        }
        self.ping();
    }

    /// Asks whether it is well; it looks whether its mount is still there, too.
    pub(super) fn ping(&mut self) {
        self.pings += 1;
        // A server that does not read counts as hung soon.
        let _ = fdpass::send(self.line.as_fd(), &ToServer::Ping(self.pings), &[]);
    }

    /// Asks it to finish and exit.
    pub(super) fn stop(&self) {
        if fdpass::send(self.line.as_fd(), &ToServer::Stop, &[]).is_err() {
            self.kill();
        }
    }

    /// Asks it to close what it holds open in the mount.
    pub(super) fn let_go(&self) {
        // One that cannot be reached is dead or hangs, and holds nothing for long.
        let _ = fdpass::send(self.line.as_fd(), &ToServer::LetGo, &[]);
    }

    /// Gives it the line to a new holder, which it passes on should this supervisor die.
    pub(super) fn tell_holder(&self, line: &OwnedFd) {
        let descriptors = [(Slot::Holder, line.as_fd())];
        // One that does not get it starts a supervisor without a holder, and that one a holder.
        let _ = fdpass::send(self.line.as_fd(), &ToServer::Holder, &descriptors);
    }

    /// Gives it the line to a holder in another pod, which must not end before this server does.
    pub(super) fn tell_peer(&self, line: &OwnedFd) {
        let descriptors = [(Slot::Peer, line.as_fd())];
        // One of an earlier version says that it does not know this; the other pod then sees that it lives.
        let _ = fdpass::send(self.line.as_fd(), &ToServer::Peer, &descriptors);
    }

    pub(super) fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// How the process ended, for a log; called when its descriptor says that it did. Reaps a child.
    pub(super) fn reap(&self) -> String {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.process.as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exited with code {code}"),
                (_, Some(signal)) => format!("was killed by signal {signal}"),
                _ => "ended".to_owned(),
            },
            // Not a child of this process, which was started after it.
            _ => "ended".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    const PULSE: Pulse = Pulse::USUAL;

    /// A process that answers nothing.
    fn silent() -> (Server, OwnedFd, Child) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let (ours, theirs) = fdpass::pair().unwrap();
        (
            Server::known(process, ours, child.id(), true),
            theirs,
            child,
        )
    }

    #[test]
    fn a_server_that_does_not_answer_is_killed() {
        let (mut server, line, mut child) = silent();
        server.last_ping -= PULSE.interval;
        server.last_pong -= PULSE.hung_after / 2;
        server.check(PULSE);
        let asked = fdpass::try_receive::<ToServer>(line.as_fd()).unwrap();
        assert!(matches!(asked, Some((ToServer::Ping(1), _))));
        assert!(child.try_wait().unwrap().is_none(), "it has time left");
        let until = Instant::now() + 4 * PULSE.hung_after;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it was not killed");
            (server.last_ping, server.last_pong) = (Instant::now(), Instant::now());
            server.last_ping -= PULSE.interval;
            server.last_pong -= 2 * PULSE.hung_after;
            server.check(PULSE);
        }
    }

    #[test]
    fn a_server_that_starts_gets_more_time_than_one_that_has_answered() {
        let (mut server, line, mut child) = silent();
        let look = |server: &mut Server| {
            (server.last_ping, server.last_pong) = (Instant::now(), Instant::now());
            server.last_ping -= Pulse::IN_POD.interval;
            server.last_pong -= 2 * Pulse::IN_POD.hung_after;
            server.check(Pulse::IN_POD);
            server.last_pong.elapsed() < Pulse::IN_POD.hung_after // it was killed
        };
        assert!(!look(&mut server));
        fdpass::send(line.as_fd(), &FromServer::Pong(1), &[]).unwrap();
        assert!(server.receive().is_none());
        assert!(look(&mut server));
        child.wait().unwrap();
    }

    #[test]
    fn a_supervisor_that_was_stopped_itself_gives_its_server_time() {
        let (mut server, _line, mut child) = silent();
        server.last_ping -= 10 * PULSE.hung_after;
        server.last_pong -= 10 * PULSE.hung_after;
        server.check(PULSE);
        assert!(child.try_wait().unwrap().is_none());
        assert!(server.last_pong.elapsed() < PULSE.hung_after);
        server.kill();
        child.wait().unwrap();
    }

    #[test]
    fn a_servers_last_words_are_heard_before_its_end() {
        let (mut server, line, mut child) = silent();
        let failure = ServerFailure {
            reason: "why".to_owned(),
            code: 4,
        };
        fdpass::send(line.as_fd(), &FromServer::Pong(1), &[]).unwrap();
        fdpass::send(line.as_fd(), &FromServer::Failed(failure.clone()), &[]).unwrap();
        drop(line);
        assert!(server.receive().is_none());
        assert_eq!(server.failure, Some(failure));
        assert!(!server.listens());
        server.kill();
        child.wait().unwrap();
    }
}
