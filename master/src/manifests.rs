//! Manifests as files: one for each snapshot, whole or not there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use weir_core::manifest::{KeptManifests, LeftOutObject, OpenError};
use weir_core::{DatasetName, Manifest, ManifestBuilder, SnapshotId};
use weir_proto::v1;

use crate::error::MasterError;

/// The file of a snapshot's manifest below the master's directory.
pub fn manifest_path(dir: &Path, dataset: &DatasetName, version: u64) -> PathBuf {
    dataset_dir(dir, dataset).join(format!("{version}.manifest"))
}

fn dataset_dir(dir: &Path, dataset: &DatasetName) -> PathBuf {
    all_dir(dir).join(dataset.file_name())
}

/// The directory of all manifests.
fn all_dir(dir: &Path) -> PathBuf {
    dir.join("manifests")
}

/// The file of what a snapshot leaves out, beside its manifest.
fn left_out_path(dir: &Path, snapshot: &SnapshotId) -> PathBuf {
    manifest_path(dir, &snapshot.dataset, snapshot.version).with_extension("left-out")
}

/// The manifests of one master.
#[derive(Debug)]
pub(crate) struct Manifests {
    dir: PathBuf,
    kept: Mutex<KeptManifests>,
}

impl Manifests {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            kept: Mutex::default(),
        }
    }

    /// A builder whose temporary files are beside the manifests.
    pub(crate) fn builder(&self) -> ManifestBuilder {
        ManifestBuilder::in_directory(&all_dir(&self.dir))
    }

    /// Reads a manifest; blocks on the disk.
    pub(crate) fn load(&self, snapshot: &SnapshotId) -> Result<Arc<Manifest>, MasterError> {
        if let Some(kept) = self.kept.lock().get(snapshot) {
            return Ok(kept);
        }
        let path = manifest_path(&self.dir, &snapshot.dataset, snapshot.version);
        let manifest = Manifest::open(&path).map_err(|error| match error {
            OpenError::Io(error) => failed(&path, &error),
            OpenError::Damaged(error) => failed(
                &path,
                &format!(
                    "{error}; run `weir dataset refresh {}` to list it again",
                    snapshot.dataset
                ),
            ),
        })?;
        Ok(self.keep(manifest))
    }

    /// Writes a new manifest so that it survives a crash; blocks on the disk.
    pub(crate) fn save(&self, manifest: Manifest) -> Result<Arc<Manifest>, MasterError> {
        let snapshot = &manifest.summary().snapshot;
        let path = manifest_path(&self.dir, &snapshot.dataset, snapshot.version);
        let new = path.with_extension("new");
        let write = || {
            std::fs::create_dir_all(dataset_dir(&self.dir, &snapshot.dataset))?;
            manifest.write_to(&new)?;
            std::fs::rename(&new, &path)?;
            std::fs::File::open(dataset_dir(&self.dir, &snapshot.dataset))?.sync_all()
        };
        if let Err(error) = write() {
            // On a full disk, half a manifest would be in the way of all that is written next.
            warn_unless_gone(&new, std::fs::remove_file(&new));
            return Err(failed(&path, &error));
        }
        Ok(self.keep(manifest))
    }

    /// Writes what a snapshot leaves out; blocks on the disk.
    pub(crate) fn save_left_out(
        &self,
        snapshot: &SnapshotId,
        objects: &[LeftOutObject],
    ) -> Result<(), MasterError> {
        let path = left_out_path(&self.dir, snapshot);
        if objects.is_empty() {
            warn_unless_gone(&path, std::fs::remove_file(&path));
            return Ok(());
        }
        let objects = objects.iter().map(|object| v1::LeftOutObject {
            reason: object.reason.label().to_owned(),
            key: object.key.to_vec(),
        });
        let list = v1::ListLeftOutReply {
            version: snapshot.version,
            objects: objects.collect(),
            ..v1::ListLeftOutReply::default()
        };
        let new = path.with_extension("left-out.new");
        let write = || {
            std::fs::create_dir_all(dataset_dir(&self.dir, &snapshot.dataset))?;
            std::fs::write(&new, list.encode_to_vec())?;
            std::fs::rename(&new, &path)
        };
        write().map_err(|error| {
            warn_unless_gone(&new, std::fs::remove_file(&new));
            failed(&path, &error)
        })
    }

    /// Reads what a snapshot leaves out; blocks on the disk. Nothing of one whose list was not kept.
    pub(crate) fn load_left_out(
        &self,
        snapshot: &SnapshotId,
    ) -> Result<v1::ListLeftOutReply, MasterError> {
        let path = left_out_path(&self.dir, snapshot);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(|error| failed(&path, &error))?,
        };
        v1::ListLeftOutReply::decode(&*bytes).map_err(|error| {
            let dataset = &snapshot.dataset;
            failed(
                &path,
                &format!("{error}; run `weir dataset refresh {dataset}` to list it again"),
            )
        })
    }

    /// Removes the manifest of an old snapshot.
    pub(crate) fn remove(&self, snapshot: &SnapshotId) {
        self.kept.lock().forget(|kept| kept == snapshot);
        let manifest = manifest_path(&self.dir, &snapshot.dataset, snapshot.version);
        for path in [manifest, left_out_path(&self.dir, snapshot)] {
            warn_unless_gone(&path, std::fs::remove_file(&path));
        }
    }

    /// Removes all manifests of a dataset.
    pub(crate) fn remove_all(&self, dataset: &DatasetName) {
        self.kept.lock().forget(|kept| kept.dataset == *dataset);
        let dir = dataset_dir(&self.dir, dataset);
        warn_unless_gone(&dir, std::fs::remove_dir_all(&dir));
    }

    fn keep(&self, manifest: Manifest) -> Arc<Manifest> {
        let manifest = Arc::new(manifest);
        self.kept.lock().keep(manifest.clone());
        manifest
    }
}

fn failed(path: &Path, reason: &impl ToString) -> MasterError {
    MasterError::Manifest {
        path: path.display().to_string(),
        reason: reason.to_string(),
    }
}

fn warn_unless_gone(path: &Path, result: std::io::Result<()>) {
    if let Err(error) = result
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("{} could not be removed: {error}", path.display());
    }
}
