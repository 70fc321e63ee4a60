//! The SSD tier: one segment store for each device, and the threads that write to them.
//!
//! A block belongs to one device, chosen by its key in proportion to the devices' capacities, so a lookup asks one
//! store. Writes are queued: a fill's reader does not wait for the disk. What a queue may hold is bounded by the
//! fills' byte budget, which a block gives back when it has been written.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use weir_core::{BlockKey, ByteSize, LogLimit};

use crate::config::SsdConfig;
use weir_segment::{
    Admission, Background, BlockData, BlockLocation, Pieces, SegmentConfig, SegmentError,
    SegmentStats, SegmentStore,
};

mod health;
mod room;

use health::Health;
pub(crate) use health::Trouble;
pub use room::DiskSpace;
use room::Room;

/// Blocks that wait for one device; the byte budget of the fills is the tighter limit for all but tiny blocks.
const QUEUE_BLOCKS: usize = 4096;
/// Most blocks and bytes that go to the device in one write.
const BATCH_BLOCKS: usize = 256;
const BATCH_BYTES: usize = 8 << 20;
/// Segments of one device that are compacted in one go, so that its writer waits for a moment only.
const COMPACTIONS: usize = 2;
/// A batch of fewer blocks waits for more of them.
const SMALL_BATCH: usize = 64;
/// How long a first block waits for others to be written with. Few large writes cost less than many small ones, of
/// which each ends with half a page of padding, and the thread is not woken for each block; a crash loses at most this
/// much more, and what waits takes memory.
const LINGER: Duration = Duration::from_millis(2);

/// A block to be written, and what to do when it was (or was refused).
pub(crate) struct Write {
    pub(crate) key: BlockKey,
    pub(crate) data: Pieces,
    pub(crate) done: Box<dyn FnOnce(Result<Admission, &SegmentError>) + Send>,
}

struct Device {
    path: PathBuf,
    store: Arc<SegmentStore>,
    background: Background,
    queue: Mutex<Option<mpsc::Sender<Write>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Reads that failed, in the log.
    failures: LogLimit,
    health: Mutex<Health>,
    room: Mutex<Room>,
    /// Times at which space was given back, in the log.
    given_back: LogLimit,
}

/// Use of one device.
pub(crate) struct DeviceUsage {
    pub(crate) path: PathBuf,
    pub(crate) stats: SegmentStats,
    /// The worst that was wrong with it a short time ago.
    pub(crate) trouble: Option<Trouble>,
}

/// All SSD devices of a worker.
pub(crate) struct SsdTier {
    devices: Vec<Arc<Device>>,
    /// Running sums of the capacities, for the choice of a device.
    bounds: Vec<u64>,
}

/// Those of several blocks that belong to one device, with their places among all.
#[derive(Default)]
struct OfDevice {
    places: Vec<usize>,
    keys: Vec<BlockKey>,
}

impl Device {
    fn read(&self, key: &BlockKey, range: Range<u32>) -> Option<Bytes> {
        let found = self.store.read(key, range);
        found.unwrap_or_else(|error| {
            if let Some(left_out) = self.failures.line() {
                tracing::warn!(%error, left_out, "a block could not be read from the SSD tier; it is fetched again");
            }
            None
        })
    }

    /// Leaves of the disk what others are to have.
    fn leave_room(&self) {
        let mut room = self.room.lock();
        if room.is_all() {
            return;
        }
        // A directory that is gone is found by the look at its files.
        let Ok(space) = DiskSpace::of(&self.path) else {
            return;
        };
        let freed = room.leave(&self.store, space, Instant::now());
        if freed > 0
            && let Some(left_out) = self.given_back.line()
        {
            let (freed, dir) = (ByteSize(freed), self.path.display());
            tracing::warn!(
                %dir, %freed, left_out,
                "others fill the disk of the SSD tier, which drops what was not read for longest to leave it free"
            );
        }
    }
}

impl SsdTier {
    /// Opens every device, with what it held before.
    pub(crate) fn open(configs: &[SsdConfig]) -> Result<Self, SegmentError> {
        let mut devices = Vec::new();
        let mut bounds = Vec::new();
        let mut sum = 0;
        for config in configs {
            let store = SegmentStore::open(SegmentConfig {
                idle_after: config.evict_idle,
                ..SegmentConfig::new(config.dir.clone(), config.capacity.0)
            })?;
            let store = Arc::new(store);
            let (queue, writes) = mpsc::channel(QUEUE_BLOCKS);
            let writer = std::thread::Builder::new()
                .name("weir-ssd-write".into())
                .spawn({
                    let store = store.clone();
                    move || write_loop(&store, writes)
                })
                .map_err(|error| SegmentError::io(&config.dir, error))?;
            sum += config.capacity.0.max(1);
            bounds.push(sum);
            devices.push(Arc::new(Device {
                path: config.dir.clone(),
                store,
                background: Background::default(),
                queue: Mutex::new(Some(queue)),
                writer: Mutex::new(Some(writer)),
                failures: LogLimit::default(),
                health: Mutex::default(),
                room: Mutex::new(Room::new(config.left_free)),
                given_back: LogLimit::default(),
            }));
        }
        Ok(Self { devices, bounds })
    }

