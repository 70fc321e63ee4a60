//! A snapshot's table of entries, kept as the flat bytes in which it is stored and sent.
//!
//! A client fetches a manifest once and then answers lookup, getattr and readdir from it. The table is immutable:
//! a refresh makes a new one. Entries stand in breadth-first order with each directory's children side by side
//! and sorted by name, so a lookup is a binary search, and an entry is 32 bytes beside its name and version.
//! The origin's key is not stored: it is the mount's prefix and the path (see [`crate::keypath`]).
//!
//! Invariant: a `Manifest` has been checked once as a whole, so its accessors never fail and never panic on what
//! a file or a peer delivered.

mod builder;
mod format;
mod kept;
mod mapped;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use builder::{
    BuildError, LeftOutObject, MAX_EXAMPLES, MAX_KEPT_LEFT_OUT, MAX_OBJECT, MAX_VERSION,
    ManifestBuilder,
};
pub use kept::KeptManifests;
use mapped::Mapped;

use crate::block::{Block, ObjectRef, block_count};
use crate::id::{OriginId, SnapshotId};
use crate::keypath;

/// The root directory's index and, as the kernel wants it, inode 1.
pub const ROOT: u32 = 0;

/// What is wrong with bytes that should be a manifest.
#[derive(Debug, Clone, thiserror::Error)]
#[error("manifest is damaged: {0}")]
pub struct DamagedManifest(pub(crate) &'static str);

/// Why a manifest's file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is not a whole manifest.
    #[error(transparent)]
    Damaged(#[from] DamagedManifest),
}

/// Entries that are read between two times that memory is released.
const CHECKED_AT_ONCE: u32 = 1 << 18;

/// One origin location mounted at one path of the dataset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// The origin, for the identity of blocks.
    pub origin: OriginId,
    /// The origin's kind and options as the origin layer wrote them; opaque here, and free of secrets.
    pub spec: String,
    /// What each key starts with: empty, or a prefix that ends in `/`.
    pub prefix: String,
    /// Where in the dataset the origin appears, without leading or trailing `/`; empty for the root.
    pub path: String,
}

/// What a manifest says of itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Which snapshot this is.
    pub snapshot: SnapshotId,
    /// When it was listed, in nanoseconds since 1970.
    pub created_ns: i64,
    /// The origins and where they appear.
    pub mounts: Vec<Mount>,
    /// Number of files.
    pub files: u64,
    /// Number of directories, with the root.
    pub directories: u64,
    /// Sum of the files' sizes, in bytes.
    pub bytes: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Objects without a path, by the reason's label.
    pub left_out: BTreeMap<String, u64>,
    /// A few keys that were left out, for people: at most [`MAX_EXAMPLES`] of each reason, escaped.
    pub left_out_examples: Vec<String>,
    /// Digest over all entries: equal digests mean that nothing changed.
    pub digest: String,
    /// The first inode number that no snapshot of this dataset has used.
    pub next_inode: u64,
}

/// Whether an entry is a file or a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// One entry of a manifest.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its place in the table.
    pub index: u32,
    /// File or directory.
    pub kind: EntryKind,
    /// The last component of its path; empty for the root.
    pub name: &'a str,
    /// The directory that it is in; the root is its own parent.
    pub parent: u32,
    /// Length in bytes; the number of children for a directory.
    pub size: u64,
    /// Time of the last change at the origin, in nanoseconds since 1970; a directory has its newest
    /// entry's, an empty one that of its marker.
    pub mtime_ns: i64,
}

/// A snapshot's entries. See the [module](self).
#[derive(Clone, Debug)]
pub struct Manifest {
    bytes: Bytes,
    /// What the bytes are in, if that is not memory.
    mapped: Option<Mapped>,
    summary: Summary,
    sections: format::Sections,
    /// The entry that is the top directory of each mount.
    mount_roots: Vec<u32>,
}

