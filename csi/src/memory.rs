//! What a node remembers of datasets that it has mounted, for pods that start while the master is away.
//!
//! Each dataset has a small file beside the manifests that mounts keep. Nothing of it is needed: what cannot be written or read
//! is as if it were not there, and whatever the master says is newer.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use weir_core::{DatasetName, SnapshotId};

/// Snapshots of a dataset that are remembered, and datasets.
const MAX_SNAPSHOTS: usize = 32;
const MAX_DATASETS: usize = 4096;
/// For how long it counts which other namespaces a dataset lets in.
const GRANTED_FOR: Duration = Duration::from_hours(24);
/// What has not changed is written anew after so long, so that its age is that of the master's last word.
const WRITE_AGAIN: Duration = Duration::from_mins(10);
/// A master that nobody has asked for so long may have been there meanwhile.
const UNASKED: Duration = Duration::from_mins(5);

/// What is remembered of datasets, and since when the master is away.
#[derive(Debug)]
pub(crate) struct Memory {
    dir: PathBuf,
    away: Mutex<Option<Away>>,
    /// Each change of a file reads it first.
    changes: Mutex<()>,
}

#[derive(Clone, Copy, Debug)]
struct Away {
    since: Instant,
    last: Instant,
}

/// What is remembered of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    /// The namespaces that it lets in beside its own.
    pub(crate) granted: Vec<String>,
    /// The snapshots that were mounted here, those that were used last at the end.
    pub(crate) mounted: Vec<u64>,
}

impl Memory {
    /// Makes the directory, for this user alone.
    pub(crate) fn new(dir: &Path) -> Self {
        if let Err(error) = DirBuilder::new().mode(0o700).recursive(true).create(dir) {
            tracing::warn!("{} cannot be made: {error}", dir.display());
        }
        Self {
            dir: dir.to_owned(),
            away: Mutex::default(),
            changes: Mutex::default(),
        }
    }

    /// The master has said who may mount a dataset.
    pub(crate) fn may_mount(&self, dataset: &DatasetName, granted: &[String]) {
        *self.away.lock() = None;
        self.change(dataset, |known| granted.clone_into(&mut known.granted));
    }

    /// A snapshot was mounted.
    pub(crate) fn mounted(&self, snapshot: &SnapshotId) {
        self.change(&snapshot.dataset, |known| {
            known.mounted.retain(|version| *version != snapshot.version);
            known.mounted.push(snapshot.version);
            let surplus = known.mounted.len().saturating_sub(MAX_SNAPSHOTS);
            known.mounted.drain(..surplus);
        });
    }

    /// The master has said that there is no such dataset.
    pub(crate) fn forget(&self, dataset: &DatasetName) {
        *self.away.lock() = None;
        // It need not be there.
        let _ = std::fs::remove_file(self.file(dataset));
    }

    /// For how long the master has been away, which did not answer just now.
    pub(crate) fn away(&self) -> Duration {
        let now = Instant::now();
        let mut away = self.away.lock();
        let before = away.filter(|away| now - away.last < UNASKED);
        let since = before.map_or(now, |away| away.since);
        *away = Some(Away { since, last: now });
        now - since
    }

    /// What is remembered of a dataset.
    pub(crate) fn recall(&self, dataset: &DatasetName) -> Option<Remembered> {
        let (mut known, age) = self.read(dataset)?;
        if age >= GRANTED_FOR {
            known.granted.clear();
        }
        Some(known)
    }

    fn file(&self, dataset: &DatasetName) -> PathBuf {
        self.dir.join(format!("{}.json", dataset.file_name()))
    }

    /// With its age.
    fn read(&self, dataset: &DatasetName) -> Option<(Remembered, Duration)> {
        let file = self.file(dataset);
        let known = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
        let written = file.metadata().and_then(|about| about.modified()).ok()?;
        let age = SystemTime::now().duration_since(written);
        Some((known, age.unwrap_or_default()))
    }

