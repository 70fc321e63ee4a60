//! Warm and evict jobs: work that workers do and the master follows.
//!
//! A job is stored when it starts and when it ends; one that was running when the master ended is started again, which
//! costs little: blocks that are cached are not fetched twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use tokio_util::sync::CancellationToken;
use weir_core::DatasetName;
use weir_core::manifest::ROOT;
use weir_proto::v1;

use crate::error::MasterError;
use crate::master::{Master, decode, now_ns};
use crate::store::{Change, MetaStore};

const JOB_KEY: &str = "job/";
/// Jobs that may run at once; workers share their fill budget between them.
const MAX_RUNNING: usize = 64;
/// Ended jobs that are remembered.
const MAX_ENDED: usize = 256;
/// Most paths of one job, and most bytes of its request: each is kept in memory.
const MAX_PATHS: usize = 10_000;
const MAX_REQUEST: usize = 1 << 20;

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

    pub(crate) fn update(&self, id: u64, change: impl FnOnce(&mut v1::Job)) {
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
        if request.encoded_len() > MAX_REQUEST {
            return Err(MasterError::Invalid(format!(
                "the paths of a job take at most {MAX_REQUEST} bytes; name their directory"
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
                started_ns: now_ns(),
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
        if let Err(error) = self.write(changes).await {
            // Another caller may have been told of it.
            self.jobs.update(job.id, |job| fail(job, &error));
            return Err(error);
        }
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
    pub(crate) async fn cancel_job(&self, id: u64) -> Result<v1::Job, MasterError> {
        if self.stop_job(id) {
            let job = self.job(id)?;
            self.write(vec![Change::Put(key(id), job.encode_to_vec())])
                .await?;
        }
        self.job(id)
    }

    /// Whether it was running.
    fn stop_job(&self, id: u64) -> bool {
        let mut known = self.jobs.known.lock();
        let entry = known.jobs.get_mut(&id);
        let Some(entry) = entry.filter(|entry| entry.job.state() == v1::JobState::Running) else {
            return false;
        };
        entry.job.set_state(v1::JobState::Cancelled);
        entry.stop.cancel();
        true
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
            self.stop_job(id);
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

    /// Runs a job in the background. However its task ends, the job ends too.
    fn spawn_job(self: &Arc<Self>, id: u64) {
        let stop = {
            let known = self.jobs.known.lock();
            let Some(entry) = known.jobs.get(&id) else {
                return;
            };
            entry.stop.clone()
        };
        let master = self.clone();
        let mut work = tokio::spawn(async move { master.run_job(id).await });
        let master = Arc::downgrade(self);
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = &mut work => outcome.unwrap_or_else(|died| Err(died.into())),
                () = stop.cancelled() => {
                    work.abort();
                    Ok(())
                }
            };
            let Some(master) = master.upgrade() else {
                return;
            };
            master.jobs.update(id, |job| match &outcome {
                _ if job.state() == v1::JobState::Cancelled => {}
                Ok(()) => job.set_state(v1::JobState::Done),
                Err(error) => fail(job, error),
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
}

fn fail(job: &mut v1::Job, error: &MasterError) {
    tracing::warn!(job = job.id, "a job failed: {error}");
    job.set_state(v1::JobState::Failed);
    job.message = error.to_string();
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
