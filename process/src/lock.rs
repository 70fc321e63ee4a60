//! A lock that says whether others live: an open file that they share, locked until the last of them is gone.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;

/// A look at such a lock, which stays valid when its file is moved.
pub struct LiveLock(File);

impl LiveLock {
    /// The lock at `path`.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Whether somebody holds it.
    pub fn is_held(&self) -> bool {
        // Taken shared, so that two who look do not see each other.
        let taken = rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockShared);
        // It was not locked before, so there is nothing that unlocking could fail for.
        let _ = rustix::fs::flock(&self.0, FlockOperation::NonBlockingUnlock);
        taken.is_err()
    }
}
