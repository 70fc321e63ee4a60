//! The table against objects whose bytes are known.

use bytes::Bytes;
use proptest::prelude::*;
use weir_origin::PartSum;

use weir_core::block::block_count;

use super::*;

/// An object of zeros; what is fetched of it may have other bytes.
struct Object {
    size: u64,
    checksum: Arc<ObjectChecksum>,
    /// Those of the blocks as they are.
    right: Vec<Sums>,
}

fn object(size: u64, kind: CrcKind, part: u64) -> Object {
    let parts = (0..size).step_by(part as usize).map(|start| {
        let length = part.min(size - start);
        let zeros = vec![0; length as usize];
        let value = kind.of([&zeros[..]]);
        PartSum { length, value }
    });
    let checksum = ObjectChecksum::new(kind, parts.collect(), size).unwrap();
    let mut object = Object {
        size,
        checksum: Arc::new(checksum),
        right: Vec::new(),
    };
    object.right = (0..block_count(size))
        .map(|n| object.fetch(n, None))
        .collect();
    object
}

impl Object {
    /// The checksums of a block, with one byte that is another one.
    fn fetch(&self, index: u32, flipped: Option<usize>) -> Sums {
        let start = u64::from(index) * BLOCK_SIZE;
        let range = start..(start + BLOCK_SIZE).min(self.size);
        let mut data = vec![0; (range.end - range.start) as usize];
        if let Some(at) = flipped {
            let at = at % data.len();
            data[at] = 1;
        }
        let data = Bytes::from(data);
        let cut = data.len() / 3;
        sums_of(
            &self.checksum,
            range,
            &[data.slice(..cut), data.slice(cut..)],
        )
    }

    fn add(&self, table: &mut Table, index: u32, sums: Sums) -> Verdict {
        table.add(ID, &self.checksum, self.size, index, sums)
    }
}

const ID: BlockKey = BlockKey([7; 16]);
const SIZE: u64 = 2 * BLOCK_SIZE + 77;

