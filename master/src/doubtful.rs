//! Objects of which page caches may hold wrong bytes, as workers name them, for the mounts that ask for the cluster map.
//!
//! The last of them are kept, with numbers that grow and begin anew with the time at which the master started: whoever asks
//! for what was forgotten, or was known to the master before, is told that all are doubtful.

use std::collections::VecDeque;
use std::time::UNIX_EPOCH;

use weir_core::wall_clock;
use weir_proto::v1;

/// Objects that are kept, and told in one reply.
const MAX_KEPT: usize = 4096;
const MAX_TOLD: usize = 256;
/// Longest name of an object, in bytes.
const MAX_NAME: usize = 4096;

#[derive(Debug)]
pub(crate) struct DoubtfulObjects {
    /// The number of the first that is kept.
    first: u64,
    kept: VecDeque<v1::ObjectVersion>,
}

impl Default for DoubtfulObjects {
    fn default() -> Self {
        let now = wall_clock::now().duration_since(UNIX_EPOCH);
        Self {
            first: now.map_or(1, |now| now.as_nanos() as u64),
            kept: VecDeque::new(),
        }
    }
}

impl DoubtfulObjects {
    /// Takes in what a heartbeat names.
    pub(crate) fn add(&mut self, objects: Vec<v1::ObjectVersion>, left_out: bool) {
        let is_long =
            |object: &v1::ObjectVersion| object.key.len().max(object.version.len()) > MAX_NAME;
        if left_out || objects.iter().any(is_long) {
            self.first += self.kept.len() as u64 + 1;
            self.kept.clear();
            return;
        }
        self.kept.extend(objects);
        let too_many = self.kept.len().saturating_sub(MAX_KEPT);
        self.kept.drain(..too_many);
        self.first += too_many as u64;
    }

    /// Adds to a reply what came since the one with this number.
    pub(crate) fn tell(&self, seen: u64, reply: &mut v1::GetClusterMapReply) {
        let next = self.first + self.kept.len() as u64;
        if seen == 0 || seen < self.first || seen > next {
            reply.doubtful_seen = next;
            reply.doubtful_left_out = seen != 0;
            return;
        }
        let from = (seen - self.first) as usize;
        let told = self.kept.range(from..).take(MAX_TOLD);
        reply.doubtful = told.cloned().collect();
        reply.doubtful_seen = seen + reply.doubtful.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(numbers: std::ops::Range<u64>) -> Vec<v1::ObjectVersion> {
        let object = |number: u64| v1::ObjectVersion {
            origin: number,
            ..v1::ObjectVersion::default()
        };
        numbers.map(object).collect()
    }

    fn tell(objects: &DoubtfulObjects, seen: u64) -> (Vec<u64>, u64, bool) {
        let mut reply = v1::GetClusterMapReply::default();
        objects.tell(seen, &mut reply);
        let told = reply.doubtful.iter().map(|object| object.origin);
        (told.collect(), reply.doubtful_seen, reply.doubtful_left_out)
    }

    #[test]
    fn each_mount_is_told_what_came_since_it_asked_last_in_parts() {
        let mut objects = DoubtfulObjects::default();
        objects.add(named(0..5), false);
        let (told, seen, left_out) = tell(&objects, 0);
        assert!(told.is_empty() && !left_out, "a new mount has no pages");
        assert_eq!(tell(&objects, seen), (vec![], seen, false));
        objects.add(named(5..405), false);
        let (told, next, left_out) = tell(&objects, seen);
        assert_eq!((told, left_out), ((5..261).collect(), false));
        assert_eq!(tell(&objects, next).0, (261..405).collect::<Vec<_>>());
    }

    #[test]
    fn who_missed_some_is_told_so() {
        let mut objects = DoubtfulObjects::default();
        let (_, seen, _) = tell(&objects, 0);
        objects.add(named(0..MAX_KEPT as u64 + 1), false);
        let (told, next, left_out) = tell(&objects, seen);
        assert!(told.is_empty() && left_out);
        assert_eq!(tell(&objects, next), (vec![], next, false));
        objects.add(Vec::new(), true);
        let (_, next, left_out) = tell(&objects, next);
        assert!(left_out);
        // Another master has other numbers.
        assert!(tell(&objects, next + 1).2);
        assert!(tell(&objects, 1).2);
    }
}
