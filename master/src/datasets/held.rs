//! Which snapshots the pods of a job see, for as long as the job is there.
//!
//! The first pod of a job that mounts a dataset sees the newest snapshot, and all others of that job the same one, also when the
//! dataset was listed again meanwhile, and on any node. What a job is, only those know who ask: here it is a word.
//!
//! A job is forgotten when it is said to be gone, or when nobody has spoken of it for [`KEPT_FOR`].

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use weir_core::{DatasetName, SnapshotId};
use weir_proto::v1;

use crate::error::MasterError;
use crate::records::{Records, decode, now_ns};
use crate::store::{Change, StoreError};

const KEY: &str = "job-snapshots/";
/// Jobs that are remembered, datasets of one, and bytes of its name.
const MAX_JOBS: usize = 10_000;
const MAX_DATASETS: usize = 256;
const MAX_NAME: usize = 1024;
/// How long a job is remembered of which nobody speaks.
const KEPT_FOR: Duration = Duration::from_hours(7 * 24);
/// How long a word that a job is there is good for.
const REVIEW: Duration = Duration::from_mins(10);
/// Jobs that are asked for at once.
const MAX_ASKED: usize = 64;
/// Jobs that are written at once.
const MAX_WRITTEN: usize = 256;
/// The moment in a record is this old at most.
const WRITE_AGAIN: Duration = Duration::from_hours(24);

/// The jobs that see snapshots.
#[derive(Debug)]
pub(crate) struct HeldSnapshots {
    records: Records,
    jobs: Mutex<HashMap<String, Job>>,
    /// Records are written in the order in which they were changed.
    saving: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Job {
    snapshots: BTreeMap<DatasetName, u64>,
    /// When it was known last that it is there, and that moment as it is stored; none if what is stored is not this.
    seen_ns: i64,
    stored_ns: Option<i64>,
}

impl HeldSnapshots {
    pub(super) fn load(records: Records) -> Result<Self, StoreError> {
        let mut jobs = HashMap::new();
        for (key, bytes) in records.store().scan(KEY)? {
            let record: v1::JobSnapshots = decode(&key, &bytes)?;
            let snapshots = record.snapshots.into_iter();
            let snapshots =
                snapshots.filter_map(|one| Some((one.dataset.parse().ok()?, one.version)));
            let job = Job {
                snapshots: snapshots.collect(),
                seen_ns: record.seen_ns,
                stored_ns: Some(record.seen_ns),
            };
            jobs.insert(record.job, job);
        }
        Ok(Self {
            records,
            jobs: Mutex::new(jobs),
            saving: tokio::sync::Mutex::default(),
        })
    }

    /// The snapshot that the pods of a job see of a dataset: one that `is_there`, or else the newest from now on.
    pub(super) async fn choose(
        &self,
        job: &str,
        dataset: &DatasetName,
        newest: u64,
        is_there: impl Fn(u64) -> bool,
    ) -> Result<u64, MasterError> {
        if job.len() > MAX_NAME || job.chars().any(char::is_control) {
            return Err(MasterError::Invalid(format!(
                "the name of a job has at most {MAX_NAME} bytes, all of them printable"
            )));
        }
        let now = now_ns();
        let (version, is_stale) = {
            let mut jobs = self.jobs.lock();
            if jobs.len() >= MAX_JOBS && !jobs.contains_key(job) {
                jobs.retain(|_, job| !job.is_forgotten(now));
                if jobs.len() >= MAX_JOBS {
                    return Err(MasterError::Busy(format!(
                        "the snapshots of {MAX_JOBS} jobs are held; no more fit"
                    )));
                }
            }
            let job = jobs.entry(job.to_owned()).or_default();
            job.seen_ns = now;
            let held = job.snapshots.get(dataset).copied();
            let held_still = held.filter(|version| is_there(*version));
            if held_still.is_none() {
                if held.is_none() && job.snapshots.len() >= MAX_DATASETS {
                    return Err(MasterError::Busy(format!(
                        "a job has the snapshots of at most {MAX_DATASETS} datasets held"
                    )));
                }
                job.snapshots.insert(dataset.clone(), newest);
                job.stored_ns = None;
            }
            (held_still.unwrap_or(newest), job.is_stale())
        };
        if is_stale {
            self.save(&[job.to_owned()]).await?;
        }
        Ok(version)
    }

    /// Whether any job sees a snapshot.
    pub(super) fn is_held(&self, snapshot: &SnapshotId) -> bool {
        let now = now_ns();
        let jobs = self.jobs.lock();
        jobs.values().any(|job| {
            !job.is_forgotten(now)
                && job.snapshots.get(&snapshot.dataset) == Some(&snapshot.version)
        })
    }

