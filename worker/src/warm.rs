//! Warming and evicting the blocks of a snapshot that this worker owns.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};
use weir_core::placement::domains::Owners;
use weir_core::{BLOCK_SIZE, Block, BlockKey, Manifest};

use crate::schedule;
use crate::worker::{EVICT_BATCH, ReadError, Worker};

/// Threads of one warm job.
const THREADS: usize = 2;
/// Fills of each that are under way at once, from an origin that is near (or spared) and from a slow one, and their
/// bytes: a reader's fill has to wait behind these for its part of the worker's budget.
const FILLS: usize = 16;
const FILLS_FROM_AFAR: usize = 48;
const BYTES: u64 = 16 * BLOCK_SIZE;
/// Files that are passed over before fills under way are looked at.
const LOOK_EVERY: usize = 128;

/// How far a warm job is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WarmProgress {
    /// Bytes of finished blocks.
    pub done_bytes: u64,
    /// Finished files; a file counts on the worker that owns its first block.
    pub done_files: u64,
    /// Bytes that the origin has sent for the job.
    pub fetched_bytes: u64,
    /// Bytes of finished blocks of which another worker has the first copy, and which count there.
    pub copied_bytes: u64,
    /// Files with a block that could not be fetched here; another worker counts a file with such a block again.
    pub failed_files: u64,
    /// The first failure.
    pub message: String,
}

/// The entries at `paths`, or the root when there are none; the first path that does not exist as the error.
pub fn resolve_paths(manifest: &Manifest, paths: &[String]) -> Result<Vec<u32>, String> {
    if paths.is_empty() {
        return Ok(vec![weir_core::manifest::ROOT]);
    }
    paths
        .iter()
        .map(|path| manifest.resolve(path).ok_or_else(|| path.clone()))
        .collect()
}

/// What a warm job does.
struct Job {
    worker: Arc<Worker>,
    manifest: Arc<Manifest>,
    tops: Vec<u32>,
    owners: Owners,
    progress: watch::Sender<WarmProgress>,
    /// Files of several blocks that failed already.
    failed: Mutex<HashSet<u32>>,
}

/// Fills every block below `tops` of which `worker` is to hold a copy, and reports to `progress`. Ends early when
/// nobody listens any more. A block that fails is counted and the rest goes on; an error means that a thread
/// could not be started, or panicked.
///
/// Nobody waits for these blocks, so they are filled by threads of their own, which do not interrupt those that
/// answer readers. Dropping the future stops neither them nor what they have started.
pub async fn warm(
    worker: Arc<Worker>,
    manifest: Arc<Manifest>,
    tops: Vec<u32>,
    owners: Owners,
    progress: watch::Sender<WarmProgress>,
) -> io::Result<()> {
    let job = Arc::new(Job {
        worker,
        manifest,
        tops,
        owners,
        progress,
        failed: Mutex::default(),
    });
    let threads = (0..THREADS).map(|number| {
        let (ended, end) = oneshot::channel();
        let own = job.clone();
        let thread = std::thread::Builder::new().name(format!("weir-warm-{number}"));
        thread.spawn(move || {
            schedule::in_bulk();
            let runtime = Builder::new_current_thread().enable_all().build();
            // Whoever waited may have gone away.
            let _ = ended.send(runtime.map(|runtime| runtime.block_on(own.fill(number))));
        })?;
        Ok(end)
    });
    for end in threads.collect::<io::Result<Vec<_>>>()? {
        let ended = end.await;
        ended.map_err(|_| io::Error::other("a thread that warms ended badly"))??;
    }
    Ok(())
}

