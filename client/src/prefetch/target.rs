//! Where prefetched files go, and what the prefetcher and the kernel's face say to each other about it.

use std::sync::Arc;

/// Where small files are prefetched to. Blocks of big files go into the tiers, unless it is off.
#[derive(Clone)]
pub enum ReadAheadTarget {
    /// Nowhere: everything is read when it is asked for.
    Off,
    /// Into the tiers of the worker in this process, or of the blocks' owners.
    Tiers,
    /// Into the kernel's page cache.
    PageCache(Arc<dyn PageCache>),
}

/// The kernel's page cache, as a place for files that nobody has asked for yet.
pub trait PageCache: Send + Sync {
    /// Queues files to be put there. False when the queue is full; the batch is then dropped.
    fn enqueue(&self, batch: Batch) -> bool;
}

/// Most bytes of the files of a [`Batch`] together.
pub const BATCH_BYTES: usize = 2 << 20;

/// Small files of one directory that are prefetched together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The directory's index in the manifest.
    pub directory: u32,
    /// Whether the kernel should learn all names and attributes of the directory first.
    pub list: bool,
    /// Their indexes in the manifest.
    pub files: Vec<u32>,
}

/// A whole file in a [`Batch`]'s memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Its index in the manifest.
    pub file: u32,
    /// Where its bytes begin.
    pub offset: usize,
    /// How many they are.
    pub length: usize,
}
