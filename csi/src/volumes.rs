//! The volumes of a node: what is published, and the one mount of each snapshot that they show.
//!
//! Invariant: the kernel's table of mounts alone says what is mounted. A snapshot's mount lies in the directory of mounts under its
//! own name; a volume is a bind of it, so it has its device number, its source and the directory that it shows in the table.
//! Whoever reads that knows what is mounted where, and who uses what, whatever died before.
//!
//! Two kinds of turn keep calls apart: that of a target, and inside of it that of a snapshot's mount.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use weir_core::{DatasetName, SnapshotId};
use weir_mount::FS_TYPE;
use weir_mount::table::Entry;

use crate::access;
use crate::catalog::Catalog;
use crate::error::CsiError;
use crate::memory::Memory;
use crate::metrics::CsiMetrics;
use crate::system::{Health, System, Usage};
use crate::target::{KubeletDir, Target};
use crate::turns::{Turn, Turns};
use crate::volume::{Shown, Volume};

/// Longest wait for another call for the same volume, or the same snapshot.
const TURN_DEADLINE: Duration = Duration::from_secs(80);
/// A volume that names no snapshot shows one that this node knows when the master has been away for so long: until then the pods of a
/// job might see another one elsewhere.
const PATIENCE: Duration = Duration::from_mins(1);
/// More mounts on top of each other than anybody makes.
const MOST_LAYERS: usize = 64;

/// How a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It can be read.
    Readable(Usage),
    /// Nobody serves it; new pods get a new mount.
    Dead,
    /// Whoever serves it does not answer.
    Silent,
}

/// The volumes of this node.
pub struct Volumes {
    system: Arc<dyn System>,
    catalog: Arc<dyn Catalog>,
    kubelet: KubeletDir,
    /// Where snapshots are mounted, as the table shows it.
    mounts: PathBuf,
    memory: Memory,
    metrics: Arc<CsiMetrics>,
    targets: Turns<PathBuf>,
    sources: Turns<PathBuf>,
    /// Mounts that no volume showed at the last sweep.
    unused: Mutex<BTreeSet<PathBuf>>,
}

impl std::fmt::Debug for Volumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volumes")
            .field("mounts", &self.mounts)
            .finish_non_exhaustive()
    }
}

/// The kernel's table, as far as it is of interest.
struct Table(Vec<Entry>);

impl Table {
    /// What is on top at a path.
    fn at(&self, path: &Path) -> Option<&Entry> {
        self.0.iter().rfind(|entry| entry.mountpoint == path)
    }
}

/// What a mount of Weir shows; `None` of any other mount.
fn shown(entry: &Entry) -> Option<Shown> {
    let is_ours = entry.fs_type == FS_TYPE;
    is_ours.then(|| Shown::of_mount(&entry.source, &entry.root))?
}

impl Volumes {
    /// The volumes below kubelet's directory, with the snapshots' mounts in `mounts`, which is made if it is missing. In `memory` is
    /// kept what is remembered of datasets.
    pub fn new(
        system: Arc<dyn System>,
        catalog: Arc<dyn Catalog>,
        kubelet: KubeletDir,
        mounts: &Path,
        memory: &Path,
        metrics: Arc<CsiMetrics>,
    ) -> Result<Self, CsiError> {
        let made = std::fs::create_dir_all(mounts).and_then(|()| mounts.canonicalize());
        Ok(Self {
            system,
            catalog,
            kubelet,
            mounts: made.map_err(CsiError::system("make", mounts))?,
            memory: Memory::new(memory),
            metrics,
            targets: Turns::default(),
            sources: Turns::default(),
            unused: Mutex::default(),
        })
    }

    /// The target that kubelet means by a path.
    pub fn target(&self, path: &str) -> Result<Target, CsiError> {
        let target = self.kubelet.target(path)?;
        if target.path().starts_with(&self.mounts) {
            return Err(CsiError::Invalid(
                "the target path is where Weir keeps its own mounts".to_owned(),
            ));
        }
        Ok(target)
    }

    /// Fails unless there is such a dataset, which can be mounted.
    pub(crate) async fn check(&self, dataset: &DatasetName) -> Result<(), CsiError> {
        self.catalog.look_up(dataset).await.map(drop)
    }

