//! Datasets and their snapshots.
//!
//! A snapshot never changes, and its number is never used again, also not after its dataset was deleted: workers and
//! clients keep manifests under it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message;
use weir_core::{DatasetName, Manifest, SnapshotId};
use weir_proto::v1;

use crate::error::MasterError;
use crate::listing::{Found, places};
use crate::manifests::Manifests;
use crate::master::{Master, decode, newest, now_ns};
use crate::metrics::{DatasetLabel, MasterMetrics};
use crate::store::{Change, MetaStore};
use crate::versions::VERSION_KEY;

const DATASET_KEY: &str = "dataset/";
/// Most datasets of one master, and mounts of one dataset.
const MAX_DATASETS: usize = 10_000;
const MAX_MOUNTS: usize = 1_000;
/// Longest request for a dataset, in bytes: each is kept in memory.
const MAX_REQUEST: usize = 1 << 20;
/// Longest wait for workers to evict the blocks of a dataset that is deleted.
const EVICT_DEADLINE: Duration = Duration::from_secs(5);

/// The datasets in the store.
pub(crate) fn load(
    store: &dyn MetaStore,
    metrics: &MasterMetrics,
) -> Result<HashMap<DatasetName, v1::Dataset>, MasterError> {
    let mut datasets = HashMap::new();
    for (key, bytes) in store.scan(DATASET_KEY)? {
        let dataset: v1::Dataset = decode(&key, &bytes)?;
        if let Some(newest) = dataset.snapshots.last() {
            metrics.show_snapshot(&dataset.name, newest);
        }
        datasets.insert(dataset.name.parse()?, dataset);
    }
    metrics.datasets.set(datasets.len() as i64);
    Ok(datasets)
}

impl Master {
    /// Makes a dataset and lists it into its first snapshot. One that exists with the same mounts is returned as it
    /// is, with the options of the new request.
    pub async fn create_dataset(
        &self,
        request: v1::CreateDatasetRequest,
    ) -> Result<v1::Dataset, MasterError> {
        let name: DatasetName = request.name.parse()?;
        if request.mounts.is_empty() || request.mounts.len() > MAX_MOUNTS {
            return Err(MasterError::Invalid(format!(
                "a dataset has 1 to {MAX_MOUNTS} mounts"
            )));
        }
        if request.encoded_len() > MAX_REQUEST {
            return Err(MasterError::Invalid(format!(
                "a dataset's mounts take at most {MAX_REQUEST} bytes"
            )));
        }
        let _one_at_a_time = self.listing(&name).await;
        let known = self.datasets.lock().get(&name).cloned();
        if let Some(mut dataset) = known {
            if places(&dataset.mounts)? != places(&request.mounts)? {
                return Err(MasterError::Conflict(format!(
                    "dataset {name} exists with other mounts; choose another name, or delete it with `weir dataset delete {name}`"
                )));
            }
            if dataset.mounts != request.mounts {
                dataset.mounts = request.mounts;
                self.save_dataset(&name, &dataset, None).await?;
            }
            return Ok(dataset);
        }
        if self.datasets.lock().len() >= MAX_DATASETS {
            return Err(MasterError::Busy(format!(
                "there are {MAX_DATASETS} datasets, no more fit"
            )));
        }
        let dataset = v1::Dataset {
            name: name.to_string(),
            mounts: request.mounts,
            snapshots: Vec::new(),
            created_ns: now_ns(),
        };
        let version = self.last_version(&name).await? + 1;
        let found = self
            .list(
                &dataset.mounts,
                SnapshotId {
                    dataset: name.clone(),
                    version,
                },
                None,
            )
            .await?;
        let summary = found.manifest.summary();
        if summary.files == 0
            && let Some(prefix) = summary.mounts.iter().find(|mount| !mount.prefix.is_empty())
        {
            let url = dataset
                .mounts
                .iter()
                .filter_map(|m| m.origin.as_ref())
                .map(|o| o.url.as_str())
                .next();
            return Err(MasterError::NotFound(format!(
                "{}: there are no objects whose key starts with {:?}; check the prefix",
                url.unwrap_or_default(),
                prefix.prefix
            )));
        }
        self.add_snapshot(&name, dataset, found).await
    }

