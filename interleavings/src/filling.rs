//! Readers, fills and evictions of one block, over tiers that are maps.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize as Count;

use bytes::Bytes;
use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};
use weir_core::BlockKey;

use crate::fill::Fill;
use crate::fills::{self, Fills, Keeper, Started};
use crate::sync::{AtomicBool, Mutex, Ordering};

const KEY: BlockKey = BlockKey([7; 16]);
/// Each block has the bytes of its fetch: first a 0, then so many times the fetch's number.
const LENGTH: u32 = 3;

/// What a worker's tiers take.
#[derive(Clone, Copy, Debug)]
pub struct Tiers {
    /// The memory tier takes blocks.
    pub memory: bool,
    /// The SSD tier takes them.
    pub ssd: bool,
}

impl Tiers {
    /// All that there may be.
    pub const ALL: [Self; 4] = [
        Self {
            memory: true,
            ssd: true,
        },
        Self {
            memory: true,
            ssd: false,
        },
        Self {
            memory: false,
            ssd: true,
        },
        Self {
            memory: false,
            ssd: false,
        },
    ];

    fn none(self) -> bool {
        !self.memory && !self.ssd
    }
}

/// Plays the worker.
struct Worker {
    tiers: Tiers,
    memory: Mutex<HashMap<BlockKey, Bytes>>,
    ssd: Mutex<HashMap<BlockKey, Bytes>>,
    fills: Fills,
    /// A fill is between its start and its end.
    filling: AtomicBool,
    /// Blocks that the origin was asked for. Not one of shuttle's types, since it is no part of what is tested.
    fetches: Count,
    /// Threads that write to SSD.
    writes: Mutex<Vec<JoinHandle<()>>>,
}

impl Keeper for Worker {
    type Removed = ();

    fn fills(&self) -> &Fills {
        &self.fills
    }

    fn keeps(&self, key: &BlockKey) -> bool {
        self.memory.lock().contains_key(key) || self.ssd.lock().contains_key(key)
    }

    fn remove(&self, keys: &[BlockKey]) {
        for key in keys {
            self.memory.lock().remove(key);
            self.ssd.lock().remove(key);
        }
    }

    fn changed(&self) {}
}

impl Worker {
    fn new(tiers: Tiers) -> Arc<Self> {
        Arc::new(Self {
            tiers,
            memory: Mutex::new(HashMap::new()),
            ssd: Mutex::new(HashMap::new()),
            fills: Fills::new(0),
            filling: AtomicBool::new(false),
            fetches: Count::new(0),
            writes: Mutex::new(Vec::new()),
        })
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    /// A read to its end; gives the number of the fetch that its bytes are of.
    fn read(self: &Arc<Self>) -> u8 {
        self.read_counted().0
    }

    /// As [`Self::read`], and whether the read itself has asked the origin.
    fn read_counted(self: &Arc<Self>) -> (u8, bool) {
        let (fill, fetched) = match self.find() {
            Ok(data) => return (number_of(&[data]), false),
            Err(Some(fill)) => (fill, false),
            Err(None) => self.start(),
        };
        let pieces = block_on(fill.read(0..LENGTH)).expect("the origin answers");
        (number_of(&pieces), fetched)
    }

    /// Where the worker looks for a block: the bytes, or a fill.
    fn find(&self) -> Result<Bytes, Option<Arc<Fill>>> {
        let memory = self.memory.lock().get(&KEY).cloned();
        if let Some(data) = memory {
            return Ok(data);
        }
        if let Some(fill) = self.fills.find(&KEY) {
            return Err(Some(fill));
        }
        let ssd = self.ssd.lock().get(&KEY).cloned();
        ssd.ok_or(None)
    }

    fn start(self: &Arc<Self>) -> (Arc<Fill>, bool) {
        match fills::start(self, KEY, LENGTH, &"key".into()) {
            Err(running) => (running, false),
            Ok(started) => {
                let second = self.filling.swap(true, Ordering::SeqCst);
                assert!(!second, "two fills of a block are under way");
                let fill = started.fill().clone();
                (fill, self.fetch(started))
            }
        }
    }

    fn end(&self, started: Started<Self>, was_held: bool) {
        self.filling.store(false, Ordering::SeqCst);
        if was_held {
            started.was_held();
        }
    }

    /// Whether the origin was asked.
    fn fetch(self: &Arc<Self>, started: Started<Self>) -> bool {
        let memory = self.memory.lock().get(&KEY).cloned();
        let found = memory.or_else(|| self.ssd.lock().get(&KEY).cloned());
        if let Some(data) = found {
            started.fill().push(data);
            self.end(started, true);
            return false;
        }
        let number = self.fetches.fetch_add(1, Ordering::SeqCst) as u8;
        started.fill().push(Bytes::from(vec![0]));
        started.fill().push(Bytes::from(vec![number; 2]));
        self.keep(started);
        true
    }

    fn keep(self: &Arc<Self>, started: Started<Self>) {
        let data = started.fill().complete().expect("all bytes").concat();
        let data = Bytes::from(data);
        if self.tiers.memory && !started.fill().is_discarded() {
            self.memory.lock().insert(KEY, data.clone());
        }
        let worker = self.clone();
        let write = thread::spawn(move || {
            if worker.tiers.ssd {
                worker.ssd.lock().insert(KEY, data);
            }
            worker.end(started, false);
        });
        self.writes.lock().push(write);
    }

    /// Waits until nothing is written any more.
    fn settled(&self) {
        loop {
            let write = self.writes.lock().pop();
            let Some(write) = write else { return };
            write.join().expect("it wrote");
        }
    }
}

/// The fetch that a block is of. Panics if its bytes are not those of one.
fn number_of(pieces: &[Bytes]) -> u8 {
    let block = pieces.concat();
    let number = block[1];
    assert_eq!(block, [0, number, number]);
    number
}

fn join<T>(threads: Vec<JoinHandle<T>>) -> Vec<T> {
    let ended = threads.into_iter().map(JoinHandle::join);
    ended.map(|ended| ended.expect("it ended")).collect()
}

fn readers<T: Send + 'static>(
    worker: &Arc<Worker>,
    number: usize,
    read: impl Fn(&Arc<Worker>) -> T + Copy + Send + 'static,
) -> Vec<JoinHandle<T>> {
    let start = |_| {
        let worker = worker.clone();
        thread::spawn(move || read(&worker))
    };
    (0..number).map(start).collect()
}

