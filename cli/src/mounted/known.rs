//! What a machine keeps of a cluster beyond its mounts (`--known-dir`): manifests of snapshots that were mounted here, the cluster
//! map, and where datasets are placed. By that a snapshot is mounted again while the master is away.
//!
//! Several mounts share the directory. Nothing in it is needed: what cannot be written or read is as if it were not there.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use weir_core::{DatasetName, Manifest, SnapshotId};

use super::pinned;

/// Manifests that are kept, and how much of them, in bytes; and what is kept of the cluster. The longest unused go first.
const MAX_MANIFESTS: usize = 256;
const MAX_MANIFEST_BYTES: u64 = 2 << 30;
const MAX_CLUSTER_FILES: usize = 4096;
const MAX_CLUSTER_BYTES: u64 = 64 << 20;
/// How often a mount writes what it knows of the cluster, at most.
pub(super) const KEEP: Duration = Duration::from_mins(1);

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Known(PathBuf);

impl Known {
    /// Makes the directory, for this user alone.
    pub(super) fn new(dir: &Path) -> Self {
        let known = Self(dir.to_owned());
        for dir in [known.manifests(), known.cluster()] {
            let made = DirBuilder::new().mode(0o700).recursive(true).create(&dir);
            if let Err(error) = made {
                tracing::warn!("{} cannot be made: {error}", dir.display());
            }
        }
        known
    }

    /// Where the cluster map is kept. No dataset has such a name.
    pub(super) fn map(&self) -> PathBuf {
        self.cluster().join("@map.json")
    }

    /// Where it is kept where a dataset is placed.
    pub(super) fn placement(&self, dataset: &DatasetName) -> PathBuf {
        self.cluster().join(format!("{}.json", dataset.file_name()))
    }

    /// Keeps the cluster map or a placement.
    pub(super) fn save(&self, file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let new = unique(file);
        let written = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, file));
        if written.is_err() {
            // Half of it would only take space.
            let _ = std::fs::remove_file(&new);
        }
        prune(&self.cluster(), MAX_CLUSTER_FILES, MAX_CLUSTER_BYTES);
        written.with_context(|| format!("cannot write {}", file.display()))
    }

    fn cluster(&self) -> PathBuf {
        self.0.join("cluster")
    }

    fn manifests(&self) -> PathBuf {
        self.0.join("manifests")
    }

    fn manifest(&self, snapshot: &SnapshotId) -> PathBuf {
        let name = format!("{}@{}", snapshot.dataset.file_name(), snapshot.version);
        self.manifests().join(name)
    }

    /// Keeps a manifest: a second name for the file that a mount has of it, and in the place of those that were not used for long.
    pub(super) fn keep(&self, snapshot: &SnapshotId, file: &Path) {
        let kept = self.manifest(snapshot);
        if let Err(error) = keep(file, &kept) {
            tracing::warn!("{} was not kept: {error}", kept.display());
        }
        prune(&self.manifests(), MAX_MANIFESTS, MAX_MANIFEST_BYTES);
    }

    /// Whether the manifest of a snapshot is kept.
    pub(super) fn has(&self, snapshot: &SnapshotId) -> bool {
        self.manifest(snapshot).exists()
    }

    /// The manifest of a snapshot, and its file, if it is kept. A file that is not it is removed: the master's is waited for then.
    pub(super) fn load(&self, snapshot: &SnapshotId) -> Option<(Manifest, PathBuf)> {
        let file = self.manifest(snapshot);
        match pinned::read(file.clone()) {
            Ok(manifest) if manifest.summary().snapshot == *snapshot => {
                touch(&file);
                return Some((manifest, file));
            }
            Ok(manifest) => {
                let other = &manifest.summary().snapshot;
                tracing::warn!("{} is of snapshot {other}", file.display());
            }
            Err(error) => tracing::warn!("a manifest that was kept cannot be used: {error:#}"),
        }
        let _ = std::fs::remove_file(&file);
        None
    }
}

