//! The third holder of a mount: a process that does nothing, so that supervisor and server may die together.
//!
//! Supervisor and server each bring the other one back, which takes some milliseconds in which neither must die. The
//! holder has the mount's descriptors, too, and the newest state; when the last process that has the other end of its
//! line is gone, it starts a supervisor that takes the mount over. It has a session and a process group of its own, so
//! that a signal to a terminal or a group does not end all three. Only when all of them die does the mount: the kernel
//! then answers ENOTCONN.
//!
//! A supervisor that is stopped (SIGSTOP, a debugger) is worse than a dead one: it starts no server, and its line does not
//! end. So it says every few seconds that it lives, and one that is silent is killed. If nothing comes after it either, its
//! server is as silent and is killed, too. Killing one that was only slow costs nothing: any two of the three may die.
//! A supervisor in a terminal is let alone, since its user may have stopped it.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use weir_process::fdpass::{self, Descriptors, Slot};
use weir_process::{descriptor, spawn};

use super::server::Server;
use crate::adoption::adopting_supervisor;
use crate::mounting;
use crate::state::MountState;
use crate::succession::{Successor, stand_by};

/// Longest wait for the supervisor's first message.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest time that a process which has closed its files takes to end.
const DEATH_DEADLINE: Duration = Duration::from_secs(1);
/// How often the supervisor says that it lives.
const BEAT: Duration = Duration::from_secs(2);
/// One that has said nothing for so many of those is taken for stopped; and so is a holder that answers none.
const SILENT_BEATS: u32 = 4;

/// From the supervisor to the holder.
#[derive(Debug, Serialize, Deserialize)]
enum ToHolder {
    /// What a successor has to know, with the processes of the mount. The first message has the mount's descriptors, too.
    Hold(Box<MountState>),
    /// The supervisor lives.
    Beat,
    /// The mount has ended, or another holder takes the place of this one.
    Leave,
}

/// The holder's answer: which process it is.
#[derive(Debug, Serialize, Deserialize)]
struct Holding {
    pid: u32,
}

/// The supervisor's view of the holder.
pub(super) struct Holder {
    line: OwnedFd,
    pid: Option<u32>,
    /// When it was last told that this process lives, and since when it has not answered: one that does not read is not told
    /// again, so that its line never fills up.
    last_beat: Instant,
    silent_since: Option<Instant>,
    /// When that was last looked at.
    looked_at: Instant,
}

impl Holder {
    /// Starts a holder. Its line is given to the server before, by `tell`: were this process to die in between, the
    /// holder would see nobody at the other end.
    pub(super) fn start(
        state: &MountState,
        server: Option<&Server>,
        fuse: &OwnedFd,
        lock: &OwnedFd,
        tell: impl FnOnce(&OwnedFd),
    ) -> io::Result<Self> {
        let (ours, theirs) = fdpass::pair()?;
        let descriptors = [(Slot::Fuse, fuse.as_fd()), (Slot::Lock, lock.as_fd())];
        hold(&ours, state, server, &descriptors)?;
        tell(&ours);
        let mut command = spawn::own("hold");
        spawn::spawn_detached(&mut command, theirs.as_fd())?;
        Ok(Self::known(ours))
    }

    /// The holder at the other end of a line.
    pub(super) fn known(line: OwnedFd) -> Self {
        Self {
            line,
            pid: None,
            last_beat: Instant::now(),
            silent_since: None,
            looked_at: Instant::now(),
        }
    }

    /// As if it had not answered for long.
    #[cfg(test)]
    pub(super) fn be_silent(&mut self) {
        self.silent_since = Some(Instant::now() - SILENT_BEATS * BEAT);
    }

