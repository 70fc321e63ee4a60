//! Requests that are under way, in memory that all servers of a mount share: for kernels that do not send again what a dead server
//! had read (before Linux 6.9).
//!
//! A server enters each request before it works on it, and strikes it out when the kernel has its answer. Whoever follows it finds
//! what is left. The kernel takes one answer to each request and refuses a second with ENOENT, so an entry that is left
//! though its request was answered does no harm.
//!
//! Invariant: an entry is written by the one who has taken its place, and counts from the moment when its number is stored. The file
//! can neither grow nor shrink, so no access can fail.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::Errno;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use weir_core::{EntryKind, Manifest};

/// Requests that can be under way at once; the kernel has at most half as many reads.
const ENTRIES: usize = 32 << 10;
/// Places that are tried for one.
const TRIED: usize = 64;
/// What stands in a place that is free, and in one that is being written. The kernel's numbers are even, and begin at 2.
const FREE: u64 = 0;
const TAKEN: u64 = 1;
/// The kernel's numbers go up by this.
const STEP: u64 = 2;
/// Requests around the newest one that was entered which a server may have read, and died before it came to enter them.
const OLDER: u64 = 32 << 10;
const NEWER: u64 = 4 << 10;

#[repr(C)]
struct Table {
    /// The newest number that was entered.
    newest: AtomicU64,
    entries: [Entry; ENTRIES],
}

#[repr(C)]
struct Entry {
    unique: AtomicU64,
    inode: AtomicU64,
    offset: AtomicU64,
    size: AtomicU64,
}

/// A read of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) inode: u64,
    pub(crate) offset: u64,
    /// Bytes; 0 for what is no read.
    pub(crate) size: u64,
}

impl Read {
    /// The file, and up to where the part of it that is asked for goes.
    pub(crate) fn extent(&self, manifest: &Manifest) -> Result<(u32, u64), Errno> {
        let file = manifest.by_inode(self.inode).ok_or(Errno::ESTALE)?;
        let entry = manifest.entry(file);
        if entry.kind == EntryKind::Directory {
            return Err(Errno::EISDIR);
        }
        Ok((file, self.offset.saturating_add(self.size).min(entry.size)))
    }
}

/// A request that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    place: usize,
    pub(crate) unique: u64,
    /// `None` for what is no read.
    pub(crate) read: Option<Read>,
}

/// Where a request was entered.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Place(usize);

/// The table, as this process sees it.
#[derive(Debug)]
pub struct InFlight(NonNull<Table>);

// SAFETY: all of it is atomic.
unsafe impl Send for InFlight {}
// SAFETY: as above.
unsafe impl Sync for InFlight {}

/// Memory for a table. Pages that no entry was written to take none.
///
/// # Errors
/// When the system gives none.
pub fn memory() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("weir-in-flight", flags)?;
    rustix::fs::ftruncate(&file, size_of::<Table>() as u64)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file)
}

