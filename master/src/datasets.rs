//! Datasets and their snapshots.
//!
//! A snapshot never changes, and its number is never used again, also not after its dataset was deleted: workers and
//! clients keep manifests under it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt;
use prost::Message;
use weir_core::manifest::Mount;
use weir_core::{DatasetName, Manifest, ManifestBuilder, SnapshotId};
use weir_origin::OriginSpec;
use weir_proto::v1;

use crate::error::MasterError;
use crate::manifests::Manifests;
use crate::master::{Master, decode, newest, now_ns};
use crate::metrics::{DatasetLabel, MasterMetrics};
use crate::store::{Change, MetaStore, StoreError};

const DATASET_KEY: &str = "dataset/";
/// Holds the highest snapshot number that a dataset's name has had.
const VERSION_KEY: &str = "version/";
/// Holds a number that no dataset without such a record has had a higher one of.
const FLOOR_KEY: &str = "version-floor";
/// Most datasets of one master, and mounts of one dataset.
const MAX_DATASETS: usize = 10_000;
const MAX_MOUNTS: usize = 1_000;
/// Longest request for a dataset, in bytes: each is kept in memory.
const MAX_REQUEST: usize = 1 << 20;
/// Names of deleted datasets whose last snapshot number is remembered one by one.
const MAX_DELETED: usize = 10_000;
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
        let manifest = self
            .list(
                &dataset.mounts,
                SnapshotId {
                    dataset: name.clone(),
                    version,
                },
                None,
            )
            .await?;
        if manifest.summary().files == 0
            && let Some(prefix) = manifest
                .summary()
                .mounts
                .iter()
                .find(|mount| !mount.prefix.is_empty())
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
        self.add_snapshot(&name, dataset, manifest).await
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
        let manifest = self
            .list(&dataset.mounts, snapshot, previous.clone())
            .await?;
        if previous.is_some_and(|previous| previous.summary().digest == manifest.summary().digest) {
            return Ok((dataset, false));
        }
        Ok((self.add_snapshot(&name, dataset, manifest).await?, true))
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

    /// Waits for the right to list a dataset, or to delete it.
    async fn listing(&self, name: &DatasetName) -> Listing<'_> {
        let lock = self
            .listings
            .lock()
            .entry(name.clone())
            .or_default()
            .clone();
        // Made before the wait, so that the table is tidied also if that is given up.
        let mut listing = Listing {
            master: self,
            name: name.clone(),
            held: None,
        };
        listing.held = Some(lock.lock_owned().await);
        listing
    }

    /// Lists all mounts into a manifest. Entries that did not change keep the inodes of `previous`.
    async fn list(
        &self,
        mounts: &[v1::MountSpec],
        snapshot: SnapshotId,
        previous: Option<Arc<Manifest>>,
    ) -> Result<Manifest, MasterError> {
        let started = Instant::now();
        let mut builder = ManifestBuilder::new();
        for mount in mounts {
            let spec = origin_of(mount)?;
            let prefix = spec.prefix().into_owned();
            let number = builder.add_mount(Mount {
                origin: spec.id(),
                spec: serde_json::to_string(&spec)
                    .map_err(|error| MasterError::Invalid(error.to_string()))?,
                prefix: prefix.clone(),
                path: mount.path.clone(),
            })?;
            let origin = weir_origin::open(&spec).await?;
            let mut pages =
                std::pin::pin!(weir_origin::list(&*origin, &prefix, &self.origin_metrics));
            while let Some(page) = pages.next().await {
                for object in page? {
                    builder.add(
                        number,
                        &object.key,
                        object.size,
                        object.mtime_ns,
                        &object.version,
                    )?;
                }
            }
        }
        let manifest = tokio::task::spawn_blocking(move || {
            builder.build(snapshot, now_ns(), previous.as_deref())
        })
        .await??;
        let summary = manifest.summary();
        let left_out: u64 = summary.left_out.values().sum();
        tracing::info!(snapshot = %summary.snapshot, files = summary.files, bytes = summary.bytes, left_out, took = ?started.elapsed(), "listed");
        self.metrics.listed(started.elapsed());
        Ok(manifest)
    }

    /// Makes a listed manifest the newest snapshot of its dataset.
    async fn add_snapshot(
        &self,
        name: &DatasetName,
        mut dataset: v1::Dataset,
        manifest: Manifest,
    ) -> Result<v1::Dataset, MasterError> {
        let manifests = self.manifests.clone();
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
            left_out: summary.left_out.clone().into_iter().collect(),
            left_out_examples: summary.left_out_examples.clone(),
            stale_reads: 0,
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

    /// The highest snapshot number that a dataset of this name has had.
    async fn last_version(&self, name: &DatasetName) -> Result<u64, MasterError> {
        let (store, key) = (self.store.clone(), format!("{VERSION_KEY}{name}"));
        let read = move || {
            let of_name = store.get(&key)?.map(|bytes| number(&key, &bytes));
            match of_name {
                Some(version) => version,
                None => floor(&*store),
            }
        };
        Ok(tokio::task::spawn_blocking(read).await??)
    }

    /// What is to be changed so that the numbers of no more than [`MAX_DELETED`] deleted datasets are remembered: of more,
    /// only the highest is, and new names begin above it.
    async fn merged_versions(&self) -> Result<Vec<Change>, MasterError> {
        let store = self.store.clone();
        let records = tokio::task::spawn_blocking(move || store.scan(VERSION_KEY)).await??;
        let deleted: Vec<(String, Vec<u8>)> = {
            let datasets = self.datasets.lock();
            let is_live = |key: &str| datasets.contains_key(&key[VERSION_KEY.len()..]);
            records
                .into_iter()
                .filter(|(key, _)| !is_live(key))
                .collect()
        };
        if deleted.len() < MAX_DELETED {
            return Ok(Vec::new());
        }
        let store = self.store.clone();
        let mut highest = tokio::task::spawn_blocking(move || floor(&*store)).await??;
        for (key, bytes) in &deleted {
            highest = highest.max(number(key, bytes)?);
        }
        let floor = Change::Put(FLOOR_KEY.to_owned(), highest.to_le_bytes().to_vec());
        let deleted = deleted.into_iter().map(|(key, _)| Change::Delete(key));
        Ok(deleted.chain([floor]).collect())
    }
}

