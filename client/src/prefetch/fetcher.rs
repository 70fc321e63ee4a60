//! Who fetches blocks ahead.

use std::sync::Arc;

use weir_core::Block;
use weir_worker::{Ahead, Worker};

use crate::cluster::ClusterReader;

/// Blocks ahead of one sequential reader, of 4 MiB each: as much as keeps a connection of some gigabits busy over tens
/// of milliseconds; of several owners more can be had at once.
const WINDOW: u32 = 8;
const OWNERS_WINDOW: u32 = 16;

/// Who fetches blocks ahead.
#[derive(Clone)]
pub(crate) enum Fetcher {
    /// The worker in this process.
    Worker(Arc<Worker>),
    /// The blocks' owners.
    Owners {
        cluster: Arc<ClusterReader>,
        dataset: Arc<str>,
    },
}

impl Fetcher {
    /// Begins to fetch a block, once there is a place for it among others that nobody waits for.
    pub(super) async fn fetch(&self, block: &Block) -> Ahead {
        match self {
            Self::Worker(worker) => worker.fill_ahead(block).await,
            Self::Owners { cluster, dataset } => cluster.fill_ahead(dataset, block).await,
        }
    }

    /// How many blocks ahead of one reader are worth a request.
    pub(super) fn window(&self) -> u32 {
        match self {
            Self::Worker(worker) => WINDOW.max(worker.blocks_ahead()),
            Self::Owners { .. } => OWNERS_WINDOW,
        }
    }

    /// Whether blocks that nobody waits for may be wanted. Owners say so when they are asked.
    pub(super) fn may_want(&self) -> bool {
        match self {
            Self::Worker(worker) => worker.wants_ahead(),
            Self::Owners { .. } => true,
        }
    }
}

#[cfg(test)]
impl Fetcher {
    /// The owners in a cluster without workers.
    pub(super) fn to_nobody() -> Self {
        Self::Owners {
            cluster: Arc::new(ClusterReader::of_map(weir_core::ClusterMap::default())),
            dataset: "set".into(),
        }
    }
}
