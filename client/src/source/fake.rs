//! A source for tests: it has what it is told to have, and notes what it is asked for.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use weir_core::Block;
use weir_core::manifest::Mount;
use weir_worker::{FillWork, PrefetchAnswer};

use super::BlockSource;
use crate::error::{BatchError, BlockError};
use crate::metrics::ReadSource;

/// What the bytes are made of, by the way that they came.
pub(crate) const CACHED: u8 = 1;
pub(crate) const TOGETHER: u8 = 2;
pub(crate) const ALONE: u8 = 3;

type Keys = Arc<Mutex<HashSet<&'static str>>>;

/// Knows objects by their keys.
#[derive(Clone, Default)]
pub struct FakeSource {
    pub(crate) cached: Keys,
    /// How many blocks of a cached object are cached, from the first on; all of them if that is not said.
    pub(crate) cached_blocks: Arc<Mutex<Option<u32>>>,
    /// Each look-up of a block for a reader: its number, and whether the reader waits.
    pub(crate) lookups: Arc<Mutex<Vec<(u32, bool)>>>,
    /// Bytes that were counted.
    pub(crate) counted: Arc<Mutex<Vec<u64>>>,
    /// Given together with others.
    pub(crate) together: Keys,
    /// Refused together with others.
    pub(crate) unreadable: Keys,
    /// Refused alone.
    pub(crate) failing: Keys,
    /// What was read alone.
    pub(crate) read_alone: Arc<Mutex<Vec<String>>>,
    /// What was requested to be prefetched.
    pub(crate) prefetched: Arc<Mutex<Vec<(String, u32)>>>,
}

fn bytes(byte: u8, length: usize) -> Vec<Bytes> {
    vec![vec![byte; length].into()]
}

impl BlockSource for FakeSource {
    fn read_cached(
        &self,
        block: &Block,
        range: &Range<u32>,
        found: &mut Vec<Bytes>,
    ) -> Option<ReadSource> {
        self.lookups.lock().push((block.index, false));
        let until = self.cached_blocks.lock().unwrap_or(u32::MAX);
        let is_cached = block.index < until && self.cached.lock().contains(&*block.object.key);
        is_cached.then(|| {
            found.extend(bytes(CACHED, range.len()));
            ReadSource::Memory
        })
    }

    fn read_cached_whole(&self, blocks: &[&Block]) -> Vec<Option<(Vec<Bytes>, ReadSource)>> {
        let read = blocks.iter().map(|block| {
            let mut bytes = Vec::new();
            let source = self.read_cached(block, &(0..block.len()), &mut bytes)?;
            Some((bytes, source))
        });
        read.collect()
    }

    async fn read(
        &self,
        _: &Mount,
        block: &Block,
        range: Range<u32>,
        _: &mut Vec<FillWork>,
    ) -> Result<(Vec<Bytes>, ReadSource), BlockError> {
        self.lookups.lock().push((block.index, true));
        let key = &*block.object.key;
        self.read_alone.lock().push(key.to_owned());
        if self.failing.lock().contains(key) {
            return Err(BlockError::Failed(String::from("no answer")));
        }
        Ok((bytes(ALONE, range.len()), ReadSource::Origin))
    }

    async fn read_together(
        &self,
        blocks: Vec<(&Block, &mut [u8])>,
    ) -> Vec<Result<ReadSource, BatchError>> {
        let read = blocks.into_iter().map(|(block, place)| {
            let key = &*block.object.key;
            if self.unreadable.lock().contains(key) {
                return Err(BatchError::Unreadable);
            }
            if !self.together.lock().contains(key) {
                return Err(BatchError::NotTogether);
            }
            place.fill(TOGETHER);
            Ok(ReadSource::Remote)
        });
        read.collect()
    }

    async fn prefetch(&self, block: &Block) -> PrefetchAnswer {
        let block = (block.object.key.to_string(), block.index);
        self.prefetched.lock().push(block);
        PrefetchAnswer::Accepted
    }

    fn prefetch_window(&self) -> u32 {
        4
    }

    fn may_prefetch(&self) -> bool {
        true
    }

    fn count(&self, _: ReadSource, bytes: u64) {
        self.counted.lock().push(bytes);
    }
}
