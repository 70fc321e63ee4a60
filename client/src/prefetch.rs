//! Filling small files ahead of their readers.
//!
//! Whoever reads some small files of a directory, in order or shuffled, is likely to read the others too, and an
//! origin gives many small objects at once far sooner than one after the other. So each file that is read earns its
//! directory some files that are filled ahead: a reader of everything soon finds everything, a reader of a few
//! files causes few fills. Only free space is filled: nothing that is cached is given up for a guess. And only when
//! the origin is slow to answer: where it is as near as the disk, a file read back from there is no sooner to be had.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use roaring::RoaringBitmap;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use weir_core::{EntryKind, Manifest};
use weir_worker::Worker;

use crate::metrics::ClientMetrics;

/// Larger files are not filled ahead: their bytes take longer than the wait for them.
const SMALL: u64 = 1 << 20;
/// Files of a directory that are read before others are filled ahead.
const FIRST: u32 = 2;
/// Files that each further one earns.
const AHEAD: u32 = 16;
/// Readers wait for a fast origin so long at most.
const FAST: Duration = Duration::from_millis(2);
/// A new wait counts for this part of the average.
const WAIT_SHARE: u32 = 8;
/// Fills ahead that are under way at once: at most a quarter of the worker's fill budget.
const SLOTS: usize = 16;
/// Directories that are kept track of. Beyond that the rest is filled as it is read.
const MAX_DIRECTORIES: usize = 100_000;

/// Fills ahead for the readers of one snapshot.
pub(crate) struct Prefetcher {
    manifest: Arc<Manifest>,
    worker: Arc<Worker>,
    runtime: Handle,
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    metrics: Arc<ClientMetrics>,
}

#[derive(Default)]
struct State {
    directories: HashMap<u32, Directory>,
    /// Files that were filled ahead and not read yet.
    unread: RoaringBitmap,
    /// How long readers wait for the origin: a moving average.
    wait: Duration,
}

/// How far a directory is.
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
        worker: Arc<Worker>,
        metrics: Arc<ClientMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            manifest,
            worker,
            runtime: Handle::current(),
            slots: Arc::new(Semaphore::new(SLOTS)),
            state: Mutex::default(),
            metrics,
        })
    }

    /// A reader has begun to read a file, which was cached or not.
    pub(crate) fn reading(self: &Arc<Self>, file: u32, cached: bool) {
        let entry = self.manifest.entry(file);
        if entry.size > SMALL {
            return;
        }
        let start = {
            let mut state = self.state.lock();
            let ahead = state.unread.remove(file);
            if ahead {
                self.metrics.prefetch_used_bytes.inc_by(entry.size);
            } else if cached {
                return; // nothing to gain: the directory may be all there
            }
            state.earn(entry.parent, file, &self.manifest)
        };
        if start {
            self.runtime
                .spawn(self.clone().fill_directory(entry.parent));
        }
    }

    /// A reader had to wait for the origin this long.
    pub(crate) fn waited(&self, wait: Duration) {
        let mut state = self.state.lock();
        state.wait = (state.wait * (WAIT_SHARE - 1) + wait) / WAIT_SHARE;
    }

    /// Fills files of a directory for as long as it has credit.
    async fn fill_directory(self: Arc<Self>, directory: u32) {
        // The semaphore is never closed.
        while let Ok(slot) = self.slots.clone().acquire_owned().await {
            let Some(file) = self.next(directory) else {
                return;
            };
            let prefetcher = self.clone();
            tokio::spawn(async move {
                prefetcher.fill(file).await;
                drop(slot);
            });
        }
    }

    /// The next file to fill; `None` ends the directory's task.
    fn next(&self, directory: u32) -> Option<u32> {
        let room = self.worker.has_room();
        let children = self.manifest.children(directory);
        let mut state = self.state.lock();
        let known = state.directories.get_mut(&directory)?;
        known.next(&children, &self.manifest, room)
    }

    async fn fill(&self, file: u32) {
        let Some(block) = self.manifest.blocks(file).next() else {
            return;
        };
        // Noted before, since a reader may come while the fill is under way.
        self.state.lock().unread.insert(file);
        let outcome = self.worker.warm(&block).await;
        if let Ok(true) = outcome {
            self.metrics.prefetched_bytes.inc_by(u64::from(block.len()));
            return;
        }
        let mut state = self.state.lock();
        state.unread.remove(file);
        if let Err(error) = outcome {
            // Whoever reads the file is told; the guess ends here.
            tracing::debug!(%error, object = %block.object.key, "not filled ahead");
            let directory = self.manifest.entry(file).parent;
            if let Some(directory) = state.directories.get_mut(&directory) {
                directory.credit = 0;
            }
        }
    }
}

impl State {
    /// Counts a file that was read; true when a task must be started for its directory.
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
        known.read += 1;
        if known.read < FIRST || known.left == 0 || self.wait < FAST {
            return false;
        }
        known.credit = known.credit.saturating_add(AHEAD);
        !std::mem::replace(&mut known.running, true)
    }
}

impl Directory {
    /// The next small file of the directory's children, while there is room and credit.
    fn next(&mut self, children: &Range<u32>, manifest: &Manifest, room: bool) -> Option<u32> {
        while room && self.credit > 0 && self.left > 0 {
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

    #[test]
    fn a_directory_goes_around_once_from_behind_the_first_file_and_skips_what_is_not_small() {
        let manifest = manifest();
        let mut state = State {
            wait: FAST,
            ..State::default()
        };
        let file = manifest.resolve("f4").unwrap();
        let children = manifest.children(ROOT);
        assert!(
            !state.earn(ROOT, file, &manifest),
            "one file alone says nothing"
        );
        assert!(state.earn(ROOT, file, &manifest));
        assert!(!state.earn(ROOT, file, &manifest), "one task is enough");
        let directory = state.directories.get_mut(&ROOT).unwrap();
        assert_eq!(directory.credit, 2 * AHEAD);
        let names = std::iter::from_fn(|| directory.next(&children, &manifest, true))
            .map(|file| manifest.entry(file).name.to_owned());
        let names: Vec<String> = names.collect();
        assert_eq!(
            names,
            ["f5", "f6", "f7", "f8", "f9", "f0", "f1", "f2", "f3", "f4"]
        );
        assert!(!directory.running);
        assert!(!state.earn(ROOT, file, &manifest), "there is nothing left");
    }

    #[test]
    fn credit_and_room_bound_what_is_filled_ahead() {
        let manifest = manifest();
        let mut state = State {
            wait: FAST,
            ..State::default()
        };
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

    #[test]
    fn nothing_is_filled_ahead_where_the_origin_is_fast() {
        let manifest = manifest();
        let mut state = State::default();
        for _ in 0..10 {
            assert!(!state.earn(ROOT, 0, &manifest));
        }
        state.wait = FAST;
        assert!(state.earn(ROOT, 0, &manifest));
    }
}
