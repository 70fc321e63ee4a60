//! The listing of a directory: all regular files below it, in the order in which the file system names them.
//!
//! The walk runs on a thread of its own and stays at most [`PAGES_AHEAD`] pages ahead of its reader. Symbolic links
//! are followed as long as they stay inside the directory and do not lead back to a directory on their own path. Mounts of
//! Weir are not walked into. Directories are opened from the descriptor of the first, so that none is listed that is put
//! into the place of another meanwhile and is not below it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat, fstat, statat};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weir_core::keypath::LeftOut;

use super::{DirectoryPlace, beneath, directory_error, key_of, mounts, mtime_ns, version};
use crate::error::OriginError;
use crate::origin::Listed;

/// Files of one page.
const PAGE: usize = 1000;

/// Pages that wait for the reader.
const PAGES_AHEAD: usize = 2;

/// Deepest directory that is walked into; beyond that a path would not fit the kernel's 4096 bytes anyway.
const MAX_DEPTH: usize = 1024;

type Page = Result<Vec<Listed>, OriginError>;

/// Lists the files below a directory whose key starts with `prefix`.
pub(super) fn list(place: DirectoryPlace, prefix: Vec<u8>) -> BoxStream<'static, Page> {
    let (pages, receiver) = mpsc::channel(PAGES_AHEAD);
    // Ends when its reader goes away: sending a page fails then.
    tokio::task::spawn_blocking(move || {
        let mut walk = Walk {
            place,
            prefix,
            page: Vec::with_capacity(PAGE),
            pages,
        };
        if let Err(Stopped::Failed(error)) = walk.run() {
            let _ = walk.pages.blocking_send(Err(error));
        }
    });
    ReceiverStream::new(receiver).boxed()
}

/// A directory yet to be read.
struct Pending {
    /// Its path below the root, without symbolic links.
    inside: PathBuf,
    key: Vec<u8>,
    trail: Trail,
}

/// The directories on the way down to one, each by device and inode.
#[derive(Clone)]
struct Trail(Arc<Step>);

struct Step {
    directory: (u64, u64),
    depth: usize,
    parent: Option<Trail>,
}

impl Trail {
    fn start(directory: (u64, u64)) -> Self {
        Self(Arc::new(Step {
            directory,
            depth: 0,
            parent: None,
        }))
    }

    fn down(&self, directory: (u64, u64)) -> Self {
        Self(Arc::new(Step {
            directory,
            depth: self.0.depth + 1,
            parent: Some(self.clone()),
        }))
    }

    /// The file system of the last directory.
    fn device(&self) -> u64 {
        self.0.directory.0
    }

    fn passes(&self, directory: (u64, u64)) -> bool {
        let mut step = Some(self);
        while let Some(Trail(here)) = step {
            if here.directory == directory {
                return true;
            }
            step = here.parent.as_ref();
        }
        false
    }
}

enum Stopped {
    /// Nobody reads the pages any more.
    Unread,
    Failed(OriginError),
}

struct Walk {
    place: DirectoryPlace,
    prefix: Vec<u8>,
    page: Vec<Listed>,
    pages: mpsc::Sender<Page>,
}

