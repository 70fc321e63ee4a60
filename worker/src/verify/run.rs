//! The work: checksums come in, verdicts are carried out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep_until;
use weir_core::{Block, BlockKey, WorkerInfo};
use weir_origin::{ObjectChecksum, object_checksum};
use weir_proto::v1;

use super::layouts::{Layout, Layouts};
use super::outbox::Outbox;
use super::peers::{MAX_TELLING, Peers};
use super::table::{Sums, Table, Verdict, is_small_enough, sums_of};
use super::verifier::{Arrived, Fetched, Reported, Said, id_of};
use super::wire;
use crate::worker::Worker;

/// Questions to origins and workers at once, reports to workers, and objects whose blocks are being dropped elsewhere.
const MAX_ASKING: usize = 64;
const MAX_SENDING: usize = 64;
const MAX_DROPPING: usize = 256;

/// What was answered about the object of a block.
struct Answer {
    id: BlockKey,
    block: Block,
    said: Said,
}

struct Run {
    worker: Arc<Worker>,
    table: Table,
    layouts: Layouts,
    outbox: Outbox,
    asking: JoinSet<Answer>,
    sending: JoinSet<()>,
    dropping: JoinSet<()>,
}

/// Looks at what arrives, for ever.
pub(super) async fn run(worker: Arc<Worker>, mut arrived: mpsc::Receiver<Arrived>) {
    let mut run = Run {
        worker,
        table: Table::default(),
        layouts: Layouts::default(),
        outbox: Outbox::default(),
        asking: JoinSet::new(),
        sending: JoinSet::new(),
        dropping: JoinSet::new(),
    };
    loop {
        let due = run.outbox.due();
        let is_due = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(arrived) = arrived.recv() => run.take(arrived).await,
            Some(answer) = run.asking.join_next() => {
                if let Ok(answer) = answer {
                    run.answered(answer).await;
                }
            }
            Some(_) = run.sending.join_next() => {}
            Some(_) = run.dropping.join_next() => {}
            () = is_due => run.send(),
        }
    }
}

/// Fetches blocks again that were wrong, one after the other, before anybody reads them.
pub(super) async fn fetch_again(worker: Arc<Worker>, mut wrong: mpsc::Receiver<Block>) {
    while let Some(block) = wrong.recv().await {
        if worker.settled(&[block.key()]).await {
            // One that cannot be fetched is when somebody reads it.
            let _ = worker.warm(&block).await;
        }
    }
}

impl Run {
    async fn take(&mut self, arrived: Arrived) {
        if self.worker.verifier.missed.swap(false, Ordering::AcqRel) {
            self.table.missed_some();
        }
        let block = arrived.block();
        let id = id_of(block);
        match self.layouts.get(&id) {
            Some(Layout::Known(checksum)) => {
                let checksum = checksum.clone();
                return self.look(id, arrived, &checksum).await;
            }
            Some(Layout::Nothing) => return answer_that_there_is_none(arrived),
            Some(Layout::Asked(_)) => {
                if let Err(arrived) = self.layouts.wait(&id, arrived) {
                    self.missed(id, &arrived);
                }
                return;
            }
            None => {}
        }
        if !is_small_enough(block.object.size) {
            self.missed(id, &arrived);
        } else if !self.layouts.may_ask(block.origin) {
            answer_that_there_is_none(arrived);
        } else if self.asking.len() >= MAX_ASKING {
            self.missed(id, &arrived);
        } else {
            let collector = match &arrived {
                Arrived::Fetched(_) => self.collector(&id),
                Arrived::Reported(_) => None,
            };
            self.ask(id, block.clone(), collector);
            self.layouts.ask(id, arrived);
        }
    }

    /// The worker that compares this object, if it is another one.
    fn collector(&self, id: &BlockKey) -> Option<WorkerInfo> {
        self.worker.verifier.peers.get()?.collector(id)
    }

