//! Reads of one snapshot's files, put together from blocks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use weir_core::{BLOCK_SIZE, Block, Manifest};
use weir_origin::OriginError;
use weir_worker::{DatasetReads, Drive, Worker};

use crate::cluster::ClusterReader;
use crate::failures::Failures;
use crate::metrics::{ClientMetrics, DatasetCounters, ReadSource};
use crate::prefetch::{Batch, Fetcher, Placed, Prefetcher, ReadAheadTarget};
use crate::stale::StaleReads;

/// Why bytes could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The object is no longer the one of the snapshot.
    #[error(
        "{path}: the object has changed at the origin since snapshot {snapshot}; make a new one with `weir dataset refresh`: {message}"
    )]
    Stale {
        /// Path inside the dataset.
        path: String,
        /// The snapshot that was read.
        snapshot: String,
        /// What the origin said.
        message: String,
    },
    /// Neither a worker nor the origin could give the bytes.
    #[error("{path}: {message}")]
    Unavailable {
        /// Path inside the dataset.
        path: String,
        /// The last thing that went wrong.
        message: String,
    },
}

/// Who answers block reads.
pub enum Backend {
    /// A worker in this process.
    Embedded(Arc<Worker>),
    /// The workers of a cluster.
    Cluster(Arc<ClusterReader>),
}

/// Reads the files of one snapshot.
pub struct Reader {
    manifest: Arc<Manifest>,
    backend: Backend,
    counters: DatasetCounters,
    stale: Arc<StaleReads>,
    failures: Failures,
    /// Reads ahead of the readers, where that is possible.
    prefetcher: Option<Arc<Prefetcher>>,
    /// Counters of the worker in this process.
    worker_counters: Option<Arc<DatasetReads>>,
}

/// What went wrong with one block.
#[derive(Clone, Debug)]
pub(crate) enum BlockError {
    Changed(String),
    Failed(String),
}

