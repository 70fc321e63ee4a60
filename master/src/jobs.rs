//! Warm and evict jobs: work that workers do and the master follows.
//!
//! A job is stored when it starts and when it ends; one that was running when the master ended is started again, which
//! costs little: blocks that are cached are not fetched twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use tokio_util::sync::CancellationToken;
use weir_core::manifest::ROOT;
use weir_core::{DatasetName, LogLimit, Manifest};
use weir_proto::v1;

use crate::error::MasterError;
use crate::metrics::MasterMetrics;
use crate::records::{Records, decode, now_ns};
use crate::store::Change;

const JOB_KEY: &str = "job/";
/// Jobs that may run at once; workers share their fill budget between them.
const MAX_RUNNING: usize = 64;
/// Ended jobs that are remembered.
const MAX_ENDED: usize = 256;
/// Most paths of one job, and most bytes of its request: each is kept in memory.
const MAX_PATHS: usize = 10_000;
const MAX_REQUEST: usize = 1 << 20;

/// All jobs that are known.
#[derive(Debug)]
pub(crate) struct Jobs {
    records: Records,
    metrics: Arc<MasterMetrics>,
    known: Mutex<Known>,
    /// Jobs that failed, in the log.
    failures: LogLimit,
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
    pub(crate) fn load(records: Records, metrics: Arc<MasterMetrics>) -> Result<Self, MasterError> {
        let mut known = Known {
            next_id: 1,
            ..Known::default()
        };
        for (key, bytes) in records.store().scan(JOB_KEY)? {
            let job: v1::Job = decode(&key, &bytes)?;
            known.next_id = known.next_id.max(job.id + 1);
            let stop = CancellationToken::new();
            known.jobs.insert(job.id, Entry { job, stop });
        }
        Ok(Self {
            records,
            metrics,
            known: Mutex::new(known),
            failures: LogLimit::default(),
        })
    }

    pub(crate) fn update(&self, id: u64, change: impl FnOnce(&mut v1::Job)) {
        if let Some(entry) = self.known.lock().jobs.get_mut(&id) {
            change(&mut entry.job);
        }
    }
}

fn key(id: u64) -> String {
    format!("{JOB_KEY}{id:020}")
}

impl Known {
    fn running(&self) -> impl Iterator<Item = &Entry> {
        self.jobs
            .values()
            .filter(|entry| entry.job.state() == v1::JobState::Running)
    }
}

/// A request for a job, as far as it can be judged by itself.
pub(crate) fn check(request: &v1::StartJobRequest) -> Result<(), MasterError> {
    if !matches!(request.kind(), v1::JobKind::Warm | v1::JobKind::Evict) {
        return Err(MasterError::Invalid(
            "this master does not know that kind of job".to_owned(),
        ));
    }
    let is_narrowed = !request.places.is_empty() || request.copies > 0;
    if is_narrowed && request.kind() != v1::JobKind::Warm {
        return Err(MasterError::Invalid(
            "only a warm job is for some places or copies".to_owned(),
        ));
    }
    if request.paths.len() > MAX_PATHS {
        return Err(MasterError::Invalid(format!(
            "a job has at most {MAX_PATHS} paths; name their directory"
        )));
    }
    if request.encoded_len() > MAX_REQUEST {
        return Err(MasterError::Invalid(format!(
            "the paths and places of a job take at most {MAX_REQUEST} bytes; name directories"
        )));
    }
    Ok(())
}

impl Jobs {
    /// A new job for a snapshot of so many files and bytes, or the one that does the same already. Gives whether it is new:
    /// then it must be run.
    pub(crate) async fn start(
        &self,
        request: v1::StartJobRequest,
        version: u64,
        (total_files, total_bytes): (u64, u64),
    ) -> Result<(v1::Job, bool), MasterError> {
        self.add(v1::Job {
            kind: request.kind,
            dataset: request.dataset,
            version,
            paths: request.paths,
            places: request.places,
            copies: request.copies,
            total_files,
            total_bytes,
            ..v1::Job::default()
        })
        .await
    }

    /// A new drain of a worker that holds so many bytes, or the one that is under way; as [`Self::start`].
    pub(crate) async fn start_drain(
        &self,
        request: v1::DrainWorkerRequest,
        total_bytes: u64,
    ) -> Result<(v1::Job, bool), MasterError> {
        self.add(v1::Job {
            kind: v1::JobKind::Drain.into(),
            worker: request.worker,
            bytes_per_second: request.bytes_per_second,
            total_bytes,
            ..v1::Job::default()
        })
        .await
    }

    /// The drain of a worker that is under way.
    pub(crate) fn drain_of(&self, worker: &str) -> Option<v1::Job> {
        let known = self.known.lock();
        let mut running = known.running().map(|entry| &entry.job);
        let drain = |job: &&v1::Job| job.kind() == v1::JobKind::Drain && job.worker == worker;
        running.find(drain).cloned()
    }

