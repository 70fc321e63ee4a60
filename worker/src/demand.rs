//! Which objects many readers want at once, and over how many workers those are to spread.
//!
//! A worker that is busy and sees many readers of one object within some seconds tells them so: they go to further workers for a
//! part of its blocks, which make copies of these from one another (`worker/copying.rs`). Readers are told apart by the numbers
//! that they give themselves: who lies about that has copies made, up to the bytes that each worker has for such.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_core::OriginId;
use weir_wire::MAX_COPIES;

/// Readers for whom one more copy is worth its way: each is sent once between workers.
const READERS_PER_COPY: u32 = 3;
/// Connections that are being answered at once from which on a worker is busy, and how long it counts as busy afterwards.
const BUSY: usize = 8;
const BUSY_FOR: Duration = Duration::from_secs(10);
/// Readers are counted anew so often.
const WINDOW: Duration = Duration::from_secs(5);
/// Objects whose readers are counted. If all of these were read within two windows, further ones are not counted.
const MAX_OBJECTS: usize = 4096;
/// Least time between two looks for those that are old: one looks at all, and the requests of all readers wait meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The readers of all objects.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    answering: AtomicUsize,
    objects: Mutex<Objects>,
}

#[derive(Debug, Default)]
struct Objects {
    readers: HashMap<ObjectId, Readers>,
    /// When it was looked for old ones.
    looked: Option<Instant>,
}

impl Objects {
    /// Whether the readers of one more can be counted.
    fn has_room(&mut self, is_busy: bool, now: Instant) -> bool {
        if self.readers.len() < MAX_OBJECTS {
            return true;
        }
        let is_soon = |at| now.saturating_duration_since(at) < LOOK_INTERVAL;
        // Only when there is something to spread.
        if !is_busy || self.looked.is_some_and(is_soon) {
            return false;
        }
        self.looked = Some(now);
        self.readers.retain(|_, readers| !readers.is_old(now));
        self.readers.len() < MAX_OBJECTS
    }
}

/// An object's origin, and a hash of its key and version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ObjectId(OriginId, u64);

impl ObjectId {
    pub(crate) fn new(origin: OriginId, key: &str, version: &str) -> Self {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (key, version).hash(&mut hasher);
        Self(origin, hasher.finish())
    }
}

/// The readers of one object.
#[derive(Debug)]
struct Readers {
    /// When this window began.
    since: Instant,
    /// Those of this window, each as one of the bits.
    seen: [u64; 4],
    /// How many there were in the window before.
    before: u32,
    /// When the worker was busy with it last.
    busy: Option<Instant>,
}

impl Readers {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            seen: [0; 4],
            before: 0,
            busy: None,
        }
    }

    fn see(&mut self, reader: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= WINDOW {
            self.before = if passed < 2 * WINDOW { self.count() } else { 0 };
            self.seen = [0; 4];
            self.since = now;
        }
        let bit = reader.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        self.seen[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    /// About how many readers there were in this window: by the bits that none of them has (linear counting).
    fn count(&self) -> u32 {
        let bits = 64.0 * self.seen.len() as f64;
        let free: u32 = self.seen.iter().map(|word| word.count_zeros()).sum();
        (bits * (bits / f64::from(free.max(1))).ln()).round() as u32
    }

    fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= 2 * WINDOW
    }
}

