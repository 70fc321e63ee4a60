//! The live workers and the cluster map that follows from them.
//!
//! Nobody is told of a map before it is stored, so an epoch never comes back with other workers, and a restarted master
//! begins with the workers that it knew: each has the usual time to send its next heartbeat. The same holds for a master
//! that was stopped for a while, to which nobody could report meanwhile, and for one that was cut off from all of them: were they
//! taken out, the first ones to come back would own, and fetch, everything.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use weir_core::{Hashing, WorkerId, placement::MAX_WORKERS};
use weir_proto::v1;

use crate::error::MasterError;
use crate::records::now_ns;

/// A worker that has sent no heartbeat for this long is taken out of the map: five heartbeats.
pub(crate) const EXPIRY: Duration = Duration::from_secs(10);
/// Time between two looks for workers that are silent.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A master that has not looked for this long was itself stopped, or got no time to run.
const GAP: Duration = Duration::from_secs(3);
/// Addresses of one worker that are remembered after it has reported from another one.
const MAX_MOVES: usize = 4;
/// If none of several workers has reported for this long, more than two heartbeats, it is the master that cannot be reached.
const CUT_OFF: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) info: v1::WorkerInfo,
    pub(crate) tiers: Vec<v1::TierUsage>,
    pub(crate) reads: Vec<v1::DatasetReads>,
    /// What `reads` were added to, as the worker says; then what they are remembered by.
    pub(crate) reads_version: u64,
    pub(crate) waiting_reads: u64,
    /// How its callers are known, in its own words; empty if it did not say.
    pub(crate) callers: String,
    pub(crate) last_seen: Instant,
}

#[derive(Debug)]
pub(crate) struct Membership {
    /// The map as it is stored, and what tells it from any other.
    map: v1::ClusterMap,
    map_version: u64,
    map_bytes: usize,
    /// The next number by which a member's reads are remembered. No other master begins with the same.
    next_reads: u64,
    /// Each member, and since when it is silent.
    members: BTreeMap<WorkerId, (Member, Instant)>,
    /// When the master looked last.
    looked: Instant,
    /// When any of them reported last.
    heard: Instant,
    /// Workers that are cordoned, also those that are away.
    cordoned: BTreeMap<WorkerId, v1::WorkerState>,
    /// Where members were a moment ago that report from elsewhere now, and when somebody reported from there last.
    moved: BTreeMap<WorkerId, Vec<(String, Instant)>>,
}

impl Membership {
    /// The map of a new cluster.
    pub(crate) fn first_map() -> v1::ClusterMap {
        v1::ClusterMap {
            hashing: Hashing::NEWEST.number(),
            ..v1::ClusterMap::default()
        }
    }

    /// The members of a stored map.
    pub(crate) fn restored(mut map: v1::ClusterMap, now: Instant) -> Self {
        map.workers.sort_by(|a, b| a.id.cmp(&b.id));
        let members = map.workers.iter().filter_map(|info| {
            let id = info.id.parse().ok()?;
            let member = Member {
                info: info.clone(),
                tiers: Vec::new(),
                reads: Vec::new(),
                reads_version: 0,
                waiting_reads: 0,
                callers: String::new(),
                last_seen: now,
            };
            Some((id, (member, now)))
        });
        Self {
            members: members.collect(),
            map_version: version_of(&map),
            map_bytes: map.encoded_len(),
            map,
            next_reads: now_ns().unsigned_abs().max(1),
            looked: now,
            heard: now,
            cordoned: BTreeMap::new(),
            moved: BTreeMap::new(),
        }
    }