    /// Takes note of which jobs are gone and which are there. Gives some of which that is not known any more.
    pub(crate) async fn review(
        &self,
        request: v1::ReviewJobsRequest,
    ) -> Result<Vec<String>, MasterError> {
        let now = now_ns();
        let (mut stale, mut asked) = (Vec::new(), Vec::new());
        {
            let mut jobs = self.jobs.lock();
            for name in &request.gone {
                if jobs.remove(name).is_some() {
                    stale.push(name.clone());
                }
            }
            for name in request.there {
                if let Some(job) = jobs.get_mut(&name) {
                    job.seen_ns = now;
                    if job.is_stale() {
                        stale.push(name);
                    }
                }
            }
            jobs.retain(|name, job| {
                let is_forgotten = job.is_forgotten(now);
                if is_forgotten {
                    stale.push(name.clone());
                }
                !is_forgotten
            });
            let due = jobs.iter().filter(|(_, job)| job.is_older(now, REVIEW));
            let mut due: Vec<(i64, &String)> = due.map(|(name, job)| (job.seen_ns, name)).collect();
            due.sort_unstable();
            asked.extend(
                due.into_iter()
                    .take(MAX_ASKED)
                    .map(|(_, name)| name.clone()),
            );
        }
        self.save(&stale).await?;
        Ok(asked)
    }

    /// Forgets a dataset that is deleted.
    pub(super) async fn forget(&self, dataset: &DatasetName) -> Result<(), MasterError> {
        let mut changed = Vec::new();
        self.jobs.lock().retain(|name, job| {
            if job.snapshots.remove(dataset).is_some() {
                job.stored_ns = None;
                changed.push(name.clone());
            }
            !job.snapshots.is_empty()
        });
        self.save(&changed).await
    }