    /// Adds a job, unless one does the same already.
    async fn add(&self, new: v1::Job) -> Result<(v1::Job, bool), MasterError> {
        let (job, old) = {
            let mut known = self.known.lock();
            let same = |job: &v1::Job| {
                job.kind == new.kind
                    && job.dataset == new.dataset
                    && job.version == new.version
                    && job.paths == new.paths
                    && job.places == new.places
                    && job.copies == new.copies
                    && job.worker == new.worker
            };
            if let Some(entry) = known.running().find(|entry| same(&entry.job)) {
                return Ok((entry.job.clone(), false));
            }
            if known.running().count() >= MAX_RUNNING {
                return Err(MasterError::Busy(format!(
                    "{MAX_RUNNING} jobs are running; wait for one to end"
                )));
            }
            let job = v1::Job {
                id: known.next_id,
                state: v1::JobState::Running.into(),
                started_ns: now_ns(),
                ..new
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
        if let Err(error) = self.records.write(changes).await {
            // Another caller may have been told of it.
            self.update(job.id, |job| self.fail(job, &error));
            return Err(error);
        }
        Ok((job, true))
    }

    pub(crate) fn get(&self, id: u64) -> Result<v1::Job, MasterError> {
        let known = self.known.lock();
        let entry = known.jobs.get(&id);
        entry
            .map(|entry| entry.job.clone())
            .ok_or_else(|| MasterError::NotFound(format!("there is no job {id}")))
    }

    /// Stops a running job; what it did stays.
    pub(crate) async fn cancel(&self, id: u64) -> Result<v1::Job, MasterError> {
        if self.stop(id) {
            self.save(&self.get(id)?).await?;
        }
        self.get(id)
    }

    async fn save(&self, job: &v1::Job) -> Result<(), MasterError> {
        let change = Change::Put(key(job.id), job.encode_to_vec());
        self.records.write(vec![change]).await
    }

    /// Whether it was running.
    fn stop(&self, id: u64) -> bool {
        let mut known = self.known.lock();
        let entry = known.jobs.get_mut(&id);
        let Some(entry) = entry.filter(|entry| entry.job.state() == v1::JobState::Running) else {
            return false;
        };
        entry.job.set_state(v1::JobState::Cancelled);
        entry.stop.cancel();
        true
    }

    pub(crate) fn cancel_all_of(&self, dataset: &DatasetName) {
        let ids: Vec<u64> = {
            let known = self.known.lock();
            known
                .running()
                .filter(|e| e.job.dataset == dataset.as_str())
                .map(|e| e.job.id)
                .collect()
        };
        for id in ids {
            self.stop(id);
        }
    }

    /// The jobs that run.
    pub(crate) fn running(&self) -> Vec<u64> {
        let known = self.known.lock();
        known.running().map(|entry| entry.job.id).collect()
    }

    /// The jobs that run, and how far they are, the oldest first. Without their paths, which may be many.
    pub(crate) fn under_way(&self) -> Vec<v1::Job> {
        let known = self.known.lock();
        let job = |job: &v1::Job| v1::Job {
            dataset: job.dataset.clone(),
            worker: job.worker.clone(),
            message: job.message.clone(),
            paths: Vec::new(),
            places: job.places.clone(),
            ..*job
        };
        let mut jobs: Vec<v1::Job> = known.running().map(|entry| job(&entry.job)).collect();
        jobs.sort_by_key(|job| job.id);
        jobs
    }

    /// Does a job's work in the background. However its task ends, the job ends too.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        id: u64,
        work: impl Future<Output = Result<(), MasterError>> + Send + 'static,
    ) {
        let stop = {
            let known = self.known.lock();
            let Some(entry) = known.jobs.get(&id) else {
                return;
            };
            entry.stop.clone()
        };
        let mut work = tokio::spawn(work);
        let jobs = Arc::downgrade(self);
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = &mut work => outcome.unwrap_or_else(|died| Err(died.into())),
                () = stop.cancelled() => {
                    work.abort();
                    Ok(())
                }
            };
            if let Some(jobs) = jobs.upgrade() {
                jobs.end(id, outcome).await;
            }
        });
    }

    async fn end(&self, id: u64, outcome: Result<(), MasterError>) {
        self.update(id, |job| match &outcome {
            _ if job.state() == v1::JobState::Cancelled => {}
            Ok(()) => job.set_state(v1::JobState::Done),
            Err(error) => self.fail(job, error),
        });
        let Ok(job) = self.get(id) else { return };
        self.metrics.job_ended(&job);
        if let Err(error) = self.save(&job).await {
            tracing::error!(job = id, "the end of a job could not be stored: {error}");
        }
    }

    fn fail(&self, job: &mut v1::Job, error: &MasterError) {
        if let Some(left_out) = self.failures.line() {
            tracing::warn!(job = job.id, left_out, "a job failed: {error}");
        }
        job.set_state(v1::JobState::Failed);
        job.message = error.to_string();
    }
}

/// Files and bytes below the paths.
pub(crate) fn totals(manifest: &Manifest, paths: &[String]) -> Result<(u64, u64), MasterError> {
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
    let totals = files.fold((0, 0), |(files, bytes), index| {
        (files + 1, bytes + manifest.entry(index).size)
    });
    manifest.release();
    Ok(totals)
}