    /// Whether a worker may be cordoned, or not be any more, or count as drained.
    pub(crate) fn may_stand(
        &self,
        id: &WorkerId,
        state: Option<v1::WorkerState>,
    ) -> Result<(), MasterError> {
        let is_cordoned = self.cordoned.contains_key(id);
        if !self.members.contains_key(id) && !is_cordoned {
            return Err(unknown(id));
        }
        match state {
            Some(v1::WorkerState::Drained) if !is_cordoned => Err(MasterError::Unready(format!(
                "worker {id} was uncordoned meanwhile"
            ))),
            Some(_) if !is_cordoned && !self.has_others(id) => Err(MasterError::Unready(format!(
                "worker {id} is the last one that is not cordoned: nobody could take its blocks over; start another worker first, or uncordon one"
            ))),
            Some(_) if !is_cordoned && self.cordoned.len() >= MAX_WORKERS => {
                Err(MasterError::Busy(format!(
                    "{MAX_WORKERS} workers are cordoned; `weir worker uncordon` those that are gone"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Whether another member owns blocks.
    pub(crate) fn has_others(&self, id: &WorkerId) -> bool {
        let mut others = self.members.keys().filter(|other| *other != id);
        others.any(|other| !self.cordoned.contains_key(other))
    }

    /// How a worker stands that is cordoned.
    pub(crate) fn standing(&self, id: &WorkerId) -> Option<v1::WorkerState> {
        self.cordoned.get(id).copied()
    }

    /// Cordons a worker, or not any more.
    pub(crate) fn set_standing(&mut self, id: &WorkerId, state: Option<v1::WorkerState>) {
        match state {
            Some(state) => self.cordoned.insert(id.clone(), state),
            None => self.cordoned.remove(id),
        };
        let is_cordoned = state.is_some();
        if let Some((member, _)) = self.members.get_mut(id) {
            weigh(&mut member.info, is_cordoned);
        }
    }

    /// Takes in a heartbeat. Gives the workers that are gone.
    pub(crate) fn beat(
        &mut self,
        id: &WorkerId,
        beat: Member,
        leaving: bool,
    ) -> Result<Vec<WorkerId>, MasterError> {
        self.hear(beat.last_seen);
        // To look at all members with each heartbeat of each would take longer than all else of it.
        let looked = beat.last_seen.saturating_duration_since(self.looked);
        let mut gone = if looked < LOOK_INTERVAL {
            Vec::new()
        } else {
            self.expire(beat.last_seen)
        };
        let address = &beat.info.data_address;
        let known = self.members.get(id).map(|(known, _)| known);
        let elsewhere = known.filter(|known| known.info.data_address != *address);
        let elsewhere = elsewhere.map(|known| known.info.data_address.clone());
        if leaving {
            // Another one of the same name may stay.
            if elsewhere.is_none() {
                gone.extend(self.members.remove(id).map(|_| id.clone()));
                self.moved.remove(id);
            }
            return Ok(gone);
        }
        if let Some(elsewhere) = elsewhere {
            self.may_move(id, elsewhere, address, beat.last_seen)?;
        }
        if !self.members.contains_key(id) && self.members.len() >= MAX_WORKERS {
            return Err(MasterError::Busy(format!(
                "the cluster has {MAX_WORKERS} workers, no more fit"
            )));
        }
        let mut beat = beat;
        beat.info.cordoned_weight = 0; // it is not the worker's to say
        weigh(&mut beat.info, self.cordoned.contains_key(id));
        let known = self.members.get_mut(id).map(|(known, _)| known);
        match known.filter(|known| known.reads_version == beat.reads_version) {
            Some(known) if beat.reads_version != 0 => {
                let before = std::mem::take(&mut known.reads);
                beat.reads = together(before, std::mem::take(&mut beat.reads));
            }
            _ => {
                beat.reads_version = self.next_reads;
                self.next_reads = self.next_reads.wrapping_add(1).max(1);
            }
        }
        let seen = beat.last_seen;
        self.members.insert(id.clone(), (beat, seen));
        Ok(gone)
    }

    /// A worker reports from another address than before. It may have been started again there; but if it has moved away from there just
    /// now, there are two of them, which would take turns in the map.
    fn may_move(
        &mut self,
        id: &WorkerId,
        from: String,
        to: &str,
        now: Instant,
    ) -> Result<(), MasterError> {
        let moved = self.moved.entry(id.clone()).or_default();
        moved.retain(|(_, at)| now < *at + EXPIRY);
        if let Some((_, at)) = moved.iter_mut().find(|(address, _)| address == to) {
            *at = now;
            return Err(MasterError::Conflict(format!(
                "there are two workers {id}, at {from} and at {to}: the first one stays in the cluster; start the other one with another --id"
            )));
        }
        moved.truncate(MAX_MOVES - 1);
        moved.insert(0, (from, now));
        Ok(())
    }

    /// Somebody reports.
    fn hear(&mut self, now: Instant) {
        if self.is_cut_off(now) {
            tracing::warn!(
                "no worker could reach the master for a while; they have {EXPIRY:?} to report"
            );
            self.give_time(now);
        }
        self.heard = self.heard.max(now);
    }

    /// Whether it is the master that cannot be reached. Of a single worker nobody knows.
    fn is_cut_off(&self, now: Instant) -> bool {
        self.members.len() > 1 && now.saturating_duration_since(self.heard) > CUT_OFF
    }

    /// Nobody could report until now.
    fn give_time(&mut self, now: Instant) {
        for (_, silent_since) in self.members.values_mut() {
            *silent_since = now;
        }
    }

    /// Takes out who is silent for too long, and gives them. Nobody as long as the master is cut off.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<WorkerId> {
        if now.saturating_duration_since(self.looked) > GAP {
            tracing::warn!(
                "the master was stopped for a while; its workers have {EXPIRY:?} to report"
            );
            self.give_time(now);
        }
        self.looked = self.looked.max(now);
        if self.is_cut_off(now) {
            return Vec::new();
        }
        let mut gone = Vec::new();
        self.members.retain(|id, (_, silent_since)| {
            let late = now.saturating_duration_since(*silent_since) > EXPIRY;
            if late {
                gone.push(id.clone());
                self.moved.remove(id);
            }
            !late
        });
        gone
    }

    /// The map that is to be stored, if the members are others than those of the stored one.
    pub(crate) fn next_map(&self) -> Option<v1::ClusterMap> {
        let live = self.members.values().map(|(member, _)| &member.info);
        if live.clone().eq(&self.map.workers) {
            return None;
        }
        Some(v1::ClusterMap {
            epoch: self.map.epoch + 1,
            workers: live.cloned().collect(),
            hashing: self.map.hashing,
        })
    }

    /// Takes a map that is stored now.
    pub(crate) fn publish(&mut self, map: v1::ClusterMap) {
        self.map_version = version_of(&map);
        self.map_bytes = map.encoded_len();
        self.map = map;
    }

    /// What tells the stored map from any other; never 0.
    pub(crate) fn map_version(&self) -> u64 {
        self.map_version
    }

    /// The size of the stored map in a message.
    pub(crate) fn map_bytes(&self) -> usize {
        self.map_bytes
    }

    /// What the reads of a member are remembered by; 0 if it is none.
    pub(crate) fn reads_version(&self, id: &WorkerId) -> u64 {
        self.members
            .get(id)
            .map_or(0, |(member, _)| member.reads_version)
    }

    /// The stored map.
    pub(crate) fn map(&self) -> &v1::ClusterMap {
        &self.map
    }

    /// Whether a worker is in the stored map as it is.
    pub(crate) fn is_published(&self, id: &WorkerId) -> bool {
        self.stored(id) == self.members.get(id).map(|(member, _)| &member.info)
    }

    /// A worker as it is in the stored map, which is in order.
    fn stored(&self, id: &WorkerId) -> Option<&v1::WorkerInfo> {
        let workers = &self.map.workers;
        let found = workers.binary_search_by(|info| info.id.as_str().cmp(id.as_str()));
        found.ok().map(|place| &workers[place])
    }

    pub(crate) fn contains(&self, id: &WorkerId) -> bool {
        self.members.contains_key(id)
    }

    /// A member, if it is in the stored map.
    pub(crate) fn published_as(&self, id: &WorkerId) -> Option<Member> {
        self.stored(id)?;
        let (member, _) = self.members.get(id)?;
        Some(member.clone())
    }

    /// Cordoned workers that are no members.
    pub(crate) fn away(&self) -> Vec<(WorkerId, v1::WorkerState)> {
        let cordoned = self.cordoned.iter();
        let away = cordoned.filter(|(id, _)| !self.members.contains_key(*id));
        away.map(|(id, state)| (id.clone(), *state)).collect()
    }

    /// The members that are in the stored map.
    pub(crate) fn published(&self) -> Vec<Member> {
        let stored: HashSet<&str> = self.map.workers.iter().map(|w| w.id.as_str()).collect();
        let members = self.members.iter();
        let published = members.filter(|(id, _)| stored.contains(id.as_str()));
        published.map(|(_, (member, _))| member.clone()).collect()
    }
}

/// Tells a map from all others: by what it says, since a master that has lost its directory counts epochs anew.
fn version_of(map: &v1::ClusterMap) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&map.encode_to_vec());
    hasher.finish().max(1)
}

/// The reads of a worker, of which some have become more.
fn together(before: Vec<v1::DatasetReads>, new: Vec<v1::DatasetReads>) -> Vec<v1::DatasetReads> {
    let named = |reads: v1::DatasetReads| (reads.dataset.clone(), reads);
    let mut all: HashMap<_, _> = before.into_iter().map(named).collect();
    all.extend(new.into_iter().map(named));
    all.into_values().collect()
}

/// Gives a worker the weight that it has in the map.
fn weigh(info: &mut v1::WorkerInfo, is_cordoned: bool) {
    let own = info.weight.max(info.cordoned_weight);
    (info.weight, info.cordoned_weight) = if is_cordoned { (0, own) } else { (own, 0) };
}

/// The error about a worker that nobody knows.
pub(crate) fn unknown(id: &WorkerId) -> MasterError {
    MasterError::NotFound(format!(
        "there is no worker {id} in the cluster; `weir worker list` shows those that are"
    ))
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
            reads_version: 0,
            waiting_reads: 0,
            callers: String::new(),
            last_seen,
        }
    }

    fn id(name: &str) -> WorkerId {
        name.parse().unwrap()
    }

    fn stored(members: &mut Membership) -> u64 {
        if let Some(map) = members.next_map() {
            members.publish(map);
        }
        members.map().epoch
    }

    #[test]
    fn the_epoch_grows_with_each_change_and_only_then() {
        let start = Instant::now();
        let mut members = Membership::restored(v1::ClusterMap::default(), start);
        let mut beat = |address, leaving| {
            let beat = member("a", address, start);
            let gone = members.beat(&id("a"), beat, leaving).unwrap();
            (stored(&mut members), gone)
        };
        assert_eq!(beat("x:1", false), (1, vec![]));
        assert_eq!(beat("x:1", false), (1, vec![]));
        assert_eq!(beat("x:2", false), (2, vec![]));
        assert_eq!(beat("x:2", true), (3, vec![id("a")]));
        assert_eq!(beat("x:2", true), (3, vec![]));
        assert_eq!(members.map().workers, []);
    }

    #[test]
    fn a_map_is_told_from_any_other_by_what_it_says() {
        let start = Instant::now();
        let mut members = Membership::restored(v1::ClusterMap::default(), start);
        let mut seen = HashSet::from([0, members.map_version()]);
        for (name, address) in [("a", "x:1"), ("b", "x:2"), ("a", "x:3")] {
            let beat = member(name, address, start);
            members.beat(&id(name), beat, false).unwrap();
            stored(&mut members);
            assert!(seen.insert(members.map_version()), "{name} {address}");
        }
        // The same map after a restart, and one of the same epoch with other workers.
        let again = Membership::restored(members.map().clone(), start);
        assert_eq!(again.map_version(), members.map_version());
        let mut other = members.map().clone();
        other.workers[0].data_address.push('0');
        let other = Membership::restored(other, start);
        assert_eq!(other.map().epoch, members.map().epoch);
        assert_ne!(other.map_version(), members.map_version());
    }

    #[test]
    fn reads_are_added_to_those_that_are_remembered_and_to_no_others() {
        let start = Instant::now();
        let mut members = Membership::restored(v1::ClusterMap::default(), start);
        let mut beat = |reads: &[(&str, u64)], known| {
            let mut beat = member("a", "x", start);
            beat.reads_version = known;
            let reads = reads.iter().map(|(dataset, hits)| v1::DatasetReads {
                dataset: (*dataset).to_owned(),
                hits: *hits,
                ..v1::DatasetReads::default()
            });
            beat.reads = reads.collect();
            members.beat(&id("a"), beat, false).unwrap();
            let (member, _) = &members.members[&id("a")];
            let reads = member.reads.iter();
            let reads = reads.map(|reads| (reads.dataset.clone(), reads.hits));
            let mut reads: Vec<_> = reads.collect();
            reads.sort();
            (reads, members.reads_version(&id("a")))
        };
        let reads = |reads: &[(&str, u64)]| -> Vec<(String, u64)> {
            let owned = |(name, hits): &(&str, u64)| ((*name).to_owned(), *hits);
            reads.iter().map(owned).collect()
        };
        let (_, first) = beat(&[("one", 1), ("two", 2)], 0);
        assert_ne!(first, 0);
        assert_eq!(
            beat(&[("two", 3)], first),
            (reads(&[("one", 1), ("two", 3)]), first)
        );
        assert_eq!(beat(&[], first), (reads(&[("one", 1), ("two", 3)]), first));
        // It has started again, or another master answered it meanwhile.
        for other in [0, first + 7] {
            let (known, version) = beat(&[("one", 9)], other);
            assert_eq!(known, reads(&[("one", 9)]));
            assert!(version != first && version != other);
        }
        assert_eq!(members.reads_version(&id("b")), 0);
    }

    #[test]
    fn a_cluster_keeps_the_hash_that_it_was_made_with() {
        let start = Instant::now();
        let hashing = |first: v1::ClusterMap| {
            let mut members = Membership::restored(first, start);
            let beat = member("a", "x", start);
            members.beat(&id("a"), beat, false).unwrap();
            members.next_map().unwrap().hashing
        };
        assert_eq!(hashing(Membership::first_map()), Hashing::Seats.number());
        let stored_before = v1::ClusterMap::default();
        assert_eq!(hashing(stored_before), Hashing::Scored.number());
    }

    #[test]
    fn a_map_that_is_not_stored_is_told_to_nobody() {
        let start = Instant::now();
        let mut members = Membership::restored(v1::ClusterMap::default(), start);
        let beat = |name, address| member(name, address, start);
        members.beat(&id("a"), beat("a", "x"), false).unwrap();
        assert_eq!(members.map().epoch, 0);
        assert!(!members.is_published(&id("a")));
        // It was not stored, and another worker came.
        let lost = members.next_map().unwrap();
        members.beat(&id("b"), beat("b", "y"), false).unwrap();
        let next = members.next_map().unwrap();
        assert_eq!((lost.epoch, next.epoch, next.workers.len()), (1, 1, 2));
        members.publish(next);
        assert!(members.is_published(&id("a")) && members.is_published(&id("b")));
        members.beat(&id("a"), beat("a", "z"), false).unwrap();
        assert!(!members.is_published(&id("a")), "it has moved");
    }

    #[test]
    fn a_silent_worker_leaves_the_map_and_a_restart_gives_everybody_time() {
        let start = Instant::now();
        let mut members = Membership::restored(v1::ClusterMap::default(), start);
        let beat = member("a", "x", start);
        members.beat(&id("a"), beat, false).unwrap();
        stored(&mut members);
        let mut restored = Membership::restored(members.map().clone(), start);
        let mut at = start;
        while at < start + EXPIRY {
            assert_eq!(restored.expire(at), []);
            at += LOOK_INTERVAL;
        }
        assert_eq!(restored.expire(at), []);
        assert_eq!(restored.expire(at + LOOK_INTERVAL), [id("a")]);
        assert_eq!(stored(&mut restored), 2);
    }

    #[test]
    fn a_master_that_was_stopped_gives_its_workers_a_full_period() {
        let start = Instant::now();
        let mut members = Membership::restored(v1::ClusterMap::default(), start);
        for name in ["a", "b"] {
            let beat = member(name, "x", start);
            members.beat(&id(name), beat, false).unwrap();
        }
        // It wakes after 20 s, and one of them reports first.
        let awake = start + Duration::from_secs(20);
        let mut at = awake;
        while at <= awake + EXPIRY {
            let beat = member("a", "x", at);
            assert_eq!(members.beat(&id("a"), beat, false).unwrap(), []);
            assert_eq!(members.expire(at), [], "{:?}", at - awake);
            at += LOOK_INTERVAL;
        }
        // Who does not report then is gone.
        assert_eq!(members.expire(at), [id("b")]);
    }

    #[test]
    fn a_master_that_is_cut_off_keeps_its_workers_until_one_reports_and_others_do_not() {
        let start = Instant::now();
        let mut members = Membership::restored(v1::ClusterMap::default(), start);
        let beat = |members: &mut Membership, name: &str, at| {
            let beat = member(name, "x", at);
            members.beat(&id(name), beat, false).unwrap()
        };
        for name in ["a", "b", "c"] {
            beat(&mut members, name, start);
        }
        // It looks all the time, and hears nobody for a minute.
        let mut at = start;
        let back = start + Duration::from_mins(1);
        while at < back {
            assert_eq!(members.expire(at), [], "{:?}", at - start);
            at += LOOK_INTERVAL;
        }
        // Those that come back have their places still, and a full period all of them.
        while at <= back + EXPIRY {
            assert_eq!(beat(&mut members, "a", at), [], "{:?}", at - back);
            assert_eq!(members.expire(at), []);
            at += LOOK_INTERVAL;
        }
        beat(&mut members, "b", back + EXPIRY);
        assert_eq!(members.expire(at), [id("c")]);
    }

    #[test]
    fn of_two_workers_of_one_name_one_stays_and_one_that_moves_is_taken_at_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut members = Membership::restored(Membership::first_map(), start);
        let beat = |members: &mut Membership, address, seconds, leaving| {
            let beat = members.beat(&id("a"), member("a", address, at(seconds)), leaving);
            let address = &members.members.get(&id("a")).unwrap().0.info.data_address;
            (beat.map_err(|error| error.to_string()), address.clone())
        };
        let accepted = |address: &str| (Ok(Vec::new()), address.to_owned());
        // It is started again elsewhere, and back a while later.
        for (address, seconds) in [("x", 0), ("y", 2), ("x", 13), ("z", 15)] {
            assert_eq!(
                beat(&mut members, address, seconds, false),
                accepted(address)
            );
            assert_eq!(
                beat(&mut members, address, seconds, false),
                accepted(address)
            );
        }
        // The one at x was not stopped.
        for seconds in [16, 18, 24, 30, 36] {
            let (refused, stays) = beat(&mut members, "x", seconds, false);
            let message = refused.unwrap_err();
            assert!(
                message.contains("two workers a, at z and at x"),
                "{message}"
            );
            assert_eq!(stays, "z");
            assert_eq!(beat(&mut members, "z", seconds, false), accepted("z"));
        }
        // Nor does it take the other one with it.
        assert_eq!(beat(&mut members, "x", 37, true), accepted("z"));
        // When the other one is gone it is the only one.
        assert!(
            members
                .beat(&id("b"), member("b", "b", at(40)), false)
                .is_ok()
        );
        assert!(members.expire(at(41)).is_empty());
        assert!(
            members
                .beat(&id("b"), member("b", "b", at(43)), false)
                .is_ok()
        );
        assert!(
            members
                .beat(&id("b"), member("b", "b", at(45)), false)
                .is_ok()
        );
        let gone = members.beat(&id("a"), member("a", "x", at(47)), false);
        assert_eq!(gone.unwrap(), [id("a")]);
        assert_eq!(beat(&mut members, "x", 48, false), accepted("x"));
    }

