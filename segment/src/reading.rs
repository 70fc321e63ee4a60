//! Reads: what a caller gets of a block, and what becomes of one that is damaged.

use std::ops::Range;

use bytes::Bytes;
use weir_core::BlockKey;

use super::appender::Appender;
use super::error::SegmentError;
use super::index::Slot;
use super::location::{BlockLocation, ReadFault};
use super::stats::count;
use super::store::SegmentStore;

impl SegmentStore {
    /// Reads part of a block; `None` if it is not held. A range that reaches past the block's end is cut there.
    ///
    /// The bytes are verified. A block that fails this, or that the device cannot read, is dropped and counted,
    /// and `None` is returned. See [`BlockLocation::read`] for how long the result keeps its buffer.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if the read failed for a reason that is not the block's, such as too little memory.
    pub fn read(&self, key: &BlockKey, range: Range<u32>) -> Result<Option<Bytes>, SegmentError> {
        let Some(slot) = self.index.get(key) else {
            return Ok(None);
        };
        slot.segment.touch(self.now());
        match self.read_location(&slot, range) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(fault) => {
                let mut app = self.appender.lock();
                self.drop_faulty(&mut app, key, &slot, fault)?;
                Ok(None)
            }
        }
    }

    /// As [`SegmentStore::read`] of the whole block, for a caller that holds the appender.
    pub(super) fn read_slot(
        &self,
        app: &mut Appender,
        key: &BlockKey,
        slot: &Slot,
    ) -> Result<Option<Bytes>, SegmentError> {
        match self.read_location(slot, 0..slot.len) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(fault) => self.drop_faulty(app, key, slot, fault).map(|()| None),
        }
    }

    fn read_location(&self, slot: &Slot, range: Range<u32>) -> Result<Bytes, ReadFault> {
        slot.location().read_through(&*self.disk, range, &self.pool)
    }

    /// Drops a block that could not be read, unless the fault is not the block's.
    fn drop_faulty(
        &self,
        app: &mut Appender,
        key: &BlockKey,
        slot: &Slot,
        fault: ReadFault,
    ) -> Result<(), SegmentError> {
        let counter = match fault {
            ReadFault::Io(error) if !is_media_error(&error) => {
                return Err(SegmentError::cannot("read", &slot.segment.path)(error));
            }
            ReadFault::Io(_) => &self.counters.unreadable_blocks,
            ReadFault::Short | ReadFault::Corrupt { .. } => &self.counters.corrupt_blocks,
        };
        if self.index.remove_at(key, slot) {
            count(counter, 1);
            let path = slot.segment.path.display();
            tracing::warn!(block = %key, %path, %fault, "dropped a block of the cache");
            self.bury(app, &slot.segment, &[slot.unit]);
        }
        Ok(())
    }

    /// Where a block's data is, for a process on this machine that reads and verifies it by itself. Counts as a
    /// read of the block's segment.
    pub fn locate(&self, key: &BlockKey) -> Option<BlockLocation> {
        let slot = self.index.get(key)?;
        slot.segment.touch(self.now());
        Some(slot.location())
    }

    /// Notes that blocks are in use by a process that reads them through [`SegmentStore::locate`].
    pub fn touch(&self, keys: &[BlockKey]) {
        let now = self.now();
        for slot in keys.iter().filter_map(|key| self.index.get(key)) {
            slot.segment.touch(now);
        }
    }

    /// To be called when somebody found a block corrupt: reads and verifies it, and drops it if that is so.
    pub fn report_bad(&self, key: &BlockKey) {
        if let Err(error) = self.read(key, 0..u32::MAX) {
            tracing::warn!(block = %key, %error, "cannot check a block that was reported as bad");
        }
    }

    /// True if the block is held.
    pub fn contains(&self, key: &BlockKey) -> bool {
        self.index.contains(key)
    }
}

/// True if an error speaks of the device or the file, so that trying again would not help.
fn is_media_error(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let media = [
        Errno::IO,
        Errno::UCLEAN,
        Errno::BADMSG,
        Errno::NODATA,
        Errno::STALE,
        Errno::NXIO,
    ];
    Errno::from_io_error(error).is_some_and(|errno| media.contains(&errno))
}
