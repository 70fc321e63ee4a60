//! Prefetching: small files and blocks that are fetched before their readers ask for them.
//!
//! # The problem
//!
//! A program reads one file after the other and waits for each. An object store takes 10 ms and more to answer, so four
//! readers of files of 100 KiB get 36 MB/s from a service that could give them many times as much if it were asked for many
//! files at once. From SSD the wait is short, but each small file still costs its reader a message to this process and
//! two wake-ups. Both go away if the bytes are there first. Which bytes that will be is a guess, and a wrong one takes
//! bandwidth, memory and room in the cache from blocks that somebody needs.
//!
//! # What is observed
//!
//! Only what the kernel asks this mount for. Reads that the page cache answers are not seen.
//!
//! - Small files, of at most 1 MiB (`directories.rs`): how many of a directory's files were asked for. Their order is not
//!   looked at. A training job reads every file of a directory, shuffled; whoever has read some will likely read the rest.
//! - Big files (`sequential.rs`): which blocks, of 4 MiB, a reader goes through in order. Up to four readers of one file are
//!   told apart.
//!
//! # What decides
//!
//! A directory has *credit*: the number of files that may be prefetched. The second file that is read of it earns 16, the
//! next ones 32, 64, and then 128 each. So a reader of everything soon has the whole directory ahead of it, and a reader of
//! three files causes 48 reads at most. It stops by itself where there is nothing to gain: a file that the page cache has is
//! never asked for, and one that is in a tier anyway earns nothing. A directory is gone through once. If files of it are
//! asked for again, the kernel has dropped them, and it starts over.
//!
//! A big file has a *window* for each reader. It opens by one block when the reader goes on to a second block, doubles with
//! each further one, and closes with a jump. A random reader therefore causes no prefetch. The window grows to 8 blocks, or
//! as many as the worker's memory for this holds, and to 16 in a cluster, where several owners share the work: one reader of
//! big files from 30 ms away got 547 MB/s with windows of that depth, and 388 MB/s before.
//!
//! # Where it goes
//!
//! The mount chooses one target for small files (`target.rs`):
//!
//! - **The page cache**, if it can hold the whole snapshot with room to spare. The files of a directory are read in batches
//!   (`batch.rs`): what lies together on SSD with one read of the disk, and what other workers have with one exchange with
//!   each of them. The batch is handed to the kernel, and its readers send no message at all. With an empty page cache and
//!   blocks on SSD, four readers got 0.55x of the native file system's rate when each asked for its own file, 0.91x when
//!   the files were prefetched one by one, and 1.31x in batches. In a cluster it was 0.80x with a request for each file, and
//!   is 1.04x with one for each batch.
//! - **The tiers** of the worker, or of the blocks' owners, if it cannot: files that nobody has read yet would push each
//!   other out of the page cache. Big files' blocks always go there. Two conditions hold, which each worker checks for itself:
//!   its tier has an eighth of its space free, because nothing that is cached is given up for a guess; and the origin is
//!   slow, because from one that is as near as the disk there is nothing to gain. A guess about a near origin that went wrong
//!   cost 2.0 s instead of 1.7 s of CPU time for each GiB.
//!   So do those of who reads past the page cache (`O_DIRECT`): what is put there it asks for all the same.
//! - **Nowhere** (`--read-ahead off`).
//!
//! Files for the page cache are also requested of the tiers where the origin is slow. So whoever reads the batch later finds
//! its blocks there, and does not wait for the origin once with each batch.
//!
//! With all of this four readers get 644 MB/s from the service that answers 10 ms late, 18 times as much as above.
//!
//! # What it costs
//!
//! Each read that reaches the mount takes one lock and a look into two tables. Who asks for blocks ahead never waits for the
//! answers: tasks of the runtime do. A refused request costs an exchange, so after 16 refusals in a row, or 128 answers that
//! the block is there already, nothing is asked for during 250 ms (`requests.rs`). What was prefetched and not read is lost
//! work; `weir_client_prefetched_bytes_total`, `weir_client_prefetch_used_bytes_total` and
//! `weir_client_prefetch_repeated_bytes_total` tell how much it is.
//!
//! # What bounds it
//!
//! | what | limit |
//! |---|---|
//! | tasks that fetch into tiers at once | [`MOST_TASKS`]; each goes through a directory or a window |
//! | memory for blocks on their way | the worker's part of `--fill-memory` for blocks that nobody waits for |
//! | batches that wait for the page cache | the target's queue; a batch that does not fit costs no credit |
//! | a batch | 128 files and [`BATCH_BYTES`] |
//! | directories, big files, requests that are remembered | 100,000, 1024, 100,000 |
//! | a pass through a directory | 4096 entries at once; names are listed ahead for at most [`MAX_LISTED`] |

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use roaring::RoaringBitmap;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use weir_core::{BLOCK_SIZE, Block, Manifest};

