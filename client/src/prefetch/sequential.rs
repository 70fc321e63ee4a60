//! Who reads a big file from one end to the other, and how far ahead its blocks are worth fetching.
//!
//! The window opens when a reader goes on to a second block, doubles with each further one, and closes with a jump: a
//! random reader costs no fetch that nobody asked for, a sequential one soon has all that may be under way at once.

use std::collections::HashMap;
use std::ops::Range;

/// How many blocks behind the furthest a read may still belong to it: the kernel's own reads ahead, 8 MiB in pieces of
/// 1 MiB, are answered by several threads and come out of order.
const BEHIND: u32 = 2;
/// Readers of one file that are told apart: beyond that the longest unused is forgotten. And files that are kept track
/// of: beyond that all are forgotten.
const MAX_RUNS: usize = 4;
const MAX_FILES: usize = 1024;

/// The sequential readers of all files.
pub(crate) struct Sequential {
    files: HashMap<u32, Vec<Run>>,
    /// Blocks that are fetched ahead of one reader at most.
    most: u32,
}

/// One reader on its way.
struct Run {
    /// The furthest block that was read.
    at: u32,
    window: u32,
    /// The first block that was not asked for.
    asked: u32,
}

impl Sequential {
    /// Nobody reads yet. At most so many blocks are to be fetched ahead of one reader.
    pub(crate) fn new(most: u32) -> Self {
        Self {
            files: HashMap::new(),
            most,
        }
    }

    /// A reader reads in `block` of a file of `blocks` blocks; gives the blocks to fetch now. `may` says whether
    /// anything may be asked for; it is called only when there is something to ask for.
    pub(crate) fn step(
        &mut self,
        file: u32,
        block: u32,
        blocks: u32,
        may: impl FnOnce() -> bool,
    ) -> Range<u32> {
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&file) {
            self.files.clear(); // whoever goes on opens the window again
        }
        let runs = self.files.entry(file).or_default();
        let mut run = if let Some(known) = runs.iter().position(|run| run.may_read(block)) {
            runs.remove(known)
        } else {
            if runs.len() == MAX_RUNS {
                runs.remove(0);
            }
            Run {
                at: block,
                window: 0,
                asked: block + 1,
            }
        };
        let ahead = if block > run.at {
            let window = (run.window * 2).clamp(1, self.most);
            run.advance(block, blocks, if may() { window } else { 0 })
        } else {
            0..0
        };
        runs.push(run);
        ahead
    }
}

impl Run {
    /// Whether this reader may be the one that reads `block` now.
    fn may_read(&self, block: u32) -> bool {
        (self.at.saturating_sub(BEHIND)..=self.at + 1).contains(&block)
    }

    fn advance(&mut self, block: u32, blocks: u32, window: u32) -> Range<u32> {
        (self.at, self.window) = (block, window);
        let from = self.asked.max(block + 1);
        let end = (block + 1).saturating_add(window).min(blocks).max(from);
        self.asked = end;
        from..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_with_the_second_block_and_doubles_until_the_file_ends() {
        let mut readers = Sequential::new(8);
        let mut asked = Vec::new();
        for block in 0..20 {
            asked.extend(readers.step(7, block, 20, || true));
            let again = readers.step(7, block, 20, || true);
            assert!(again.is_empty(), "the same block again");
        }
        assert_eq!(asked, (2..20).collect::<Vec<_>>(), "each block once");
        let mut readers = Sequential::new(8);
        let ahead = (0..6).map(|block| readers.step(7, block, 100, || true));
        assert_eq!(
            ahead.collect::<Vec<_>>(),
            [0..0, 2..3, 3..5, 5..8, 8..13, 13..14]
        );
    }

    /// The pieces of two blocks, as threads that take turns hand them over.
    #[test]
    fn reads_out_of_order_belong_to_one_reader() {
        let mut readers = Sequential::new(8);
        let mut asked = Vec::new();
        for block in 0u32..40 {
            for behind in [0, 0, 1, 0, 2] {
                let read = block.saturating_sub(behind);
                asked.extend(readers.step(1, read, 40, || true));
            }
        }
        assert_eq!(asked, (2..40).collect::<Vec<_>>(), "each block once");
    }

    #[test]
    fn what_may_not_be_asked_for_does_not_count_as_asked() {
        let mut readers = Sequential::new(8);
        for block in 0..5 {
            assert!(readers.step(1, block, 100, || false).is_empty());
        }
        assert_eq!(readers.step(1, 5, 100, || true), 6..7);
    }

    #[test]
    fn a_jump_closes_the_window_and_readers_side_by_side_keep_theirs() {
        let mut readers = Sequential::new(8);
        for block in [50, 3, 97, 12] {
            assert!(readers.step(1, block, 100, || true).is_empty());
        }
        let mut readers = Sequential::new(8);
        for step in 0..10 {
            for start in [0, 30, 60] {
                let ahead = readers.step(1, start + step, 100, || true);
                assert_eq!(ahead.is_empty(), step == 0, "{start}+{step}");
            }
        }
    }
}
