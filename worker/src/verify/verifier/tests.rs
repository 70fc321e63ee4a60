//! What the fills of a worker see.

use super::*;

fn block(size: u64, index: u32) -> Block {
    Block {
        origin: OriginId(1),
        object: ObjectRef {
            key: "k".into(),
            size,
            version: "v".into(),
            modified_ns: 0,
        },
        index,
    }
}

#[test]
fn blocks_beyond_the_room_come_without_their_bytes_and_those_beyond_the_queue_not_at_all() {
    let (verifier, mut queues) = Verifier::new(8 * BLOCK_SIZE);
    let fill = Fill::new(5);
    assert!(verifier.fetched(&block(BLOCK_SIZE, 0), &fill));
    assert!(
        queues.arrived.try_recv().is_err(),
        "small files are none of its business"
    );
    for number in 0..QUEUE as u32 {
        assert!(verifier.fetched(&block(2 * BLOCK_SIZE, number), &fill));
    }
    assert!(!verifier.missed.load(Ordering::Relaxed));
    assert!(!verifier.fetched(&block(2 * BLOCK_SIZE, 0), &fill));
    assert!(verifier.missed.load(Ordering::Relaxed));
    let mut with_bytes = 0;
    while let Ok(Arrived::Fetched(fetched)) = queues.arrived.try_recv() {
        with_bytes += u32::from(fetched.data.is_some());
    }
    assert_eq!(with_bytes, 2);
}

#[test]
fn what_is_refused_is_refused_for_all_its_blocks_and_for_no_more_objects_than_there_is_room() {
    let (verifier, _queues) = Verifier::new(BLOCK_SIZE);
    let error = || OriginError::Corrupt {
        origin: "s3://b".into(),
        key: "k".into(),
    };
    assert!(verifier.refusal(&block(9 * BLOCK_SIZE, 3)).is_none());
    verifier.refuse(id_of(&block(9 * BLOCK_SIZE, 7)), error());
    assert!(verifier.refusal(&block(9 * BLOCK_SIZE, 3)).is_some());
    assert!(verifier.refusal(&block(8 * BLOCK_SIZE, 3)).is_none());
    for number in 0..2 * MAX_REFUSED as u64 {
        verifier.refuse(id_of(&block((10 + number) * BLOCK_SIZE, 0)), error());
    }
    assert_eq!(verifier.refused.read().len(), MAX_REFUSED);
    assert!(verifier.refusal(&block(9 * BLOCK_SIZE, 3)).is_none());
}