use crate::metrics::ClientMetrics;
use crate::source::BlockSource;

mod batch;
mod directories;
mod requests;
mod sequential;
mod target;

use directories::{Directories, SMALL};
use requests::{BlockAt, Requests};
use sequential::Sequential;

pub(crate) use batch::read_batch;
#[cfg(test)]
pub(crate) use directories::test_manifest;
pub use target::{BATCH_BYTES, Batch, PageCache, Placed, ReadAheadTarget};

/// Directories with more entries are not listed ahead: the kernel would have to remember all their names.
const MAX_LISTED: u32 = 10_000;
/// Tasks that wait for places of blocks that nobody waits for. Beyond that blocks are read when they are asked for.
const MOST_TASKS: usize = 64;

/// Prefetches for the readers of one snapshot.
pub(crate) struct Prefetcher<S> {
    manifest: Arc<Manifest>,
    /// Where small files go, if not into the tiers.
    page_cache: Option<Arc<dyn PageCache>>,
    source: S,
    runtime: Handle,
    tasks: Arc<Semaphore>,
    state: Mutex<State>,
    metrics: Arc<ClientMetrics>,
}

struct State {
    directories: Directories,
    sequential: Sequential,
    /// Blocks that the tiers were asked to fetch.
    requests: Requests,
    /// Files on their way to the page cache.
    queued: RoaringBitmap,
    /// Files that the page cache was given.
    delivered: RoaringBitmap,
}

impl<S: BlockSource> Prefetcher<S> {
    /// A prefetcher that works on the runtime it is made in.
    pub(crate) fn new(
        manifest: Arc<Manifest>,
        page_cache: Option<Arc<dyn PageCache>>,
        source: S,
        metrics: Arc<ClientMetrics>,
    ) -> Arc<Self> {
        let state = State {
            directories: Directories::default(),
            sequential: Sequential::new(source.prefetch_window()),
            requests: Requests::default(),
            queued: RoaringBitmap::new(),
            delivered: RoaringBitmap::new(),
        };
        Arc::new(Self {
            manifest,
            page_cache,
            source,
            runtime: Handle::current(),
            tasks: Arc::new(Semaphore::new(MOST_TASKS)),
            state: Mutex::new(state),
            metrics,
        })
    }

    /// A reader asks for the beginning of a file, which was cached or not, and may read past the page cache.
    pub(crate) fn file_started(self: &Arc<Self>, file: u32, cached: bool, direct: bool) {
        let entry = self.manifest.entry(file);
        if entry.size > SMALL {
            return;
        }
        if let Some(kernel) = self.page_cache.as_ref().filter(|_| !direct) {
            return self.fill_page_cache(&**kernel, file);
        }
        let start = {
            let mut state = self.state.lock();
            if state.requests.read((file, 0)) {
                self.metrics.prefetch_used_bytes.inc_by(entry.size);
            } else if cached {
                return; // nothing to gain: the directory may be all there
            }
            self.may_ask(&state.requests)
                && state.directories.earn(entry.parent, file, &self.manifest)
        };
        if start && !self.in_background(self.clone().fetch_directory(entry.parent)) {
            self.state.lock().directories.give_up(entry.parent);
        }
    }

