//! Tells the master which blocks this worker holds: in the background, one snapshot at a time.
//!
//! To look a snapshot's blocks up takes up to a microsecond for each, and its manifest may have to be fetched first. So only
//! snapshots are looked at where something may have changed, those first that are being read or warmed, and all of it
//! takes a tenth of the time at most, however many datasets there are. What has not changed is not sent again, unless the
//! master says that it lacks it.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use weir_core::{SnapshotId, WorkerId};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

use super::Inventory;
use super::keys::Tables;
use crate::snapshots::Snapshots;
use crate::worker::{Unowned, Worker};

/// After a look the reporter rests for so many times as long.
const REST: u32 = 9;
/// Least time between two looks at a snapshot that is being read or warmed, and at another one, of which blocks may have
/// been dropped for the sake of others.
const ACTIVE_INTERVAL: Duration = Duration::from_secs(2);
const IDLE_INTERVAL: Duration = Duration::from_mins(5);
/// Time between two looks at a snapshot, in times that a look takes.
const OWN_REST: u32 = 20;
/// How much longer than an active one an idle snapshot waits for its turn, when both are due.
const HEAD_START: Duration = Duration::from_mins(5);
/// How often it is looked whether anything is due.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Wait after a report that failed: the master may be away.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
const FAILED_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for the master to take a report.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the master wants to know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) snapshots: Vec<SnapshotId>,
    /// Of these the master has no report of this worker.
    pub(crate) missing: HashSet<SnapshotId>,
}

