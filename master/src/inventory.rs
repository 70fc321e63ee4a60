//! Which blocks of the newest snapshots are cached where: soft state that workers report.

use std::collections::HashMap;

use parking_lot::Mutex;
use roaring::RoaringBitmap;
use weir_core::blocknumber::numbered_files;
use weir_core::{Manifest, SnapshotId, WorkerId};
use weir_proto::v1;

use crate::error::MasterError;

#[derive(Clone, Debug)]
struct Held {
    blocks: RoaringBitmap,
    bytes: u64,
}

/// The last report of each worker for each snapshot.
#[derive(Debug, Default)]
pub(crate) struct Inventories {
    held: Mutex<HashMap<SnapshotId, HashMap<WorkerId, Held>>>,
}

/// How much of a snapshot is cached somewhere.
pub(crate) enum Cached {
    /// So many bytes.
    Bytes(u64),
    /// Several workers hold the same blocks, so the manifest is needed to count each once.
    Blocks(RoaringBitmap),
}

impl Inventories {
    /// Takes in a worker's report.
    pub(crate) fn report(
        &self,
        worker: &WorkerId,
        report: v1::Inventory,
    ) -> Result<(), MasterError> {
        let snapshot = SnapshotId {
            dataset: report.dataset.parse()?,
            version: report.version,
        };
        let blocks = RoaringBitmap::deserialize_from(&report.blocks[..]).map_err(|error| {
            MasterError::Invalid(format!(
                "the inventory of {snapshot} is not readable: {error}"
            ))
        })?;
        let held = Held {
            blocks,
            bytes: report.bytes,
        };
        self.held
            .lock()
            .entry(snapshot)
            .or_default()
            .insert(worker.clone(), held);
        Ok(())
    }

    /// Forgets a worker that left.
    pub(crate) fn forget_worker(&self, worker: &WorkerId) {
        for workers in self.held.lock().values_mut() {
            workers.remove(worker);
        }
    }

    /// Forgets every snapshot but `wanted`.
    pub(crate) fn retain(&self, wanted: &[SnapshotId]) {
        self.held
            .lock()
            .retain(|snapshot, _| wanted.contains(snapshot));
    }

    /// How much of a snapshot at least one worker holds.
    pub(crate) fn cached(&self, snapshot: &SnapshotId) -> Cached {
        let held = self.held.lock();
        let Some(workers) = held.get(snapshot) else {
            return Cached::Bytes(0);
        };
        let mut union = RoaringBitmap::new();
        let mut blocks = 0;
        for held in workers.values() {
            union |= &held.blocks;
            blocks += held.blocks.len();
        }
        if blocks == union.len() {
            return Cached::Bytes(workers.values().map(|held| held.bytes).sum());
        }
        Cached::Blocks(union)
    }
}

/// The sum of the lengths of the numbered blocks.
pub(crate) fn bytes_of(blocks: &RoaringBitmap, manifest: &Manifest) -> u64 {
    numbered_files(manifest)
        .flat_map(|(index, numbers)| manifest.blocks(index).zip(numbers))
        .filter(|(_, number)| blocks.contains(*number))
        .map(|(block, _)| u64::from(block.len()))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(blocks: impl IntoIterator<Item = u32>, bytes: u64) -> v1::Inventory {
        let bitmap: RoaringBitmap = blocks.into_iter().collect();
        let mut serialized = Vec::new();
        bitmap.serialize_into(&mut serialized).unwrap();
        v1::Inventory {
            dataset: "set".to_owned(),
            version: 1,
            blocks: serialized,
            bytes,
        }
    }

    #[test]
    fn blocks_that_two_workers_hold_count_once() {
        let inventories = Inventories::default();
        let snapshot = SnapshotId {
            dataset: "set".parse().unwrap(),
            version: 1,
        };
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        inventories.report(&a, report([0, 1], 20)).unwrap();
        inventories.report(&b, report([2], 7)).unwrap();
        assert!(matches!(inventories.cached(&snapshot), Cached::Bytes(27)));
        inventories.report(&b, report([1, 2], 17)).unwrap();
        let Cached::Blocks(blocks) = inventories.cached(&snapshot) else {
            panic!("block 1 is held twice");
        };
        assert_eq!(blocks.len(), 3);
        inventories.forget_worker(&b);
        assert!(matches!(inventories.cached(&snapshot), Cached::Bytes(20)));
    }

    #[test]
    fn a_report_that_is_no_bitmap_is_refused() {
        let broken = v1::Inventory {
            blocks: vec![1, 2, 3],
            ..report([], 0)
        };
        assert!(
            Inventories::default()
                .report(&"a".parse().unwrap(), broken)
                .is_err()
        );
    }
}
