//! The master itself: its parts, and how it starts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use prost::Message;
use weir_core::{DatasetName, SnapshotId};
use weir_origin::OriginMetrics;
use weir_proto::v1;

use crate::doubtful::DoubtfulObjects;
use crate::error::MasterError;
use crate::inventory::Inventories;
use crate::jobs::Jobs;
use crate::manifests::Manifests;
use crate::members::Members;
use crate::metrics::MasterMetrics;
use crate::store::{Change, MetaStore, RocksStore, StoreError};

pub(crate) const MAP_KEY: &str = "cluster-map";

/// How a master runs.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Its directory: the store and the manifests.
    pub dir: PathBuf,
    /// Snapshots that are kept of each dataset; the oldest goes first. The default is 64: a dataset that is
    /// refreshed daily keeps two months.
    pub max_snapshots: usize,
}

impl Default for MasterConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/weir/master"),
            max_snapshots: 64,
        }
    }
}

/// A running master.
#[derive(Debug)]
pub struct Master {
    pub(crate) config: MasterConfig,
    pub(crate) metrics: Arc<MasterMetrics>,
    pub(crate) origin_metrics: Arc<OriginMetrics>,
    pub(crate) store: Arc<dyn MetaStore>,
    pub(crate) manifests: Arc<Manifests>,
    pub(crate) datasets: Mutex<HashMap<DatasetName, v1::Dataset>>,
    /// Grows with each change of `datasets`, also from one master to the next.
    pub(crate) version: AtomicU64,
    /// One listing of a dataset at a time.
    pub(crate) listings: Mutex<HashMap<DatasetName, Arc<tokio::sync::Mutex<()>>>>,
    pub(crate) inventories: Inventories,
    pub(crate) jobs: Jobs,
    pub(crate) members: Mutex<Members>,
    pub(crate) doubtful: Mutex<DoubtfulObjects>,
    /// Maps are stored in the order of their epochs.
    pub(crate) map_writes: tokio::sync::Mutex<()>,
    /// The last map could not be stored.
    pub(crate) map_not_stored: AtomicBool,
}

impl Master {
    /// Opens the store in `config.dir` and goes on with the jobs that were running when the master before ended.
    pub async fn open(
        config: MasterConfig,
        metrics: Arc<MasterMetrics>,
        origin_metrics: Arc<OriginMetrics>,
    ) -> Result<Arc<Self>, MasterError> {
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

    /// As [`Self::open`], on any store.
    pub fn with_store(
        config: MasterConfig,
        store: Arc<dyn MetaStore>,
        metrics: Arc<MasterMetrics>,
        origin_metrics: Arc<OriginMetrics>,
    ) -> Result<Arc<Self>, MasterError> {
        let map = match store.get(MAP_KEY)? {
            None => v1::ClusterMap::default(),
            Some(bytes) => decode(MAP_KEY, &bytes)?,
        };
        metrics.epoch.set(map.epoch as i64);
        metrics.workers.set(map.workers.len() as i64);
        let datasets = crate::datasets::load(&*store, &metrics)?;
        let jobs = Jobs::load(&*store)?;
        let master = Arc::new(Self {
            manifests: Arc::new(Manifests::new(&config.dir)),
            config,
            metrics,
            origin_metrics,
            datasets: Mutex::new(datasets),
            version: AtomicU64::new(now_ns().unsigned_abs()),
            listings: Mutex::default(),
            inventories: Inventories::default(),
            jobs,
            doubtful: Mutex::default(),
            members: Mutex::new(Members::restored(map, Instant::now())),
            map_writes: tokio::sync::Mutex::default(),
            map_not_stored: AtomicBool::new(false),
            store,
        });
        master.resume_jobs();
        master.watch_members();
        Ok(master)
    }

    /// Workers, tiers and datasets, for people.
    pub(crate) fn status(&self) -> v1::Status {
        let (epoch, members) = {
            let members = self.members.lock();
            (members.map().epoch, members.published())
        };
        let now = Instant::now();
        let newest: Vec<(SnapshotId, v1::Snapshot)> = {
            let datasets = self.datasets.lock();
            let mut newest: Vec<_> = datasets
                .iter()
                .filter_map(|(name, dataset)| newest(name, dataset))
                .collect();
            newest.sort_by(|a, b| a.0.cmp(&b.0));
            newest
        };
        let mut reads: HashMap<&str, v1::DatasetReads> = HashMap::new();
        for of_worker in members.iter().flat_map(|member| &member.reads) {
            add(
                reads.entry(of_worker.dataset.as_str()).or_default(),
                of_worker,
            );
        }
        let mut datasets = Vec::with_capacity(newest.len());
        for (id, snapshot) in newest {
            let reads = v1::DatasetReads {
                dataset: id.dataset.to_string(),
                ..reads.remove(id.dataset.as_str()).unwrap_or_default()
            };
            datasets.push(v1::DatasetStatus {
                name: id.dataset.to_string(),
                version: id.version,
                files: snapshot.files,
                bytes: snapshot.bytes,
                cached_bytes: self
                    .inventories
                    .cached(&id, snapshot.blocks, snapshot.bytes),
                reads: Some(reads),
            });
        }
        let workers = members.iter().map(|member| v1::WorkerStatus {
            worker: Some(member.info.clone()),
            tiers: member.tiers.clone(),
            waiting_reads: member.waiting_reads,
            last_seen_ms: now.saturating_duration_since(member.last_seen).as_millis() as u64,
        });
        v1::Status {
            workers: workers.collect(),
            datasets,
            epoch,
        }
    }

    /// Writes records without holding up the runtime.
    pub(crate) async fn write(&self, changes: Vec<Change>) -> Result<(), MasterError> {
        let store = self.store.clone();
        Ok(tokio::task::spawn_blocking(move || store.write(&changes)).await??)
    }
}

/// The newest snapshot of a dataset.
pub(crate) fn newest(
    name: &DatasetName,
    dataset: &v1::Dataset,
) -> Option<(SnapshotId, v1::Snapshot)> {
    let newest = dataset.snapshots.last()?;
    let id = SnapshotId {
        dataset: name.clone(),
        version: newest.version,
    };
    Some((id, newest.clone()))
}

/// Workers may report any number.
fn add(sum: &mut v1::DatasetReads, reads: &v1::DatasetReads) {
    for (sum, more) in [
        (&mut sum.memory_bytes, reads.memory_bytes),
        (&mut sum.ssd_bytes, reads.ssd_bytes),
        (&mut sum.origin_bytes, reads.origin_bytes),
        (&mut sum.hits, reads.hits),
        (&mut sum.misses, reads.misses),
    ] {
        *sum = sum.saturating_add(more);
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        })
}

/// Reads a record.
pub(crate) fn decode<T: Message + Default>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    T::decode(bytes).map_err(|error| StoreError::Damaged {
        key: key.to_owned(),
        reason: error.to_string(),
    })
}
