//! Contents that are computed.

use std::ops::Range;

use bytes::Bytes;

/// Bytes that follow from a seed and their offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The bytes of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        Self { seed }
    }

    /// The bytes of `range`.
    pub(crate) fn bytes(self, range: Range<u64>) -> Bytes {
        const WORD: u64 = 8;
        let words = range.start / WORD..range.end.div_ceil(WORD);
        let skipped = (range.start - words.start * WORD) as usize;
        let length = (range.end - range.start) as usize;
        let bytes: Vec<u8> = words
            .flat_map(|word| mix(self.seed ^ word).to_le_bytes())
            .collect();
        Bytes::from(bytes).slice(skipped..skipped + length)
    }
}

/// SplitMix64's output function (Steele, Lea and Flood, 2014): neighbours have nothing in common.
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_the_bytes_of_the_whole() {
        let pattern = Pattern { seed: 7 };
        let whole = pattern.bytes(0..100);
        for (start, end) in [(0, 100), (3, 9), (8, 16), (13, 14), (99, 100), (5, 5)] {
            let part = pattern.bytes(start..end);
            assert_eq!(part, whole[start as usize..end as usize]);
        }
    }
}
