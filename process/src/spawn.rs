//! Starting a process that inherits one descriptor.
//!
//! Between fork and exec only async-signal-safe calls are made, since the caller may have threads.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::io::FdFlags;

use crate::descriptor::HANDOVER_VARIABLE;

/// The running program itself, also after its file was replaced or deleted.
pub(crate) const OWN_EXE: &str = "/proc/self/exe";

/// Shows `command`, which runs [`OWN_EXE`], under this program's real name.
fn name(command: &mut Command) {
    if let Some(name) = std::env::current_exe()
        .ok()
        .as_ref()
        .and_then(|exe| exe.file_name())
    {
        command.arg0(name);
    }
}

/// A process of this program for a part of its work: it reads nothing and prints nothing.
pub fn own(part: &str) -> Command {
    let mut command = Command::new(OWN_EXE);
    command.arg(part).stdin(Stdio::null()).stdout(Stdio::null());
    name(&mut command);
    command
}

/// Starts `command` as a child with `descriptor` inherited.
pub fn spawn(command: &mut Command, descriptor: BorrowedFd<'_>) -> io::Result<Child> {
    hand_over(command, descriptor);
    // SAFETY: `default_signals` makes only async-signal-safe calls.
    unsafe { command.pre_exec(default_signals) };
    command.spawn()
}

/// Starts `command`, which this process stands for: it shows its name, and gets the signals that this one reads elsewhere.
pub(crate) fn spawn_as_is(command: &mut Command) -> io::Result<Child> {
    name(command);
    // SAFETY: `default_signals` makes only async-signal-safe calls.
    unsafe { command.pre_exec(default_signals) };
    command.spawn()
}

/// Starts `command` with `descriptor` inherited, in a session of its own and as nobody's child: it belongs to
/// init at once and its end leaves no zombie behind.
pub fn spawn_detached(command: &mut Command, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    hand_over(command, descriptor);
    let detach = || {
        default_signals()?;
        rustix::process::setsid()?;
        // SAFETY: this process is the copy that fork made: it has one thread, and both sides of this second fork
        // make only async-signal-safe calls.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(()),
            // SAFETY: _exit runs no destructors, which belong to the first process.
            _ => unsafe { libc::_exit(0) },
        }
    };
    // SAFETY: see the comments inside.
    unsafe { command.pre_exec(detach) };
    // The child is the process in the middle, which has ended. An exec that failed was reported by `spawn`.
    command.spawn()?.wait()?;
    Ok(())
}

/// Becomes `command`, with `descriptor` kept. Returns only when that failed.
pub fn exec(command: &mut Command, descriptor: BorrowedFd<'_>) -> io::Error {
    hand_over(command, descriptor);
    let error = command.exec();
    // The process goes on, and its later children must not get the descriptor.
    let _ = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    error
}

fn hand_over(command: &mut Command, descriptor: BorrowedFd<'_>) {
    let number = descriptor.as_raw_fd();
    command.env(HANDOVER_VARIABLE, number.to_string());
    // SAFETY: `keep_open` makes one async-signal-safe call.
    unsafe { command.pre_exec(move || keep_open(number)) };
}

fn keep_open(number: RawFd) -> io::Result<()> {
    // SAFETY: the caller of `hand_over` borrows the descriptor until the command was started.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?)
}

/// Unblocks all signals: a supervisor blocks those that it reads from a descriptor, its children must not.
fn default_signals() -> io::Result<()> {
    // SAFETY: the set is initialised by sigemptyset before it is used; both calls are async-signal-safe.
    let result = unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
