//! Blocks ahead of their readers.
//!
//! Whoever reads some small files of a directory, in order or shuffled, is likely to read the others too, and many
//! small files at once are had far sooner than one after the other. So each file that is read earns its directory
//! some files ahead: a reader of everything soon finds everything, a reader of a few files causes few reads.
//!
//! A big file's blocks are fetched ahead of a sequential reader (`sequential.rs`), where the origin is slow.
//!
//! Where the page cache can hold the snapshot, small files go there: a reader then has them without a message to this
//! process. Elsewhere they are filled into the tiers, as big files' blocks are (`ahead.rs`): then only into free space,
//! since nothing that is cached is given up for a guess, and only when the origin is slow to answer. Where it is as
//! near as the disk, a file read back from there is no sooner to be had.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use roaring::RoaringBitmap;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use weir_core::{BLOCK_SIZE, Block, EntryKind, Manifest};

use crate::ahead::{BlockAt, Fetcher, Wishes};
use crate::metrics::ClientMetrics;
use crate::readahead::{BATCH_BYTES, Batch, PageCache, Placed};
use crate::sequential::Sequential;

/// Larger files are not read ahead as a whole: their bytes take longer than the wait for them.
const SMALL: u64 = 1 << 20;
/// Files of a directory that are read before others are read ahead.
const FIRST: u32 = 2;
/// Files that the next one earns, doubled so many times with each after it: whoever goes on means more of it.
const AHEAD: u32 = 16;
const MOST_DOUBLINGS: u32 = 3;
/// Files of a batch for the page cache, at most.
const BATCH_FILES: usize = 128;
/// Entries of a directory that are looked at in one go, for one that is small enough.
const MAX_LOOKED_AT: u32 = 4096;
/// Directories with more entries are not listed ahead: the kernel would have to remember all their names.
const MAX_LISTED: u32 = 10_000;
/// Tasks that wait for places of blocks that nobody waits for. Beyond that blocks are read when they are asked for.
const MOST_WAITING: usize = 64;
/// Directories that are kept track of. Beyond that the rest is read as it is asked for.
const MAX_DIRECTORIES: usize = 100_000;

/// Reads ahead for the readers of one snapshot.
pub(crate) struct Prefetcher {
    manifest: Arc<Manifest>,
    /// Where small files go, if not into the tiers.
    page_cache: Option<Arc<dyn PageCache>>,
    runtime: Handle,
    waiting: Arc<Semaphore>,
    state: Mutex<State>,
    metrics: Arc<ClientMetrics>,
}

struct State {
    directories: HashMap<u32, Directory>,
    sequential: Sequential,
    /// Blocks that are to be fetched into the tiers.
    wishes: Wishes,
    /// Files that the page cache is to be given.
    asked: RoaringBitmap,
    /// Files that the page cache was given.
    delivered: RoaringBitmap,
}

/// How far a directory is.
#[derive(Clone)]
struct Directory {
    read: u32,
    /// Files that may be filled ahead now.
    credit: u32,
    /// The next entry to look at; goes around once.
    next: u32,
    left: u32,
    running: bool,
}