    /// A reader asks for a part of a block of a big file.
    pub(crate) fn block_read(self: &Arc<Self>, file: u32, index: u32) {
        let entry = self.manifest.entry(file);
        if entry.size <= SMALL {
            return;
        }
        let blocks = u32::try_from(entry.size.div_ceil(BLOCK_SIZE)).unwrap_or(u32::MAX);
        let (used, ahead) = {
            let mut state = self.state.lock();
            let State {
                sequential,
                requests,
                ..
            } = &mut *state;
            let used = requests.read((file, index));
            let ahead = sequential.step(file, index, blocks, || self.may_ask(requests));
            (used, ahead)
        };
        if used {
            let length = (entry.size - u64::from(index) * BLOCK_SIZE).min(BLOCK_SIZE);
            self.metrics.prefetch_used_bytes.inc_by(length);
        }
        if !ahead.is_empty() {
            let prefetcher = self.clone();
            self.in_background(async move { prefetcher.fetch_blocks(file, ahead).await });
        }
    }

    /// Whether there is a point in asking for blocks.
    fn may_ask(&self, requests: &Requests) -> bool {
        requests.may_ask() && self.source.may_prefetch()
    }

    /// Runs a task that waits for places, unless too many do. In a cluster each keeps a connection busy.
    fn in_background(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let place = self.tasks.clone().try_acquire_owned();
        let is_free = place.is_ok();
        if is_free {
            self.runtime.spawn(async move {
                task.await;
                drop(place);
            });
        }
        is_free
    }

    /// Fetches blocks of a big file, one after the other as there is a place for them.
    async fn fetch_blocks(&self, file: u32, ahead: Range<u32>) {
        let blocks = self.manifest.blocks(file).skip(ahead.start as usize);
        for block in blocks.take(ahead.len()) {
            self.fetch((file, block.index), &block).await;
        }
    }

    /// Fetches a block into a tier, if that is worth it.
    async fn fetch(&self, at: BlockAt, block: &Block) {
        {
            let requests = &mut self.state.lock().requests;
            if !self.may_ask(requests) || !requests.add(at) {
                return;
            }
        }
        let answer = self.source.prefetch(block).await;
        let outcome = self.state.lock().requests.answered(at, answer);
        let length = u64::from(block.len());
        if outcome.fetched {
            self.metrics.prefetched_bytes.inc_by(length);
        }
        if outcome.used {
            self.metrics.prefetch_used_bytes.inc_by(length);
        }
    }

    /// Queues for the page cache what a file that a reader had to ask for has earned its directory.
    fn fill_page_cache(self: &Arc<Self>, kernel: &dyn PageCache, file: u32) {
        let entry = self.manifest.entry(file);
        let children = self.manifest.children(entry.parent);
        let mut new = Vec::new();
        let mut state = self.state.lock();
        if state.queued.remove(file) {
            return; // the reader was faster
        }
        if state.delivered.remove(file) {
            self.metrics.prefetch_repeated_bytes.inc_by(entry.size);
        }
        if !state.directories.earn(entry.parent, file, &self.manifest) {
            return;
        }
        let State {
            directories,
            queued,
            ..
        } = &mut *state;
        let Some(directory) = directories.get_mut(entry.parent) else {
            return;
        };
        loop {
            let before = directory.clone();
            let is_new = directory.is_new(&children);
            let taken = |next| next == file || queued.contains(next);
            let files = directory.batch(&children, &self.manifest, taken);
            if files.is_empty() {
                break;
            }
            let batch = Batch {
                directory: entry.parent,
                list: is_new && children.end - children.start <= MAX_LISTED,
                files: files.clone(),
            };
            if !kernel.enqueue(batch) {
                *directory = before;
                break;
            }
            queued.extend(&files);
            new.extend(files);
        }
        directory.pause();
        let may_ask = self.may_ask(&state.requests);
        drop(state);
        if may_ask && !new.is_empty() {
            self.fetch_queued(new);
        }
    }

