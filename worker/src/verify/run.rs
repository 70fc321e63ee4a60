//! The work: blocks come in, verdicts are carried out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use weir_core::{Block, BlockKey};
use weir_origin::{ObjectChecksum, OriginError, object_checksum};

use super::layouts::{Layout, Layouts, Said};
use super::table::{Sums, Table, Verdict, is_small_enough, sums_of};
use super::{Fetched, id_of};
use crate::worker::Worker;

/// Blocks that wait to be fetched again; others are when somebody reads them.
pub(super) const MAX_AGAIN: usize = 1024;
/// Questions to origins at once.
const MAX_ASKING: usize = 64;
/// Longest wait for a dropped block to be gone from where it is written to.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);
const SETTLE_POLL: Duration = Duration::from_millis(5);

/// What an origin has answered about the object of a block.
struct Answer {
    id: BlockKey,
    block: Block,
    checksum: Result<Option<ObjectChecksum>, OriginError>,
}

struct Run {
    worker: Arc<Worker>,
    table: Table,
    layouts: Layouts,
    asking: JoinSet<Answer>,
    again: mpsc::Sender<Block>,
}

/// Looks at what is fetched, for ever; hands on what is to be fetched again.
pub(super) async fn run(
    worker: Arc<Worker>,
    mut fetched: mpsc::Receiver<Fetched>,
    again: mpsc::Sender<Block>,
) {
    let mut run = Run {
        worker,
        table: Table::default(),
        layouts: Layouts::default(),
        asking: JoinSet::new(),
        again,
    };
    loop {
        tokio::select! {
            Some(fetched) = fetched.recv() => run.take(fetched).await,
            Some(answer) = run.asking.join_next() => {
                if let Ok(answer) = answer {
                    run.answered(answer).await;
                }
            }
            else => return,
        }
    }
}

/// Fetches blocks again that were wrong, one after the other, before anybody reads them.
pub(super) async fn fetch_again(worker: Arc<Worker>, mut wrong: mpsc::Receiver<Block>) {
    while let Some(block) = wrong.recv().await {
        let key = block.key();
        let settled = async {
            while worker.is_settling(&key) {
                tokio::time::sleep(SETTLE_POLL).await;
            }
        };
        // One that cannot be fetched is when somebody reads it.
        if tokio::time::timeout(SETTLE_DEADLINE, settled).await.is_ok() {
            let _ = worker.warm(&block).await;
        }
    }
}

impl Run {
    async fn take(&mut self, fetched: Fetched) {
        if self.worker.verifier.missed.swap(false, Ordering::AcqRel) {
            self.table.missed_some();
        }
        let block = &fetched.block;
        let id = id_of(block);
        match self.layouts.get(&id) {
            Some(Layout::Known(checksum)) => {
                let checksum = checksum.clone();
                return self.look(id, fetched, &checksum).await;
            }
            Some(Layout::Nothing) => return,
            Some(Layout::Asked(_)) => {
                if let Err(fetched) = self.layouts.wait(&id, fetched) {
                    self.missed(id, &fetched.block);
                }
                return;
            }
            None => {}
        }
        if !is_small_enough(block.object.size) || self.asking.len() >= MAX_ASKING {
            self.missed(id, &fetched.block);
        } else if self.layouts.may_ask(block.origin) {
            self.ask(id, block.clone());
            self.layouts.ask(id, fetched);
        }
    }

    fn ask(&mut self, id: BlockKey, block: Block) {
        let worker = self.worker.clone();
        self.asking.spawn(async move {
            let checksum = match worker.origins().get(block.origin).await {
                None => Err(OriginError::unknown(block.origin)),
                Some(Err(error)) => Err(error),
                Some(Ok(open)) => {
                    let metrics = worker.origin_metrics();
                    object_checksum(&open.origin, &block.object, metrics).await
                }
            };
            Answer {
                id,
                block,
                checksum,
            }
        });
    }

