//! A directory as an origin.
//!
//! Keys are paths below the directory, versions are made of mtime, size and inode. Nothing outside the directory is
//! ever read, wherever symbolic links lead ([`beneath`]): keys come over the network. The version is compared before the first
//! byte is read and again after the last one, so a file that is rewritten during a read is not mixed.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;
use tokio::task::spawn_blocking;
use weir_core::{ObjectRef, OriginId};

use crate::error::OriginError;
use crate::origin::{Fetched, Listed, Origin};
use crate::sources::SourcePolicy;

mod beneath;
mod mounts;
mod root;
mod walk;

pub(crate) use root::Root;
use root::RootError;

/// Bytes of one read: long enough for a disk, short enough that a reader starts early.
const READ_SIZE: usize = 256 << 10;

/// Files below one directory.
#[derive(Debug)]
pub(crate) struct FileOrigin {
    id: OriginId,
    place: DirectoryPlace,
}

/// The directory, and what its errors need.
#[derive(Clone, Debug)]
struct DirectoryPlace {
    root: Root,
    describe: Arc<str>,
    policy: SourcePolicy,
}

impl FileOrigin {
    /// Opens a directory, which must exist, and which this process must be allowed to read.
    pub(crate) async fn open(
        id: OriginId,
        dir: PathBuf,
        policy: &SourcePolicy,
    ) -> Result<Self, OriginError> {
        let describe: Arc<str> = format!("file://{}", dir.display()).into();
        let place = DirectoryPlace {
            root: policy.root(dir),
            describe: describe.clone(),
            policy: policy.clone(),
        };
        let opening = place.clone();
        blocking(&describe, move || opening.open().map(drop)).await?;
        Ok(Self { id, place })
    }
}

impl DirectoryPlace {
    fn open(&self) -> Result<OwnedFd, OriginError> {
        self.root.open().map_err(|error| match error {
            RootError::NotBelow => self.policy.refuse_dir(&self.describe),
            RootError::System(Errno::NOTDIR) => OriginError::config(
                self.describe.clone(),
                "it is not a directory",
                "name the directory that holds the files",
            ),
            RootError::System(errno) => directory_error(&self.describe, &errno.into()),
        })
    }
}

/// What an error of the directory itself means.
fn directory_error(describe: &Arc<str>, error: &std::io::Error) -> OriginError {
    match error.kind() {
        std::io::ErrorKind::NotFound => OriginError::BucketMissing {
            origin: describe.clone(),
        },
        std::io::ErrorKind::PermissionDenied => denied(describe.clone(), error),
        _ => OriginError::Unavailable {
            target: describe.clone(),
            detail: error.to_string(),
        },
    }
}

fn denied(target: Arc<str>, error: &std::io::Error) -> OriginError {
    OriginError::AccessDenied {
        target,
        detail: error.to_string(),
        remedy: "let the user that Weir runs as read it",
    }
}

/// The name of a file's version.
fn version(stat: &Stat) -> String {
    format!("{:x}-{:x}-{:x}", mtime_ns(stat), stat.st_size, stat.st_ino)
}

