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
mod verifier;
pub(crate) mod wire;

use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::{broadcast, watch};
use weir_core::{Block, BlockKey, ClusterMap};
use weir_origin::OriginError;
use weir_trust::Dial;

use self::peers::Peers;
pub use self::verifier::Doubtful;
use self::verifier::{Queues, id_of};
pub(crate) use self::verifier::{Said, Verifier};
use crate::worker::{Worker, settled};

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
        if let Some(copies) = self.copies.get() {
            copies.distrust(&keys);
        }
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
        settled(|| !keys.iter().any(|key| self.is_settling(key))).await
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
