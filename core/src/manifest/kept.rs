//! The manifests that a process used last.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Manifest;
use crate::SnapshotId;

/// Manifests kept whatever their size, and bytes of manifests up to which more are kept: a few big ones, or all of many
/// small datasets.
const KEPT: usize = 4;
const KEPT_BYTES: usize = 64 << 20;

/// Manifests kept in memory; the least recently used goes first.
#[derive(Debug, Default)]
pub struct KeptManifests {
    /// The last is the most recently used.
    manifests: VecDeque<Arc<Manifest>>,
    bytes: usize,
}

impl KeptManifests {
    /// The manifest of a snapshot, if it is kept.
    pub fn get(&mut self, snapshot: &SnapshotId) -> Option<Arc<Manifest>> {
        let is_it = |manifest: &Arc<Manifest>| manifest.summary().snapshot == *snapshot;
        let at = self.manifests.iter().rposition(is_it)?;
        let manifest = self.manifests.remove(at)?;
        self.manifests.push_back(manifest.clone());
        Some(manifest)
    }

    /// Keeps a manifest, in the place of one of the same snapshot.
    pub fn keep(&mut self, manifest: Arc<Manifest>) {
        self.forget(|snapshot| *snapshot == manifest.summary().snapshot);
        self.bytes += manifest.as_bytes().len();
        self.manifests.push_back(manifest);
        while self.manifests.len() > KEPT && self.bytes > KEPT_BYTES {
            let Some(oldest) = self.manifests.pop_front() else {
                break;
            };
            self.bytes -= oldest.as_bytes().len();
        }
    }

    /// Forgets the snapshots that `gone` names.
    pub fn forget(&mut self, gone: impl Fn(&SnapshotId) -> bool) {
        let bytes = &mut self.bytes;
        self.manifests.retain(|manifest| {
            let gone = gone(&manifest.summary().snapshot);
            if gone {
                *bytes -= manifest.as_bytes().len();
            }
            !gone
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManifestBuilder;

    fn manifest(version: u64) -> Arc<Manifest> {
        let snapshot = id(version);
        Arc::new(ManifestBuilder::new().build(snapshot, 0, None).unwrap())
    }

    fn id(version: u64) -> SnapshotId {
        SnapshotId {
            dataset: "set".parse().unwrap(),
            version,
        }
    }

    #[test]
    fn many_small_manifests_are_kept_and_big_ones_leave_by_age() {
        let mut kept = KeptManifests::default();
        for version in 0..1000 {
            kept.keep(manifest(version));
        }
        assert!((0..1000).all(|version| kept.get(&id(version)).is_some()));
        // As if they were that big.
        kept.bytes += KEPT_BYTES;
        assert!(kept.get(&id(0)).is_some());
        kept.keep(manifest(1000));
        let left: Vec<u64> = (0..=1000).filter(|v| kept.get(&id(*v)).is_some()).collect();
        assert_eq!(left, [0, 998, 999, 1000]);
        kept.forget(|snapshot| snapshot.version == 0);
        assert!(kept.get(&id(0)).is_none());
    }
}