/// Last change, in nanoseconds since 1970; times beyond the year 2262 are cut.
#[allow(clippy::unnecessary_cast, clippy::cast_lossless)] // the field's type differs between platforms
fn mtime_ns(stat: &Stat) -> i64 {
    (stat.st_mtime as i64)
        .saturating_mul(1_000_000_000)
        .saturating_add(stat.st_mtime_nsec as i64)
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// One object version, for the blocking part of a read.
#[derive(Clone)]
struct Source {
    place: DirectoryPlace,
    object: ObjectRef,
}

impl Source {
    /// Opens the file, which must be inside the directory, and checks that it is the wanted version.
    fn open(&self) -> Result<File, OriginError> {
        let path = Path::new(&*self.object.key);
        let is_plain = |part| matches!(part, Component::Normal(_));
        let is_name = !path.as_os_str().is_empty() && !self.object.key.contains('\0');
        if !is_name || !path.components().all(is_plain) {
            return Err(OriginError::NotFound {
                origin: self.place.describe.clone(),
                key: self.object.key.clone(),
            });
        }
        let root = self.place.open()?;
        // Not blocking, so that a pipe that took the file's place does not hold the thread.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = beneath::open(&root, path, flags).map_err(|errno| {
            if errno == Errno::XDEV {
                tracing::warn!(directory = %self.place.describe, key = %self.object.key.escape_debug(), "a symbolic link leads out of the directory");
            }
            self.error(errno)
        })?;
        let file = File::from(file);
        self.check_version(&file)?;
        Ok(file)
    }

    fn check_version(&self, file: &File) -> Result<(), OriginError> {
        let stat = rustix::fs::fstat(file).map_err(|errno| self.error(errno))?;
        if is_file(&stat) && version(&stat) == *self.object.version {
            Ok(())
        } else {
            Err(self.changed())
        }
    }

    /// Reads the next bytes of `range`; behind the last it checks the version again.
    fn read(&self, file: &File, range: &Range<u64>) -> Result<Bytes, OriginError> {
        let len = READ_SIZE.min(usize::try_from(range.end - range.start).unwrap_or(READ_SIZE));
        let mut buffer = Vec::with_capacity(len);
        while buffer.len() < len {
            let at = range.start + buffer.len() as u64;
            match rustix::io::pread(file, spare_capacity(&mut buffer), at) {
                Ok(0) => return Err(self.changed()), // the file was cut
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(self.error(errno)),
            }
        }
        buffer.truncate(len);
        if range.start + len as u64 == range.end {
            self.check_version(file)?;
        }
        Ok(buffer.into())
    }

    fn changed(&self) -> OriginError {
        OriginError::Changed {
            origin: self.place.describe.clone(),
            key: self.object.key.clone(),
        }
    }

    fn error(&self, errno: Errno) -> OriginError {
        let target = format!("{}/{}", self.place.describe, self.object.key).into();
        match errno {
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::ISDIR
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::XDEV
            | Errno::NXIO => self.changed(),
            Errno::ACCESS | Errno::PERM => denied(target, &errno.into()),
            errno => OriginError::Unavailable {
                target,
                detail: errno.to_string(),
            },
        }
    }
}

/// Runs disk work on a thread of its own.
async fn blocking<T: Send + 'static>(
    describe: &Arc<str>,
    work: impl FnOnce() -> Result<T, OriginError> + Send + 'static,
) -> Result<T, OriginError> {
    spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(OriginError::Unavailable {
            target: describe.clone(),
            detail: "the reading thread ended".to_owned(),
        })
    })
}

#[async_trait]
impl Origin for FileOrigin {
    fn id(&self) -> OriginId {
        self.id
    }

    fn kind(&self) -> &'static str {
        "file"
    }

    fn describe(&self) -> &str {
        &self.place.describe
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Vec<Listed>, OriginError>> {
        walk::list(self.place.clone(), prefix.as_bytes().to_vec())
    }

    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError> {
        let source = Source {
            place: self.place.clone(),
            object: object.clone(),
        };
        let opening = source.clone();
        let file = blocking(&self.place.describe, move || opening.open()).await?;
        let state = (source, Arc::new(file), range.clone());
        let body = stream::try_unfold(state, |(source, file, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let describe = source.place.describe.clone();
            let (reading, open, left) = (source.clone(), file.clone(), range.clone());
            let bytes = blocking(&describe, move || reading.read(&open, &left)).await?;
            let rest = range.start + bytes.len() as u64..range.end;
            Ok(Some((bytes, (source, file, rest))))
        });
        Ok(Fetched {
            range,
            body: body.boxed(),
            digest: None,
        })
    }
}

/// A path as a key.
fn key_of(parent: &[u8], name: &std::ffi::OsStr) -> Vec<u8> {
    let mut key = Vec::with_capacity(parent.len() + name.len() + 1);
    key.extend_from_slice(parent);
    if !parent.is_empty() {
        key.push(b'/');
    }
    key.extend_from_slice(name.as_bytes());
    key
}

#[cfg(test)]
mod tests;