impl Job {
    /// Fills one thread's share of the blocks.
    async fn fill(&self, thread: usize) {
        let own = &self.worker.config().id;
        let owned = |key: &BlockKey| self.owners.of(key).any(|w| w.id == *own);
        // What several workers hold counts on the first of them.
        let counted = |key: &BlockKey| self.owners.filler(key).is_some_and(|w| w.id == *own);
        let tops = self.tops.iter();
        let files = tops.flat_map(|top| self.manifest.files_below(*top));
        let mut fills = FuturesUnordered::new();
        let mut bytes = 0; // of these
        for (number, index) in files.enumerate() {
            let size = self.manifest.entry(index).size;
            if size == 0 && number % THREADS == thread {
                let head = Block {
                    origin: self.manifest.mount(index).origin,
                    object: self.manifest.object(index),
                    index: 0,
                };
                if counted(&head.key()) {
                    self.progress.send_modify(|p| p.done_files += 1);
                }
            }
            // The blocks of one big file are shared, too.
            let blocks = self.manifest.blocks(index);
            let shared = blocks.filter(|block| (number + block.index as usize) % THREADS == thread);
            for block in shared.filter(|block| owned(&block.key())) {
                let most = if self.worker.origins().wants_more(block.origin) {
                    FILLS_FROM_AFAR
                } else {
                    FILLS
                };
                while fills.len() >= most || bytes >= BYTES {
                    bytes -= self.report(fills.next().await);
                }
                if self.progress.is_closed() {
                    break;
                }
                bytes += u64::from(block.len());
                let counts = counted(&block.key());
                fills.push(fill(&self.worker, index, block, counts));
            }
            if number.is_multiple_of(LOOK_EVERY) {
                // Fills go on while many files are passed over that are another worker's.
                tokio::task::yield_now().await;
                while let Some(filled @ Some(_)) = fills.next().now_or_never() {
                    bytes -= self.report(filled);
                }
            }
            if self.progress.is_closed() {
                break;
            }
        }
        // Also what was started before the end was early: a reader may wait for it.
        while !fills.is_empty() {
            self.report(fills.next().await);
        }
    }

    /// Gives the bytes that are no longer under way.
    fn report(&self, filled: Option<Filled>) -> u64 {
        let Some(filled) = filled else { return 0 };
        match filled.result {
            Ok(fetched) => self.progress.send_modify(|p| {
                // Whoever holds the first copy may have been asked for it by one that is to hold another.
                p.fetched_bytes += if fetched { filled.bytes } else { 0 };
                if !filled.counts {
                    p.copied_bytes += filled.bytes;
                    return;
                }
                p.done_bytes += filled.bytes;
                p.done_files += u64::from(filled.is_first);
            }),
            Err(error) => self.progress.send_modify(|p| {
                let is_new = filled.is_only || self.failed.lock().insert(filled.file);
                p.failed_files += u64::from(is_new);
                if p.message.is_empty() {
                    p.message = error.to_string();
                }
            }),
        }
        filled.bytes
    }
}

/// What became of one block.
struct Filled {
    file: u32,
    bytes: u64,
    /// Whether the block stands for its file in the count of files.
    is_first: bool,
    /// Whether its file has no other.
    is_only: bool,
    /// Whether it counts here: other copies than the first do not.
    counts: bool,
    /// Whether it was fetched for the job.
    result: Result<bool, ReadError>,
}

async fn fill(worker: &Arc<Worker>, file: u32, block: Block, counts: bool) -> Filled {
    Filled {
        file,
        bytes: u64::from(block.len()),
        is_first: block.index == 0,
        is_only: block.object.size <= BLOCK_SIZE,
        counts,
        result: worker.warm(&block).await,
    }
}

/// Drops every block below `tops`; gives the bytes that were held.
pub fn evict(worker: &Worker, manifest: &Manifest, tops: &[u32]) -> u64 {
    let mut keys = Vec::with_capacity(EVICT_BATCH);
    let mut evicted = 0;
    for index in tops.iter().flat_map(|top| manifest.files_below(*top)) {
        for block in manifest.blocks(index) {
            keys.push(block.key());
            if keys.len() == EVICT_BATCH {
                evicted += worker.evict(&keys);
                keys.clear();
            }
        }
    }
    evicted + worker.evict(&keys)
}
