//! The third holder of a mount: a process that does nothing, so that supervisor and server may die together.
//!
//! Supervisor and server each bring the other one back, which takes some milliseconds in which neither must die. The
//! holder has the mount's descriptors, too, and the newest state; when the last process that has the other end of its
//! line is gone, it starts a supervisor that takes the mount over. It has a session and a process group of its own, so
//! that a signal to a terminal or a group does not end all three. Only when all of them die does the mount: the kernel
//! then answers ENOTCONN.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::fdpass::{self, Slot};
use crate::state::{Assignment, MountState};
use crate::{descriptor, mount, spawn};

/// Longest wait for the supervisor's first message.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest time that a process which has closed its files takes to end.
const DEATH_DEADLINE: Duration = Duration::from_secs(1);
/// A supervisor that lived shorter than this is followed by the next one only after as long.
const SHORT_LIFE: Duration = Duration::from_millis(500);

/// From the supervisor to the holder.
#[derive(Debug, Serialize, Deserialize)]
enum ToHolder {
    /// What a successor has to know; the first message has the descriptors with it.
    Hold(Box<MountState>),
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
}

impl Holder {
    /// Starts a holder.
    pub(super) fn start(state: &MountState, fuse: &OwnedFd, lock: &OwnedFd) -> io::Result<Self> {
        let (ours, theirs) = fdpass::pair()?;
        let descriptors = [(Slot::Fuse, fuse.as_fd()), (Slot::Lock, lock.as_fd())];
        fdpass::send(
            ours.as_fd(),
            &ToHolder::Hold(Box::new(state.clone())),
            &descriptors,
        )?;
        let mut command = spawn::own("hold");
        spawn::spawn_detached(&mut command, theirs.as_fd())?;
        Ok(Self::known(ours))
    }

    /// The holder at the other end of a line.
    pub(super) fn known(line: OwnedFd) -> Self {
        Self { line, pid: None }
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
                Ok(Some((Holding { pid }, _))) => self.pid = Some(pid),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Tells it what has changed.
    pub(super) fn tell(&self, state: &MountState) {
        // One that is gone is noticed by its line, and one that does not read is no use.
        let _ = fdpass::send(
            self.line.as_fd(),
            &ToHolder::Hold(Box::new(state.clone())),
            &[],
        );
    }

    /// Ends it.
    pub(super) fn dismiss(&self) {
        // It may be gone.
        let _ = fdpass::send(self.line.as_fd(), &ToHolder::Leave, &[]);
    }
}

/// The body of `weir hold`: waits until it is needed, or no longer.
pub(super) fn run() -> io::Result<()> {
    let missing = || io::Error::other("no process has said what to hold");
    let mut line = descriptor::inherited().ok_or_else(missing)?;
    if !fdpass::readable(&line, MESSAGE_DEADLINE)? {
        return Err(missing());
    }
    let first = fdpass::try_receive::<ToHolder>(line.as_fd())?;
    let Some((ToHolder::Hold(state), mut descriptors)) = first else {
        return Err(missing());
    };
    let mut state = *state;
    let fuse = descriptors.need(Slot::Fuse)?;
    let lock = descriptors.need(Slot::Lock)?;
    loop {
        let since = Instant::now();
        say_who(&line);
        if !wait(&line, &mut state)? || mount::is_gone(&fuse) || server_lives(&state) {
            return Ok(());
        }
        tracing::warn!(mountpoint = %state.request.mountpoint.display(), "supervisor and server died together; others are started");
        if since.elapsed() < SHORT_LIFE {
            std::thread::sleep(SHORT_LIFE);
        }
        state.server_pid = None;
        line = loop {
            match succeed(&state, &fuse, &lock) {
                Ok(line) => break line,
                Err(error) => tracing::error!("no supervisor could be started: {error}"),
            }
            std::thread::sleep(SHORT_LIFE);
        };
    }
}

fn say_who(line: &OwnedFd) {
    let pid = std::process::id();
    // It is only shown to users; a supervisor that has too much to read already asks again.
    let _ = fdpass::send(line.as_fd(), &Holding { pid }, &[]);
}

/// Keeps the state up to date until all who could talk to this process are gone; `false` when it is told to leave.
fn wait(line: &OwnedFd, state: &mut MountState) -> io::Result<bool> {
    loop {
        match fdpass::receive::<ToHolder>(line.as_fd()) {
            Ok(Some((ToHolder::Hold(newer), _))) => {
                *state = *newer;
                say_who(line);
            }
            Ok(Some((ToHolder::Leave, _))) => return Ok(false),
            Ok(None) => return Ok(true),
            // A newer supervisor may say what this version does not know.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether there is a server after all, which starts a supervisor by itself, and that one another holder: this one's
/// line had not reached it.
fn server_lives(state: &MountState) -> bool {
    let pid = state
        .server_pid
        .and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    process.is_some_and(|process| !fdpass::readable(&process, DEATH_DEADLINE).unwrap_or(true))
}

/// Starts a supervisor for the mount. Gives the line to it.
fn succeed(state: &MountState, fuse: &OwnedFd, lock: &OwnedFd) -> io::Result<OwnedFd> {
    let (ours, theirs) = fdpass::pair()?;
    let (sender, inherited) = fdpass::pair()?;
    let descriptors = [
        (Slot::Fuse, fuse.as_fd()),
        (Slot::Lock, lock.as_fd()),
        (Slot::Holder, theirs.as_fd()),
    ];
    let assignment = Assignment::Adopt(state.clone());
    fdpass::send(sender.as_fd(), &assignment, &descriptors)?;
    let mut command = spawn::own("supervise");
    spawn::spawn_detached(&mut command, inherited.as_fd())?;
    Ok(ours)
}
