//! Makes a manifest out of what origins list.
//!
//! Keys may come in any order and may collide; the outcome depends on the set of keys alone. What has no path is
//! counted, never dropped silently.
//!
//! What is listed becomes records whose order is that of the table ([`listed`]). They are sorted a part at a time
//! ([`runs`]), merged, and written to the tables in one pass ([`tables`]), so however much is listed, memory has a bound
//! where the builder has a directory for temporary files ([`spool`]).

mod listed;
#[cfg(test)]
mod model;
mod runs;
mod spool;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use self::listed::{Found, ListedFile};
use self::runs::Sorter;
use self::spool::{Finished, Scratch, Spool};
use self::tables::{Inodes, Tables};
use super::format::{self, Header};
use super::mapped::Mapped;
use super::{Manifest, Mount, Summary};
use crate::block::BLOCK_SIZE;
use crate::id::SnapshotId;
use crate::keypath::{self, KeyPath, LeftOut};

/// Keys kept as examples of what was left out for one reason.
pub const MAX_EXAMPLES: u64 = 3;
/// Keys kept of what was left out for one reason, and bytes of keys kept of all: more is only counted.
pub const MAX_KEPT_LEFT_OUT: u64 = 2_000;
const MAX_KEPT_LEFT_OUT_BYTES: usize = 4 << 20;
/// Longest version text of an origin, in bytes.
pub const MAX_VERSION: usize = 1024;
/// Largest object, in bytes: block numbers are 32 bits.
pub const MAX_OBJECT: u64 = BLOCK_SIZE * u32::MAX as u64;

/// Why a manifest could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The path of a mount is not a path.
    #[error("mount path {path:?} is not valid ({reason}): use names separated by '/'")]
    MountPath {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: LeftOut,
    },
    /// Too many mounts, entries or bytes of names for the format.
    #[error("the dataset has too many {0} for one manifest; split it into several datasets")]
    TooLarge(&'static str),
    /// An origin gave a size or version that cannot be stored.
    #[error("object {key:?} has {what} that Weir cannot store")]
    Object {
        /// The object's key.
        key: String,
        /// What is wrong.
        what: &'static str,
    },
    /// What does not fit into memory could not be kept on disk.
    #[error(
        "the listing is kept in temporary files below {dir} while it is sorted, which failed ({reason}): see that there is room"
    )]
    Scratch {
        /// The directory of the temporary files.
        dir: String,
        /// What the system says.
        reason: String,
    },
}

/// One object that a snapshot does not serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOutObject {
    /// Why.
    pub reason: LeftOut,
    /// Its key.
    pub key: Box<[u8]>,
}

/// Collects entries and makes a [`Manifest`].
#[derive(Debug)]
pub struct ManifestBuilder {
    scratch: Scratch,
    mounts: Vec<Mount>,
    /// The top directory of each mount.
    tops: Vec<Vec<u8>>,
    records: Sorter,
    /// The directory that was added last.
    directory: Vec<u8>,
    /// Files that were added.
    files: u64,
    left_out: LeftOuts,
    record: Vec<u8>,
    version: Vec<u8>,
}

/// What is not served.
#[derive(Debug, Default)]
struct LeftOuts {
    counts: BTreeMap<LeftOut, u64>,
    examples: Vec<String>,
    kept: Vec<LeftOutObject>,
    kept_bytes: usize,
}

impl LeftOuts {
    fn add(&mut self, reason: LeftOut, key: &[u8]) {
        let count = self.counts.entry(reason).or_default();
        *count += 1;
        if *count <= MAX_EXAMPLES {
            self.examples
                .push(format!("{}: {}", reason.label(), key.escape_ascii()));
        }
        let fits = self.kept_bytes + key.len() <= MAX_KEPT_LEFT_OUT_BYTES;
        if *count <= MAX_KEPT_LEFT_OUT && fits {
            self.kept_bytes += key.len();
            let key = key.into();
            self.kept.push(LeftOutObject { reason, key });
        }
    }
}

impl Default for ManifestBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ManifestBuilder {
    /// An empty dataset. Everything is kept in memory, some 100 bytes for each file beside its path.
    pub fn new() -> Self {
        Self::with(Scratch::memory())
    }

