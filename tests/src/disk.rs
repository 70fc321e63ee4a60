//! A disk that fails on demand: a FUSE file system of the test's own process, which passes what is asked of it on to a
//! directory, or answers with an error, or does not answer.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::mount::UnmountFlags;

/// Nothing is remembered by the kernel: what a test does to the directory is seen at once.
const TTL: Duration = Duration::ZERO;

/// A file system at [`FaultyDisk::dir`], until it is dropped.
pub struct FaultyDisk {
    dir: PathBuf,
    shared: Arc<Shared>,
    /// Serves it until the last file is closed.
    _session: fuser::BackgroundSession,
}

/// What goes wrong with requests to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskFault {
    /// Nothing.
    #[default]
    None,
    /// They are answered with this error's number.
    Error(i32),
    /// They get no answer until the disk is healed.
    Hang,
}

impl DiskFault {
    /// As a disk that cannot read or write a sector.
    pub const BROKEN: Self = Self::Error(rustix::io::Errno::IO.raw_os_error());
    /// As a disk without space.
    pub const FULL: Self = Self::Error(rustix::io::Errno::NOSPC.raw_os_error());
}

#[derive(Default)]
struct Shared {
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Faults {
    reads: DiskFault,
    /// Of writes, and of whatever else changes the disk.
    writes: DiskFault,
    happened: usize,
    /// Requests that wait for the disk to be healed.
    hung: Vec<Box<dyn FnOnce() + Send>>,
}

impl FaultyDisk {
    /// A disk at `dir`, whose files are in the directory `files`. Both are made.
    pub fn new(dir: PathBuf, files: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        std::fs::create_dir_all(files)?;
        let shared = Arc::<Shared>::default();
        let passed_on = PassedOn {
            nodes: Mutex::new(Nodes::new(files)),
            shared: shared.clone(),
        };
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("weir-test-disk".to_owned())];
        let session = fuser::spawn_mount(passed_on, &dir, &config)?;
        Ok(Self {
            dir,
            shared,
            _session: session,
        })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What becomes of all reads and all writes from now on. What hung before goes on.
    pub fn fail(&self, reads: DiskFault, writes: DiskFault) {
        let hung = {
            let mut faults = self.shared.faults.lock();
            (faults.reads, faults.writes) = (reads, writes);
            std::mem::take(&mut faults.hung)
        };
        for go_on in hung {
            go_on();
        }
    }

    /// Nothing fails or hangs any more.
    pub fn heal(&self) {
        self.fail(DiskFault::None, DiskFault::None);
    }

    /// How many requests have failed or hung so far.
    pub fn happened(&self) -> usize {
        self.shared.faults.lock().happened
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.heal();
        let dir = CString::new(self.dir.as_os_str().as_bytes()).unwrap();
        // Those that still have files of it open may close them.
        let _ = rustix::mount::unmount(dir.as_c_str(), UnmountFlags::DETACH);
    }
}

impl Shared {
    /// The error of a request that changes the disk, if it has one. Such requests do not hang.
    fn refusal(&self) -> Option<io::Error> {
        let mut faults = self.faults.lock();
        let DiskFault::Error(number) = faults.writes else {
            return None;
        };
        faults.happened += 1;
        Some(io::Error::from_raw_os_error(number))
    }

    /// Does what a request to read or write asks for, or what the fault of its kind says.
    fn answer<R: Send + 'static>(
        &self,
        kind: impl FnOnce(&Faults) -> DiskFault,
        reply: R,
        refuse: impl FnOnce(R, Errno),
        act: impl FnOnce(R) + Send + 'static,
    ) {
        let mut faults = self.faults.lock();
        let fault = kind(&faults);
        if fault != DiskFault::None {
            faults.happened += 1;
        }
        match fault {
            DiskFault::None => {
                drop(faults);
                act(reply);
            }
            DiskFault::Error(number) => refuse(reply, Errno::from_i32(number)),
            DiskFault::Hang => faults.hung.push(Box::new(move || act(reply))),
        }
    }
}

/// The directory's files as the kernel knows them.
struct Nodes {
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    open: HashMap<u64, (u64, Arc<File>)>,
    last: u64,
}

impl Nodes {
    fn new(root: &Path) -> Self {
        let root_number = INodeNo::ROOT.0;
        Self {
            paths: [(root_number, root.to_owned())].into(),
            numbers: [(root.to_owned(), root_number)].into(),
            open: HashMap::new(),
            last: root_number,
        }
    }

    fn path(&self, number: INodeNo) -> io::Result<PathBuf> {
        let path = self.paths.get(&number.0).cloned();
        path.ok_or_else(|| rustix::io::Errno::NOENT.into())
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn number(&mut self, path: &Path) -> u64 {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        self.last += 1;
        self.paths.insert(self.last, path.to_owned());
        self.numbers.insert(path.to_owned(), self.last);
        self.last
    }

    /// The attributes of what is at a path.
    fn at(&mut self, path: &Path) -> io::Result<FileAttr> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(attributes(self.number(path), &metadata))
    }

    /// The attributes of a file, which may have been deleted while it is open.
    fn of(&self, number: INodeNo) -> io::Result<FileAttr> {
        let mut open = self.open.values();
        let metadata = match open.find(|(of, _)| *of == number.0) {
            Some((_, file)) => file.metadata()?,
            None => std::fs::symlink_metadata(self.path(number)?)?,
        };
        Ok(attributes(number.0, &metadata))
    }

    fn open(&mut self, path: &Path, options: &std::fs::OpenOptions) -> io::Result<FileHandle> {
        let file = Arc::new(options.open(path)?);
        let number = self.number(path);
        self.last += 1;
        self.open.insert(self.last, (number, file));
        Ok(FileHandle(self.last))
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        let open = self.open.get(&handle.0).map(|(_, file)| file.clone());
        open.ok_or_else(|| rustix::io::Errno::BADF.into())
    }

    /// The file at a path is gone, or another one now.
    fn forget(&mut self, path: &Path) {
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
fn options(flags: OFlags) -> std::fs::OpenOptions {
    let write = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
    let mut options = std::fs::OpenOptions::new();
    // What a program may only write, the kernel may have to read first.
    options.read(true).write(write);
    options.truncate(write && flags.contains(OFlags::TRUNC));
    options
}

/// The file system.
struct PassedOn {
    nodes: Mutex<Nodes>,
    shared: Arc<Shared>,
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
        self.nodes.lock().open.remove(&handle.0);
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
