//! The lock that makes one process the owner of a cache directory.
//!
//! It is an `flock` on `LOCK`, so it ends with the process however that ends. The file's text is the holder's
//! process id, for the message to whoever comes second.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::SegmentError;

/// The lock file's name in the directory.
const LOCK_FILE: &str = "LOCK";

/// Longest process id that is read back, in bytes.
const PID_DIGITS: u64 = 16;

/// Holds the directory until dropped.
#[derive(Debug)]
pub(super) struct DirLock {
    file: File,
    path: PathBuf,
}

impl DirLock {
    /// Creates the directory if needed and takes its lock.
    ///
    /// # Errors
    /// [`SegmentError::Locked`] if another process, or another store of this one, has it.
    pub(super) fn acquire(dir: &Path) -> Result<Self, SegmentError> {
        fs::create_dir_all(dir).map_err(SegmentError::cannot("create", dir))?;
        let path = dir.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(SegmentError::cannot("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = (&mut file).take(PID_DIGITS).read_to_string(&mut text);
                return Err(SegmentError::Locked {
                    dir: dir.to_owned(),
                    holder: read.ok().and_then(|_| text.trim().parse().ok()),
                });
            }
            Err(TryLockError::Error(e)) => return Err(SegmentError::cannot("lock", &path)(e)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(SegmentError::cannot("write", &path))?;
        Ok(Self { file, path })
    }

    /// False once somebody deleted or replaced the lock file: another process could then take the directory.
    pub(super) fn still_named(&self) -> bool {
        match (self.file.metadata(), fs::metadata(&self.path)) {
            (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
            _ => false,
        }
    }
}