    /// Has files fetched into the tiers, so that whoever puts them into the page cache later, a batch at once, does
    /// not wait for a slow origin with each batch.
    fn fetch_queued(self: &Arc<Self>, files: Vec<u32>) {
        let prefetcher = self.clone();
        self.in_background(async move {
            let manifest = &prefetcher.manifest;
            for (file, block) in files
                .iter()
                .flat_map(|&file| manifest.blocks(file).map(move |block| (file, block)))
            {
                {
                    let state = prefetcher.state.lock();
                    if !prefetcher.may_ask(&state.requests) {
                        return;
                    }
                    if !state.queued.contains(file) {
                        continue; // a reader was faster, or the page cache has it
                    }
                }
                // It counts as prefetched when the page cache has it.
                let answer = prefetcher.source.prefetch(&block).await;
                prefetcher.state.lock().requests.learn(answer);
            }
        });
    }

    /// The files of a batch that no reader has come for since it was queued.
    pub(crate) fn still_wanted(&self, batch: &Batch) -> Vec<u32> {
        let state = self.state.lock();
        let files = batch.files.iter().copied();
        files.filter(|file| state.queued.contains(*file)).collect()
    }

    /// The kernel was given these files of a batch.
    pub(crate) fn batch_ended(&self, batch: &Batch, given: &[Placed]) {
        let bytes: usize = given.iter().map(|placed| placed.length).sum();
        self.metrics.prefetched_bytes.inc_by(bytes as u64);
        let mut state = self.state.lock();
        for &file in &batch.files {
            state.queued.remove(file);
        }
        state
            .delivered
            .extend(given.iter().map(|placed| placed.file));
    }

    /// Fetches files of a directory for as long as it has credit.
    async fn fetch_directory(self: Arc<Self>, directory: u32) {
        while let Some(file) = self.next_of(directory) {
            let Some(block) = self.manifest.blocks(file).next() else {
                continue;
            };
            self.fetch((file, 0), &block).await;
        }
    }

