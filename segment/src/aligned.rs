//! Memory that direct I/O accepts: buffers that start and end on a page, and a bounded pool that reuses them.
//!
//! A fresh buffer costs a page fault per page, which for a block of 100 KiB is a good part of the read itself;
//! a reused one costs nothing. Buffers are of [huge pages](super::huge) where those suffice.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;
use parking_lot::Mutex;

use super::huge;
use super::pages::PageSums;

/// What direct I/O aligns to: offsets, lengths and memory addresses, in bytes.
pub(super) const PAGE: u64 = 4096;

/// Rounds down to a page.
pub(super) const fn page_floor(at: u64) -> u64 {
    at & !(PAGE - 1)
}

/// Rounds up to a page.
pub(super) const fn page_ceil(at: u64) -> u64 {
    (at + PAGE - 1) & !(PAGE - 1)
}

/// Long buffers have huge pages, in bytes.
const LONG: usize = 2 << 20;

/// A buffer whose first byte lies on a page and whose length is a whole number of pages.
#[derive(Debug)]
pub(super) struct AlignedBuf {
    // Longer than needed, so that some page starts inside; never grown, so it never moves.
    memory: Memory,
    start: usize,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(Box<[u8]>),
    Mapped(MmapMut),
    /// One of the huge buffers that all pools share.
    Shared(&'static mut [u8]),
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(memory) => memory,
            Self::Mapped(memory) => memory,
            Self::Shared(memory) => memory,
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(memory) => memory,
            Self::Mapped(memory) => memory,
            Self::Shared(memory) => memory,
        }
    }
}

impl AlignedBuf {
    /// A zeroed buffer of at least `len` bytes.
    pub(super) fn zeroed(len: usize) -> Self {
        let len = page_ceil(len as u64) as usize;
        let mapped = (len >= LONG).then(|| huge::map(len)).flatten();
        if let Some((memory, start)) = mapped {
            let memory = Memory::Mapped(memory);
            return Self { memory, start, len };
        }
        let memory = vec![0; len + PAGE as usize].into_boxed_slice();
        let start = memory.as_ptr().align_offset(PAGE as usize);
        let memory = Memory::Heap(memory);
        Self { memory, start, len }
    }

    /// One of the huge buffers that all pools share, with whatever it held before; `None` when none is free.
    fn shared(len: usize) -> Option<Self> {
        let memory = huge::take(len)?;
        Some(Self {
            start: 0,
            len: memory.len(),
            memory: Memory::Shared(memory),
        })
    }

    /// Bytes that fit.
    pub(super) fn capacity(&self) -> usize {
        self.len
    }

    /// The whole buffer.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The whole buffer, to fill.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Keeps buffers of finished reads for the next ones, up to a number of bytes, and checksums of pages that they needed.
#[derive(Debug)]
pub struct BufferPool {
    free: Mutex<Free>,
    max_bytes: usize,
    page_sums: PageSums,
}

#[derive(Debug, Default)]
struct Free {
    buffers: Vec<AlignedBuf>,
    bytes: usize,
}

/// Most buffers that a pool looks through, so that taking one stays cheap.
const MAX_BUFFERS: usize = 64;

impl BufferPool {
    /// A pool that keeps at most `max_bytes` of unused buffers.
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::default(),
            max_bytes,
            page_sums: PageSums::default(),
        })
    }

    pub(super) fn page_sums(&self) -> &PageSums {
        &self.page_sums
    }

    /// A buffer of at least `len` bytes, and not many more: a slice of it may live long in a cache.
    ///
    /// Its content is whatever it held before.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> PooledBuf {
        let buffer = AlignedBuf::shared(len)
            .or_else(|| self.reused(len))
            .unwrap_or_else(|| AlignedBuf::zeroed(len));
        PooledBuf {
            buffer: Some(buffer),
            pool: Arc::clone(self),
        }
    }

    fn reused(&self, len: usize) -> Option<AlignedBuf> {
        let mut free = self.free.lock();
        let fits = |b: &AlignedBuf| b.capacity() >= len && b.capacity() / 2 <= len;
        let at = free.buffers.iter().rposition(fits)?;
        let buffer = free.buffers.swap_remove(at);
        free.bytes -= buffer.capacity();
        Some(buffer)
    }

    fn give_back(&self, buffer: AlignedBuf) {
        let buffer = match buffer.memory {
            Memory::Shared(memory) => return huge::give_back(memory),
            _ => buffer,
        };
        let mut free = self.free.lock();
        if free.buffers.len() < MAX_BUFFERS && free.bytes + buffer.capacity() <= self.max_bytes {
            free.bytes += buffer.capacity();
            free.buffers.push(buffer);
        }
    }
}

/// A buffer that goes back to its pool when it is dropped.
#[derive(Debug)]
pub(super) struct PooledBuf {
    // Taken out only by drop.
    buffer: Option<AlignedBuf>,
    pool: Arc<BufferPool>,
}

impl PooledBuf {
    /// The whole buffer, to fill.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], AlignedBuf::bytes_mut)
    }
}

impl AsRef<[u8]> for PooledBuf {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], AlignedBuf::bytes)
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.give_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_starts_and_ends_on_a_page() {
        for len in [1, 4095, 4096, 4097, 1 << 20] {
            let buffer = AlignedBuf::zeroed(len);
            assert!(buffer.capacity() >= len);
            assert_eq!(buffer.bytes().len() % 4096, 0);
            assert_eq!(buffer.bytes().as_ptr().addr() % 4096, 0);
        }
    }

    #[test]
    fn a_pool_reuses_a_buffer_of_fitting_size_and_keeps_no_more_than_its_limit() {
        const HERE: usize = 4 << 20; // longer than the buffers that all pools share
        let pool = BufferPool::new(2 * HERE);
        let first = pool.take(HERE);
        let address = first.as_ref().as_ptr().addr();
        drop(first);
        assert_ne!(
            pool.take(1).as_ref().as_ptr().addr(),
            address,
            "far too long"
        );
        let again = pool.take(HERE - 4096);
        assert_eq!(again.as_ref().as_ptr().addr(), address);
        let (second, third) = (pool.take(HERE), pool.take(HERE));
        drop((again, second, third));
        assert!(pool.free.lock().bytes <= 2 * HERE);
    }
}