    /// An empty dataset. What is more than some 200 MiB is kept in files without names in `dir`, for the owner alone; so is
    /// the manifest, if it is long. Who adds many entries calls [`make_room`](Self::make_room) now and then.
    pub fn in_directory(dir: &Path) -> Self {
        Self::with(Scratch::directory(dir))
    }

    fn with(scratch: Scratch) -> Self {
        Self {
            mounts: Vec::new(),
            tops: Vec::new(),
            records: Sorter::new(&scratch, scratch.run_bytes),
            scratch,
            directory: Vec::new(),
            files: 0,
            left_out: LeftOuts::default(),
            record: Vec::new(),
            version: Vec::new(),
        }
    }

    /// Adds a mount and gives its number for [`add`](Self::add).
    pub fn add_mount(&mut self, mount: Mount) -> Result<u16, BuildError> {
        let number =
            u16::try_from(self.mounts.len()).map_err(|_| BuildError::TooLarge("mounts"))?;
        let components =
            keypath::parse_path(&mount.path).map_err(|reason| BuildError::MountPath {
                path: mount.path.clone(),
                reason,
            })?;
        let path = components.join("/");
        let top = encoded(&[], &path);
        self.add_directories(&top)?;
        self.tops.push(top);
        self.mounts.push(Mount { path, ..mount });
        Ok(number)
    }

    /// Adds one object of a mount's origin; `key` is the full key.
    pub fn add(
        &mut self,
        mount: u16,
        key: &[u8],
        size: u64,
        mtime_ns: i64,
        version: &str,
    ) -> Result<(), BuildError> {
        let object_error = |what| BuildError::Object {
            key: String::from_utf8_lossy(key).into_owned(),
            what,
        };
        let prefix = self.mounts[usize::from(mount)].prefix.as_bytes();
        let Some(relative) = key.strip_prefix(prefix) else {
            return Ok(()); // a sibling such as `data2/` of the prefix `data/`: not part of the dataset
        };
        if size > MAX_OBJECT {
            return Err(object_error("a size"));
        }
        if version.len() > MAX_VERSION {
            return Err(object_error("a version"));
        }
        let top = &self.tops[usize::from(mount)];
        match keypath::classify(relative, size) {
            Err(reason) => self.leave_out(reason, key),
            Ok(KeyPath::Directory(path)) => {
                let directory = encoded(top, path);
                self.add_directories(&directory)?;
                if mtime_ns > 0 {
                    // Shown as long as nothing in it has a date.
                    self.push(&directory, Found::Directory(mtime_ns))?;
                }
            }
            Ok(KeyPath::File(path)) => {
                let path = encoded(top, path);
                let (directory, _) = listed::split(&path).unwrap_or_default();
                self.add_directories(directory)?;
                let mut encoded_version = std::mem::take(&mut self.version);
                encoded_version.clear();
                format::write_version(&mut encoded_version, version);
                let file = ListedFile {
                    mount,
                    mtime_ns,
                    number: self.files,
                    size,
                    version: &encoded_version,
                };
                self.files += 1;
                let pushed = self.push(&path, Found::File(file));
                self.version = encoded_version;
                pushed?;
            }
        }
        Ok(())
    }

    /// Counts what is not served.
    pub fn leave_out(&mut self, reason: LeftOut, key: &[u8]) {
        self.left_out.add(reason, key);
    }

    /// Whether it is time to [`make_room`](Self::make_room).
    pub fn is_full(&self) -> bool {
        self.records.is_full()
    }

    /// Sorts what was added and moves it to disk, which takes about half a second. Without a directory it stays.
    pub fn make_room(&mut self) -> Result<(), BuildError> {
        self.records.make_room()
    }

    fn push(&mut self, path: &[u8], found: Found<'_>) -> Result<(), BuildError> {
        listed::write(&mut self.record, path, found);
        self.records.push(&self.record)
    }

    /// Adds a directory and all above it but the root.
    fn add_directories(&mut self, path: &[u8]) -> Result<(), BuildError> {
        let pairs = path.iter().zip(&self.directory);
        let mut known = pairs.take_while(|(a, b)| a == b).count();
        if known == path.len() {
            return Ok(());
        }
        let ends: Vec<usize> = (known..path.len()).filter(|at| path[*at] == 0).collect();
        for end in ends {
            known = end + 1;
            self.push(&path[..known], Found::Directory(0))?;
        }
        self.directory.clear();
        self.directory.extend_from_slice(path);
        Ok(())
    }

