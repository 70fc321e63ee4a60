//! What was made for a mount, and is removed again should the mount never become usable.
//!
//! Invariant: only what this very mount has made is removed, and state only while nobody serves from it. A server
//! holds the lock of its state directory ([`own_state`]), and whoever removes state takes that lock first.
#![forbid(unsafe_code)]

use std::fs::{DirBuilder, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fstat};
use serde::{Deserialize, Serialize};

/// Longest wait for the server of before to let go of the state: it has ended, or is about to.
const OWN_DEADLINE: Duration = Duration::from_secs(5);
const OWN_POLL: Duration = Duration::from_millis(20);

/// Directories that were made for a mount.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Made {
    /// The state directory of the mount, whose lock guards all of its state.
    guard: Option<PathBuf>,
    /// Removed with all that is in them.
    state: Vec<PathBuf>,
    /// Removed if nothing is in them; parents come before their children.
    directories: Vec<PathBuf>,
}

impl Made {
    /// Makes a directory, but not its parents. One that exists is not looked at: it may be a mount.
    pub fn directory(&mut self, dir: &Path) -> io::Result<()> {
        if make(dir)? {
            self.directories.push(dir.to_owned());
        }
        Ok(())
    }

    /// Makes a directory for state of the mount, with its parents. The first one is the mount's state directory.
    pub fn state(&mut self, dir: &Path) -> io::Result<()> {
        self.parents(dir)?;
        if make(dir)? {
            self.state.push(dir.to_owned());
        }
        self.guard.get_or_insert_with(|| dir.to_owned());
        Ok(())
    }

    fn parents(&mut self, dir: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = dir
            .ancestors()
            .skip(1)
            .take_while(|parent| !parent.as_os_str().is_empty() && !parent.exists())
            .collect();
        missing
            .into_iter()
            .rev()
            .try_for_each(|parent| self.directory(parent))
    }

    /// Removes what was made, as far as nobody has put anything of their own into it.
    pub fn remove(&self) {
        let free = match &self.guard {
            Some(guard) => lock(guard).ok().flatten(),
            None => None,
        };
        for dir in self.state.iter().rev() {
            if free.is_some() || Some(dir) != self.guard.as_ref() {
                remove(dir, free.is_some());
            }
        }
        for dir in self.directories.iter().rev() {
            remove(dir, false);
        }
    }
}

fn remove(dir: &Path, with_content: bool) {
    let outcome = if with_content {
        std::fs::remove_dir_all(dir)
    } else {
        std::fs::remove_dir(dir)
    };
    if let Err(error) = outcome {
        tracing::debug!("{} was not removed: {error}", dir.display());
    }
}

/// Whether the directory was missing.
fn make(dir: &Path) -> io::Result<bool> {
    match DirBuilder::new().create(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lock of a state directory; `None` when another process holds it.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = File::open(dir)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes the state directory if it is missing, and keeps other servers out of it for as long as the file is open.
///
/// # Errors
/// When it cannot be made, or another server has it.
pub fn own_state(dir: &Path) -> io::Result<File> {
    let until = Instant::now() + OWN_DEADLINE;
    loop {
        std::fs::create_dir_all(dir)?;
        let locked = lock(dir).or_else(|error| {
            // Some network file systems lock no directories. Nobody can remove this one then, either.
            tracing::debug!("{} cannot be locked: {error}", dir.display());
            File::open(dir).map(Some)
        });
        if let Some(file) = locked? {
            // A mount that failed may just have removed it.
            if fstat(&file)?.st_nlink > 0 {
                return Ok(file);
            }
        } else if Instant::now() > until {
            return Err(io::Error::other(
                "another mount uses it; unmount that one, or set XDG_CACHE_HOME to another directory",
            ));
        } else {
            std::thread::sleep(OWN_POLL);
        }
    }
}

/// As [`own_state`], for a server that follows another one, and whose state is files that are replaced as a whole. `None` while that
/// one still has it: it may be in a pod that is frozen, where it does nothing and does not end.
///
/// # Errors
/// When the directory is gone.
pub fn follow_state(dir: &Path) -> io::Result<Option<File>> {
    lock(dir).or_else(|_| File::open(dir).map(Some)) // as above
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        std::fs::create_dir(base.join("there")).unwrap();
        let mut made = Made::default();
        made.state(&base.join("cache/weir/slot")).unwrap();
        made.state(&base.join("there/slot")).unwrap();
        made.directory(&base.join("mnt")).unwrap();
        made.directory(&base.join("there")).unwrap();
        std::fs::write(base.join("cache/weir/slot/file"), "x").unwrap();
        std::fs::write(base.join("mnt/of-somebody-else"), "x").unwrap();
        made.remove();
        let left = |name: &str| base.join(name).exists();
        assert!(!left("cache"), "with the parents that were made");
        assert!(left("there") && !left("there/slot"));
        assert!(left("mnt/of-somebody-else"));
        made.remove();
    }

    #[test]
    fn state_that_a_server_uses_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let mut made = Made::default();
        made.state(&state).unwrap();
        let owned = own_state(&state).unwrap();
        made.remove();
        assert!(state.exists());
        assert!(follow_state(&state).unwrap().is_none(), "nobody waits");
        drop(owned);
        assert!(follow_state(&state).unwrap().is_some());
        made.remove();
        assert!(!state.exists());
        assert!(follow_state(&state).is_err());
        assert!(own_state(&state).is_ok(), "made anew");
    }
}