impl InFlight {
    /// The table in such memory.
    ///
    /// # Errors
    /// When it is other memory, or cannot be mapped.
    pub fn new(memory: impl AsFd) -> io::Result<Self> {
        let length = rustix::fs::fstat(&memory)?.st_size;
        let seals = rustix::fs::fcntl_get_seals(&memory)?;
        if length != size_of::<Table>() as i64 || !seals.contains(SealFlags::SHRINK) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let start = unsafe {
            rustix::mm::mmap(
                null_mut(),
                size_of::<Table>(),
                protection,
                MapFlags::SHARED,
                memory,
                0,
            )?
        };
        let start = NonNull::new(start.cast::<Table>());
        start
            .map(Self)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn table(&self) -> &Table {
        // SAFETY: the mapping is as long as the table, which is atomics of any value, and lives as long as this.
        unsafe { self.0.as_ref() }
    }

    /// Enters a request. `None` if there is no place: it is then known by its number alone.
    pub(crate) fn enter(&self, unique: u64, read: Option<Read>) -> Option<Place> {
        let table = self.table();
        table.newest.fetch_max(unique, Ordering::Relaxed);
        let first = (unique / STEP) as usize;
        let place = (first..first + TRIED).map(|at| at % ENTRIES).find(|at| {
            let unique = &table.entries[*at].unique;
            let taken = (Ordering::Acquire, Ordering::Relaxed);
            unique.load(Ordering::Relaxed) == FREE
                && unique
                    .compare_exchange(FREE, TAKEN, taken.0, taken.1)
                    .is_ok()
        })?;
        let entry = &table.entries[place];
        let read = read.unwrap_or(Read {
            inode: 0,
            offset: 0,
            size: 0,
        });
        entry.inode.store(read.inode, Ordering::Relaxed);
        entry.offset.store(read.offset, Ordering::Relaxed);
        entry.size.store(read.size, Ordering::Relaxed);
        entry.unique.store(unique, Ordering::Release);
        Some(Place(place))
    }

    /// Strikes out a request whose answer the kernel has.
    pub(crate) fn answered(&self, place: Place) {
        self.free(place.0);
    }

    /// As [`Self::answered`], of one that was left by another server.
    pub(crate) fn settled(&self, left: Left) {
        self.free(left.place);
    }

    fn free(&self, place: usize) {
        self.table().entries[place]
            .unique
            .store(FREE, Ordering::Release);
    }

    /// What servers of before have left. Call while none works.
    pub(crate) fn left(&self) -> Vec<Left> {
        let entries = self.table().entries.iter().enumerate();
        let left = entries.filter_map(|(place, entry)| {
            let unique = entry.unique.load(Ordering::Acquire);
            if unique == TAKEN {
                self.free(place); // who was writing it is dead
            }
            let read = Read {
                inode: entry.inode.load(Ordering::Relaxed),
                offset: entry.offset.load(Ordering::Relaxed),
                size: entry.size.load(Ordering::Relaxed),
            };
            (unique > TAKEN).then_some(Left {
                place,
                unique,
                read: (read.size > 0).then_some(read),
            })
        });
        left.collect()
    }

    /// Numbers of requests that may have been read and not entered, beside those that were.
    pub(crate) fn around(&self) -> impl Iterator<Item = u64> {
        let newest = self.table().newest.load(Ordering::Relaxed);
        let oldest = newest.saturating_sub(OLDER * STEP).max(STEP);
        (oldest..=newest + NEWER * STEP).step_by(STEP as usize)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from a mapping that is dropped. A failure would leave it mapped.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), size_of::<Table>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Read = Read {
        inode: 7,
        offset: 4096,
        size: 100,
    };

    #[test]
    fn the_next_server_finds_what_was_entered_and_not_answered() {
        let memory = memory().unwrap();
        let before = InFlight::new(&memory).unwrap();
        let answered = before.enter(2, Some(READ)).unwrap();
        let _ = before.enter(4, Some(READ)).unwrap();
        let _ = before.enter(6, None).unwrap();
        before.answered(answered);
        before.table().entries[9]
            .unique
            .store(TAKEN, Ordering::Relaxed); // it died there
        drop(before);
        let next = InFlight::new(&memory).unwrap();
        let left = next.left();
        let found: Vec<_> = left.iter().map(|left| (left.unique, left.read)).collect();
        assert_eq!(found, [(4, Some(READ)), (6, None)]);
        for left in left {
            next.settled(left);
        }
        assert!(next.left().is_empty());
        let around: Vec<u64> = next.around().collect();
        assert_eq!((around[0], around[1]), (2, 4));
        assert_eq!(around.last(), Some(&(6 + NEWER * STEP)));
    }

    #[test]
    fn a_place_that_is_taken_is_gone_around_and_a_full_table_says_so() {
        let table = InFlight::new(memory().unwrap()).unwrap();
        let same = |n: u64| STEP * (1 + n * ENTRIES as u64);
        for n in 0..TRIED as u64 {
            let _ = table.enter(same(n), None).unwrap();
        }
        assert!(table.enter(same(TRIED as u64), None).is_none());
        assert_eq!(table.left().len(), TRIED);
        assert_eq!(
            table.around().last(),
            Some(same(TRIED as u64) + NEWER * STEP)
        );
        assert!(InFlight::new(tempfile::tempfile().unwrap()).is_err());
    }
}