/// A connection that is being answered, until it is dropped.
pub(crate) struct Answering<'a>(&'a Demand);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Demand {
    /// A connection is being answered.
    pub(crate) fn answering(&self) -> Answering<'_> {
        self.answering.fetch_add(1, Ordering::Relaxed);
        Answering(self)
    }

    /// A reader wants something of an object; gives over how many of so many other workers its readers are to spread.
    pub(crate) fn copies(&self, object: ObjectId, reader: u64, others: usize, now: Instant) -> u32 {
        let is_busy = self.answering.load(Ordering::Relaxed) >= BUSY;
        let mut objects = self.objects.lock();
        if !objects.readers.contains_key(&object) && !objects.has_room(is_busy, now) {
            return 0;
        }
        let readers = objects.readers.entry(object);
        let readers = readers.or_insert_with(|| Readers::new(now));
        readers.see(reader, now);
        if is_busy {
            readers.busy = Some(now);
        }
        let was_busy = |at| now.saturating_duration_since(at) < BUSY_FOR;
        if !readers.busy.is_some_and(was_busy) {
            return 0;
        }
        let count = readers.count().max(readers.before);
        (count / READERS_PER_COPY)
            .min(MAX_COPIES)
            .min(u32::try_from(others).unwrap_or(MAX_COPIES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(n: u32) -> ObjectId {
        ObjectId::new(OriginId(1), &n.to_string(), "v")
    }

    fn busy(demand: &Demand) -> Vec<Answering<'_>> {
        (0..BUSY).map(|_| demand.answering()).collect()
    }

    #[test]
    fn many_readers_of_a_busy_worker_are_spread_and_few_are_not() {
        let (demand, now) = (Demand::default(), Instant::now());
        let ask = |object, reader, now| demand.copies(object, reader, 5, now);
        for reader in 0..200 {
            assert_eq!(ask(object(0), reader, now), 0, "nobody waits");
        }
        let answering = busy(&demand);
        for reader in 0..2 {
            assert_eq!(ask(object(1), reader, now), 0);
        }
        for _ in 0..1000 {
            assert_eq!(ask(object(1), 1, now), 0, "one reader comes often");
        }
        let copies: Vec<u32> = (2..200).map(|n| ask(object(1), n, now)).collect();
        assert!(copies.is_sorted(), "{copies:?}");
        assert_eq!((copies[0], copies[197]), (1, 5));
        assert_eq!(ask(object(2), 1, now), 0, "another object");
        drop(answering);
        assert_eq!(demand.answering.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn copies_are_as_many_as_readers_are_worth_and_end_with_them() {
        let (demand, start) = (Demand::default(), Instant::now());
        let answering = busy(&demand);
        for reader in 0..90 {
            demand.copies(object(1), reader, 1000, start);
        }
        let copies = demand.copies(object(1), 0, 1000, start);
        assert!((20..=40).contains(&copies), "{copies}");
        // They come again in the next window: their number is known from the last.
        let next = start + WINDOW;
        assert_eq!(demand.copies(object(1), 0, 1000, next), copies);
        // They stay away.
        let later = start + 3 * WINDOW;
        assert_eq!(demand.copies(object(1), 0, 1000, later), 0);
        for reader in 0..90 {
            demand.copies(object(1), reader, 1000, later);
        }
        assert!(demand.copies(object(1), 0, 1000, later) > 0);
        drop(answering);
        assert!(demand.copies(object(1), 0, 1000, later + WINDOW) > 0);
        assert_eq!(demand.copies(object(1), 0, 1000, later + BUSY_FOR), 0);
    }

    #[test]
    fn objects_that_are_counted_are_bounded() {
        let (demand, start) = (Demand::default(), Instant::now());
        for n in 0..2 * MAX_OBJECTS as u32 {
            demand.copies(object(n), 1, 5, start);
        }
        let counted = || demand.objects.lock().readers.len();
        assert_eq!(counted(), MAX_OBJECTS);
        let _answering = busy(&demand);
        let later = start + 2 * WINDOW;
        demand.copies(object(u32::MAX), 1, 5, later);
        assert_eq!(counted(), 1);
    }

    #[test]
    fn objects_that_are_too_many_are_not_looked_through_with_each_request() {
        let (demand, start) = (Demand::default(), Instant::now());
        let _answering = busy(&demand);
        for n in 0..MAX_OBJECTS as u32 {
            demand.copies(object(n), 1, 5, start + LOOK_INTERVAL / 2);
        }
        let counted_after = |time| {
            demand.copies(object(u32::MAX), 1, 5, start + time);
            demand.objects.lock().readers.len()
        };
        assert_eq!(counted_after(2 * WINDOW), MAX_OBJECTS, "none is old");
        let soon = 2 * WINDOW + LOOK_INTERVAL / 2;
        assert_eq!(counted_after(soon), MAX_OBJECTS, "it was looked just now");
        assert_eq!(counted_after(2 * WINDOW + LOOK_INTERVAL), 1);
    }
}
