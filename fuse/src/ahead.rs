//! Reading ahead through the kernel: a process of its own looks names up and reads small files through the mount, so
//! that their readers find them in the kernel's caches and send no message at all.
//!
//! It is a process because nothing that serves a mount may look into it: a server that was killed while one of its
//! own threads waits for the mount could not end, and so not be replaced. This process may hang or die like any other
//! reader; nobody waits for it. It ends with the pipe that its orders come through.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{Advice, CWD, Mode, OFlags, RawDir};
use weir_client::ReadAhead;

use crate::spawn;

/// Orders that wait for the process; more are dropped.
const MAX_WAITING: usize = 8192;
/// A process that ended is followed by another one after this long at the soonest, and so is one that had to let go.
const PAUSE: Duration = Duration::from_secs(2);
/// Threads of the process, and files that each has read at once. Together fewer than the kernel's limit of requests
/// in the background, so that a reader's own requests find a place.
const THREADS: usize = 4;
const BATCH: usize = 16;
/// Bytes of a directory that are asked for at once.
const DIRECTORY_BYTES: usize = 256 << 10;
/// Threads that are told apart from the process's own, at most.
const MAX_THREADS_KNOWN: usize = 4096;
/// Longest path of an order, in bytes; what is longer was garbled.
const MAX_PATH: u64 = 64 << 10;

/// The first byte of an order; the path follows, and a zero ends it.
const LIST: u8 = b'l';
const READ: u8 = b'r';

/// Gives orders to the process, which is started by the first of them.
pub struct Ahead {
    mountpoint: PathBuf,
    /// The mount's device number: another mount at the same place is none of this server's business.
    device: String,
    orders: Mutex<Option<SyncSender<Vec<u8>>>>,
    process: Arc<Mutex<Process>>,
}

#[derive(Default)]
struct Process {
    child: Option<Child>,
    ended: Option<Instant>,
    /// Threads that have read something, and whether they are the child's, or were the last one's: what a process that
    /// was killed had asked for may still lie in the kernel's queue.
    threads: HashMap<u32, bool>,
}

impl Ahead {
    /// Reads ahead in the mount with this device number at `mountpoint`.
    pub fn new(mountpoint: PathBuf, device: String) -> Arc<Self> {
        Arc::new(Self {
            mountpoint,
            device,
            orders: Mutex::default(),
            process: Arc::default(),
        })
    }

    /// Ends the process, so that it keeps nothing of the mount open. A later order starts another one after a while.
    pub fn let_go(&self) {
        self.orders.lock().take();
        self.process.lock().end();
    }

    fn order(&self, kind: u8, path: &str) -> bool {
        let mut order = Vec::with_capacity(path.len() + 2);
        order.push(kind);
        order.extend_from_slice(path.as_bytes());
        order.push(0);
        let mut orders = self.orders.lock();
        if orders.is_none() {
            *orders = self.start();
        }
        let sent = orders.as_ref().map(|orders| orders.try_send(order));
        if let Some(Err(TrySendError::Disconnected(_))) = sent {
            *orders = None; // the process has ended
        }
        matches!(sent, Some(Ok(())))
    }

    /// Starts the process and the thread that writes to it; `None` when that is too early or fails.
    fn start(&self) -> Option<SyncSender<Vec<u8>>> {
        let mut process = self.process.lock();
        if process.ended.is_some_and(|ended| ended.elapsed() < PAUSE) {
            return None;
        }
        process.end(); // until something was started, the next attempt has to wait, too
        let top = crate::mount::table::at(&self.mountpoint).ok().flatten();
        if top.is_none_or(|top| top.device != self.device) {
            return None;
        }
        let pipe = process.start(&self.mountpoint).inspect_err(
            |error| tracing::warn!(%error, "no process can be started that reads ahead"),
        );
        let (orders, waiting) = sync_channel(MAX_WAITING);
        let pipe = pipe.ok()?;
        let running = self.process.clone();
        std::thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(move || {
                if let Err(error) = pass_on(&waiting, pipe) {
                    tracing::debug!(%error, "the process that reads ahead ended");
                    running.lock().end();
                }
            })
            .ok()?;
        Some(orders)
    }
}

impl ReadAhead for Ahead {
    fn list(&self, directory: &str) {
        self.order(LIST, directory);
    }

    fn is_own(&self, thread: u32) -> bool {
        let Process { child, threads, .. } = &mut *self.process.lock();
        if let Some(known) = threads.get(&thread) {
            return *known;
        }
        let Some(child) = child else { return false };
        if threads.len() >= MAX_THREADS_KNOWN {
            threads.clear();
        }
        let own = tasks(child).join(thread.to_string()).exists();
        threads.insert(thread, own);
        own
    }

