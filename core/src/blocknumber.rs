//! Numbers for the blocks of a snapshot, so that a set of them is a small bitmap.
//!
//! Block numbers count from 0 through the files in the manifest's order, each file's blocks in a row. Master and
//! workers derive the same numbers from the same manifest.

use std::ops::Range;

use crate::block::block_count;
use crate::manifest::{EntryKind, Manifest};

/// Each file of the manifest that has blocks, with the numbers of its blocks. Files whose numbers no longer fit 32
/// bits are left out: an inventory is a hint, and no such dataset fits a cache.
pub fn numbered_files(manifest: &Manifest) -> impl Iterator<Item = (u32, Range<u32>)> {
    let mut next: u32 = 0;
    (0..manifest.len()).filter_map(move |index| {
        let entry = manifest.entry(index);
        if entry.kind != EntryKind::File || entry.size == 0 {
            return None;
        }
        let first = next;
        next = next.checked_add(block_count(entry.size))?;
        Some((index, first..next))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BLOCK_SIZE;
    use crate::manifest::{ManifestBuilder, Mount};
    use crate::{OriginId, SnapshotId};

    #[test]
    fn numbers_run_through_all_blocks_without_gaps() {
        let mut builder = ManifestBuilder::new();
        let mount = Mount {
            origin: OriginId(1),
            spec: String::new(),
            prefix: String::new(),
            path: String::new(),
        };
        let mount = builder.add_mount(mount).unwrap();
        for (key, size) in [
            ("a", 0),
            ("b/c", 2 * BLOCK_SIZE + 1),
            ("d", 5),
            ("e", BLOCK_SIZE),
        ] {
            builder.add(mount, key.as_bytes(), size, 0, "v").unwrap();
        }
        let snapshot = SnapshotId {
            dataset: "set".parse().unwrap(),
            version: 1,
        };
        let manifest = builder.build(snapshot, 0, None).unwrap();
        let mut next = 0;
        for (index, numbers) in numbered_files(&manifest) {
            assert_eq!(numbers.start, next);
            assert_eq!(numbers.len(), manifest.blocks(index).count());
            next = numbers.end;
        }
        assert_eq!(u64::from(next), manifest.summary().blocks);
    }
}
