//! Checksums of the pages of long blocks, read from their headers and kept for a while: a read of a few KiB then needs
//! neither whole chunks nor the header.

use std::collections::HashMap;
use std::mem::take;
use std::sync::Arc;

use parking_lot::Mutex;

/// Bytes of checksums that are kept, those of 16 GiB of blocks.
const KEPT: usize = 16 << 20;

/// Tells a block from all others: the device and the number of its file, and where its checksums are.
pub(super) type Place = (u64, u64, u64);

type Sums = Arc<[u32]>;

/// The checksums of blocks that were read from of late.
///
/// Whoever uses them checks them against the chunks' checksums, so it does no harm if a place is another block's by
/// now.
#[derive(Debug, Default)]
pub(super) struct PageSums {
    generations: Mutex<Generations>,
}

/// Two halves: what is used moves to the young one, and when that is full the old one is forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Place, Sums>,
    old: HashMap<Place, Sums>,
    young_bytes: usize,
}

impl PageSums {
    pub(super) fn get(&self, place: &Place) -> Option<Sums> {
        let mut generations = self.generations.lock();
        if let Some(sums) = generations.young.get(place) {
            return Some(sums.clone());
        }
        let sums = generations.old.remove(place)?;
        generations.insert(*place, sums.clone());
        Some(sums)
    }

    pub(super) fn insert(&self, place: Place, sums: Sums) {
        self.generations.lock().insert(place, sums);
    }
}

impl Generations {
    fn insert(&mut self, place: Place, sums: Sums) {
        self.young_bytes += size_of_val(&*sums);
        if let Some(former) = self.young.insert(place, sums) {
            self.young_bytes -= size_of_val(&*former);
        }
        if self.young_bytes > KEPT / 2 {
            self.old = take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_kept_and_the_rest_forgotten_in_time() {
        let kept = PageSums::default();
        let sums: Sums = (0..1024).collect();
        let most = (KEPT / size_of_val(&*sums)) as u64;
        for number in 0..10 * most {
            kept.insert((1, 1, number), sums.clone());
            assert!(kept.get(&(1, 1, 0)).is_some(), "{number}");
            let generations = kept.generations.lock();
            let held = generations.young.len() + generations.old.len();
            assert!(held as u64 <= most + 1);
        }
        assert!(kept.get(&(1, 1, 1)).is_none());
        assert!(kept.get(&(1, 2, 0)).is_none());
    }
}
