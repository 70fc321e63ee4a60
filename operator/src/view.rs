//! What the master knows of all datasets, asked for once for all of them.
//!
//! A look at an object reads it here, so that a thousand Datasets cost the master two calls every ten seconds. When something of
//! a dataset has changed that its status shows, its object is looked at.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_core::{DatasetName, DatasetSpec};
use weir_proto::v1;

use crate::master::{Known, Master, MasterError};
use crate::metrics::OperatorMetrics;

/// How often the master is asked, and how often when it did not answer.
const LOOK: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Age from which on the view says nothing of a dataset that may have changed.
const STALE: Duration = Duration::from_mins(1);
/// Names of datasets that changed and whose objects were not looked at yet. When there are more, the next look finds them.
pub(crate) const MAX_CHANGED: usize = 16_384;

/// What is known of one dataset.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// The master was not asked yet, or has not answered for a while, and why.
    Away(String),
    /// It does not know the dataset.
    Absent,
    Present(Arc<Known>),
}

/// What the master knows.
#[derive(Debug, Default)]
pub(crate) struct View {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    at: Option<Instant>,
    datasets: HashMap<String, Arc<Known>>,
    workers: Arc<Vec<v1::WorkerStatus>>,
    trouble: Option<MasterError>,
    credentials: Vec<String>,
    /// Claims of datasets in namespaces that they let in, by namespace and name.
    shared: HashMap<(String, String), DatasetName>,
    /// Counts what was learned between two looks.
    edits: u64,
}

impl State {
    /// Fails with the reason while nothing is known that may have changed since.
    fn check(&self) -> Result<(), String> {
        if self.at.is_some_and(|at| at.elapsed() < STALE) {
            return Ok(());
        }
        let trouble = self.trouble.as_ref();
        Err(trouble.map_or("it was not asked yet".to_owned(), ToString::to_string))
    }
}

impl View {
    pub(crate) fn get(&self, name: &DatasetName) -> Seen {
        let state = self.state.read();
        if let Err(trouble) = state.check() {
            return Seen::Away(trouble);
        }
        match state.datasets.get(name.as_str()) {
            Some(known) => Seen::Present(known.clone()),
            None => Seen::Absent,
        }
    }

    /// Workers, and those that are cordoned and away; or why they are not known now.
    pub(crate) fn workers(&self) -> Result<Arc<Vec<v1::WorkerStatus>>, String> {
        let state = self.state.read();
        state.check().map(|()| state.workers.clone())
    }

    /// What is known of the Datasets whose placement names a pool of workers, or none if it is empty.
    pub(crate) fn of_pool(&self, pool: &str) -> Vec<v1::DatasetStatus> {
        let state = self.state.read();
        let statuses = state.datasets.values().map(|known| &known.status);
        statuses
            .filter(|status| {
                let placement = status.placement.as_ref();
                placement.map_or("", |placement| placement.pool.as_str()) == pool
            })
            .cloned()
            .collect()
    }

    /// The dataset that a claim is for, if it is for one.
    pub(crate) fn of_claim(&self, namespace: &str, claim: &str) -> Option<DatasetName> {
        let own = DatasetName::in_namespace(namespace, claim).ok()?;
        let state = self.state.read();
        if state.datasets.contains_key(own.as_str()) {
            return Some(own);
        }
        let key = (namespace.to_owned(), claim.to_owned());
        state.shared.get(&key).cloned()
    }

    /// Whether the master keeps credentials of this name.
    pub(crate) fn has_credentials(&self, name: &str) -> bool {
        self.state
            .read()
            .credentials
            .iter()
            .any(|known| known == name)
    }

    /// Notes what the master has just answered.
    pub(crate) fn learn(&self, dataset: v1::Dataset) {
        let mut state = self.state.write();
        state.edits += 1;
        let before = state.datasets.get(&dataset.name);
        let mut status = before.map(|known| known.status.clone()).unwrap_or_default();
        let newest = dataset.snapshots.last().cloned().unwrap_or_default();
        if status.version != newest.version {
            status = v1::DatasetStatus {
                name: dataset.name.clone(),
                version: newest.version,
                files: newest.files,
                bytes: newest.bytes,
                ..v1::DatasetStatus::default()
            };
        }
        let name = dataset.name.clone();
        state
            .datasets
            .insert(name, Arc::new(Known { dataset, status }));
    }

    /// Notes credentials that the master was given.
    pub(crate) fn learn_credentials(&self, name: &str) {
        let mut state = self.state.write();
        state.edits += 1;
        if !state.credentials.iter().any(|known| known == name) {
            state.credentials.push(name.to_owned());
        }
    }

    /// Notes that a dataset is gone.
    pub(crate) fn forget(&self, name: &DatasetName) {
        let mut state = self.state.write();
        state.edits += 1;
        state.datasets.remove(name.as_str());
    }