    fn change(&self, dataset: &DatasetName, change: impl FnOnce(&mut Remembered)) {
        let _turn = self.changes.lock();
        let before = self.read(dataset);
        let mut known = before.clone().map(|(known, _)| known).unwrap_or_default();
        change(&mut known);
        if before.is_some_and(|(before, age)| before == known && age < WRITE_AGAIN) {
            return;
        }
        let file = self.file(dataset);
        if let Err(error) = self.write(&file, &known) {
            tracing::warn!("{} cannot be written: {error}", file.display());
        }
    }

    fn write(&self, file: &Path, known: &Remembered) -> std::io::Result<()> {
        if !file.exists() {
            self.make_room()?;
        }
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(known)?)?;
        std::fs::rename(&new, file)
    }

    /// Removes the oldest files in place of which there is to be a newer one.
    fn make_room(&self) -> std::io::Result<()> {
        let entries = std::fs::read_dir(&self.dir)?.flatten();
        let mut files: Vec<(SystemTime, PathBuf)> = entries
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        files.sort_unstable();
        let surplus = (files.len() + 1).saturating_sub(MAX_DATASETS);
        for (_, file) in files.into_iter().take(surplus) {
            std::fs::remove_file(file)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(version: u64) -> SnapshotId {
        SnapshotId {
            dataset: "team-a/x".parse().unwrap(),
            version,
        }
    }

    #[test]
    fn it_outlives_the_process_and_what_others_may_see_is_forgotten_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new(dir.path());
        let dataset = snapshot(1).dataset;
        assert_eq!(memory.recall(&dataset), None);
        let granted = ["team-b".to_owned()];
        memory.may_mount(&dataset, &granted);
        for version in [1, 2, 1] {
            memory.mounted(&snapshot(version));
        }
        let memory = Memory::new(dir.path());
        let known = memory.recall(&dataset).unwrap();
        assert_eq!(
            (&known.granted[..], &known.mounted[..]),
            (&granted[..], &[2, 1][..])
        );
        let file = std::fs::File::options()
            .write(true)
            .open(memory.file(&dataset));
        let long_ago = SystemTime::now() - GRANTED_FOR;
        file.unwrap().set_modified(long_ago).unwrap();
        let known = memory.recall(&dataset).unwrap();
        assert_eq!((known.granted.len(), known.mounted), (0, vec![2, 1]));
        // The master's word again.
        memory.may_mount(&dataset, &granted);
        assert_eq!(memory.recall(&dataset).unwrap().granted, granted);
        for version in 3..100 {
            memory.mounted(&snapshot(version));
        }
        assert_eq!(
            memory.recall(&dataset).unwrap().mounted.len(),
            MAX_SNAPSHOTS
        );
        std::fs::write(memory.file(&dataset), "half of it").unwrap();
        assert_eq!(memory.recall(&dataset), None);
        memory.mounted(&snapshot(3));
        memory.forget(&dataset);
        assert_eq!(memory.recall(&dataset), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_had_is_no_error_and_a_full_one_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let memory = Memory::new(&file);
        memory.mounted(&snapshot(1));
        assert_eq!(memory.recall(&snapshot(1).dataset), None);
        let memory = Memory::new(dir.path());
        for number in 0..MAX_DATASETS {
            std::fs::write(dir.path().join(number.to_string()), "").unwrap();
        }
        memory.mounted(&snapshot(1));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), MAX_DATASETS);
        assert!(memory.recall(&snapshot(1).dataset).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_absence_is_over_when_the_master_answers_or_nobody_has_asked_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new(dir.path());
        let pass = tokio::time::advance;
        assert_eq!(memory.away(), Duration::ZERO);
        pass(Duration::from_mins(2)).await;
        assert_eq!(memory.away(), Duration::from_mins(2));
        pass(Duration::from_mins(4)).await;
        assert_eq!(memory.away(), Duration::from_mins(6));
        pass(UNASKED).await;
        assert_eq!(memory.away(), Duration::ZERO);
        pass(Duration::from_mins(2)).await;
        memory.may_mount(&snapshot(1).dataset, &[]);
        assert_eq!(memory.away(), Duration::ZERO);
    }
}
