//! The directory of an origin.
//!
//! It is opened anew for each use, since it may be made anew while a process runs; and where a process may read only
//! what is below some directories, it is opened from one of those.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::beneath;

/// A directory that may have to be below others.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    dir: PathBuf,
    /// `None` when it may be anywhere.
    below: Option<Arc<[PathBuf]>>,
}

/// Why a directory cannot be opened.
#[derive(Debug)]
pub(super) enum RootError {
    /// It is not below an allowed one. That is all that is said: not whether there is such a directory.
    NotBelow,
    /// The system's error.
    System(Errno),
}

impl Root {
    /// A directory that may be anywhere.
    pub(crate) fn anywhere(dir: PathBuf) -> Self {
        Self { dir, below: None }
    }

    /// A directory that must be one of `dirs`, or below one. An outer one comes before one that is inside it.
    pub(crate) fn below(dirs: Arc<[PathBuf]>, dir: PathBuf) -> Self {
        Self {
            dir,
            below: Some(dirs),
        }
    }

    /// Opens it, as a place to resolve paths from. Blocks on the disk.
    pub(super) fn open(&self) -> Result<OwnedFd, RootError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Some(dirs) = &self.below else {
            return open(&self.dir, flags, Mode::empty()).map_err(RootError::System);
        };
        for allowed in &**dirs {
            let Some(inside) = inside(&self.dir, allowed) else {
                continue;
            };
            let base = open(allowed, flags, Mode::empty()).map_err(RootError::System)?;
            return match beneath::open(&base, &inside, flags) {
                Ok(opened) => Ok(opened),
                Err(Errno::XDEV) => Err(RootError::NotBelow),
                Err(errno) => Err(RootError::System(errno)),
            };
        }
        Err(RootError::NotBelow)
    }
}

/// The rest of a path behind an allowed directory, which may be named by a link.
fn inside(dir: &Path, allowed: &Path) -> Option<PathBuf> {
    if let Ok(inside) = dir.strip_prefix(allowed) {
        return Some(inside.to_owned());
    }
    let real = allowed.canonicalize().ok()?;
    dir.strip_prefix(real).ok().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_is_opened_below_allowed_ones_alone_and_nothing_is_said_of_others() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        for dir in ["data/set", "data/link-target", "database", "secret"] {
            std::fs::create_dir_all(path(dir)).unwrap();
        }
        symlink(path("secret"), path("data/out")).unwrap();
        symlink("link-target", path("data/in")).unwrap();
        symlink(path("data/link-target"), path("data/in-absolute")).unwrap();
        symlink(path("data"), path("by-link")).unwrap();
        let open = |allowed: &[&str], dir: &str| {
            let dirs: Vec<PathBuf> = allowed.iter().map(|name| path(name)).collect();
            Root::below(dirs.into(), path(dir)).open().map(drop)
        };
        for dir in ["data", "data/set", "data/in", "data/in-absolute"] {
            open(&["data"], dir).unwrap();
        }
        open(&["by-link"], "data/set").unwrap();
        open(&["by-link"], "by-link/set").unwrap();
        open(&["other", "data/set", "data"], "data/set").unwrap();
        // Whether they exist or not.
        for dir in [
            "database",
            "data/out",
            "data/out/none",
            "secret",
            "none",
            "",
        ] {
            let refused = open(&["data"], dir).unwrap_err();
            assert!(matches!(refused, RootError::NotBelow), "{dir}: {refused:?}");
        }
        assert!(matches!(open(&[], "data"), Err(RootError::NotBelow)));
        let missing = open(&["data"], "data/none").unwrap_err();
        assert!(
            matches!(missing, RootError::System(Errno::NOENT)),
            "{missing:?}"
        );
    }
}
