//! Big objects against the origin's checksum.
//!
//! An object of several blocks is read in ranges, of which services send no checksum. Here the checksum of each block that
//! was fetched is computed behind the reader's back, and once all are known they are combined and compared with what the
//! origin says of the whole. Blocks that do not fit are dropped and fetched again; what the kernel holds of their object is
//! to be dropped too, by whoever listens to [`Worker::doubtful_objects`]. An object that never fits is refused for a while.
//!
//! Readers never wait for any of this: they may get wrong bytes until an object was compared.

mod layouts;
mod run;
mod table;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use weir_core::{BLOCK_SIZE, Block, BlockKey, ObjectRef, OriginId};
use weir_origin::OriginError;

use crate::fill::Fill;
use crate::worker::Worker;

/// Blocks that wait; of more the checksum is not computed.
const QUEUE: usize = 4096;
/// The part of the fills' budget that the bytes of those may take. The others are read from the tier when it is their turn.
const SHARE: u64 = 4;
/// How long an object is refused that never fits, and how many are at most.
const REFUSED_FOR: Duration = Duration::from_mins(5);
const MAX_REFUSED: usize = 1024;
/// Objects of which a listener may not have heard yet; one that is later takes all for doubtful.
const MAX_UNHEARD: usize = 1024;

/// An object of which page caches may hold wrong bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doubtful {
    /// Where it lives.
    pub origin: OriginId,
    /// The version.
    pub object: ObjectRef,
}

/// A block of a big object that was fetched.
pub(crate) struct Fetched {
    block: Block,
    /// Its bytes, if there was room for them.
    data: Option<(Arc<Fill>, OwnedSemaphorePermit)>,
}

/// What the fills and reads of a worker have to do with it.
pub(crate) struct Verifier {
    queue: mpsc::Sender<Fetched>,
    room: Arc<Semaphore>,
    /// Blocks were not looked at since the verifier asked last.
    missed: AtomicBool,
    refused: RwLock<HashMap<BlockKey, Refused>>,
    /// There is one at least, so that most reads need not look.
    any_refused: AtomicBool,
    doubtful: broadcast::Sender<Arc<Doubtful>>,
}

struct Refused {
    until: Instant,
    error: OriginError,
}

/// What identifies the object of a block: its first block's key.
fn id_of(block: &Block) -> BlockKey {
    let first = Block {
        index: 0,
        ..block.clone()
    };
    first.key()
}

impl Verifier {
    /// One beside fills that may take so many bytes, and the blocks that come to it.
    pub(crate) fn new(budget: u64) -> (Self, mpsc::Receiver<Fetched>) {
        let (queue, fetched) = mpsc::channel(QUEUE);
        let blocks = (budget / SHARE / BLOCK_SIZE).max(1);
        let verifier = Self {
            queue,
            room: Arc::new(Semaphore::new(blocks as usize)),
            missed: AtomicBool::new(false),
            refused: RwLock::default(),
            any_refused: AtomicBool::new(false),
            doubtful: broadcast::channel(MAX_UNHEARD).0,
        };
        (verifier, fetched)
    }

    /// Takes note of a block that was fetched. Never waits. Gives whether it is looked at.
    pub(crate) fn fetched(&self, block: &Block, fill: &Arc<Fill>) -> bool {
        if block.object.size <= BLOCK_SIZE {
            return true; // it was verified on its way
        }
        let room = self.room.clone().try_acquire_owned().ok();
        let fetched = Fetched {
            block: block.clone(),
            data: room.map(|room| (fill.clone(), room)),
        };
        let taken = self.queue.try_send(fetched).is_ok();
        if !taken {
            self.missed.store(true, Ordering::Release);
        }
        taken
    }

    /// The error of an object that is refused.
    pub(crate) fn refusal(&self, block: &Block) -> Option<OriginError> {
        if block.object.size <= BLOCK_SIZE || !self.any_refused.load(Ordering::Acquire) {
            return None;
        }
        let refused = self.refused.read();
        let found = refused.get(&id_of(block))?;
        (Instant::now() < found.until).then(|| found.error.clone())
    }

    fn refuse(&self, id: BlockKey, error: OriginError) {
        let now = Instant::now();
        let mut refused = self.refused.write();
        refused.retain(|_, refused| now < refused.until);
        if refused.len() >= MAX_REFUSED {
            let oldest = refused.iter().min_by_key(|(_, refused)| refused.until);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                refused.remove(&oldest);
            }
        }
        let until = now + REFUSED_FOR;
        refused.insert(id, Refused { until, error });
        self.any_refused.store(true, Ordering::Release);
    }

    /// Tells listeners that what page caches hold of an object may be wrong.
    fn doubt(&self, origin: OriginId, object: &ObjectRef) {
        let object = object.clone();
        // There may be no listener.
        let _ = self.doubtful.send(Arc::new(Doubtful { origin, object }));
    }
}

impl Worker {
    /// Objects of which page caches may hold wrong bytes, from now on. One comes after its blocks were dropped.
    pub fn doubtful_objects(&self) -> broadcast::Receiver<Arc<Doubtful>> {
        self.verifier.doubtful.subscribe()
    }

    /// Starts to look at what is fetched.
    pub(crate) fn verify(self: &Arc<Self>, fetched: mpsc::Receiver<Fetched>) {
        let (again, wrong) = mpsc::channel(run::MAX_AGAIN);
        let verifying = run::run(self.clone(), fetched, again);
        self.tasks
            .spawn(self.stop.clone().run_until_cancelled_owned(verifying));
        let fetching = run::fetch_again(self.clone(), wrong);
        self.tasks
            .spawn(self.stop.clone().run_until_cancelled_owned(fetching));
    }
}

#[cfg(test)]
mod tests;