    /// Stores jobs as they are now, unless that was done while this waited for its turn.
    async fn save(&self, names: &[String]) -> Result<(), MasterError> {
        for names in names.chunks(MAX_WRITTEN) {
            let _one_at_a_time = self.saving.lock().await;
            let changes = self.changes(names);
            if changes.is_empty() {
                continue;
            }
            if let Err(error) = self.records.write(changes).await {
                let mut jobs = self.jobs.lock();
                for name in names {
                    if let Some(job) = jobs.get_mut(name) {
                        job.stored_ns = None;
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// What is to be written so that these jobs are stored as they are.
    fn changes(&self, names: &[String]) -> Vec<Change> {
        let mut jobs = self.jobs.lock();
        let change = |name: &String| {
            let key = format!("{KEY}{name}");
            let Some(job) = jobs.get_mut(name) else {
                return Some(Change::Delete(key));
            };
            if !job.is_stale() {
                return None;
            }
            job.stored_ns = Some(job.seen_ns);
            let snapshot = |(dataset, version): (&DatasetName, &u64)| v1::SnapshotName {
                dataset: dataset.to_string(),
                version: *version,
            };
            let record = v1::JobSnapshots {
                job: name.clone(),
                snapshots: job.snapshots.iter().map(snapshot).collect(),
                seen_ns: job.seen_ns,
            };
            Some(Change::Put(key, record.encode_to_vec()))
        };
        names.iter().filter_map(change).collect()
    }
}

impl Job {
    fn is_older(&self, now: i64, than: Duration) -> bool {
        i128::from(now) - i128::from(self.seen_ns) > than.as_nanos() as i128
    }

    fn is_forgotten(&self, now: i64) -> bool {
        self.is_older(now, KEPT_FOR)
    }

    /// Whether what is stored is not this, or its moment is too old.
    fn is_stale(&self) -> bool {
        self.stored_ns.is_none_or(|stored| {
            i128::from(self.seen_ns) - i128::from(stored) > WRITE_AGAIN.as_nanos() as i128
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::RocksStore;

    fn open(dir: &tempfile::TempDir) -> HeldSnapshots {
        let store = RocksStore::open(&dir.path().join("store")).unwrap();
        HeldSnapshots::load(Records::new(Arc::new(store))).unwrap()
    }

    fn name(name: &str) -> DatasetName {
        name.parse().unwrap()
    }

    fn snapshot(version: u64) -> SnapshotId {
        SnapshotId {
            dataset: name("x"),
            version,
        }
    }

    async fn review(held: &HeldSnapshots, gone: &[&str], there: &[&str]) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = v1::ReviewJobsRequest {
            gone: own(gone),
            there: own(there),
        };
        held.review(request).await.unwrap()
    }

    #[tokio::test]
    async fn all_pods_of_a_job_see_what_the_first_saw_until_the_job_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        {
            let held = open(&dir);
            assert_eq!(held.choose("a", &name("x"), 3, |_| true).await.unwrap(), 3);
            assert_eq!(held.choose("a", &name("x"), 4, |_| true).await.unwrap(), 3);
            assert_eq!(held.choose("b", &name("x"), 4, |_| true).await.unwrap(), 4);
            assert_eq!(held.choose("a", &name("y"), 1, |_| true).await.unwrap(), 1);
        }
        // A master that was started again.
        let held = open(&dir);
        assert_eq!(held.choose("a", &name("x"), 9, |_| true).await.unwrap(), 3);
        assert!(held.is_held(&snapshot(3)) && !held.is_held(&snapshot(9)));
        assert_eq!(review(&held, &["a", "unknown"], &["b"]).await, [""; 0]);
        drop(held);
        let held = open(&dir);
        assert!(!held.is_held(&snapshot(3)));
        assert_eq!(held.choose("a", &name("x"), 9, |_| true).await.unwrap(), 9);
        assert_eq!(held.choose("b", &name("x"), 9, |_| true).await.unwrap(), 4);
        // One that is there no more is replaced.
        let chosen = held
            .choose("b", &name("x"), 9, |version| version != 4)
            .await;
        assert_eq!(chosen.unwrap(), 9);
        held.forget(&name("x")).await.unwrap();
        drop(held);
        assert!(open(&dir).jobs.lock().is_empty());
    }

    #[tokio::test]
    async fn many_pods_that_come_at_once_see_one_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let held = Arc::new(open(&dir));
        let ask = |newest| {
            let held = held.clone();
            tokio::spawn(async move { held.choose("a", &name("x"), newest, |_| true).await })
        };
        let asked: Vec<_> = (1..=50).map(ask).collect();
        let mut seen = std::collections::HashSet::new();
        for asked in asked {
            seen.insert(asked.await.unwrap().unwrap());
        }
        assert_eq!(seen.len(), 1, "{seen:?}");
    }

    #[tokio::test]
    async fn jobs_of_which_nobody_speaks_are_asked_for_and_then_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let held = open(&dir);
        for number in 0..100 {
            let job = format!("job-{number:03}");
            held.choose(&job, &name("x"), 1, |_| true).await.unwrap();
        }
        assert!(review(&held, &[], &[]).await.is_empty());
        let age = |by: Duration| {
            for (index, (_, job)) in held.jobs.lock().iter_mut().enumerate() {
                job.seen_ns -= by.as_nanos() as i64 + index as i64;
            }
        };
        age(REVIEW);
        let asked = review(&held, &[], &[]).await;
        assert_eq!(asked.len(), MAX_ASKED);
        let there: Vec<&str> = asked.iter().map(String::as_str).collect();
        let next = review(&held, &[], &there).await;
        assert_eq!(next.len(), 100 - MAX_ASKED);
        assert!(
            next.iter().all(|name| !asked.contains(name)),
            "not the same again"
        );
        age(KEPT_FOR);
        assert!(review(&held, &[], &[]).await.is_empty());
        assert!(held.jobs.lock().is_empty());
        drop(held);
        assert!(open(&dir).jobs.lock().is_empty());
    }

    #[tokio::test]
    async fn names_that_callers_make_up_find_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let held = open(&dir);
        let long = "x".repeat(MAX_NAME + 1);
        for bad in [long.as_str(), "a\nb"] {
            let refused = held.choose(bad, &name("x"), 1, |_| true).await;
            assert!(matches!(refused, Err(MasterError::Invalid(_))));
        }
        for number in 0..MAX_DATASETS {
            let dataset = name(&format!("x{number}"));
            held.choose("a", &dataset, 1, |_| true).await.unwrap();
        }
        let refused = held.choose("a", &name("more"), 1, |_| true).await;
        assert!(matches!(refused, Err(MasterError::Busy(_))));
        let full = (0..MAX_JOBS).map(|number| {
            (
                format!("job-{number}"),
                Job {
                    seen_ns: now_ns(),
                    ..Job::default()
                },
            )
        });
        held.jobs.lock().extend(full);
        let refused = held.choose("new", &name("x"), 1, |_| true).await;
        assert!(matches!(refused, Err(MasterError::Busy(_))));
        assert_eq!(held.choose("a", &name("x0"), 7, |_| true).await.unwrap(), 1);
    }
}
