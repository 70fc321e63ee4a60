//! Buckets of many millions of objects that are held nowhere.
//!
//! Everything about an object follows from its number, so a page of the listing is computed from its first key. The
//! hash in each name and the digits of each ETag are as hard to compress as those of real data sets.

use std::ops::Bound;
use std::time::{Duration, SystemTime};

use crate::pattern::{Pattern, mix};
use crate::version::{Content, Version};

/// Objects of one directory.
const PER_DIRECTORY: u64 = 1000;
/// Objects at most: their directories' numbers have six digits.
const MAX_COUNT: u64 = 1_000_000 * PER_DIRECTORY;
/// Sizes are spread over this range, in bytes.
const SMALLEST: u64 = 64 << 10;
const SPREAD: u64 = 128 << 10;
/// When the first object was made, in seconds of Unix time; each later one a second later.
const FIRST_MADE: u64 = 1_700_000_000;

/// The objects `0..count`, named `d000012/345-89abcdef.bin` for number 12,345.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generated {
    count: u64,
}

impl Generated {
    /// `count` objects, or as many as can be named.
    pub(crate) fn new(count: u64) -> Self {
        Self {
            count: count.min(MAX_COUNT),
        }
    }

    /// The object of a key.
    pub(crate) fn get(self, key: &[u8]) -> Option<Version> {
        let number = self.lower_bound(key);
        (number < self.count && name(number) == key).then(|| version(number))
    }

    /// Objects from `start` on, in the order of their keys.
    pub(crate) fn list(self, start: Bound<Vec<u8>>) -> impl Iterator<Item = (Vec<u8>, Version)> {
        let first = match start {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.lower_bound(&key),
            Bound::Excluded(key) => {
                let number = self.lower_bound(&key);
                number + u64::from(number < self.count && name(number) == key)
            }
        };
        (first..self.count).map(|number| (name(number), version(number)))
    }

    /// The first number whose key is not less than `key`.
    fn lower_bound(self, key: &[u8]) -> u64 {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = u64::midpoint(low, high);
            if name(middle).as_slice() < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

fn name(number: u64) -> Vec<u8> {
    let (directory, file) = (number / PER_DIRECTORY, number % PER_DIRECTORY);
    let hash = mix(number) as u32;
    format!("d{directory:06}/{file:03}-{hash:08x}.bin").into_bytes()
}

fn version(number: u64) -> Version {
    let seed = mix(number);
    Version {
        content: Content::Pattern(Pattern::of(seed)),
        size: SMALLEST + seed % SPREAD,
        etag: format!("{:016x}{:016x}", mix(seed), mix(!seed)),
        modified: SystemTime::UNIX_EPOCH + Duration::from_secs(FIRST_MADE + number),
        sums: None,
        archive: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_goes_on_behind_any_key_and_is_in_order() {
        let bucket = Generated::new(2500);
        let all: Vec<Vec<u8>> = bucket.list(Bound::Unbounded).map(|(key, _)| key).collect();
        assert_eq!(all.len(), 2500);
        assert!(all.is_sorted());
        for split in [0, 1, 999, 1000, 2499] {
            let rest = bucket.list(Bound::Excluded(all[split].clone()));
            assert!(
                rest.map(|(key, _)| key)
                    .eq(all[split + 1..].iter().cloned())
            );
        }
        let directory = bucket.list(Bound::Included(b"d000001/".to_vec())).next();
        assert_eq!(directory.map(|(key, _)| key).as_ref(), Some(&all[1000]));
    }

    #[test]
    fn an_object_is_found_by_its_whole_key_only() {
        let bucket = Generated::new(1500);
        let (key, version) = bucket.list(Bound::Unbounded).nth(1234).unwrap();
        assert_eq!(bucket.get(&key).unwrap().etag, version.etag);
        assert!(bucket.get(&key[..key.len() - 1]).is_none());
        assert!(Generated::new(1000).get(&key).is_none());
    }
}