    async fn answered(&mut self, answer: Answer) {
        let Answer {
            id,
            block,
            checksum,
        } = answer;
        let said = match checksum {
            Ok(Some(checksum)) => Said::Checksum(Arc::new(checksum)),
            Ok(None) => Said::Nothing,
            // It is not worth asking again and again where that is not allowed.
            Err(error) if !error.is_retryable() => {
                tracing::debug!(%error, object = %block.object.key, "its checksum is not to be had");
                Said::Nothing
            }
            Err(error) => {
                tracing::debug!(%error, object = %block.object.key, "its checksum could not be asked for");
                Said::NotNow
            }
        };
        if matches!(said, Said::Nothing) {
            self.worker.metrics().verified("no_checksum");
        }
        let waited = self.layouts.answered(id, block.origin, &said);
        for fetched in waited {
            match &said {
                Said::Checksum(checksum) => self.look(id, fetched, checksum).await,
                Said::Nothing => {}
                Said::NotNow => self.missed(id, &fetched.block),
            }
        }
    }

    /// Computes the checksum of a block, and judges.
    async fn look(&mut self, id: BlockKey, fetched: Fetched, checksum: &Arc<ObjectChecksum>) {
        let block = fetched.block.clone();
        match self.sums(fetched, checksum).await {
            None => self.missed(id, &block),
            Some(sums) => {
                let size = block.object.size;
                let verdict = self.table.add(id, checksum, size, block.index, sums);
                self.carry_out(id, &block, verdict).await;
            }
        }
    }

    /// The checksums of a block's pieces; `None` if its bytes are no longer to be had.
    async fn sums(&self, fetched: Fetched, checksum: &Arc<ObjectChecksum>) -> Option<Sums> {
        let (worker, checksum) = (self.worker.clone(), checksum.clone());
        let computed = spawn_blocking(move || {
            let Fetched { block, data } = fetched;
            let bytes: Vec<Bytes> = match &data {
                Some((fill, _)) => fill.complete()?,
                None => worker.read_cached(&block.key(), &(0..block.len()))?.0,
            };
            Some(sums_of(&checksum, block.range(), &bytes))
        });
        computed.await.ok().flatten()
    }

    /// The bytes of a block were given out and not looked at.
    fn missed(&mut self, id: BlockKey, block: &Block) {
        self.worker.metrics().unverified_blocks.inc();
        if self.table.missed(&id) {
            self.worker.verifier.doubt(block.origin, &block.object);
        }
    }

    async fn carry_out(&mut self, id: BlockKey, block: &Block, verdict: Verdict) {
        let worker = self.worker.clone();
        let metrics = worker.metrics();
        if verdict.complete {
            metrics.verified("right");
        }
        metrics.mismatches.inc_by(verdict.mismatches);
        let wrong = verdict.drop.iter().map(|index| Block {
            index: *index,
            ..block.clone()
        });
        let wrong: Vec<Block> = wrong.collect();
        if verdict.give_up {
            self.give_up(id, block).await;
        }
        if !wrong.is_empty() {
            tracing::warn!(
                object = %block.object.key, blocks = wrong.len(),
                "bytes do not have the origin's checksum; they are dropped and fetched again"
            );
            let keys: Vec<BlockKey> = wrong.iter().map(Block::key).collect();
            let dropping = worker.clone();
            // A panic there would be logged; the blocks are judged again when they are fetched.
            let _ = spawn_blocking(move || dropping.evict_for(&keys, "mismatch")).await;
        }
        if verdict.stale_pages || !wrong.is_empty() {
            worker.verifier.doubt(block.origin, &block.object);
        }
        if !verdict.give_up {
            // Those that find no room are fetched when somebody reads them.
            wrong
                .into_iter()
                .all(|block| self.again.try_send(block).is_ok());
        }
    }

    /// Refuses an object for a while.
    async fn give_up(&self, id: BlockKey, block: &Block) {
        let worker = &self.worker;
        worker.metrics().verified("given_up");
        let origin = match worker.origins().get(block.origin).await {
            Some(Ok(open)) => open.origin.describe().into(),
            _ => "of the object".into(),
        };
        let error = OriginError::Corrupt {
            origin,
            key: block.object.key.clone(),
        };
        tracing::error!("an object is refused for 5 minutes: {error}");
        worker.verifier.refuse(id, error);
    }
}