#[test]
fn an_object_is_verified_once_all_its_blocks_were_fetched_in_any_order() {
    for kind in CrcKind::ALL {
        // One checksum of all; parts with other borders than blocks; many parts in a block.
        for part in [SIZE, 3_000_001, 5 << 20, 700_000] {
            let object = object(SIZE, kind, part);
            let mut table = Table::default();
            for index in [2, 0] {
                let verdict = object.add(&mut table, index, object.right[index as usize].clone());
                assert_eq!(verdict, Verdict::default());
            }
            let verdict = object.add(&mut table, 1, object.right[1].clone());
            let expected = Verdict {
                complete: true,
                ..Verdict::default()
            };
            assert_eq!(verdict, expected, "{kind:?} {part}");
            assert!(
                table.missed(&ID),
                "what is verified and missed a block loses its pages"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_dropped_until_one_fetch_of_each_block_was_right() {
    let object = object(SIZE, CrcKind::Crc32c, SIZE);
    let mut table = Table::default();
    let mut fetch =
        |index: u32, flipped| object.add(&mut table, index, object.fetch(index, flipped));
    fetch(0, Some(5));
    fetch(1, None);
    let verdict = fetch(2, None);
    assert_eq!((verdict.drop, verdict.mismatches), (vec![0, 1, 2], 1));
    assert!(verdict.stale_pages && !verdict.complete && !verdict.give_up);
    // The same wrong bytes again prove nothing.
    fetch(0, Some(5));
    fetch(1, None);
    assert_eq!(fetch(2, None).drop, [0, 1, 2]);
    // Each block was right once: the one that is wrong now is known.
    fetch(0, None);
    fetch(1, Some(9));
    let verdict = fetch(2, None);
    assert_eq!(verdict.drop, [1]);
    assert!(verdict.complete && verdict.stale_pages);
    // From here on each is judged at once.
    assert_eq!(fetch(1, Some(9)).drop, [1]);
    assert_eq!(fetch(1, None), Verdict::default());
    let verdict = fetch(2, Some(1));
    assert!(verdict.drop == [2] && verdict.stale_pages);
}

#[test]
fn what_never_fits_is_given_up_after_ten_rounds_and_sooner_when_tried_again() {
    let object = object(SIZE, CrcKind::Crc64Nvme, SIZE);
    let mut table = Table::default();
    let mut round = || {
        let flipped = [Some(3), None, None];
        let verdicts =
            (0..3).map(|n| object.add(&mut table, n, object.fetch(n, flipped[n as usize])));
        verdicts.last().unwrap()
    };
    for number in 1..=11 {
        let verdict = round();
        assert_eq!(verdict.drop, [0, 1, 2]);
        assert_eq!(verdict.give_up, number >= 10, "round {number}");
    }
}

#[test]
fn only_the_part_that_is_wrong_is_dropped() {
    let object = object(4 * BLOCK_SIZE, CrcKind::Crc32, BLOCK_SIZE);
    let mut table = Table::default();
    let verdict = object.add(&mut table, 1, object.fetch(1, Some(0)));
    assert_eq!(verdict.drop, [1]);
    for index in [0, 2, 3] {
        assert_eq!(
            object
                .add(&mut table, index, object.fetch(index, None))
                .mismatches,
            0
        );
    }
    let verdict = object.add(&mut table, 1, object.fetch(1, None));
    assert!(verdict.complete && verdict.stale_pages && verdict.drop.is_empty());
}

#[test]
fn checksums_that_belong_to_nothing_are_passed_over() {
    let object = object(SIZE, CrcKind::Crc32, SIZE);
    let mut table = Table::default();
    for (index, sums) in [
        (3, vec![1]),
        (u32::MAX, vec![1]),
        (0, vec![]),
        (0, vec![1, 2]),
    ] {
        assert_eq!(
            object.add(&mut table, index, sums.into()),
            Verdict::default()
        );
    }
}

#[test]
fn a_full_table_forgets_what_was_used_least() {
    let object = object(SIZE, CrcKind::Crc32, SIZE);
    let mut table = Table::default();
    for number in 0..MAX_OBJECTS as u64 + 10 {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        table.add(
            BlockKey(id),
            &object.checksum,
            SIZE,
            0,
            object.right[0].clone(),
        );
        assert!(table.objects.len() <= MAX_OBJECTS);
    }
    let held: usize = table.objects.values().map(|known| known.pieces).sum();
    assert_eq!(table.pieces, held);
    assert!(!table.objects.contains_key(&BlockKey([0; 16])));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever comes in whatever order: what a tier holds of an object that is verified is right, and right bytes of all
    /// blocks end every doubt.
    #[test]
    fn what_is_held_of_a_verified_object_is_right(
        part in prop_oneof![Just(SIZE), 1_000_000_u64..SIZE],
        fetches in prop::collection::vec((0_u32..3, prop::option::weighted(0.3, 0_usize..3)), 1..30),
    ) {
        let object = object(SIZE, CrcKind::Crc32c, part);
        let wrong: Vec<Vec<Sums>> = (0..3)
            .map(|n| [1, 1 << 20, 3 << 20].map(|at| object.fetch(n, Some(at))).into())
            .collect();
        let mut table = Table::default();
        let mut held: [Option<bool>; 3] = [None; 3];
        let mut verified = false;
        let add = |table: &mut Table, held: &mut [Option<bool>; 3], n: u32, sums: Sums, right| {
            held[n as usize] = Some(right);
            let verdict = object.add(table, n, sums);
            for dropped in &verdict.drop {
                held[*dropped as usize] = None;
            }
            verdict
        };
        for (n, flipped) in fetches {
            let sums = match flipped {
                None => object.right[n as usize].clone(),
                Some(at) => wrong[n as usize][at].clone(),
            };
            let right = sums == object.right[n as usize];
            let verdict = add(&mut table, &mut held, n, sums, right);
            verified |= verdict.complete;
            prop_assert!(!verified || !held.contains(&Some(false)));
        }
        for _ in 0..2 {
            for n in 0..3 {
                let sums = object.right[n as usize].clone();
                verified |= add(&mut table, &mut held, n, sums, true).complete;
            }
        }
        prop_assert!(verified);
    }
}
