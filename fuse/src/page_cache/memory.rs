//! Memory that the server and the process that stores share: the one writes files to it, the other gives them to
//! the kernel. It is cut into slots of equal size.
//!
//! Invariant: a slot is written only through its [`Place`], of which there is at most one, and read by the other
//! process only while no place of it exists. The file can neither grow nor shrink, so no access can fail.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use weir_client::BATCH_BYTES;

/// Bytes of a slot.
pub(super) const SLOT_BYTES: usize = BATCH_BYTES;
/// Slots of the memory.
pub(super) const SLOTS: usize = 12;

const BYTES: usize = SLOTS * SLOT_BYTES;

/// A mapping of the memory.
struct Mapping(NonNull<u8>);

// SAFETY: it is memory like any other; who may touch which part of it is the invariant above.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: BorrowedFd<'_>, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let start =
            unsafe { rustix::mm::mmap(null_mut(), BYTES, protection, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start.cast::<u8>());
        start
            .map(Self)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Where a slot begins.
    fn slot(&self, number: usize) -> *mut u8 {
        assert!(number < SLOTS, "slot {number} of {SLOTS}");
        // SAFETY: the mapping has `SLOTS` slots.
        unsafe { self.0.as_ptr().add(number * SLOT_BYTES) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from a mapping that is dropped. A failure would leave it mapped.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), BYTES) };
    }
}

/// The side that writes.
pub(super) struct Memory {
    file: OwnedFd,
    mapping: Mapping,
    free: Mutex<Vec<usize>>,
    freed: Condvar,
}

impl Memory {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("weir-read-ahead", flags)?;
        rustix::fs::ftruncate(&file, BYTES as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        let mapping = Mapping::new(file.as_fd(), ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Arc::new(Self {
            file,
            mapping,
            free: Mutex::new((0..SLOTS).collect()),
            freed: Condvar::new(),
        }))
    }

    /// What the other process maps.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Waits for a free slot.
    pub(super) fn place(self: &Arc<Self>, deadline: Duration) -> Option<Place> {
        let mut free = self.free.lock();
        if free.is_empty() {
            self.freed.wait_for(&mut free, deadline);
        }
        let number = free.pop()?;
        Some(Place {
            memory: self.clone(),
            number: Some(number),
        })
    }

    /// The other process has read a slot.
    pub(super) fn was_read(&self, number: usize) {
        let mut free = self.free.lock();
        if number < SLOTS && !free.contains(&number) {
            free.push(number); // the last one first: it is still in the processor's caches
            self.freed.notify_one();
        }
    }
}

/// A slot that is being written.
pub(super) struct Place {
    memory: Arc<Memory>,
    /// None once it was handed over.
    number: Option<usize>,
}

impl Place {
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let Some(number) = self.number else {
            return &mut [];
        };
        let start = self.memory.mapping.slot(number);
        // SAFETY: the slot is inside the mapping, which `memory` keeps, and this is its only place.
        unsafe { std::slice::from_raw_parts_mut(start, SLOT_BYTES) }
    }

    /// Leaves the slot, by its number, to the other process.
    pub(super) fn hand_over(mut self) -> Option<usize> {
        self.number.take()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.memory.was_read(number);
        }
    }
}

/// The side that reads.
pub(super) struct View(Mapping);

impl View {
    pub(super) fn new(file: BorrowedFd<'_>) -> io::Result<Self> {
        Mapping::new(file, ProtFlags::READ).map(Self)
    }

    /// A slot that was handed over and not yet reported as read.
    pub(super) fn slot(&self, number: usize) -> Option<&[u8]> {
        if number >= SLOTS {
            return None;
        }
        let start = self.0.slot(number);
        // SAFETY: the slot is inside the mapping, and by the invariant nobody writes to it now.
        Some(unsafe { std::slice::from_raw_parts(start, SLOT_BYTES) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_side_sees_what_was_written_and_slots_come_back() {
        let memory = Memory::new().unwrap();
        let view = View::new(memory.file()).unwrap();
        let mut handed_over = Vec::new();
        for value in 0..SLOTS {
            let mut place = memory.place(Duration::ZERO).unwrap();
            place.bytes().fill(value as u8);
            handed_over.push(place.hand_over().unwrap());
        }
        assert!(memory.place(Duration::ZERO).is_none());
        for (value, number) in handed_over.iter().enumerate() {
            let slot = view.slot(*number).unwrap();
            assert!(slot.iter().all(|byte| *byte == value as u8));
            memory.was_read(*number);
            memory.was_read(*number); // said twice
        }
        assert!(view.slot(SLOTS).is_none());
        let places: Vec<_> = std::iter::from_fn(|| memory.place(Duration::ZERO)).collect();
        assert_eq!(places.len(), SLOTS);
        drop(places);
        assert!(memory.place(Duration::ZERO).is_some(), "dropped is free");
    }
}
