//! From what the user wrote to the path that the kernel's mount table shows.
//!
//! Invariant: the directory itself is never stat-ed unless nothing is mounted there. Its *parent* is resolved, and
//! the last component is only asked whether it is a link, which the kernel answers without the server of a mount.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::{MountError, table};

/// Links that are followed at the last component, as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// The absolute path of `dir` without links. Fails when it does not exist or its name ends in `..`.
pub(crate) fn resolve(dir: &Path) -> Result<PathBuf, MountError> {
    let fail = |reason: &str| MountError::Mountpoint {
        mountpoint: dir.to_owned(),
        reason: reason.to_owned(),
    };
    let mut path = std::path::absolute(dir).map_err(|error| fail(&error.to_string()))?;
    for _ in 0..MAX_LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(fail(
                "write the directory's own name, not / or a path that ends in ..",
            ));
        };
        let parent = parent.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => fail("no such directory; create it first"),
            _ => fail(&error.to_string()),
        })?;
        let full = parent.join(name);
        match rustix::fs::readlink(&full, Vec::new()) {
            Ok(target) => {
                use std::os::unix::ffi::OsStrExt;
                path = parent.join(std::ffi::OsStr::from_bytes(target.as_bytes()));
            }
            // It exists and is not a link.
            Err(Errno::INVAL) if full.to_str().is_some() => return Ok(full),
            Err(Errno::INVAL) => return Err(fail("the path is not UTF-8")),
            Err(Errno::NOENT) => return Err(fail("no such directory; create it first")),
            Err(error) => return Err(fail(&error.to_string())),
        }
    }
    Err(fail("too many symbolic links"))
}

/// The path with all its links followed, as far as it exists; what is missing is taken as it is written. Neither
/// `mountpoint` nor anything below it is looked at: a mount there may be one that does not answer.
fn follow(path: &Path, mountpoint: Option<&Path>) -> PathBuf {
    let mut rest: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
    let mut followed = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = rest.pop() {
        match Path::new(&name).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::ParentDir) => {
                followed.pop();
                continue;
            }
            _ => continue,
        }
        followed.push(&name);
        if links == MAX_LINKS || mountpoint.is_some_and(|at| followed.starts_with(at)) {
            continue;
        }
        if let Ok(target) = rustix::fs::readlink(&followed, Vec::new()) {
            links += 1;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.is_absolute() {
                followed = "/".into();
            } else {
                followed.pop();
            }
            rest.extend(target.iter().rev().map(OsStr::to_owned));
        }
    }
    followed
}

/// What a path of this mount really is, if it is `mountpoint` or lies below it, so that a mount there hides it. Neither
/// of the two need exist.
pub(crate) fn hidden_by(mountpoint: &Path, path: &Path) -> Option<PathBuf> {
    let mountpoint = follow(&std::path::absolute(mountpoint).ok()?, None);
    let path = follow(&std::path::absolute(path).ok()?, Some(&mountpoint));
    path.starts_with(&mountpoint).then_some(path)
}

/// Fails unless a [resolved](resolve) path is a directory. One with content is fine: the mount hides it.
pub(crate) fn check(mountpoint: &Path) -> Result<(), MountError> {
    let fail = |reason: String| MountError::Mountpoint {
        mountpoint: mountpoint.to_owned(),
        reason,
    };
    let mounted = table::at(mountpoint).map_err(|error| fail(error.to_string()))?;
    if mounted.is_some_and(|entry| entry.fs_type.starts_with("fuse")) {
        // Only a directory is mounted on, and a stat could wait for ever.
        return Ok(());
    }
    match std::fs::metadata(mountpoint) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(fail("it is not a directory".to_owned())),
        Err(error) => Err(fail(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_dots_and_slashes_lead_to_one_path() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        std::os::unix::fs::symlink(base.join("link"), base.join("far")).unwrap();
        std::os::unix::fs::symlink("loop", base.join("loop")).unwrap();
        for name in ["real", "real/", "real/.", "link", "far", "real/../link"] {
            assert_eq!(resolve(&base.join(name)), Ok(base.join("real")), "{name}");
        }
        for bad in ["missing", "missing/x", "real/..", "loop"] {
            assert!(resolve(&base.join(bad)).is_err(), "{bad}");
        }
        assert!(resolve(Path::new("/")).is_err());
    }

    #[test]
    fn what_a_mount_would_hide_is_found_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("mnt/in")).unwrap();
        std::fs::create_dir(base.join("beside")).unwrap();
        std::os::unix::fs::symlink("mnt/in", base.join("link")).unwrap();
        std::os::unix::fs::symlink(base.join("mnt"), base.join("to-mnt")).unwrap();
        std::os::unix::fs::symlink("again", base.join("again")).unwrap();
        for at in ["mnt", "to-mnt", "beside/../mnt"] {
            let at = base.join(at);
            let hidden = |path: &str| hidden_by(&at, &base.join(path));
            assert_eq!(hidden("mnt"), Some(base.join("mnt")));
            assert_eq!(hidden("mnt/new/x"), Some(base.join("mnt/new/x")));
            assert_eq!(hidden("link/x"), Some(base.join("mnt/in/x")));
            assert_eq!(hidden("to-mnt/in"), Some(base.join("mnt/in")));
            for beside in ["", "mnt2", "beside", "beside/x", "mnt/../beside", "again/x"] {
                assert_eq!(hidden(beside), None, "{beside}");
            }
        }
        let new = base.join("new");
        assert!(hidden_by(&new, &new.join("cache")).is_some());
    }

    #[test]
    fn a_file_is_not_a_mountpoint() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().canonicalize().unwrap().join("file");
        std::fs::write(&file, "").unwrap();
        let error = resolve(&file).and_then(|file| check(&file)).unwrap_err();
        assert!(
            error.to_string().ends_with("it is not a directory"),
            "{error}"
        );
        assert_eq!(check(dir.path()), Ok(()));
    }
}
