//! The files of the directory that a disk passes its requests on to, by their numbers.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use fuser::{FileAttr, FileHandle, FileType, INodeNo};
use rustix::fs::OFlags;

/// The files as the kernel knows them.
pub(super) struct Nodes {
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    open: HashMap<u64, (u64, Arc<File>)>,
    last: u64,
}

impl Nodes {
    pub(super) fn new(root: &Path) -> Self {
        let root_number = INodeNo::ROOT.0;
        Self {
            paths: [(root_number, root.to_owned())].into(),
            numbers: [(root.to_owned(), root_number)].into(),
            open: HashMap::new(),
            last: root_number,
        }
    }

    pub(super) fn path(&self, number: INodeNo) -> io::Result<PathBuf> {
        let path = self.paths.get(&number.0).cloned();
        path.ok_or_else(|| rustix::io::Errno::NOENT.into())
    }

    pub(super) fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    pub(super) fn number(&mut self, path: &Path) -> u64 {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        self.last += 1;
        self.paths.insert(self.last, path.to_owned());
        self.numbers.insert(path.to_owned(), self.last);
        self.last
    }

    /// The attributes of what is at a path.
    pub(super) fn at(&mut self, path: &Path) -> io::Result<FileAttr> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(attributes(self.number(path), &metadata))
    }

    /// The attributes of a file, which may have been deleted while it is open.
    pub(super) fn of(&self, number: INodeNo) -> io::Result<FileAttr> {
        let mut open = self.open.values();
        let metadata = match open.find(|(of, _)| *of == number.0) {
            Some((_, file)) => file.metadata()?,
            None => std::fs::symlink_metadata(self.path(number)?)?,
        };
        Ok(attributes(number.0, &metadata))
    }

    pub(super) fn open(
        &mut self,
        path: &Path,
        options: &std::fs::OpenOptions,
    ) -> io::Result<FileHandle> {
        let file = Arc::new(options.open(path)?);
        let number = self.number(path);
        self.last += 1;
        self.open.insert(self.last, (number, file));
        Ok(FileHandle(self.last))
    }

    pub(super) fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        let open = self.open.get(&handle.0).map(|(_, file)| file.clone());
        open.ok_or_else(|| rustix::io::Errno::BADF.into())
    }

    /// Closes a file.
    pub(super) fn close(&mut self, handle: FileHandle) {
        self.open.remove(&handle.0);
    }

    /// A file has another path, and what was there is gone.
    pub(super) fn renamed(&mut self, old: &Path, new: &Path) {
        if let Some(number) = self.numbers.remove(old) {
            self.paths.insert(number, new.to_owned());
            self.numbers.insert(new.to_owned(), number);
        }
    }

    /// The file at a path is gone.
    pub(super) fn forget(&mut self, path: &Path) {
        self.numbers.remove(path);
    }
}

fn attributes(number: u64, metadata: &Metadata) -> FileAttr {
    let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
    let kind = if metadata.is_dir() {
        FileType::Directory
    } else {
        FileType::RegularFile
    };
    FileAttr {
        ino: INodeNo(number),
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind,
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Options to open a file of the directory with, as a program opened the one of the disk. Reads and writes of any
/// alignment work.
pub(super) fn options(flags: OFlags) -> std::fs::OpenOptions {
    let write = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
    let mut options = std::fs::OpenOptions::new();
    // What a program may only write, the kernel may have to read first.
    options.read(true).write(write);
    options.truncate(write && flags.contains(OFlags::TRUNC));
    options
}
