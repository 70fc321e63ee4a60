//! Descriptors by number: the one that a process inherits, and the one that is put in another's place.
//!
//! Invariant: a number becomes an owned descriptor at most once.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{DupFlags, FdFlags};

/// Names the descriptor that a process of a mount inherits from the one that started it.
pub const HANDOVER_VARIABLE: &str = "WEIR_HANDOVER_FD";
/// Descriptors below this one are standard input, output and error.
const FIRST_FREE: RawFd = 3;

/// Takes the socket that this process inherited, once. `None` when there is none or it was taken before.
pub fn inherited() -> Option<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number: RawFd = std::env::var(HANDOVER_VARIABLE).ok()?.parse().ok()?;
    if number < FIRST_FREE {
        return None;
    }
    // SAFETY: borrowed for this one call, which fails with EBADF when the number is not open.
    let flags = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
    // A descriptor that closes on exec was opened by this process: the variable is a left-over of its parent.
    if flags.contains(FdFlags::CLOEXEC) || TAKEN.swap(true, Ordering::SeqCst) {
        return None;
    }
    // SAFETY: the number is open, came over exec, and `TAKEN` says that nobody else owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC).ok()?;
    Some(descriptor)
}

/// The number of an open descriptor, kept open by whatever `K` is.
#[derive(Debug)]
pub struct Place<K> {
    number: RawFd,
    _keeper: K,
}

impl<K> Place<K> {
    /// The place of `descriptor`. It must stay open for as long as `keeper` lives.
    pub fn new(descriptor: BorrowedFd<'_>, keeper: K) -> Self {
        Self {
            number: descriptor.as_raw_fd(),
            _keeper: keeper,
        }
    }

    /// Makes the number refer to the open file of `with`; whoever holds it now talks to that.
    pub fn put(&self, with: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the number is open while the keeper lives, and `ManuallyDrop` leaves closing it to its owner. dup3
        // swaps what the number refers to in one step, so the owner never sees it closed.
        let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(self.number) });
        rustix::io::dup3(with, &mut place, DupFlags::CLOEXEC)?;
        Ok(())
    }
}
