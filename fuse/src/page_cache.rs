//! Files that are prefetched into the kernel's page cache, so that their readers find them there and send no message.
//!
//! Threads of the server read the files of a batch into shared memory; a process of its own gives them to the kernel.
//! That process may hang or die; nobody waits for it, and it ends with its server.

mod child;
mod doubtful;
mod memory;
mod messages;
mod process;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use weir_client::{Batch, PageCache, Placed, Reader};
use weir_worker::schedule;

use self::child::Child;
use self::messages::{Files, Start, StoredFile};
use crate::waiting::WaitingReads;

pub use self::process::run;

/// Threads that read batches.
const THREADS: usize = 4;
/// Batches that wait for a thread; more are refused.
const MAX_QUEUED: usize = 512;
/// Longest wait for a free slot of the memory. A batch that finds none is dropped.
const SLOT_DEADLINE: Duration = Duration::from_secs(1);
/// A process that ended is followed by another one after this long at the soonest, and so is one that had to let go.
const PAUSE: Duration = Duration::from_secs(2);

/// The mount whose files are stored.
pub struct Mounted {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// The file that its supervisor and its server hold a lock of.
    pub lock: PathBuf,
    /// Whether this is what programs see there: another mount at the same place is none of this server's business.
    pub is_on_top: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Queues batches for the page cache, and starts the process that stores them with the first one.
pub struct PageCacheWriter {
    mount: Mounted,
    fuse: OwnedFd,
    queue: SyncSender<Batch>,
    queued: Mutex<Receiver<Batch>>,
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    child: Option<Arc<Child>>,
    ended: Option<Instant>,
}

impl PageCacheWriter {
    /// Stores for a mount whose descriptor is `fuse`.
    pub fn new(mount: Mounted, fuse: BorrowedFd<'_>) -> io::Result<Arc<Self>> {
        let (queue, queued) = sync_channel(MAX_QUEUED);
        Ok(Arc::new(Self {
            mount,
            fuse: fuse.try_clone_to_owned()?,
            queue,
            queued: Mutex::new(queued),
            running: Arc::default(),
        }))
    }

    /// Starts the threads that read what is queued, with `reader`. They live as long as the server.
    pub fn start(
        self: &Arc<Self>,
        reader: &Arc<Reader>,
        waiting: &Arc<WaitingReads>,
    ) -> io::Result<()> {
        for number in 0..THREADS {
            let (writer, reader, waiting) = (self.clone(), reader.clone(), waiting.clone());
            std::thread::Builder::new()
                .name(format!("read-ahead-{number}"))
                .spawn(move || writer.work(&reader, &waiting))?;
        }
        Ok(())
    }

    /// Ends the process, so that it keeps nothing of the mount open. A later batch starts another one after a while.
    pub fn let_go(&self) {
        self.running.lock().end();
    }

    fn work(&self, reader: &Reader, waiting: &WaitingReads) {
        // Nobody waits for what these threads do, nor for the process that one of them starts.
        schedule::in_bulk();
        loop {
            let next = self.queued.lock().recv();
            let Ok(batch) = next else { return };
            let given = self.store(&batch, reader, waiting).unwrap_or_default();
            reader.batch_ended(&batch, &given);
        }
    }

    /// Reads a batch and hands it to the process. Gives what was handed over.
    fn store(&self, batch: &Batch, reader: &Reader, waiting: &WaitingReads) -> Option<Vec<Placed>> {
        let child = self.child()?;
        let mut place = child.memory().place(SLOT_DEADLINE)?;
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
            let files = Files {
                slot: place.hand_over()?,
                directory: manifest.path(batch.directory),
                list: batch.list,
                files: files.collect(),
            };
            child.store(files).ok()
        });
        waiting.run_here(async {
            for fill in unfinished {
                fill.await;
            }
        });
        sent.flatten().map(|()| placed)
    }

    /// The process, which is started if there is none; `None` when that is too early or fails.
    fn child(&self) -> Option<Arc<Child>> {
        let mut running = self.running.lock();
        if let Some(child) = &running.child {
            return Some(child.clone());
        }
        if running.ended.is_some_and(|ended| ended.elapsed() < PAUSE) {
            return None;
        }
        running.ended = Some(Instant::now()); // if nothing can be started, the next attempt has to wait, too
        if !(self.mount.is_on_top)() {
            return None;
        }
        let start = Start {
            mountpoint: self.mount.mountpoint.clone(),
            lock: self.mount.lock.clone(),
        };
        let known = self.running.clone();
        let ended = move |child: &Arc<Child>| {
            let mut running = known.lock();
            if running
                .child
                .as_ref()
                .is_some_and(|now| Arc::ptr_eq(now, child))
            {
                running.end();
            }
        };
        let child = Child::start(&start, self.fuse.as_fd(), ended).inspect_err(
            |error| tracing::warn!(%error, "no process can be started that stores into the page cache"),
        );
        running.child = child.ok();
        running.child.clone()
    }
}

impl PageCache for PageCacheWriter {
    fn enqueue(&self, batch: Batch) -> bool {
        self.queue.try_send(batch).is_ok()
    }
}

impl Running {
    fn end(&mut self) {
        self.ended = Some(Instant::now());
        if let Some(child) = self.child.take() {
            child.end();
        }
    }
}
