//! The listing of a directory: all regular files below it, in the order in which the file system names them.
//!
//! The walk runs on a thread of its own and stays at most [`PAGES_AHEAD`] pages ahead of its reader. Symbolic links
//! are followed as long as they stay inside the directory and do not lead back to a directory on their own path. Mounts of
//! Weir are not walked into.

use std::fs::DirEntry;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::fs::{AtFlags, CWD, FileType, Stat, statat};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weir_core::keypath::LeftOut;

use super::{directory_error, is_file, key_of, mounts, mtime_ns, version};
use crate::error::OriginError;
use crate::origin::{Hindrance, Listed};

/// Files of one page.
const PAGE: usize = 1000;

/// Pages that wait for the reader.
const PAGES_AHEAD: usize = 2;

/// Deepest directory that is walked into; beyond that a path would not fit the kernel's 4096 bytes anyway.
const MAX_DEPTH: usize = 1024;

type Page = Result<Vec<Listed>, OriginError>;

/// Lists the files below `root` whose key starts with `prefix`.
pub(super) fn list(root: PathBuf, describe: Arc<str>, prefix: Vec<u8>) -> BoxStream<'static, Page> {
    let (pages, receiver) = mpsc::channel(PAGES_AHEAD);
    // Ends when its reader goes away: sending a page fails then.
    tokio::task::spawn_blocking(move || {
        let mut walk = Walk {
            describe,
            prefix,
            page: Vec::with_capacity(PAGE),
            pages,
        };
        if let Err(Stopped::Failed(error)) = walk.run(&root) {
            let _ = walk.pages.blocking_send(Err(error));
        }
    });
    ReceiverStream::new(receiver).boxed()
}

/// A directory yet to be read.
struct Pending {
    path: PathBuf,
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
    describe: Arc<str>,
    prefix: Vec<u8>,
    page: Vec<Listed>,
    pages: mpsc::Sender<Page>,
}

impl Walk {
    fn run(&mut self, root: &Path) -> Result<(), Stopped> {
        let failed =
            |error: std::io::Error| Stopped::Failed(directory_error(&self.describe, &error));
        let real_root = root.canonicalize().map_err(failed)?;
        if mounts::device(&real_root).is_ok_and(mounts::is_weir) {
            return Err(Stopped::Failed(OriginError::config(
                self.describe.clone(),
                "a mount of Weir covers it, which cannot be listed",
                "unmount it, or name the directory that the mount shows",
            )));
        }
        let metadata = real_root.metadata().map_err(failed)?;
        let mut pending = vec![Pending {
            path: real_root.clone(),
            key: Vec::new(),
            trail: Trail::start((metadata.dev(), metadata.ino())),
        }];
        while let Some(directory) = pending.pop() {
            let entries = match std::fs::read_dir(&directory.path) {
                Ok(entries) => entries,
                // A directory that went away during the walk has no files.
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound
                        && !directory.key.is_empty() =>
                {
                    continue;
                }
                Err(error) => return Err(failed_at(&directory.path, &error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| failed_at(&directory.path, &error))?;
                if let Some(found) = self.visit(&real_root, &directory, &entry)? {
                    pending.push(found);
                }
            }
        }
        self.flush()
    }

    /// Lists a file; gives back a directory that is to be walked.
    fn visit(
        &mut self,
        root: &Path,
        parent: &Pending,
        entry: &DirEntry,
    ) -> Result<Option<Pending>, Stopped> {
        let key = key_of(&parent.key, &entry.file_name());
        // What cannot lead to the prefix is not even looked at.
        if !(key.starts_with(&self.prefix) || leads_to(&key, &self.prefix)) {
            return Ok(None);
        }
        let path = entry.path();
        let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let kind = match entry.file_type() {
            Ok(kind) => kind,
            Err(error) if gone(&error) => return Ok(None),
            Err(error) => return Err(failed_at(&path, &error)),
        };
        if kind.is_symlink() {
            let reason = match path.canonicalize() {
                Ok(target) if target.starts_with(root) => None,
                Ok(_) => Some(LeftOut::LinkOutside),
                Err(error) if is_loop(&error) => Some(LeftOut::TooDeep),
                Err(_) => Some(LeftOut::LinkBroken),
            };
            if let Some(reason) = reason {
                self.leave_out(key, reason)?;
                return Ok(None);
            }
        }
        if !kind.is_file() {
            match mounts::device(&path) {
                Ok(device) if device == parent.trail.device() || !mounts::is_weir(device) => {}
                Ok(_) => {
                    self.leave_out(key, LeftOut::WeirMount)?;
                    return Ok(None);
                }
                Err(rustix::io::Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(failed_at(&path, &errno.into())),
            }
        }
        let stat = match statat(CWD, &path, AtFlags::empty()) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed_at(&path, &errno.into())),
        };
        if is_file(&stat) {
            if key.starts_with(&self.prefix) {
                self.add(key, &stat)?;
            }
        } else if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return self.directory(parent, path, key, &stat);
        } else {
            self.leave_out(key, LeftOut::SpecialFile)?;
        }
        Ok(None)
    }

    fn directory(
        &mut self,
        parent: &Pending,
        path: PathBuf,
        key: Vec<u8>,
        stat: &Stat,
    ) -> Result<Option<Pending>, Stopped> {
        let identity = (stat.st_dev, stat.st_ino);
        if parent.trail.passes(identity) || parent.trail.0.depth >= MAX_DEPTH {
            self.leave_out(key, LeftOut::TooDeep)?;
            return Ok(None);
        }
        Ok(Some(Pending {
            path,
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
        self.push(Listed {
            key,
            size: 0,
            mtime_ns: 0,
            version: String::new(),
            hindrance: Some(Hindrance::LeftOut(reason)),
        })
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

fn is_loop(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn failed_at(path: &Path, error: &std::io::Error) -> Stopped {
    let place: Arc<str> = format!("file://{}", path.display()).into();
    Stopped::Failed(directory_error(&place, error))
}

/// Whether keys below the directory `key` can start with `prefix`.
fn leads_to(key: &[u8], prefix: &[u8]) -> bool {
    prefix
        .strip_prefix(key)
        .is_some_and(|rest| rest.starts_with(b"/"))
}
