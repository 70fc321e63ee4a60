//! The work of jobs: what the master asks of the workers, and how it follows them.
//!
//! Each wait has an end: a worker that is silent, or that reports without getting anywhere, does not keep a job for ever.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tonic::Status;
use tonic::transport::Channel;
use weir_core::placement::places::{Place, narrowed};
use weir_proto::v1;
use weir_proto::v1::worker_client::WorkerClient;
use weir_trust::{Dial, Role};

use crate::datasets::Datasets;
use crate::error::MasterError;
use crate::jobs::Jobs;
use crate::members::Members;
use crate::placements::{of_message, to_message};

mod drain;

/// Longest wait for the first worker to appear.
const WORKER_DEADLINE: Duration = Duration::from_secs(15);
/// Longest wait for a connection, for the next report of a warming worker, for one that tells of progress, and for an
/// eviction.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const REPORT_DEADLINE: Duration = Duration::from_secs(30);
const PROGRESS_DEADLINE: Duration = Duration::from_mins(30);
const EVICT_DEADLINE: Duration = Duration::from_mins(2);
/// Rounds in a row that may fail without any progress before the job does, and the wait between them.
const MAX_FAILED_ROUNDS: u32 = 6;
const ROUND_PAUSE: Duration = Duration::from_secs(2);
/// What is said of a worker that does not report.
const SILENT: &str = "it sends no reports";

/// The rounds of a job, of which any number may fail as long as it gets anywhere.
#[derive(Debug, Default)]
struct Rounds {
    /// Rounds in a row that failed and got nowhere.
    failed: u32,
    /// The most bytes that were done.
    best: u64,
}

impl Rounds {
    /// Counts a round that failed with so many bytes done. Gives whether there may be another.
    fn failed_at(&mut self, done: u64) -> bool {
        self.failed = if done > self.best { 0 } else { self.failed + 1 };
        self.best = self.best.max(done);
        self.failed < MAX_FAILED_ROUNDS
    }
}

/// What the work of jobs needs of a master.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) datasets: Arc<Datasets>,
    pub(crate) members: Arc<Members>,
    pub(crate) jobs: Arc<Jobs>,
    /// How workers are called.
    pub(crate) dial: Dial,
}

impl Work {
    /// Begins a job's work in the background.
    pub(crate) fn begin(&self, id: u64) {
        let work = self.clone();
        self.jobs.spawn(id, async move { work.run(id).await });
    }

    /// Does a job's work.
    async fn run(&self, id: u64) -> Result<(), MasterError> {
        let job = self.jobs.get(id)?;
        if job.kind() == v1::JobKind::Drain {
            return self.drain(&job).await;
        }
        if job.kind() == v1::JobKind::Evict {
            let dataset = self.datasets.get(&job.dataset.parse()?)?;
            let evicted = self.evict(&dataset, &job.paths).await?;
            self.jobs.update(id, |job| {
                job.done_bytes = evicted;
                job.total_bytes = evicted;
                job.done_files = job.total_files;
            });
            return Ok(());
        }
        let mut rounds = Rounds::default();
        // When a worker left, the next round asks those that are there now.
        while let Err(error) = self.warm_round(&job).await {
            self.may_go_on(id, &mut rounds, error).await?;
        }
        Ok(())
    }

    /// Waits until a job's next round may begin, after one that failed.
    ///
    /// # Errors
    /// The error of that round, if too many in a row have failed.
    async fn may_go_on(
        &self,
        id: u64,
        rounds: &mut Rounds,
        error: MasterError,
    ) -> Result<(), MasterError> {
        if !rounds.failed_at(self.jobs.get(id)?.done_bytes) {
            return Err(error);
        }
        tracing::info!(job = id, "a round failed, the job goes on: {error}");
        tokio::time::sleep(ROUND_PAUSE).await;
        Ok(())
    }

    /// Lets all workers of the map warm what they own. Fails with the first that does not finish.
    async fn warm_round(&self, job: &v1::Job) -> Result<(), MasterError> {
        let map = self.map_with_workers().await?;
        let placement = self.placement_of(&job.dataset, &job.places, job.copies)?;
        let reports = Mutex::new(vec![v1::WarmProgress::default(); map.workers.len()]);
        let mut workers: FuturesUnordered<_> = map
            .workers
            .iter()
            .enumerate()
            .map(|(number, worker)| {
                let request = v1::WarmRequest {
                    dataset: job.dataset.clone(),
                    version: job.version,
                    paths: job.paths.clone(),
                    map: Some(map.clone()),
                    placement: placement.clone(),
                };
                let reports = &reports;
                warm_on(&self.dial, worker, request, move |report| {
                    let mut reports = reports.lock();
                    reports[number] = report;
                    self.show_progress(job.id, &reports);
                })
            })
            .collect();
        while let Some(outcome) = workers.next().await {
            outcome?;
        }
        Ok(())
    }

