//! Drains: the new owners of a cordoned worker's blocks take them over, one dataset after the other.
//!
//! A drain asks nothing of the origin, and ends: the worker that is drained may leave, those that take over may fill up.
//! Datasets of which the worker has nothing, by its last report, are passed over.
//! The worker stays cordoned however its drain ends.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::transport::Channel;
use weir_core::WorkerId;
use weir_core::placement::domains::Owners;
use weir_core::placement::room::Domains;
use weir_proto::v1;
use weir_proto::v1::worker_client::WorkerClient;
use weir_trust::Dial;

use super::{REPORT_DEADLINE, Rounds, SILENT, Work, client, follow, worker_failed};
use crate::error::MasterError;
use crate::placements::{self, of_message};

/// Bytes that all workers together take over in a second, if the drain does not say. Those that may own blocks of a dataset share it.
const DEFAULT_RATE: u64 = 128 << 20;
/// Why a round of a drain ended early.
enum Ended {
    /// Another round may go on.
    Once(MasterError),
    /// No other would.
    ForGood(MasterError),
}

impl From<MasterError> for Ended {
    fn from(error: MasterError) -> Self {
        Self::Once(error)
    }
}

/// How far the workers are.
#[derive(Default)]
struct Sums {
    /// Of datasets that are done.
    done: v1::TakeOverProgress,
    /// Of each worker, for the dataset that it works on.
    under_way: Vec<v1::TakeOverProgress>,
}

impl Sums {
    fn total(&self) -> v1::TakeOverProgress {
        let mut total = self.done.clone();
        for part in &self.under_way {
            add(&mut total, part);
        }
        total
    }
}

/// Workers may report any number.
fn add(sum: &mut v1::TakeOverProgress, part: &v1::TakeOverProgress) {
    for (sum, part) in [
        (&mut sum.done_bytes, part.done_bytes),
        (&mut sum.failed_blocks, part.failed_blocks),
        (&mut sum.unkept_blocks, part.unkept_blocks),
    ] {
        *sum = sum.saturating_add(part);
    }
    if sum.message.is_empty() {
        sum.message.clone_from(&part.message);
    }
}

impl Work {
    /// Has a worker's blocks taken over.
    pub(super) async fn drain(&self, job: &v1::Job) -> Result<(), MasterError> {
        let from: WorkerId = job.worker.parse()?;
        let mut rounds = Rounds::default();
        loop {
            let round = tokio::select! {
                round = self.drain_round(job, &from) => round,
                () = self.left(&from) => Err(Ended::ForGood(self.left_early(job))),
            };
            match round {
                Ok(()) => break,
                Err(Ended::ForGood(error)) => return Err(error),
                Err(Ended::Once(error)) => self.may_go_on(job.id, &mut rounds, error).await?,
            }
        }
        // It held others, too, that were others' already.
        self.jobs
            .update(job.id, |job| job.total_bytes = job.done_bytes);
        let members = self.members.clone();
        // A drain that is cancelled now must not leave half of this.
        let saying = tokio::spawn(async move {
            let drained = Some(v1::WorkerState::Drained);
            members.set_standing(&from, drained).await
        });
        saying.await?
    }

    /// Waits until a worker is not in the map.
    async fn left(&self, id: &WorkerId) {
        let mut cluster = self.members.cluster();
        let has_left = cluster.wait_for(|map| map.worker(id).is_none());
        if has_left.await.is_err() {
            std::future::pending::<()>().await; // the master ends
        }
    }

    fn left_early(&self, job: &v1::Job) -> MasterError {
        let done = self.jobs.get(job.id).map_or(0, |job| job.done_bytes);
        MasterError::Unready(format!(
            "worker {} left before the others had its blocks: {done} of about {} bytes; what they lack comes from the origin",
            job.worker, job.total_bytes
        ))
    }

