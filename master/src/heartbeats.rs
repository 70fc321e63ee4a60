//! What workers tell the master, and what it tells them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use weir_core::{Location, NodeName, SnapshotId, WorkerId};
use weir_proto::v1;
use weir_trust::Caller;

use crate::claims;
use crate::error::MasterError;
use crate::inventory::Held;
use crate::master::Master;
use crate::members::{LOOK_INTERVAL, Member};

/// Longest address of a worker, in bytes, and most tiers: every client of the cluster is told of them.
const MAX_ADDRESS: usize = 512;
const MAX_TIERS: usize = 64;
/// Longest word for how a worker's callers are known, in bytes.
const MAX_CALLERS: usize = 32;
/// Snapshots that one reply names as missing.
const MAX_MISSING: usize = 1000;
/// How long the cluster must have been as it is before datasets are placed in it, and the longest wait for that: workers that
/// are started together come one after the other, and the first one must not get everything.
const STILL: Duration = Duration::from_secs(3);
const STILL_DEADLINE: Duration = Duration::from_secs(30);
/// Time between two looks at datasets that wait for workers to come back, or are read.
const PLACE_INTERVAL: Duration = Duration::from_secs(10);

impl Master {
    /// Takes in a heartbeat and tells the worker what it must know.
    pub(crate) async fn heartbeat(
        &self,
        caller: &Caller,
        beat: v1::HeartbeatRequest,
    ) -> Result<v1::HeartbeatReply, MasterError> {
        self.metrics.heartbeats.inc();
        let mut info = beat
            .worker
            .ok_or_else(|| MasterError::Invalid("a heartbeat without its worker".to_owned()))?;
        self.told_if_denied(claims::check(caller, &info))?;
        let id: WorkerId = info.id.parse()?;
        let _: NodeName = info.node.parse()?;
        let _ = Location::of_names(&info.zone, &info.group)?
            .in_pool(&info.pool)?
            .on_machine(&info.machine)?;
        let addresses = [
            &info.data_address,
            &info.control_address,
            &info.local_socket,
        ];
        if addresses.iter().any(|address| address.len() > MAX_ADDRESS) {
            return Err(MasterError::Invalid(format!(
                "an address of worker {id} is longer than {MAX_ADDRESS} bytes"
            )));
        }
        info.local_socket = claims::socket(info.local_socket);
        if beat.callers.len() > MAX_CALLERS {
            return Err(MasterError::Invalid(format!(
                "worker {id} says how its callers are known in more than {MAX_CALLERS} bytes"
            )));
        }
        let (mut tiers, mut reads) = (beat.tiers, beat.reads);
        tiers.truncate(MAX_TIERS);
        let mut counted = HashSet::new();
        reads.retain(|reads| {
            self.datasets.contains(&reads.dataset) && counted.insert(reads.dataset.clone())
        });
        let member = Member {
            info,
            tiers,
            reads,
            reads_version: beat.known_reads,
            waiting_reads: beat.waiting_reads,
            callers: beat.callers,
            last_seen: Instant::now(),
        };
        if !beat.doubtful.is_empty() || beat.doubtful_left_out {
            let mut doubtful = self.doubtful.lock();
            doubtful.add(beat.doubtful, beat.doubtful_left_out);
        }
        self.members.beat(&id, member, beat.leaving).await?;
        for inventory in beat.inventories {
            // Of a snapshot that is not the newest any more.
            let _ = self.take_inventory(&id, inventory);
        }
        Ok(self.reply(&id, beat.known_version, beat.known_map))
    }

    fn told_if_denied(&self, checked: Result<(), MasterError>) -> Result<(), MasterError> {
        if let Err(MasterError::Denied(why)) = &checked {
            self.refusals.tell(why);
        }
        checked
    }

