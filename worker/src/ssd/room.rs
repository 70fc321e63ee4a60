//! What tiers leave of their disks to others: a node whose disk fills up loses its pods, and a machine its user's patience.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use weir_core::FreeSpace;
use weir_segment::SegmentStore;

/// Time between two times of giving space back: a reader on this machine may have a deleted file open for a second or two, and its space is free
/// only then.
const PAUSE: Duration = Duration::from_secs(4);

/// The size of a file system and what of it is free, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct DiskSpace {
    /// All that it has.
    pub total: u64,
    /// What ordinary users may take.
    pub free: u64,
}

impl DiskSpace {
    /// Of the file system of a directory.
    ///
    /// # Errors
    /// As of statvfs(2), when the directory is not there for example.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let space = rustix::fs::statvfs(dir)?;
        Ok(Self {
            total: space.f_blocks.saturating_mul(space.f_frsize),
            free: space.f_bavail.saturating_mul(space.f_frsize),
        })
    }
}

/// What one device leaves free.
#[derive(Debug)]
pub(super) struct Room {
    left: FreeSpace,
    given_back: Option<Instant>,
}

impl Room {
    pub(super) fn new(left: FreeSpace) -> Self {
        Self {
            left,
            given_back: None,
        }
    }

    /// Whether all of the disk may be used.
    pub(super) fn is_all(&self) -> bool {
        self.left == FreeSpace::NONE
    }

    /// Has the store take what it may; gives the bytes that it has given back.
    pub(super) fn leave(&mut self, store: &SegmentStore, space: DiskSpace, now: Instant) -> u64 {
        let left = self.left.of(space.total);
        let (_, used) = store.space();
        let missing = left.saturating_sub(space.free);
        if missing == 0 {
            store.limit_to(used.saturating_add(space.free - left));
            return 0;
        }
        if self.given_back.is_some_and(|at| now < at + PAUSE) {
            store.limit_to(used);
            return 0;
        }
        store.limit_to(used.saturating_sub(missing));
        let freed = store.shrink();
        if freed > 0 {
            self.given_back = Some(now);
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use weir_core::{BlockKey, ByteSize};
    use weir_segment::{Admission, SegmentConfig};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn put(store: &SegmentStore, number: u8) -> Admission {
        let block = vec![number; MIB as usize];
        store.put(BlockKey([number; 16]), &block).unwrap()
    }

    #[test]
    fn what_others_take_of_the_disk_is_given_back_and_taken_again_when_they_have_gone() {
        let dir = tempfile::tempdir().unwrap();
        let config = SegmentConfig::new(dir.path(), 100 * MIB);
        let store = SegmentStore::open(config).unwrap();
        let mut room = Room::new(FreeSpace::Percent(20));
        let of = |free: u64| DiskSpace {
            total: 1000 * MIB,
            free: free * MIB,
        };
        let now = Instant::now();
        assert_eq!(room.leave(&store, of(900), now), 0);
        for number in 0..60 {
            assert_eq!(put(&store, number), Admission::Stored);
        }
        let used = store.space().1;
        // There is as much as is to be left: it grows no more.
        assert_eq!(room.leave(&store, of(200), now), 0);
        assert_eq!(store.space(), (used, used));
        assert_eq!(put(&store, 60), Admission::Full);
        let freed = room.leave(&store, of(180), now);
        assert!((20 * MIB..=40 * MIB).contains(&freed), "{freed}");
        assert_eq!(store.space().1, used - freed);
        // Its space may not be free yet.
        let soon = now + PAUSE / 2;
        assert_eq!(room.leave(&store, of(180), soon), 0);
        assert_eq!(store.space(), (used - freed, used - freed));
        assert!(room.leave(&store, of(0), now + PAUSE) > 0);
        assert_eq!(store.space().1, 0, "more is missing than it had");
        assert_eq!(room.leave(&store, of(1000), now + PAUSE), 0);
        assert_eq!(store.space().0, 100 * MIB);
        assert_eq!(put(&store, 61), Admission::Stored);
    }

    #[test]
    fn a_size_is_left_as_a_part_is_and_a_directory_that_is_gone_says_nothing() {
        assert!(Room::new(FreeSpace::NONE).is_all());
        assert!(!Room::new(FreeSpace::Bytes(ByteSize(1))).is_all());
        let dir = tempfile::tempdir().unwrap();
        let space = DiskSpace::of(dir.path()).unwrap();
        assert!(space.free > 0 && space.free <= space.total);
        assert!(DiskSpace::of(&dir.path().join("gone")).is_err());
    }
}
