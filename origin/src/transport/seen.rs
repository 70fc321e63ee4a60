//! Keys that a listing has had before.
//!
//! Services may list keys in any order, and some of them twice. One that goes round in a circle, or leads from pages
//! back to earlier ones, lists nothing but old keys for a while, however its pages are cut. Of each key only a hash is
//! kept, and of many keys only those whose hash falls into a sample, which is halved each time that it is full: so
//! memory is bounded, and a long way round is found out as well as a short one.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Hashes that are kept at most: 1 MiB of them.
const MAX_SAMPLE: usize = 64 << 10;
/// So many old keys of the sample in a row, on so many pages at least, are no accident.
const MAX_ROW: u32 = 64;
const MIN_PAGES: u32 = 4;

/// The keys of one listing, as far as they are remembered.
pub(crate) struct Seen {
    sample: HashSet<u64>,
    /// Hashes with these bits belong to the sample.
    mask: u64,
    most: usize,
    /// Old keys since the last new one, and the pages that they are on.
    row: u32,
    pages: u32,
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self::with_most(MAX_SAMPLE)
    }

    fn with_most(most: usize) -> Self {
        Self {
            sample: HashSet::new(),
            mask: 0,
            most,
            row: 0,
            pages: 0,
        }
    }

    /// Takes in the keys of a page, given by their hashes. False when for long there was no key that is new.
    pub(crate) fn advances(&mut self, hashes: impl IntoIterator<Item = u64>) -> bool {
        let mut old = 0;
        for hash in hashes {
            if hash & self.mask != self.mask {
                continue;
            }
            if self.sample.insert(hash) {
                (self.row, self.pages, old) = (0, 0, 0);
            } else {
                old += 1;
            }
            if self.sample.len() > self.most {
                self.mask = (self.mask << 1) | 1;
                let mask = self.mask;
                self.sample.retain(|hash| hash & mask == mask);
            }
        }
        if old > 0 {
            self.row = self.row.saturating_add(old);
            self.pages += 1;
        }
        self.row < MAX_ROW || self.pages < MIN_PAGES
    }
}

/// The hash of a key: the same in each listing, and with no bit better than another.
pub(crate) fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: impl IntoIterator<Item = usize>) -> Vec<u64> {
        let hashes = keys.into_iter().map(|key| hash(&key.to_le_bytes()));
        hashes.collect()
    }

    #[test]
    fn a_way_back_is_found_out_however_pages_are_cut_and_memory_is_bounded() {
        const MOST: usize = 1000;
        for keys in [100, 5_000, 300_000] {
            for length in [7, 999, 1000] {
                let mut seen = Seen::with_most(MOST);
                let mut listed = 0;
                let mut start = 0;
                // Round and round, each time with other pages.
                while seen.advances(page((start..start + length).map(|key| key % keys))) {
                    start += length;
                    listed += length;
                    assert!(seen.sample.len() <= MOST);
                    assert!(listed <= 2 * keys + 20_000, "{keys} {length}");
                }
                assert!(listed >= keys, "{keys} {length}: refused too early");
            }
        }
    }

    #[test]
    fn keys_in_any_order_and_keys_listed_twice_are_no_way_back() {
        let mut seen = Seen::with_most(1000);
        for number in (0..2_000).rev() {
            // Half of each page was on the one before.
            let start = number * 50;
            assert!(seen.advances(page(start..start + 100)), "page {number}");
        }
        // Three pages come again for some reason, and it goes on behind them.
        let mut seen = Seen::new();
        for start in [0, 100, 200, 0, 100, 200, 300] {
            assert!(seen.advances(page(start..start + 100)), "{start}");
        }
    }
}
