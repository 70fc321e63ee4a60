//! Signals as a descriptor, so that one poll loop waits for them and for everything else.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// The signals that ask a supervisor to end its mount. They stay blocked for the life of the process.
pub struct Signals(OwnedFd);

const WATCHED: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];
/// Size of the kernel's `signalfd_siginfo`, whose first four bytes are the signal's number.
const RECORD: usize = 128;

impl Signals {
    /// Blocks the signals for this thread, and those it starts from now on, and reads them from now on. A hang-up
    /// of the terminal is ignored.
    pub fn watch() -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before use, the signal numbers are valid, and the new
        // descriptor is owned by nobody else.
        unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut set);
            for signal in WATCHED {
                libc::sigaddset(&raw mut set, signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            let descriptor =
                libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(descriptor)))
        }
    }

    /// Takes one signal that has come, if any.
    pub fn take(&self) -> Option<u32> {
        let mut record = [0; RECORD];
        match rustix::io::read(&self.0, &mut record) {
            Ok(RECORD) => Some(u32::from_ne_bytes([
                record[0], record[1], record[2], record[3],
            ])),
            _ => None,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