    /// Makes a volume appear at its target. What is there already, and can be read, stays as it is.
    pub async fn publish(&self, volume: &Volume, target: &Target) -> Result<(), CsiError> {
        let path = target.path();
        let _turn = self.turn(&self.targets, &path).await?;
        let table = self.table()?;
        let snapshot = match table.at(&path) {
            None => self.choose(volume).await?,
            Some(entry) => {
                let shown = shown(entry).filter(|shown| volume.is(shown));
                let Some(shown) = shown else {
                    return Err(CsiError::Taken(format!(
                        "{} is mounted at {} and is not what the volume asks for",
                        entry.source,
                        path.display()
                    )));
                };
                match self.system.health(&path).await {
                    Health::Alive(_) => return Ok(()),
                    Health::Dead => shown.snapshot,
                    Health::Silent => return Err(silent(&shown.snapshot)),
                }
            }
        };
        self.show(&snapshot, &volume.path, target).await
    }

    /// Takes a volume away, with its directory. One that is not there is taken away already.
    pub async fn unpublish(&self, target: &Target) -> Result<(), CsiError> {
        let path = target.path();
        let _turn = self.turn(&self.targets, &path).await?;
        let mut devices = BTreeSet::new();
        let mut is_free = false;
        for _ in 0..MOST_LAYERS {
            let table = self.table()?;
            let Some(entry) = table.at(&path) else {
                is_free = true;
                break;
            };
            if entry.fs_type != FS_TYPE {
                return Err(CsiError::Taken(format!(
                    "{} is mounted at {}, which is no volume of Weir; unmount it by hand",
                    entry.source,
                    path.display()
                )));
            }
            devices.insert(entry.device.clone());
            self.system.unbind(target).await?;
        }
        if !is_free {
            return Err(CsiError::Node(format!(
                "{} is still a mount after {MOST_LAYERS} were taken away",
                path.display()
            )));
        }
        self.system.remove(target).await?;
        let sources: Vec<PathBuf> = self
            .sources(&self.table()?)
            .filter(|entry| devices.contains(&entry.device))
            .map(|entry| entry.mountpoint.clone())
            .collect();
        for dir in sources {
            self.end_unused(&dir).await;
        }
        Ok(())
    }

    /// How the volume at a path is; `None` when there is no volume.
    pub async fn condition(&self, target: &Target) -> Result<Option<Condition>, CsiError> {
        let path = target.path();
        let is_ours = |entry: &Entry| entry.fs_type == FS_TYPE;
        if !self.table()?.at(&path).is_some_and(is_ours) {
            return Ok(None);
        }
        Ok(Some(match self.system.health(&path).await {
            Health::Alive(usage) => Condition::Readable(usage),
            Health::Dead => Condition::Dead,
            Health::Silent => Condition::Silent,
        }))
    }

    /// Mounts anew what nobody serves any more, over what is there, and ends mounts that no volume shows, nor did at the last
    /// sweep: during an update another plugin may be about to bind one. Gives how many volumes it could not bring back.
    pub async fn sweep(&self) -> Result<usize, CsiError> {
        let mut failed = 0;
        for (path, entry) in self.dead().await? {
            if let Err(error) = self.restore(&path, &entry).await {
                tracing::warn!(volume = %path.display(), "a volume that nobody serves could not be mounted anew: {error}");
                failed += 1;
            }
        }
        let table = self.table()?;
        let mut dirs: BTreeSet<PathBuf> = self
            .sources(&table)
            .filter(|entry| self.users(&table, &entry.device) == 0)
            .map(|entry| entry.mountpoint.clone())
            .collect();
        // Directories of mounts that ended while nobody looked.
        let entries = std::fs::read_dir(&self.mounts)
            .map_err(CsiError::system("read the directory", &self.mounts))?;
        let left = entries.flatten().map(|entry| entry.path());
        dirs.extend(left.filter(|dir| table.at(dir).is_none()));
        let before = std::mem::replace(&mut *self.unused.lock(), dirs.clone());
        for dir in dirs.intersection(&before) {
            self.end_unused(dir).await;
        }
        self.count(&self.table()?);
        Ok(failed)
    }

