//! Blocks that no tier took, for a moment longer: readers that come for one part after the other would otherwise have each
//! part's block fetched again, 32 times for parts of 128 KiB.
//!
//! First in, first out, bounded by bytes. What lies here is not held: it is in no inventory, and a warm job fetches it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use weir_core::{BLOCK_SIZE, BlockKey};

use crate::fill::{Fill, LEAST_TAKEN};
use crate::sync::Mutex;

/// Least bytes of blocks: four readers of big files.
const LEAST: u64 = 4 * BLOCK_SIZE;
/// The part of the memory tier's bytes that they may take beside it.
const SHARE: u64 = 16;

/// The blocks that were refused last.
#[derive(Debug)]
pub(crate) struct Recent {
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    blocks: HashMap<BlockKey, Arc<Fill>>,
    /// Their keys, in the order in which they came.
    order: VecDeque<BlockKey>,
    bytes: u64,
}

fn counted(fill: &Fill) -> u64 {
    u64::from(fill.len()).max(LEAST_TAKEN)
}

impl Recent {
    /// None yet, beside a memory tier of so many bytes.
    pub(crate) fn new(memory: u64) -> Self {
        Self {
            capacity: LEAST.max(memory / SHARE),
            state: Mutex::new(State::default()),
        }
    }

    /// The block, if it is one of them.
    pub(crate) fn get(&self, key: &BlockKey) -> Option<Arc<Fill>> {
        self.state.lock().blocks.get(key).cloned()
    }

    /// Adds a complete block in place of the oldest.
    pub(crate) fn put(&self, key: BlockKey, fill: &Arc<Fill>) {
        let mut state = self.state.lock();
        state.remove(&[key]); // it has come again
        state.blocks.insert(key, fill.clone());
        state.order.push_back(key);
        state.bytes += counted(fill);
        while state.bytes > self.capacity {
            let Some(oldest) = state.order.pop_front() else {
                break;
            };
            state.forget(&oldest);
        }
    }

    /// Forgets blocks.
    pub(crate) fn remove(&self, keys: &[BlockKey]) {
        self.state.lock().remove(keys);
    }
}

impl State {
    fn remove(&mut self, keys: &[BlockKey]) {
        let before = self.blocks.len();
        for key in keys {
            self.forget(key);
        }
        if self.blocks.len() < before {
            self.order.retain(|key| self.blocks.contains_key(key));
        }
    }

    /// Takes a block out, but for its place in the order.
    fn forget(&mut self, key: &BlockKey) {
        if let Some(fill) = self.blocks.remove(key) {
            self.bytes -= counted(&fill);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_blocks_make_room_and_one_that_came_again_stays() {
        let recent = Recent::new(0);
        let key = |n: u8| BlockKey([n; 16]);
        let block = || Fill::new(BLOCK_SIZE as u32);
        for n in 0..4 {
            recent.put(key(n), &block());
        }
        assert!((0..4).all(|n| recent.get(&key(n)).is_some()));
        recent.put(key(1), &block());
        recent.put(key(4), &block());
        let held: Vec<u8> = (0..5).filter(|n| recent.get(&key(*n)).is_some()).collect();
        assert_eq!(held, [1, 2, 3, 4]);
        assert_eq!(recent.state.lock().bytes, 4 * BLOCK_SIZE);
    }

    #[test]
    fn a_block_that_is_forgotten_takes_no_room() {
        let recent = Recent::new(0);
        let key = BlockKey([7; 16]);
        recent.put(key, &Fill::new(100));
        recent.remove(&[key]);
        recent.remove(&[key]);
        assert!(recent.get(&key).is_none());
        let state = recent.state.lock();
        assert_eq!((state.bytes, state.order.len()), (0, 0));
    }
}