    pub(super) fn line(&self) -> &OwnedFd {
        &self.line
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Hears what it has said. `false` when it is gone.
    pub(super) fn listen(&mut self) -> bool {
        loop {
            match fdpass::try_receive::<Holding>(self.line.as_fd()) {
                Ok(Some((Holding { pid }, _))) => {
                    self.pid = Some(pid);
                    self.silent_since = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Tells it that this process lives, when it is time to. `false` when it has not answered for so long that it is taken for
    /// stopped: it would start nothing, and keeps readers waiting for a connection that nobody serves.
    pub(super) fn beat(&mut self) -> bool {
        let now = Instant::now();
        // This process itself was stopped: the holder gets its time anew.
        if now - std::mem::replace(&mut self.looked_at, now) > BEAT {
            self.silent_since = self.silent_since.map(|_| now);
        }
        if let Some(since) = self.silent_since {
            return now - since < SILENT_BEATS * BEAT;
        }
        if now - self.last_beat >= BEAT {
            (self.last_beat, self.silent_since) = (now, Some(now));
            // One that is gone is noticed by its line, and one that has too much to read is silent.
            let _ = fdpass::send(self.line.as_fd(), &ToHolder::Beat, &[]);
        }
        true
    }

    /// Kills it, if it is a process of this pod that has said its number.
    pub(super) fn kill(&mut self) {
        let pid = self.pid.and_then(|pid| Pid::from_raw(pid as i32));
        let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // While it has its end of the line, the number is no other process's.
        if let Some(process) = process.filter(|_| self.listen()) {
            let _ = pidfd_send_signal(process, Signal::KILL); // it may have ended since
        }
    }

    /// Tells it what has changed. `peer` is the line to the holder in another pod.
    pub(super) fn tell(&self, state: &MountState, server: Option<&Server>, peer: Option<&OwnedFd>) {
        let peer: Vec<_> = peer
            .map(|line| (Slot::Peer, line.as_fd()))
            .into_iter()
            .collect();
        // One that is gone is noticed by its line, and one that does not read is no use.
        let _ = hold(&self.line, state, server, &peer);
    }

    /// The holder that a process of another pod starts at the other end of a line, which gets the descriptors with this. All
    /// processes of this pod must have the line before.
    pub(super) fn elsewhere(
        line: OwnedFd,
        state: &MountState,
        server: Option<&Server>,
        fuse: &OwnedFd,
        lock: &OwnedFd,
    ) -> io::Result<Self> {
        let descriptors = [(Slot::Fuse, fuse.as_fd()), (Slot::Lock, lock.as_fd())];
        hold(&line, state, server, &descriptors)?;
        Ok(Self::known(line))
    }

    /// Ends it.
    pub(super) fn dismiss(&self) {
        // It may be gone.
        let _ = fdpass::send(self.line.as_fd(), &ToHolder::Leave, &[]);
    }
}

/// Sends the state of the mount, and its processes.
fn hold(
    line: &OwnedFd,
    state: &MountState,
    server: Option<&Server>,
    more: &[(Slot, BorrowedFd<'_>)],
) -> io::Result<()> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut descriptors = vec![(Slot::Supervisor, this.as_fd())];
    descriptors.extend(server.map(|server| (Slot::Server, server.process.as_fd())));
    descriptors.extend(more);
    let message = ToHolder::Hold(Box::new(state.clone()));
    fdpass::send(line.as_fd(), &message, &descriptors)
}

/// What a holder knows of its mount.
struct Held {
    state: MountState,
    /// The processes that serve it, as far as they are known.
    supervisor: Option<OwnedFd>,
    server: Option<OwnedFd>,
    /// The line to the holder in another pod, which must not end before this process does.
    peer: Option<OwnedFd>,
}

impl Held {
    fn new(state: MountState, descriptors: &mut Descriptors) -> Self {
        Self {
            state,
            supervisor: descriptors.take(Slot::Supervisor),
            server: descriptors.take(Slot::Server),
            peer: descriptors.take(Slot::Peer),
        }
    }

    /// Ends the supervisor, which is silent; or the server, if the supervisor has ended and nobody has come after it.
    fn end_the_silent(&self) {
        if !self.state.logs_to_file {
            return;
        }
        let lives = |process: &&OwnedFd| !fdpass::readable(process, Duration::ZERO).unwrap_or(true);
        let silent = match (&self.supervisor, &self.server) {
            (None, _) => None,
            (Some(supervisor), _) if lives(&supervisor) => Some((supervisor, "supervisor")),
            (Some(_), server) => server
                .as_ref()
                .filter(lives)
                .map(|server| (server, "server")),
        };
        if let Some((process, name)) = silent {
            let mountpoint = self.state.request.mountpoint.display();
            tracing::warn!(%mountpoint, "the {name} does not run any more (stopped?); it is killed and replaced");
            // It may have ended by itself.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Whether there is a server after all, which starts a supervisor by itself, and that one another holder: this one's
    /// line had not reached it.
    fn server_lives(&self) -> bool {
        let ended = |process: &OwnedFd| fdpass::readable(process, DEATH_DEADLINE).unwrap_or(true);
        self.server.as_ref().is_some_and(|process| !ended(process))
    }
}

/// The body of `weir hold`: waits until it is needed, or no longer.
pub(super) fn run() -> io::Result<()> {
    let missing = || io::Error::other("no process has said what to hold");
    let line = descriptor::inherited().ok_or_else(missing)?;
    if !fdpass::readable(&line, MESSAGE_DEADLINE)? {
        return Err(missing());
    }
    let first = fdpass::try_receive::<ToHolder>(line.as_fd())?;
    let Some((ToHolder::Hold(state), mut descriptors)) = first else {
        return Err(missing());
    };
    let mut standby = Standby {
        fuse: descriptors.need(Slot::Fuse)?,
        lock: descriptors.need(Slot::Lock)?,
        line,
        held: Held::new(*state, &mut descriptors),
    };
    stand_by(&mut standby)
}

/// The holder, with what it holds.
struct Standby {
    fuse: OwnedFd,
    lock: OwnedFd,
    line: OwnedFd,
    held: Held,
}

impl Successor for Standby {
    fn follow(&mut self) -> io::Result<bool> {
        say_who(&self.line);
        wait(&self.line, &mut self.held)
    }

    fn is_needed(&self) -> bool {
        let needed = !mounting::is_gone(&self.fuse) && !self.held.server_lives();
        if needed {
            let mountpoint = self.held.state.request.mountpoint.display();
            tracing::warn!(%mountpoint, "supervisor and server died together; others are started");
        }
        needed
    }

    fn start_supervisor(&mut self) -> io::Result<()> {
        self.held.state.server_pid = None;
        (self.held.supervisor, self.held.server) = (None, None);
        let mut descriptors = vec![
            (Slot::Fuse, self.fuse.as_fd()),
            (Slot::Lock, self.lock.as_fd()),
        ];
        let peer = self.held.peer.as_ref();
        descriptors.extend(peer.map(|line| (Slot::Peer, line.as_fd())));
        self.line = adopting_supervisor(&self.held.state, Slot::Holder, &descriptors)?;
        Ok(())
    }
}

fn say_who(line: &OwnedFd) {
    let pid = std::process::id();
    // It is only shown to users; a supervisor that has too much to read already asks again.
    let _ = fdpass::send(line.as_fd(), &Holding { pid }, &[]);
}

/// Keeps the state up to date until all who could talk to this process are gone; `false` when it is told to leave.
fn wait(line: &OwnedFd, held: &mut Held) -> io::Result<bool> {
    let mut silent = 0;
    loop {
        let since = Instant::now();
        if !fdpass::readable(line, BEAT)? {
            // Was it this process that was stopped?
            silent = if since.elapsed() < 2 * BEAT {
                silent + 1
            } else {
                0
            };
            if silent == SILENT_BEATS {
                held.end_the_silent();
                silent = 0;
            }
            continue;
        }
        silent = 0;
        match fdpass::receive::<ToHolder>(line.as_fd()) {
            Ok(Some((ToHolder::Hold(newer), mut descriptors))) => {
                *held = Held::new(*newer, &mut descriptors);
                say_who(line);
            }
            Ok(Some((ToHolder::Beat, _))) => say_who(line),
            Ok(Some((ToHolder::Leave, _))) => return Ok(false),
            Ok(None) => return Ok(true),
            // A newer supervisor may say what this version does not know.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use rustix::process::kill_process;

    use super::*;
    use crate::state::InitExchange;
    use crate::supervisor::{Made, StartRequest};

    fn state(logs_to_file: bool) -> MountState {
        MountState {
            request: StartRequest {
                mountpoint: "/mnt".into(),
                source: "s3://b".to_owned(),
                identity: String::new(),
                allow_other: false,
                server_args: Vec::new(),
                made: Made::default(),
            },
            dir: "/run".into(),
            device: String::new(),
            started_at: 0,
            logs_to_file,
            detached: false,
            was_ready: true,
            init: InitExchange {
                request: Vec::new(),
                reply: None,
                answered: true,
            },
            properties: [].into(),
            server_pid: None,
        }
    }

    /// A process that is stopped.
    fn stopped() -> (Option<OwnedFd>, Child) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::STOP).unwrap();
        (Some(pidfd_open(pid, PidfdFlags::empty()).unwrap()), child)
    }

    #[test]
    fn a_silent_supervisor_is_killed_first_and_its_server_if_nothing_comes_after_it() {
        let ((supervisor, mut first), (server, mut second)) = (stopped(), stopped());
        let held = Held {
            state: state(true),
            supervisor,
            server,
            peer: None,
        };
        held.end_the_silent();
        first.wait().unwrap();
        assert!(second.try_wait().unwrap().is_none());
        assert!(held.server_lives());
        held.end_the_silent();
        second.wait().unwrap();
        assert!(!held.server_lives());
        held.end_the_silent(); // nobody is left
    }

    #[test]
    fn what_a_user_has_stopped_in_a_terminal_is_let_alone() {
        let ((supervisor, mut first), (server, mut second)) = (stopped(), stopped());
        let held = Held {
            state: state(false),
            supervisor,
            server,
            peer: None,
        };
        held.end_the_silent();
        for child in [&mut first, &mut second] {
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_holder_that_does_not_answer_is_not_told_again() {
        let (ours, theirs) = fdpass::pair().unwrap();
        let mut holder = Holder::known(ours);
        for _ in 0..3 {
            holder.last_beat -= 2 * BEAT;
            assert!(holder.beat());
        }
        let told = || fdpass::try_receive::<ToHolder>(theirs.as_fd()).map(|told| told.is_some());
        assert!(told().is_ok_and(|told| told));
        assert!(told().is_err(), "it was told twice");
        say_who(&theirs);
        assert!(holder.listen());
        holder.last_beat -= 2 * BEAT;
        assert!(holder.beat());
        assert!(told().is_ok_and(|told| told));
        holder.be_silent();
        assert!(!holder.beat());
        holder.looked_at -= 2 * BEAT;
        assert!(holder.beat(), "it was this process that was stopped");
    }
}