    /// Makes the manifest. Entries that are unchanged since `previous` keep their inode numbers.
    pub fn build(
        self,
        snapshot: SnapshotId,
        created_ns: i64,
        previous: Option<&Manifest>,
    ) -> Result<Manifest, BuildError> {
        let (manifest, _) = self.build_telling(snapshot, created_ns, previous)?;
        Ok(manifest)
    }

    /// The same, and the first of the objects that are not served for each reason.
    pub fn build_telling(
        mut self,
        snapshot: SnapshotId,
        created_ns: i64,
        previous: Option<&Manifest>,
    ) -> Result<(Manifest, Vec<LeftOutObject>), BuildError> {
        self.push(&[], Found::Directory(0))?;
        let records = self.records.finish()?;
        let scratch = &self.scratch;
        let mut left_out = self.left_out;
        let tables = Tables::write(records, &self.mounts, previous, scratch, &mut left_out)?;
        let labelled = left_out.counts.iter();
        let labelled = labelled.map(|(reason, count)| (reason.label().to_owned(), *count));
        let fresh = u64::from(tables.count) + 1;
        let summary = Summary {
            snapshot,
            created_ns,
            files: tables.files,
            directories: tables.directories,
            bytes: tables.bytes,
            blocks: tables.blocks,
            left_out: labelled.collect(),
            left_out_examples: left_out.examples,
            digest: tables.digest(&self.mounts)?,
            next_inode: tables.inodes.as_ref().map_or(fresh, |inodes| inodes.next),
            mounts: self.mounts,
        };
        Ok((tables.assemble(summary, scratch)?, left_out.kept))
    }
}

/// A path below `top`, with a zero byte behind each name.
fn encoded(top: &[u8], path: &str) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(top.len() + path.len() + 1);
    encoded.extend_from_slice(top);
    if !path.is_empty() {
        let names = path.bytes();
        encoded.extend(names.map(|byte| if byte == b'/' { 0 } else { byte }));
        encoded.push(0);
    }
    encoded
}

impl Tables {
    fn digest(&self, mounts: &[Mount]) -> Result<String, BuildError> {
        let mut hasher = blake3::Hasher::new();
        for table in [&self.entries, &self.names, &self.versions] {
            hasher.update(&table.len().to_le_bytes());
            table.each(|part| {
                hasher.update(part);
                Ok(())
            })?;
        }
        for mount in mounts {
            hasher.update(format!("{mount:?}").as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Puts the parts together, in memory or in a file.
    fn assemble(self, summary: Summary, scratch: &Scratch) -> Result<Manifest, BuildError> {
        let header = Header {
            summary,
            count: self.count,
            own_inodes: self.inodes.is_some(),
            names_len: self.names.len(),
            versions_len: self.versions.len(),
        };
        let (by_entry, by_inode) = match self.inodes {
            None => (None, None),
            Some(Inodes {
                by_entry, by_inode, ..
            }) => (Some(by_entry), Some(by_inode)),
        };
        let tables = [Some(self.entries), Some(self.names), Some(self.versions)];
        let tables = [by_entry, by_inode].into_iter().chain(tables).flatten();
        let tables: Vec<Spool> = tables.collect();
        let head = format::head(&header);
        let total: u64 = tables.iter().map(Spool::len).sum::<u64>() + head.len() as u64;
        let mut whole = Spool::new(scratch);
        let in_memory = scratch.dir.is_none() || total < scratch.mapped_from as u64;
        if in_memory {
            whole.stay_in_memory(total as usize + format::CHECKSUM_LEN);
        }
        let mut sum = format::Checksum::new();
        let mut append = |bytes: &[u8]| {
            sum.update(bytes);
            whole.append(bytes)
        };
        append(&head)?;
        for table in tables {
            table.each(&mut append)?;
        }
        whole.append(&sum.bytes())?;
        // What was just written satisfies every check of the reader, unless the disk is bad.
        let manifest = match whole.finish()? {
            Finished::Memory(bytes) => Manifest::from_bytes(Bytes::from(bytes)),
            Finished::File(file) => {
                let mapped = Mapped::new(file).map_err(|error| scratch.failed(&error))?;
                Manifest::from_mapped(mapped)
            }
        };
        manifest.map_err(|_| scratch.damaged())
    }
}

#[cfg(test)]
mod tests;