impl Manifest {
    /// Checks and wraps the bytes of a manifest.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, DamagedManifest> {
        Self::checked(bytes, None)
    }

    /// Reads and checks a manifest's file. A long one stays there: what is read of it is mapped, and the kernel may take the
    /// memory back; unless others than this user and root may write to it, who could shorten it under its readers. It may
    /// be removed.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.len() >= mapped::MAPPED_FROM as u64 && mapped::is_private(&metadata) {
            return Ok(Self::from_mapped(Mapped::new(file)?)?);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Self::from_bytes(bytes.into())?)
    }

    fn from_mapped(mapped: Mapped) -> Result<Self, DamagedManifest> {
        Self::checked(Bytes::from_owner(mapped.clone()), Some(mapped))
    }

    fn checked(bytes: Bytes, mapped: Option<Mapped>) -> Result<Self, DamagedManifest> {
        let release = || {
            if let Some(mapped) = &mapped {
                mapped.release();
            }
        };
        let (summary, sections) = format::parse(&bytes, release)?;
        let mut manifest = Self {
            bytes,
            mapped,
            summary,
            sections,
            mount_roots: Vec::new(),
        };
        manifest.check()?;
        manifest.mount_roots = manifest
            .summary
            .mounts
            .iter()
            .map(|mount| manifest.resolve(&mount.path))
            .collect::<Option<_>>()
            .ok_or(DamagedManifest("a mount's directory is missing"))?;
        manifest.release();
        Ok(manifest)
    }

    /// Lets go of the memory that reading a long manifest takes; for those who have just read much of it.
    pub fn release(&self) {
        if let Some(mapped) = &self.mapped {
            mapped.release();
        }
    }

    /// Writes the manifest to `path`, in the place of a file that may be there. It is on the disk afterwards, but perhaps
    /// not yet its name. A long manifest that a builder has just written to the same file system gets that name.
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let Some(mapped) = &self.mapped else {
            let mut file = File::create(path)?;
            file.write_all(&self.bytes)?;
            return file.sync_all();
        };
        let mut source = mapped.file();
        source.sync_all()?;
        if mapped.link(path).is_err() {
            let mut file = File::create(path)?;
            source.rewind()?;
            io::copy(&mut source, &mut file)?;
            file.sync_all()?;
        }
        Ok(())
    }

    /// The manifest as it is stored and sent.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What the manifest says of itself.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Number of entries, the root included.
    #[allow(clippy::len_without_is_empty)] // there is always the root
    pub fn len(&self) -> u32 {
        self.sections.count
    }

    /// The entry at `index`. An index past the end gives the root.
    pub fn entry(&self, index: u32) -> Entry<'_> {
        let record = self.record(index);
        let name = &self.bytes[self.sections.names.clone()][record.name.clone()];
        Entry {
            index,
            kind: record.kind,
            name: std::str::from_utf8(name).unwrap_or_default(),
            parent: record.parent,
            size: match record.kind {
                EntryKind::File => record.a,
                EntryKind::Directory => record.a & u64::from(u32::MAX),
            },
            mtime_ns: record.mtime_ns,
        }
    }

    /// The entries of a directory, sorted by name; empty for a file.
    pub fn children(&self, directory: u32) -> Range<u32> {
        self.record(directory).children()
    }

    /// The entry called `name` in `directory`.
    pub fn lookup(&self, directory: u32, name: &str) -> Option<u32> {
        let children = self.children(directory);
        let (mut low, mut high) = (children.start, children.end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(middle).name.as_bytes().cmp(name.as_bytes()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// The entry at a path such as `train/0001.jpg`, with or without slashes around it.
    pub fn resolve(&self, path: &str) -> Option<u32> {
        keypath::parse_path(path)
            .ok()?
            .into_iter()
            .try_fold(ROOT, |directory, name| self.lookup(directory, name))
    }

    /// The path of an entry inside the dataset, without a leading `/`.
    pub fn path(&self, index: u32) -> String {
        self.path_below(index, ROOT)
    }

    fn path_below(&self, index: u32, top: u32) -> String {
        let mut names = Vec::new();
        let mut at = index;
        while at != top && at != ROOT {
            let entry = self.entry(at);
            names.push(entry.name);
            at = entry.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// The inode number of an entry: the same in every process and after every restart, and kept from snapshot to
    /// snapshot by each entry that did not change.
    pub fn inode(&self, index: u32) -> u64 {
        match &self.sections.inodes {
            None => u64::from(index) + 1,
            Some(section) => format::read_u64(&self.bytes[section.clone()], index as usize * 8),
        }
    }

    /// The entry with this inode number.
    pub fn by_inode(&self, inode: u64) -> Option<u32> {
        let Some(section) = &self.sections.by_inode else {
            let index = u32::try_from(inode.checked_sub(1)?).ok()?;
            return (index < self.len()).then_some(index);
        };
        let order = &self.bytes[section.clone()];
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let index = format::read_u32(order, middle as usize * 4);
            match self.inode(index).cmp(&inode) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(index),
            }
        }
        None
    }

    /// The mount that a file comes from.
    pub fn mount(&self, index: u32) -> &Mount {
        &self.summary.mounts[usize::from(self.record(index).mount)]
    }

    /// The object version behind a file.
    pub fn object(&self, index: u32) -> ObjectRef {
        let record = self.record(index);
        let mount = usize::from(record.mount);
        let mut key = self.summary.mounts[mount].prefix.clone();
        key.push_str(&self.path_below(index, self.mount_roots[mount]));
        ObjectRef {
            key: key.into(),
            size: record.a,
            version: self.version(index).into(),
            modified_ns: record.mtime_ns,
        }
    }

    /// The files that show this version of an object.
    pub fn files_of(&self, origin: OriginId, object: &ObjectRef) -> Vec<u32> {
        let mounts = self.summary.mounts.iter().zip(&self.mount_roots);
        let of_mounts = mounts.enumerate().filter_map(|(number, (mount, root))| {
            let path = object.key.strip_prefix(&mount.prefix)?;
            let file = path
                .split('/')
                .try_fold(*root, |directory, name| self.lookup(directory, name))?;
            let is_it = mount.origin == origin
                && self.entry(file).kind == EntryKind::File
                && usize::from(self.record(file).mount) == number
                && self.record(file).a == object.size
                && *self.version(file) == *object.version;
            is_it.then_some(file)
        });
        of_mounts.collect()
    }

    /// The origin's name for the version of a file.
    pub fn version(&self, index: u32) -> String {
        format::read_version(
            &self.bytes[self.sections.versions.clone()],
            self.record(index).version,
        )
        .unwrap_or_default()
    }

    /// The blocks of a file.
    pub fn blocks(&self, index: u32) -> impl Iterator<Item = Block> + use<> {
        let object = self.object(index);
        let origin = self.mount(index).origin;
        (0..block_count(object.size)).map(move |index| Block {
            origin,
            object: object.clone(),
            index,
        })
    }

    /// All files below an entry (or the file itself), in table order within each directory.
    pub fn files_below(&self, index: u32) -> FilesBelow<'_> {
        FilesBelow {
            manifest: self,
            pending: std::iter::once(index..index + 1).collect(),
        }
    }

    /// Whether an entry is a file of this object version: of the same size and date, at the same place of an origin.
    pub fn is_same_file(
        &self,
        index: u32,
        mount: &Mount,
        size: u64,
        mtime_ns: i64,
        version: &str,
    ) -> bool {
        let record = self.record(index);
        record.kind == EntryKind::File
            && record.a == size
            && record.mtime_ns == mtime_ns
            && self.mount(index).origin == mount.origin
            && self.mount(index).prefix == mount.prefix
            && self.version(index) == version
    }

    fn record(&self, index: u32) -> format::Record {
        let index = if index < self.len() { index } else { ROOT };
        format::Record::read(&self.bytes[self.sections.entries.clone()], index)
    }

    /// Checks every entry once, so that no accessor needs to.
    fn check(&self) -> Result<(), DamagedManifest> {
        let fail = |what| Err(DamagedManifest(what));
        let names = &self.bytes[self.sections.names.clone()];
        let versions = &self.bytes[self.sections.versions.clone()];
        let mut next_child = 1;
        for index in 0..self.len() {
            if index.is_multiple_of(CHECKED_AT_ONCE) {
                self.release();
            }
            let record = self.record(index);
            match names.get(record.name.clone()).map(std::str::from_utf8) {
                Some(Ok(_)) => {}
                _ => return fail("a name is out of bounds"),
            }
            if record.parent > index || (index != ROOT && record.parent == index) {
                return fail("an entry stands before its directory");
            }
            match record.kind {
                EntryKind::Directory => {
                    let children = record.children();
                    if children.start != next_child || children.end > self.len() {
                        return fail("a directory's entries are out of place");
                    }
                    next_child = children.end;
                }
                EntryKind::File => {
                    if usize::from(record.mount) >= self.summary.mounts.len() {
                        return fail("a file has no mount");
                    }
                    if format::read_version(versions, record.version).is_none() {
                        return fail("a version is out of bounds");
                    }
                }
            }
        }
        if next_child != self.len() || self.entry(ROOT).kind != EntryKind::Directory {
            return fail("the entries do not make a tree");
        }
        let order = self.sections.by_inode.clone();
        let mut indices = order
            .into_iter()
            .flat_map(|section| self.bytes[section].chunks_exact(4));
        if indices.any(|index| format::read_u32(index, 0) >= self.len()) {
            return fail("the inode table is out of bounds");
        }
        Ok(())
    }
}

/// Iterator of [`Manifest::files_below`].
pub struct FilesBelow<'a> {
    manifest: &'a Manifest,
    pending: Vec<Range<u32>>,
}

impl Iterator for FilesBelow<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let range = self.pending.last_mut()?;
            let Some(index) = range.next() else {
                self.pending.pop();
                continue;
            };
            let record = self.manifest.record(index);
            match record.kind {
                EntryKind::File => return Some(index),
                EntryKind::Directory => self.pending.push(record.children()),
            }
        }
    }
}
