//! Reading many small blocks with few reads of the disk: those that were written together lie together.

use std::sync::Arc;

use bytes::Bytes;
use weir_core::BlockKey;

use super::aligned::BufferPool;
use super::disk::{Disk, LocalDisk};
use super::location::{BlockLocation, read_run};
use super::store::SegmentStore;

/// Bytes between two blocks that are rather read along than left out by a read of their own.
const MAX_GAP: u64 = 64 << 10;
/// Parts of a segment file, in bytes: blocks that begin in different ones are not read together. A part with the rest
/// of a block of common length fits a huge buffer.
const WINDOW: u64 = 896 << 10;

/// A block that is wanted.
struct Wanted<'a> {
    /// Its place among those that were asked for.
    place: usize,
    /// Tells its file from others.
    file: (u64, u64),
    location: &'a BlockLocation,
}

impl Wanted<'_> {
    /// Whether `next`, which lies behind this one, is to be read with it.
    fn is_near(&self, next: &Self) -> bool {
        let (here, there) = (self.location, next.location);
        let end = here.offset + u64::from(here.len);
        self.file == next.file
            && here.offset / WINDOW == there.offset / WINDOW
            && there.offset.saturating_sub(end) <= MAX_GAP
    }
}

/// Reads and verifies whole blocks; nothing for those that cannot be read or are not what was written. Results share
/// buffers: copy them before keeping them for long. Blocks on the disk.
pub fn read_together(locations: &[BlockLocation], pool: &Arc<BufferPool>) -> Vec<Option<Bytes>> {
    read_through(&LocalDisk, locations, pool)
}

fn read_through(
    disk: &dyn Disk,
    locations: &[BlockLocation],
    pool: &Arc<BufferPool>,
) -> Vec<Option<Bytes>> {
    let mut read = vec![None; locations.len()];
    let wanted = locations
        .iter()
        .enumerate()
        .filter_map(|(place, location)| {
            // Descriptors of one file may be many: a client gets one with each block.
            let file = rustix::fs::fstat(&location.file).ok()?;
            Some(Wanted {
                place,
                file: (file.st_dev, file.st_ino),
                location,
            })
        });
    let mut wanted: Vec<Wanted<'_>> = wanted.collect();
    wanted.sort_unstable_by_key(|block| (block.file, block.location.offset));
    for run in wanted.chunk_by(Wanted::is_near) {
        let blocks: Vec<&BlockLocation> = run.iter().map(|block| block.location).collect();
        let bytes = read_run(disk, &blocks, pool).unwrap_or_default();
        for (block, bytes) in run.iter().zip(bytes) {
            read[block.place] = bytes;
        }
    }
    read
}

impl SegmentStore {
    /// Reads whole blocks, each as [`SegmentStore::read`] does; nothing for those that are not held or cannot be
    /// read. Results share buffers: copy them before keeping them for long.
    pub fn read_whole(&self, keys: &[BlockKey]) -> Vec<Option<Bytes>> {
        let held = keys.iter().enumerate();
        let held = held.filter_map(|(place, key)| Some((place, self.locate(key)?)));
        let (places, locations): (Vec<usize>, Vec<BlockLocation>) = held.unzip();
        let mut read = vec![None; keys.len()];
        let bytes = read_through(&*self.disk, &locations, &self.pool);
        for (place, bytes) in places.into_iter().zip(bytes) {
            // What went wrong with one of many is found out, and counted, by reading it alone.
            read[place] = bytes.or_else(|| self.read(&keys[place], 0..u32::MAX).ok()?);
        }
        read
    }
}
