//! Warm and evict jobs: work that workers do and the master follows.
//!
//! A job is stored when it starts and when it ends; one that was running when the master ended is started again, which
//! costs little: blocks that are cached are not fetched twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use prost::Message;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use weir_core::DatasetName;
use weir_core::manifest::ROOT;
use weir_proto::v1;
use weir_proto::v1::worker_client::WorkerClient;

use crate::error::MasterError;
use crate::master::{Master, decode};
use crate::store::{Change, MetaStore};

const JOB_KEY: &str = "job/";
/// Jobs that may run at once; workers share their fill budget between them.
const MAX_RUNNING: usize = 64;
/// Ended jobs that are remembered.
const MAX_ENDED: usize = 256;
/// Most paths of one job.
const MAX_PATHS: usize = 10_000;
/// Longest wait for the first worker to appear.
const WORKER_DEADLINE: Duration = Duration::from_secs(15);
/// Longest wait for a connection, for the next report of a warming worker, and for an eviction.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const REPORT_DEADLINE: Duration = Duration::from_secs(30);
const EVICT_DEADLINE: Duration = Duration::from_mins(2);
/// Rounds in a row that may fail without any progress before the job does, and the wait between them.
const MAX_FAILED_ROUNDS: u32 = 6;
const ROUND_PAUSE: Duration = Duration::from_secs(2);

/// All jobs that are known.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    next_id: u64,
    jobs: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    job: v1::Job,
    stop: CancellationToken,
}

impl Jobs {
    pub(crate) fn load(store: &dyn MetaStore) -> Result<Self, MasterError> {
        let mut known = Known {
            next_id: 1,
            ..Known::default()
        };
        for (key, bytes) in store.scan(JOB_KEY)? {
            let job: v1::Job = decode(&key, &bytes)?;
            known.next_id = known.next_id.max(job.id + 1);
            let stop = CancellationToken::new();
            known.jobs.insert(job.id, Entry { job, stop });
        }
        Ok(Self {
            known: Mutex::new(known),
        })
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut v1::Job)) {
        if let Some(entry) = self.known.lock().jobs.get_mut(&id) {
            change(&mut entry.job);
        }
    }
}

impl Known {
    fn running(&self) -> impl Iterator<Item = &Entry> {
        self.jobs
            .values()
            .filter(|entry| entry.job.state() == v1::JobState::Running)
    }
}

fn key(id: u64) -> String {
    format!("{JOB_KEY}{id:020}")
}

impl Master {
    /// Starts a job, or gives the one that does the same already.
    pub(crate) async fn start_job(
        self: &Arc<Self>,
        request: v1::StartJobRequest,
    ) -> Result<v1::Job, MasterError> {
        let kind = request.kind();
        if kind == v1::JobKind::Unspecified {
            return Err(MasterError::Invalid(
                "this master does not know that kind of job".to_owned(),
            ));
        }
        if request.paths.len() > MAX_PATHS {
            return Err(MasterError::Invalid(format!(
                "a job has at most {MAX_PATHS} paths; name their directory"
            )));
        }
        let manifest = self.manifest(&request.dataset, None).await?;
        let version = manifest.summary().snapshot.version;
        let (total_files, total_bytes) = {
            let (manifest, paths) = (manifest.clone(), request.paths.clone());
            tokio::task::spawn_blocking(move || totals(&manifest, &paths)).await??
        };
        let (job, old) = {
            let mut known = self.jobs.known.lock();
            let same = |job: &v1::Job| {
                job.kind == request.kind
                    && job.dataset == request.dataset
                    && job.version == version
                    && job.paths == request.paths
            };
            if let Some(entry) = known.running().find(|entry| same(&entry.job)) {
                return Ok(entry.job.clone());
            }
            if known.running().count() >= MAX_RUNNING {
                return Err(MasterError::Busy(format!(
                    "{MAX_RUNNING} jobs are running; wait for one to end"
                )));
            }
            let job = v1::Job {
                id: known.next_id,
                kind: request.kind,
                state: v1::JobState::Running.into(),
                dataset: request.dataset,
                version,
                paths: request.paths,
                total_files,
                total_bytes,
                started_ns: SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(0, |since| {
                        i64::try_from(since.as_nanos()).unwrap_or_default()
                    }),
                ..Default::default()
            };
            known.next_id += 1;
            let stop = CancellationToken::new();
            known.jobs.insert(
                job.id,
                Entry {
                    job: job.clone(),
                    stop,
                },
            );
            let ended: Vec<u64> = known
                .jobs
                .iter()
                .filter(|(_, entry)| entry.job.state() != v1::JobState::Running)
                .map(|(id, _)| *id)
                .collect();
            let old = ended[..ended.len().saturating_sub(MAX_ENDED)].to_vec();
            for id in &old {
                known.jobs.remove(id);
            }
            (job, old)
        };
        let mut changes = vec![Change::Put(key(job.id), job.encode_to_vec())];
        changes.extend(old.into_iter().map(|id| Change::Delete(key(id))));
        self.write(changes).await?;
        self.spawn_job(job.id);
        Ok(job)
    }