impl From<weir_worker::ReadError> for BlockError {
    fn from(error: weir_worker::ReadError) -> Self {
        match error {
            weir_worker::ReadError::Origin(OriginError::Changed { .. }) => {
                Self::Changed(error.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// The block behind an offset, and the part of a range that lies in it.
struct Piece {
    index: u32,
    range: Range<u32>,
}

/// Cuts `offset..end` of an object at the blocks' borders.
fn pieces(offset: u64, end: u64) -> impl Iterator<Item = Piece> {
    let end_block = if offset < end {
        end.div_ceil(BLOCK_SIZE)
    } else {
        0
    };
    (offset / BLOCK_SIZE..end_block).map(move |index| {
        let start = index * BLOCK_SIZE;
        Piece {
            index: index as u32,
            range: (offset.max(start) - start) as u32..(end - start).min(BLOCK_SIZE) as u32,
        }
    })
}

impl Reader {
    /// A reader of `manifest` through `backend`, which reads ahead to `target`. Call inside a tokio
    /// runtime.
    pub fn new(
        manifest: Arc<Manifest>,
        backend: Backend,
        target: ReadAheadTarget,
        metrics: &Arc<ClientMetrics>,
    ) -> Self {
        let dataset = manifest.summary().snapshot.dataset.clone();
        let fetcher = match &backend {
            Backend::Embedded(worker) => Fetcher::Worker(worker.clone()),
            Backend::Cluster(cluster) => Fetcher::Owners {
                cluster: cluster.clone(),
                dataset: dataset.as_str().into(),
            },
        };
        let page_cache = match target {
            ReadAheadTarget::Off => None,
            ReadAheadTarget::Tiers => Some(None),
            ReadAheadTarget::PageCache(kernel) => Some(Some(kernel)),
        };
        let prefetcher = page_cache.map(|page_cache| {
            Prefetcher::new(manifest.clone(), page_cache, fetcher, metrics.clone())
        });
        let worker_counters = match &backend {
            Backend::Embedded(worker) => Some(worker.metrics().dataset(dataset.as_str())),
            Backend::Cluster(_) => None,
        };
        Self {
            counters: metrics.dataset(dataset.as_str()),
            manifest,
            backend,
            stale: Arc::default(),
            failures: Failures::default(),
            prefetcher,
            worker_counters,
        }
    }

    /// Reads that found an object changed, to be reported to the master.
    pub fn stale_reads(&self) -> &Arc<StaleReads> {
        &self.stale
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The snapshot that is read.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The bytes `offset..end` of a file when they can be had without waiting for a network; blocks on the disk at
    /// most. `end` must not lie past the file's end.
    pub fn read_cached(&self, file: u32, offset: u64, end: u64) -> Option<Vec<Bytes>> {
        let object = self.manifest.object(file);
        let origin = self.manifest.mount(file).origin;
        let mut bytes = Vec::new();
        for piece in pieces(offset, end) {
            let block = Block {
                origin,
                object: object.clone(),
                index: piece.index,
            };
            match &self.backend {
                Backend::Embedded(worker) => {
                    let (found, source) = worker.read_cached(&block.key(), &piece.range)?;
                    self.count(source.into(), piece.range.len() as u64);
                    bytes.extend(found);
                }
                Backend::Cluster(cluster) => {
                    bytes.push(cluster.read_known(&block, &piece.range)?);
                    self.count(ReadSource::Ssd, piece.range.len() as u64);
                }
            }
            self.reading_block(file, piece.index);
        }
        Some(bytes)
    }

    /// As [`Self::read_cached`] of whole files of one block each.
    pub(crate) fn read_cached_files(&self, files: &[u32]) -> Vec<Option<Vec<Bytes>>> {
        let Backend::Embedded(worker) = &self.backend else {
            return vec![None; files.len()];
        };
        let blocks = files.iter().flat_map(|&file| self.manifest.blocks(file));
        let blocks = blocks.map(|block| (block.key(), block.len()));
        let found = worker.read_cached_whole(&blocks.collect::<Vec<_>>());
        let found = found.into_iter().zip(files).map(|(found, &file)| {
            let (bytes, source) = found?;
            self.count(source.into(), self.manifest.entry(file).size);
            Some(bytes)
        });
        found.collect()
    }

    /// The bytes `offset..end` of a file, from wherever they are. Blocks are asked for one after the other, so the
    /// first does not wait for the last. `end` must not lie past the file's end. Fills that this read started and
    /// that are still under way are pushed to `unfinished`: the caller uses the bytes, and then awaits them.
    pub async fn read(
        &self,
        file: u32,
        offset: u64,
        end: u64,
        unfinished: &mut Vec<Drive>,
    ) -> Result<Vec<Bytes>, ReadError> {
        let object = self.manifest.object(file);
        let origin = self.manifest.mount(file).origin;
        let mut bytes = Vec::new();
        for piece in pieces(offset, end) {
            let block = Block {
                origin,
                object: object.clone(),
                index: piece.index,
            };
            let length = u64::from(piece.range.end - piece.range.start);
            self.reading_block(file, piece.index);
            let key = (file, piece.index);
            if let Some(error) = self.failures.get(key) {
                return Err(self.explain(file, error));
            }
            let begun = Instant::now();
            let (found, source) = self
                .read_block(&block, file, piece.range, unfinished)
                .await
                .map_err(|error| {
                    self.failures.add(key, &error, begun);
                    self.explain(file, error)
                })?;
            self.count(source, length);
            bytes.extend(found);
        }
        Ok(bytes)
    }

    /// Tells the prefetcher that somebody has begun to read a file, which was cached or not.
    pub fn begun(&self, file: u32, cached: bool) {
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.reading(file, cached);
        }
    }

    /// The files of a batch that are still to be read ahead.
    pub(crate) fn still_wanted(&self, batch: &Batch) -> Vec<u32> {
        let prefetcher = self.prefetcher.as_ref();
        prefetcher.map_or_else(Vec::new, |prefetcher| prefetcher.still_wanted(batch))
    }

    /// Tells the prefetcher which files of a batch the kernel was given.
    pub fn ahead_ended(&self, batch: &Batch, given: &[Placed]) {
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.ended(batch, given);
        }
    }

    fn reading_block(&self, file: u32, index: u32) {
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.reading_block(file, index);
        }
    }

    async fn read_block(
        &self,
        block: &Block,
        file: u32,
        range: Range<u32>,
        unfinished: &mut Vec<Drive>,
    ) -> Result<(Vec<Bytes>, ReadSource), BlockError> {
        match &self.backend {
            Backend::Embedded(worker) => {
                let (bytes, source) = worker.read_driving(block, range, unfinished).await?;
                Ok((bytes, source.into()))
            }
            Backend::Cluster(cluster) => {
                let mount = self.manifest.mount(file);
                let dataset = &self.manifest.summary().snapshot.dataset;
                cluster
                    .read(dataset.as_str(), &mount.spec, block, range)
                    .await
            }
        }
    }

    pub(crate) fn count(&self, source: ReadSource, bytes: u64) {
        self.counters.count(source, bytes);
        if let Some(counters) = &self.worker_counters {
            let source = match source {
                ReadSource::Memory => weir_worker::Source::Memory,
                ReadSource::Ssd => weir_worker::Source::Ssd,
                ReadSource::Remote | ReadSource::Origin => weir_worker::Source::Origin,
            };
            counters.count(source, bytes);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_the_blocks_borders() {
        let cut = |offset, end| -> Vec<(u32, Range<u32>)> {
            pieces(offset, end).map(|p| (p.index, p.range)).collect()
        };
        let block = BLOCK_SIZE as u32;
        assert_eq!(cut(5, 9), [(0, 5..9)]);
        assert_eq!(
            cut(BLOCK_SIZE - 1, BLOCK_SIZE + 1),
            [(0, block - 1..block), (1, 0..1)]
        );
        assert_eq!(cut(BLOCK_SIZE, 2 * BLOCK_SIZE), [(1, 0..block)]);
        assert_eq!(cut(3, 3), []);
    }
}
