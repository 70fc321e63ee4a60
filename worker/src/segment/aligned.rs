//! Memory that direct I/O accepts: buffers that start and end on a page, and a bounded pool that reuses them.
//!
//! A fresh buffer costs a page fault per page, which for a block of 100 KiB is a good part of the read itself;
//! a reused one costs nothing.

use std::sync::Arc;

use parking_lot::Mutex;

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

/// A buffer whose first byte lies on a page and whose length is a whole number of pages.
#[derive(Debug)]
pub(super) struct AlignedBuf {
    // Longer than needed by a page, so that some page starts inside; never grown, so it never moves.
    memory: Box<[u8]>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A zeroed buffer of at least `len` bytes.
    pub(super) fn zeroed(len: usize) -> Self {
        let len = page_ceil(len as u64) as usize;
        let memory = vec![0; len + PAGE as usize].into_boxed_slice();
        let address = memory.as_ptr().addr();
        let start = page_ceil(address as u64) as usize - address;
        Self { memory, start, len }
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

/// Keeps buffers of finished reads for the next ones, up to a number of bytes.
#[derive(Debug)]
pub struct BufferPool {
    free: Mutex<Free>,
    max_bytes: usize,
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
        })
    }

    /// A buffer of at least `len` bytes, and not many more: a slice of it may live long in a cache.
    ///
    /// Its content is whatever it held before.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> PooledBuf {
        let reused = {
            let mut free = self.free.lock();
            let fits = |b: &AlignedBuf| b.capacity() >= len && b.capacity() / 2 <= len;
            free.buffers.iter().rposition(fits).map(|at| {
                let buffer = free.buffers.swap_remove(at);
                free.bytes -= buffer.capacity();
                buffer
            })
        };
        PooledBuf {
            buffer: Some(reused.unwrap_or_else(|| AlignedBuf::zeroed(len))),
            pool: Arc::clone(self),
        }
    }

    fn give_back(&self, buffer: AlignedBuf) {
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
        let pool = BufferPool::new(16 << 10);
        let first = pool.take(8 << 10);
        let address = first.as_ref().as_ptr().addr();
        drop(first);
        assert_ne!(
            pool.take(1).as_ref().as_ptr().addr(),
            address,
            "far too long"
        );
        let again = pool.take(7 << 10);
        assert_eq!(again.as_ref().as_ptr().addr(), address);
        let (second, third) = (pool.take(8 << 10), pool.take(8 << 10));
        drop((again, second, third));
        assert!(pool.free.lock().bytes <= 16 << 10);
    }
}
