//! The tables of a manifest, written from records in order, without holding them in memory.
//!
//! 1. Forwards: each record that is served becomes an entry. Its directory stands in the level before, and directories
//!    come in the order of their entries, so a queue of them is all that must be known.
//! 2. Backwards: entries come before their directory, which so learns how many there are, where they begin, and what the
//!    newest is.

use std::ops::Range;

use super::format::{self, RECORD_LEN, Record};
use super::listed::{self, Found, ListedFile};
use super::runs::{Merge, Sorter};
use super::spool::{Queue, Scratch, Spool};
use super::{BuildError, LeftOuts};
use crate::block::block_count;
use crate::keypath::LeftOut;
use crate::manifest::{EntryKind, Manifest, Mount, ROOT};

/// Entries after which the pages of the previous manifest are given back.
const RELEASE_EVERY: u32 = 1 << 18;
/// Entries that are read at once on the way back.
const ENTRIES_AT_ONCE: u32 = 1 << 15;

/// A dataset's tables, each as it stands in the manifest.
pub(super) struct Tables {
    pub(super) entries: Spool,
    pub(super) names: Spool,
    pub(super) versions: Spool,
    pub(super) inodes: Option<Inodes>,
    pub(super) count: u32,
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) bytes: u64,
    pub(super) blocks: u64,
}

/// Inode numbers by entry, and entries by inode number.
pub(super) struct Inodes {
    pub(super) by_entry: Spool,
    pub(super) by_inode: Spool,
    /// The first number that no snapshot has used.
    pub(super) next: u64,
}

impl Tables {
    /// Writes all tables. What loses against another of its name is left out and counted.
    pub(super) fn write(
        records: Merge,
        mounts: &[Mount],
        previous: Option<&Manifest>,
        scratch: &Scratch,
        left_out: &mut LeftOuts,
    ) -> Result<Self, BuildError> {
        let mut writer = Writer::new(mounts, previous, scratch);
        writer.write(records, left_out)?;
        let mut tables = writer.tables;
        if let Some(carried) = writer.carried {
            tables.inodes = Some(carried.finish(scratch)?);
        }
        tables.settle_directories(scratch)?;
        Ok(tables)
    }

    /// Gives each directory the range of its entries and the date of the newest. One without entries keeps its marker's.
    fn settle_directories(&mut self, scratch: &Scratch) -> Result<(), BuildError> {
        let mut settled = Groups::new(scratch);
        let mut end = self.count; // where the entries of the directory before end
        let mut buffer = Vec::new();
        let mut chunk_end = self.count;
        while chunk_end > 0 {
            let start = chunk_end.saturating_sub(ENTRIES_AT_ONCE);
            let offset = u64::from(start) * RECORD_LEN as u64;
            buffer.resize((chunk_end - start) as usize * RECORD_LEN, 0);
            self.entries.read_at(&mut buffer, offset)?;
            let mut changed = false;
            for index in (start..chunk_end).rev() {
                let at = index - start;
                let mut record = Record::read(&buffer, at);
                if record.kind == EntryKind::Directory {
                    let (mut first, mut children) = (end, 0);
                    if let Some(group) = settled.of(index)? {
                        (first, children) = (group.first, group.children);
                        record.mtime_ns = group.newest_ns;
                    }
                    end = first;
                    record.a = (u64::from(first) << 32) | u64::from(children);
                    let place = &mut buffer[at as usize * RECORD_LEN..][..RECORD_LEN];
                    place.copy_from_slice(&record.bytes());
                    changed = true;
                }
                if index != ROOT {
                    settled.add(index, &record)?;
                }
            }
            if changed {
                self.entries.write_at(&buffer, offset)?;
            }
            chunk_end = start;
        }
        Ok(())
    }
}

/// What the entries of one directory have said of it.
#[derive(Clone, Copy)]
struct Group {
    parent: u32,
    first: u32,
    children: u32,
    newest_ns: i64,
}

/// Groups of entries in the order of their directories, from the last to the first.
struct Groups {
    complete: Queue,
    /// The oldest of those, taken out already.
    front: Option<Group>,
    /// The group that may still grow.
    growing: Option<Group>,
    bytes: Vec<u8>,
}

impl Groups {
    fn new(scratch: &Scratch) -> Self {
        Self {
            complete: Queue::new(scratch),
            front: None,
            growing: None,
            bytes: Vec::new(),
        }
    }

    fn add(&mut self, index: u32, entry: &Record) -> Result<(), BuildError> {
        match &mut self.growing {
            Some(group) if group.parent == entry.parent => {
                group.first = index;
                group.children += 1;
                group.newest_ns = group.newest_ns.max(entry.mtime_ns);
            }
            growing => {
                let new = Group {
                    parent: entry.parent,
                    first: index,
                    children: 1,
                    newest_ns: entry.mtime_ns,
                };
                if let Some(complete) = growing.replace(new) {
                    self.complete.push(&complete.bytes())?;
                }
            }
        }
        Ok(())
    }