    pub(crate) fn job(&self, id: u64) -> Result<v1::Job, MasterError> {
        let known = self.jobs.known.lock();
        let entry = known.jobs.get(&id);
        entry
            .map(|entry| entry.job.clone())
            .ok_or_else(|| MasterError::NotFound(format!("there is no job {id}")))
    }

    /// Stops a running job; what it did stays.
    pub(crate) fn cancel_job(&self, id: u64) -> Result<v1::Job, MasterError> {
        if let Some(entry) = self.jobs.known.lock().jobs.get_mut(&id)
            && entry.job.state() == v1::JobState::Running
        {
            entry.stop.cancel();
            entry.job.set_state(v1::JobState::Cancelled);
        }
        self.job(id)
    }

    pub(crate) fn cancel_jobs_of(&self, dataset: &DatasetName) {
        let ids: Vec<u64> = {
            let known = self.jobs.known.lock();
            known
                .running()
                .filter(|e| e.job.dataset == dataset.as_str())
                .map(|e| e.job.id)
                .collect()
        };
        for id in ids {
            // It was found a moment ago, and one that has ended since is as good.
            let _ = self.cancel_job(id);
        }
    }

    pub(crate) fn resume_jobs(self: &Arc<Self>) {
        let ids: Vec<u64> = self
            .jobs
            .known
            .lock()
            .running()
            .map(|entry| entry.job.id)
            .collect();
        for id in ids {
            tracing::info!(job = id, "going on with a job of before");
            self.spawn_job(id);
        }
    }

    /// Runs a job in the background. The task holds the master weakly: a master that is dropped ends it.
    fn spawn_job(self: &Arc<Self>, id: u64) {
        let master = Arc::downgrade(self);
        let Some(stop) = self
            .jobs
            .known
            .lock()
            .jobs
            .get(&id)
            .map(|entry| entry.stop.clone())
        else {
            return;
        };
        tokio::spawn(async move {
            let outcome = {
                let Some(master) = master.upgrade() else {
                    return;
                };
                tokio::select! {
                    outcome = master.run_job(id) => outcome,
                    () = stop.cancelled() => Ok(()),
                }
            };
            let Some(master) = master.upgrade() else {
                return;
            };
            master.jobs.update(id, |job| match outcome {
                _ if job.state() == v1::JobState::Cancelled => {}
                Ok(()) => job.set_state(v1::JobState::Done),
                Err(error) => {
                    tracing::warn!(job = id, "a job failed: {error}");
                    job.set_state(v1::JobState::Failed);
                    job.message = error.to_string();
                }
            });
            let Ok(job) = master.job(id) else { return };
            master.metrics.job_ended(&job);
            if let Err(error) = master
                .write(vec![Change::Put(key(id), job.encode_to_vec())])
                .await
            {
                tracing::error!(job = id, "the end of a job could not be stored: {error}");
            }
        });
    }