/// A name beside a file that nobody else uses, of which there may be some in other pods at this moment.
fn unique(file: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds = now.unwrap_or_default().as_nanos();
    file.with_extension(format!("new-{}-{nanoseconds}", std::process::id()))
}

fn touch(file: &Path) {
    let touched = std::fs::File::open(file).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!("{} keeps its age: {error}", file.display());
    }
}

fn keep(file: &Path, kept: &Path) -> std::io::Result<()> {
    let length = file.metadata()?.len();
    // A snapshot never changes.
    if kept.metadata().is_ok_and(|about| about.len() == length) {
        touch(kept);
        return Ok(());
    }
    let new = unique(kept);
    let made = std::fs::hard_link(file, &new)
        .or_else(|_| std::fs::copy(file, &new).map(drop))
        .and_then(|()| std::fs::rename(&new, kept));
    // Half of it would only take space; and two names of one file are not renamed to each other.
    let _ = std::fs::remove_file(&new);
    made?;
    touch(kept);
    Ok(())
}

/// Removes the files of a directory that were not used for the longest time, beyond so many and so many bytes.
fn prune(dir: &Path, most: usize, bytes: u64) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
        .filter_map(|entry| {
            let about = entry.metadata().ok()?;
            Some((about.modified().ok()?, about.len(), entry.path()))
        })
        .collect();
    files.sort_unstable_by(|a, b| b.cmp(a));
    let mut sum = 0;
    for (index, (_, length, file)) in files.into_iter().enumerate() {
        sum += length;
        // The newest is about to be used.
        if index > 0 && (index >= most || sum > bytes) {
            let _ = std::fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_kept_under_a_second_name_and_the_longest_unused_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::new(&dir.path().join("known"));
        let snapshot = |version| SnapshotId {
            dataset: "team-a/x".parse().unwrap(),
            version,
        };
        let file = dir.path().join("manifest");
        std::fs::write(&file, "no manifest").unwrap();
        known.keep(&snapshot(1), &file);
        known.keep(&snapshot(1), &file);
        let kept = known.manifest(&snapshot(1));
        assert_eq!(std::fs::read(&kept).unwrap(), b"no manifest");
        std::fs::remove_file(&kept).unwrap();
        std::fs::write(&kept, "half").unwrap();
        known.keep(&snapshot(1), &file);
        assert_eq!(std::fs::read(&kept).unwrap(), b"no manifest");
        let names = || {
            let entries = std::fs::read_dir(known.manifests()).unwrap();
            let name = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap();
            let mut names: Vec<String> = entries.flatten().map(name).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["team-a+x@1"], "nothing else is left");
        for version in 2..5 {
            let kept = known.manifest(&snapshot(version));
            std::fs::write(&kept, "12345").unwrap();
            let age = Duration::from_secs(100 - version);
            let file = std::fs::File::options().write(true).open(&kept).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        prune(&known.manifests(), 3, u64::MAX);
        assert_eq!(names(), ["team-a+x@1", "team-a+x@3", "team-a+x@4"]);
        prune(&known.manifests(), 3, 16);
        assert_eq!(names(), ["team-a+x@1", "team-a+x@4"]);
        prune(&known.manifests(), 3, 0);
        assert_eq!(names(), ["team-a+x@1"]);
        assert!(known.load(&snapshot(2)).is_none(), "it is not there");
        assert!(known.has(&snapshot(1)));
        assert!(known.load(&snapshot(1)).is_none(), "it is damaged");
        assert!(!known.has(&snapshot(1)), "whole ones are waited for");
    }

    #[test]
    fn a_directory_that_cannot_be_had_is_as_if_it_were_empty() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let known = Known::new(&file);
        let snapshot = SnapshotId {
            dataset: "x".parse().unwrap(),
            version: 1,
        };
        known.keep(&snapshot, &file);
        assert!(known.load(&snapshot).is_none());
        assert!(known.save(&known.map(), b"{}").is_err());
    }
}
