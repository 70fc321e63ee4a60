//! Warming and evicting the blocks of a snapshot that this worker owns.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use weir_core::{Block, BlockKey, ClusterMap, Manifest};

use crate::worker::{ReadError, Worker};

/// Fills of one warm job that are under way at once. Their bytes are bounded by the worker's fill budget; this
/// bounds the requests for small files.
pub const WARM_FILLS: usize = 32;
/// Blocks dropped at once by an eviction.
const EVICT_BATCH: usize = 4096;

/// How far a warm job is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WarmProgress {
    /// Bytes of finished blocks.
    pub done_bytes: u64,
    /// Finished files; a file counts on the worker that owns its first block.
    pub done_files: u64,
    /// Bytes that came from the origin.
    pub fetched_bytes: u64,
    /// Files with a block that could not be fetched.
    pub failed_files: u64,
    /// The first failure.
    pub message: String,
}

/// The entries at `paths`, or the root when there are none; the first path that does not exist as the error.
pub fn resolve_paths(manifest: &Manifest, paths: &[String]) -> Result<Vec<u32>, String> {
    if paths.is_empty() {
        return Ok(vec![weir_core::manifest::ROOT]);
    }
    paths
        .iter()
        .map(|path| manifest.resolve(path).ok_or_else(|| path.clone()))
        .collect()
}

/// Fills every block below `tops` that `worker` owns under `map`, and reports to `progress`. Ends early when
/// nobody listens any more. A block that fails is counted and the rest goes on.
pub async fn warm(
    worker: &Arc<Worker>,
    manifest: &Manifest,
    tops: &[u32],
    map: &ClusterMap,
    progress: &watch::Sender<WarmProgress>,
) {
    let own = &worker.config().id;
    let owned = |key: &BlockKey| map.owner(key).is_some_and(|w| w.id == *own);
    let mut fills = FuturesUnordered::new();
    for index in tops.iter().flat_map(|top| manifest.files_below(*top)) {
        let head = Block {
            origin: manifest.mount(index).origin,
            object: manifest.object(index),
            index: 0,
        };
        let counts = owned(&head.key());
        if counts && head.object.size == 0 {
            progress.send_modify(|p| p.done_files += 1);
        }
        for block in manifest.blocks(index).filter(|block| owned(&block.key())) {
            while fills.len() >= WARM_FILLS {
                report(fills.next().await, progress);
            }
            if progress.is_closed() {
                return;
            }
            let counts = counts && block.index == 0;
            fills.push(fill(worker, block, counts));
        }
    }
    while !fills.is_empty() {
        report(fills.next().await, progress);
    }
}

/// What became of one block.
struct Filled {
    bytes: u64,
    /// Whether the block stands for its file in the count of files.
    counts: bool,
    /// Whether it came from the origin.
    result: Result<bool, ReadError>,
}

async fn fill(worker: &Arc<Worker>, block: Block, counts: bool) -> Filled {
    Filled {
        bytes: u64::from(block.len()),
        counts,
        result: worker.warm(&block).await,
    }
}

fn report(filled: Option<Filled>, progress: &watch::Sender<WarmProgress>) {
    let Some(filled) = filled else { return };
    progress.send_modify(|p| match filled.result {
        Ok(fetched) => {
            p.done_bytes += filled.bytes;
            p.fetched_bytes += if fetched { filled.bytes } else { 0 };
            p.done_files += u64::from(filled.counts);
        }
        Err(error) => {
            p.failed_files += u64::from(filled.counts);
            if p.message.is_empty() {
                p.message = error.to_string();
            }
        }
    });
}

/// Drops every block below `tops`; gives the bytes that were held.
pub fn evict(worker: &Worker, manifest: &Manifest, tops: &[u32]) -> u64 {
    let mut keys = Vec::with_capacity(EVICT_BATCH);
    let mut evicted = 0;
    for index in tops.iter().flat_map(|top| manifest.files_below(*top)) {
        for block in manifest.blocks(index) {
            keys.push(block.key());
            if keys.len() == EVICT_BATCH {
                evicted += worker.evict(&keys);
                keys.clear();
            }
        }
    }
    evicted + worker.evict(&keys)
}