    fn reply(&self, id: &WorkerId, known_version: u64, known_map: u64) -> v1::HeartbeatReply {
        let name = |snapshot: SnapshotId| v1::SnapshotName {
            dataset: snapshot.dataset.into(),
            version: snapshot.version,
        };
        let told = self.datasets.told(known_version);
        let inventories = self.members.inventories();
        let missing = self
            .datasets
            .with_newest(|newest| inventories.missing(id, newest, MAX_MISSING));
        let (map_version, map) = self.members.map_unless(known_map);
        v1::HeartbeatReply {
            map,
            map_version,
            reads_version: self.members.reads_version(id),
            origins: told.origins,
            snapshots: told.snapshots.into_iter().map(name).collect(),
            version: told.version,
            missing: missing.into_iter().map(name).collect(),
            has_sources: told.sources.is_some(),
            sources: told.sources.unwrap_or_default(),
        }
    }

    /// Takes in which blocks of a snapshot a worker holds.
    pub(crate) fn report_inventory(
        &self,
        caller: &Caller,
        report: v1::ReportInventoryRequest,
    ) -> Result<(), MasterError> {
        let id: WorkerId = report.worker.parse()?;
        self.told_if_denied(claims::is_own(caller, &id))?;
        let inventory = report
            .inventory
            .ok_or_else(|| MasterError::Invalid("a report without its inventory".to_owned()))?;
        self.take_inventory(&id, inventory)
    }

    fn take_inventory(&self, id: &WorkerId, report: v1::Inventory) -> Result<(), MasterError> {
        let snapshot = SnapshotId {
            dataset: report.dataset.parse()?,
            version: report.version,
        };
        let not_wanted =
            || MasterError::NotFound(format!("{snapshot} is not the newest of its dataset"));
        let newest = |newest: &v1::Snapshot| (newest.blocks, newest.bytes);
        let (blocks, bytes) = self
            .datasets
            .while_newest(&snapshot, newest)
            .ok_or_else(not_wanted)?;
        let held = Held::read(&report, blocks, bytes)?;
        self.datasets
            .while_newest(&snapshot, |_| self.members.hold(snapshot.clone(), id, held))
            .ok_or_else(not_wanted)?
    }

    /// Chooses where datasets are whenever the cluster has changed and is still again, as long as the master lives.
    pub(crate) fn place_datasets(&self) {
        let mut cluster = self.members.cluster();
        let datasets = Arc::downgrade(&self.datasets);
        tokio::spawn(async move {
            let mut has_changed = true;
            loop {
                {
                    let Some(datasets) = datasets.upgrade() else {
                        return;
                    };
                    if has_changed {
                        datasets.place_all().await;
                    } else {
                        datasets.place_some().await;
                    }
                }
                let changed = timeout(PLACE_INTERVAL, cluster.changed()).await;
                has_changed = changed.is_ok();
                if changed.is_ok_and(|changed| changed.is_err()) {
                    return; // the master has ended
                }
                if has_changed {
                    until_still(&mut cluster).await;
                }
            }
        });
    }

    /// Looks for silent workers as long as the master lives.
    pub(crate) fn watch_members(&self) {
        let members = Arc::downgrade(&self.members);
        tokio::spawn(async move {
            let mut looks = tokio::time::interval(LOOK_INTERVAL);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                let Some(members) = members.upgrade() else {
                    return;
                };
                members.look().await;
            }
        });
    }
}

/// Waits until nothing has changed for a while, if that ever comes.
async fn until_still<T>(changes: &mut watch::Receiver<T>) {
    let still = async { while let Ok(Ok(())) = timeout(STILL, changes.changed()).await {} };
    let _ = timeout(STILL_DEADLINE, still).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_cluster_is_still_some_seconds_after_its_last_change_or_never() {
        let (sender, mut changes) = watch::channel(0);
        let started = Instant::now();
        let changing = async |count: u64| {
            for number in 0..count {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sender.send_replace(number);
            }
        };
        tokio::join!(changing(4), until_still(&mut changes));
        assert_eq!(started.elapsed(), STILL + Duration::from_secs(4));
        let started = Instant::now();
        tokio::select! {
            () = changing(1000) => panic!("it never ends"),
            () = until_still(&mut changes) => {}
        }
        assert_eq!(started.elapsed(), STILL_DEADLINE);
        // The master has ended.
        drop(sender);
        until_still(&mut changes).await;
    }
}
