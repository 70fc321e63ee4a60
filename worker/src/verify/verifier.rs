//! What fills and reads have to do with the comparing: they hand over what was fetched, and ask what is refused.
//!
//! Nothing here waits or knows the worker; whatever finds no place in a queue is not looked at, and that is noted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::Instant;
use weir_core::{BLOCK_SIZE, Block, BlockKey, ObjectRef, OriginId};
use weir_origin::{ObjectChecksum, OriginError};
use weir_proto::v1;

use super::peers::Peers;
use super::table::Sums;
use super::wire;
use crate::fill::Fill;

/// Blocks that wait; of more the checksum is not computed.
const QUEUE: usize = 4096;
/// The part of the fills' budget that the bytes of those may take. The others are read from the tier when it is their turn.
const SHARE: u64 = 4;
/// Blocks that wait to be fetched again; others are when somebody reads them.
const MAX_AGAIN: usize = 1024;
/// How long an object is refused that never fits, and how many are at most.
const REFUSED_FOR: Duration = Duration::from_mins(5);
const MAX_REFUSED: usize = 1024;
/// Objects that may wait for a listener; one that falls behind further takes all for doubtful.
const MAX_UNHEARD: usize = 1024;

/// What page caches may hold wrong bytes of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Doubtful {
    /// Of an object.
    Object {
        /// Where it lives.
        origin: OriginId,
        /// The version.
        object: ObjectRef,
    },
    /// Of any object of several blocks.
    All,
}

impl Doubtful {
    /// The object of a message, which must be one that is compared.
    pub fn from_wire(object: v1::ObjectVersion) -> Option<Self> {
        let first = wire::first_block(Some(object))?;
        Some(Self::Object {
            origin: first.origin,
            object: first.object,
        })
    }
}

/// A block of a big object that was fetched.
pub(crate) struct Fetched {
    pub(super) block: Block,
    /// Its bytes, if there was room for them.
    pub(super) data: Option<(Arc<Fill>, OwnedSemaphorePermit)>,
}

/// What was said of an object.
pub(crate) enum Said {
    /// Its checksum.
    Checksum(Arc<ObjectChecksum>),
    /// That there is none.
    Nothing,
    /// It cannot be known now.
    NotNow,
}

/// Checksums of blocks that another worker has fetched. Without an answer the object's are not to be had now.
pub(crate) struct Reported {
    pub(super) first: Block,
    pub(super) blocks: Vec<(u32, Sums)>,
    pub(super) answer: oneshot::Sender<Said>,
}

/// What is to be looked at.
pub(crate) enum Arrived {
    Fetched(Fetched),
    Reported(Reported),
}

impl Arrived {
    /// A block of the object.
    pub(super) fn block(&self) -> &Block {
        match self {
            Self::Fetched(fetched) => &fetched.block,
            Self::Reported(reported) => &reported.first,
        }
    }
}

/// The ends of a verifier's queues.
pub(crate) struct Queues {
    pub(super) arrived: mpsc::Receiver<Arrived>,
    pub(super) again: mpsc::Receiver<Block>,
}

/// What the fills and reads of a worker have to do with it.
pub(crate) struct Verifier {
    queue: mpsc::Sender<Arrived>,
    /// Blocks that are to be fetched again.
    pub(super) again: mpsc::Sender<Block>,
    /// The other workers, in a cluster.
    pub(super) peers: OnceLock<Peers>,
    room: Arc<Semaphore>,
    /// Blocks were not looked at since the verifier asked last.
    pub(super) missed: AtomicBool,
    refused: RwLock<HashMap<BlockKey, Refused>>,
    /// There is one at least, so that most reads need not look.
    any_refused: AtomicBool,
    pub(super) doubtful: broadcast::Sender<Arc<Doubtful>>,
}

struct Refused {
    until: Instant,
    error: OriginError,
}

/// What identifies the object of a block: its first block's key.
pub(super) fn id_of(block: &Block) -> BlockKey {
    let first = Block {
        index: 0,
        ..block.clone()
    };
    first.key()
}

impl Verifier {
    /// One beside fills that may take so many bytes, and the blocks that come to it.
    pub(crate) fn new(budget: u64) -> (Self, Queues) {
        let (queue, arrived) = mpsc::channel(QUEUE);
        let (again, wrong) = mpsc::channel(MAX_AGAIN);
        let blocks = (budget / SHARE / BLOCK_SIZE).max(1);
        let verifier = Self {
            queue,
            again,
            peers: OnceLock::new(),
            room: Arc::new(Semaphore::new(blocks as usize)),
            missed: AtomicBool::new(false),
            refused: RwLock::default(),
            any_refused: AtomicBool::new(false),
            doubtful: broadcast::channel(MAX_UNHEARD).0,
        };
        let queues = Queues {
            arrived,
            again: wrong,
        };
        (verifier, queues)
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
        let taken = self.queue.try_send(Arrived::Fetched(fetched)).is_ok();
        if !taken {
            self.missed.store(true, Ordering::Release);
        }
        taken
    }

    /// Takes in what another worker has fetched of an object; gives what the origin says of it, as soon as that is known.
    pub(crate) async fn report(&self, first: Block, blocks: Vec<(u32, Sums)>) -> Said {
        let (answer, answered) = oneshot::channel();
        let reported = Reported {
            first,
            blocks,
            answer,
        };
        if self.queue.try_send(Arrived::Reported(reported)).is_err() {
            return Said::NotNow;
        }
        answered.await.unwrap_or(Said::NotNow)
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

    pub(super) fn refuse(&self, id: BlockKey, error: OriginError) {
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
    pub(super) fn doubt(&self, origin: OriginId, object: &ObjectRef) {
        let object = object.clone();
        // There may be no listener.
        let _ = self
            .doubtful
            .send(Arc::new(Doubtful::Object { origin, object }));
    }
}

#[cfg(test)]
mod tests;