/// Readers of a block that nobody holds cause one request to the origin, whenever they come.
pub fn readers_share_a_fill(tiers: Tiers) {
    let worker = Worker::new(tiers);
    let read = join(readers(&worker, 3, Worker::read));
    // What no tier took may be fetched by one who had looked for it before that came.
    if !tiers.none() {
        assert_eq!(read, [0, 0, 0]);
        assert_eq!(worker.fetches(), 1);
    }
    worker.settled();
    assert_eq!(worker.fills.len(), 0);
}

/// Whoever has read a block has it from the cache the next time, wherever it is on its way.
pub fn a_block_is_found_on_its_way(tiers: Tiers) {
    let worker = Worker::new(tiers);
    let reader = |worker: &Arc<Worker>| {
        worker.read();
        let again = [(); 3].map(|()| worker.read_counted().1);
        assert_eq!(again, [false; 3], "it was nowhere");
    };
    join(readers(&worker, 2, reader));
    worker.settled();
}

/// A block that is evicted while it is fetched is nowhere afterwards, unless it was fetched again; its readers get it.
pub fn an_evicted_block_never_comes_back(tiers: Tiers) {
    let worker = Worker::new(tiers);
    let reading = readers(&worker, 2, Worker::read);
    let evicted = worker.clone();
    let evicting = thread::spawn(move || {
        let before = evicted.fetches();
        fills::evict(&*evicted, &[KEY]);
        before
    });
    let before = evicting.join().expect("it evicted");
    join(reading);
    worker.settled();
    let held = match worker.find() {
        Ok(data) => Some(number_of(&[data])),
        Err(fill) => fill.map(|fill| number_of(&fill.complete().expect("all bytes"))),
    };
    assert!(held.is_none_or(|held| usize::from(held) >= before));
}

/// A fill that is given up in the middle fails for all who wait for it, and the next read begins another one.
pub fn nobody_waits_for_a_fill_that_was_given_up(tiers: Tiers) {
    let worker = Worker::new(tiers);
    let started = fills::start(&worker, KEY, LENGTH, &"key".into());
    let started = started.unwrap_or_else(|_| panic!("it is the first"));
    let reader = |worker: &Arc<Worker>| match worker.fills.find(&KEY) {
        Some(fill) => block_on(fill.read(0..LENGTH)).is_err() && block_on(fill.read(0..1)).is_ok(),
        None => true, // it came too late
    };
    started.fill().push(Bytes::from(vec![0]));
    let reading = readers(&worker, 2, reader);
    let dropping = thread::spawn(move || drop(started));
    assert_eq!(join(reading), [true, true]);
    dropping.join().expect("it was dropped");
    assert_eq!(worker.read(), 0);
    worker.settled();
}

/// Each reader is woken by the bytes that it waits for, however they come.
pub fn no_wake_up_is_lost() {
    let fill = Fill::new(LENGTH);
    let reading = (0..LENGTH).map(|at| {
        let fill = fill.clone();
        thread::spawn(move || block_on(fill.read(at..at + 1)).expect("no error").concat())
    });
    let reading = reading.collect();
    for at in 0..LENGTH {
        fill.push(Bytes::from(vec![at as u8]));
    }
    assert_eq!(join(reading), [[0], [1], [2]]);
}