impl Prefetcher {
    /// A prefetcher that works on the runtime it is made in.
    pub(crate) fn new(
        manifest: Arc<Manifest>,
        page_cache: Option<Arc<dyn PageCache>>,
        fetcher: Fetcher,
        metrics: Arc<ClientMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            manifest,
            page_cache,
            runtime: Handle::current(),
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
            state: Mutex::new(State::new(fetcher)),
            metrics,
        })
    }

    /// Somebody has begun to read a file, which was cached or not.
    pub(crate) fn reading(self: &Arc<Self>, file: u32, cached: bool) {
        let entry = self.manifest.entry(file);
        if entry.size > SMALL {
            return;
        }
        if let Some(kernel) = &self.page_cache {
            return self.wish(&**kernel, file);
        }
        let start = {
            let mut state = self.state.lock();
            if state.wishes.read((file, 0)) {
                self.metrics.prefetch_used_bytes.inc_by(entry.size);
            } else if cached {
                return; // nothing to gain: the directory may be all there
            }
            state.wishes.may_be_heard() && state.earn(entry.parent, file, &self.manifest)
        };
        if start && !self.in_background(self.clone().fill_directory(entry.parent)) {
            self.state.lock().give_up(entry.parent);
        }
    }

    /// A reader reads in a block of a big file.
    pub(crate) fn reading_block(self: &Arc<Self>, file: u32, index: u32) {
        let entry = self.manifest.entry(file);
        if entry.size <= SMALL {
            return;
        }
        let blocks = u32::try_from(entry.size.div_ceil(BLOCK_SIZE)).unwrap_or(u32::MAX);
        let (used, ahead) = {
            let mut state = self.state.lock();
            let State {
                sequential, wishes, ..
            } = &mut *state;
            let used = wishes.read((file, index));
            let ahead = sequential.step(file, index, blocks, || wishes.may_be_heard());
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

    /// Runs a task that waits for places, unless too many do. In a cluster each keeps a connection busy.
    fn in_background(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let place = self.waiting.clone().try_acquire_owned();
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
        let fetcher = {
            let wishes = &mut self.state.lock().wishes;
            if !wishes.may_be_heard() || !wishes.open(at) {
                return;
            }
            wishes.fetcher()
        };
        let outcome = fetcher.fetch(block).await;
        let answered = self.state.lock().wishes.answered(at, outcome);
        let length = u64::from(block.len());
        if answered.fetched {
            self.metrics.prefetched_bytes.inc_by(length);
        }
        if answered.used {
            self.metrics.prefetch_used_bytes.inc_by(length);
        }
    }

    /// Wishes what a file that a reader had to ask for has earned its directory into the page cache.
    fn wish(self: &Arc<Self>, kernel: &dyn PageCache, file: u32) {
        let entry = self.manifest.entry(file);
        let children = self.manifest.children(entry.parent);
        let mut wished = Vec::new();
        let mut state = self.state.lock();
        if state.asked.remove(file) {
            return; // the reader was faster
        }
        if state.delivered.remove(file) {
            self.metrics.prefetch_repeated_bytes.inc_by(entry.size);
        }
        if !state.earn(entry.parent, file, &self.manifest) {
            return;
        }
        let State {
            directories, asked, ..
        } = &mut *state;
        let Some(directory) = directories.get_mut(&entry.parent) else {
            return;
        };
        loop {
            let before = directory.clone();
            let is_new = directory.is_new(&children);
            let taken = |next| next == file || asked.contains(next);
            let files = directory.batch(&children, &self.manifest, taken);
            if files.is_empty() {
                break;
            }
            let batch = Batch {
                directory: entry.parent,
                list: is_new && children.end - children.start <= MAX_LISTED,
                files: files.clone(),
            };
            if !kernel.wish(batch) {
                *directory = before;
                break;
            }
            asked.extend(&files);
            wished.extend(files);
        }
        directory.running = false;
        let wanted = state.wishes.may_be_heard();
        drop(state);
        if wanted && !wished.is_empty() {
            self.fetch_wished(wished);
        }
    }

    /// Has files fetched into the tiers, so that whoever puts them into the page cache later, a batch at once, does
    /// not wait for a slow origin with each batch.
    fn fetch_wished(self: &Arc<Self>, files: Vec<u32>) {
        let prefetcher = self.clone();
        self.in_background(async move {
            let fetcher = prefetcher.state.lock().wishes.fetcher();
            let manifest = &prefetcher.manifest;
            for (file, block) in files
                .iter()
                .flat_map(|&file| manifest.blocks(file).map(move |block| (file, block)))
            {
                {
                    let state = prefetcher.state.lock();
                    if !state.wishes.may_be_heard() {
                        return;
                    }
                    if !state.asked.contains(file) {
                        continue; // a reader was faster, or the page cache has it
                    }
                }
                // It counts as read ahead when the page cache has it.
                let outcome = fetcher.fetch(&block).await;
                prefetcher.state.lock().wishes.heard(outcome);
            }
        });
    }

    /// The files of a batch that no reader has come for since it was asked for.
    pub(crate) fn still_asked(&self, batch: &Batch) -> Vec<u32> {
        let state = self.state.lock();
        let files = batch.files.iter().copied();
        files.filter(|file| state.asked.contains(*file)).collect()
    }

    /// The kernel was given so many files of a batch.
    pub(crate) fn ended(&self, batch: &Batch, given: &[Placed]) {
        let bytes: usize = given.iter().map(|placed| placed.length).sum();
        self.metrics.prefetched_bytes.inc_by(bytes as u64);
        let mut state = self.state.lock();
        for &file in &batch.files {
            state.asked.remove(file);
        }
        state
            .delivered
            .extend(given.iter().map(|placed| placed.file));
    }

    /// Fills files of a directory for as long as it has credit.
    async fn fill_directory(self: Arc<Self>, directory: u32) {
        while let Some(file) = self.next(directory) {
            let Some(block) = self.manifest.blocks(file).next() else {
                continue;
            };
            self.fetch((file, 0), &block).await;
        }
    }

    /// The next file to fill; `None` ends the directory's task.
    fn next(&self, directory: u32) -> Option<u32> {
        let children = self.manifest.children(directory);
        let mut state = self.state.lock();
        let wanted = state.wishes.may_be_heard();
        let known = state.directories.get_mut(&directory)?;
        known.next(&children, &self.manifest, wanted)
    }
}

impl State {
    fn new(fetcher: Fetcher) -> Self {
        Self {
            directories: HashMap::new(),
            sequential: Sequential::new(fetcher.window()),
            wishes: Wishes::new(fetcher),
            asked: RoaringBitmap::new(),
            delivered: RoaringBitmap::new(),
        }
    }

    /// Ends a directory's task; what it has earned is lost.
    fn give_up(&mut self, directory: u32) {
        if let Some(directory) = self.directories.get_mut(&directory) {
            directory.credit = 0;
            directory.running = false;
        }
    }

    /// Counts a file that was read; true when somebody must begin to use what the directory has earned.
    fn earn(&mut self, directory: u32, file: u32, manifest: &Manifest) -> bool {
        if self.directories.len() >= MAX_DIRECTORIES && !self.directories.contains_key(&directory) {
            return false;
        }
        let known = self.directories.entry(directory).or_insert_with(|| {
            let children = manifest.children(directory);
            Directory {
                read: 0,
                credit: 0,
                next: file + 1,
                left: children.end - children.start,
                running: false,
            }
        });
        if known.left == 0 {
            // It was gone around, and this file had to be read all the same: what was read ahead is being dropped.
            let children = manifest.children(directory);
            known.left = children.end - children.start;
            known.read = 0;
        }
        known.read += 1;
        if known.read < FIRST {
            return false;
        }
        let doublings = (known.read - FIRST).min(MOST_DOUBLINGS);
        known.credit = known.credit.saturating_add(AHEAD << doublings);
        !std::mem::replace(&mut known.running, true)
    }
}

impl Directory {
    /// Whether nothing has been read ahead in this round.
    fn is_new(&self, children: &Range<u32>) -> bool {
        self.left == children.end - children.start
    }

    /// The next files that go together, without those that are `taken` already: they cost nothing.
    fn batch(
        &mut self,
        children: &Range<u32>,
        manifest: &Manifest,
        taken: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let (mut files, mut bytes) = (Vec::new(), 0);
        while files.len() < BATCH_FILES {
            let before = self.clone();
            let Some(next) = self.next(children, manifest, true) else {
                break;
            };
            if taken(next) {
                self.credit += 1;
                continue;
            }
            bytes += manifest.entry(next).size as usize;
            if bytes > BATCH_BYTES {
                *self = before; // the next batch begins with it
                break;
            }
            files.push(next);
        }
        files
    }

    /// The next small file of the directory's children, while there is room and credit.
    fn next(&mut self, children: &Range<u32>, manifest: &Manifest, room: bool) -> Option<u32> {
        for _ in 0..MAX_LOOKED_AT {
            if !room || self.credit == 0 || self.left == 0 {
                break;
            }
            let at = if self.next < children.end {
                self.next
            } else {
                children.start
            };
            self.next = at + 1;
            self.left -= 1;
            let entry = manifest.entry(at);
            if entry.kind == EntryKind::File && (1..=SMALL).contains(&entry.size) {
                self.credit -= 1;
                return Some(at);
            }
        }
        self.running = false;
        None
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use weir_core::manifest::{Mount, ROOT};
    use weir_core::{ManifestBuilder, OriginId, SnapshotId};

    use super::*;

    /// Ten small files, one that is empty, one that is large, and a directory.
    fn manifest() -> Manifest {
        let mut builder = ManifestBuilder::new();
        let mount = Mount {
            origin: OriginId::of_location("s3://bucket"),
            spec: String::new(),
            prefix: String::new(),
            path: String::new(),
        };
        let mount = builder.add_mount(mount).unwrap();
        let mut add = |key: &str, size| builder.add(mount, key.as_bytes(), size, 0, "v").unwrap();
        for number in 0..10 {
            add(&format!("f{number}"), 100);
        }
        add("empty", 0);
        add("large", SMALL + 1);
        add("z/file", 100);
        let snapshot = SnapshotId {
            dataset: "set".parse().unwrap(),
            version: 1,
        };
        builder.build(snapshot, 0, None).unwrap()
    }

    #[tokio::test]
    async fn a_directory_goes_around_once_from_behind_the_first_file_and_skips_what_is_not_small() {
        let manifest = manifest();
        let mut state = State::new(Fetcher::to_nobody());
        let file = manifest.resolve("f4").unwrap();
        let children = manifest.children(ROOT);
        assert!(
            !state.earn(ROOT, file, &manifest),
            "one file alone says nothing"
        );
        assert!(state.earn(ROOT, file, &manifest));
        assert!(!state.earn(ROOT, file, &manifest), "one task is enough");
        let directory = state.directories.get_mut(&ROOT).unwrap();
        assert_eq!(directory.credit, AHEAD + 2 * AHEAD);
        let names = std::iter::from_fn(|| directory.next(&children, &manifest, true))
            .map(|file| manifest.entry(file).name.to_owned());
        let names: Vec<String> = names.collect();
        assert_eq!(
            names,
            ["f5", "f6", "f7", "f8", "f9", "f0", "f1", "f2", "f3", "f4"]
        );
        assert!(!directory.running);
        assert!(
            !state.earn(ROOT, file, &manifest),
            "another round needs as many files as the first"
        );
    }

    #[tokio::test]
    async fn credit_and_room_bound_what_is_filled_ahead() {
        let manifest = manifest();
        let mut state = State::new(Fetcher::to_nobody());
        let children = manifest.children(ROOT);
        state.earn(ROOT, 0, &manifest);
        state.earn(ROOT, 0, &manifest);
        let directory = state.directories.get_mut(&ROOT).unwrap();
        directory.credit = 3;
        assert_eq!(directory.next(&children, &manifest, false), None);
        directory.running = true;
        let files = std::iter::from_fn(|| directory.next(&children, &manifest, true));
        assert_eq!(files.count(), 3);
    }

    /// Notes what is wished, and takes so many batches.
    struct Kernel {
        most: usize,
        wished: Mutex<Vec<Batch>>,
    }

    impl PageCache for Kernel {
        fn wish(&self, batch: Batch) -> bool {
            let mut wished = self.wished.lock();
            let fits = wished.len() < self.most;
            if fits {
                wished.push(batch);
            }
            fits
        }
    }

    fn prefetcher(most: usize) -> (Arc<Kernel>, Arc<Prefetcher>) {
        let kernel = Arc::new(Kernel {
            most,
            wished: Mutex::default(),
        });
        let mut registry = Registry::default();
        let metrics = ClientMetrics::register(&mut registry);
        let fetcher = Fetcher::to_nobody();
        let manifest = Arc::new(manifest());
        let prefetcher = Prefetcher::new(manifest, Some(kernel.clone()), fetcher, metrics);
        (kernel, prefetcher)
    }

    #[tokio::test]
    async fn a_directory_is_wished_for_once_and_again_when_the_kernel_has_dropped_it() {
        let (kernel, prefetcher) = prefetcher(100);
        let file = |name: &str| prefetcher.manifest.resolve(name).unwrap();
        prefetcher.reading(file("f4"), true);
        assert!(
            kernel.wished.lock().is_empty(),
            "one file alone says nothing"
        );
        prefetcher.reading(file("f5"), true);
        let wished = std::mem::take(&mut *kernel.wished.lock());
        let names = ["f6", "f7", "f8", "f9", "f0", "f1", "f2", "f3", "f4"];
        let batch = Batch {
            directory: ROOT,
            list: true,
            files: names.map(file).to_vec(),
        };
        assert_eq!(wished, std::slice::from_ref(&batch));
        let given = batch.files.iter().map(|&file| Placed {
            file,
            offset: 0,
            length: 100,
        });
        prefetcher.ended(&batch, &given.collect::<Vec<_>>());
        assert_eq!(prefetcher.metrics.prefetched_bytes.get(), 900);
        for name in ["f6", "f7"] {
            prefetcher.reading(file(name), true); // it was dropped
        }
        assert!(kernel.wished.lock()[0].files.len() > 5);
        assert_eq!(prefetcher.metrics.prefetch_repeated_bytes.get(), 200);
    }

    #[tokio::test]
    async fn a_wish_that_is_not_taken_costs_no_credit() {
        let (kernel, prefetcher) = prefetcher(0);
        for name in ["f1", "f2"] {
            prefetcher.reading(prefetcher.manifest.resolve(name).unwrap(), false);
        }
        assert!(kernel.wished.lock().is_empty());
        let state = prefetcher.state.lock();
        assert!(state.asked.is_empty());
        assert_eq!(state.directories[&ROOT].credit, AHEAD);
    }
}