    /// The domains of a dataset that are to warm their copies: those in some places, or all, and of them as many as `copies` says,
    /// or all if that is 0.
    ///
    /// # Errors
    /// When what is named is not there, or does not hold the dataset.
    pub(crate) fn placement_of(
        &self,
        dataset: &str,
        places: &[String],
        copies: u32,
    ) -> Result<Option<v1::Placement>, MasterError> {
        let placement = self.datasets.placement(dataset);
        if places.is_empty() && copies == 0 {
            return Ok(placement);
        }
        let invalid = |error: String| MasterError::Invalid(error);
        let places = places.iter().map(|place| place.parse::<Place>());
        let places: Vec<Place> = places.collect::<Result<_, _>>().map_err(invalid)?;
        let placement = placement.as_ref().map(of_message).unwrap_or_default();
        let copies = (copies > 0).then_some(copies as usize);
        let cluster = self.members.cluster().borrow().clone();
        let narrowed = narrowed(&placement, &cluster, &places, copies);
        let narrowed = narrowed.map_err(|error| invalid(error.to_string()))?;
        Ok(Some(to_message(narrowed)))
    }

    fn show_progress(&self, id: u64, reports: &[v1::WarmProgress]) {
        let sum = |field: fn(&v1::WarmProgress) -> u64| {
            let reports = reports.iter().map(field);
            reports.fold(0, u64::saturating_add)
        };
        self.jobs.update(id, |job| {
            job.done_bytes = sum(|r| r.done_bytes);
            job.done_files = sum(|r| r.done_files);
            job.fetched_bytes = job.fetched_bytes.max(sum(|r| r.fetched_bytes));
            job.failed_files = sum(|r| r.failed_files);
            let first = reports
                .iter()
                .map(|r| &r.message)
                .find(|message| !message.is_empty());
            job.message = first.cloned().unwrap_or_default();
        });
    }

