//! Opening files below a directory, and nothing else.
//!
//! Whatever is renamed or linked meanwhile: paths are resolved by the kernel from the descriptor of the directory, and a
//! symbolic link that leads out of it ends that. A check of the path before or after would come too soon or too late.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// How often the kernel may find that a directory was moved while it resolved a path.
const ATTEMPTS: u32 = 8;
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens `path`, whose symbolic links are followed as long as they stay below `root`; else the error is `XDEV`.
pub(super) fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match resolve(root, path, flags, beneath) {
        // A link with an absolute target may lead to where it started. What is elsewhere is not told.
        Err(Errno::XDEV) => match real_inside(root, path) {
            Ok(Some(inside)) => open_plain(root, &inside, flags),
            _ => Err(Errno::XDEV),
        },
        // Old systems have no openat2, and some containers do not let it through.
        Err(Errno::NOSYS | Errno::PERM) => {
            let inside = real_inside(root, path)?.ok_or(Errno::XDEV)?;
            open_plain(root, &inside, flags)
        }
        opened => opened,
    }
}

/// Opens `path`, in which a symbolic link is an error.
pub(super) fn open_plain(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let plain = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match resolve(root, path, flags, plain) {
        Err(Errno::NOSYS | Errno::PERM) => walk(root.as_fd(), path, flags),
        opened => opened,
    }
}

/// The path without symbolic links of what `path` names, below `root`; `None` when it is not below.
pub(super) fn real_inside(root: &OwnedFd, path: &Path) -> Result<Option<PathBuf>, Errno> {
    let base = real(root)?;
    let target = base
        .join(path)
        .canonicalize()
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(target.strip_prefix(&base).ok().map(Path::to_owned))
}

/// Where an open directory is now.
pub(super) fn real(root: &OwnedFd) -> Result<PathBuf, Errno> {
    std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd()))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn resolve(
    root: &OwnedFd,
    path: &Path,
    flags: OFlags,
    how: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = named(path);
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS {
        opened = openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how);
        if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    opened
}

/// The same, one component after the other.
fn walk(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let last = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut at: Option<OwnedFd> = None;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else {
            return Err(Errno::XDEV);
        };
        let here = at.as_ref().map_or(root, AsFd::as_fd);
        let flags = if parts.peek().is_some() {
            DIRECTORY | OFlags::NOFOLLOW
        } else {
            last
        };
        at = Some(openat(here, name, flags, Mode::empty())?);
    }
    match at {
        Some(opened) => Ok(opened),
        None => openat(root, ".", last, Mode::empty()),
    }
}

/// An empty path names the directory itself.
fn named(path: &Path) -> &Path {
    if path.as_os_str().as_bytes().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn directory(path: &Path) -> OwnedFd {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap()
    }

    fn read(opened: OwnedFd) -> String {
        let mut text = String::new();
        std::fs::File::from(opened)
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    #[test]
    fn what_is_below_is_opened_and_what_is_not_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "inside").unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        symlink("b/file", root.join("a/relative")).unwrap();
        symlink(root.join("a/b"), root.join("absolute")).unwrap();
        symlink("../../secret", root.join("a/out")).unwrap();
        symlink(dir.path().join("secret"), root.join("far")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let root = directory(&root);
        for path in ["a/b/file", "a/relative", "absolute/file"] {
            let opened = open(&root, Path::new(path), OFlags::RDONLY).unwrap();
            assert_eq!(read(opened), "inside", "{path}");
        }
        for path in [
            "a/out",
            "far",
            "up/secret",
            "../secret",
            "a/../../secret",
            "/etc/passwd",
            "/",
        ] {
            let refused = open(&root, Path::new(path), OFlags::RDONLY).unwrap_err();
            assert_eq!(refused, Errno::XDEV, "{path}");
        }
        assert_eq!(
            open(&root, Path::new("loop"), OFlags::RDONLY).unwrap_err(),
            Errno::LOOP
        );
        assert_eq!(
            open(&root, Path::new("none"), OFlags::RDONLY).unwrap_err(),
            Errno::NOENT
        );
        for path in ["a/relative", "absolute/file", "up/secret"] {
            assert!(
                open_plain(&root, Path::new(path), OFlags::RDONLY).is_err(),
                "{path}"
            );
            assert!(
                walk(root.as_fd(), Path::new(path), OFlags::RDONLY).is_err(),
                "{path}"
            );
        }
        for opened in [
            open_plain(&root, Path::new("a/b/file"), OFlags::RDONLY),
            walk(root.as_fd(), Path::new("a/b/file"), OFlags::RDONLY),
        ] {
            assert_eq!(read(opened.unwrap()), "inside");
        }
        assert!(walk(root.as_fd(), Path::new(""), DIRECTORY).is_ok());
        assert!(walk(root.as_fd(), Path::new("../secret"), OFlags::RDONLY).is_err());
    }

    #[test]
    fn a_directory_that_becomes_a_link_under_the_reader_is_never_followed_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for place in ["root/set", "root/other", "outside"] {
            std::fs::create_dir_all(dir.path().join(place)).unwrap();
        }
        std::fs::write(root.join("set/file"), "inside").unwrap();
        std::fs::write(dir.path().join("outside/file"), "outside").unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let opened = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::fs::rename(root.join("set"), root.join("kept")).unwrap();
                    symlink(dir.path().join("outside"), root.join("set")).unwrap();
                    std::fs::remove_file(root.join("set")).unwrap();
                    std::fs::rename(root.join("kept"), root.join("set")).unwrap();
                }
            });
            let root = directory(&root);
            let mut opened = 0;
            for _ in 0..5000 {
                if let Ok(file) = open(&root, Path::new("set/file"), OFlags::RDONLY) {
                    assert_eq!(read(file), "inside");
                    opened += 1;
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            opened
        });
        assert!(opened > 0, "it was never there");
    }
}
