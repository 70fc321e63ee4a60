//! A worker that has come, or come back: its share is taken over from the workers that hold it, before anybody reads it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use weir_core::{ClusterMap, SnapshotId, WorkerId};

use super::{Holders, TakeOver, TakeOverProgress, take_over};
use crate::snapshots::Snapshots;
use crate::worker::Worker;

/// How long the cluster map must stay as it is before anything is moved: workers come and go together.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// Bytes that are taken over in a second.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// Takes over what is this worker's, whenever its share has grown, for as long as maps come. `wanted` are the newest snapshots
/// of all datasets.
pub(crate) async fn run(
    worker: Arc<Worker>,
    snapshots: Arc<Snapshots>,
    mut map: watch::Receiver<Arc<ClusterMap>>,
    wanted: impl Fn() -> Vec<SnapshotId>,
) {
    let own = worker.config().id.clone();
    let (mut had, mut is_behind) = (0, false);
    while map.changed().await.is_ok() {
        while let Ok(changed) = timeout(SETTLED_AFTER, map.changed()).await {
            if changed.is_err() {
                return;
            }
        }
        // It gains blocks of workers that stay only if its weight grows: of those that left there is nothing to be had.
        let has = weight_of(&own, &map.borrow_and_update());
        is_behind |= has > had;
        had = has;
        if !is_behind {
            continue;
        }
        tokio::select! {
            () = take_all(&worker, &snapshots, wanted()) => is_behind = false,
            there_is_one = another(&map) => if !there_is_one { return },
        }
    }
}

fn weight_of(id: &WorkerId, map: &ClusterMap) -> u64 {
    map.worker(id).map_or(0, |own| own.weight)
}

/// Waits for another map, which stays to be seen; false if none comes any more.
async fn another(map: &watch::Receiver<Arc<ClusterMap>>) -> bool {
    map.clone().changed().await.is_ok()
}

async fn take_all(worker: &Arc<Worker>, snapshots: &Arc<Snapshots>, wanted: Vec<SnapshotId>) {
    for snapshot in wanted {
        let dataset = snapshot.dataset.clone();
        if !worker.placements().is_by_map(dataset.as_str()) {
            continue; // its owners are not those of the map alone
        }
        // Without its manifest the blocks of a dataset are taken over when they are read.
        let Ok(manifest) = snapshots.get_unkept(&snapshot).await else {
            continue;
        };
        let _job = snapshots.begin_job(&dataset);
        let (progress, seen) = watch::channel(TakeOverProgress::default());
        let what = TakeOver {
            manifest,
            from: Holders::Former,
            bytes_per_second: BYTES_PER_SECOND,
        };
        take_over(worker.clone(), what, progress).await;
        let TakeOverProgress {
            copied_bytes,
            failed_blocks,
            unkept_blocks,
            ..
        } = seen.borrow().clone();
        if copied_bytes > 0 || failed_blocks > 0 {
            tracing::info!(
                %dataset, copied_bytes, failed_blocks, unkept_blocks,
                "blocks that are this worker's now were taken over from others"
            );
        }
    }
}
