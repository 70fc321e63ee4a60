//! What the process does that gives the kernel files before anybody reads them.
//!
//! Storing into the page cache waits while somebody else's read of the same pages is under way, and a process that waits
//! so cannot even be killed. A server must not wait so: if it were killed meanwhile, it could not end, nobody would
//! answer that read, and no other server could start. This process may wait. But it has the mount's descriptor open, and
//! while it does, the mount lives: `Process::end` sees to it that it does not wait as the last one that has it open.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};
use rustix::io::Errno;
use weir_process::descriptor;
use weir_process::fdpass::{self, Slot};
use weir_process::lock::LiveLock;

use super::memory::{SLOTS, View};
use super::messages::{Done, Files, Order, Start};
use crate::send_again;

/// Threads that store.
const THREADS: usize = 2;
/// Bytes of a directory that are asked for at once.
const DIRECTORY_BYTES: usize = 256 << 10;
/// How often a process that ends looks whether it may.
const END_POLL: Duration = Duration::from_millis(20);
/// The kernel gives its requests only to buffers that would hold the largest write, in bytes.
const MAX_REQUEST: usize = (16 << 20) + 4096;

/// `FUSE_NOTIFY_STORE` of `linux/fuse.h`, and the length of its two headers.
const STORE_CODE: u32 = 4;
const STORE_HEADER: usize = 40;
/// `FUSE_NOTIFY_INVAL_INODE`, and the length of all of it.
const DROP_CODE: u32 = 2;
const DROP_LENGTH: usize = 40;
/// Requests that want no answer: `FUSE_FORGET`, `FUSE_INTERRUPT`, `FUSE_BATCH_FORGET`.
const UNANSWERED: [u32; 3] = [2, 36, 42];

struct Process {
    mountpoint: PathBuf,
    socket: OwnedFd,
    fuse: OwnedFd,
    memory: View,
    /// The server is gone.
    ended: AtomicBool,
    /// Threads that still work.
    working: AtomicUsize,
}

/// What the process does: follows orders until the server is gone.
pub fn run() -> io::Result<()> {
    let socket = descriptor::inherited().ok_or(io::ErrorKind::NotConnected)?;
    let Some((start, mut descriptors)) = fdpass::receive::<Start>(socket.as_fd())? else {
        return Ok(());
    };
    let memory = View::new(descriptors.need(Slot::Memory)?.as_fd())?;
    let lock = LiveLock::open(&start.lock)?;
    let process = Arc::new(Process {
        mountpoint: start.mountpoint,
        socket,
        fuse: descriptors.need(Slot::Fuse)?,
        memory,
        ended: AtomicBool::new(false),
        working: AtomicUsize::new(THREADS),
    });
    let (orders, waiting) = sync_channel(SLOTS + 1);
    let waiting = Arc::new(Mutex::new(waiting));
    for number in 0..THREADS {
        let (process, waiting) = (process.clone(), waiting.clone());
        std::thread::Builder::new()
            .name(format!("read-ahead-{number}"))
            .spawn(move || {
                process.follow(&waiting);
                process.working.fetch_sub(1, Ordering::SeqCst);
            })?;
    }
    // No more than one order for each slot can be under way, and one to drop pages, so this never waits to pass one on.
    while let Ok(Some((order, _))) = fdpass::receive::<Order>(process.socket.as_fd()) {
        if orders.try_send(order).is_err() {
            break;
        }
    }
    drop(orders);
    process.end(&lock)
}

impl Process {
    fn follow(&self, waiting: &Mutex<Receiver<Order>>) {
        let mut entries = vec![MaybeUninit::uninit(); DIRECTORY_BYTES];
        loop {
            let order = {
                let waiting = waiting.lock();
                let Ok(order) = waiting.recv() else { return };
                if let Order::Store(files) = &order
                    && files.list
                {
                    // Before anybody takes the next order, which is likely to be for the same directory.
                    list(&self.mountpoint.join(&files.directory), &mut entries);
                }
                order
            };
            let done = match order {
                Order::Store(files) => {
                    self.store_all(&files);
                    Done::Read(files.slot)
                }
                Order::Drop(inode) => {
                    // One that the kernel does not know has no pages.
                    let _ = drop_pages(self.fuse.as_fd(), inode);
                    Done::Dropped
                }
            };
            // A server that does not read its answers has ended, or is about to end this process.
            let _ = fdpass::send(self.socket.as_fd(), &done, &[]);
        }
    }