    fn device(&self, key: &BlockKey) -> Option<&Arc<Device>> {
        self.devices.get(self.device_number(key)?)
    }

    fn device_number(&self, key: &BlockKey) -> Option<usize> {
        let total = *self.bounds.last()?;
        let mut tail = [0; 8];
        tail.copy_from_slice(&key.0[8..]);
        let point = (u128::from(u64::from_le_bytes(tail)) * u128::from(total)) >> 64;
        Some(self.bounds.partition_point(|b| u128::from(*b) <= point))
    }

    /// Verified bytes of a block, or `None` when no device holds it. Blocks on the disk.
    pub(crate) fn read(&self, key: &BlockKey, range: Range<u32>) -> Option<Bytes> {
        self.device(key)?.read(key, range)
    }

    /// As [`Self::read`], without blocking the caller's thread.
    pub(crate) async fn read_in_background(
        &self,
        key: BlockKey,
        range: Range<u32>,
    ) -> Option<Bytes> {
        let device = self.device(&key)?;
        // The index tells without the disk whether a look there is worth a thread.
        if !device.store.contains(&key) {
            return None;
        }
        let reader = device.clone();
        let read = device.background.run(move || reader.read(&key, range));
        read.await?
    }

    /// As [`Self::read`] of whole blocks, with few reads of the disk.
    pub(crate) fn read_whole(&self, keys: &[BlockKey]) -> Vec<Option<Bytes>> {
        let by_device = self.by_device(keys).into_iter();
        let read =
            by_device.map(|(device, part)| (part.places, device.store.read_whole(&part.keys)));
        in_order(keys.len(), read)
    }

    /// As [`Self::read_whole`], without blocking the caller's thread.
    pub(crate) async fn read_whole_in_background(&self, keys: &[BlockKey]) -> Vec<Option<Bytes>> {
        let read = self
            .by_device(keys)
            .into_iter()
            .map(async |(device, part)| {
                let reader = device.store.clone();
                let read = device.background.run(move || reader.read_whole(&part.keys));
                (part.places, read.await.unwrap_or_default())
            });
        in_order(keys.len(), join_all(read).await)
    }

    /// The blocks of each device that may hold some of them.
    fn by_device(&self, keys: &[BlockKey]) -> Vec<(&Arc<Device>, OfDevice)> {
        let mut parts: Vec<OfDevice> = self.devices.iter().map(|_| OfDevice::default()).collect();
        for (place, key) in keys.iter().enumerate() {
            if let Some(number) = self.device_number(key) {
                parts[number].places.push(place);
                parts[number].keys.push(*key);
            }
        }
        let mut by_device: Vec<_> = self.devices.iter().zip(parts).collect();
        by_device.retain(|(_, part)| !part.keys.is_empty());
        by_device
    }

    /// Where a block lies on its device.
    pub(crate) fn locate(&self, key: &BlockKey) -> Option<BlockLocation> {
        self.device(key)?.store.locate(key)
    }

    /// Whether a device holds the block.
    pub(crate) fn contains(&self, key: &BlockKey) -> bool {
        self.device(key).is_some_and(|d| d.store.contains(key))
    }

    /// Checks a block that a reader found damaged, and drops it if it is.
    pub(crate) async fn report_bad(&self, key: BlockKey) {
        if let Some(device) = self.device(&key) {
            let store = device.store.clone();
            // If the check panics, the next read finds out about the block by itself.
            device.background.run(move || store.report_bad(&key)).await;
        }
    }

    /// Queues a block; waits while the queue is full. Gives the write back when there is no device. A device that has
    /// no room refuses the block at once, so that what is read past a full cache does not wait for its turn.
    pub(crate) async fn write(&self, write: Write) -> Result<(), Write> {
        let Some(device) = self.device(&write.key) else {
            return Err(write);
        };
        if device.store.is_full(write.data.total() as u32) {
            (write.done)(Ok(device.store.refuse(1)));
            return Ok(());
        }
        let Some(queue) = device.queue.lock().clone() else {
            return Err(write);
        };
        queue.send(write).await.map_err(|refused| refused.0)
    }

