//! Who reads a big file from one end to the other, and how far ahead its blocks are worth fetching.
//!
//! The window opens when a reader goes on to a second block, doubles with each further one, and closes with a jump: a
//! random reader costs no fetch that nobody asked for, a sequential one soon has all that may be under way at once.

use std::collections::HashMap;
use std::ops::Range;

/// Blocks that are fetched ahead of one reader at most: with 4 MiB each as much as keeps a connection of some
/// gigabits busy over tens of milliseconds.
const MAX_WINDOW: u32 = 8;
/// Readers of one file that are told apart: beyond that the longest unused is forgotten. And files that are kept track
/// of: beyond that all are forgotten.
const MAX_RUNS: usize = 4;
const MAX_FILES: usize = 1024;

/// The sequential readers of all files.
#[derive(Default)]
pub(crate) struct Sequential {
    files: HashMap<u32, Vec<Run>>,
}

/// One reader on its way.
struct Run {
    /// The block that was read last.
    at: u32,
    window: u32,
    /// The first block that was not asked for.
    asked: u32,
}

/// What follows from a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The block itself was fetched ahead, and is read for the first time since.
    pub(crate) used: bool,
    /// Blocks to fetch now.
    pub(crate) ahead: Range<u32>,
}

impl Sequential {
    /// A reader reads in `block` of a file of `blocks` blocks. Nothing is asked for unless it
    /// `may` be, which is found out only when it matters.
    pub(crate) fn step(
        &mut self,
        file: u32,
        block: u32,
        blocks: u32,
        may: impl FnOnce() -> bool,
    ) -> Step {
        let nothing = Step {
            used: false,
            ahead: 0..0,
        };
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&file) {
            self.files.clear(); // whoever goes on opens the window again
        }
        let runs = self.files.entry(file).or_default();
        let known = runs
            .iter()
            .position(|run| block == run.at || block == run.at + 1);
        let Some(known) = known else {
            if runs.len() == MAX_RUNS {
                runs.remove(0);
            }
            runs.push(Run {
                at: block,
                window: 0,
                asked: block + 1,
            });
            return nothing;
        };
        let mut run = runs.remove(known);
        if block == run.at {
            runs.push(run);
            return nothing;
        }
        run.at = block;
        let used = block < run.asked;
        run.window = if may() {
            (run.window * 2).clamp(1, MAX_WINDOW)
        } else {
            0
        };
        let from = run.asked.max(block + 1);
        let end = (block + 1).saturating_add(run.window).min(blocks).max(from);
        run.asked = end;
        runs.push(run);
        Step {
            used,
            ahead: from..end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_with_the_second_block_and_doubles_until_the_file_ends() {
        let mut readers = Sequential::default();
        let mut asked = Vec::new();
        for block in 0..20 {
            let step = readers.step(7, block, 20, || true);
            assert_eq!(step.used, asked.contains(&block), "block {block}");
            asked.extend(step.ahead);
            assert!(
                readers.step(7, block, 20, || true).ahead.is_empty(),
                "the same block again"
            );
        }
        assert_eq!(asked, (2..20).collect::<Vec<_>>(), "each block once");
        let mut readers = Sequential::default();
        let ahead = (0..6).map(|block| readers.step(7, block, 100, || true).ahead);
        assert_eq!(
            ahead.collect::<Vec<_>>(),
            [0..0, 2..3, 3..5, 5..8, 8..13, 13..14]
        );
    }

    #[test]
    fn what_may_not_be_asked_for_does_not_count_as_asked() {
        let mut readers = Sequential::default();
        for block in 0..5 {
            let step = readers.step(1, block, 100, || false);
            assert_eq!((step.used, step.ahead.len()), (false, 0));
        }
        assert_eq!(readers.step(1, 5, 100, || true).ahead, 6..7);
    }

    #[test]
    fn a_jump_closes_the_window_and_readers_side_by_side_keep_theirs() {
        let mut readers = Sequential::default();
        for block in [50, 3, 97, 12] {
            assert!(readers.step(1, block, 100, || true).ahead.is_empty());
        }
        let mut readers = Sequential::default();
        for step in 0..10 {
            for start in [0, 30, 60] {
                let ahead = readers.step(1, start + step, 100, || true).ahead;
                assert_eq!(ahead.is_empty(), step == 0, "{start}+{step}");
            }
        }
    }
}
