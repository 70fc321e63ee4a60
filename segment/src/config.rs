//! How a store is sized, and the sizes that make no sense.

use std::path::PathBuf;
use std::time::Duration;

use super::aligned::{PAGE, page_ceil, page_floor};
use super::error::SegmentError;
use super::record::{MAX_BLOCK_LEN, record_len};

/// Size of a segment file, in bytes, unless configured: long enough that a device of terabytes needs only
/// thousands of files, short enough that deleting one is a small loss.
pub const DEFAULT_SEGMENT_SIZE: u64 = 256 << 20;

/// How long nothing in a segment was read before it may make room for other blocks: longer than most epochs'
/// first pass over a hot file, shorter than the time between jobs.
pub const DEFAULT_IDLE_AFTER: Duration = Duration::from_hours(1);

/// A small store still splits into this many segments: evicting one is not evicting everything, and the one that is
/// kept for compaction is little of it.
const LEAST_SEGMENTS: u64 = 96;

/// Holds one of the longest blocks with its header and the table. A segment size asked for below this is
/// taken as it is, and blocks that do not fit are refused.
const LEAST_FOR_FULL_BLOCKS: u64 = page_ceil(record_len(MAX_BLOCK_LEN)) + 16 * PAGE;

/// No segment is smaller, in bytes.
const SMALLEST_SEGMENT: u64 = 16 * PAGE;

/// No segment is larger, in bytes: offsets in the index count 64-byte units in 32 bits.
const LARGEST_SEGMENT: u64 = 64 << 30;

/// Where a store lives and how large it may grow.
#[derive(Debug, Clone)]
pub struct SegmentConfig {
    /// The directory of the segment files; created if it is missing, and owned by one store at a time.
    pub dir: PathBuf,
    /// Bytes that the segment files may take together. One segment's worth of it is kept for compaction.
    pub capacity: u64,
    /// Bytes of one segment file at most; a ninety-sixth of the capacity if that is less.
    pub segment_size: u64,
    /// How long nothing in a segment was read before it may be evicted.
    pub idle_after: Duration,
}

impl SegmentConfig {
    /// A store of `capacity` bytes in `dir`, with the default segment size and idle time.
    pub fn new(dir: impl Into<PathBuf>, capacity: u64) -> Self {
        Self {
            dir: dir.into(),
            capacity,
            segment_size: DEFAULT_SEGMENT_SIZE,
            idle_after: DEFAULT_IDLE_AFTER,
        }
    }

    /// The segment size to work with.
    ///
    /// # Errors
    /// [`SegmentError::Capacity`] if the capacity is less than four segments.
    pub(super) fn segment_bytes(&self) -> Result<u64, SegmentError> {
        let size = if self.segment_size <= LEAST_FOR_FULL_BLOCKS {
            self.segment_size.max(SMALLEST_SEGMENT)
        } else {
            self.segment_size
                .min(self.capacity / LEAST_SEGMENTS)
                .clamp(LEAST_FOR_FULL_BLOCKS, LARGEST_SEGMENT)
        };
        let size = page_floor(size);
        if self.capacity < 4 * size {
            return Err(SegmentError::Capacity {
                dir: self.dir.clone(),
                capacity: self.capacity,
                least: 4 * size,
            });
        }
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_a_96th_of_a_small_capacity_and_still_holds_a_full_block() {
        let size = |capacity| SegmentConfig::new("d", capacity).segment_bytes();
        assert_eq!(size(1 << 40).unwrap(), DEFAULT_SEGMENT_SIZE);
        assert_eq!(size(96 << 24).unwrap(), 1 << 24);
        assert!(size(64 << 20).unwrap() - 4 * PAGE >= u64::from(MAX_BLOCK_LEN));
        assert!(matches!(size(16 << 20), Err(SegmentError::Capacity { .. })));
    }
}
