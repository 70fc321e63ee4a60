//! Which blocks of the newest snapshots are cached where: soft state that workers report.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use roaring::RoaringBitmap;
use weir_core::{DatasetName, SnapshotId, WorkerId};
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

/// The last report of each worker for each snapshot. Heartbeats need the table, so what takes long is done with a copy of
/// its references ([`Inventories::of`]).
#[derive(Debug, Default)]
pub(crate) struct Inventories {
    held: Mutex<HashMap<DatasetName, OfDataset>>,
}

/// The reports on the newest snapshot of a dataset.
#[derive(Debug, Default)]
struct OfDataset {
    version: u64,
    workers: HashMap<WorkerId, Arc<Held>>,
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
        reports.workers.insert(worker.clone(), Arc::new(held));
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

    /// Whether a worker has told that it holds nothing of a newest snapshot.
    pub(crate) fn has_none(&self, snapshot: &SnapshotId, worker: &WorkerId) -> bool {
        let all = self.held.lock();
        let reports = all.get(&snapshot.dataset);
        let reports = reports.filter(|reports| reports.version == snapshot.version);
        let held = reports.and_then(|reports| reports.workers.get(worker));
        held.is_some_and(|held| held.blocks.is_empty())
    }

    /// Bytes of all newest snapshots that a worker holds, as far as it has told.
    pub(crate) fn bytes_of(&self, worker: &WorkerId) -> u64 {
        let all = self.held.lock();
        let held = all.values().filter_map(|of| of.workers.get(worker));
        held.fold(0, |sum, held| sum.saturating_add(held.bytes))
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

    /// The reports on a snapshot as they are now; none if there is a newer one.
    pub(crate) fn of(&self, snapshot: &SnapshotId) -> Reports {
        let all = self.held.lock();
        let reports = all.get(&snapshot.dataset);
        let reports = reports.filter(|reports| reports.version == snapshot.version);
        Reports(reports.map_or_else(HashMap::new, |reports| reports.workers.clone()))
    }
}

/// What workers told of one snapshot. To count it takes time that grows with workers and blocks.
pub(crate) struct Reports(HashMap<WorkerId, Arc<Held>>);

impl Reports {
    /// Bytes of the snapshot, which has so many blocks and bytes, that at least one worker holds. Where workers hold some of the
    /// same blocks, as after the cluster has grown, blocks count with their average length: their own are in the manifest, and
    /// to read those of many big snapshots takes seconds.
    pub(crate) fn cached(&self, blocks: u64, bytes: u64) -> u64 {
        together(self.0.values().map(|held| &**held), blocks, bytes)
    }

    /// The reports on some blocks alone, which have so many bytes: with their average length.
    pub(crate) fn only(&self, blocks: &RoaringBitmap, bytes: u64) -> Self {
        let held = self.0.iter().filter_map(|(worker, held)| {
            let held = &held.blocks & blocks;
            let of_held = u128::from(bytes) * u128::from(held.len());
            let average = of_held / u128::from(blocks.len().max(1));
            let held = Held {
                bytes: u64::try_from(average).map_or(bytes, |average| average.min(bytes)),
                blocks: held,
            };
            (!held.blocks.is_empty()).then(|| (worker.clone(), Arc::new(held)))
        });
        Self(held.collect())
    }

    /// As [`Self::cached`], of some workers.
    pub(crate) fn cached_by<'a>(
        &self,
        (blocks, bytes): (u64, u64),
        workers: impl Iterator<Item = &'a str>,
    ) -> u64 {
        let held = workers.filter_map(|id| self.0.get(id));
        together(held.map(|held| &**held), blocks, bytes)
    }

    /// As [`Self::cached`], of the workers of each of some places that have some, the most first.
    pub(crate) fn cached_at<'a>(
        &self,
        (blocks, bytes): (u64, u64),
        places: impl Iterator<Item = (String, Vec<&'a str>)>,
    ) -> Vec<(String, u64)> {
        let cached = places
            .map(|(place, workers)| (place, self.cached_by((blocks, bytes), workers.into_iter())));
        let mut cached: Vec<_> = cached.filter(|(_, bytes)| *bytes > 0).collect();
        cached.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        cached
    }
}

