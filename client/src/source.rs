//! Where a reader's blocks come from: a worker in this process, or the workers of a cluster.
//!
//! Readers and the prefetcher know the trait alone. Which of the two it is, is decided once, when a mount is made.

use std::ops::Range;

use bytes::Bytes;
use weir_core::Block;
use weir_core::manifest::Mount;
use weir_worker::{FillWork, PrefetchAnswer};

use crate::error::{BatchError, BlockError};
use crate::metrics::ReadSource;

pub(crate) mod any;
pub(crate) mod cluster;
pub(crate) mod embedded;
#[cfg(test)]
pub(crate) mod fake;

/// Gives the blocks of one dataset. A clone is another handle of the same source.
pub trait BlockSource: Clone + Send + Sync + 'static {
    /// Appends the bytes of `range` of a block to `bytes`, if they can be had without waiting for a network, and says
    /// where they were. Blocks the thread on the disk at most, and allocates nothing of its own.
    fn read_cached(
        &self,
        block: &Block,
        range: &Range<u32>,
        bytes: &mut Vec<Bytes>,
    ) -> Option<ReadSource>;

    /// As [`Self::read_cached`] of whole blocks, with few reads of the disk.
    fn read_cached_whole(&self, blocks: &[&Block]) -> Vec<Option<(Vec<Bytes>, ReadSource)>>;

    /// The bytes of `range` of a block, from wherever they are. `mount` is the one that the block's file comes from.
    /// Fills that this read started and that are still under way are pushed to `unfinished`, to be awaited soon.
    fn read(
        &self,
        mount: &Mount,
        block: &Block,
        range: Range<u32>,
        unfinished: &mut Vec<FillWork>,
    ) -> impl Future<Output = Result<(Vec<Bytes>, ReadSource), BlockError>> + Send;

    /// Reads whole blocks to their places, many with one exchange. Says of each block, in their order, what became of it.
    fn read_together(
        &self,
        blocks: Vec<(&Block, &mut [u8])>,
    ) -> impl Future<Output = Vec<Result<ReadSource, BatchError>>> + Send;

    /// Asks for a block to be fetched into a tier before anybody reads it. The answer comes once there was a place for it
    /// among others that nobody waits for, not when it is fetched.
    fn prefetch(&self, block: &Block) -> impl Future<Output = PrefetchAnswer> + Send;

    /// How many blocks ahead of one sequential reader are worth a request.
    fn prefetch_window(&self) -> u32;

    /// Whether requests to prefetch may be accepted, as far as is known without asking.
    fn may_prefetch(&self) -> bool;

    /// Counts bytes that were read, where the source counts too.
    fn count(&self, source: ReadSource, bytes: u64);
}
