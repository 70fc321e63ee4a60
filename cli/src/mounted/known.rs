//! What a machine keeps of a cluster beyond its mounts (`--known-dir`): manifests of snapshots that were mounted here, the cluster
//! map, and where datasets are placed. By that a snapshot is mounted again while the master is away.
//!
//! Several mounts share the directory. Nothing in it is needed: what cannot be written or read is as if it were not there.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use weir_core::{DatasetName, Manifest, SnapshotId};

use super::pinned;

/// Manifests that are kept, and how much of them, in bytes; the longest unused go first.
const MAX_MANIFESTS: usize = 256;
const MAX_BYTES: u64 = 2 << 30;
/// How often a mount writes what it knows of the cluster, at most.
pub(super) const KEEP: Duration = Duration::from_mins(1);

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Known(PathBuf);

impl Known {
    /// Makes the directory.
    pub(super) fn new(dir: &Path) -> Self {
        let known = Self(dir.to_owned());
        for dir in [known.manifests(), known.placements()] {
            if let Err(error) = std::fs::create_dir_all(&dir) {
                tracing::warn!("{} cannot be made: {error}", dir.display());
            }
        }
        known
    }

    /// Where the cluster map is kept.
    pub(super) fn map(&self) -> PathBuf {
        self.0.join("cluster-map.json")
    }

    /// Where it is kept where a dataset is placed.
    pub(super) fn placement(&self, dataset: &DatasetName) -> PathBuf {
        self.placements()
            .join(format!("{}.json", dataset.file_name()))
    }

    fn placements(&self) -> PathBuf {
        self.0.join("placements")
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
        prune(&self.manifests(), MAX_MANIFESTS, MAX_BYTES);
    }

    /// Whether the manifest of a snapshot is kept.
    pub(super) fn has(&self, snapshot: &SnapshotId) -> bool {
        self.manifest(snapshot).exists()
    }

    /// The manifest of a snapshot, and its file, if it is kept.
    pub(super) fn load(&self, snapshot: &SnapshotId) -> Option<(Manifest, PathBuf)> {
        let file = self.manifest(snapshot);
        let manifest = match pinned::read(file.clone()) {
            Ok(manifest) if manifest.summary().snapshot == *snapshot => manifest,
            Ok(_) => return None,
            Err(error) => {
                tracing::debug!("no manifest is kept that could be used: {error:#}");
                return None;
            }
        };
        touch(&file);
        Some((manifest, file))
    }
}

fn touch(file: &Path) {
    let touched = std::fs::File::open(file).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!("{} keeps its age: {error}", file.display());
    }
}

fn keep(file: &Path, kept: &Path) -> std::io::Result<()> {
    if kept.exists() {
        touch(kept);
        return Ok(());
    }
    // Others may do the same at this moment.
    let new = kept.with_extension(format!("new-{}", std::process::id()));
    let _ = std::fs::remove_file(&new);
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
        assert!(known.load(&snapshot(1)).is_none(), "it is damaged");
        assert!(known.load(&snapshot(2)).is_none(), "it is not there");
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
    }
}
