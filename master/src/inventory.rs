//! Which blocks of the newest snapshots are cached where: soft state that workers report.

use std::collections::HashMap;

use parking_lot::Mutex;
use roaring::RoaringBitmap;
use weir_core::blocknumber::numbered_files;
use weir_core::{DatasetName, Manifest, SnapshotId, WorkerId};
use weir_proto::v1;

use crate::error::MasterError;

/// What a worker holds of a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    blocks: RoaringBitmap,
    bytes: u64,
}

impl Held {
    /// Reads a report on a snapshot of so many blocks and bytes.
    pub(crate) fn read(
        report: &v1::Inventory,
        blocks: u64,
        bytes: u64,
    ) -> Result<Self, MasterError> {
        let invalid = |what: &str| {
            let (name, version) = (&report.dataset, report.version);
            MasterError::Invalid(format!("the inventory of {name}@{version} {what}"))
        };
        if containers(&report.blocks).is_none_or(|number| number > blocks.div_ceil(CONTAINER)) {
            return Err(invalid("has more blocks than the snapshot"));
        }
        let held = RoaringBitmap::deserialize_from(&report.blocks[..])
            .map_err(|error| invalid(&format!("is not readable: {error}")))?;
        if held.max().is_some_and(|last| u64::from(last) >= blocks) {
            return Err(invalid("has blocks that the snapshot does not have"));
        }
        Ok(Self {
            blocks: held,
            bytes: report.bytes.min(bytes),
        })
    }
}

/// Numbers that one container of a serialized bitmap holds at most.
const CONTAINER: u64 = 1 << 16;

