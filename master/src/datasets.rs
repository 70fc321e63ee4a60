//! Datasets and their snapshots.
//!
//! A snapshot never changes, and its number is never used again, also not after its dataset was deleted: workers and
//! clients keep manifests under it.

mod apply;
mod held;
mod listing;
mod placing;
mod refreshing;
mod spec;
mod turn;
mod versions;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Semaphore, watch};
use weir_core::{ClusterMap, CredentialName, DatasetName, LogLimit, Manifest, SnapshotId};
use weir_origin::{Credential, OriginMetrics, OriginSpec, SourcePolicy};
use weir_proto::v1;

use crate::config::MasterConfig;
use crate::credentials::Credentials;
use crate::error::MasterError;
use crate::manifests::Manifests;
use crate::metrics::{DatasetLabel, MasterMetrics};
use crate::readers::ReaderTable;
use crate::records::{Records, decode, now_ns};
use crate::store::Change;
use held::HeldSnapshots;
use listing::Found;
use turn::{Listing, MAX_LONG, Turn};

const DATASET_KEY: &str = "dataset/";
/// Snapshots of a dataset that are kept beyond those that are kept anyway, since a job sees them.
const MAX_HELD: usize = 64;
/// Most datasets of one master.
const MAX_DATASETS: usize = 10_000;

/// The datasets of a master.
#[derive(Debug)]
pub(crate) struct Datasets {
    records: Records,
    manifests: Arc<Manifests>,
    metrics: Arc<MasterMetrics>,
    origin_metrics: Arc<OriginMetrics>,
    /// Snapshots that are kept of each.
    max_snapshots: usize,
    /// Which sources they may have.
    sources: SourcePolicy,
    /// What sources name that are not read with the master's own.
    credentials: Arc<Credentials>,
    known: Mutex<HashMap<DatasetName, v1::Dataset>>,
    /// Records are written in the order in which their placements were chosen.
    saving: tokio::sync::Mutex<()>,
    /// The cluster that they are placed in.
    cluster: watch::Receiver<Arc<ClusterMap>>,
    /// Those of which a domain is away.
    away: placing::Away,
    readers: ReaderTable,
    /// Which snapshots jobs see.
    pub(crate) held: HeldSnapshots,
    /// Grows with each change of `known`, also from one master to the next.
    version: AtomicU64,
    /// One listing of a dataset at a time.
    listings: Mutex<HashMap<DatasetName, Arc<Turn>>>,
    /// Places of long listings.
    long_listings: Arc<Semaphore>,
    /// What became of listings, in the log: whoever may refresh a dataset may do so all the time.
    listed: LogLimit,
}

/// The newest snapshot of a dataset, and where that is placed.
pub(crate) struct Newest {
    pub(crate) snapshot: SnapshotId,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    pub(crate) placement: Option<v1::Placement>,
}

/// What a worker must know of all datasets.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// The version of the tables.
    pub(crate) version: u64,
    /// The origins of all datasets, each once; none if the worker knows this version.
    pub(crate) origins: Vec<v1::OriginSpec>,
    /// The newest snapshots of all datasets; none if the worker knows this version.
    pub(crate) snapshots: Vec<SnapshotId>,
    /// What each dataset is made of; `None` if the worker knows this version.
    pub(crate) sources: Option<Vec<v1::DatasetSources>>,
}

impl Datasets {
    /// The datasets in the store.
    pub(crate) fn load(
        records: Records,
        config: &MasterConfig,
        credentials: Arc<Credentials>,
        cluster: watch::Receiver<Arc<ClusterMap>>,
        metrics: Arc<MasterMetrics>,
        origin_metrics: Arc<OriginMetrics>,
    ) -> Result<Self, MasterError> {
        let mut known = HashMap::new();
        for (key, bytes) in records.store().scan(DATASET_KEY)? {
            let mut dataset: v1::Dataset = decode(&key, &bytes)?;
            if dataset.spec.is_empty() {
                dataset.spec = spec::dataset_spec(&dataset)?.to_json();
            }
            if let Some(newest) = dataset.snapshots.last() {
                metrics.show_snapshot(&dataset.name, newest);
            }
            known.insert(dataset.name.parse()?, dataset);
        }
        metrics.datasets.set(known.len() as i64);
        Ok(Self {
            held: HeldSnapshots::load(records.clone())?,
            records,
            manifests: Arc::new(Manifests::new(&config.dir)),
            metrics,
            origin_metrics,
            max_snapshots: config.max_snapshots,
            sources: config.sources.clone().with_credentials(credentials.clone()),
            credentials,
            known: Mutex::new(known),
            saving: tokio::sync::Mutex::default(),
            cluster,
            away: placing::Away::default(),
            readers: ReaderTable::new(),
            version: AtomicU64::new(now_ns().unsigned_abs()),
            listings: Mutex::default(),
            long_listings: Arc::new(Semaphore::new(MAX_LONG)),
            listed: LogLimit::default(),
        })
    }

