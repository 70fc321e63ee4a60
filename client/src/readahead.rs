//! Where files are read ahead to, and what the prefetcher asks of the kernel's face for it.

use std::sync::Arc;

/// Where small files go ahead of their readers.
#[derive(Clone)]
pub enum ReadAheadTarget {
    /// Nowhere: every file is read when it is asked for.
    Off,
    /// Into the tiers of the worker in this process, if there is one.
    Tiers,
    /// Into the kernel's page cache.
    PageCache(Arc<dyn ReadAhead>),
}

/// Reads ahead through the mount itself. Orders are wishes: one that does not fit in is dropped.
pub trait ReadAhead: Send + Sync {
    /// Has the kernel learn the names and attributes of a directory, by its path in the snapshot.
    fn list(&self, directory: &str);

    /// Whether this thread follows the orders, so that what it reads is ahead of any reader.
    fn is_own(&self, thread: u32) -> bool;

    /// Has the kernel read a whole file into its page cache, by its path in the snapshot. False when too many orders
    /// wait already.
    fn read(&self, file: &str) -> bool;
}
