//! Taking over blocks that are this worker's now, and that others hold: before one of them leaves, because this one came, or because
//! their dataset has moved.
//!
//! Nobody waits for these blocks, so they come at a limited rate, few at once, and within the part of the memory budget that
//! is for such. The origin is never asked.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};
use weir_core::manifest::ROOT;
use weir_core::placement::domains::{Owners, Placement};
use weir_core::{BLOCK_SIZE, BlockKey, ClusterMap, Manifest, WorkerId, WorkerInfo};

use crate::copies::uncordoned;
use crate::worker::{Taken, Worker};

pub(crate) mod joining;

/// Blocks that are asked for at once, and what their bytes may be ahead of the rate, as time.
const AT_ONCE: u64 = 8;
const AHEAD: Duration = Duration::from_millis(250);
/// Blocks in a row that were not given, after which the other worker is taken for dead.
const MAX_FAILURES: u32 = 16;
/// Blocks in a row that nobody has, after which those of a dataset that is not to be saved from anything are left where they
/// are until somebody reads them.
const COLD_AFTER: u32 = 256;
/// Workers that are asked for one block.
const MAX_ASKED: usize = 2;
/// What of the rate is not lost while blocks are awaited, as time.
const SAVED: Duration = Duration::from_millis(100);

/// What is to be taken over.
pub(crate) struct TakeOver {
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) from: Holders,
    /// All that this worker may take in a second.
    pub(crate) bytes_per_second: u64,
}

/// Whose blocks are taken over.
pub(crate) enum Holders {
    /// Those of a worker that is to leave.
    Leaving(Box<Leaving>),
    /// Those of a dataset, of workers that stay: they owned them before this one did, or hold another copy.
    Others(Arc<str>),
}

/// A worker that is to leave.
pub(crate) struct Leaving {
    from: WorkerInfo,
    owners: Owners,
    /// Those before that.
    before: Owners,
}

impl Leaving {
    /// Whether a block is this worker's.
    fn is_of(&self, key: &BlockKey, own: &WorkerId) -> bool {
        self.owners.of(key).any(|owner| owner.id == *own)
    }
}

impl Holders {
    /// Those of a worker that is cordoned in this map, of a dataset of this placement.
    pub(crate) fn leaving(from: WorkerInfo, map: ClusterMap, placement: &Placement) -> Self {
        let before = uncordoned(&map, |id| *id == from.id);
        Self::Leaving(Box::new(Leaving {
            from,
            owners: Owners::new(Arc::new(map), placement),
            before: Owners::new(Arc::new(before), placement),
        }))
    }

    /// Whether a block counts that is here already: it is this worker's, and was before that of the one that is to leave.
    fn counts(&self, key: &BlockKey, own: &WorkerId) -> bool {
        match self {
            Self::Leaving(leaving) => {
                let mut before = leaving.before.of(key);
                before.any(|owner| owner.id == leaving.from.id) && leaving.is_of(key, own)
            }
            Self::Others(_) => false,
        }
    }