/// The right to list a dataset, or to delete it.
struct Listing<'a> {
    master: &'a Master,
    name: DatasetName,
    held: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        self.held = None;
        // Callers may name any dataset, so what nobody waits for is forgotten.
        let mut listings = self.master.listings.lock();
        if let Some(lock) = listings.get(&self.name)
            && Arc::strong_count(lock) == 1
        {
            listings.remove(&self.name);
        }
    }
}

fn floor(store: &dyn MetaStore) -> Result<u64, StoreError> {
    let floor = store.get(FLOOR_KEY)?;
    floor.map_or(Ok(0), |bytes| number(FLOOR_KEY, &bytes))
}

fn number(key: &str, bytes: &[u8]) -> Result<u64, StoreError> {
    let number = bytes.try_into().map_err(|_| StoreError::Damaged {
        key: key.to_owned(),
        reason: "it is no number".to_owned(),
    })?;
    Ok(u64::from_le_bytes(number))
}

/// The valid origin of a mount.
fn origin_of(mount: &v1::MountSpec) -> Result<OriginSpec, MasterError> {
    let spec = mount
        .origin
        .clone()
        .ok_or_else(|| MasterError::Invalid("a mount without an origin".to_owned()))?;
    let spec = OriginSpec::from(spec);
    spec.validate()?;
    Ok(spec)
}

/// What makes mounts the same: where the data is and where it appears, not how it is reached.
fn places(mounts: &[v1::MountSpec]) -> Result<Vec<(String, String, String)>, MasterError> {
    mounts
        .iter()
        .map(|mount| {
            let spec = origin_of(mount)?;
            let path = mount.path.trim_matches('/').to_owned();
            Ok((spec.location(), spec.prefix().into_owned(), path))
        })
        .collect()
}
