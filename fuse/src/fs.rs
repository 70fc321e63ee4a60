//! The file system that the kernel talks to: a snapshot's manifest as inodes, and its blocks as bytes.
//!
//! Zero-message mounts: `open`, `opendir` and `flush` are answered with ENOSYS once, after which the kernel does
//! not ask again; names and attributes are valid for a day, since a snapshot never changes. A file whose pages the
//! kernel holds is then opened, read and closed without this process.
//!
//! A read that needs no network is answered at once; any other runs where [`WaitingReads`] says.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use rustix::fs::OFlags;
use tracing::{Instrument, Span, trace, trace_span};
use weir_client::{ReadError, Reader};
use weir_core::{EntryKind, Manifest};

use crate::again::Again;
use crate::duty::Duty;
use crate::errno::errno;
use crate::in_flight::{InFlight, Place, Read};
use crate::logged::Logged;
use crate::metrics::{ErrorLabel, FuseMetrics};
use crate::waiting::WaitingReads;

/// How long the kernel may keep names and attributes. They never change; a day bounds what a bug could do.
const TTL: Duration = Duration::from_hours(24);
/// Reads by way of its readahead that the kernel may have under way at once. Beyond this many the next one waits in the
/// kernel, of whatever file, so it must be more than there are readers that wait for an origin.
const MAX_BACKGROUND: u16 = 16 << 10;
/// With so many under way, of up to 1 MiB each, the kernel reads nothing ahead of its readers any more, and small files page
/// by page.
const CONGESTION_THRESHOLD: u16 = 512;
/// Size of a block as `stat` shows it: what a program should read at once.
const PREFERRED_IO: u32 = 1 << 20;
/// Offset of the first real entry of a directory; "." and ".." come before it.
const FIRST_CHILD: u64 = 2;

/// Owner and permissions that every entry shows.
#[derive(Clone, Debug)]
pub struct Ownership {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits of files.
    pub file_mode: u16,
    /// Permission bits of directories.
    pub dir_mode: u16,
}

/// A mounted snapshot.
pub struct SnapshotFs {
    reader: Arc<Reader>,
    manifest: Arc<Manifest>,
    ownership: Ownership,
    waiting: Arc<WaitingReads>,
    metrics: Arc<FuseMetrics>,
    logged: Arc<Logged>,
    duty: Arc<Duty>,
    /// Which requests are under way, for the server that follows this one.
    in_flight: Option<Arc<InFlight>>,
}

/// Where a request stands among those that are under way.
type Entered = Option<(Arc<InFlight>, Place)>;

impl SnapshotFs {
    /// A file system over `reader`'s snapshot, whose slow reads run where `waiting` says.
    pub fn new(
        reader: Arc<Reader>,
        ownership: Ownership,
        waiting: Arc<WaitingReads>,
        metrics: Arc<FuseMetrics>,
    ) -> Self {
        let manifest = reader.manifest().clone();
        metrics.entries.set(i64::from(manifest.len()));
        Self {
            reader,
            manifest,
            ownership,
            waiting,
            metrics,
            logged: Arc::default(),
            duty: Arc::default(),
            in_flight: None,
        }
    }

    /// Enters requests in this memory while they are under way. Gives what answers those that servers of before have left there.
    ///
    /// # Errors
    /// When it is other memory than [`memory`](crate::in_flight::memory) makes.
    pub fn share(&mut self, memory: impl AsFd) -> io::Result<Again> {
        let in_flight = Arc::new(InFlight::new(memory)?);
        self.in_flight = Some(in_flight.clone());
        Ok(Again {
            reader: self.reader.clone(),
            runtime: self.waiting.runtime().clone(),
            duty: self.duty.clone(),
            in_flight,
        })
    }

    fn enter(&self, request: &Request, read: Option<Read>) -> Entered {
        let in_flight = self.in_flight.as_ref()?;
        let place = in_flight.enter(request.unique().0, read)?;
        Some((in_flight.clone(), place))
    }

    /// Answers what needs no origin.
    fn at_once(&self, request: &Request, answer: impl FnOnce()) {
        let entered = self.enter(request, None);
        answer();
        was_answered(entered);
    }

    /// When it answers: it is told each FORGET, and what fails when it is over stays unanswered.
    pub fn duty(&self) -> Arc<Duty> {
        self.duty.clone()
    }