    /// The workers that may hold a block which is this one's, the likeliest first.
    fn of(&self, key: &BlockKey, worker: &Worker) -> Vec<WorkerInfo> {
        let own = &worker.config().id;
        match self {
            Self::Leaving(leaving) => {
                // It may hold others than those that it owned last.
                let leaving = leaving.is_of(key, own).then(|| leaving.from.clone());
                leaving.into_iter().collect()
            }
            Self::Others(dataset) => {
                let copies = worker.copies.get();
                let mut holders =
                    copies.map_or_else(Vec::new, |copies| copies.holders_of(dataset, key));
                holders.retain(|holder| holder.cordoned_weight == 0);
                holders.truncate(MAX_ASKED);
                holders
            }
        }
    }
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TakeOverProgress {
    /// Bytes of blocks that this worker has now, and that were another's before.
    pub(crate) done_bytes: u64,
    /// Those that it has taken over for this.
    pub(crate) copied_bytes: u64,
    /// Blocks that were not given, though the other may hold them.
    pub(crate) failed_blocks: u64,
    /// Blocks that found no room in the tiers.
    pub(crate) unkept_blocks: u64,
    /// The first failure.
    pub(crate) message: String,
}

/// Blocks on their way.
struct Taking {
    blocks: JoinSet<(u64, Taken)>,
    progress: watch::Sender<TakeOverProgress>,
    pace: Pace,
    /// Failures in a row, and blocks in a row that the others do not have.
    failures: u32,
    misses: u32,
}

impl Taking {
    /// Waits until less than `most` are on their way.
    async fn less_than(&mut self, most: u64) {
        while self.blocks.len() as u64 >= most {
            let Some(taken) = self.blocks.join_next().await else {
                return;
            };
            let (bytes, taken) = taken.unwrap_or((0, Taken::Failed));
            if taken == Taken::Copied {
                self.pace.spend(bytes);
            }
            self.failures = match taken {
                Taken::Failed => self.failures + 1,
                _ => 0,
            };
            self.misses = match taken {
                Taken::NotThere => self.misses + 1,
                _ => 0,
            };
            self.progress.send_modify(|p| match taken {
                Taken::Held => p.done_bytes += bytes,
                Taken::Copied => {
                    p.done_bytes += bytes;
                    p.copied_bytes += bytes;
                }
                Taken::NotThere => {}
                Taken::NoRoom => p.unkept_blocks += 1,
                Taken::Failed => {
                    p.failed_blocks += 1;
                    if p.message.is_empty() {
                        "the worker did not give a block".clone_into(&mut p.message);
                    }
                }
            });
        }
    }
}

/// Takes the blocks over, and reports to `progress`. Ends early when nobody listens any more, or the other worker does not
/// answer: then blocks have failed.
pub(crate) async fn take_over(
    worker: Arc<Worker>,
    job: TakeOver,
    progress: watch::Sender<TakeOverProgress>,
) {
    let dataset: Arc<str> = job.manifest.summary().snapshot.dataset.as_str().into();
    let ahead = job.bytes_per_second / (1000 / AHEAD.as_millis() as u64);
    let at_once = (ahead / BLOCK_SIZE).clamp(1, AT_ONCE);
    let mut taking = Taking {
        blocks: JoinSet::new(),
        progress,
        pace: Pace::new(job.bytes_per_second),
        failures: 0,
        misses: 0,
    };
    let gives_up_cold = matches!(job.from, Holders::Others(_));
    for file in job.manifest.files_below(ROOT) {
        consume_budget().await; // of an empty one, too
        for block in job.manifest.blocks(file) {
            // Most blocks are passed over, and others may want to run on this thread.
            consume_budget().await;
            let (key, bytes) = (block.key(), u64::from(block.len()));
            // First, since to find out whose a block is takes longer.
            if worker.keeps_for_long(&key) {
                if job.from.counts(&key, &worker.config().id) {
                    taking.progress.send_modify(|p| p.done_bytes += bytes);
                }
                continue;
            }
            let from = job.from.of(&key, &worker);
            if from.is_empty() {
                continue;
            }
            taking.less_than(at_once).await;
            sleep_until(taking.pace.next).await;
            let is_cold = gives_up_cold && taking.misses >= COLD_AFTER;
            if is_cold || taking.failures >= MAX_FAILURES || taking.progress.is_closed() {
                return;
            }
            let (worker, dataset) = (worker.clone(), dataset.clone());
            taking.blocks.spawn(async move {
                let mut taken = Taken::NotThere;
                for from in &from {
                    taken = worker.take_block_over(&dataset, &block, from).await;
                    if !matches!(taken, Taken::NotThere | Taken::Failed) {
                        break;
                    }
                }
                (bytes, taken)
            });
        }
    }
    taking.less_than(1).await;
}

/// Bytes in the course of time.
struct Pace {
    bytes_per_second: u64,
    next: Instant,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            next: Instant::now(),
        }
    }

    /// So many bytes have come: the next ones may come later.
    fn spend(&mut self, bytes: u64) {
        let start = self.next.max(Instant::now() - SAVED);
        self.next = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use weir_core::manifest::Mount;
    use weir_core::{ManifestBuilder, OriginId, SnapshotId};

    use super::*;
    use crate::testing;

    /// Takes so many bytes as soon as they may come.
    async fn take(pace: &mut Pace, bytes: u64) {
        sleep_until(pace.next).await;
        pace.spend(bytes);
    }

    #[tokio::test]
    async fn others_run_while_the_blocks_of_a_big_file_are_passed_over() {
        const BLOCKS: usize = 2000;
        let mut builder = ManifestBuilder::new();
        let mount = Mount {
            origin: OriginId(7),
            spec: String::new(),
            prefix: String::new(),
            path: String::new(),
        };
        let mount = builder.add_mount(mount).unwrap();
        let size = BLOCKS as u64 * BLOCK_SIZE;
        builder.add(mount, b"big", size, 0, "v").unwrap();
        let snapshot = SnapshotId {
            dataset: "set".parse().unwrap(),
            version: 1,
        };
        let worker = testing::open(testing::config("w").unwrap()).unwrap();
        let job = TakeOver {
            manifest: Arc::new(builder.build(snapshot, 0, None).unwrap()),
            from: Holders::Others("set".into()),
            bytes_per_second: 1,
        };
        let (progress, _seen) = watch::channel(TakeOverProgress::default());
        let mut taking = Box::pin(take_over(worker, job, progress));
        let mut pauses = 0;
        while taking.as_mut().now_or_never().is_none() {
            pauses += 1;
            tokio::task::yield_now().await;
        }
        assert!(pauses >= BLOCKS / 128, "{pauses}");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_come_at_their_rate_however_late_some_of_them_are() {
        let start = Instant::now();
        let mut pace = Pace::new(1000);
        for _ in 0..10 {
            take(&mut pace, 500).await;
        }
        // The last ones may come now, and need not have.
        assert_eq!(start.elapsed(), Duration::from_millis(4500));
        tokio::time::sleep(Duration::from_mins(1)).await;
        let late = Instant::now();
        for _ in 0..10 {
            take(&mut pace, 500).await;
        }
        assert_eq!(late.elapsed() + SAVED, Duration::from_millis(4500));
    }
}
