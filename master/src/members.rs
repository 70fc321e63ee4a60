//! The live workers and the cluster map that follows from them.
//!
//! The map is stored with each change, so its epoch never goes back, and a restarted master begins with the workers
//! it knew: each has the usual time to send its next heartbeat.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weir_core::{WorkerId, placement::MAX_WORKERS};
use weir_proto::v1;

use crate::error::MasterError;

/// A worker that has not been heard of for this long is taken out of the map: five heartbeats.
pub(crate) const EXPIRY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) info: v1::WorkerInfo,
    pub(crate) tiers: Vec<v1::TierUsage>,
    pub(crate) reads: Vec<v1::DatasetReads>,
    pub(crate) last_seen: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Members {
    epoch: u64,
    members: BTreeMap<WorkerId, Member>,
}

/// What a change of the members asks for.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// The map to store, if it is another.
    pub(crate) map: Option<v1::ClusterMap>,
    /// Workers that are gone.
    pub(crate) gone: Vec<WorkerId>,
}

impl Members {
    /// The members of a stored map.
    pub(crate) fn restored(map: v1::ClusterMap, now: Instant) -> Self {
        let members = map.workers.into_iter().filter_map(|info| {
            let id = info.id.parse().ok()?;
            let member = Member {
                info,
                tiers: Vec::new(),
                reads: Vec::new(),
                last_seen: now,
            };
            Some((id, member))
        });
        Self {
            epoch: map.epoch,
            members: members.collect(),
        }
    }

    /// Takes in a heartbeat.
    pub(crate) fn heard(
        &mut self,
        id: &WorkerId,
        beat: Member,
        leaving: bool,
    ) -> Result<Changed, MasterError> {
        let mut changed = self.expire(beat.last_seen);
        let before = self.members.get(id).map(|member| &member.info);
        if leaving {
            if self.members.remove(id).is_some() {
                changed.gone.push(id.clone());
                changed.map = Some(self.next_map());
            }
            return Ok(changed);
        }
        let is_new = before.is_none();
        if is_new && self.members.len() >= MAX_WORKERS {
            return Err(MasterError::Busy(format!(
                "the cluster has {MAX_WORKERS} workers, no more fit"
            )));
        }
        let moved = before != Some(&beat.info);
        self.members.insert(id.clone(), beat);
        if moved {
            changed.map = Some(self.next_map());
        }
        Ok(changed)
    }

    /// Takes out who has not been heard of.
    pub(crate) fn expire(&mut self, now: Instant) -> Changed {
        let late = |member: &Member| now.saturating_duration_since(member.last_seen) > EXPIRY;
        let gone: Vec<WorkerId> = self
            .members
            .iter()
            .filter(|(_, member)| late(member))
            .map(|(id, _)| id.clone())
            .collect();
        if gone.is_empty() {
            return Changed::default();
        }
        self.members.retain(|_, member| !late(member));
        Changed {
            map: Some(self.next_map()),
            gone,
        }
    }

    fn next_map(&mut self) -> v1::ClusterMap {
        self.epoch += 1;
        self.map()
    }

    pub(crate) fn map(&self) -> v1::ClusterMap {
        v1::ClusterMap {
            epoch: self.epoch,
            workers: self
                .members
                .values()
                .map(|member| member.info.clone())
                .collect(),
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, address: &str, last_seen: Instant) -> Member {
        Member {
            info: v1::WorkerInfo {
                id: id.to_owned(),
                data_address: address.to_owned(),
                ..Default::default()
            },
            tiers: Vec::new(),
            reads: Vec::new(),
            last_seen,
        }
    }

    #[test]
    fn the_epoch_grows_with_each_change_and_only_then() {
        let mut members = Members::default();
        let start = Instant::now();
        let id = "a".parse().unwrap();
        let beat = |address, at| member("a", address, at);
        assert_eq!(
            members
                .heard(&id, beat("x:1", start), false)
                .unwrap()
                .map
                .unwrap()
                .epoch,
            1
        );
        assert!(
            members
                .heard(&id, beat("x:1", start), false)
                .unwrap()
                .map
                .is_none()
        );
        assert_eq!(
            members
                .heard(&id, beat("x:2", start), false)
                .unwrap()
                .map
                .unwrap()
                .epoch,
            2
        );
        let changed = members.heard(&id, beat("x:2", start), true).unwrap();
        assert_eq!(changed.gone, [id]);
        assert_eq!(changed.map.unwrap().workers.len(), 0);
    }

    #[test]
    fn a_silent_worker_leaves_the_map_and_a_restart_gives_everybody_time() {
        let start = Instant::now();
        let mut members = Members::default();
        members
            .heard(&"a".parse().unwrap(), member("a", "x", start), false)
            .unwrap();
        let mut restored = Members::restored(members.map(), start);
        assert!(restored.expire(start + EXPIRY).map.is_none());
        let changed = restored.expire(start + EXPIRY + Duration::from_millis(1));
        assert_eq!(changed.map.unwrap().epoch, 2);
        assert_eq!(changed.gone.len(), 1);
    }
}