    fn read(&self, file: &str) -> bool {
        self.order(READ, file)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.process.lock().end();
    }
}

impl Process {
    fn start(&mut self, mountpoint: &Path) -> io::Result<ChildStdin> {
        let mut command = Command::new(spawn::OWN_EXE);
        command
            .arg("read-ahead")
            .arg(mountpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        spawn::name(&mut command);
        self.threads.clear();
        let mut child = command.spawn()?;
        let pipe = child.stdin.take();
        self.child = Some(child);
        pipe.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn end(&mut self) {
        self.ended = Some(Instant::now());
        let Some(mut child) = self.child.take() else {
            return;
        };
        let threads = std::fs::read_dir(tasks(&child)).into_iter().flatten();
        let threads = threads.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
        self.threads.extend(threads.map(|thread| (thread, true)));
        // It may have ended by itself.
        let _ = child.kill();
        // One that waits for an answer of this very server ends only with that, so nobody here waits for its end.
        let reaper = std::thread::Builder::new().name("read-ahead-end".to_owned());
        let reaped = reaper.spawn(move || child.wait().map(drop));
        if let Err(error) = reaped {
            tracing::debug!(%error, "the process that read ahead stays a zombie until this one ends");
        }
    }
}

/// Where a process's threads are listed.
fn tasks(process: &Child) -> PathBuf {
    format!("/proc/{}/task", process.id()).into()
}

/// Writes orders to the pipe until nobody gives any more.
fn pass_on(orders: &Receiver<Vec<u8>>, pipe: ChildStdin) -> io::Result<()> {
    let mut pipe = BufWriter::new(pipe);
    while let Ok(order) = orders.recv() {
        pipe.write_all(&order)?;
        loop {
            match orders.try_recv() {
                Ok(order) => pipe.write_all(&order)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        pipe.flush()?;
    }
    Ok(())
}

/// What the process does: follows the orders of standard input in the mount at `mountpoint` until they end. What
/// cannot be read is left to its readers, who are told.
pub fn run(mountpoint: &Path) -> io::Result<()> {
    let (orders, waiting) = sync_channel(MAX_WAITING);
    let waiting = Arc::new(Mutex::new(waiting));
    for number in 0..THREADS {
        let waiting = waiting.clone();
        std::thread::Builder::new()
            .name(format!("read-ahead-{number}"))
            .spawn(move || follow(&waiting))?;
    }
    let mut input = BufReader::new(io::stdin());
    loop {
        let mut order = Vec::new();
        io::Read::take(&mut input, MAX_PATH).read_until(0, &mut order)?;
        if order.pop() != Some(0) || order.is_empty() {
            return Ok(()); // the threads end with the process, wherever they wait
        }
        let path = mountpoint.join(std::ffi::OsStr::from_bytes(&order[1..]));
        let order = match order[0] {
            LIST => Order::List(path),
            _ => Order::Read(path),
        };
        // Never waits, so that the end of the pipe is seen at once. An order that finds no place is dropped.
        if let Err(TrySendError::Disconnected(_)) = orders.try_send(order) {
            return Ok(());
        }
    }
}

enum Order {
    List(PathBuf),
    Read(PathBuf),
}

fn follow(waiting: &Mutex<Receiver<Order>>) {
    let mut entries = vec![MaybeUninit::uninit(); DIRECTORY_BYTES];
    loop {
        let mut files = Vec::with_capacity(BATCH);
        {
            let waiting = waiting.lock();
            let Ok(first) = waiting.recv() else { return };
            let rest = std::iter::from_fn(|| waiting.try_recv().ok());
            for order in std::iter::once(first).chain(rest.take(BATCH - 1)) {
                match order {
                    Order::Read(path) => files.push(path),
                    Order::List(path) => list(&path, &mut entries),
                }
            }
        }
        read(&files);
    }
}

/// Reads a directory for its side effect: the kernel keeps the names and attributes.
fn list(path: &Path, entries: &mut [MaybeUninit<u8>]) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(directory) = rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        let mut names = RawDir::new(directory, entries);
        while let Some(Ok(_)) = names.next() {}
    }
}

/// Has the kernel read files, all at once, and waits for the last of them: the others were asked for before.
fn read(paths: &[PathBuf]) {
    let mut last = None;
    for path in paths {
        let Ok(file) = File::open(path) else { continue };
        if rustix::fs::fadvise(&file, 0, None, Advice::WillNeed).is_ok() {
            last = Some(file);
        }
    }
    if let Some(file) = last
        && let Ok(metadata) = file.metadata()
    {
        let _ = file.read_at(&mut [0], metadata.len().saturating_sub(1));
    }
}