    /// Volumes that nobody serves, by their paths.
    async fn dead(&self) -> Result<BTreeMap<PathBuf, Entry>, CsiError> {
        let table = self.table()?;
        let paths: BTreeSet<&PathBuf> = self
            .volumes(&table)
            .map(|entry| &entry.mountpoint)
            .collect();
        let on_top = paths.into_iter().filter_map(|path| table.at(path));
        let mut answers = BTreeMap::new();
        let mut dead = BTreeMap::new();
        for entry in on_top.filter(|entry| shown(entry).is_some()) {
            // One question for all volumes that show the same mount.
            let known = answers.get(&entry.device).copied();
            let is_dead = match known {
                Some(is_dead) => is_dead,
                None => self.system.health(&entry.mountpoint).await == Health::Dead,
            };
            answers.insert(entry.device.clone(), is_dead);
            if is_dead {
                dead.insert(entry.mountpoint.clone(), entry.clone());
            }
        }
        Ok(dead)
    }

    /// Mounts the same snapshot over a volume that nobody serves: those who look into it from now on can read again.
    async fn restore(&self, path: &Path, dead: &Entry) -> Result<(), CsiError> {
        let target = self.target(&path.to_string_lossy())?;
        let _turn = self.turn(&self.targets, path).await?;
        // It may have been taken away meanwhile, or brought back.
        let table = self.table()?;
        let now = table.at(path).filter(|entry| entry.device == dead.device);
        let Some(shown) = now.and_then(shown) else {
            return Ok(());
        };
        self.show(&shown.snapshot, &shown.path, &target).await?;
        self.metrics.restored();
        tracing::warn!(volume = %path.display(), snapshot = %shown.snapshot, "nobody served a volume any more; it was mounted anew");
        Ok(())
    }

    /// The snapshot that a new volume shows, if its pod may see it.
    async fn choose(&self, volume: &Volume) -> Result<SnapshotId, CsiError> {
        let (dataset, namespace) = (&volume.dataset, &volume.pod.namespace);
        let refused = access::check(namespace, dataset, &[]).err();
        let error = match self.catalog.look_up(dataset).await {
            Ok(known) => {
                self.memory.may_mount(dataset, &known.granted);
                access::check(namespace, dataset, &known.granted)?;
                known.check_new(volume)?;
                let chosen = match volume.version {
                    Some(_) => None,
                    None => self.catalog.choose(dataset, &volume.pod).await,
                };
                let chosen = chosen.map(|version| SnapshotId {
                    dataset: dataset.clone(),
                    version,
                });
                // It may be newer than what was known a moment ago.
                return chosen.map_or_else(|| known.snapshot(dataset, volume.version), Ok);
            }
            Err(error) => error,
        };
        if matches!(error, CsiError::NotFound(_)) {
            self.memory.forget(dataset);
        }
        match (error, refused) {
            // Whether it exists is nobody else's business.
            (CsiError::NotFound(_) | CsiError::NotReady(_), Some(refused)) => Err(refused),
            (CsiError::Unavailable(why), _) => self.remembered(volume, why),
            (error, _) => Err(error),
        }
    }

    /// The snapshot that a new volume shows by what is remembered of the dataset, while the master is away.
    fn remembered(&self, volume: &Volume, why: String) -> Result<SnapshotId, CsiError> {
        let away = self.memory.away();
        let dataset = &volume.dataset;
        let known = self
            .memory
            .recall(dataset)
            .filter(|known| access::check(&volume.pod.namespace, dataset, &known.granted).is_ok());
        let mounted = known.map(|known| known.mounted).unwrap_or_default();
        let version = match volume.version {
            Some(version) => mounted.contains(&version).then_some(version),
            None => mounted.into_iter().max(),
        };
        let Some(version) = version else {
            return Err(CsiError::Unavailable(why));
        };
        if volume.version.is_none() && away < PATIENCE {
            return Err(CsiError::Unavailable(format!(
                "{why}; after {} s without it this node mounts snapshot {version}, the newest that it knows",
                PATIENCE.as_secs()
            )));
        }
        let snapshot = SnapshotId {
            dataset: dataset.clone(),
            version,
        };
        tracing::warn!(%snapshot, pod = %volume.pod.name, "a volume shows what this node knows: {why}");
        Ok(snapshot)
    }

