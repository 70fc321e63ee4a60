//! Directories of small files: how many files each has earned ahead of its readers, and which come next.
//!
//! Each file that a reader had to wait for earns its directory some files ahead, more with each one. A reader of
//! everything soon finds everything; a reader of a few files causes few reads.
//!
//! Invariant: a directory is gone through once, from behind the first file that was read around to that file. It is gone
//! through again only when files of it are read once more.

use std::collections::HashMap;
use std::ops::Range;

use weir_core::{EntryKind, Manifest};

use super::target::BATCH_BYTES;

/// Larger files are not prefetched whole: their bytes take longer than the wait for them. In bytes.
pub(super) const SMALL: u64 = 1 << 20;
/// Files of a directory that are read before others are prefetched.
const FIRST: u32 = 2;
/// Files that the next one earns, doubled so many times with each after it: whoever goes on means more of it.
pub(super) const AHEAD: u32 = 16;
const MOST_DOUBLINGS: u32 = 3;
/// Files of a batch for the page cache, at most.
const BATCH_FILES: usize = 128;
/// Entries of a directory that are looked at in one go, for one that is small enough.
const MAX_LOOKED_AT: u32 = 4096;
/// Directories that are kept track of. Beyond that the rest is read as it is asked for.
const MAX_DIRECTORIES: usize = 100_000;

/// The directories that somebody reads small files of, by their indexes in the manifest.
#[derive(Default)]
pub(super) struct Directories {
    known: HashMap<u32, Directory>,
}

/// How far a directory is.
#[derive(Clone)]
pub(super) struct Directory {
    read: u32,
    /// Files that may be prefetched now.
    credit: u32,
    /// The next entry to look at; goes around once.
    next: u32,
    left: u32,
    /// Somebody is using the credit.
    running: bool,
}

impl Directories {
    /// A directory that files were read of.
    pub(super) fn get_mut(&mut self, directory: u32) -> Option<&mut Directory> {
        self.known.get_mut(&directory)
    }

    /// Counts a file that was read; true when somebody must begin to use what the directory has earned.
    pub(super) fn earn(&mut self, directory: u32, file: u32, manifest: &Manifest) -> bool {
        if self.known.len() >= MAX_DIRECTORIES && !self.known.contains_key(&directory) {
            return false;
        }
        let known = self.known.entry(directory).or_insert_with(|| {
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
            // It was gone around, and this file had to be read all the same: what was prefetched is being dropped.
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

    /// Ends the use of a directory's credit, which is lost.
    pub(super) fn give_up(&mut self, directory: u32) {
        if let Some(directory) = self.known.get_mut(&directory) {
            directory.credit = 0;
            directory.running = false;
        }
    }
}

impl Directory {
    /// Whether nothing was prefetched in this round.
    pub(super) fn is_new(&self, children: &Range<u32>) -> bool {
        self.left == children.end - children.start
    }

    /// Nobody uses the credit for now; it is kept.
    pub(super) fn pause(&mut self) {
        self.running = false;
    }

    /// The next files that go together, without those that are `taken` already: they cost nothing.
    pub(super) fn batch(
        &mut self,
        children: &Range<u32>,
        manifest: &Manifest,
        taken: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let (mut files, mut bytes) = (Vec::new(), 0);
        while files.len() < BATCH_FILES {
            let before = self.clone();
            let Some(next) = self.next(children, manifest) else {
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

    /// The next small file of the directory's children, while there is credit; `None` ends its use.
    pub(super) fn next(&mut self, children: &Range<u32>, manifest: &Manifest) -> Option<u32> {
        for _ in 0..MAX_LOOKED_AT {
            if self.credit == 0 || self.left == 0 {
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
impl Directories {
    /// What a directory has earned and not used.
    pub(super) fn credit(&self, directory: u32) -> u32 {
        self.known[&directory].credit
    }
}

/// Ten small files, one that is empty, two that are not small, and a directory.
#[cfg(test)]
pub(crate) fn test_manifest() -> Manifest {
    use weir_core::manifest::Mount;
    use weir_core::{ManifestBuilder, OriginId, SnapshotId};

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
    add("big", 10 * weir_core::BLOCK_SIZE);
    add("z/file", 100);
    let snapshot = SnapshotId {
        dataset: "set".parse().unwrap(),
        version: 1,
    };
    builder.build(snapshot, 0, None).unwrap()
}

#[cfg(test)]
mod tests {
    use weir_core::manifest::ROOT;

    use super::*;

    #[test]
    fn a_directory_goes_around_once_from_behind_the_first_file_and_skips_what_is_not_small() {
        let manifest = test_manifest();
        let mut directories = Directories::default();
        let file = manifest.resolve("f4").unwrap();
        let children = manifest.children(ROOT);
        let earn = |directories: &mut Directories| directories.earn(ROOT, file, &manifest);
        assert!(!earn(&mut directories), "one file alone says nothing");
        assert!(earn(&mut directories));
        assert!(!earn(&mut directories), "one task is enough");
        let directory = directories.get_mut(ROOT).unwrap();
        assert_eq!(directory.credit, AHEAD + 2 * AHEAD);
        let names = std::iter::from_fn(|| directory.next(&children, &manifest))
            .map(|file| manifest.entry(file).name.to_owned());
        let names: Vec<String> = names.collect();
        assert_eq!(
            names,
            ["f5", "f6", "f7", "f8", "f9", "f0", "f1", "f2", "f3", "f4"]
        );
        assert!(!directory.running);
        assert!(
            !earn(&mut directories),
            "another round needs as many files as the first"
        );
    }

    #[test]
    fn credit_bounds_what_is_prefetched() {
        let manifest = test_manifest();
        let mut directories = Directories::default();
        let children = manifest.children(ROOT);
        directories.earn(ROOT, 0, &manifest);
        directories.earn(ROOT, 0, &manifest);
        let directory = directories.get_mut(ROOT).unwrap();
        assert_eq!(directory.credit, AHEAD);
        directory.credit = 3;
        let files = std::iter::from_fn(|| directory.next(&children, &manifest));
        assert_eq!(files.count(), 3);
    }

    #[test]
    fn what_is_given_up_is_lost_and_what_is_paused_is_kept() {
        let manifest = test_manifest();
        for (give_up, credit) in [(true, 0), (false, AHEAD)] {
            let mut directories = Directories::default();
            directories.earn(ROOT, 0, &manifest);
            directories.earn(ROOT, 0, &manifest);
            if give_up {
                directories.give_up(ROOT);
            } else {
                directories.get_mut(ROOT).unwrap().pause();
            }
            let directory = directories.get_mut(ROOT).unwrap();
            assert!(!directory.running);
            assert_eq!(directory.credit, credit);
        }
    }
}
