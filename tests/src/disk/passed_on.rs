//! The file system of a disk: each request is passed on to the directory, unless it is to fail or to hang.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::Shared;
use super::files::{Nodes, options};

/// Nothing is remembered by the kernel: what a test does to the directory is seen at once.
const TTL: Duration = Duration::ZERO;

/// The file system.
pub(super) struct PassedOn {
    nodes: Mutex<Nodes>,
    shared: Arc<Shared>,
}

impl PassedOn {
    pub(super) fn new(files: &Path, shared: Arc<Shared>) -> Self {
        Self {
            nodes: Mutex::new(Nodes::new(files)),
            shared,
        }
    }
}

macro_rules! pass_on {
    ($reply:expr, $outcome:expr, $told:expr) => {
        match $outcome {
            Ok(outcome) => $told($reply, outcome),
            Err(error) => $reply.error(Errno::from(error)),
        }
    };
}

fn entry(reply: ReplyEntry, found: io::Result<FileAttr>) {
    pass_on!(reply, found, |reply: ReplyEntry, attributes| {
        reply.entry(&TTL, &attributes, Generation(0));
    });
}

fn empty(reply: ReplyEmpty, done: io::Result<()>) {
    pass_on!(reply, done, |reply: ReplyEmpty, ()| reply.ok());
}

impl Filesystem for PassedOn {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut nodes = self.nodes.lock();
        let found = nodes.child(parent, name).and_then(|path| nodes.at(&path));
        entry(reply, found);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.nodes.lock().of(ino);
        pass_on!(reply, found, |reply: ReplyAttr, attributes| {
            reply.attr(&TTL, &attributes);
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            let nodes = self.nodes.lock();
            let path = nodes.path(ino)?;
            if let Some(mode) = mode {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
            }
            if let Some(size) = size {
                File::options().write(true).open(&path)?.set_len(size)?;
            }
            nodes.of(ino)
        };
        let outcome = self.shared.refusal().map_or_else(set, Err);
        pass_on!(reply, outcome, |reply: ReplyAttr, attributes| {
            reply.attr(&TTL, &attributes);
        });
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let mut nodes = self.nodes.lock();
        let made = nodes.child(parent, name).and_then(|path| {
            std::fs::create_dir(&path)?;
            nodes.at(&path)
        });
        entry(reply, made);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut nodes = self.nodes.lock();
        let gone = nodes.child(parent, name).and_then(|path| {
            std::fs::remove_file(&path)?;
            nodes.forget(&path);
            Ok(())
        });
        empty(reply, gone);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = || {
            let mut nodes = self.nodes.lock();
            let (old, new) = (
                nodes.child(parent, name)?,
                nodes.child(new_parent, new_name)?,
            );
            std::fs::rename(&old, &new)?;
            nodes.renamed(&old, &new);
            Ok(())
        };
        empty(reply, self.shared.refusal().map_or_else(rename, Err));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mut nodes = self.nodes.lock();
        let flags = OFlags::from_bits_retain(flags.0 as u32);
        let opened = nodes
            .path(ino)
            .and_then(|path| nodes.open(&path, &options(flags)));
        pass_on!(reply, opened, |reply: ReplyOpen, handle| {
            reply.opened(handle, FopenFlags::empty());
        });
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mut nodes = self.nodes.lock();
        let mut options = options(OFlags::from_bits_retain(flags as u32));
        options.create(true).mode(mode);
        let make = || {
            let path = nodes.child(parent, name)?;
            let handle = nodes.open(&path, &options)?;
            Ok((nodes.at(&path)?, handle))
        };
        let outcome = self.shared.refusal().map_or_else(make, Err);
        pass_on!(
            reply,
            outcome,
            |reply: ReplyCreate, (attributes, handle)| {
                reply.created(
                    &TTL,
                    &attributes,
                    Generation(0),
                    handle,
                    FopenFlags::empty(),
                );
            }
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = self.nodes.lock().file(handle);
        let read = move || {
            let mut bytes = vec![0; size as usize];
            let read = file?.read_at(&mut bytes, offset)?;
            bytes.truncate(read);
            Ok::<_, io::Error>(bytes)
        };
        let act = move |reply: ReplyData| {
            pass_on!(reply, read(), |reply: ReplyData, bytes: Vec<u8>| {
                reply.data(&bytes);
            });
        };
        self.shared
            .answer(|faults| faults.reads, reply, ReplyData::error, act);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = self.nodes.lock().file(handle);
        let data = data.to_vec();
        let act = move |reply: ReplyWrite| {
            let written = file.and_then(|file| file.write_at(&data, offset));
            pass_on!(reply, written, |reply: ReplyWrite, written| {
                reply.written(written as u32);
            });
        };
        self.shared
            .answer(|faults| faults.writes, reply, ReplyWrite::error, act);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.shared.answer(
            |faults| faults.writes,
            reply,
            ReplyEmpty::error,
            ReplyEmpty::ok,
        );
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.nodes.lock().close(handle);
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let mut nodes = self.nodes.lock();
        let mut list = || {
            let mut entries = Vec::new();
            for found in std::fs::read_dir(nodes.path(ino)?)? {
                let path = found?.path();
                let attributes = nodes.at(&path)?;
                entries.push((path, attributes));
            }
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            Ok::<_, io::Error>(entries)
        };
        pass_on!(
            reply,
            list(),
            |mut reply: ReplyDirectory, entries: Vec<(PathBuf, FileAttr)>| {
                let rest = entries.iter().enumerate().skip(offset as usize);
                for (place, (path, attributes)) in rest {
                    let name = path.file_name().unwrap_or_default();
                    if reply.add(attributes.ino, place as u64 + 1, attributes.kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
        );
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let root = self.nodes.lock().path(INodeNo::ROOT);
        let found = root.and_then(|root| {
            let root = File::open(root)?;
            Ok(rustix::fs::fstatvfs(root.as_fd())?)
        });
        pass_on!(
            reply,
            found,
            |reply: ReplyStatfs, disk: rustix::fs::StatVfs| {
                reply.statfs(
                    disk.f_blocks,
                    disk.f_bfree,
                    disk.f_bavail,
                    disk.f_files,
                    disk.f_ffree,
                    disk.f_bsize as u32,
                    disk.f_namemax as u32,
                    disk.f_frsize as u32,
                );
            }
        );
    }
}