    fn attributes(&self, index: u32) -> FileAttr {
        let entry = self.manifest.entry(index);
        let (kind, perm, nlink, size) = match entry.kind {
            EntryKind::Directory => (FileType::Directory, self.ownership.dir_mode, 2, 4096),
            EntryKind::File => (
                FileType::RegularFile,
                self.ownership.file_mode,
                1,
                entry.size,
            ),
        };
        let time = to_time(entry.mtime_ns);
        FileAttr {
            ino: INodeNo(self.manifest.inode(index)),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink,
            uid: self.ownership.uid,
            gid: self.ownership.gid,
            rdev: 0,
            blksize: PREFERRED_IO,
            flags: 0,
        }
    }

    /// What a log may say of a read. Costs nothing unless that is turned on.
    fn span(&self, file: u32, offset: u64, end: u64) -> Span {
        let snapshot = &self.manifest.summary().snapshot;
        trace_span!(
            target: "weir::read", "read",
            dataset = snapshot.dataset.as_str(), snapshot = snapshot.version,
            file = self.manifest.path(file), offset, end,
        )
    }

    fn index(&self, inode: INodeNo) -> Result<u32, Errno> {
        self.manifest.by_inode(inode.0).ok_or(Errno::ESTALE)
    }

    fn directory(&self, inode: INodeNo) -> Result<u32, Errno> {
        let index = self.index(inode)?;
        match self.manifest.entry(index).kind {
            EntryKind::Directory => Ok(index),
            EntryKind::File => Err(Errno::ENOTDIR),
        }
    }