    /// Lists the origins again. Gives the dataset and whether a new snapshot was made.
    pub async fn refresh_dataset(&self, name: &str) -> Result<(v1::Dataset, bool), MasterError> {
        let name: DatasetName = name.parse()?;
        let _one_at_a_time = self.listing(&name).await;
        let dataset = self.dataset(&name)?;
        let version = self.last_version(&name).await? + 1;
        let previous = match newest(&name, &dataset) {
            None => None,
            // One that cannot be read any more is replaced.
            Some((id, _)) => self.load_manifest(id).await.ok(),
        };
        let snapshot = SnapshotId {
            dataset: name.clone(),
            version,
        };
        let found = self
            .list(&dataset.mounts, snapshot, previous.clone())
            .await?;
        let digest = &found.manifest.summary().digest;
        if previous.is_some_and(|previous| previous.summary().digest == *digest) {
            // The same files, but what is beside them may be other than it was.
            let mut dataset = self.dataset(&name)?;
            if let Some(newest) = dataset.snapshots.last_mut() {
                let before = newest.clone();
                found.note_hindrances(newest);
                if *newest != before {
                    self.metrics.show_snapshot(name.as_str(), newest);
                    self.save_dataset(&name, &dataset, None).await?;
                }
            }
            return Ok((dataset, false));
        }
        Ok((self.add_snapshot(&name, dataset, found).await?, true))
    }

    /// A dataset by name.
    pub(crate) fn dataset(&self, name: &DatasetName) -> Result<v1::Dataset, MasterError> {
        self.datasets.lock().get(name).cloned().ok_or_else(|| {
            MasterError::NotFound(format!(
                "there is no dataset {name}; `weir dataset list` shows all"
            ))
        })
    }

    /// All datasets, by name.
    pub(crate) fn all_datasets(&self) -> Vec<v1::Dataset> {
        let mut datasets: Vec<v1::Dataset> = self.datasets.lock().values().cloned().collect();
        datasets.sort_by(|a, b| a.name.cmp(&b.name));
        datasets
    }

