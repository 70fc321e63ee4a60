//! The blocks of one snapshot's files: read from a source, counted, and their failures remembered and explained.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use weir_core::{Block, Manifest};
use weir_worker::FillWork;

use crate::error::{BatchError, BlockError, ReadError};
use crate::failures::Failures;
use crate::metrics::{ClientMetrics, DatasetCounters, ReadSource};
use crate::source::BlockSource;
use crate::stale::StaleReads;

/// Reads blocks of one snapshot.
pub(crate) struct Blocks<S> {
    manifest: Arc<Manifest>,
    source: S,
    counters: DatasetCounters,
    stale: Arc<StaleReads>,
    failures: Failures,
}

impl<S: BlockSource> Blocks<S> {
    /// The blocks of a snapshot, from `source`.
    pub(crate) fn new(manifest: Arc<Manifest>, source: S, metrics: &ClientMetrics) -> Self {
        Self {
            counters: metrics.dataset(manifest.summary().snapshot.dataset.as_str()),
            manifest,
            source,
            stale: Arc::default(),
            failures: Failures::default(),
        }
    }

    pub(crate) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    pub(crate) fn stale(&self) -> &Arc<StaleReads> {
        &self.stale
    }

    /// Appends the bytes of `range` of a block to `bytes`, if they can be had without waiting for a network.
    pub(crate) fn read_cached(
        &self,
        block: &Block,
        range: &Range<u32>,
        bytes: &mut Vec<Bytes>,
    ) -> Option<()> {
        let source = self.source.read_cached(block, range, bytes)?;
        self.count(source, range.len() as u64);
        Some(())
    }

    /// As [`Self::read_cached`] of whole blocks, with few reads of the disk.
    pub(crate) fn read_cached_whole(&self, blocks: &[&Block]) -> Vec<Option<Vec<Bytes>>> {
        let found = self.source.read_cached_whole(blocks);
        let found = found.into_iter().zip(blocks).map(|(found, block)| {
            let (bytes, source) = found?;
            self.count(source, u64::from(block.len()));
            Some(bytes)
        });
        found.collect()
    }

    /// The bytes of `range` of a block of `file`, from wherever they are. Fills that are still under way then are pushed to
    /// `unfinished`.
    pub(crate) async fn read(
        &self,
        file: u32,
        block: &Block,
        range: Range<u32>,
        unfinished: &mut Vec<FillWork>,
    ) -> Result<Vec<Bytes>, ReadError> {
        let key = (file, block.index);
        if let Some(error) = self.failures.get(key) {
            return Err(self.explain(file, error));
        }
        let length = range.len() as u64;
        let started = Instant::now();
        let mount = self.manifest.mount(file);
        let read = self.source.read(mount, block, range, unfinished).await;
        let (bytes, source) = read.map_err(|error| {
            self.failures.add(key, &error, started);
            self.explain(file, error)
        })?;
        self.count(source, length);
        Ok(bytes)
    }

    /// Reads whole blocks to their places, many with one exchange.
    pub(crate) async fn read_together(
        &self,
        blocks: Vec<(&Block, &mut [u8])>,
    ) -> Vec<Result<(), BatchError>> {
        let lengths: Vec<_> = blocks.iter().map(|(block, _)| block.len()).collect();
        let outcomes = self.source.read_together(blocks).await;
        let outcomes = outcomes.into_iter().zip(lengths);
        outcomes
            .map(|(outcome, length)| outcome.map(|source| self.count(source, u64::from(length))))
            .collect()
    }

    fn count(&self, source: ReadSource, bytes: u64) {
        self.counters.count(source, bytes);
        self.source.count(source, bytes);
    }

    fn explain(&self, file: u32, error: BlockError) -> ReadError {
        let path = self.manifest.path(file);
        match error {
            BlockError::Changed(message) => {
                self.counters.stale.inc();
                self.stale.add(&path);
                ReadError::Stale {
                    path,
                    snapshot: self.manifest.summary().snapshot.to_string(),
                    message,
                }
            }
            BlockError::Failed(message) => ReadError::Unavailable { path, message },
        }
    }
}
