//! The master as its callers see it: its parts, and what takes more than one of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_core::id::split_name;
use weir_core::{DatasetName, LogLimit, Manifest, SnapshotId, WorkerId};
use weir_origin::OriginMetrics;
use weir_proto::v1;
use weir_trust::{Dial, Refusals};

use crate::conditions::Conditions;
use crate::config::{CredentialsForMounts, MasterConfig};
use crate::credentials::Credentials;
use crate::datasets::Datasets;
use crate::doubtful::DoubtfulObjects;
use crate::error::MasterError;
use crate::jobs::{self, Jobs};
use crate::located::{Located, copies};
use crate::members::{Member, Members};
use crate::metrics::MasterMetrics;
use crate::mounted::Mounted;
use crate::placements::of_message;
use crate::pods::Pods;
use crate::records::Records;
use crate::store::{MetaStore, RocksStore, StoreError};
use crate::work::Work;

/// Longest wait for workers to evict the blocks of a dataset that is deleted.
const EVICT_DEADLINE: Duration = Duration::from_secs(5);

/// A running master.
#[derive(Debug)]
pub struct Master {
    pub(crate) metrics: Arc<MasterMetrics>,
    pub(crate) datasets: Arc<Datasets>,
    pub(crate) members: Arc<Members>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) credentials: Arc<Credentials>,
    /// Whether mounts are given any.
    pub(crate) credentials_for_mounts: CredentialsForMounts,
    pub(crate) doubtful: Mutex<DoubtfulObjects>,
    pub(crate) located: Arc<Located>,
    /// Of which jobs pods are.
    pub(crate) pods: Pods,
    /// Why datasets cannot be mounted.
    pub(crate) conditions: Conditions,
    /// Where datasets are mounted.
    pub(crate) mounted: Mounted,
    /// How workers are called.
    dial: Dial,
    /// How callers are known.
    callers: &'static str,
    /// Claims of workers that were denied, and sources that may not be read.
    pub(crate) refusals: Refusals,
    /// Datasets that were deleted and not evicted, in the log.
    not_evicted: LogLimit,
}

