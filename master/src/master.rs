//! The master itself: its parts, and how it starts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prost::Message;
use weir_core::{DatasetName, SnapshotId, WorkerId};
use weir_origin::OriginMetrics;
use weir_proto::v1;

use crate::error::MasterError;
use crate::inventory::{Cached, Inventories, bytes_of};
use crate::jobs::Jobs;
use crate::manifests::Manifests;
use crate::members::{Changed, Member, Members};
use crate::metrics::MasterMetrics;
use crate::store::{Change, MetaStore, RocksStore, StoreError};

const MAP_KEY: &str = "cluster-map";

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
    /// One listing of a dataset at a time.
    pub(crate) listings: Mutex<HashMap<DatasetName, Arc<tokio::sync::Mutex<()>>>>,
    pub(crate) inventories: Inventories,
    pub(crate) jobs: Jobs,
    members: Mutex<Members>,
    /// Maps are stored in the order of their epochs.
    map_writes: tokio::sync::Mutex<()>,
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
        let datasets = crate::datasets::load(&*store, &metrics)?;
        let jobs = Jobs::load(&*store)?;
        let master = Arc::new(Self {
            manifests: Arc::new(Manifests::new(&config.dir)),
            config,
            metrics,
            origin_metrics,
            datasets: Mutex::new(datasets),
            listings: Mutex::default(),
            inventories: Inventories::default(),
            jobs,
            members: Mutex::new(Members::restored(map, Instant::now())),
            map_writes: tokio::sync::Mutex::default(),
            store,
        });
        master.resume_jobs();
        Ok(master)
    }

    /// The cluster map of this moment.
    pub async fn cluster_map(&self) -> Result<v1::ClusterMap, MasterError> {
        let changed = self.members.lock().expire(Instant::now());
        self.settle(changed).await?;
        Ok(self.members.lock().map())
    }

    /// Takes in a heartbeat and tells the worker what it must know.
    pub(crate) async fn heartbeat(
        &self,
        beat: v1::HeartbeatRequest,
    ) -> Result<v1::HeartbeatReply, MasterError> {
        self.metrics.heartbeats.inc();
        let info = beat
            .worker
            .ok_or_else(|| MasterError::Invalid("a heartbeat without its worker".to_owned()))?;
        let id: WorkerId = info.id.parse()?;
        let _: weir_core::NodeName = info.node.parse()?;
        let member = Member {
            info,
            tiers: beat.tiers,
            reads: beat.reads,
            last_seen: Instant::now(),
        };
        let changed = self.members.lock().heard(&id, member, beat.leaving)?;
        self.settle(changed).await?;
        let (origins, newest) = self.origins_and_snapshots();
        self.inventories.retain(&newest);
        for inventory in beat.inventories {
            self.inventories.report(&id, inventory)?;
        }
        let snapshots = newest.into_iter().map(|snapshot| v1::SnapshotName {
            dataset: snapshot.dataset.into(),
            version: snapshot.version,
        });
        Ok(v1::HeartbeatReply {
            map: Some(self.members.lock().map()),
            origins,
            snapshots: snapshots.collect(),
        })
    }

    /// Makes a change of the members durable before anybody hears of it.
    async fn settle(&self, changed: Changed) -> Result<(), MasterError> {
        for worker in &changed.gone {
            tracing::warn!(%worker, "a worker left the cluster map");
            self.inventories.forget_worker(worker);
        }
        if changed.map.is_none() {
            return Ok(());
        }
        let _in_order = self.map_writes.lock().await;
        let map = self.members.lock().map();
        self.metrics.epoch.set(map.epoch as i64);
        self.metrics.workers.set(map.workers.len() as i64);
        self.write(vec![Change::Put(MAP_KEY.to_owned(), map.encode_to_vec())])
            .await
    }

    /// Workers, tiers and datasets, for people.
    pub(crate) async fn status(&self) -> Result<v1::Status, MasterError> {
        let epoch = self.cluster_map().await?.epoch;
        let members: Vec<Member> = self.members.lock().all().cloned().collect();
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
        let mut datasets = Vec::with_capacity(newest.len());
        for (id, snapshot) in newest {
            let reads = members.iter().flat_map(|member| &member.reads);
            let reads = reads.filter(|reads| reads.dataset == id.dataset.as_str());
            datasets.push(v1::DatasetStatus {
                name: id.dataset.to_string(),
                version: id.version,
                files: snapshot.files,
                bytes: snapshot.bytes,
                cached_bytes: self.cached_bytes(&id).await?,
                reads: Some(sum(id.dataset.as_str(), reads)),
            });
        }
        let workers = members.into_iter().map(|member| v1::WorkerStatus {
            worker: Some(member.info),
            tiers: member.tiers,
            last_seen_ms: now.saturating_duration_since(member.last_seen).as_millis() as u64,
        });
        Ok(v1::Status {
            workers: workers.collect(),
            datasets,
            epoch,
        })
    }

    async fn cached_bytes(&self, snapshot: &SnapshotId) -> Result<u64, MasterError> {
        let blocks = match self.inventories.cached(snapshot) {
            Cached::Bytes(bytes) => return Ok(bytes),
            Cached::Blocks(blocks) => blocks,
        };
        let (manifests, snapshot) = (self.manifests.clone(), snapshot.clone());
        tokio::task::spawn_blocking(move || Ok(bytes_of(&blocks, &*manifests.load(&snapshot)?)))
            .await?
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

fn sum<'a>(dataset: &str, reads: impl Iterator<Item = &'a v1::DatasetReads>) -> v1::DatasetReads {
    let none = v1::DatasetReads {
        dataset: dataset.to_owned(),
        ..Default::default()
    };
    reads.fold(none, |sum, reads| v1::DatasetReads {
        dataset: sum.dataset,
        memory_bytes: sum.memory_bytes + reads.memory_bytes,
        ssd_bytes: sum.ssd_bytes + reads.ssd_bytes,
        origin_bytes: sum.origin_bytes + reads.origin_bytes,
        hits: sum.hits + reads.hits,
        misses: sum.misses + reads.misses,
    })
}

/// Reads a record.
pub(crate) fn decode<T: Message + Default>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    T::decode(bytes).map_err(|error| StoreError::Damaged {
        key: key.to_owned(),
        reason: error.to_string(),
    })
}
