//! Which blocks of a snapshot this worker holds, as a bitmap over the blocks' numbers.

pub(crate) mod reports;

use roaring::RoaringBitmap;
use weir_core::blocknumber::numbered_files;
use weir_core::{Manifest, SnapshotId};
use weir_proto::v1;

use crate::worker::Worker;

/// The part of a snapshot that a worker holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Inventory {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Numbers of the blocks that are held.
    pub blocks: RoaringBitmap,
    /// Sum of their lengths.
    pub bytes: u64,
}

impl Inventory {
    /// Looks every block of the manifest up in the worker's index; takes around a microsecond for each.
    pub fn take(worker: &Worker, manifest: &Manifest) -> Self {
        let mut blocks = RoaringBitmap::new();
        let mut bytes = 0;
        for (index, numbers) in numbered_files(manifest) {
            for (block, number) in manifest.blocks(index).zip(numbers) {
                if worker.holds(&block.key()) {
                    // Numbers only grow, so this appends.
                    blocks.insert(number);
                    bytes += u64::from(block.len());
                }
            }
        }
        Self {
            snapshot: manifest.summary().snapshot.clone(),
            blocks,
            bytes,
        }
    }

    /// The inventory as it is reported.
    pub fn to_proto(&self) -> v1::Inventory {
        let mut serialized = Vec::with_capacity(self.blocks.serialized_size());
        // Writing to memory does not fail.
        let _ = self.blocks.serialize_into(&mut serialized);
        v1::Inventory {
            dataset: self.snapshot.dataset.to_string(),
            version: self.snapshot.version,
            blocks: serialized,
            bytes: self.bytes,
        }
    }
}