/// Reports until `stop`.
pub(crate) async fn run(
    worker: Arc<Worker>,
    id: WorkerId,
    master: MasterClient<Channel>,
    snapshots: Arc<Snapshots>,
    mut wanted: watch::Receiver<Wanted>,
    stop: CancellationToken,
) {
    let mut plan = Plan::default();
    let reporter = Reporter {
        tables: Mutex::new(Tables::new(worker.config().scratch_dir())),
        worker,
        id,
        master,
        snapshots,
    };
    loop {
        if wanted.has_changed().unwrap_or(false) {
            let wanted = wanted.borrow_and_update().clone();
            reporter.forget_others(&wanted.snapshots);
            plan.set(wanted, Instant::now());
        }
        let generation = reporter.worker.generation();
        let due = plan.next(Instant::now(), generation, |id| reporter.activity(id));
        let pause = match due {
            None => POLL_INTERVAL,
            Some(snapshot) => {
                let started = Instant::now();
                let activity = reporter.activity(&snapshot).1;
                let known = plan.reported.get(&snapshot).map(|r| r.digest);
                let outcome = tokio::select! {
                    () = stop.cancelled() => return,
                    outcome = reporter.report(&snapshot, known) => outcome,
                };
                let took = started.elapsed();
                match outcome {
                    Ok(digest) => {
                        plan.done(snapshot, generation, activity, digest, took);
                        took * REST
                    }
                    Err(status) => {
                        tracing::debug!(%snapshot, message = status.message(), "no inventory");
                        plan.failed(snapshot, Instant::now());
                        FAILED_PAUSE
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Reporter {
    worker: Arc<Worker>,
    id: WorkerId,
    master: MasterClient<Channel>,
    snapshots: Arc<Snapshots>,
    tables: Mutex<Tables>,
}

impl Reporter {
    /// Whether a job works on the snapshot's dataset, and a number that grows with its jobs and reads.
    fn activity(&self, snapshot: &SnapshotId) -> (bool, u64) {
        let (running, ended) = self.snapshots.jobs(&snapshot.dataset);
        let reads = self.worker.metrics().reads_of(snapshot.dataset.as_str());
        (running, ended + reads)
    }

    /// Forgets what is known of datasets that are gone.
    fn forget_others(&self, wanted: &[SnapshotId]) {
        let snapshots: HashSet<&SnapshotId> = wanted.iter().collect();
        self.tables.lock().retain(|id| snapshots.contains(id));
        let wanted: HashSet<&str> = wanted.iter().map(|id| id.dataset.as_str()).collect();
        self.snapshots
            .retain_jobs(|dataset| wanted.contains(dataset.as_str()));
        self.worker
            .metrics()
            .retain_cached(|dataset| wanted.contains(dataset));
    }

    /// Looks a snapshot's blocks up and sends the result, unless it is the one with the digest `known`. Gives its digest.
    async fn report(&self, id: &SnapshotId, known: Option<u64>) -> Result<u64, tonic::Status> {
        let inventory = self.look(id).await?;
        let metrics = self.worker.metrics();
        metrics.show_cached(id.dataset.as_str(), inventory.bytes);
        let inventory = inventory.to_proto();
        let mut digest = DefaultHasher::new();
        inventory.blocks.hash(&mut digest);
        let digest = digest.finish();
        if known == Some(digest) {
            return Ok(digest);
        }
        let mut request = tonic::Request::new(v1::ReportInventoryRequest {
            worker: self.id.to_string(),
            inventory: Some(inventory),
        });
        request.set_timeout(DEADLINE);
        self.master.clone().report_inventory(request).await?;
        Ok(digest)
    }

    /// Looks a snapshot's blocks up: in its table, or else with its manifest, of which a table is made if it is big.
    async fn look(&self, id: &SnapshotId) -> Result<Inventory, tonic::Status> {
        let died = |error: JoinError| tonic::Status::aborted(error.to_string());
        let worker = self.worker.clone();
        let dataset = id.dataset.to_string();
        let mut unowned = worker.unowned_of(&dataset);
        let table = self.tables.lock().get(id);
        if let Some(table) = table {
            let snapshot = id.clone();
            let look = move || {
                let looked = Inventory::take_of_table(&worker, snapshot, &table, unowned.as_mut());
                drop_found(&worker, &dataset, unowned.as_ref());
                looked
            };
            let looked = tokio::task::spawn_blocking(look).await.map_err(died)?;
            return looked.map_err(|error| {
                // It is made again.
                self.tables.lock().retain(|other| other != id);
                tonic::Status::aborted(error.to_string())
            });
        }
        let manifest = self.snapshots.get_unkept(id).await;
        let manifest = manifest.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let new = self.tables.lock().begin(manifest.summary().blocks);
        let look = {
            let manifest = manifest.clone();
            move || {
                let looked = Inventory::take_noting(&worker, &manifest, new, unowned.as_mut());
                drop_found(&worker, &dataset, unowned.as_ref());
                looked
            }
        };
        let (inventory, table) = tokio::task::spawn_blocking(look).await.map_err(died)?;
        match table {
            Some(table) => self.tables.lock().keep(id.clone(), table),
            None => self.snapshots.keep(manifest),
        }
        Ok(inventory)
    }
}

/// Drops what a look has found that is other workers'. What was counted of it is counted anew soon, since blocks have changed.
fn drop_found(worker: &Worker, dataset: &str, unowned: Option<&Unowned>) {
    if let Some(unowned) = unowned {
        worker.drop_found(dataset, unowned);
    }
}

/// Which snapshot is looked at next.
#[derive(Debug, Default)]
struct Plan {
    /// Since when each snapshot is wanted.
    wanted: HashMap<SnapshotId, Instant>,
    reported: HashMap<SnapshotId, Reported>,
}

#[derive(Debug)]
struct Reported {
    generation: u64,
    activity: u64,
    digest: u64,
    at: Instant,
    took: Duration,
}

impl Plan {
    fn set(&mut self, wanted: Wanted, now: Instant) {
        let before = std::mem::take(&mut self.wanted);
        for id in wanted.snapshots {
            let since = before.get(&id).copied().unwrap_or(now);
            self.wanted.insert(id, since);
        }
        let wanted_still = &self.wanted;
        self.reported
            .retain(|id, _| wanted_still.contains_key(id) && !wanted.missing.contains(id));
    }

    /// The snapshot that has waited longest for its turn, if any is due.
    fn next(
        &self,
        now: Instant,
        generation: u64,
        activity: impl Fn(&SnapshotId) -> (bool, u64),
    ) -> Option<SnapshotId> {
        let waited = |id: &SnapshotId, since: &Instant| {
            let (running, count) = activity(id);
            let (due, active) = match self.reported.get(id) {
                None => (*since, running || count > 0),
                Some(reported) if reported.generation == generation => return None,
                Some(reported) => {
                    let active = running || count != reported.activity;
                    let least = if active {
                        ACTIVE_INTERVAL
                    } else {
                        IDLE_INTERVAL
                    };
                    let rest = least.max(reported.took * OWN_REST);
                    (reported.at + rest, active)
                }
            };
            let waited = now.checked_duration_since(due)?;
            let head_start = if active { HEAD_START } else { Duration::ZERO };
            Some(waited + head_start)
        };
        let due = self.wanted.iter();
        let due = due.filter_map(|(id, since)| Some((waited(id, since)?, id)));
        let longest = due.max();
        longest.map(|(_, id)| id.clone())
    }

    fn done(
        &mut self,
        id: SnapshotId,
        generation: u64,
        activity: u64,
        digest: u64,
        took: Duration,
    ) {
        let reported = Reported {
            generation,
            activity,
            digest,
            at: Instant::now(),
            took,
        };
        self.reported.insert(id, reported);
    }

    /// Lets the others have their turns before this one is tried again.
    fn failed(&mut self, id: SnapshotId, now: Instant) {
        self.reported.remove(&id);
        self.wanted.insert(id, now + FAILED_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SnapshotId {
        SnapshotId {
            dataset: name.parse().unwrap(),
            version: 1,
        }
    }

    fn wanted(names: &[&str]) -> Wanted {
        Wanted {
            snapshots: names.iter().map(|name| id(name)).collect(),
            missing: HashSet::new(),
        }
    }

    const QUIET: fn(&SnapshotId) -> (bool, u64) = |_| (false, 0);

    #[test]
    fn each_snapshot_is_looked_at_once_and_again_only_when_something_changed() {
        let start = Instant::now();
        let mut plan = Plan::default();
        plan.set(wanted(&["a", "b", "c"]), start);
        let mut seen = HashSet::new();
        while let Some(next) = plan.next(start, 7, QUIET) {
            assert!(seen.insert(next.clone()), "{next} twice");
            plan.done(next, 7, 0, 1, Duration::ZERO);
        }
        assert_eq!(seen.len(), 3);
        let later = Instant::now() + Duration::from_hours(1);
        assert_eq!(plan.next(later, 7, QUIET), None, "nothing has changed");
        assert!(plan.next(later, 8, QUIET).is_some(), "something has");
        let soon = Instant::now() + ACTIVE_INTERVAL;
        assert_eq!(plan.next(soon, 8, QUIET), None, "idle ones have time");
        let read = |snapshot: &SnapshotId| (false, u64::from(*snapshot == id("b")));
        assert_eq!(plan.next(soon, 8, read), Some(id("b")));
    }

    #[test]
    fn what_is_used_comes_first_and_does_not_starve_the_rest() {
        let start = Instant::now();
        let mut plan = Plan::default();
        plan.set(wanted(&["busy", "idle"]), start);
        let warming = |snapshot: &SnapshotId| (*snapshot == id("busy"), 0);
        assert_eq!(plan.next(start, 1, warming), Some(id("busy")));
        plan.done(id("busy"), 1, 0, 1, Duration::ZERO);
        // It is due again and again.
        let looked = Instant::now() + HEAD_START * 2;
        plan.reported.get_mut(&id("busy")).unwrap().at = looked;
        let due = looked + ACTIVE_INTERVAL;
        assert_eq!(plan.next(due, 2, warming), Some(id("idle")));
    }

    #[test]
    fn what_the_master_lacks_is_sent_again_and_a_failure_waits_for_its_turn() {
        let mut plan = Plan::default();
        plan.set(wanted(&["a"]), Instant::now());
        plan.done(id("a"), 1, 0, 1, Duration::ZERO);
        plan.set(
            Wanted {
                missing: HashSet::from([id("a")]),
                ..wanted(&["a"])
            },
            Instant::now(),
        );
        let now = Instant::now();
        assert_eq!(plan.next(now, 1, QUIET), Some(id("a")));
        plan.failed(id("a"), now);
        assert_eq!(plan.next(now, 1, QUIET), None);
        assert_eq!(plan.next(now + FAILED_INTERVAL, 1, QUIET), Some(id("a")));
        plan.set(wanted(&[]), now);
        assert_eq!(plan.next(now + FAILED_INTERVAL, 1, QUIET), None);
        assert!(plan.reported.is_empty());
    }
}