    /// Asks the worker that compares the object, or the origin, for its checksum.
    fn ask(&mut self, id: BlockKey, block: Block, collector: Option<WorkerInfo>) {
        let worker = self.worker.clone();
        self.asking.spawn(async move {
            let said = match &collector {
                Some(collector) => ask_worker(&worker, collector, &block).await,
                None => ask_origin(&worker, &block).await,
            };
            Answer { id, block, said }
        });
    }

    async fn answered(&mut self, answer: Answer) {
        let Answer { id, block, said } = answer;
        let waited = self.layouts.answered(id, block.origin, &said);
        for arrived in waited {
            match &said {
                Said::Checksum(checksum) => self.look(id, arrived, checksum).await,
                Said::Nothing => answer_that_there_is_none(arrived),
                Said::NotNow => self.missed(id, &arrived),
            }
        }
    }

    async fn look(&mut self, id: BlockKey, arrived: Arrived, checksum: &Arc<ObjectChecksum>) {
        match arrived {
            Arrived::Fetched(fetched) => self.compute(id, fetched, checksum).await,
            Arrived::Reported(reported) => {
                let Reported {
                    first,
                    blocks,
                    answer,
                } = reported;
                // One who no longer waits has got a deadline.
                let _ = answer.send(Said::Checksum(checksum.clone()));
                for (index, sums) in blocks {
                    self.judge(id, &first, checksum, index, sums).await;
                }
            }
        }
    }

