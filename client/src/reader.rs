//! Reads of one snapshot's files, put together from blocks.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use weir_core::{BLOCK_SIZE, Block, Manifest};
use weir_worker::FillWork;

use crate::blocks::Blocks;
use crate::error::ReadError;
use crate::metrics::ClientMetrics;
use crate::prefetch::{Batch, Placed, Prefetcher, ReadAheadTarget, read_batch};
use crate::source::any::AnySource;
use crate::stale::StaleReads;

/// Reads the files of one snapshot. Generic code over the sources is made for it here, once, and not again in each crate that
/// reads.
pub struct Reader {
    blocks: Blocks<AnySource>,
    /// Prefetches for the readers, unless that is off.
    prefetcher: Option<Arc<Prefetcher<AnySource>>>,
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
    /// A reader of `manifest`, whose blocks come from `source`, and which prefetches to `target`. Call inside a tokio
    /// runtime.
    pub fn new(
        manifest: Arc<Manifest>,
        source: AnySource,
        target: ReadAheadTarget,
        metrics: &Arc<ClientMetrics>,
    ) -> Self {
        let page_cache = match target {
            ReadAheadTarget::Off => None,
            ReadAheadTarget::Tiers => Some(None),
            ReadAheadTarget::PageCache(kernel) => Some(Some(kernel)),
        };
        let prefetcher = page_cache.map(|page_cache| {
            let (manifest, source) = (manifest.clone(), source.clone());
            Prefetcher::new(manifest, page_cache, source, metrics.clone())
        });
        Self {
            blocks: Blocks::new(manifest, source, metrics),
            prefetcher,
        }
    }

    /// Reads that found an object changed, to be reported to the master.
    pub fn stale_reads(&self) -> &Arc<StaleReads> {
        self.blocks.stale()
    }

    /// The snapshot that is read.
    pub fn manifest(&self) -> &Arc<Manifest> {
        self.blocks.manifest()
    }

    /// Appends to `bytes` what can be had of `offset..end` of a file without waiting for a network, from its beginning to
    /// the first block that must be waited for. Blocks on the disk at most. Says how far that is: `end`, or where
    /// [`Self::read`] is to go on. `end` must not lie past the file's end.
    pub fn read_cached(&self, file: u32, offset: u64, end: u64, bytes: &mut Vec<Bytes>) -> u64 {
        let object = self.manifest().object(file);
        let origin = self.manifest().mount(file).origin;
        let mut reached = offset;
        for piece in pieces(offset, end) {
            let block = Block {
                origin,
                object: object.clone(),
                index: piece.index,
            };
            let cached = self.blocks.read_cached(&block, &piece.range, bytes);
            if cached.is_none() {
                break;
            }
            self.block_read(file, piece.index);
            reached += piece.range.len() as u64;
        }
        reached
    }

    /// Appends the bytes `offset..end` of a file to `bytes`, from wherever they are. Blocks are asked for one after the
    /// other, so the first does not wait for the last. `end` must not lie past the file's end. Fills that this read
    /// started and that are still under way are pushed to `unfinished`: the caller uses the bytes, and then awaits them.
    pub async fn read(
        &self,
        file: u32,
        offset: u64,
        end: u64,
        bytes: &mut Vec<Bytes>,
        unfinished: &mut Vec<FillWork>,
    ) -> Result<(), ReadError> {
        let object = self.manifest().object(file);
        let origin = self.manifest().mount(file).origin;
        for piece in pieces(offset, end) {
            let block = Block {
                origin,
                object: object.clone(),
                index: piece.index,
            };
            self.block_read(file, piece.index);
            let read = self.blocks.read(file, &block, piece.range, unfinished);
            bytes.extend(read.await?);
        }
        Ok(())
    }

    /// Copies the files of a batch to `memory`, those that nobody has asked for meanwhile and that can be read.
    /// Fills that this started and that are still under way are pushed to `unfinished`: the caller uses the bytes,
    /// and then awaits them. [`Self::batch_ended`] must be told what became of the batch.
    pub fn read_batch<'a>(
        &'a self,
        batch: &'a Batch,
        memory: &'a mut [u8],
        unfinished: &'a mut Vec<FillWork>,
    ) -> BoxFuture<'a, Vec<Placed>> {
        async move {
            let Some(prefetcher) = &self.prefetcher else {
                return Vec::new();
            };
            let files = prefetcher.still_wanted(batch);
            read_batch(&self.blocks, &files, memory, unfinished).await
        }
        .boxed()
    }

    /// Tells the prefetcher which files of a batch the kernel was given.
    pub fn batch_ended(&self, batch: &Batch, given: &[Placed]) {
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.batch_ended(batch, given);
        }
    }

    /// Tells the prefetcher that a program reads the beginning of a file, which was cached or not, and whether it reads past the page
    /// cache.
    pub fn file_started(&self, file: u32, cached: bool, direct: bool) {
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.file_started(file, cached, direct);
        }
    }

    fn block_read(&self, file: u32, index: u32) {
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.block_read(file, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::prefetch::test_manifest;
    use crate::source::fake::{ALONE, CACHED, FakeSource};

    fn reader_of(manifest: Arc<Manifest>, source: FakeSource) -> Reader {
        let metrics = ClientMetrics::register(&mut Registry::default());
        let source = AnySource::Fake(source);
        Reader::new(manifest, source, ReadAheadTarget::Off, &metrics)
    }

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

    #[tokio::test]
    async fn a_block_that_is_cached_is_looked_up_once_though_a_later_one_is_missing() {
        let source = FakeSource::default();
        source.cached.lock().insert("big");
        *source.cached_blocks.lock() = Some(2);
        let manifest = Arc::new(test_manifest());
        let file = manifest.resolve("big").unwrap();
        let reader = reader_of(manifest, source.clone());
        let (offset, end) = (BLOCK_SIZE - 10, 3 * BLOCK_SIZE + 5);
        let mut bytes = Vec::new();
        let reached = reader.read_cached(file, offset, end, &mut bytes);
        assert_eq!(reached, 2 * BLOCK_SIZE);
        let (rest, unfinished) = (&mut bytes, &mut Vec::new());
        let read = reader.read(file, reached, end, rest, unfinished).await;
        read.unwrap();
        let lookups = source.lookups.lock().clone();
        let expected = [(0, false), (1, false), (2, false), (2, true), (3, true)];
        assert_eq!(lookups, expected);
        let counted = source.counted.lock().clone();
        assert_eq!(counted, [10, BLOCK_SIZE, BLOCK_SIZE, 5]);
        let bytes = bytes.concat();
        assert_eq!(bytes.len() as u64, end - offset);
        let (cached, waited) = bytes.split_at((reached - offset) as usize);
        assert!(cached.iter().all(|byte| *byte == CACHED));
        assert!(waited.iter().all(|byte| *byte == ALONE));
    }

    #[test]
    fn a_read_that_is_cached_reaches_its_end_and_one_that_is_not_its_beginning() {
        let source = FakeSource::default();
        source.cached.lock().insert("f1");
        let manifest = Arc::new(test_manifest());
        let reader = reader_of(manifest, source);
        for (name, reached, length) in [("f1", 70, 60), ("f2", 10, 0)] {
            let file = reader.manifest().resolve(name).unwrap();
            let mut bytes = Vec::new();
            assert_eq!(reader.read_cached(file, 10, 70, &mut bytes), reached);
            assert_eq!(bytes.concat().len(), length, "{name}");
        }
    }
}