    /// The group of a directory, if it has entries.
    fn of(&mut self, directory: u32) -> Result<Option<Group>, BuildError> {
        if self.front.is_none() && self.complete.pop(&mut self.bytes)? {
            self.front = Some(Group::read(&self.bytes));
        }
        let oldest = if self.front.is_some() {
            &mut self.front
        } else {
            &mut self.growing
        };
        Ok(oldest.take_if(|group| group.parent == directory))
    }
}

impl Group {
    fn bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.parent.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.first.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.children.to_le_bytes());
        bytes[12..].copy_from_slice(&self.newest_ns.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Self {
        Self {
            parent: format::read_u32(bytes, 0),
            first: format::read_u32(bytes, 4),
            children: format::read_u32(bytes, 8),
            newest_ns: format::read_u64(bytes, 12).cast_signed(),
        }
    }
}

/// The way forwards.
struct Writer<'a> {
    tables: Tables,
    mounts: &'a [Mount],
    /// Directories whose entries come later.
    directories: Queue,
    /// The directory whose entries come now; None before the root.
    parent: Option<Parent>,
    carried: Option<Carried<'a>>,
    scratch: &'a Scratch,
    bytes: Vec<u8>,
}

struct Parent {
    index: u32,
    path: Vec<u8>,
}

/// The entry that was written last.
struct Last {
    path: Vec<u8>,
    /// None of a directory.
    mount: Option<u16>,
}

impl<'a> Writer<'a> {
    fn new(mounts: &'a [Mount], previous: Option<&'a Manifest>, scratch: &'a Scratch) -> Self {
        Self {
            tables: Tables {
                entries: Spool::new(scratch),
                names: Spool::new(scratch),
                versions: Spool::new(scratch),
                inodes: None,
                count: 0,
                files: 0,
                directories: 0,
                bytes: 0,
                blocks: 0,
            },
            mounts,
            directories: Queue::new(scratch),
            parent: None,
            carried: previous.map(|previous| Carried::new(previous, scratch)),
            scratch,
            bytes: Vec::new(),
        }
    }

    fn write(&mut self, mut records: Merge, left_out: &mut LeftOuts) -> Result<(), BuildError> {
        let mut last: Option<Last> = None;
        while let Some(record) = records.next()? {
            let listed = listed::read(record);
            let (path, found) = listed.ok_or_else(|| self.scratch.damaged())?;
            if let Some(last) = last.as_ref().filter(|last| last.path == path) {
                if let Found::File(file) = found {
                    self.leave_out(last, path, file.mount, left_out)?;
                }
                continue;
            }
            self.entry(path, found)?;
            let last = last.get_or_insert_with(|| Last {
                path: Vec::new(),
                mount: None,
            });
            last.path.clear();
            last.path.extend_from_slice(path);
            last.mount = match found {
                Found::Directory(_) => None,
                Found::File(file) => Some(file.mount),
            };
        }
        Ok(())
    }

    /// Counts a file that lost against the entry before it.
    fn leave_out(
        &self,
        kept: &Last,
        path: &[u8],
        mount: u16,
        left_out: &mut LeftOuts,
    ) -> Result<(), BuildError> {
        let reason = match kept.mount {
            None => LeftOut::ShadowedByDirectory,
            Some(kept) if kept == mount => LeftOut::ListedTwice,
            Some(_) => LeftOut::ShadowedByMount,
        };
        let mount = self.mount(mount)?;
        // Names end with a zero byte here, those of the mount's own path, too.
        let top = match mount.path.len() {
            0 => 0,
            length => length + 1,
        };
        let below = path.get(top..).unwrap_or_default();
        let below = below.strip_suffix(b"\0").unwrap_or(below);
        let mut key = mount.prefix.clone().into_bytes();
        key.extend(
            below
                .iter()
                .map(|byte| if *byte == 0 { b'/' } else { *byte }),
        );
        left_out.add(reason, &key);
        Ok(())
    }