    async fn run_job(&self, id: u64) -> Result<(), MasterError> {
        let job = self.job(id)?;
        if job.kind() == v1::JobKind::Evict {
            let dataset = self.dataset(&job.dataset.parse()?)?;
            let evicted = self.evict_now(&dataset, &job.paths).await?;
            self.jobs.update(id, |job| {
                job.done_bytes = evicted;
                job.total_bytes = evicted;
                job.done_files = job.total_files;
            });
            return Ok(());
        }
        let mut failed = 0;
        let mut best = 0;
        loop {
            let error = match self.warm_round(&job).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // A worker left: the next round asks those that are there now.
            let done = self.job(id)?.done_bytes;
            failed = if done > best { 0 } else { failed + 1 };
            best = best.max(done);
            if failed >= MAX_FAILED_ROUNDS {
                return Err(error);
            }
            tracing::info!(
                job = id,
                "a worker did not finish, the job goes on: {error}"
            );
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// Lets all workers of the map warm what they own. Fails with the first that does not finish.
    async fn warm_round(&self, job: &v1::Job) -> Result<(), MasterError> {
        let map = self.map_with_workers().await?;
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
                };
                let reports = &reports;
                warm_on(worker, request, move |report| {
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

    fn show_progress(&self, id: u64, reports: &[v1::WarmProgress]) {
        let sum = |field: fn(&v1::WarmProgress) -> u64| reports.iter().map(field).sum();
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
    pub(crate) async fn evict_now(
        &self,
        dataset: &v1::Dataset,
        paths: &[String],
    ) -> Result<u64, MasterError> {
        let map = self.cluster_map().await?;
        let mut evicted = 0;
        for worker in &map.workers {
            let mut client = connect(worker).await?;
            for snapshot in &dataset.snapshots {
                let mut request = tonic::Request::new(v1::EvictRequest {
                    dataset: dataset.name.clone(),
                    version: snapshot.version,
                    paths: paths.to_vec(),
                });
                request.set_timeout(EVICT_DEADLINE);
                match client.evict(request).await {
                    Ok(reply) => evicted += reply.into_inner().evicted_bytes,
                    // An older snapshot need not have the path.
                    Err(status) if status.code() == tonic::Code::NotFound && !paths.is_empty() => {}
                    Err(status) => return Err(worker_failed(worker, status.message())),
                }
            }
        }
        Ok(evicted)
    }

    /// The cluster map as soon as it has a worker.
    async fn map_with_workers(&self) -> Result<v1::ClusterMap, MasterError> {
        let wait = async {
            loop {
                let map = self.cluster_map().await?;
                if !map.workers.is_empty() {
                    return Ok(map);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(WORKER_DEADLINE, wait).await.unwrap_or_else(|_| {
            Err(MasterError::Invalid(
                "the cluster has no worker; start one with `weir worker`".to_owned(),
            ))
        })
    }
}

/// Files and bytes below the paths.
fn totals(manifest: &weir_core::Manifest, paths: &[String]) -> Result<(u64, u64), MasterError> {
    let snapshot = &manifest.summary().snapshot;
    let resolve = |path: &String| {
        manifest.resolve(path).ok_or_else(|| {
            MasterError::NotFound(format!(
                "{snapshot} has no {path:?}; list the mount to see its paths"
            ))
        })
    };
    let tops: Vec<u32> = if paths.is_empty() {
        vec![ROOT]
    } else {
        paths.iter().map(resolve).collect::<Result<_, _>>()?
    };
    let files = tops.iter().flat_map(|top| manifest.files_below(*top));
    Ok(files.fold((0, 0), |(files, bytes), index| {
        (files + 1, bytes + manifest.entry(index).size)
    }))
}

fn worker_failed(worker: &v1::WorkerInfo, what: &str) -> MasterError {
    MasterError::Ended(format!(
        "worker {} at {}: {what}",
        worker.id, worker.control_address
    ))
}

async fn connect(worker: &v1::WorkerInfo) -> Result<WorkerClient<Channel>, MasterError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", worker.control_address))
        .map_err(|error| worker_failed(worker, &error.to_string()))?;
    let channel = endpoint.connect_timeout(CONNECT_DEADLINE).connect().await;
    Ok(WorkerClient::new(channel.map_err(|error| {
        worker_failed(worker, &error.to_string())
    })?))
}

async fn warm_on(
    worker: &v1::WorkerInfo,
    request: v1::WarmRequest,
    report: impl Fn(v1::WarmProgress),
) -> Result<(), MasterError> {
    let failed = |what: &str| worker_failed(worker, what);
    let mut client = connect(worker).await?;
    let late = |_| failed("it sends no reports");
    let mut reports = timeout(REPORT_DEADLINE, client.warm(request))
        .await
        .map_err(late)?
        .map_err(|status| failed(status.message()))?
        .into_inner();
    while let Some(progress) = timeout(REPORT_DEADLINE, reports.message())
        .await
        .map_err(late)?
        .map_err(|status| failed(status.message()))?
    {
        report(progress);
    }
    Ok(())
}
