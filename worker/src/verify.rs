//! Big objects against the origin's checksum.
//!
//! An object of several blocks is read in ranges, of which services send no checksum. Here the checksum of each block that
//! was fetched is computed behind the reader's back, and once all are known they are combined and compared with what the
//! origin says of the whole. Blocks that do not fit are dropped and fetched again; what the kernel holds of their object is
//! to be dropped too, by whoever listens to [`Worker::doubtful_objects`]. An object that never fits is refused for a while.
//!
//! In a cluster the blocks of an object are at several workers. The owner of its first block asks the origin and compares;
//! the others tell it the checksums of what they fetch, and it tells them what is wrong.
//!
//! Readers never wait for any of this: they may get wrong bytes until an object was compared.

mod layouts;
mod outbox;
mod peers;
mod run;
mod table;
pub(crate) mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::FutureExt;
use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch};
use weir_core::{BLOCK_SIZE, Block, BlockKey, ClusterMap, ObjectRef, OriginId};
use weir_origin::OriginError;
use weir_proto::v1;
use weir_trust::Dial;

pub(crate) use self::layouts::Said;
use self::peers::Peers;
use self::table::Sums;
use crate::fill::Fill;
use crate::worker::Worker;

/// Blocks that wait; of more the checksum is not computed.
const QUEUE: usize = 4096;
/// The part of the fills' budget that the bytes of those may take. The others are read from the tier when it is their turn.
const SHARE: u64 = 4;
/// Blocks that wait to be fetched again; others are when somebody reads them.
const MAX_AGAIN: usize = 1024;
/// Longest wait for a dropped block to be gone from where it is written to.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
const SETTLE_POLL: Duration = Duration::from_millis(5);
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
    block: Block,
    /// Its bytes, if there was room for them.
    data: Option<(Arc<Fill>, OwnedSemaphorePermit)>,
}

/// Checksums of blocks that another worker has fetched. Without an answer the object's are not to be had now.
pub(crate) struct Reported {
    first: Block,
    blocks: Vec<(u32, Sums)>,
    answer: oneshot::Sender<Said>,
}

/// What is to be looked at.
pub(crate) enum Arrived {
    Fetched(Fetched),
    Reported(Reported),
}

impl Arrived {
    /// A block of the object.
    fn block(&self) -> &Block {
        match self {
            Self::Fetched(fetched) => &fetched.block,
            Self::Reported(reported) => &reported.first,
        }
    }
}

/// The ends of a verifier's queues.
pub(crate) struct Queues {
    arrived: mpsc::Receiver<Arrived>,
    again: mpsc::Receiver<Block>,
}

/// What the fills and reads of a worker have to do with it.
pub(crate) struct Verifier {
    queue: mpsc::Sender<Arrived>,
    /// Blocks that are to be fetched again.
    again: mpsc::Sender<Block>,
    /// The other workers, in a cluster.
    peers: OnceLock<Peers>,
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
        let _ = self
            .doubtful
            .send(Arc::new(Doubtful::Object { origin, object }));
    }
}

impl Worker {
    /// Objects of which page caches may hold wrong bytes, from now on. One comes after its blocks were dropped.
    pub fn doubtful_objects(&self) -> broadcast::Receiver<Arc<Doubtful>> {
        self.verifier.doubtful.subscribe()
    }

    /// Compares objects together with the other workers of this map, whom it calls by `dial`.
    pub fn verify_with_others(&self, map: watch::Receiver<Arc<ClusterMap>>, dial: Dial) {
        let peers = Peers::new(self.config().id.clone(), map, dial);
        // There is one cluster in a worker's life.
        let _ = self.verifier.peers.set(peers);
    }

    /// Drops blocks that are wrong, and fetches those again that are this worker's. An object that is to be refused is,
    /// for a while. Gives the blocks' keys: until they are settled they may still be read.
    pub(crate) async fn drop_wrong(
        self: &Arc<Self>,
        first: &Block,
        indexes: &[u32],
        refuse: bool,
    ) -> Vec<BlockKey> {
        let verifier = &self.verifier;
        if refuse {
            let origin = match self.origins().get(first.origin).await {
                Some(Ok(open)) => open.origin.describe().into(),
                _ => "that is not known".into(),
            };
            let error = OriginError::Corrupt {
                origin,
                key: first.object.key.clone(),
            };
            tracing::error!("an object is refused for 5 minutes: {error}");
            verifier.refuse(id_of(first), error);
        }
        let wrong = wire::those_of(first, indexes);
        let keys: Vec<BlockKey> = wrong.iter().map(|(_, key)| *key).collect();
        if !wrong.is_empty() {
            let (worker, keys) = (self.clone(), keys.clone());
            let drop = move || worker.evict_for(&keys, "mismatch");
            // A panic there would be logged; the blocks are judged again when they are fetched.
            let _ = tokio::task::spawn_blocking(drop).await;
        }
        let is_own = |key: &BlockKey| verifier.peers.get().is_none_or(|peers| peers.owns(key));
        for (block, key) in wrong {
            // Those that find no room are fetched when somebody reads them.
            if !refuse && is_own(&key) && verifier.again.try_send(block).is_err() {
                break;
            }
        }
        keys
    }

    /// Waits until dropped blocks are gone from where they are written to, and can no longer be read. Gives whether they are.
    pub(crate) async fn settled(&self, keys: &[BlockKey]) -> bool {
        let settled = async {
            while keys.iter().any(|key| self.is_settling(key)) {
                tokio::time::sleep(SETTLE_POLL).await;
            }
        };
        tokio::time::timeout(SETTLE_DEADLINE, settled).await.is_ok()
    }

    /// Starts to look at what is fetched.
    pub(crate) fn verify(self: &Arc<Self>, queues: Queues) {
        let verifying = run::run(self.clone(), queues.arrived);
        let fetching = run::fetch_again(self.clone(), queues.again);
        for work in [verifying.boxed(), fetching.boxed()] {
            let stop = self.stop.clone();
            self.tasks.spawn(stop.run_until_cancelled_owned(work));
        }
    }
}

#[cfg(test)]
mod tests;