    /// Binds a directory of a snapshot's mount, which is made if there is none.
    async fn show(
        &self,
        snapshot: &SnapshotId,
        path: &str,
        target: &Target,
    ) -> Result<(), CsiError> {
        let dir = self.dir_of(snapshot);
        let turn = self.turn(&self.sources, &dir).await?;
        self.serve(snapshot, &dir).await?;
        let bound = self.system.bind(&dir, path, target).await;
        drop(turn);
        if bound.is_err() {
            self.end_unused(&dir).await;
        }
        if bound.is_ok() {
            self.memory.mounted(snapshot);
        }
        self.count(&self.table()?);
        bound
    }

    /// Sees to it that a snapshot is mounted.
    async fn serve(&self, snapshot: &SnapshotId, dir: &Path) -> Result<(), CsiError> {
        let table = self.table()?;
        match table.at(dir) {
            Some(entry) if entry.fs_type != FS_TYPE => Err(CsiError::Node(format!(
                "{} is mounted at {}, where Weir mounts {snapshot}; unmount it by hand",
                entry.source,
                dir.display()
            ))),
            Some(_) => match self.system.health(dir).await {
                Health::Alive(_) => Ok(()),
                Health::Dead => self.system.serve(snapshot, dir).await,
                Health::Silent => Err(silent(snapshot)),
            },
            None => self.system.serve(snapshot, dir).await,
        }
    }

    /// Ends a snapshot's mount if no volume shows it. What cannot be ended now is ended by a later sweep.
    async fn end_unused(&self, dir: &Path) {
        let ended = async {
            let _turn = self.turn(&self.sources, dir).await?;
            let table = self.table()?;
            let entry = table.at(dir);
            let users = match entry {
                Some(entry) if entry.fs_type != FS_TYPE => 1,
                Some(entry) => self.users(&table, &entry.device),
                None => 0,
            };
            if users == 0 {
                self.system.end(dir).await?;
            }
            let now = self.table()?;
            self.count(&now);
            let dataset = entry.and_then(shown).map(|shown| shown.snapshot.dataset);
            let is_last = |dataset: &DatasetName| {
                let mut left = self.sources(&now).filter_map(shown);
                users == 0 && left.all(|shown| shown.snapshot.dataset != *dataset)
            };
            Ok::<_, CsiError>(dataset.filter(is_last))
        };
        match ended.await {
            Ok(Some(dataset)) => self.catalog.ended(&dataset).await,
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(mount = %dir.display(), "a mount that no volume shows could not be ended: {error}");
            }
        }
    }

    fn dir_of(&self, snapshot: &SnapshotId) -> PathBuf {
        let name = format!("{}@{}", snapshot.dataset.file_name(), snapshot.version);
        self.mounts.join(name)
    }

    fn table(&self) -> Result<Table, CsiError> {
        Ok(Table(self.system.table()?))
    }

    /// The snapshots' mounts.
    fn sources<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a Entry> {
        table.0.iter().filter(|entry| {
            entry.fs_type == FS_TYPE && entry.mountpoint.parent() == Some(&self.mounts)
        })
    }

    /// The volumes, each layer of them.
    fn volumes<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a Entry> {
        table.0.iter().filter(|entry| {
            entry.fs_type == FS_TYPE
                && entry.mountpoint.starts_with(self.kubelet.real())
                && !entry.mountpoint.starts_with(&self.mounts)
        })
    }

    /// How many volumes show the mount with this device number.
    fn users(&self, table: &Table, device: &str) -> usize {
        let shows = |entry: &&Entry| entry.device == device;
        self.volumes(table).filter(shows).count()
    }

    fn count(&self, table: &Table) {
        let paths: BTreeSet<&PathBuf> =
            self.volumes(table).map(|entry| &entry.mountpoint).collect();
        self.metrics
            .set_mounted(self.sources(table).count(), paths.len());
    }

    async fn turn(&self, turns: &Turns<PathBuf>, path: &Path) -> Result<Turn<PathBuf>, CsiError> {
        let turn = turns.take(&path.to_owned(), TURN_DEADLINE).await;
        turn.ok_or_else(|| CsiError::Busy(path.display().to_string()))
    }
}

fn silent(snapshot: &SnapshotId) -> CsiError {
    CsiError::Unavailable(format!(
        "the mount of dataset {} on this node does not answer; it is replaced within seconds",
        access::shown(&snapshot.dataset)
    ))
}
