//! Blocks of the workers of a cluster, which count what they give by themselves.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use weir_core::manifest::Mount;
use weir_core::{Block, DatasetName};
use weir_worker::{FillWork, PrefetchAnswer};

use super::BlockSource;
use crate::cluster::ClusterReader;
use crate::error::{BatchError, BlockError};
use crate::metrics::ReadSource;

/// Blocks of 4 MiB ahead of one sequential reader: they have several owners, so more can be had at once than from one.
const WINDOW: u32 = 16;

/// The owners of a dataset's blocks.
#[derive(Clone)]
pub struct ClusterSource {
    cluster: Arc<ClusterReader>,
    dataset: DatasetName,
}

impl ClusterSource {
    /// The blocks of a dataset that the cluster's workers have or fetch.
    pub fn new(cluster: Arc<ClusterReader>, dataset: DatasetName) -> Self {
        Self { cluster, dataset }
    }
}

impl BlockSource for ClusterSource {
    fn read_cached(
        &self,
        block: &Block,
        range: &Range<u32>,
        bytes: &mut Vec<Bytes>,
    ) -> Option<ReadSource> {
        bytes.push(self.cluster.read_known(block, range)?);
        Some(ReadSource::Ssd)
    }

    /// Whole blocks are asked for together, with [`Self::read_together`].
    fn read_cached_whole(&self, blocks: &[&Block]) -> Vec<Option<(Vec<Bytes>, ReadSource)>> {
        vec![None; blocks.len()]
    }

    async fn read(
        &self,
        mount: &Mount,
        block: &Block,
        range: Range<u32>,
        _: &mut Vec<FillWork>,
    ) -> Result<(Vec<Bytes>, ReadSource), BlockError> {
        let dataset = self.dataset.as_str();
        self.cluster.read(dataset, &mount.spec, block, range).await
    }

    async fn read_together(
        &self,
        blocks: Vec<(&Block, &mut [u8])>,
    ) -> Vec<Result<ReadSource, BatchError>> {
        let dataset = self.dataset.as_str();
        self.cluster.read_together(dataset, blocks).await
    }

    async fn prefetch(&self, block: &Block) -> PrefetchAnswer {
        self.cluster.prefetch(self.dataset.as_str(), block).await
    }

    fn prefetch_window(&self) -> u32 {
        WINDOW
    }

    /// Owners say so when they are asked.
    fn may_prefetch(&self) -> bool {
        true
    }

    fn count(&self, _: ReadSource, _: u64) {}
}
