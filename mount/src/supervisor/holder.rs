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
//!
//! In pods readers are promised more, so there the supervisor also [counts](super::running) while it runs. One that counts no more is
//! stopped, and is killed after 0.3 s. A holder in another pod cannot kill it: if all of the pod is frozen, it lets them
//! be, takes the mount over, and tells them so for the case that they ever go on.
#![forbid(unsafe_code)]

mod standby;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use weir_process::fdpass::{self, Slot};
use weir_process::spawn;

use super::running::Running;
use super::server::Server;
use crate::kept::Kept;
use crate::state::MountState;

pub(super) use standby::run;

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
    /// The supervisor counts while it runs; the message has the counter.
    Runs {
        /// Whether that is in another pod.
        elsewhere: bool,
    },
    /// The mount has ended, or another holder takes the place of this one.
    Leave,
}

/// The holder's answer: which process it is.
#[derive(Debug, Serialize, Deserialize)]
struct Holding {
    pid: u32,
    /// Its pod serves the mount, since all of the supervisor's was frozen.
    #[serde(default)]
    serves: bool,
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
    /// What it sees this process count with.
    counter: Option<Arc<OwnedFd>>,
    serves: bool,
}

impl Holder {
    /// Starts a holder. Its line is given to the server before, by `tell`: were this process to die in between, the
    /// holder would see nobody at the other end.
    pub(super) fn start(
        state: &MountState,
        server: Option<&Server>,
        kept: &Kept,
        tell: impl FnOnce(&OwnedFd),
    ) -> io::Result<Self> {
        let (ours, theirs) = fdpass::pair()?;
        hold(&ours, state, server, &kept.descriptors())?;
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
            counter: None,
            serves: false,
        }
    }

    /// As if it had not answered for long.
    #[cfg(test)]
    pub(super) fn be_silent(&mut self) {
        self.silent_since = Instant::now().checked_sub(SILENT_BEATS * BEAT);
    }

    pub(super) fn line(&self) -> &OwnedFd {
        &self.line
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Whether its pod serves the mount in this one's place.
    pub(super) fn serves(&self) -> bool {
        self.serves
    }

    /// Lets it see that this process runs.
    pub(super) fn show(&mut self, running: &Running, elsewhere: bool) {
        let shown = running.counter().and_then(|counter| {
            let descriptors = [(Slot::Counter, counter.as_fd())];
            let message = ToHolder::Runs { elsewhere };
            fdpass::send(self.line.as_fd(), &message, &descriptors)?;
            Ok(counter)
        });
        match shown {
            Ok(counter) => self.counter = Some(counter),
            // It goes by what else it is told.
            Err(error) => tracing::warn!("a holder cannot see whether this process runs: {error}"),
        }
    }

    /// Hears what it has said. `false` when it is gone.
    pub(super) fn listen(&mut self) -> bool {
        loop {
            match fdpass::try_receive::<Holding>(self.line.as_fd()) {
                Ok(Some((Holding { pid, serves }, _))) => {
                    self.pid = Some(pid);
                    self.serves |= serves;
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
        kept: &Kept,
    ) -> io::Result<Self> {
        hold(&line, state, server, &kept.descriptors())?;
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

#[cfg(test)]
mod tests {
    use super::standby::say_who;
    use super::*;

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
        say_who(&theirs, false);
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
