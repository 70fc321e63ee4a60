//! Objects and checksums as they are sent from worker to worker.

use weir_core::{Block, BlockKey, ObjectRef, OriginId};
use weir_origin::{CrcKind, ObjectChecksum, PartSum};
use weir_proto::v1;

use super::table::{Sums, is_small_enough};

/// Blocks of one message at most.
pub(super) const MAX_BLOCKS: usize = 4096;
/// Checksums of one report at most.
const MAX_SUMS: usize = 16 << 10;
/// Longest key and version, in bytes.
const MAX_NAME: usize = 4096;

/// The object of a block, for others.
pub(super) fn object_of(block: &Block) -> v1::ObjectVersion {
    object(block.origin, &block.object)
}

/// An object, for others.
pub(crate) fn object(origin: OriginId, object: &ObjectRef) -> v1::ObjectVersion {
    v1::ObjectVersion {
        origin: origin.0,
        key: object.key.to_string(),
        size: object.size,
        version: object.version.to_string(),
        modified_ns: object.modified_ns,
    }
}

/// The first block of an object that was sent. `None` for one that is not verified.
pub(crate) fn first_block(object: Option<v1::ObjectVersion>) -> Option<Block> {
    let object = object?;
    let fits =
        is_small_enough(object.size) && object.size > weir_core::BLOCK_SIZE && is_short(&object);
    fits.then(|| Block {
        origin: OriginId(object.origin),
        object: ObjectRef {
            key: object.key.into(),
            size: object.size,
            version: object.version.into(),
            modified_ns: object.modified_ns,
        },
        index: 0,
    })
}

/// Whether an object's names are no longer than is told to others.
pub(crate) fn is_short(object: &v1::ObjectVersion) -> bool {
    object.key.len().max(object.version.len()) <= MAX_NAME
}

/// The blocks that were reported; those beyond what may come at once are passed over.
pub(crate) fn blocks(blocks: Vec<v1::BlockChecksums>) -> Vec<(u32, Sums)> {
    let mut room = MAX_SUMS;
    let fitting = blocks.into_iter().take(MAX_BLOCKS).take_while(|block| {
        let rest = room.checked_sub(block.sums.len());
        room = rest.unwrap_or(0);
        rest.is_some()
    });
    fitting
        .map(|block| (block.index, block.sums.into()))
        .collect()
}

/// The numbers of blocks that are said to be wrong; those beyond what may come at once are passed over.
pub(crate) fn indexes(mut blocks: Vec<u32>) -> Vec<u32> {
    blocks.truncate(MAX_BLOCKS);
    blocks
}

/// The keys of those of these blocks that the object has.
pub(super) fn those_of(first: &Block, indexes: &[u32]) -> Vec<(Block, BlockKey)> {
    let count = weir_core::block::block_count(first.object.size);
    let known = indexes.iter().filter(|index| **index < count);
    let blocks = known.map(|index| {
        let block = Block {
            index: *index,
            ..first.clone()
        };
        let key = block.key();
        (block, key)
    });
    blocks.collect()
}

pub(crate) fn reply(checksum: Option<&ObjectChecksum>) -> v1::ReportChecksumsReply {
    let Some(checksum) = checksum else {
        return v1::ReportChecksumsReply::default();
    };
    let kind = match checksum.kind() {
        CrcKind::Crc64Nvme => v1::ChecksumKind::Crc64nvme,
        CrcKind::Crc32c => v1::ChecksumKind::Crc32c,
        CrcKind::Crc32 => v1::ChecksumKind::Crc32,
    };
    v1::ReportChecksumsReply {
        kind: kind.into(),
        part_lengths: checksum.parts().iter().map(|part| part.length).collect(),
        part_values: checksum.parts().iter().map(|part| part.value).collect(),
    }
}

/// The checksum of an object of `size` bytes; `None` if there is none, or it makes no sense.
pub(super) fn checksum(reply: &v1::ReportChecksumsReply, size: u64) -> Option<ObjectChecksum> {
    let kind = match reply.kind() {
        v1::ChecksumKind::Unspecified => return None,
        v1::ChecksumKind::Crc64nvme => CrcKind::Crc64Nvme,
        v1::ChecksumKind::Crc32c => CrcKind::Crc32c,
        v1::ChecksumKind::Crc32 => CrcKind::Crc32,
    };
    let parts = reply.part_lengths.iter().zip(&reply.part_values);
    let parts = parts.map(|(length, value)| PartSum {
        length: *length,
        value: *value,
    });
    ObjectChecksum::new(kind, parts.collect(), size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_comes_out_as_it_was_sent_and_nonsense_as_none() {
        let parts = [(5, 7), (6, u64::MAX)].map(|(length, value)| PartSum { length, value });
        for kind in CrcKind::ALL {
            let sent = ObjectChecksum::new(kind, parts.into(), 11).unwrap();
            let mut wire = reply(Some(&sent));
            assert_eq!(checksum(&wire, 11), Some(sent));
            assert_eq!(checksum(&wire, 12), None);
            wire.part_values.pop();
            assert_eq!(checksum(&wire, 11), None);
        }
        assert_eq!(checksum(&reply(None), 11), None);
        let unknown = v1::ReportChecksumsReply {
            kind: 77,
            part_lengths: vec![11],
            part_values: vec![1],
        };
        assert_eq!(checksum(&unknown, 11), None);
    }

    #[test]
    fn objects_that_are_not_verified_and_blocks_that_are_none_are_passed_over() {
        let object = |size, key: String| {
            first_block(Some(v1::ObjectVersion {
                origin: 1,
                key,
                size,
                version: "v".into(),
                modified_ns: 3,
            }))
        };
        assert!(first_block(None).is_none());
        assert!(object(weir_core::BLOCK_SIZE, "k".into()).is_none());
        assert!(object(u64::MAX, "k".into()).is_none());
        assert!(object(9 << 20, "k".repeat(MAX_NAME + 1)).is_none());
        let first = object(9 << 20, "k".into()).unwrap();
        assert_eq!(first_block(Some(object_of(&first))), Some(first.clone()));
        let known: Vec<u32> = those_of(&first, &[2, 3, u32::MAX, 0])
            .iter()
            .map(|(block, _)| block.index)
            .collect();
        assert_eq!(known, [2, 0]);
        // Only what comes from others is bounded: all blocks of a big file may be wrong.
        let big = object(20 << 30, "k".into()).unwrap();
        let all: Vec<u32> = (0..5120).collect();
        assert_eq!(those_of(&big, &all).len(), all.len());
        assert_eq!(indexes(all).len(), MAX_BLOCKS);
        let reported = |sums: usize| {
            let block = v1::BlockChecksums {
                index: u32::MAX,
                sums: vec![1; sums],
            };
            blocks(vec![block; 2]).len()
        };
        assert_eq!(reported(1), 2);
        assert_eq!(reported(MAX_SUMS), 1);
        assert_eq!(reported(MAX_SUMS + 1), 0);
    }
}