    /// The next file to fetch; `None` ends the directory's task.
    fn next_of(&self, directory: u32) -> Option<u32> {
        let children = self.manifest.children(directory);
        let mut state = self.state.lock();
        let may_ask = self.may_ask(&state.requests);
        let known = state.directories.get_mut(directory)?;
        if !may_ask {
            known.pause();
            return None;
        }
        known.next(&children, &self.manifest)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use weir_core::manifest::ROOT;

    use super::directories::{AHEAD, test_manifest};
    use super::*;
    use crate::source::fake::FakeSource;

    /// Notes what is queued, and takes so many batches.
    struct Kernel {
        most: usize,
        queued: Mutex<Vec<Batch>>,
    }

    impl PageCache for Kernel {
        fn enqueue(&self, batch: Batch) -> bool {
            let mut queued = self.queued.lock();
            let fits = queued.len() < self.most;
            if fits {
                queued.push(batch);
            }
            fits
        }
    }

    fn prefetcher(kernel: Option<Arc<Kernel>>) -> (FakeSource, Arc<Prefetcher<FakeSource>>) {
        let source = FakeSource::default();
        let metrics = ClientMetrics::register(&mut Registry::default());
        let kernel = kernel.map(|kernel| -> Arc<dyn PageCache> { kernel });
        let manifest = Arc::new(test_manifest());
        let prefetcher = Prefetcher::new(manifest, kernel, source.clone(), metrics);
        (source, prefetcher)
    }

    fn kernel(most: usize) -> Arc<Kernel> {
        Arc::new(Kernel {
            most,
            queued: Mutex::default(),
        })
    }

    #[tokio::test]
    async fn a_directory_is_queued_once_and_again_when_the_kernel_has_dropped_it() {
        let kernel = kernel(100);
        let (_, prefetcher) = prefetcher(Some(kernel.clone()));
        let file = |name: &str| prefetcher.manifest.resolve(name).unwrap();
        prefetcher.file_started(file("f4"), true, false);
        assert!(
            kernel.queued.lock().is_empty(),
            "one file alone says nothing"
        );
        prefetcher.file_started(file("f5"), true, false);
        let queued = std::mem::take(&mut *kernel.queued.lock());
        let names = ["f6", "f7", "f8", "f9", "f0", "f1", "f2", "f3", "f4"];
        let batch = Batch {
            directory: ROOT,
            list: true,
            files: names.map(file).to_vec(),
        };
        assert_eq!(queued, std::slice::from_ref(&batch));
        let given = batch.files.iter().map(|&file| Placed {
            file,
            offset: 0,
            length: 100,
        });
        prefetcher.batch_ended(&batch, &given.collect::<Vec<_>>());
        assert_eq!(prefetcher.metrics.prefetched_bytes.get(), 900);
        for name in ["f6", "f7"] {
            prefetcher.file_started(file(name), true, false); // it was dropped
        }
        assert!(kernel.queued.lock()[0].files.len() > 5);
        assert_eq!(prefetcher.metrics.prefetch_repeated_bytes.get(), 200);
    }

    #[tokio::test]
    async fn a_batch_that_is_not_taken_costs_no_credit() {
        let kernel = kernel(0);
        let (_, prefetcher) = prefetcher(Some(kernel.clone()));
        for name in ["f1", "f2"] {
            prefetcher.file_started(prefetcher.manifest.resolve(name).unwrap(), false, false);
        }
        assert!(kernel.queued.lock().is_empty());
        let state = prefetcher.state.lock();
        assert!(state.queued.is_empty());
        assert_eq!(state.directories.credit(ROOT), AHEAD);
    }

    /// Lets tasks go on until there is nothing left to do for them.
    async fn settle(prefetcher: &Prefetcher<FakeSource>) {
        while prefetcher.tasks.available_permits() < MOST_TASKS {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn small_files_are_requested_of_the_tiers_and_count_as_used_when_they_are_read() {
        let (source, prefetcher) = prefetcher(None);
        let file = |name: &str| prefetcher.manifest.resolve(name).unwrap();
        prefetcher.file_started(file("f0"), false, false);
        prefetcher.file_started(file("f1"), false, false);
        settle(&prefetcher).await;
        let names = ["f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f0"];
        let requested = names.map(|name| (name.to_owned(), 0));
        assert_eq!(*source.prefetched.lock(), requested);
        assert_eq!(prefetcher.metrics.prefetched_bytes.get(), 1000);
        prefetcher.file_started(file("f2"), true, false);
        prefetcher.file_started(file("f2"), true, false);
        assert_eq!(prefetcher.metrics.prefetch_used_bytes.get(), 100);
    }

    #[tokio::test]
    async fn nothing_is_put_into_the_page_cache_for_who_reads_past_it() {
        let kernel = kernel(100);
        let (source, prefetcher) = prefetcher(Some(kernel.clone()));
        for name in ["f0", "f1", "f2"] {
            prefetcher.file_started(prefetcher.manifest.resolve(name).unwrap(), false, true);
        }
        settle(&prefetcher).await;
        assert!(kernel.queued.lock().is_empty());
        assert_eq!(source.prefetched.lock().len(), 10);
    }

    #[tokio::test]
    async fn cached_files_earn_nothing_for_the_tiers() {
        let (source, prefetcher) = prefetcher(None);
        for name in ["f0", "f1", "f2"] {
            prefetcher.file_started(prefetcher.manifest.resolve(name).unwrap(), true, false);
        }
        settle(&prefetcher).await;
        assert!(source.prefetched.lock().is_empty());
    }

    #[tokio::test]
    async fn blocks_of_a_big_file_are_requested_ahead_of_a_reader_in_order() {
        let (source, prefetcher) = prefetcher(None);
        let file = prefetcher.manifest.resolve("big").unwrap();
        for block in [0, 1, 2, 3] {
            prefetcher.block_read(file, block);
            settle(&prefetcher).await;
        }
        let requested: Vec<_> = source.prefetched.lock().iter().map(|(_, b)| *b).collect();
        assert_eq!(requested, [2, 3, 4, 5, 6, 7]);
        assert_eq!(
            prefetcher.metrics.prefetch_used_bytes.get(),
            2 * BLOCK_SIZE,
            "blocks 2 and 3 were read"
        );
    }
}
