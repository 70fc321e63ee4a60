//! What a block is and what identifies it.
//!
//! A block is a fixed-size piece of one *version* of one object. Its identity covers the origin, the key, the
//! origin's version and the block's index, so a changed object never shares a cached block with its old self,
//! while two datasets that name the same object do.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::id::OriginId;

/// Size of a block, in bytes; the last block of an object, and a small file's only one, is shorter.
///
/// 4 MiB is long enough for an origin's bandwidth and short enough that a random read does not fetch much
/// that nobody asked for.
pub const BLOCK_SIZE: u64 = 4 << 20;

/// One version of one object in an origin.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ObjectRef {
    /// The object's full key in the bucket, or its path below the origin's directory, without a leading `/`.
    pub key: Arc<str>,
    /// Length of this version, in bytes.
    pub size: u64,
    /// The origin's name for this version: an ETag without its quotes, or `mtime-inode` of a local file.
    pub version: Arc<str>,
    /// When it was changed last, in nanoseconds since 1970; 0 when nobody knows. A witness where an answer names no
    /// version, and no part of the block's identity.
    pub modified_ns: i64,
}

/// One block of one object version.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Block {
    /// Where the object lives.
    pub origin: OriginId,
    /// The object version that the block is a piece of.
    pub object: ObjectRef,
    /// Counts from 0; the block starts at `index * BLOCK_SIZE`.
    pub index: u32,
}

impl Block {
    /// The bytes of the object that this block holds. Empty for an index past the end.
    pub fn range(&self) -> Range<u64> {
        let start = (u64::from(self.index) * BLOCK_SIZE).min(self.object.size);
        start..(start + BLOCK_SIZE).min(self.object.size)
    }

    /// Length of this block, in bytes.
    #[allow(clippy::len_without_is_empty)] // a block of no bytes is never made
    pub fn len(&self) -> u32 {
        let range = self.range();
        (range.end - range.start) as u32
    }

    /// The block's identity.
    pub fn key(&self) -> BlockKey {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.origin.0.to_le_bytes());
        hasher.update(&self.object.size.to_le_bytes());
        hasher.update(&(self.object.key.len() as u64).to_le_bytes());
        hasher.update(self.object.key.as_bytes());
        hasher.update(&(self.object.version.len() as u64).to_le_bytes());
        hasher.update(self.object.version.as_bytes());
        hasher.update(&self.index.to_le_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        BlockKey(key)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} of {:?}", self.index, self.object.key)
    }
}

/// Number of blocks that an object of `size` bytes has.
pub fn block_count(size: u64) -> u32 {
    size.div_ceil(BLOCK_SIZE) as u32
}

/// A block's identity: the first 128 bits of a BLAKE3 hash over all that identifies it.
///
/// A cryptographic hash, because the keys of a bucket can be chosen by somebody who wants two to collide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey(pub [u8; 16]);

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(key: &str, version: &str, size: u64, index: u32) -> Block {
        Block {
            origin: OriginId(7),
            object: ObjectRef {
                key: key.into(),
                size,
                version: version.into(),
                modified_ns: 0,
            },
            index,
        }
    }

    #[test]
    fn a_changed_version_size_key_index_or_origin_changes_the_identity() {
        let base = block("a", "v1", 10, 0);
        let mut other_origin = base.clone();
        other_origin.origin = OriginId(8);
        for other in [
            block("b", "v1", 10, 0),
            block("a", "v2", 10, 0),
            block("a", "v1", 11, 0),
            block("a", "v1", 10, 1),
            other_origin,
        ] {
            assert_ne!(base.key(), other.key(), "{other:?}");
        }
        // The boundary between key and version is part of the identity.
        assert_ne!(block("ab", "c", 10, 0).key(), block("a", "bc", 10, 0).key());
    }

    #[test]
    fn the_last_block_is_as_long_as_what_is_left() {
        let size = 2 * BLOCK_SIZE + 5;
        assert_eq!(block_count(size), 3);
        assert_eq!(block("a", "v", size, 2).range(), 2 * BLOCK_SIZE..size);
        assert_eq!(block("a", "v", size, 2).len(), 5);
        assert_eq!(block_count(0), 0);
        assert_eq!(block_count(BLOCK_SIZE), 1);
    }
}