    /// Lets all workers take over what is theirs of each dataset.
    async fn drain_round(&self, job: &v1::Job, from: &WorkerId) -> Result<(), Ended> {
        let map = self.members.map();
        let Some(drained) = map.workers.iter().find(|w| w.id == from.as_str()) else {
            return Err(Ended::ForGood(self.left_early(job)));
        };
        if drained.cordoned_weight == 0 {
            // Its cordon is stored, and its map not yet.
            return Err(Ended::Once(MasterError::Unready(format!(
                "worker {from} is not cordoned in the cluster map"
            ))));
        }
        let others = map.workers.iter().filter(|worker| worker.weight > 0);
        let others = others.map(|worker| Other::new(&self.dial, worker));
        let others = others.collect::<Result<Vec<_>, MasterError>>()?;
        if others.is_empty() {
            return Err(Ended::ForGood(MasterError::Unready(format!(
                "no worker is left that could take over the blocks of {from}; start one, and drain it again"
            ))));
        }
        let rate = match job.bytes_per_second {
            0 => DEFAULT_RATE,
            rate => rate,
        };
        let cluster = placements::cluster(&map);
        let sums = Mutex::new(Sums::default());
        let newest = self.datasets.newest();
        let inventories = self.members.inventories();
        let mut domains = Domains::default();
        for (snapshot, _) in newest {
            if inventories.has_none(&snapshot, from) {
                continue;
            }
            // By the cordon: where it was before, nobody else may take its blocks over.
            let again = self.datasets.place_again(&snapshot.dataset, &mut domains);
            again.await?;
            let placement = self.datasets.placement(snapshot.dataset.as_str());
            let by = placement.as_ref().map(of_message).unwrap_or_default();
            let owners = Owners::new(cluster.clone(), &by);
            // Others would have nothing to do, and their part of the rate would be lost.
            let may_own = |other: &&Other<'_>| owners.may_own(&other.id);
            let takers: Vec<_> = others.iter().filter(may_own).collect();
            let rate = (rate / takers.len().max(1) as u64).max(1);
            sums.lock().under_way = vec![v1::TakeOverProgress::default(); takers.len()];
            let taking = takers.iter().enumerate().map(|(number, taker)| {
                let request = v1::TakeOverRequest {
                    dataset: snapshot.dataset.to_string(),
                    version: snapshot.version,
                    map: Some(map.clone()),
                    from: from.to_string(),
                    bytes_per_second: rate,
                    placement: placement.clone(),
                };
                let sums = &sums;
                taker.take_over(request, move |progress| {
                    let mut sums = sums.lock();
                    sums.under_way[number] = progress;
                    self.show(job.id, &sums.total());
                })
            });
            let mut taking: FuturesUnordered<_> = taking.collect();
            while let Some(outcome) = taking.next().await {
                outcome?;
            }
            drop(taking);
            let mut sums = sums.lock();
            sums.done = sums.total();
            sums.under_way.clear();
        }
        let sums = sums.into_inner().done;
        if sums.unkept_blocks > 0 {
            return Err(Ended::ForGood(MasterError::Unready(format!(
                "the other workers had no room for {} blocks of {from}; give them more, or start another, and drain it again; until then it serves them",
                sums.unkept_blocks
            ))));
        }
        if sums.failed_blocks > 0 {
            return Err(Ended::Once(MasterError::Unready(format!(
                "{} blocks of worker {from} were not taken over; the first: {}",
                sums.failed_blocks, sums.message
            ))));
        }
        Ok(())
    }

    fn show(&self, id: u64, sums: &v1::TakeOverProgress) {
        self.jobs.update(id, |job| {
            job.done_bytes = sums.done_bytes;
            // Blocks that it got while it was drained, as a fallback, are not in what it had told.
            job.total_bytes = job.total_bytes.max(sums.done_bytes);
            job.message.clone_from(&sums.message);
        });
    }
}

/// A worker that may take blocks over.
struct Other<'a> {
    worker: &'a v1::WorkerInfo,
    id: WorkerId,
    /// One connection for all datasets.
    client: WorkerClient<Channel>,
}

impl<'a> Other<'a> {
    fn new(dial: &Dial, worker: &'a v1::WorkerInfo) -> Result<Self, MasterError> {
        Ok(Self {
            worker,
            id: worker.id.parse()?,
            client: client(dial, worker)?,
        })
    }

    async fn take_over(
        &self,
        request: v1::TakeOverRequest,
        report: impl Fn(v1::TakeOverProgress),
    ) -> Result<(), Ended> {
        let worker = self.worker;
        let mut client = self.client.clone();
        let reports = timeout(REPORT_DEADLINE, client.take_over(request))
            .await
            .map_err(|_| worker_failed(worker, SILENT))?
            .map_err(|status| match status.code() {
                tonic::Code::Unimplemented => Ended::ForGood(MasterError::Unready(format!(
                    "worker {} is of an older version, which takes no blocks over; upgrade it first",
                    worker.id
                ))),
                _ => Ended::Once(worker_failed(worker, status.message())),
            })?;
        Ok(follow(worker, reports.into_inner(), report).await?)
    }
}
