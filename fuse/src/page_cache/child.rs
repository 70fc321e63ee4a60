//! The process that stores into the page cache, as its server sees it: started, given orders, and ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use weir_process::fdpass::{self, Slot};
use weir_process::spawn;

use super::memory::Memory;
use super::messages::{Done, Files, Order, Start};

/// A process that runs [`super::process::run`], until [`Self::end`].
pub(super) struct Child {
    process: Mutex<Option<process::Child>>,
    socket: OwnedFd,
    memory: Arc<Memory>,
    dropping: Mutex<Dropping>,
    dropped: Condvar,
}

/// The process is gone.
pub(super) struct Gone;

/// How far the process is with the pages that it was to drop last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dropping {
    No,
    UnderWay,
    /// The process is gone.
    Ended,
}

impl Child {
    /// Starts a process for the mount whose descriptor is `fuse`. `ended` is called once it is gone.
    pub(super) fn start(
        start: &Start,
        fuse: BorrowedFd<'_>,
        ended: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let memory = Memory::new()?;
        let (here, there) = fdpass::pair()?;
        let descriptors = [(Slot::Fuse, fuse), (Slot::Memory, memory.file())];
        fdpass::send(here.as_fd(), start, &descriptors)?;
        let mut command = spawn::own("read-ahead");
        let process = spawn::spawn(&mut command, there.as_fd())?;
        let child = Arc::new(Self {
            process: Mutex::new(Some(process)),
            socket: here,
            memory,
            dropping: Mutex::new(Dropping::No),
            dropped: Condvar::new(),
        });
        let listening = child.clone();
        std::thread::Builder::new()
            .name("read-ahead-done".to_owned())
            .spawn(move || {
                listening.take_answers();
                ended(&listening);
            })?;
        Ok(child)
    }

    /// The memory that files are handed over in.
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Has files stored, which lie in a slot that was handed over.
    pub(super) fn store(&self, files: Files) -> Result<(), Gone> {
        let slot = files.slot;
        let sent = fdpass::send(self.socket.as_fd(), &Order::Store(files), &[]);
        sent.map_err(|_| {
            self.memory.was_read(slot);
            Gone
        })
    }

    /// Has the pages of an inode dropped, and waits for that.
    pub(super) fn drop_pages(&self, inode: u64) -> Result<(), Gone> {
        self.set_dropping(Dropping::UnderWay);
        fdpass::send(self.socket.as_fd(), &Order::Drop(inode), &[]).map_err(|_| Gone)?;
        let mut dropping = self.dropping.lock();
        // Reads that this waits for have deadlines of their own.
        self.dropped
            .wait_while(&mut dropping, |now| *now == Dropping::UnderWay);
        match *dropping {
            Dropping::Ended => Err(Gone),
            Dropping::No | Dropping::UnderWay => Ok(()),
        }
    }

    /// Ends the process, so that it keeps nothing of the mount open.
    pub(super) fn end(&self) {
        let Some(mut process) = self.process.lock().take() else {
            return;
        };
        // It may have ended by itself.
        let _ = process.kill();
        // One that waits for an answer of this very server ends only with that, so nobody here waits for its end.
        let reaper = std::thread::Builder::new().name("read-ahead-end".to_owned());
        let reaped = reaper.spawn(move || process.wait().map(drop));
        if let Err(error) = reaped {
            tracing::debug!(%error, "the process that stored into the page cache stays a zombie until this one ends");
        }
    }

    /// Takes back slots until the process is gone.
    fn take_answers(&self) {
        while let Ok(Some((done, _))) = fdpass::receive(self.socket.as_fd()) {
            match done {
                Done::Read(slot) => self.memory.was_read(slot),
                Done::Dropped => self.set_dropping(Dropping::No),
            }
        }
        self.set_dropping(Dropping::Ended);
    }

    fn set_dropping(&self, now: Dropping) {
        let mut dropping = self.dropping.lock();
        if *dropping != Dropping::Ended {
            *dropping = now;
        }
        self.dropped.notify_all();
    }
}
