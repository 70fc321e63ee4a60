//! The first process of a container: it waits for processes whose parents have ended.
//!
//! The kernel gives such processes to process 1, and keeps what is left of each until that has waited for it. A program that
//! does other work must not wait for whatever ends, since its libraries wait for their own children; so it does its work in a
//! process of its own.
#![forbid(unsafe_code)]

use std::io;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, wait,
};

use crate::signals::Signals;
use crate::spawn;

/// Longest time for which what is left of a process is kept.
const REAP_INTERVAL: Duration = Duration::from_secs(1);

/// In process 1: has another process do what this one was started for, and gives its exit code when it has ended. `None` in any
/// other process, which does the work itself.
///
/// # Errors
/// When the other process cannot be started.
pub fn run() -> io::Result<Option<ExitCode>> {
    if getpid() != Pid::INIT {
        return Ok(None);
    }
    let signals = Signals::watch()?;
    let mut command = Command::new(spawn::OWN_EXE);
    command.args(std::env::args_os().skip(1));
    let child = spawn::spawn_as_is(&mut command)?;
    let pid = Pid::from_child(&child);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = Timespec::try_from(REAP_INTERVAL).map_err(io::Error::other)?;
    loop {
        let mut fds = [
            PollFd::new(&signals, PollFlags::IN),
            PollFd::new(&process, PollFlags::IN),
        ];
        // An interrupted wait is a short wait.
        let _ = poll(&mut fds, Some(&timeout));
        while signals.take().is_some() {
            // It may have ended.
            let _ = pidfd_send_signal(&process, Signal::TERM);
        }
        while let Ok(Some((ended, status))) = wait(WaitOptions::NOHANG) {
            if ended == pid {
                let code = status.exit_status().map_or(1, |code| code as u8);
                return Ok(Some(ExitCode::from(code)));
            }
        }
    }
}
