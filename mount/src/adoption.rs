//! The first step of a supervisor that takes over a mount which has none.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use weir_process::fdpass::{self, Slot};
use weir_process::spawn;

use crate::state::{Assignment, MountState};

/// Starts a supervisor that adopts a mount with these descriptors, and with a line to this process, which it takes for `role`.
/// Gives this process's end of the line.
pub(crate) fn adopting_supervisor(
    state: &MountState,
    role: Slot,
    descriptors: &[(Slot, BorrowedFd<'_>)],
) -> io::Result<OwnedFd> {
    let (ours, theirs) = fdpass::pair()?;
    let (sender, inherited) = fdpass::pair()?;
    let mut handed = vec![(role, theirs.as_fd())];
    handed.extend(descriptors);
    let assignment = Assignment::Adopt(state.clone());
    fdpass::send(sender.as_fd(), &assignment, &handed)?;
    spawn::spawn_detached(&mut spawn::own("supervise"), inherited.as_fd())?;
    Ok(ours)
}