    #[test]
    fn a_cordoned_worker_has_no_weight_whatever_it_reports() {
        let start = Instant::now();
        let mut members = Membership::restored(v1::ClusterMap::default(), start);
        let beat = |name: &str, weight, claimed| {
            let mut beat = member(name, "x", start);
            (beat.info.weight, beat.info.cordoned_weight) = (weight, claimed);
            beat
        };
        for name in ["a", "b"] {
            members.beat(&id(name), beat(name, 10, 0), false).unwrap();
        }
        let weights = |members: &Membership| -> Vec<(u64, u64)> {
            let map = members.map().workers.iter();
            map.map(|info| (info.weight, info.cordoned_weight))
                .collect()
        };
        assert_eq!(stored(&mut members), 1);
        let cordoned = Some(v1::WorkerState::Cordoned);
        members.may_stand(&id("a"), cordoned).unwrap();
        members.set_standing(&id("a"), cordoned);
        assert_eq!(stored(&mut members), 2);
        assert_eq!(weights(&members), [(0, 10), (10, 0)]);
        // Its heartbeats change nothing, but for what it has.
        members.beat(&id("a"), beat("a", 10, 0), false).unwrap();
        assert!(members.is_published(&id("a")));
        members.beat(&id("a"), beat("a", 30, 99), false).unwrap();
        stored(&mut members);
        assert_eq!(weights(&members), [(0, 30), (10, 0)]);
        // The other one is the last, and stays.
        let last = members.may_stand(&id("b"), cordoned).unwrap_err();
        assert!(last.to_string().contains("last one"), "{last}");
        let nobody = members.may_stand(&id("c"), cordoned).unwrap_err();
        assert!(matches!(nobody, MasterError::NotFound(_)), "{nobody}");
        let early = members.may_stand(&id("b"), Some(v1::WorkerState::Drained));
        assert!(matches!(early, Err(MasterError::Unready(_))));
        // It leaves, and is cordoned when it comes back.
        members.beat(&id("a"), beat("a", 10, 0), true).unwrap();
        members.beat(&id("a"), beat("a", 10, 0), false).unwrap();
        stored(&mut members);
        assert_eq!(weights(&members), [(0, 10), (10, 0)]);
        members.may_stand(&id("a"), None).unwrap();
        members.set_standing(&id("a"), None);
        stored(&mut members);
        assert_eq!(weights(&members), [(10, 0), (10, 0)]);
    }

    #[test]
    fn there_are_no_more_workers_than_a_map_holds() {
        let start = Instant::now();
        let mut members = Membership::restored(v1::ClusterMap::default(), start);
        for number in 0..MAX_WORKERS {
            let name = format!("w{number}");
            let beat = member(&name, "x", start);
            members.beat(&id(&name), beat, false).unwrap();
        }
        let more = members.beat(&id("more"), member("more", "x", start), false);
        assert!(matches!(more, Err(MasterError::Busy(_))));
        let known = members.beat(&id("w7"), member("w7", "y", start), false);
        assert_eq!(known.unwrap(), []);
    }
}
