//! What a store counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A store's figures at one moment; counters start at zero when it is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentStats {
    /// Bytes that the segment files may take.
    pub capacity: u64,
    /// Bytes of it that they may take now.
    pub limit: u64,
    /// Bytes that they take, including the table that the segment being written will end with.
    pub used_bytes: u64,
    /// Bytes of live records: blocks with their headers.
    pub live_bytes: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Segment files.
    pub segments: u64,
    /// Blocks written.
    pub stored_blocks: u64,
    /// Blocks refused because nothing may make room for them.
    pub refused_blocks: u64,
    /// Blocks dropped because their data had a wrong checksum or their file ended too soon.
    pub corrupt_blocks: u64,
    /// Blocks dropped because the device could not read them.
    pub unreadable_blocks: u64,
    /// Blocks evicted to make room.
    pub evicted_blocks: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Blocks dropped because the files may take less than they did.
    pub shrunk_blocks: u64,
    /// Their bytes.
    pub shrunk_bytes: u64,
    /// Segment files found deleted, cut short, replaced or without a single intact record.
    pub lost_segments: u64,
    /// Blocks lost with them.
    pub lost_blocks: u64,
    /// Segments rewritten without their dead records.
    pub compacted_segments: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Blocks found when the store was opened.
    pub recovered_blocks: u64,
    /// Records dropped then because their write had not finished.
    pub torn_records: u64,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// The counting part of [`SegmentStats`].
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            /// Copies the counters; the sizes are left at zero.
            pub(super) fn snapshot(&self) -> SegmentStats {
                SegmentStats {
                    $($name: self.$name.load(Relaxed),)*
                    ..SegmentStats::default()
                }
            }
        }
    };
}

counters!(
    stored_blocks,
    refused_blocks,
    corrupt_blocks,
    unreadable_blocks,
    evicted_blocks,
    evicted_bytes,
    shrunk_blocks,
    shrunk_bytes,
    lost_segments,
    lost_blocks,
    compacted_segments,
    failed_writes,
    recovered_blocks,
    torn_records,
);

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}