    /// Calls `add` for each entry of a directory from `offset` on, until it says that the reply is full. Offsets:
    /// 0 is ".", 1 is "..", then the children in order; each entry carries the offset behind it.
    fn list(
        &self,
        inode: INodeNo,
        offset: u64,
        mut add: impl FnMut(u32, u64, &str) -> bool,
    ) -> Result<(), Errno> {
        self.metrics.readdir.inc();
        let directory = self.directory(inode)?;
        let parent = self.manifest.entry(directory).parent;
        for (dot, index) in [(".", directory), ("..", parent)].iter().enumerate() {
            if offset <= dot as u64 && add(index.1, dot as u64 + 1, index.0) {
                return Ok(());
            }
        }
        let children = self.manifest.children(directory);
        let skip = u32::try_from(offset.saturating_sub(FIRST_CHILD)).unwrap_or(u32::MAX);
        let from = children.start.saturating_add(skip);
        for child in from..children.end {
            let next = u64::from(child - children.start) + FIRST_CHILD + 1;
            if add(child, next, self.manifest.entry(child).name) {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn to_time(nanoseconds: i64) -> SystemTime {
    let offset = Duration::from_nanos(nanoseconds.unsigned_abs());
    let time = if nanoseconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(offset)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(offset)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The kernel has the answer.
fn was_answered(entered: Entered) {
    if let Some((in_flight, place)) = entered {
        in_flight.answered(place);
    }
}

/// Answers a read; pieces are put together only when there are several.
fn send(reply: ReplyData, pieces: &[Bytes]) {
    match pieces {
        [] => reply.data(&[]),
        [piece] => reply.data(piece),
        pieces => reply.data(&pieces.concat()),
    }
}

impl Filesystem for SnapshotFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        // An older kernel lacks some of them; the mount works without, only slower.
        let _ = config.add_capabilities(wanted & config.capabilities());
        // The values are within the limits of both calls.
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(CONGESTION_THRESHOLD);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.metrics.lookup.inc();
        self.at_once(request, || {
            let found = self
                .directory(parent)
                .map(|parent| self.manifest.lookup(parent, name.to_str()?));
            match found {
                Err(error) => reply.error(error),
                Ok(Some(index)) => reply.entry(&TTL, &self.attributes(index), Generation(0)),
                // Inode 0 lets the kernel remember that there is no such name.
                Ok(None) => {
                    let nothing = FileAttr {
                        ino: INodeNo(0),
                        ..self.attributes(0)
                    };
                    reply.entry(&TTL, &nothing, Generation(0));
                }
            }
        });
    }

    fn forget(&self, request: &Request, _: INodeNo, _: u64) {
        self.duty.gather(request);
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.metrics.getattr.inc();
        self.at_once(request, || match self.index(inode) {
            Ok(index) => reply.attr(&TTL, &self.attributes(index)),
            Err(error) => reply.error(error),
        });
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS); // from now on the kernel opens without asking
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS); // and caches listings
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let started = Instant::now();
        self.metrics.read.inc();
        let asked = Read {
            inode: inode.0,
            offset,
            size: u64::from(size),
        };
        let entered = self.enter(request, Some(asked));
        let (index, end) = match asked.extent(&self.manifest) {
            Ok((index, end)) if offset < end => (index, end),
            Ok(_) => {
                reply.data(&[]);
                return was_answered(entered);
            }
            Err(error) => {
                reply.error(error);
                return was_answered(entered);
            }
        };
        let span = self.span(index, offset, end);
        let in_span = span.enter();
        let mut bytes = Vec::new();
        let reached = self.reader.read_cached(index, offset, end, &mut bytes);
        let is_cached = reached == end;
        if offset == 0 {
            let is_direct = flags.0 & OFlags::DIRECT.bits().cast_signed() != 0;
            self.reader.file_started(index, is_cached, is_direct);
        }
        if is_cached {
            send(reply, &bytes);
            was_answered(entered);
            trace!(target: "weir::read", "answered");
            self.metrics.read_bytes.inc_by(end - offset);
            self.metrics
                .read_duration
                .observe(started.elapsed().as_secs_f64());
            return;
        }
        let read = WaitingRead {
            reader: self.reader.clone(),
            metrics: self.metrics.clone(),
            logged: self.logged.clone(),
            duty: self.duty.clone(),
            file: index,
            range: offset..end,
            reached,
            started,
            entered,
        };
        drop(in_span);
        self.waiting.run(read.answer(bytes, reply).instrument(span));
    }

    fn readdir(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entered = self.enter(request, None);
        let listed = self.list(inode, offset, |index, next, name| {
            let kind = match self.manifest.entry(index).kind {
                EntryKind::Directory => FileType::Directory,
                EntryKind::File => FileType::RegularFile,
            };
            reply.add(INodeNo(self.manifest.inode(index)), next, kind, name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
        was_answered(entered);
    }

    fn readdirplus(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let entered = self.enter(request, None);
        let listed = self.list(inode, offset, |index, next, name| {
            let attributes = self.attributes(index);
            reply.add(attributes.ino, next, name, &TTL, &attributes, Generation(0))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
        was_answered(entered);
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        let summary = self.manifest.summary();
        let blocks = summary.bytes.div_ceil(u64::from(PREFERRED_IO));
        let entries = u64::from(self.manifest.len());
        self.at_once(request, || {
            reply.statfs(blocks, 0, 0, entries, 0, PREFERRED_IO, 255, PREFERRED_IO);
        });
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS); // there are none; the kernel need not ask again
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

/// A read that must wait for a network.
struct WaitingRead {
    reader: Arc<Reader>,
    metrics: Arc<FuseMetrics>,
    logged: Arc<Logged>,
    duty: Arc<Duty>,
    file: u32,
    range: Range<u64>,
    /// Up to where the bytes were there at once.
    reached: u64,
    started: Instant,
    /// Stays entered if it is left to the next server.
    entered: Entered,
}

impl WaitingRead {
    /// Adds the rest to the `bytes` that were there at once. Answers as soon as it is there, and then finishes the fills
    /// that the read has started.
    async fn answer(mut self, mut bytes: Vec<Bytes>, reply: ReplyData) {
        let (file, from, end) = (self.file, self.reached, self.range.end);
        let mut unfinished = Vec::new();
        let rest = self
            .reader
            .read(file, from, end, &mut bytes, &mut unfinished);
        let outcome = rest.await.map(|()| bytes);
        self.reply(reply, outcome);
        if !unfinished.is_empty() {
            // The reader may have been woken on this core, and would wait for it until the fill's next pause.
            std::thread::yield_now();
        }
        for fill in unfinished {
            fill.await;
        }
    }

    fn reply(&mut self, reply: ReplyData, outcome: Result<Vec<Bytes>, ReadError>) {
        match outcome {
            Ok(pieces) => {
                send(reply, &pieces);
                trace!(target: "weir::read", "answered");
                let length = self.range.end - self.range.start;
                self.metrics.read_bytes.inc_by(length);
            }
            // What this server has stopped, such as fills, the next one does.
            Err(_) if self.duty.is_over() => return std::mem::forget(reply),
            Err(error) => {
                self.logged.error(self.file, &error);
                let label = match error {
                    ReadError::Stale { .. } => "ESTALE",
                    ReadError::Unavailable { .. } => "EIO",
                };
                let label = ErrorLabel { error: label };
                self.metrics.errors.get_or_create(&label).inc();
                reply.error(errno(&error));
            }
        }
        was_answered(self.entered.take());
        self.metrics
            .read_duration
            .observe(self.started.elapsed().as_secs_f64());
    }
}
