//! One of the sources, chosen when a mount is made. An enum, since a `dyn` source would allocate for each read that waits.

use std::ops::Range;

use bytes::Bytes;
use weir_core::Block;
use weir_core::manifest::Mount;
use weir_worker::{FillWork, PrefetchAnswer};

use super::BlockSource;
use super::cluster::ClusterSource;
use super::embedded::EmbeddedSource;
#[cfg(test)]
use super::fake::FakeSource;
use crate::error::{BatchError, BlockError};
use crate::metrics::ReadSource;

/// A source of either kind.
#[derive(Clone)]
pub enum AnySource {
    /// A worker in this process.
    Embedded(EmbeddedSource),
    /// The workers of a cluster.
    Cluster(ClusterSource),
    /// What a test says.
    #[cfg(test)]
    Fake(FakeSource),
}

/// Does the same with whichever source it is.
macro_rules! with {
    ($any:expr, $source:ident => $work:expr) => {
        match $any {
            AnySource::Embedded($source) => $work,
            AnySource::Cluster($source) => $work,
            #[cfg(test)]
            AnySource::Fake($source) => $work,
        }
    };
}

impl BlockSource for AnySource {
    fn read_cached(
        &self,
        block: &Block,
        range: &Range<u32>,
        bytes: &mut Vec<Bytes>,
    ) -> Option<ReadSource> {
        with!(self, source => source.read_cached(block, range, bytes))
    }

    fn read_cached_whole(&self, blocks: &[&Block]) -> Vec<Option<(Vec<Bytes>, ReadSource)>> {
        with!(self, source => source.read_cached_whole(blocks))
    }

    async fn read(
        &self,
        mount: &Mount,
        block: &Block,
        range: Range<u32>,
        unfinished: &mut Vec<FillWork>,
    ) -> Result<(Vec<Bytes>, ReadSource), BlockError> {
        with!(self, source => source.read(mount, block, range, unfinished).await)
    }

    async fn read_together(
        &self,
        blocks: Vec<(&Block, &mut [u8])>,
    ) -> Vec<Result<ReadSource, BatchError>> {
        with!(self, source => source.read_together(blocks).await)
    }

    async fn prefetch(&self, block: &Block) -> PrefetchAnswer {
        with!(self, source => source.prefetch(block).await)
    }

    fn prefetch_window(&self) -> u32 {
        with!(self, source => source.prefetch_window())
    }

    fn may_prefetch(&self) -> bool {
        with!(self, source => source.may_prefetch())
    }

    fn count(&self, source: ReadSource, bytes: u64) {
        with!(self, any => any.count(source, bytes));
    }
}