impl Master {
    /// Opens the store in `config.dir` and goes on with the jobs that were running when the master before ended.
    pub fn open(
        config: MasterConfig,
        metrics: Arc<MasterMetrics>,
        origin_metrics: Arc<OriginMetrics>,
    ) -> BoxFuture<'static, Result<Arc<Self>, MasterError>> {
        async move {
            let dir = config.dir.clone();
            let store: Arc<dyn MetaStore> = tokio::task::spawn_blocking(move || {
                let open = |error: std::io::Error| StoreError::Open {
                    dir: dir.display().to_string(),
                    reason: error.to_string(),
                };
                std::fs::create_dir_all(&dir).map_err(open)?;
                Ok::<_, StoreError>(Arc::new(RocksStore::open(&dir.join("store"))?))
            })
            .await??;
            Self::with_store(config, store, metrics, origin_metrics)
        }
        .boxed()
    }

    /// As [`Self::open`], on any store.
    pub fn with_store(
        config: MasterConfig,
        store: Arc<dyn MetaStore>,
        metrics: Arc<MasterMetrics>,
        origin_metrics: Arc<OriginMetrics>,
    ) -> Result<Arc<Self>, MasterError> {
        let records = Records::new(store);
        let credentials = Credentials::load(
            records.clone(),
            config.credentials_key.clone(),
            config.forget_credentials,
        )?;
        let credentials = Arc::new(credentials);
        let members = Members::load(records.clone(), metrics.clone())?;
        let datasets = Datasets::load(
            records.clone(),
            &config,
            credentials.clone(),
            members.cluster(),
            metrics.clone(),
            origin_metrics,
        )?;
        let jobs = Jobs::load(records, metrics.clone())?;
        let master = Arc::new(Self {
            metrics,
            datasets: Arc::new(datasets),
            credentials,
            credentials_for_mounts: config.credentials_for_mounts,
            members: Arc::new(members),
            jobs: Arc::new(jobs),
            doubtful: Mutex::default(),
            located: Arc::default(),
            pods: Pods::default(),
            conditions: Conditions::default(),
            mounted: Mounted::new(),
            dial: config.dial,
            callers: config.callers,
            refusals: Refusals::default(),
            not_evicted: LogLimit::default(),
        });
        for id in master.jobs.running() {
            tracing::info!(job = id, "going on with a job of before");
            master.work().begin(id);
        }
        master.watch_members();
        master.place_datasets();
        master.datasets.keep_fresh();
        Ok(master)
    }

    fn work(&self) -> Work {
        Work {
            datasets: self.datasets.clone(),
            members: self.members.clone(),
            jobs: self.jobs.clone(),
            dial: self.dial.clone(),
        }
    }

    /// The version of the cluster map, and the map itself, as it is stored, unless that is the version that is known.
    pub(crate) fn map_unless(&self, known: u64) -> (u64, Option<v1::ClusterMap>) {
        self.members.map_unless(known)
    }

    /// Makes a dataset and lists it into its first snapshot. One that exists with the same mounts is returned as it
    /// is, with the options of the new request. With `gone` cancelled, sources that do not answer are not waited for any more.
    pub fn create_dataset(
        &self,
        request: v1::CreateDatasetRequest,
        gone: CancellationToken,
    ) -> BoxFuture<'_, Result<v1::Dataset, MasterError>> {
        async move { self.datasets.create(request, gone).await }.boxed()
    }

    /// Makes a dataset be as its specification says, or judges whether that can be.
    pub(crate) async fn apply_dataset(
        &self,
        request: v1::ApplyDatasetRequest,
        gone: CancellationToken,
    ) -> Result<v1::ApplyDatasetReply, MasterError> {
        self.datasets.apply(request, gone).await
    }

    /// Lists the origins again. Gives the dataset and whether a new snapshot was made. `gone` as for
    /// [`Self::create_dataset`].
    pub fn refresh_dataset<'a>(
        &'a self,
        name: &'a str,
        gone: CancellationToken,
    ) -> BoxFuture<'a, Result<(v1::Dataset, bool), MasterError>> {
        async move { self.datasets.refresh(name, gone).await }.boxed()
    }

    /// The manifest of a snapshot; the newest one without a version.
    pub fn manifest<'a>(
        &'a self,
        name: &'a str,
        version: Option<u64>,
    ) -> BoxFuture<'a, Result<Arc<Manifest>, MasterError>> {
        async move { self.datasets.manifest(name, version).await }.boxed()
    }

    /// Forgets a dataset. Its blocks are evicted as far as workers can be reached; what stays is evicted as idle.
    pub(crate) async fn delete_dataset(&self, name: &str) -> Result<(), MasterError> {
        let name: DatasetName = name.parse()?;
        let listing = self.datasets.listing(&name, CancellationToken::new());
        let listing = listing.await?;
        let dataset = self.datasets.get(&name)?;
        self.jobs.cancel_all_of(&name);
        let evicted = tokio::time::timeout(EVICT_DEADLINE, self.work().evict(&dataset, &[])).await;
        let failed = match evicted {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!(
                "some workers did not answer within {EVICT_DEADLINE:?}"
            )),
        };
        if let Some(failed) = failed
            && let Some(left_out) = self.not_evicted.line()
        {
            tracing::warn!(dataset = %name, left_out, "not all blocks of the deleted dataset were evicted: {failed}");
        }
        self.datasets.remove(&listing).await?;
        self.members.inventories().forget_dataset(&name);
        self.conditions.forget(name.as_str());
        Ok(())
    }

    /// Where the newest snapshot of a dataset is cached, or what it has at a path.
    pub(crate) async fn locate_dataset(
        &self,
        name: &str,
        path: &str,
    ) -> Result<v1::LocateDatasetReply, MasterError> {
        self.located
            .locate(&self.datasets, &self.members, name, path)
            .await
    }

    /// Starts a job, or gives the one that does the same already.
    pub(crate) async fn start_job(
        &self,
        mut request: v1::StartJobRequest,
    ) -> Result<v1::Job, MasterError> {
        jobs::check(&request)?;
        let name: DatasetName = request.dataset.parse()?;
        request.dataset = name.to_string();
        self.work()
            .placement_of(&request.dataset, &request.places, request.copies)?;
        let manifest = self.manifest(&request.dataset, None).await?;
        let version = manifest.summary().snapshot.version;
        let paths = request.paths.clone();
        let totals = tokio::task::spawn_blocking(move || jobs::totals(&manifest, &paths)).await??;
        let (job, is_new) = self.jobs.start(request, version, totals).await?;
        if is_new {
            self.work().begin(job.id);
        }
        Ok(job)
    }

    /// Cordons a worker, or not any more.
    pub(crate) async fn cordon_worker(
        &self,
        request: v1::CordonWorkerRequest,
    ) -> Result<v1::WorkerStatus, MasterError> {
        let id: WorkerId = request.worker.parse()?;
        if request.uncordon {
            if let Some(drain) = self.jobs.drain_of(id.as_str()) {
                self.jobs.cancel(drain.id).await?;
            }
            self.members.set_standing(&id, None).await?;
        } else if self.members.standing(&id).is_none() {
            let cordoned = Some(v1::WorkerState::Cordoned);
            self.members.set_standing(&id, cordoned).await?;
        }
        Ok(match self.members.published_as(&id) {
            Some(member) => self.worker_status(&member, Instant::now()),
            None => away(&id, self.members.standing(&id).unwrap_or_default()),
        })
    }

    /// Starts the drain of a worker, or gives the one that is under way.
    pub(crate) async fn drain_worker(
        &self,
        mut request: v1::DrainWorkerRequest,
    ) -> Result<v1::Job, MasterError> {
        let id: WorkerId = request.worker.parse()?;
        request.worker = id.to_string();
        if let Some(drain) = self.jobs.drain_of(&request.worker) {
            return Ok(drain);
        }
        self.members.may_drain(&id)?;
        let before = self.members.standing(&id);
        let cordoned = Some(v1::WorkerState::Cordoned);
        self.members.set_standing(&id, cordoned).await?;
        let held = self.members.inventories().bytes_of(&id);
        let started = self.jobs.start_drain(request, held).await;
        if started.is_err() && before != cordoned && self.jobs.drain_of(id.as_str()).is_none() {
            // As if it had not been asked for.
            let undone = self.members.set_standing(&id, before).await;
            if let Err(error) = undone {
                tracing::warn!(worker = %id, "it stays cordoned, though its drain was refused: {error}");
            }
        }
        let (job, is_new) = started?;
        if is_new {
            self.work().begin(job.id);
        }
        Ok(job)
    }

    fn worker_status(&self, member: &Member, now: Instant) -> v1::WorkerStatus {
        let id = member.info.id.parse::<WorkerId>().ok();
        let standing = id.and_then(|id| self.members.standing(&id));
        let drain = self.jobs.drain_of(&member.info.id);
        let state = match (standing, &drain) {
            (Some(_), Some(_)) => v1::WorkerState::Draining,
            (standing, _) => standing.unwrap_or_default(),
        };
        v1::WorkerStatus {
            worker: Some(member.info.clone()),
            tiers: member.tiers.clone(),
            waiting_reads: member.waiting_reads,
            callers: member.callers.clone(),
            last_seen_ms: now.saturating_duration_since(member.last_seen).as_millis() as u64,
            state: state.into(),
            drain_job: drain.as_ref().map_or(0, |job| job.id),
            drained_bytes: drain.as_ref().map_or(0, |job| job.done_bytes),
            drain_total_bytes: drain.as_ref().map_or(0, |job| job.total_bytes),
            away: false,
        }
    }

    /// Workers, tiers and the datasets of a namespace, or of all when it is empty, for people. Counts what is cached, which takes a
    /// while.
    pub(crate) fn status(&self, namespace: &str) -> v1::Status {
        let (epoch, members) = self.members.published();
        let now = Instant::now();
        let mut reads: HashMap<&str, v1::DatasetReads> = HashMap::new();
        for of_worker in members.iter().flat_map(|member| &member.reads) {
            add(
                reads.entry(of_worker.dataset.as_str()).or_default(),
                of_worker,
            );
        }
        let mut datasets = Vec::new();
        let cluster = self.members.cluster().borrow().clone();
        let inventories = self.members.inventories();
        let newest = self.datasets.newest();
        let is_of = |id: &SnapshotId| namespace.is_empty() || id.dataset.namespace() == namespace;
        let mut reasons = self.datasets.reasons(namespace);
        for (id, snapshot) in newest.into_iter().filter(|(id, _)| is_of(id)) {
            let reads = v1::DatasetReads {
                dataset: id.dataset.to_string(),
                ..reads.remove(id.dataset.as_str()).unwrap_or_default()
            };
            let reports = inventories.of(&id);
            let size = (snapshot.blocks, snapshot.bytes);
            let placement = self.datasets.placement(id.dataset.as_str());
            let copies = placement.as_ref().map_or_else(Vec::new, |placement| {
                copies(&of_message(placement), size, &cluster, &reports)
            });
            let reason = reasons.remove(id.dataset.as_str());
            datasets.push(v1::DatasetStatus {
                name: id.dataset.to_string(),
                version: id.version,
                files: snapshot.files,
                bytes: snapshot.bytes,
                cached_bytes: reports.cached(snapshot.blocks, snapshot.bytes),
                reads: Some(reads),
                copies,
                placement,
                placement_reason: reason.unwrap_or_default(),
            });
        }
        let workers = members.iter().map(|member| self.worker_status(member, now));
        let away = self.members.away().into_iter();
        let mut jobs = self.jobs.under_way();
        // A drain is of no namespace.
        let is_of =
            |job: &v1::Job| job.worker.is_empty() && split_name(&job.dataset).0 == namespace;
        jobs.retain(|job| namespace.is_empty() || is_of(job));
        v1::Status {
            workers: workers.collect(),
            away: away.map(|(id, state)| self::away(&id, state)).collect(),
            datasets,
            jobs,
            epoch,
            callers: self.callers.to_owned(),
        }
    }
}

/// The status of a worker that is no member.
fn away(id: &WorkerId, state: v1::WorkerState) -> v1::WorkerStatus {
    v1::WorkerStatus {
        worker: Some(v1::WorkerInfo {
            id: id.to_string(),
            ..v1::WorkerInfo::default()
        }),
        state: state.into(),
        away: true,
        ..v1::WorkerStatus::default()
    }
}

/// Workers may report any number.
fn add(sum: &mut v1::DatasetReads, reads: &v1::DatasetReads) {
    for (sum, more) in [
        (&mut sum.memory_bytes, reads.memory_bytes),
        (&mut sum.ssd_bytes, reads.ssd_bytes),
        (&mut sum.origin_bytes, reads.origin_bytes),
        (&mut sum.worker_bytes, reads.worker_bytes),
        (&mut sum.hits, reads.hits),
        (&mut sum.misses, reads.misses),
    ] {
        *sum = sum.saturating_add(more);
    }
}