    /// Computes the checksum of a block, and judges or has another worker judge.
    async fn compute(&mut self, id: BlockKey, fetched: Fetched, checksum: &Arc<ObjectChecksum>) {
        let block = fetched.block.clone();
        let Some(sums) = self.sums(fetched, checksum).await else {
            return self.miss(id, &block);
        };
        if self.collector(&id).is_none() {
            self.judge(id, &block, checksum, block.index, sums).await;
        } else if self.outbox.add(id, &block, sums) {
            self.send();
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

    /// Sends what waits to the workers that compare.
    fn send(&mut self) {
        for (id, request) in self.outbox.take() {
            let blocks = request.blocks.len() as u64;
            let collector = self.collector(&id);
            let Some(collector) = collector.filter(|_| self.sending.len() < MAX_SENDING) else {
                self.worker.metrics().unverified_blocks.inc_by(blocks);
                continue;
            };
            let worker = self.worker.clone();
            self.sending.spawn(async move {
                let Some(peers) = worker.verifier.peers.get() else {
                    return;
                };
                if let Err(status) = peers.report(&collector, request).await {
                    tracing::debug!(worker = %collector.id, message = status.message(), "checksums were not taken");
                    worker.metrics().unverified_blocks.inc_by(blocks);
                }
            });
        }
    }

    fn missed(&mut self, id: BlockKey, arrived: &Arrived) {
        if let Arrived::Fetched(fetched) = arrived {
            self.miss(id, &fetched.block);
        }
    }

    /// The bytes of a block were given out and not looked at.
    fn miss(&mut self, id: BlockKey, block: &Block) {
        self.worker.metrics().unverified_blocks.inc();
        if self.table.missed(&id) {
            self.worker.verifier.doubt(block.origin, &block.object);
        }
    }

    async fn judge(
        &mut self,
        id: BlockKey,
        block: &Block,
        checksum: &Arc<ObjectChecksum>,
        index: u32,
        sums: Sums,
    ) {
        let size = block.object.size;
        let verdict = self.table.add(id, checksum, size, index, sums);
        let Verdict {
            drop,
            mismatches,
            complete,
            give_up,
            stale_pages,
        } = verdict;
        let worker = self.worker.clone();
        let metrics = worker.metrics();
        metrics.mismatches.inc_by(mismatches);
        if !drop.is_empty() {
            tracing::warn!(
                object = %block.object.key, blocks = drop.len(),
                "bytes do not have the origin's checksum; they are dropped and fetched again"
            );
            let dropped = worker.drop_wrong(block, &drop, give_up).await;
            self.finish_dropping(block, drop, dropped, give_up);
        }
        if stale_pages {
            worker.verifier.doubt(block.origin, &block.object);
        }
        if give_up {
            metrics.verified("given_up");
        }
        if complete {
            metrics.verified("right");
        }
    }

    /// Has the other workers drop blocks, too, and then, once they are nowhere to be read, mounts their pages once more.
    fn finish_dropping(
        &mut self,
        block: &Block,
        wrong: Vec<u32>,
        dropped: Vec<BlockKey>,
        refuse: bool,
    ) {
        let map = self.worker.verifier.peers.get().map(Peers::map);
        let alone = map.as_ref().is_none_or(|map| map.workers().len() <= 1);
        if alone && !dropped.iter().any(|key| self.worker.is_settling(key)) {
            return;
        }
        if self.dropping.len() >= MAX_DROPPING {
            tracing::error!(
                object = %block.object.key,
                "wrong bytes of an object may be held elsewhere and are not dropped, so many others are being dropped; evict it with `weir evict`"
            );
            return;
        }
        let (worker, block) = (self.worker.clone(), block.clone());
        self.dropping.spawn(async move {
            let requests = wrong
                .chunks(wire::MAX_BLOCKS)
                .map(|blocks| v1::DropBlocksRequest {
                    object: Some(wire::object_of(&block)),
                    blocks: blocks.to_vec(),
                    refuse,
                });
            let requests: Vec<_> = requests.collect();
            let tell_all = async {
                let Some((peers, map)) = worker.verifier.peers.get().zip(map) else {
                    return;
                };
                let others = futures::stream::iter(peers.others(&map));
                let tell = async |other| {
                    for request in &requests {
                        peers.drop_blocks(other, request).await;
                    }
                };
                others.for_each_concurrent(MAX_TELLING, tell).await;
            };
            tokio::join!(tell_all, worker.settled(&dropped));
            worker.verifier.doubt(block.origin, &block.object);
        });
    }
}

fn answer_that_there_is_none(arrived: Arrived) {
    if let Arrived::Reported(reported) = arrived {
        // One who no longer waits has got a deadline.
        let _ = reported.answer.send(Said::Nothing);
    }
}

async fn ask_origin(worker: &Worker, block: &Block) -> Said {
    let Some(Ok(open)) = worker.origins().get_or_learn(block.origin).await else {
        return Said::NotNow;
    };
    let metrics = worker.origin_metrics();
    match object_checksum(&open.origin, &block.object, metrics).await {
        Ok(Some(checksum)) => return Said::Checksum(Arc::new(checksum)),
        Ok(None) => {}
        // It is not worth asking again and again where that is not allowed.
        Err(error) if !error.is_retryable() => {
            tracing::debug!(%error, object = %block.object.key, "its checksum is not to be had");
        }
        Err(error) => {
            tracing::debug!(%error, object = %block.object.key, "its checksum could not be asked for");
            return Said::NotNow;
        }
    }
    worker.metrics().verified("no_checksum");
    Said::Nothing
}

async fn ask_worker(worker: &Worker, collector: &WorkerInfo, block: &Block) -> Said {
    let Some(peers) = worker.verifier.peers.get() else {
        return Said::NotNow;
    };
    let request = v1::ReportChecksumsRequest {
        object: Some(wire::object_of(block)),
        blocks: Vec::new(),
    };
    match peers.report(collector, request).await {
        Ok(reply) => wire::checksum(&reply, block.object.size)
            .map_or(Said::Nothing, |checksum| Said::Checksum(Arc::new(checksum))),
        // One from before checksums.
        Err(status) if status.code() == tonic::Code::Unimplemented => Said::Nothing,
        Err(status) => {
            tracing::debug!(worker = %collector.id, message = status.message(), "a checksum could not be asked for");
            Said::NotNow
        }
    }
}
