//! Calls of the master that list sources, each as a task of its own.
//!
//! Listing a bucket may take hours, and one whose service is frozen never ends. So no look at an object waits for one: it starts
//! the work if it is not under way, and tells how far it is. Of each dataset there is one at a time, and another specification
//! takes its place. What failed is tried again later, each time after a longer wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::{DatasetName, DatasetSpec};

use crate::master::{Master, MasterError};
use crate::metrics::OperatorMetrics;
use crate::objects::Dataset;
use crate::view::View;

/// Listings under way at once. The master takes 1,024 calls and lets four long ones list at a time; the rest is left to people.
pub(crate) const MAX_LISTINGS: usize = 512;
/// Waits after a failure: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// What was applied is applied again no sooner than after this, if the master says that it is not so.
const APPLY_AGAIN: Duration = Duration::from_secs(30);

/// What is to be done for a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Make it be so; a new snapshot's number is above `after`.
    Apply { spec: DatasetSpec, after: u64 },
    /// List it again, on this request.
    Refresh { request: String },
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Too many others are under way.
    Queued,
    Running,
    /// It is done; of a refresh, whether there is a new snapshot.
    Done {
        is_new: bool,
    },
    Failed {
        error: MasterError,
        /// When it is tried again.
        retry_in: Duration,
    },
}

#[derive(Debug)]
struct Entry {
    work: Work,
    state: State,
    failures: u32,
    /// Tells this entry from a later one of the same dataset.
    number: u64,
}

#[derive(Debug)]
enum State {
    Running(CancellationToken),
    Done { is_new: bool, at: Instant },
    Failed { error: MasterError, at: Instant },
}

/// All listings that the operator has asked for.
pub(crate) struct Listings {
    master: Arc<dyn Master>,
    view: Arc<View>,
    metrics: Arc<OperatorMetrics>,
    entries: Arc<Mutex<Entries>>,
    tasks: TaskTracker,
    /// Objects whose listing has ended.
    ended: mpsc::Sender<ObjectRef<Dataset>>,
}

#[derive(Debug, Default)]
struct Entries {
    of: HashMap<DatasetName, Entry>,
    running: usize,
    numbers: u64,
}

impl Listings {
    pub(crate) fn new(
        master: Arc<dyn Master>,
        view: Arc<View>,
        metrics: Arc<OperatorMetrics>,
        ended: mpsc::Sender<ObjectRef<Dataset>>,
    ) -> Self {
        Self {
            master,
            view,
            metrics,
            entries: Arc::default(),
            tasks: TaskTracker::new(),
            ended,
        }
    }

    /// Has work done for a dataset unless that is so already, and tells how far it is.
    pub(crate) fn ensure(
        &self,
        object: &ObjectRef<Dataset>,
        name: &DatasetName,
        work: Work,
    ) -> Progress {
        let mut entries = self.entries.lock();
        let mut failures = 0;
        if let Some(entry) = entries.of.get(name)
            && entry.work == work
        {
            failures = entry.failures;
            match &entry.state {
                State::Running(_) => return Progress::Running,
                State::Done { is_new, at } => {
                    let is_asked_once = matches!(entry.work, Work::Refresh { .. });
                    if is_asked_once || at.elapsed() < APPLY_AGAIN {
                        return Progress::Done { is_new: *is_new };
                    }
                }
                State::Failed { error, at } => {
                    let wait = if error_is_lasting(error) {
                        // It may be the cluster that does not suit, and not the specification.
                        LONGEST_WAIT
                    } else {
                        wait_after(failures)
                    };
                    let left = wait.saturating_sub(at.elapsed());
                    if !left.is_zero() {
                        return Progress::Failed {
                            error: error.clone(),
                            retry_in: left,
                        };
                    }
                }
            }
        }
        entries.drop_entry(name);
        if entries.running >= MAX_LISTINGS {
            return Progress::Queued;
        }
        entries.running += 1;
        entries.numbers += 1;
        self.metrics.listings.set(entries.running as i64);
        let number = entries.numbers;
        let running = Running {
            entries: self.entries.clone(),
            metrics: self.metrics.clone(),
            name: name.clone(),
            number,
        };
        let stop = CancellationToken::new();
        let entry = Entry {
            work: work.clone(),
            state: State::Running(stop.clone()),
            failures,
            number,
        };
        entries.of.insert(name.clone(), entry);
        drop(entries);
        let (master, view) = (self.master.clone(), self.view.clone());
        let (ended, object, name) = (self.ended.clone(), object.clone(), name.clone());
        self.tasks.spawn(async move {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = run(&*master, &view, &name, work) => outcome,
            };
            running.end(outcome);
            // Full: the object is looked at soon in any case.
            let _ = ended.try_send(object);
        });
        Progress::Running
    }

    /// Forgets what was asked for a dataset, and ends it if it is under way.
    pub(crate) fn forget(&self, name: &DatasetName) {
        self.entries.lock().drop_entry(name);
    }

    /// Ends all.
    pub(crate) fn stop(&self) {
        let mut entries = self.entries.lock();
        for entry in entries.of.values() {
            entry.end();
        }
        entries.of.clear();
        self.tasks.close();
    }
}

impl Entry {
    fn end(&self) {
        if let State::Running(stop) = &self.state {
            stop.cancel();
        }
    }
}

impl Entries {
    fn drop_entry(&mut self, name: &DatasetName) {
        if let Some(entry) = self.of.remove(name) {
            entry.end();
        }
    }
}

/// A listing under way; dropped with its task, however that ends.
struct Running {
    entries: Arc<Mutex<Entries>>,
    metrics: Arc<OperatorMetrics>,
    name: DatasetName,
    number: u64,
}

impl Running {
    fn end(self, outcome: Result<bool, MasterError>) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.of.get_mut(&self.name) else {
            return;
        };
        if entry.number != self.number {
            return; // another one has taken its place
        }
        entry.state = match outcome {
            Ok(is_new) => {
                entry.failures = 0;
                let at = Instant::now();
                State::Done { is_new, at }
            }
            Err(error) => {
                entry.failures += 1;
                let at = Instant::now();
                State::Failed { error, at }
            }
        };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut entries = self.entries.lock();
        entries.running -= 1;
        self.metrics.listings.set(entries.running as i64);
    }
}

async fn run(
    master: &dyn Master,
    view: &View,
    name: &DatasetName,
    work: Work,
) -> Result<bool, MasterError> {
    let (dataset, is_new) = match work {
        Work::Apply { spec, after } => {
            // What is wrong in itself is told at once, and waits for no turn of a listing.
            master.judge(name, &spec).await?;
            (master.apply(name, &spec, after).await?, true)
        }
        Work::Refresh { .. } => master.refresh(name).await?,
    };
    view.learn(dataset);
    Ok(is_new)
}

fn error_is_lasting(error: &MasterError) -> bool {
    matches!(error, MasterError::Refused { why, .. } if why.is_lasting())
}

/// How long is waited after so many failures.
pub(crate) fn wait_after(failures: u32) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(10));
    doubled.min(LONGEST_WAIT)
}
