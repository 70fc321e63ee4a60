//! Reading ahead into the kernel's page cache, so that readers of small files find them there and send no message.
//!
//! Threads of the server read the files of a wish into shared memory; a process of its own gives them to the kernel.
//! That process may hang or die; nobody waits for it, and it ends with its server.

mod doubt;
mod memory;
mod process;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use weir_client::{Batch, PageCache, Placed, Reader};
use weir_process::fdpass::{self, Slot};
use weir_process::spawn;
use weir_worker::schedule;

use self::memory::Memory;
use self::process::{Done, Files, Order, Start, StoredFile};
use crate::waiting::WaitingReads;

pub use self::process::run;

/// Threads that read files ahead.
const THREADS: usize = 4;
/// Wishes that wait for a thread; more are refused.
const MAX_WAITING: usize = 512;
/// Longest wait for a free slot of the memory. A batch that finds none is forgotten.
const SLOT_DEADLINE: Duration = Duration::from_secs(1);
/// A process that ended is followed by another one after this long at the soonest, and so is one that had to let go.
const PAUSE: Duration = Duration::from_secs(2);

/// The mount that is read ahead for.
pub struct Mounted {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// The file that its supervisor and its server hold a lock of.
    pub lock: PathBuf,
    /// Whether this is what programs see there: another mount at the same place is none of this server's business.
    pub is_on_top: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Takes wishes, and starts the process with the first of them.
pub struct Ahead {
    mount: Mounted,
    fuse: OwnedFd,
    wishes: SyncSender<Batch>,
    waiting: Mutex<Receiver<Batch>>,
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    process: Option<Arc<Process>>,
    ended: Option<Instant>,
}

struct Process {
    child: Mutex<Option<Child>>,
    socket: OwnedFd,
    memory: Arc<Memory>,
    dropping: Mutex<Dropping>,
    dropped: Condvar,
}

/// How far the process is with the pages that it was to drop last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dropping {
    No,
    UnderWay,
    /// The process is gone.
    Ended,
}

impl Ahead {
    /// Reads ahead for a mount whose end is `fuse`.
    pub fn new(mount: Mounted, fuse: BorrowedFd<'_>) -> io::Result<Arc<Self>> {
        let (wishes, waiting) = sync_channel(MAX_WAITING);
        Ok(Arc::new(Self {
            mount,
            fuse: fuse.try_clone_to_owned()?,
            wishes,
            waiting: Mutex::new(waiting),
            running: Arc::default(),
        }))
    }

    /// Starts the threads that make wishes of `reader` true. They live as long as the server.
    pub fn start(
        self: &Arc<Self>,
        reader: &Arc<Reader>,
        waiting: &Arc<WaitingReads>,
    ) -> io::Result<()> {
        for number in 0..THREADS {
            let (ahead, reader, waiting) = (self.clone(), reader.clone(), waiting.clone());
            std::thread::Builder::new()
                .name(format!("read-ahead-{number}"))
                .spawn(move || ahead.work(&reader, &waiting))?;
        }
        Ok(())
    }

    /// Ends the process, so that it keeps nothing of the mount open. A later wish starts another one after a while.
    pub fn let_go(&self) {
        self.running.lock().end();
    }

    fn work(&self, reader: &Reader, waiting: &WaitingReads) {
        // Nobody waits for what these threads do, nor for the process that one of them starts.
        schedule::in_bulk();
        loop {
            let wish = self.waiting.lock().recv();
            let Ok(batch) = wish else { return };
            let given = self.read(&batch, reader, waiting).unwrap_or_default();
            reader.batch_ended(&batch, &given);
        }
    }

    /// Reads a batch and hands it to the process. Gives what was handed over.
    fn read(&self, batch: &Batch, reader: &Reader, waiting: &WaitingReads) -> Option<Vec<Placed>> {
        let process = self.process()?;
        let mut place = process.memory.place(SLOT_DEADLINE)?;
        let mut unfinished = Vec::new();
        let reading = reader.read_batch(batch, place.bytes(), &mut unfinished);
        let placed = waiting.run_here(reading);
        let sent = (!placed.is_empty()).then(|| {
            let manifest = reader.manifest();
            let files = placed.iter().map(|placed| StoredFile {
                name: manifest.entry(placed.file).name.to_owned(),
                inode: manifest.inode(placed.file),
                offset: placed.offset,
                length: placed.length,
            });
            let slot = place.hand_over()?;
            let order = Order::Store(Files {
                slot,
                directory: manifest.path(batch.directory),
                list: batch.list,
                files: files.collect(),
            });
            let sent = fdpass::send(process.socket.as_fd(), &order, &[]);
            if sent.is_err() {
                process.memory.was_read(slot);
            }
            sent.ok()
        });
        waiting.run_here(async {
            for fill in unfinished {
                fill.await;
            }
        });
        sent.flatten().map(|()| placed)
    }

    /// The process, which is started if there is none; `None` when that is too early or fails.
    fn process(&self) -> Option<Arc<Process>> {
        let mut running = self.running.lock();
        if let Some(process) = &running.process {
            return Some(process.clone());
        }
        if running.ended.is_some_and(|ended| ended.elapsed() < PAUSE) {
            return None;
        }
        running.ended = Some(Instant::now()); // if nothing can be started, the next attempt has to wait, too
        if !(self.mount.is_on_top)() {
            return None;
        }
        let process = Process::start(self).inspect_err(
            |error| tracing::warn!(%error, "no process can be started that reads ahead"),
        );
        running.process = process.ok();
        running.process.clone()
    }
}

impl PageCache for Ahead {
    fn enqueue(&self, batch: Batch) -> bool {
        self.wishes.try_send(batch).is_ok()
    }
}

impl Running {
    fn end(&mut self) {
        self.ended = Some(Instant::now());
        if let Some(process) = self.process.take() {
            process.end();
        }
    }
}

impl Process {
    fn start(ahead: &Ahead) -> io::Result<Arc<Self>> {
        let memory = Memory::new()?;
        let (here, there) = fdpass::pair()?;
        let start = Start {
            mountpoint: ahead.mount.mountpoint.clone(),
            lock: ahead.mount.lock.clone(),
        };
        let descriptors = [
            (Slot::Fuse, ahead.fuse.as_fd()),
            (Slot::Memory, memory.file()),
        ];
        fdpass::send(here.as_fd(), &start, &descriptors)?;
        let mut command = spawn::own("read-ahead");
        let child = spawn::spawn(&mut command, there.as_fd())?;
        let process = Arc::new(Self {
            child: Mutex::new(Some(child)),
            socket: here,
            memory,
            dropping: Mutex::new(Dropping::No),
            dropped: Condvar::new(),
        });
        let (listening, running) = (process.clone(), ahead.running.clone());
        std::thread::Builder::new()
            .name("read-ahead-done".to_owned())
            .spawn(move || listening.hear(&running))?;
        Ok(process)
    }

    /// Takes back slots until the process is gone.
    fn hear(self: &Arc<Self>, running: &Mutex<Running>) {
        while let Ok(Some((done, _))) = fdpass::receive(self.socket.as_fd()) {
            match done {
                Done::Read(slot) => self.memory.was_read(slot),
                Done::Dropped => self.set_dropping(Dropping::No),
            }
        }
        self.set_dropping(Dropping::Ended);
        let mut running = running.lock();
        if running
            .process
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, self))
        {
            running.end();
        }
    }

    fn end(&self) {
        let Some(mut child) = self.child.lock().take() else {
            return;
        };
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