impl Walk {
    fn run(&mut self) -> Result<(), Stopped> {
        let descriptor = self.place.open().map_err(Stopped::Failed)?;
        let failed =
            |errno: Errno| Stopped::Failed(directory_error(&self.place.describe, &errno.into()));
        if mounts::device(&descriptor, "").is_ok_and(mounts::is_weir) {
            return Err(Stopped::Failed(OriginError::config(
                self.place.describe.clone(),
                "a mount of Weir covers it, which cannot be listed",
                "unmount it, or name the directory that the mount shows",
            )));
        }
        let stat = fstat(&descriptor).map_err(failed)?;
        let path = beneath::real(&descriptor).map_err(failed)?;
        let root = Root { descriptor, path };
        let mut pending = vec![Pending {
            inside: PathBuf::new(),
            key: Vec::new(),
            trail: Trail::start((stat.st_dev, stat.st_ino)),
        }];
        while let Some(directory) = pending.pop() {
            let failed = |errno: Errno| root.failed(&directory.inside, errno);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = match beneath::open_plain(&root.descriptor, &directory.inside, flags) {
                Ok(opened) => opened,
                // A directory that went away during the walk, or is one no more, has no files.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !directory.key.is_empty() => {
                    continue;
                }
                Err(errno) => return Err(failed(errno)),
            };
            for entry in Dir::read_from(&opened).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name == "." || name == ".." {
                    continue;
                }
                let entry = Entry {
                    parent: &opened,
                    name,
                    kind: entry.file_type(),
                };
                if let Some(found) = self.visit(&root, &directory, &entry)? {
                    pending.push(found);
                }
            }
        }
        self.flush()
    }

    /// Lists a file; gives back a directory that is to be walked.
    fn visit(
        &mut self,
        root: &Root,
        parent: &Pending,
        entry: &Entry<'_>,
    ) -> Result<Option<Pending>, Stopped> {
        let key = key_of(&parent.key, entry.name);
        // What cannot lead to the prefix is not even looked at.
        if !(key.starts_with(&self.prefix) || leads_to(&key, &self.prefix)) {
            return Ok(None);
        }
        let mut inside = parent.inside.join(entry.name);
        let kind = match entry.kind {
            FileType::Unknown => match entry.stat() {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(root.failed(&inside, errno)),
            },
            kind => kind,
        };
        if kind == FileType::Symlink {
            match root.real(&inside) {
                Ok(target) => inside = target,
                Err(reason) => {
                    self.leave_out(key, reason)?;
                    return Ok(None);
                }
            }
        }
        if kind != FileType::RegularFile {
            let device = match kind {
                FileType::Symlink => mounts::device(&root.descriptor, &inside),
                _ => mounts::device(entry.parent, entry.name),
            };
            match device {
                Ok(device) if device == parent.trail.device() || !mounts::is_weir(device) => {}
                Ok(_) => {
                    self.leave_out(key, LeftOut::WeirMount)?;
                    return Ok(None);
                }
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(root.failed(&inside, errno)),
            }
        }
        let stat = match kind {
            FileType::Symlink => root.stat(&inside),
            _ => entry.stat(),
        };
        let stat = match stat {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(root.failed(&inside, errno)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if key.starts_with(&self.prefix) => self.add(key, &stat)?,
            FileType::RegularFile => {}
            FileType::Directory => return self.directory(parent, inside, key, &stat),
            _ => self.leave_out(key, LeftOut::SpecialFile)?,
        }
        Ok(None)
    }

    fn directory(
        &mut self,
        parent: &Pending,
        inside: PathBuf,
        key: Vec<u8>,
        stat: &Stat,
    ) -> Result<Option<Pending>, Stopped> {
        let identity = (stat.st_dev, stat.st_ino);
        if parent.trail.passes(identity) || parent.trail.0.depth >= MAX_DEPTH {
            self.leave_out(key, LeftOut::TooDeep)?;
            return Ok(None);
        }
        Ok(Some(Pending {
            inside,
            key,
            trail: parent.trail.down(identity),
        }))
    }

    fn add(&mut self, key: Vec<u8>, stat: &Stat) -> Result<(), Stopped> {
        self.push(Listed {
            key,
            size: stat.st_size as u64,
            mtime_ns: mtime_ns(stat),
            version: version(stat),
            hindrance: None,
        })
    }

    /// Lists what is no file, so that it is counted.
    fn leave_out(&mut self, key: Vec<u8>, reason: LeftOut) -> Result<(), Stopped> {
        if !key.starts_with(&self.prefix) {
            return Ok(());
        }
        self.push(Listed::left_out(key, reason))
    }

    fn push(&mut self, listed: Listed) -> Result<(), Stopped> {
        self.page.push(listed);
        if self.page.len() == PAGE {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), Stopped> {
        if self.page.is_empty() {
            return Ok(());
        }
        let page = std::mem::replace(&mut self.page, Vec::with_capacity(PAGE));
        self.pages
            .blocking_send(Ok(page))
            .map_err(|_| Stopped::Unread)
    }
}

/// The directory that is listed.
struct Root {
    descriptor: OwnedFd,
    /// Where it is.
    path: PathBuf,
}

impl Root {
    /// Where a symbolic link leads, below the root and without links; or why it is of no use.
    fn real(&self, link: &Path) -> Result<PathBuf, LeftOut> {
        match self.path.join(link).canonicalize() {
            Ok(target) => match target.strip_prefix(&self.path) {
                Ok(inside) => Ok(inside.to_owned()),
                Err(_) => Err(LeftOut::LinkOutside),
            },
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                Err(LeftOut::TooDeep)
            }
            Err(_) => Err(LeftOut::LinkBroken),
        }
    }

    fn stat(&self, inside: &Path) -> Result<Stat, Errno> {
        fstat(beneath::open_plain(&self.descriptor, inside, OFlags::PATH)?)
    }

    fn failed(&self, inside: &Path, errno: Errno) -> Stopped {
        let place: Arc<str> = format!("file://{}", self.path.join(inside).display()).into();
        Stopped::Failed(directory_error(&place, &errno.into()))
    }
}

/// Something in a directory that is being read.
struct Entry<'a> {
    parent: &'a OwnedFd,
    name: &'a OsStr,
    kind: FileType,
}

impl Entry<'_> {
    /// A symbolic link's is its own.
    fn stat(&self) -> Result<Stat, Errno> {
        statat(self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Whether keys below the directory `key` can start with `prefix`.
fn leads_to(key: &[u8], prefix: &[u8]) -> bool {
    prefix
        .strip_prefix(key)
        .is_some_and(|rest| rest.starts_with(b"/"))
}