    fn mount(&self, number: u16) -> Result<&'a Mount, BuildError> {
        let mount = self.mounts.get(usize::from(number));
        mount.ok_or_else(|| self.scratch.damaged())
    }

    fn entry(&mut self, path: &[u8], found: Found<'_>) -> Result<(), BuildError> {
        let index = self.tables.count;
        if let Found::File(file) = found {
            self.mount(file.mount)?;
        }
        let (parent, name) = match listed::split(path) {
            None => (ROOT, &b""[..]),
            Some((directory, name)) => (self.enter(directory)?, name),
        };
        let twin = match &mut self.carried {
            None => NONE,
            Some(carried) => {
                let file = match found {
                    Found::Directory(_) => None,
                    Found::File(file) => Some((file, self.mounts)),
                };
                carried.entry(index, name, file)?
            }
        };
        let start = self.tables.names.len() as usize;
        self.tables.names.append(name)?;
        let mut record = Record {
            parent,
            name: start..start + name.len(),
            kind: EntryKind::File,
            mount: 0,
            version: 0,
            a: 0,
            mtime_ns: 0,
        };
        match found {
            Found::Directory(mtime_ns) => {
                record.kind = EntryKind::Directory;
                record.mtime_ns = mtime_ns;
                self.tables.directories += 1;
                self.bytes.clear();
                self.bytes.extend_from_slice(&index.to_le_bytes());
                self.bytes.extend_from_slice(&twin.to_le_bytes());
                self.bytes.extend_from_slice(path);
                self.directories.push(&self.bytes)?;
            }
            Found::File(file) => {
                record.mount = file.mount;
                record.mtime_ns = file.mtime_ns;
                record.a = file.size;
                record.version = self.tables.versions.len() as u32;
                self.tables.versions.append(file.version)?;
                self.tables.files += 1;
                self.tables.bytes += file.size;
                self.tables.blocks += u64::from(block_count(file.size));
            }
        }
        let most = u64::from(u32::MAX);
        if self.tables.names.len() > most || self.tables.versions.len() > most {
            return Err(BuildError::TooLarge("bytes of names"));
        }
        self.tables.entries.append(&record.bytes())?;
        let count = index.checked_add(1);
        self.tables.count = count.ok_or(BuildError::TooLarge("entries"))?;
        Ok(())
    }

    /// Goes on to the directory at `path`, and gives its index.
    fn enter(&mut self, path: &[u8]) -> Result<u32, BuildError> {
        loop {
            if let Some(parent) = self.parent.as_ref().filter(|parent| parent.path == path) {
                return Ok(parent.index);
            }
            if !self.directories.pop(&mut self.bytes)? {
                return Err(self.scratch.damaged());
            }
            if let Some(carried) = &mut self.carried {
                carried.enter(format::read_u32(&self.bytes, 4));
            }
            self.parent = Some(Parent {
                index: format::read_u32(&self.bytes, 0),
                path: self.bytes.split_off(8),
            });
        }
    }
}

/// No entry of the previous manifest.
const NONE: u32 = u32::MAX;

/// The inode numbers of entries that did not change since the previous snapshot, and fresh ones for the others.
struct Carried<'a> {
    old: &'a Manifest,
    /// The entries of the previous directory that have not been passed yet.
    twins: Range<u32>,
    by_entry: Spool,
    by_inode: Sorter,
    next: u64,
}

impl<'a> Carried<'a> {
    fn new(old: &'a Manifest, scratch: &Scratch) -> Self {
        Self {
            old,
            twins: ROOT..ROOT + 1,
            by_entry: Spool::new(scratch),
            by_inode: Sorter::new(scratch, scratch.run_bytes / 4),
            next: old.summary().next_inode,
        }
    }

    /// Goes on to the entries of a directory.
    fn enter(&mut self, twin: u32) {
        self.twins = match twin {
            NONE => 0..0,
            twin => self.old.children(twin),
        };
    }

    /// Gives the next entry its number, and the previous entry of its path and kind. `file` is None of a directory.
    fn entry(
        &mut self,
        index: u32,
        name: &[u8],
        file: Option<(ListedFile<'_>, &[Mount])>,
    ) -> Result<u32, BuildError> {
        if index.is_multiple_of(RELEASE_EVERY) {
            self.old.release();
        }
        let kind = match file {
            None => EntryKind::Directory,
            Some(_) => EntryKind::File,
        };
        let twin = self
            .find(name)
            .filter(|twin| self.old.entry(*twin).kind == kind);
        let same = twin.filter(|twin| {
            file.is_none_or(|(file, mounts)| {
                let version = format::read_version(file.version, 0).unwrap_or_default();
                let mount = &mounts[usize::from(file.mount)];
                self.old
                    .is_same_file(*twin, mount, file.size, file.mtime_ns, &version)
            })
        });
        let inode = same.map_or(self.next, |twin| self.old.inode(twin));
        self.next += u64::from(same.is_none());
        self.by_entry.append(&inode.to_le_bytes())?;
        let mut pair = [0; 12];
        pair[..8].copy_from_slice(&inode.to_be_bytes());
        pair[8..].copy_from_slice(&index.to_be_bytes());
        self.by_inode.push(&pair)?;
        if self.by_inode.is_full() {
            self.by_inode.make_room()?;
        }
        Ok(twin.unwrap_or(NONE))
    }

    /// The previous entry of this name. Names come in order.
    fn find(&mut self, name: &[u8]) -> Option<u32> {
        while let Some(twin) = self.twins.clone().next() {
            match self.old.entry(twin).name.as_bytes().cmp(name) {
                std::cmp::Ordering::Less => self.twins.start += 1,
                std::cmp::Ordering::Equal => return Some(twin),
                std::cmp::Ordering::Greater => break,
            }
        }
        None
    }

    fn finish(self, scratch: &Scratch) -> Result<Inodes, BuildError> {
        let mut by_inode = Spool::new(scratch);
        let mut pairs = self.by_inode.finish()?;
        while let Some(pair) = pairs.next()? {
            let index = format::read_u32(pair, 8).swap_bytes();
            by_inode.append(&index.to_le_bytes())?;
        }
        Ok(Inodes {
            by_entry: self.by_entry,
            by_inode,
            next: self.next,
        })
    }
}