    /// Asks the master once. Gives the names of the datasets of which something changed that is shown.
    pub(crate) async fn look(&self, master: &dyn Master) -> Result<Vec<String>, MasterError> {
        let edits = self.state.read().edits;
        let asked = async {
            let survey = master.survey().await?;
            let credentials = master.credentials().await;
            Ok::<_, MasterError>((survey, credentials.ok()))
        };
        let asked = asked.await;
        let mut state = self.state.write();
        let (survey, credentials) = match asked {
            Ok(known) => known,
            Err(error) => {
                state.trouble = Some(error.clone());
                return Err(error);
            }
        };
        if state.edits != edits {
            // What was learned meanwhile is newer than this answer may be; the next one has it.
            return Ok(Vec::new());
        }
        let was_away = state.at.is_none_or(|at| at.elapsed() >= STALE);
        state.workers = Arc::new(survey.workers);
        let datasets: HashMap<String, Arc<Known>> = survey
            .datasets
            .into_iter()
            .map(|known| (known.dataset.name.clone(), Arc::new(known)))
            .collect();
        let is_changed = |name: &String| match (state.datasets.get(name), datasets.get(name)) {
            (Some(before), Some(now)) => was_away || !shows_the_same(before, now),
            _ => true,
        };
        let mut changed: Vec<String> = datasets
            .keys()
            .chain(state.datasets.keys())
            .cloned()
            .collect();
        changed.sort_unstable();
        changed.dedup();
        changed.retain(is_changed);
        state.shared = datasets.values().flat_map(|known| shared(known)).collect();
        state.datasets = datasets;
        if let Some(credentials) = credentials {
            state.credentials = credentials;
        }
        state.at = Some(Instant::now());
        state.trouble = None;
        Ok(changed)
    }

    /// How long ago the master has answered.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.state.read().at.map(|at| at.elapsed())
    }

    /// Asks again and again until `stop`, and names what changed.
    pub(crate) async fn keep(
        &self,
        master: &dyn Master,
        changed: &mpsc::Sender<String>,
        metrics: &OperatorMetrics,
        stop: &CancellationToken,
    ) {
        let mut was_up = true;
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look(master) => looked,
            };
            metrics.master_up.set(i64::from(looked.is_ok()));
            metrics
                .view_age
                .set(self.age().unwrap_or_default().as_secs_f64());
            let next = match looked {
                Ok(names) => {
                    was_up = true;
                    for name in names {
                        // Full: the periodical look finds it.
                        let _ = changed.try_send(name);
                    }
                    LOOK
                }
                Err(error) => {
                    if was_up {
                        tracing::warn!(%error, "the master does not answer; known datasets stay usable");
                    }
                    was_up = false;
                    LOOK_AGAIN
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(next) => {}
            }
        }
    }
}

/// The claims of a dataset in other namespaces.
fn shared(known: &Known) -> Vec<((String, String), DatasetName)> {
    // Most have none, and reading all specifications each time would be the most that the operator does.
    if !known.dataset.spec.contains("\"access\"") {
        return Vec::new();
    }
    let (Ok(name), Ok(spec)) = (
        known.dataset.name.parse::<DatasetName>(),
        DatasetSpec::from_json(&known.dataset.spec),
    ) else {
        return Vec::new();
    };
    let namespaces = spec.access.into_iter().flat_map(|access| access.namespaces);
    let claim = |namespace| ((namespace, name.name().to_owned()), name.clone());
    namespaces.map(claim).collect()
}

/// Whether a status would show the same of both.
fn shows_the_same(one: &Known, other: &Known) -> bool {
    let shown = |known: &Known| {
        let newest = known.dataset.snapshots.last();
        (
            newest.map(|newest| newest.version),
            known.dataset.spec.clone(),
            percent_cached(&known.status),
            percent_hit(&known.status),
        )
    };
    shown(one) == shown(other)
}

/// A part of a whole in percent, rounded down: 100 is all of it. `None` of nothing.
pub(crate) fn percent(part: u64, whole: u64) -> Option<u64> {
    (u128::from(part.min(whole)) * 100)
        .checked_div(u128::from(whole))
        .map(|percent| percent as u64)
}

/// How much of the newest snapshot is cached.
pub(crate) fn percent_cached(status: &v1::DatasetStatus) -> Option<u64> {
    percent(status.cached_bytes, status.bytes)
}

/// How much of what was read came from the cache.
pub(crate) fn percent_hit(status: &v1::DatasetStatus) -> Option<u64> {
    let reads = status.reads.as_ref()?;
    let hits = reads.memory_bytes + reads.ssd_bytes;
    percent(hits, hits + reads.origin_bytes)
}
