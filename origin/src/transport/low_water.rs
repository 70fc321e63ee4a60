//! How many bytes a socket gathers before it wakes its reader (`SO_RCVLOWAT`).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

/// Sets the mark, in bytes. False when the system refuses; reads work all the same.
pub(crate) fn set_low_water(socket: impl AsFd, bytes: u64) -> bool {
    let mark = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is open for the call, and the option's value is one `c_int`, which outlives it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const mark).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result == 0
}
