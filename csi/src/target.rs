//! Where kubelet wants a volume: a path below kubelet's own directory, and no other.
//!
//! Invariant: a path that is no [`Target`] is never made, mounted on or removed; and on the way to one no symbolic link is
//! followed, so nothing that a pod writes into its volumes leads elsewhere.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::CsiError;

/// Longest path, in bytes: that of the kernel.
const MAX_PATH: usize = 4095;
/// Permissions of the directory that a volume is mounted on, as kubelet has them.
const DIR_MODE: Mode = Mode::from_raw_mode(0o750);

/// Kubelet's directory.
#[derive(Clone, Debug)]
pub struct KubeletDir {
    /// As kubelet writes it.
    given: PathBuf,
    /// As the kernel's table of mounts shows it.
    real: PathBuf,
}

/// A path below kubelet's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    root: PathBuf,
    parent: PathBuf,
    name: PathBuf,
}

impl KubeletDir {
    /// The directory, which may be behind a symbolic link.
    pub fn new(given: &Path) -> Result<Self, CsiError> {
        let real = given
            .canonicalize()
            .map_err(CsiError::system("find kubelet's directory", given))?;
        Ok(Self {
            given: given.to_owned(),
            real,
        })
    }

    /// Where it really is.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// The target that kubelet means by a path.
    pub fn target(&self, path: &str) -> Result<Target, CsiError> {
        let wrong = |why: String| CsiError::Invalid(format!("the target path {why}"));
        if path.is_empty() {
            return Err(wrong("is missing".to_owned()));
        }
        if path.len() > MAX_PATH || path.chars().any(char::is_control) {
            return Err(wrong(
                "is longer than 4095 bytes or not printable".to_owned(),
            ));
        }
        let path = Path::new(path);
        let below = path
            .strip_prefix(&self.given)
            .or_else(|_| path.strip_prefix(&self.real))
            .map_err(|_| {
                wrong(format!(
                    "{} is not below kubelet's directory {}; start the node plugin with --kubelet-dir",
                    path.display(),
                    self.given.display()
                ))
            })?;
        if below
            .components()
            .any(|part| !matches!(part, Component::Normal(_)))
        {
            return Err(wrong(format!("{} has .. in it", path.display())));
        }
        match (below.parent(), below.file_name()) {
            (Some(parent), Some(name)) => Ok(Target {
                root: self.real.clone(),
                parent: parent.components().collect(),
                name: name.into(),
            }),
            _ => Err(wrong("is kubelet's directory itself".to_owned())),
        }
    }
}

impl Target {
    /// The path as the kernel's table of mounts shows it.
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.parent).join(&self.name)
    }

    /// Makes the directory if it is missing, and gives it, or what is mounted on it.
    pub(crate) fn open_or_make(&self) -> Result<OwnedFd, CsiError> {
        let parent = self.open_parent()?;
        match rustix::fs::mkdirat(&parent, &self.name, DIR_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.failed("make the directory", error)),
        }
        step(&parent, &self.name).map_err(|error| self.failed("open the directory", error))
    }

    /// Removes the directory, if it is there.
    pub(crate) fn remove(&self) -> Result<(), CsiError> {
        let parent = match self.open_parent() {
            Err(CsiError::NotFound(_)) => return Ok(()),
            parent => parent?,
        };
        match rustix::fs::unlinkat(&parent, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("remove the directory", error)),
        }
    }

    fn open_parent(&self) -> Result<OwnedFd, CsiError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags, Mode::empty())
            .map_err(|error| self.failed("open kubelet's directory for", error))?;
        if self.parent.as_os_str().is_empty() {
            return Ok(root);
        }
        step(&root, &self.parent).map_err(|error| match error {
            Errno::NOENT => CsiError::NotFound(format!(
                "the directory of the target path {} is missing",
                self.path().display()
            )),
            error => self.failed("open the directory of", error),
        })
    }

    fn failed(&self, what: &'static str, error: Errno) -> CsiError {
        match error {
            Errno::LOOP | Errno::NOTDIR => CsiError::Invalid(format!(
                "the target path {} has a symbolic link in it, or what is no directory",
                self.path().display()
            )),
            Errno::NOSYS => too_old(),
            error => CsiError::system(what, self.path())(error.into()),
        }
    }
}

/// The directory at `path` below `from`, without following links.
fn step(from: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::io::retry_on_intr(|| rustix::fs::openat2(from, path, flags, Mode::empty(), resolve))
}

/// The error of a kernel without the calls that are needed.
pub(crate) fn too_old() -> CsiError {
    CsiError::Node(format!(
        "this node's kernel {} is too old for Weir's volumes; Linux 5.6 or newer is needed, and 6.9 for volumes that outlive every crash",
        crate::kernel::release()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubelet() -> (tempfile::TempDir, KubeletDir) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("kubelet")).unwrap();
        let kubelet = KubeletDir::new(&dir.path().join("kubelet")).unwrap();
        (dir, kubelet)
    }

    #[test]
    fn a_target_is_below_kubelets_directory_however_that_is_reached() {
        let (dir, kubelet) = kubelet();
        let real = dir.path().canonicalize().unwrap().join("real");
        let target = |path: &Path| kubelet.target(path.to_str().unwrap());
        for at in [dir.path().join("kubelet"), real.clone()] {
            let target = target(&at.join("pods/p//volumes/./v/mount/")).unwrap();
            assert_eq!(target.path(), real.join("pods/p/volumes/v/mount"));
        }
        for bad in ["", "..", "a/../../x", "a/.."] {
            assert!(
                target(&dir.path().join("kubelet").join(bad)).is_err(),
                "{bad}"
            );
        }
        for bad in [
            "",
            "/",
            "relative/path",
            "/etc",
            "/kubelet",
            "\0",
            &"/x".repeat(3000),
        ] {
            assert!(kubelet.target(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let (dir, kubelet) = kubelet();
        let base = dir.path().join("real");
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(base.join("pods/p")).unwrap();
        std::fs::create_dir_all(outside.join("v")).unwrap();
        std::os::unix::fs::symlink(&outside, base.join("pods/link")).unwrap();
        std::os::unix::fs::symlink("p", base.join("pods/near")).unwrap();
        std::os::unix::fs::symlink(outside.join("v"), base.join("pods/p/last")).unwrap();
        for bad in ["pods/link/v", "pods/link/new", "pods/near/v", "pods/p/last"] {
            let target = kubelet.target(base.join(bad).to_str().unwrap()).unwrap();
            let error = target.open_or_make().unwrap_err();
            assert!(matches!(error, CsiError::Invalid(_)), "{bad}: {error}");
            assert!(target.remove().is_err(), "{bad}");
        }
        assert!(outside.join("v").exists() && !outside.join("new").exists());
        let target = kubelet
            .target(base.join("pods/p/v").to_str().unwrap())
            .unwrap();
        target.open_or_make().unwrap();
        target.open_or_make().unwrap();
        assert!(base.join("pods/p/v").is_dir());
        target.remove().unwrap();
        target.remove().unwrap();
        let gone = kubelet
            .target(base.join("pods/gone/v").to_str().unwrap())
            .unwrap();
        assert!(matches!(gone.open_or_make(), Err(CsiError::NotFound(_))));
        gone.remove().unwrap();
    }
}
