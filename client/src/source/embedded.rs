//! Blocks of a worker in this process: no message, no copy.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use weir_core::manifest::Mount;
use weir_core::{Block, DatasetName};
use weir_worker::{DatasetReads, FillWork, PrefetchAnswer, Source, Worker};

use super::BlockSource;
use crate::error::{BatchError, BlockError};
use crate::metrics::ReadSource;

/// Blocks of 4 MiB ahead of one sequential reader, at least: as much as keeps a connection of some gigabits busy over
/// tens of milliseconds.
const WINDOW: u32 = 8;

/// The worker in this process.
#[derive(Clone)]
pub struct EmbeddedSource {
    worker: Arc<Worker>,
    /// The worker counts what its readers get, too.
    counters: Arc<DatasetReads>,
}

impl EmbeddedSource {
    /// The blocks of a dataset that `worker` has or fetches.
    pub fn new(worker: Arc<Worker>, dataset: &DatasetName) -> Self {
        Self {
            counters: worker.metrics().dataset(dataset.as_str()),
            worker,
        }
    }
}

impl BlockSource for EmbeddedSource {
    fn read_cached(
        &self,
        block: &Block,
        range: &Range<u32>,
        bytes: &mut Vec<Bytes>,
    ) -> Option<ReadSource> {
        let (found, source) = self.worker.read_cached(&block.key(), range)?;
        bytes.extend(found);
        Some(source.into())
    }

    fn read_cached_whole(&self, blocks: &[&Block]) -> Vec<Option<(Vec<Bytes>, ReadSource)>> {
        let blocks = blocks.iter().map(|block| (block.key(), block.len()));
        let found = self.worker.read_cached_whole(&blocks.collect::<Vec<_>>());
        let found = found.into_iter();
        found
            .map(|found| found.map(|(bytes, source)| (bytes, source.into())))
            .collect()
    }

    async fn read(
        &self,
        _: &Mount,
        block: &Block,
        range: Range<u32>,
        unfinished: &mut Vec<FillWork>,
    ) -> Result<(Vec<Bytes>, ReadSource), BlockError> {
        let (bytes, source) = self.worker.read_and_fill(block, range, unfinished).await?;
        Ok((bytes, source.into()))
    }

    /// What is not cached comes from the origin, which is asked for each block alone.
    async fn read_together(
        &self,
        blocks: Vec<(&Block, &mut [u8])>,
    ) -> Vec<Result<ReadSource, BatchError>> {
        vec![Err(BatchError::NotTogether); blocks.len()]
    }

    async fn prefetch(&self, block: &Block) -> PrefetchAnswer {
        self.worker.prefetch(block).await
    }

    fn prefetch_window(&self) -> u32 {
        WINDOW.max(self.worker.prefetch_blocks())
    }

    fn may_prefetch(&self) -> bool {
        self.worker.wants_prefetch()
    }

    fn count(&self, source: ReadSource, bytes: u64) {
        let source = match source {
            ReadSource::Memory => Source::Memory,
            ReadSource::Ssd => Source::Ssd,
            ReadSource::Remote | ReadSource::Origin => Source::Origin,
        };
        self.counters.count(source, bytes);
    }
}