    /// Drops blocks and gives the bytes that they had.
    pub(crate) fn remove(&self, keys: &[BlockKey]) -> u64 {
        let by_device = self.by_device(keys).into_iter();
        by_device
            .map(|(device, part)| device.store.remove(&part.keys))
            .sum()
    }

    /// Looks for segment files that were deleted, cut or replaced under us, and drops them.
    pub(crate) fn check_files(&self) {
        for device in &self.devices {
            let dropped = device.store.check_files();
            if dropped > 0 {
                tracing::warn!(
                    dir = %device.path.display(), dropped,
                    "cache files were changed by somebody else; their blocks are fetched again when read"
                );
            }
        }
    }

    /// Leaves of each disk what others are to have. Blocks on the disk, for a bounded time.
    pub(crate) fn leave_room(&self) {
        for device in &self.devices {
            device.leave_room();
        }
    }

    /// Gives back the space of dropped blocks that lie among live ones. Blocks on the disk, for a bounded time.
    pub(crate) fn compact(&self) {
        for device in &self.devices {
            for _ in 0..COMPACTIONS {
                match device.store.compact() {
                    Ok(0) => break,
                    Ok(freed) => {
                        tracing::debug!(dir = %device.path.display(), freed, "compacted a segment");
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a cache segment could not be compacted");
                        break;
                    }
                }
            }
        }
    }

    /// Visits all blocks, with their lengths.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(BlockKey, u32)) {
        for device in &self.devices {
            device.store.for_each(&mut visit);
        }
    }

    /// Capacity and used bytes of all devices together.
    pub(crate) fn space(&self) -> (u64, u64) {
        let spaces = self.devices.iter().map(|device| device.store.space());
        spaces.fold((0, 0), |(capacity, used), (of_one, used_of_one)| {
            (capacity + of_one, used + used_of_one)
        })
    }

    /// Use of each device.
    pub(crate) fn usage(&self) -> Vec<DeviceUsage> {
        self.devices
            .iter()
            .map(|device| {
                let (stats, reads) = (device.store.stats(), device.background.progress());
                let trouble = device.health.lock().look(&stats, reads, Instant::now());
                DeviceUsage {
                    path: device.path.clone(),
                    stats,
                    trouble,
                }
            })
            .collect()
    }

    /// Writes what is queued and closes the stores, so that the next start is quick. Blocks on the disk.
    pub(crate) fn close(&self) {
        for device in &self.devices {
            device.queue.lock().take();
            if let Some(writer) = device.writer.lock().take()
                && writer.join().is_err()
            {
                tracing::error!(dir = %device.path.display(), "the SSD writer ended badly");
            }
            if let Err(error) = device.store.seal() {
                tracing::warn!(%error, "a cache segment could not be sealed; the next start scans it");
            }
        }
    }
}

/// What was read of each device, in the order in which it was asked for.
fn in_order(
    length: usize,
    read: impl IntoIterator<Item = (Vec<usize>, Vec<Option<Bytes>>)>,
) -> Vec<Option<Bytes>> {
    let mut all = vec![None; length];
    for (place, bytes) in read
        .into_iter()
        .flat_map(|(places, read)| places.into_iter().zip(read))
    {
        all[place] = bytes;
    }
    all
}

fn write_loop(store: &SegmentStore, mut writes: mpsc::Receiver<Write>) {
    while let Some(first) = writes.blocking_recv() {
        let mut batch = vec![first];
        gather(&mut writes, &mut batch);
        if batch.len() < SMALL_BATCH && bytes_of(&batch) < BATCH_BYTES / 2 {
            std::thread::sleep(LINGER);
            gather(&mut writes, &mut batch);
        }
        let blocks: Vec<(BlockKey, Pieces)> =
            batch.iter().map(|w| (w.key, w.data.clone())).collect();
        match store.put_many(&blocks) {
            Ok(admissions) => {
                for (write, admission) in batch.into_iter().zip(admissions) {
                    (write.done)(Ok(admission));
                }
            }
            Err(error) => {
                tracing::warn!(%error, blocks = batch.len(), "blocks could not be written to the SSD tier");
                for write in batch {
                    (write.done)(Err(&error));
                }
            }
        }
    }
}

/// Adds what is queued to a batch, up to the batch's limits.
fn gather(writes: &mut mpsc::Receiver<Write>, batch: &mut Vec<Write>) {
    let mut bytes = bytes_of(batch);
    while batch.len() < BATCH_BLOCKS && bytes < BATCH_BYTES {
        let Ok(next) = writes.try_recv() else { return };
        bytes += next.data.total();
        batch.push(next);
    }
}

fn bytes_of(batch: &[Write]) -> usize {
    batch.iter().map(|write| write.data.total()).sum()
}

#[cfg(test)]
mod tests;
