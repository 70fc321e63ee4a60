//! The kernel's end of a mount, by its number: `/sys/fs/fuse/connections` (Documentation/filesystems/fuse.rst).
#![forbid(unsafe_code)]

use std::io;

/// Ends the connection of the mount with this device number: all who wait for an answer get an error, at once.
///
/// # Errors
/// When the control file system is not mounted (in many containers), or the connection is gone. It then ends as soon
/// as nobody holds its descriptor any more.
pub(crate) fn abort(device: &str) -> io::Result<()> {
    let number = device
        .strip_prefix("0:")
        .ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1")
}
