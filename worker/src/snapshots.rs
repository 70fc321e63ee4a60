//! Manifests that the worker needs for warming, evicting and its inventory, fetched from the master.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;
use weir_core::manifest::KeptManifests;
use weir_core::{DatasetName, Manifest, SnapshotId};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

/// Longest manifest that is taken from a master, in bytes.
const MAX_MANIFEST: usize = 8 << 30;
/// Jobs that ended so long ago are remembered of datasets that the master names alone.
const RECENT: Duration = Duration::from_mins(1);
/// Longest wait for the next piece of a manifest.
const CHUNK_DEADLINE: Duration = Duration::from_secs(30);

/// Why a manifest could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The master did not give it.
    #[error("snapshot {snapshot} cannot be had from the master: {message}")]
    Master {
        /// The snapshot.
        snapshot: String,
        /// What the master or the network said.
        message: String,
        /// The kind of failure.
        code: Code,
    },
    /// What came is not a whole manifest.
    #[error("snapshot {snapshot}: {error}; refresh the dataset with `weir dataset refresh`")]
    Damaged {
        /// The snapshot.
        snapshot: String,
        /// What is wrong with it.
        error: weir_core::manifest::DamagedManifest,
    },
}

impl SnapshotError {
    /// The master gave no answer for so long.
    pub fn late(snapshot: &impl ToString, deadline: Duration) -> Self {
        Self::Master {
            snapshot: snapshot.to_string(),
            message: format!("no answer within {deadline:?}"),
            code: Code::DeadlineExceeded,
        }
    }

    /// Whether the master did not answer, so that it may yet give the manifest.
    pub fn is_away(&self) -> bool {
        let away = [Code::Unavailable, Code::DeadlineExceeded];
        matches!(self, Self::Master { code, .. } if away.contains(code))
    }
}

/// Fetches a manifest from a master; `version` 0 is the newest.
pub fn fetch_manifest<'a>(
    master: &'a mut MasterClient<Channel>,
    dataset: &'a str,
    version: u64,
) -> BoxFuture<'a, Result<Manifest, SnapshotError>> {
    async move {
        let name = match version {
            0 => dataset.to_owned(),
            version => format!("{dataset}@{version}"),
        };
        let failed = |code: Code, message: String| SnapshotError::Master {
            snapshot: name.clone(),
            message,
            code,
        };
        let request = v1::GetManifestRequest {
            dataset: dataset.to_owned(),
            version,
        };
        let late = |_| SnapshotError::late(&name, CHUNK_DEADLINE);
        let mut chunks = tokio::time::timeout(CHUNK_DEADLINE, master.get_manifest(request))
            .await
            .map_err(late)?
            .map_err(|status| failed(status.code(), status.message().to_owned()))?
            .into_inner();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = tokio::time::timeout(CHUNK_DEADLINE, chunks.message())
            .await
            .map_err(late)?
            .map_err(|status| failed(status.code(), status.message().to_owned()))?
        {
            if bytes.len() + chunk.data.len() > MAX_MANIFEST {
                return Err(failed(
                    Code::OutOfRange,
                    format!("it is longer than {MAX_MANIFEST} bytes"),
                ));
            }
            bytes.extend_from_slice(&chunk.data);
        }
        // It takes a while to check a big one, and others use this thread.
        let checked = tokio::task::spawn_blocking(move || Manifest::from_bytes(bytes.freeze()));
        let checked = checked
            .await
            .map_err(|error| failed(Code::Aborted, error.to_string()))?;
        checked.map_err(|error| SnapshotError::Damaged {
            snapshot: name,
            error,
        })
    }
    .boxed()
}

/// The manifests that this worker used last, and the datasets that jobs work on.
#[derive(Debug)]
pub struct Snapshots {
    master: MasterClient<Channel>,
    kept: Mutex<KeptManifests>,
    jobs: Mutex<HashMap<DatasetName, JobsOfDataset>>,
}

/// Warm and evict jobs of one dataset.
#[derive(Clone, Copy, Debug, Default)]
struct JobsOfDataset {
    running: u32,
    ended: u64,
    last_ended: Option<Instant>,
}

/// A job that runs for as long as this lives.
#[derive(Debug)]
pub(crate) struct RunningJob {
    snapshots: Arc<Snapshots>,
    dataset: DatasetName,
}

impl Snapshots {
    /// An empty set that asks `master` for what it lacks.
    pub fn new(master: MasterClient<Channel>) -> Self {
        Self {
            master,
            kept: Mutex::default(),
            jobs: Mutex::default(),
        }
    }

    /// The master that it asks.
    pub(crate) fn master(&self) -> MasterClient<Channel> {
        self.master.clone()
    }

    /// The manifest of a snapshot.
    pub async fn get(&self, snapshot: &SnapshotId) -> Result<Arc<Manifest>, SnapshotError> {
        let manifest = self.get_unkept(snapshot).await?;
        self.keep(manifest.clone());
        Ok(manifest)
    }

    /// The same, for a caller who will not need it again soon.
    pub(crate) async fn get_unkept(
        &self,
        snapshot: &SnapshotId,
    ) -> Result<Arc<Manifest>, SnapshotError> {
        if let Some(kept) = self.kept.lock().get(snapshot) {
            return Ok(kept);
        }
        let mut master = self.master.clone();
        let fetched =
            fetch_manifest(&mut master, snapshot.dataset.as_str(), snapshot.version).await?;
        Ok(Arc::new(fetched))
    }

    /// Keeps a manifest for the next who needs it.
    pub(crate) fn keep(&self, manifest: Arc<Manifest>) {
        self.kept.lock().keep(manifest);
    }

    /// Notes that a job begins to change what is held of a dataset.
    pub(crate) fn begin_job(self: &Arc<Self>, dataset: &DatasetName) -> RunningJob {
        self.jobs.lock().entry(dataset.clone()).or_default().running += 1;
        RunningJob {
            snapshots: self.clone(),
            dataset: dataset.clone(),
        }
    }

    /// Whether a job runs on a dataset, and how many have ended.
    pub(crate) fn jobs(&self, dataset: &DatasetName) -> (bool, u64) {
        let jobs = self.jobs.lock().get(dataset).copied().unwrap_or_default();
        (jobs.running > 0, jobs.ended)
    }

    /// Forgets the jobs of all datasets but these, except for the latest: of a dataset that is new, a job may end before
    /// the master's next reply names it.
    pub(crate) fn retain_jobs(&self, wanted: impl Fn(&DatasetName) -> bool) {
        let is_recent =
            |jobs: &JobsOfDataset| jobs.last_ended.is_some_and(|at| at.elapsed() < RECENT);
        let mut jobs = self.jobs.lock();
        jobs.retain(|dataset, jobs| jobs.running > 0 || is_recent(jobs) || wanted(dataset));
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        if let Some(jobs) = self.snapshots.jobs.lock().get_mut(&self.dataset) {
            jobs.running -= 1;
            jobs.ended += 1;
            jobs.last_ended = Some(Instant::now());
        }
    }
}
