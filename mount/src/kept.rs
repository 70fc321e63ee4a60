//! What all processes of a mount hold open, so that any of them can bring the others back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use weir_process::fdpass::{Descriptors, Slot};

/// The descriptors of a mount.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The connection to the kernel's side.
    pub(crate) fuse: OwnedFd,
    /// The held lock of the runtime directory.
    pub(crate) lock: OwnedFd,
    /// Which requests are under way, where the kernel sends none again.
    pub(crate) in_flight: Option<OwnedFd>,
}

impl Kept {
    /// Those of a message.
    pub(crate) fn of(descriptors: &mut Descriptors) -> io::Result<Self> {
        Ok(Self {
            fuse: descriptors.need(Slot::Fuse)?,
            lock: descriptors.need(Slot::Lock)?,
            in_flight: descriptors.take(Slot::Memory),
        })
    }

    /// For a message.
    pub(crate) fn descriptors(&self) -> Vec<(Slot, BorrowedFd<'_>)> {
        let mut descriptors = vec![
            (Slot::Fuse, self.fuse.as_fd()),
            (Slot::Lock, self.lock.as_fd()),
        ];
        let memory = self.in_flight.as_ref();
        descriptors.extend(memory.map(|memory| (Slot::Memory, memory.as_fd())));
        descriptors
    }
}