    /// Whether there is a dataset of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.known.lock().contains_key(name)
    }

    /// The newest snapshots of all datasets, by name.
    pub(crate) fn newest(&self) -> Vec<(SnapshotId, v1::Snapshot)> {
        let known = self.known.lock();
        let newest = known
            .iter()
            .filter_map(|(name, dataset)| newest(name, dataset))
            .map(|(id, newest)| (id, newest.clone()));
        let mut newest: Vec<_> = newest.collect();
        newest.sort_by(|a, b| a.0.cmp(&b.0));
        newest
    }

    /// The newest snapshot of a dataset.
    pub(crate) fn newest_of(&self, name: &DatasetName) -> Result<Newest, MasterError> {
        let known = self.known.lock();
        let dataset = known.get(name).ok_or_else(|| missing(name))?;
        let newest = newest(name, dataset);
        let (snapshot, newest) = newest.ok_or_else(|| missing(name))?;
        Ok(Newest {
            snapshot,
            blocks: newest.blocks,
            bytes: newest.bytes,
            placement: dataset.placement.clone(),
        })
    }

    /// The snapshot of a dataset that the pods of a job see; any other pod sees the newest.
    pub(crate) async fn choose_snapshot(
        &self,
        name: &DatasetName,
        job: Option<&str>,
    ) -> Result<u64, MasterError> {
        let newest = self.newest_of(name)?.snapshot.version;
        let Some(job) = job else {
            return Ok(newest);
        };
        let is_there = |version| {
            let known = self.known.lock();
            let snapshots = known.get(name).map(|dataset| &dataset.snapshots);
            snapshots.is_some_and(|all| all.iter().any(|one| one.version == version))
        };
        self.held.choose(job, name, newest, is_there).await
    }

    /// What a worker must know that knows this version.
    pub(crate) fn told(&self, known_version: u64) -> Told {
        // Read before the tables: a change meanwhile is told with the next reply.
        let version = self.version.load(Ordering::Acquire);
        if version == known_version {
            return Told {
                version,
                ..Told::default()
            };
        }
        let known = self.known.lock();
        let mounts = known.values().flat_map(|dataset| &dataset.mounts);
        let mut seen = HashSet::new();
        let new = |origin: &&v1::OriginSpec| seen.insert(origin.encode_to_vec());
        let origins = mounts.filter_map(|mount| mount.origin.as_ref()).filter(new);
        let newest = known
            .iter()
            .filter_map(|(name, dataset)| newest(name, dataset));
        Told {
            version,
            origins: origins.cloned().collect(),
            snapshots: newest.map(|(snapshot, _)| snapshot).collect(),
            sources: Some(known.values().map(sources_of).collect()),
        }
    }

    /// Looks at the numbers of the newest snapshots, while none of them changes.
    pub(crate) fn with_newest<T>(
        &self,
        look: impl FnOnce(&mut dyn Iterator<Item = (&DatasetName, u64)>) -> T,
    ) -> T {
        let known = self.known.lock();
        let mut newest = known
            .iter()
            .filter_map(|(name, dataset)| Some((name, dataset.snapshots.last()?.version)));
        look(&mut newest)
    }

    /// Does something with a snapshot while it is the newest of its dataset; `None` if it is not.
    pub(crate) fn while_newest<T>(
        &self,
        snapshot: &SnapshotId,
        work: impl FnOnce(&v1::Snapshot) -> T,
    ) -> Option<T> {
        let known = self.known.lock();
        let newest = known.get(&snapshot.dataset)?.snapshots.last()?;
        (newest.version == snapshot.version).then(|| work(newest))
    }

    /// A dataset by name.
    pub(crate) fn get(&self, name: &DatasetName) -> Result<v1::Dataset, MasterError> {
        let known = self.known.lock();
        known.get(name).cloned().ok_or_else(|| missing(name))
    }

    /// Names of the datasets that use credentials, in order, by the name of those.
    pub(crate) fn users_of_credentials(&self) -> HashMap<String, Vec<String>> {
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        for dataset in self.known.lock().values() {
            let named: HashSet<&str> = credentials_of(dataset).collect();
            for name in named {
                let users = users.entry(name.to_owned()).or_default();
                users.push(dataset.name.clone());
            }
        }
        for names in users.values_mut() {
            names.sort();
        }
        users
    }

    /// Checks that every source that names these credentials can be read with what is to take their place.
    pub(crate) fn check_users(
        &self,
        name: &CredentialName,
        new: &Credential,
    ) -> Result<(), MasterError> {
        for dataset in self.known.lock().values() {
            let origins = dataset
                .mounts
                .iter()
                .filter_map(|mount| mount.origin.clone());
            let of_name = origins.filter(|origin| origin.credentials == name.as_str());
            for origin in of_name {
                let fits = OriginSpec::from(origin).check_credential(new);
                fits.map_err(|error| {
                    MasterError::Conflict(format!(
                        "dataset {} is read with them: {error}; nothing was replaced",
                        dataset.name
                    ))
                })?;
            }
        }
        Ok(())
    }

    /// Whether this dataset uses these credentials; any dataset, without a name.
    pub(crate) fn uses(&self, dataset: Option<&str>, credentials: &CredentialName) -> bool {
        let known = self.known.lock();
        match dataset {
            Some(name) => known.get(name).is_some_and(|of| uses(of, credentials)),
            None => known.values().any(|of| uses(of, credentials)),
        }
    }

    /// All datasets of a namespace, or of all when it is empty, by name.
    pub(crate) fn all(&self, namespace: &str) -> Vec<v1::Dataset> {
        let known = self.known.lock();
        let of = known
            .iter()
            .filter(|(name, _)| namespace.is_empty() || name.namespace() == namespace);
        let mut datasets: Vec<v1::Dataset> = of.map(|(_, dataset)| dataset.clone()).collect();
        drop(known);
        datasets.sort_by(|a, b| a.name.cmp(&b.name));
        datasets
    }

    /// Refuses a name that new datasets must not have. One that exists may have any that was valid once.
    pub(crate) fn check_name(&self, name: &DatasetName) -> Result<(), MasterError> {
        if !self.contains(name.as_str()) {
            name.check_new()?;
        }
        Ok(())
    }

    /// Forgets a dataset that nobody else lists or deletes.
    pub(crate) async fn remove(&self, listing: &Listing<'_>) -> Result<(), MasterError> {
        let name = listing.name().clone();
        // Whoever places it anew meanwhile must not write its record after this.
        let saving = self.saving.lock().await;
        let mut changes = vec![Change::Delete(format!("{DATASET_KEY}{name}"))];
        changes.extend(versions::merged(&self.records, |name| self.contains(name)).await?);
        self.records.write(changes).await?;
        {
            let mut known = self.known.lock();
            known.remove(&name);
            self.away.forget(name.as_str());
            self.metrics.datasets.set(known.len() as i64);
        }
        drop(saving);
        self.changed();
        self.held.forget(&name).await?;
        self.metrics.forget(name.as_str());
        let manifests = self.manifests.clone();
        tokio::task::spawn_blocking(move || manifests.remove_all(&name)).await?;
        Ok(())
    }

    /// The manifest of a snapshot; the newest one without a version.
    pub(crate) async fn manifest(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> Result<Arc<Manifest>, MasterError> {
        let (snapshot, _) = self.snapshot(name, version)?;
        self.load_manifest(snapshot).await
    }

    /// A snapshot of a dataset; the newest one without a version.
    fn snapshot(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> Result<(SnapshotId, v1::Snapshot), MasterError> {
        let name: DatasetName = name.parse()?;
        let dataset = self.get(&name)?;
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
        let id = SnapshotId {
            dataset: name,
            version: found.version,
        };
        Ok((id, found.clone()))
    }

    /// What a snapshot leaves out: all counts, and the first objects of each reason.
    pub(crate) async fn left_out(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> Result<v1::ListLeftOutReply, MasterError> {
        let (snapshot, record) = self.snapshot(name, version)?;
        let manifests = self.manifests.clone();
        let list = tokio::task::spawn_blocking(move || {
            let list = manifests.load_left_out(&snapshot)?;
            Ok::<_, MasterError>(v1::ListLeftOutReply {
                version: snapshot.version,
                ..list
            })
        });
        Ok(v1::ListLeftOutReply {
            counts: record.left_out,
            ..list.await??
        })
    }

    /// Counts reads that found an object changed.
    pub(crate) fn report_stale(&self, report: &v1::ReportStaleRequest) -> Result<(), MasterError> {
        let name: DatasetName = report.dataset.parse()?;
        let mut datasets = self.known.lock();
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
        let label = DatasetLabel::of(name.as_str());
        self.metrics
            .stale_reads
            .get_or_create(&label)
            .inc_by(report.count);
        Ok(())
    }

    async fn load_manifest(&self, snapshot: SnapshotId) -> Result<Arc<Manifest>, MasterError> {
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
        let Found {
            manifest, left_out, ..
        } = found;
        let manifest = tokio::task::spawn_blocking(move || {
            manifests.save_left_out(&manifest.summary().snapshot, &left_out)?;
            manifests.save(manifest)
        })
        .await??;
        let summary = manifest.summary();
        // Reads that were counted while the origin was listed.
        if let Some(known) = self.known.lock().get(name) {
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
        let old = self.take_old(name, &mut dataset.snapshots);
        self.save(name, &mut dataset, Some(summary.snapshot.version))
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

    /// Takes the oldest of too many snapshots, but for some that jobs see. Gives their numbers.
    fn take_old(&self, name: &DatasetName, snapshots: &mut Vec<v1::Snapshot>) -> Vec<u64> {
        let most = self.max_snapshots.max(1);
        let mut too_many = snapshots.len().saturating_sub(most);
        let mut old = Vec::new();
        let must_go = snapshots.len().saturating_sub(most + MAX_HELD);
        snapshots.retain(|snapshot| {
            let version = snapshot.version;
            let id = SnapshotId {
                dataset: name.clone(),
                version,
            };
            let goes = too_many > 0 && (old.len() < must_go || !self.held.is_held(&id));
            // The newest ones stay in any case: as many were passed by as may be too many.
            if goes {
                old.push(version);
            }
            too_many = too_many.saturating_sub(1);
            !goes
        });
        old
    }

    /// Stores a dataset, placed in the cluster as that is now.
    async fn save(
        &self,
        name: &DatasetName,
        dataset: &mut v1::Dataset,
        version: Option<u64>,
    ) -> Result<(), MasterError> {
        let _one_at_a_time = self.saving.lock().await;
        let before = self.known.lock().get(name).cloned();
        let mut domains = self.domains(Some(name.as_str()));
        placing::place(
            dataset,
            before.as_ref(),
            &mut domains,
            &self.away,
            &self.readers,
        )?;
        let mut changes = vec![Change::Put(
            format!("{DATASET_KEY}{name}"),
            dataset.encode_to_vec(),
        )];
        if let Some(version) = version {
            changes.push(versions::put(name, version));
        }
        self.records.write(changes).await?;
        {
            let mut known = self.known.lock();
            known.insert(name.clone(), dataset.clone());
            self.metrics.datasets.set(known.len() as i64);
        }
        self.changed();
        Ok(())
    }

    /// Has workers be told of the tables anew.
    fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// Names of the credentials that a dataset uses.
fn credentials_of(dataset: &v1::Dataset) -> impl Iterator<Item = &str> {
    let origins = dataset
        .mounts
        .iter()
        .filter_map(|mount| mount.origin.as_ref());
    let names = origins.map(|origin| origin.credentials.as_str());
    names.filter(|name| !name.is_empty())
}

fn uses(dataset: &v1::Dataset, credentials: &CredentialName) -> bool {
    credentials_of(dataset).any(|name| name == credentials.as_str())
}

/// What a dataset is made of, as workers check requests by it.
fn sources_of(dataset: &v1::Dataset) -> v1::DatasetSources {
    let sources = dataset.mounts.iter().filter_map(|mount| {
        let spec = OriginSpec::from(mount.origin.clone()?);
        Some(v1::Source {
            origin: spec.id().0,
            prefix: spec.prefix().into_owned(),
        })
    });
    v1::DatasetSources {
        dataset: dataset.name.clone(),
        sources: sources.collect(),
        placement: dataset.placement.clone(),
        former: placing::recent(&dataset.former_placements, now_ns()),
    }
}

/// The error about a dataset that is not there.
fn missing(name: &DatasetName) -> MasterError {
    MasterError::NotFound(format!(
        "there is no dataset {name}; `weir dataset list` shows all"
    ))
}

/// The newest snapshot of a dataset.
fn newest<'a>(
    name: &DatasetName,
    dataset: &'a v1::Dataset,
) -> Option<(SnapshotId, &'a v1::Snapshot)> {
    let newest = dataset.snapshots.last()?;
    let id = SnapshotId {
        dataset: name.clone(),
        version: newest.version,
    };
    Some((id, newest))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use futures::FutureExt;
    use prometheus_client::registry::Registry;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::store::RocksStore;

    pub(super) fn datasets(dir: &tempfile::TempDir) -> Datasets {
        let store = RocksStore::open(&dir.path().join("store")).unwrap();
        let config = MasterConfig {
            dir: dir.path().to_owned(),
            sources: SourcePolicy::unlimited(),
            ..MasterConfig::default()
        };
        let mut registry = Registry::default();
        let metrics = MasterMetrics::register(&mut registry);
        let origin = OriginMetrics::register(&mut registry);
        let records = Records::new(Arc::new(store));
        let credentials = Credentials::load(records.clone(), None, false).unwrap();
        let credentials = Arc::new(credentials);
        let (_, cluster) = watch::channel(Arc::default());
        Datasets::load(records, &config, credentials, cluster, metrics, origin).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_listing_that_somebody_looks_at_when_it_ends_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let datasets = datasets(&dir);
        let name: DatasetName = "set".parse().unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    datasets.under_way(&name);
                }
            });
            let mut left = 0;
            for _ in 0..50_000 {
                let listing = datasets.listing(&name, CancellationToken::new());
                drop(listing.now_or_never());
                left += datasets.listings.lock().len();
            }
            ended.store(true, Ordering::Relaxed);
            assert_eq!(left, 0);
        });
    }

    #[tokio::test]
    async fn a_snapshot_that_a_job_sees_is_kept_with_many_others_of_its_kind_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let mut datasets = datasets(&dir);
        datasets.max_snapshots = 3;
        let name: DatasetName = "set".parse().unwrap();
        for (job, version) in [("a", 2), ("b", 4)] {
            let held = datasets.held.choose(job, &name, version, |_| true).await;
            assert_eq!(held.unwrap(), version);
        }
        let of = |versions: std::ops::RangeInclusive<u64>| -> Vec<v1::Snapshot> {
            let of = |version| v1::Snapshot {
                version,
                ..v1::Snapshot::default()
            };
            versions.map(of).collect()
        };
        let mut snapshots = of(1..=6);
        assert_eq!(datasets.take_old(&name, &mut snapshots), [1, 3]);
        let left: Vec<u64> = snapshots.iter().map(|one| one.version).collect();
        assert_eq!(left, [2, 4, 5, 6]);
        assert!(datasets.take_old(&name, &mut of(1..=3)).is_empty());
        for version in 1..=100 {
            let job = format!("job-{version}");
            let held = datasets.held.choose(&job, &name, version, |_| true);
            held.await.unwrap();
        }
        let mut snapshots = of(1..=100);
        assert_eq!(datasets.take_old(&name, &mut snapshots).len(), 33);
        assert_eq!(snapshots.len(), 3 + MAX_HELD);
    }

    #[tokio::test]
    async fn names_that_callers_make_up_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let datasets = datasets(&dir);
        let here = CancellationToken::new;
        for number in 0..100 {
            let missing = v1::OriginSpec {
                url: format!("file://{}/none", dir.path().display()),
                ..Default::default()
            };
            let create = v1::CreateDatasetRequest {
                spec: String::new(),
                name: format!("name-{number}"),
                mounts: vec![v1::MountSpec {
                    origin: Some(missing),
                    path: String::new(),
                }],
            };
            assert!(datasets.create(create, here()).await.is_err());
            assert!(
                datasets
                    .refresh(&format!("x-{number}"), here())
                    .await
                    .is_err()
            );
        }
        assert!(datasets.listings.lock().is_empty());
        // Also not when a caller gives up while another one lists.
        let name: DatasetName = "busy".parse().unwrap();
        let held = datasets.listing(&name, here()).await.unwrap();
        {
            let mut waiting = std::pin::pin!(datasets.listing(&name, here()));
            assert!(futures::poll!(waiting.as_mut()).is_pending());
        }
        // Nor if it has gone while it waits.
        let gone = here();
        gone.cancel();
        let abandoned = datasets.listing(&name, gone).await;
        assert!(matches!(abandoned, Err(MasterError::Abandoned(_))));
        drop(held);
        assert!(datasets.listings.lock().is_empty());
    }
}