    /// Forgets a dataset. Its blocks are evicted as far as workers can be reached; what stays is evicted as idle.
    pub(crate) async fn delete_dataset(self: &Arc<Self>, name: &str) -> Result<(), MasterError> {
        let name: DatasetName = name.parse()?;
        let _one_at_a_time = self.listing(&name).await;
        let dataset = self.dataset(&name)?;
        self.cancel_jobs_of(&name);
        let evicted = tokio::time::timeout(EVICT_DEADLINE, self.evict_now(&dataset, &[])).await;
        let failed = match evicted {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!(
                "some workers did not answer within {EVICT_DEADLINE:?}"
            )),
        };
        if let Some(failed) = failed {
            tracing::warn!(dataset = %name, "not all blocks of the deleted dataset were evicted: {failed}");
        }
        let mut changes = vec![Change::Delete(format!("{DATASET_KEY}{name}"))];
        changes.extend(self.merged_versions().await?);
        self.write(changes).await?;
        {
            let mut datasets = self.datasets.lock();
            datasets.remove(&name);
            self.metrics.datasets.set(datasets.len() as i64);
        }
        self.version.fetch_add(1, Ordering::Release);
        self.inventories.forget_dataset(&name);
        self.metrics.forget(name.as_str());
        let manifests = self.manifests.clone();
        tokio::task::spawn_blocking(move || manifests.remove_all(&name)).await?;
        Ok(())
    }

    /// The manifest of a snapshot; the newest one without a version.
    pub async fn manifest(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> Result<Arc<Manifest>, MasterError> {
        let name: DatasetName = name.parse()?;
        let dataset = self.dataset(&name)?;
        let found = match version {
            None => dataset.snapshots.last(),
            Some(version) => dataset
                .snapshots
                .iter()
                .find(|snapshot| snapshot.version == version),
        };
        let Some(found) = found else {
            let known: Vec<String> = dataset
                .snapshots
                .iter()
                .map(|s| format!("{name}@{}", s.version))
                .collect();
            let wanted = version.unwrap_or_default();
            return Err(MasterError::NotFound(format!(
                "there is no snapshot {name}@{wanted}; there are {}",
                known.join(", ")
            )));
        };
        self.load_manifest(SnapshotId {
            dataset: name,
            version: found.version,
        })
        .await
    }

    /// Counts reads that found an object changed.
    pub(crate) fn report_stale(&self, report: &v1::ReportStaleRequest) -> Result<(), MasterError> {
        let name: DatasetName = report.dataset.parse()?;
        let mut datasets = self.datasets.lock();
        let snapshots = datasets
            .get_mut(&name)
            .map(|dataset| dataset.snapshots.iter_mut());
        let Some(snapshot) = snapshots
            .into_iter()
            .flatten()
            .find(|s| s.version == report.version)
        else {
            return Err(MasterError::NotFound(format!(
                "there is no snapshot {name}@{}",
                report.version
            )));
        };
        if snapshot.stale_reads == 0 {
            tracing::warn!(
                dataset = %name, version = report.version, path = report.path,
                "objects have changed since the snapshot was listed; `weir dataset refresh` lists them again"
            );
        }
        snapshot.stale_reads = snapshot.stale_reads.saturating_add(report.count);
        let label = DatasetLabel {
            dataset: name.to_string(),
        };
        self.metrics
            .stale_reads
            .get_or_create(&label)
            .inc_by(report.count);
        Ok(())
    }

    pub(crate) async fn load_manifest(
        &self,
        snapshot: SnapshotId,
    ) -> Result<Arc<Manifest>, MasterError> {
        let manifests: Arc<Manifests> = self.manifests.clone();
        tokio::task::spawn_blocking(move || manifests.load(&snapshot)).await?
    }

    /// Makes a listed manifest the newest snapshot of its dataset.
    async fn add_snapshot(
        &self,
        name: &DatasetName,
        mut dataset: v1::Dataset,
        found: Found,
    ) -> Result<v1::Dataset, MasterError> {
        let mut snapshot = v1::Snapshot::default();
        found.note_hindrances(&mut snapshot);
        let manifests = self.manifests.clone();
        let manifest = found.manifest;
        let manifest = tokio::task::spawn_blocking(move || manifests.save(manifest)).await??;
        let summary = manifest.summary();
        // Reads that were counted while the origin was listed.
        if let Some(known) = self.datasets.lock().get(name) {
            dataset.snapshots.clone_from(&known.snapshots);
        }
        let snapshot = v1::Snapshot {
            version: summary.snapshot.version,
            created_ns: summary.created_ns,
            files: summary.files,
            bytes: summary.bytes,
            blocks: summary.blocks,
            ..snapshot
        };
        self.metrics.show_snapshot(name.as_str(), &snapshot);
        dataset.snapshots.push(snapshot);
        let too_many = dataset
            .snapshots
            .len()
            .saturating_sub(self.config.max_snapshots.max(1));
        let old: Vec<u64> = dataset
            .snapshots
            .drain(..too_many)
            .map(|snapshot| snapshot.version)
            .collect();
        self.save_dataset(name, &dataset, Some(summary.snapshot.version))
            .await?;
        let (manifests, name) = (self.manifests.clone(), name.clone());
        tokio::task::spawn_blocking(move || {
            for version in old {
                manifests.remove(&SnapshotId {
                    dataset: name.clone(),
                    version,
                });
            }
        })
        .await?;
        Ok(dataset)
    }

    async fn save_dataset(
        &self,
        name: &DatasetName,
        dataset: &v1::Dataset,
        version: Option<u64>,
    ) -> Result<(), MasterError> {
        let mut changes = vec![Change::Put(
            format!("{DATASET_KEY}{name}"),
            dataset.encode_to_vec(),
        )];
        if let Some(version) = version {
            changes.push(Change::Put(
                format!("{VERSION_KEY}{name}"),
                version.to_le_bytes().to_vec(),
            ));
        }
        self.write(changes).await?;
        {
            let mut datasets = self.datasets.lock();
            datasets.insert(name.clone(), dataset.clone());
            self.metrics.datasets.set(datasets.len() as i64);
        }
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }
}