/// How many containers a serialized bitmap says it has; each takes 8 KiB of memory, however short it is written. Source:
/// the Roaring format specification.
fn containers(bitmap: &[u8]) -> Option<u64> {
    const WITH_RUNS: u32 = 0x303b;
    let number = |at: usize| {
        let bytes = bitmap.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let cookie = number(0)?;
    if cookie & 0xffff == WITH_RUNS {
        return Some(u64::from(cookie >> 16) + 1);
    }
    number(4).map(u64::from)
}

/// The last report of each worker for each snapshot.
#[derive(Debug, Default)]
pub(crate) struct Inventories {
    held: Mutex<HashMap<DatasetName, OfDataset>>,
}

/// The reports on the newest snapshot of a dataset.
#[derive(Debug, Default)]
struct OfDataset {
    version: u64,
    workers: HashMap<WorkerId, Held>,
}

/// How much of a snapshot is cached somewhere.
pub(crate) enum Cached {
    /// So many bytes.
    Bytes(u64),
    /// Several workers hold the same blocks, so the manifest is needed to count each once.
    Blocks(RoaringBitmap),
}

impl Inventories {
    /// Takes in a worker's report on a newest snapshot.
    pub(crate) fn set(&self, snapshot: SnapshotId, worker: &WorkerId, held: Held) {
        let mut all = self.held.lock();
        let reports = all.entry(snapshot.dataset).or_default();
        if reports.version != snapshot.version {
            *reports = OfDataset {
                version: snapshot.version,
                workers: HashMap::new(),
            };
        }
        reports.workers.insert(worker.clone(), held);
    }

    /// Some of these snapshots of which there is no report of the worker.
    pub(crate) fn missing<'a>(
        &self,
        worker: &WorkerId,
        newest: impl Iterator<Item = (&'a DatasetName, u64)>,
        most: usize,
    ) -> Vec<SnapshotId> {
        let all = self.held.lock();
        let missing = newest.filter(|(dataset, version)| {
            all.get(*dataset).is_none_or(|reports| {
                reports.version != *version || !reports.workers.contains_key(worker)
            })
        });
        let id = |(dataset, version): (&DatasetName, u64)| SnapshotId {
            dataset: dataset.clone(),
            version,
        };
        missing.take(most).map(id).collect()
    }

    /// Forgets a worker that left.
    pub(crate) fn forget_worker(&self, worker: &WorkerId) {
        for reports in self.held.lock().values_mut() {
            reports.workers.remove(worker);
        }
    }

    /// Forgets a dataset.
    pub(crate) fn forget_dataset(&self, dataset: &DatasetName) {
        self.held.lock().remove(dataset);
    }

    /// How much of a snapshot at least one worker holds.
    pub(crate) fn cached(&self, snapshot: &SnapshotId) -> Cached {
        let all = self.held.lock();
        let reports = all.get(&snapshot.dataset);
        let Some(reports) = reports.filter(|reports| reports.version == snapshot.version) else {
            return Cached::Bytes(0);
        };
        let mut union = RoaringBitmap::new();
        let mut blocks = 0;
        for held in reports.workers.values() {
            union |= &held.blocks;
            blocks += held.blocks.len();
        }
        if blocks == union.len() {
            let bytes = reports.workers.values().map(|held| held.bytes);
            return Cached::Bytes(bytes.fold(0, u64::saturating_add));
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

    fn snapshot(version: u64) -> SnapshotId {
        SnapshotId {
            dataset: "set".parse().unwrap(),
            version,
        }
    }

    #[test]
    fn blocks_that_two_workers_hold_count_once() {
        let inventories = Inventories::default();
        let set = |worker: &str, report: v1::Inventory| {
            let held = Held::read(&report, 3, 27).unwrap();
            inventories.set(snapshot(1), &worker.parse().unwrap(), held);
        };
        set("a", report([0, 1], 20));
        set("b", report([2], 7));
        assert!(matches!(
            inventories.cached(&snapshot(1)),
            Cached::Bytes(27)
        ));
        set("b", report([1, 2], 17));
        let Cached::Blocks(blocks) = inventories.cached(&snapshot(1)) else {
            panic!("block 1 is held twice");
        };
        assert_eq!(blocks.len(), 3);
        inventories.forget_worker(&"b".parse().unwrap());
        assert!(matches!(
            inventories.cached(&snapshot(1)),
            Cached::Bytes(20)
        ));
    }

    #[test]
    fn what_no_worker_has_told_is_missing() {
        let inventories = Inventories::default();
        let (set, other) = ("set".parse().unwrap(), "other".parse().unwrap());
        let missing = |worker: &str, version| {
            let newest = [(&set, version), (&other, 1)];
            let worker = worker.parse().unwrap();
            let missing = inventories.missing(&worker, newest.into_iter(), 10);
            missing.into_iter().map(|id| id.to_string()).collect()
        };
        let missing: &dyn Fn(&str, u64) -> Vec<String> = &missing;
        assert_eq!(missing("a", 1), ["set@1", "other@1"]);
        let held = Held::read(&report([0], 1), 1, 1).unwrap();
        inventories.set(snapshot(1), &"a".parse().unwrap(), held);
        assert_eq!(missing("a", 1), ["other@1"]);
        assert_eq!(missing("b", 1), ["set@1", "other@1"]);
        assert_eq!(missing("a", 2), ["set@2", "other@1"], "a newer snapshot");
        inventories.forget_dataset(&set);
        assert_eq!(missing("a", 1), ["set@1", "other@1"]);
    }

    #[test]
    fn a_report_that_cannot_be_true_is_refused() {
        let broken = |blocks: &[u8]| v1::Inventory {
            blocks: blocks.to_vec(),
            ..report([], 0)
        };
        // 65,536 containers in four bytes.
        let many = 0xffff_303b_u32.to_le_bytes();
        for (what, report, blocks) in [
            ("no bitmap", broken(&[1, 2, 3]), 10),
            ("no bitmap", broken(&[0; 64]), 10),
            ("memory for 512 MiB", broken(&many), 1_000_000),
            ("a block too many", report([10], 0), 10),
            ("far too many", report((0..100).map(|n| n << 20), 0), 10),
        ] {
            assert!(Held::read(&report, blocks, 10).is_err(), "{what}");
        }
        let boastful = Held::read(&report([9], u64::MAX), 10, 7).unwrap();
        assert_eq!(boastful.bytes, 7);
        assert_eq!(Held::read(&report([], 0), 0, 0).unwrap().bytes, 0);
    }
}