    /// Drops the blocks of a dataset, or of some of its paths, from all workers; gives the bytes that were held.
    pub(crate) async fn evict(
        &self,
        dataset: &v1::Dataset,
        paths: &[String],
    ) -> Result<u64, MasterError> {
        let map = self.members.map();
        let workers = map.workers.iter();
        let mut workers: FuturesUnordered<_> = workers
            .map(|worker| evict_on(&self.dial, worker, dataset, paths))
            .collect();
        let mut evicted: u64 = 0;
        let mut failed = None;
        while let Some(outcome) = workers.next().await {
            match outcome {
                Ok(bytes) => evicted = evicted.saturating_add(bytes),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(evicted), Err)
    }

    /// The cluster map as soon as it has a worker.
    async fn map_with_workers(&self) -> Result<v1::ClusterMap, MasterError> {
        let mut cluster = self.members.cluster();
        let some = cluster.wait_for(|map| !map.workers().is_empty());
        let is_there = matches!(timeout(WORKER_DEADLINE, some).await, Ok(Ok(_)));
        let map = self.members.map();
        if is_there && !map.workers.is_empty() {
            return Ok(map);
        }
        Err(MasterError::Invalid(
            "the cluster has no worker; start one with `weir worker`".to_owned(),
        ))
    }
}

fn worker_failed(worker: &v1::WorkerInfo, what: &str) -> MasterError {
    MasterError::Ended(format!(
        "worker {} at {}: {what}",
        worker.id, worker.control_address
    ))
}

fn client(dial: &Dial, worker: &v1::WorkerInfo) -> Result<WorkerClient<Channel>, MasterError> {
    let channel = dial.channel(&worker.control_address, Role::Worker, CONNECT_DEADLINE);
    let channel = channel.map_err(|error| worker_failed(worker, &error.to_string()))?;
    Ok(WorkerClient::new(channel))
}

/// Drops the blocks of all snapshots of a dataset from one worker.
async fn evict_on(
    dial: &Dial,
    worker: &v1::WorkerInfo,
    dataset: &v1::Dataset,
    paths: &[String],
) -> Result<u64, MasterError> {
    let work = async {
        let mut client = client(dial, worker)?;
        let mut evicted: u64 = 0;
        for snapshot in &dataset.snapshots {
            let request = v1::EvictRequest {
                dataset: dataset.name.clone(),
                version: snapshot.version,
                paths: paths.to_vec(),
            };
            match client.evict(request).await {
                Ok(reply) => evicted = evicted.saturating_add(reply.into_inner().evicted_bytes),
                // An older snapshot need not have the path.
                Err(status) if status.code() == tonic::Code::NotFound && !paths.is_empty() => {}
                Err(status) => return Err(worker_failed(worker, status.message())),
            }
        }
        Ok(evicted)
    };
    let late = |_| {
        Err(worker_failed(
            worker,
            &format!("it did not evict within {EVICT_DEADLINE:?}"),
        ))
    };
    timeout(EVICT_DEADLINE, work).await.unwrap_or_else(late)
}

async fn warm_on(
    dial: &Dial,
    worker: &v1::WorkerInfo,
    request: v1::WarmRequest,
    report: impl Fn(v1::WarmProgress),
) -> Result<(), MasterError> {
    let mut client = client(dial, worker)?;
    let reports = timeout(REPORT_DEADLINE, client.warm(request))
        .await
        .map_err(|_| worker_failed(worker, SILENT))?
        .map_err(|status| worker_failed(worker, status.message()))?;
    follow(worker, reports.into_inner(), report).await
}

/// Takes in a worker's reports to their end, as long as they come and tell of progress.
async fn follow<P: Default + Clone + PartialEq>(
    worker: &v1::WorkerInfo,
    reports: impl Stream<Item = Result<P, Status>>,
    report: impl Fn(P),
) -> Result<(), MasterError> {
    let failed = |what: &str| worker_failed(worker, what);
    let mut reports = std::pin::pin!(reports);
    let mut last = P::default();
    let mut since = Instant::now();
    while let Some(progress) = timeout(REPORT_DEADLINE, reports.next())
        .await
        .map_err(|_| failed(SILENT))?
    {
        let progress = progress.map_err(|status| failed(status.message()))?;
        if progress != last {
            since = Instant::now();
            last.clone_from(&progress);
        } else if since.elapsed() > PROGRESS_DEADLINE {
            return Err(failed(&format!(
                "it has got nowhere for {PROGRESS_DEADLINE:?}"
            )));
        }
        report(progress);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    /// Follows a worker that tells of its bytes at so many seconds each. Gives what was said of it, and the time it took.
    async fn followed(
        reports: impl IntoIterator<Item = (u64, u64)>,
    ) -> (Result<(), String>, Duration) {
        let reports = stream::iter(reports).then(|(seconds, done_bytes)| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(v1::WarmProgress {
                done_bytes,
                ..Default::default()
            })
        });
        let started = Instant::now();
        let worker = v1::WorkerInfo::default();
        let outcome = follow(&worker, reports, |_| {}).await;
        (
            outcome.map_err(|error| error.to_string()),
            started.elapsed(),
        )
    }

    #[test]
    fn a_job_ends_after_so_many_rounds_in_a_row_that_got_nowhere() {
        let mut rounds = Rounds::default();
        for done in 1..100 {
            assert!(rounds.failed_at(done));
        }
        // What was done may also be lost again.
        let more = [50, 99, 60, 99, 70].map(|done| rounds.failed_at(done));
        assert_eq!(more, [true; 5]);
        assert!(!rounds.failed_at(99));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_reports_without_getting_anywhere_is_given_up_after_half_an_hour() {
        let stuck = std::iter::repeat((20, 7));
        let (outcome, took) = followed(stuck).await;
        let message = outcome.unwrap_err();
        assert!(message.contains("nowhere"), "{message}");
        assert!(took > PROGRESS_DEADLINE, "{took:?}");
        assert!(
            took <= PROGRESS_DEADLINE + Duration::from_mins(1),
            "{took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_worker_has_all_the_time_and_a_silent_one_half_a_minute() {
        // A block in 25 minutes, for two days.
        let slow = (0..7200).map(|number| (25, 1 + number / 60));
        let (outcome, took) = followed(slow).await;
        assert_eq!(outcome, Ok(()));
        assert_eq!(took, Duration::from_hours(50));
        let (outcome, took) = followed([(1, 1), (3600, 2)]).await;
        assert!(outcome.unwrap_err().contains(SILENT));
        assert_eq!(took, REPORT_DEADLINE + Duration::from_secs(1));
    }
}