    fn store_all(&self, order: &Files) {
        let Some(memory) = self.memory.slot(order.slot) else {
            return;
        };
        for file in &order.files {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let Some(bytes) = memory.get(file.offset..file.offset + file.length) else {
                return;
            };
            match store(self.fuse.as_fd(), file.inode, bytes) {
                Ok(()) => {}
                Err(Errno::NOENT) => {
                    // The kernel does not know the file, or no longer.
                    let path = self.mountpoint.join(&order.directory).join(&file.name);
                    if rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                        // What cannot be stored is read by whoever wants it.
                        let _ = store(self.fuse.as_fd(), file.inode, bytes);
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Ends once no thread waits any more. If nobody is left to answer the read that one waits for, this process
    /// fails it: to the kernel the mount would otherwise look alive, and its readers would wait for ever.
    fn end(&self, lock: &LiveLock) -> io::Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        let mut asked = false;
        while self.working.load(Ordering::SeqCst) > 0 {
            if lock.is_held() {
                std::thread::sleep(END_POLL);
                continue;
            }
            if !std::mem::replace(&mut asked, true) {
                send_again(self.fuse.as_fd());
            }
            while fdpass::readable(&self.fuse, END_POLL)? {
                refuse(self.fuse.as_fd())?;
            }
        }
        Ok(())
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

/// Puts a whole file into the page cache.
fn store(fuse: BorrowedFd<'_>, inode: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut header = [0; STORE_HEADER];
    let length = bytes.len() as u32; // at most a slot
    // fuse_out_header: length, code in place of an error, 0 in place of a request's number.
    header[..4].copy_from_slice(&(length + STORE_HEADER as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&STORE_CODE.to_ne_bytes());
    // fuse_notify_store_out: inode, offset 0, length.
    header[16..24].copy_from_slice(&inode.to_ne_bytes());
    header[32..36].copy_from_slice(&length.to_ne_bytes());
    let parts = [IoSlice::new(&header), IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| rustix::io::writev(fuse, &parts))?;
    Ok(())
}

/// Drops all of a file's content from the page cache. Waits for reads of it that are under way.
fn drop_pages(fuse: BorrowedFd<'_>, inode: u64) -> Result<(), Errno> {
    let mut message = [0; DROP_LENGTH];
    message[..4].copy_from_slice(&(DROP_LENGTH as u32).to_ne_bytes());
    message[4..8].copy_from_slice(&DROP_CODE.to_ne_bytes());
    // fuse_notify_inval_inode_out: inode, offset 0, length 0 for all of it.
    message[16..24].copy_from_slice(&inode.to_ne_bytes());
    rustix::io::retry_on_intr(|| rustix::io::write(fuse, &message))?;
    Ok(())
}

/// Answers the kernel's next request with ENOTCONN, as it does itself once a mount has nobody.
fn refuse(fuse: BorrowedFd<'_>) -> io::Result<()> {
    let mut request = vec![0; MAX_REQUEST];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(fuse, &mut request))?;
    let Some(header) = request[..length].first_chunk::<16>() else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (code, number) = (&header[4..8], &header[8..]);
    if UNANSWERED
        .iter()
        .any(|unanswered| code == unanswered.to_ne_bytes())
    {
        return Ok(());
    }
    let mut answer = [0; 16];
    answer[..4].copy_from_slice(&16_u32.to_ne_bytes());
    answer[4..8].copy_from_slice(&(-Errno::NOTCONN.raw_os_error()).to_ne_bytes());
    answer[8..].copy_from_slice(number);
    // One that was interrupted needs no answer any more.
    let _ = rustix::io::retry_on_intr(|| rustix::io::write(fuse, &answer));
    Ok(())
}