/// Bytes that some workers hold of a snapshot of so many blocks and bytes, those of a block that several hold once.
fn together<'a>(held: impl Iterator<Item = &'a Held>, blocks: u64, bytes: u64) -> u64 {
    let mut held = held.peekable();
    let Some(first) = held.next() else { return 0 };
    if held.peek().is_none() {
        return first.bytes;
    }
    let mut union = first.blocks.clone();
    let (mut held_blocks, mut held_bytes) = (first.blocks.len(), first.bytes);
    let mut most = first.bytes;
    for held in held {
        union |= &held.blocks;
        held_blocks += held.blocks.len();
        held_bytes = held_bytes.saturating_add(held.bytes);
        most = most.max(held.bytes);
    }
    if union.len() == blocks {
        return bytes;
    }
    let of_union = u128::from(held_bytes) * u128::from(union.len());
    let average = of_union / u128::from(held_blocks.max(1));
    u64::try_from(average)
        .map_or(bytes, |bytes| bytes.max(most))
        .min(bytes)
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
        let cached = || inventories.of(&snapshot(1)).cached(3, 27);
        assert_eq!(cached(), 0);
        set("a", report([0, 1], 20));
        assert_eq!(cached(), 20);
        set("b", report([0, 1], 20));
        assert_eq!(cached(), 20, "both have the same");
        set("b", report([0], 10));
        assert_eq!(cached(), 20);
        set("b", report([2], 7));
        assert_eq!(cached(), 27);
        set("b", report([1, 2], 17));
        assert_eq!(cached(), 27, "both together have all");
        inventories.forget_worker(&"b".parse().unwrap());
        assert_eq!(cached(), 20);
        assert_eq!(inventories.of(&snapshot(2)).cached(3, 27), 0);
    }

    #[test]
    fn of_what_workers_hold_twice_the_length_is_an_average_and_never_too_much() {
        let inventories = Inventories::default();
        for (worker, blocks, bytes) in [("a", [0, 1], 30), ("b", [1, 2], 50)] {
            let held = Held::read(&report(blocks, bytes), 9, 1000).unwrap();
            inventories.set(snapshot(1), &worker.parse().unwrap(), held);
        }
        // Three of the four blocks that make 80 bytes.
        assert_eq!(inventories.of(&snapshot(1)).cached(9, 1000), 60);
        // Any number may be reported.
        assert_eq!(inventories.of(&snapshot(1)).cached(9, 55), 55);
        for worker in ["a", "b"] {
            let held = Held::read(&report([0], u64::MAX), 2, u64::MAX).unwrap();
            inventories.set(snapshot(1), &worker.parse().unwrap(), held);
        }
        assert_eq!(inventories.of(&snapshot(1)).cached(2, u64::MAX), u64::MAX);
    }

    #[test]
    fn each_place_has_what_its_workers_hold_together() {
        let inventories = Inventories::default();
        for (worker, blocks, bytes) in [("a", [0, 1], 20), ("b", [0, 1], 20), ("c", [2, 3], 18)] {
            let held = Held::read(&report(blocks, bytes), 4, 38).unwrap();
            inventories.set(snapshot(1), &worker.parse().unwrap(), held);
        }
        let places = [
            ("z1", vec!["a", "b"]),
            ("z2", vec!["c", "x"]),
            ("z3", vec![]),
        ];
        let all = ("all", vec!["a", "b", "c"]);
        let places = places.into_iter().chain([all]);
        let places = places.map(|(name, workers)| (name.to_owned(), workers));
        let cached = inventories
            .of(&snapshot(1))
            .cached_at((4, 38), places.clone());
        let named = |(name, bytes): (&str, u64)| (name.to_owned(), bytes);
        assert_eq!(cached, [("all", 38), ("z1", 20), ("z2", 18)].map(named));
        assert_eq!(inventories.of(&snapshot(2)).cached_at((4, 38), places), []);
    }

    #[test]
    fn of_some_blocks_each_counts_with_the_average_length_of_those() {
        let inventories = Inventories::default();
        for (worker, blocks) in [("a", vec![0, 1]), ("b", vec![1, 2, 3]), ("c", vec![3])] {
            let held = Held::read(&report(blocks, 1), 4, 100).unwrap();
            inventories.set(snapshot(1), &worker.parse().unwrap(), held);
        }
        let blocks: RoaringBitmap = (0..3).collect();
        let only = inventories.of(&snapshot(1)).only(&blocks, 30);
        let places = ["a", "b", "c"].map(|name| (name.to_owned(), vec![name]));
        let cached = only.cached_at((3, 30), places.into_iter());
        assert_eq!(cached, [("a".to_owned(), 20), ("b".to_owned(), 20)]);
        assert_eq!(only.cached(3, 30), 30);
        let none = inventories.of(&snapshot(1)).only(&RoaringBitmap::new(), 0);
        assert_eq!(none.cached(0, 0), 0);
    }

    #[test]
    fn a_worker_has_nothing_of_a_snapshot_if_it_told_so() {
        let inventories = Inventories::default();
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert!(!inventories.has_none(&snapshot(1), &a), "it told nothing");
        for (worker, blocks) in [(&a, vec![]), (&b, vec![3])] {
            let held = Held::read(&report(blocks, 0), 4, 38).unwrap();
            inventories.set(snapshot(1), worker, held);
        }
        assert!(inventories.has_none(&snapshot(1), &a));
        assert!(!inventories.has_none(&snapshot(1), &b));
        assert!(!inventories.has_none(&snapshot(2), &a), "of a newer one");
        inventories.forget_worker(&a);
        assert!(!inventories.has_none(&snapshot(1), &a));
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
