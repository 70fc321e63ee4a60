//! Readers of what many read: over which workers they spread.
//!
//! The owner of a block that is read by many says over how many further workers its readers are to spread
//! (`worker/demand.rs`). Which ones these are follows from the cluster map: the next ones in the block's hash order. Each reader
//! picks one of them, or the owner, by a number of its own, and takes the one on its own machine if that is among them. An owner that has
//! more to send than it can sends readers on that have picked it. A further worker that has no copy, does not answer or is too old
//! costs a question more; the owner is asked then, and for a while readers that would pick that worker take the next one.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_core::placement::domains::Spread;
use weir_core::{Block, BlockKey, WorkerId, WorkerInfo};
use weir_proto::v1::BlockRequest;
use weir_wire::{Activity, ConnectionError, MAX_COPIES, way_down};

use super::{ClusterReader, Refusal, View, is_beside};
use crate::metrics::{ReadSource, ResultLabel};
use crate::silence::SILENCE;

/// How long it counts what an owner has said, and how long a worker is not asked for copies that had none, or did not answer as it
/// should.
const SAID_FOR: Duration = Duration::from_secs(10);
const LACKING_FOR: Duration = Duration::from_secs(1);
const AVOIDED_FOR: Duration = Duration::from_secs(5);
/// Longest wait for a worker to give a copy, which it may have to wait for itself.
const DEADLINE: Duration = Duration::from_secs(10);
/// Objects of which owners have said something; more are asked of their owners first.
const MAX_OBJECTS: usize = 1024;
/// Asks for the bytes whatever the owner would like.
pub(super) const INSIST: u32 = u32::MAX;

/// What is known of objects that many read.
pub(super) struct Spreading {
    /// This reader's number.
    reader: u64,
    said: Mutex<HashMap<ObjectId, (u32, Instant)>>,
    avoided: Mutex<HashMap<WorkerId, Instant>>,
}

type ObjectId = (
    weir_core::OriginId,
    std::sync::Arc<str>,
    std::sync::Arc<str>,
);

fn object_of(block: &Block) -> ObjectId {
    let object = &block.object;
    (block.origin, object.key.clone(), object.version.clone())
}

/// A further worker, and what it is asked with.
pub(super) struct Copy<'a> {
    worker: &'a WorkerInfo,
    place: u32,
    way: Vec<String>,
}

impl Spreading {
    /// Nothing is known yet, by a reader with this number.
    pub(super) fn new(reader: u64) -> Self {
        Self {
            reader: reader.max(1),
            said: Mutex::default(),
            avoided: Mutex::default(),
        }
    }

    /// This reader's number.
    pub(super) fn reader(&self) -> u64 {
        self.reader
    }

    /// Over how many further workers the readers of an object spread.
    pub(super) fn copies(&self, block: &Block) -> u32 {
        let mut said = self.said.lock();
        if said.is_empty() {
            return 0;
        }
        let object = object_of(block);
        match said.get(&object) {
            Some((copies, until)) if Instant::now() < *until => *copies,
            Some(_) => {
                said.remove(&object);
                0
            }
            None => 0,
        }
    }

    /// An owner has said so.
    pub(super) fn note(&self, block: &Block, copies: u32) {
        let mut said = self.said.lock();
        if copies == 0 && said.is_empty() {
            return; // as after nearly every read
        }
        let (object, now) = (object_of(block), Instant::now());
        if copies == 0 {
            said.remove(&object);
            return;
        }
        if said.len() >= MAX_OBJECTS && !said.contains_key(&object) {
            said.retain(|_, (_, until)| now < *until);
            if said.len() >= MAX_OBJECTS {
                return;
            }
        }
        said.insert(object, (copies.min(MAX_COPIES), now + SAID_FOR));
    }

    fn avoid(&self, worker: &WorkerId, time: Duration) {
        let now = Instant::now();
        let mut avoided = self.avoided.lock();
        avoided.retain(|_, until| now < *until);
        avoided.insert(worker.clone(), now + time);
    }

    fn avoids(&self, worker: &WorkerId) -> bool {
        let avoided = self.avoided.lock();
        avoided
            .get(worker)
            .is_some_and(|until| Instant::now() < *until)
    }

    /// The place that this reader picks, of so many.
    fn pick(&self, key: &BlockKey, places: usize) -> usize {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (self.reader, key.0).hash(&mut hasher);
        (hasher.finish() % places.max(1) as u64) as usize
    }
}

/// Where the workers with copies of a block are: those in the owner's zone unless a copy of the dataset is spread over all, and
/// of its pool.
fn further<'a>(
    view: &'a View,
    key: &BlockKey,
    owner: &WorkerInfo,
    copies: u32,
) -> Vec<&'a WorkerInfo> {
    let map = view.owners.map();
    let all = map.workers().len();
    let is_placed = view.placement.spread != Spread::Cluster;
    // Some may not be used.
    let looked_at = if is_placed {
        all
    } else {
        (copies as usize + 8).min(all)
    };
    let of_dataset: Vec<&WorkerId> = view.owners.of(key).map(|owner| &owner.id).collect();
    let pool = view.placement.pool.as_ref();
    let order = map.owners(key, looked_at).into_iter().filter(|worker| {
        worker.weight > 0
            && worker.id != owner.id
            && !of_dataset.contains(&&worker.id)
            && (!is_placed || worker.location.zone == owner.location.zone)
            && pool.is_none_or(|pool| worker.location.pool.as_ref() == Some(pool))
    });
    order.take(copies as usize).collect()
}

impl ClusterReader {
    /// The further worker that this reader asks for a block in place of its owner, if it does: unless the owner may be asked, it does if
    /// there is any.
    pub(super) fn copy_of<'a>(
        &self,
        view: &'a View,
        block: &Block,
        owner: &WorkerInfo,
        copies: u32,
        may_be_owner: bool,
    ) -> Option<Copy<'a>> {
        if copies == 0 {
            return None;
        }
        let key = block.key();
        let workers = further(view, &key, owner, copies.min(MAX_COPIES));
        let near = workers
            .iter()
            .position(|worker| is_beside(worker, &self.config.node));
        let first = usize::from(!may_be_owner);
        let places = workers.len() + 1 - first;
        let picked = near.map_or_else(|| self.spreading.pick(&key, places), |at| at + 1 - first);
        // Readers of one that gives nothing for now go to all others alike, not to the owner alone.
        let mut picked = (0..places).map(|further| first + (picked + further) % places);
        let is_asked = |place: &usize| {
            let further = place.checked_sub(1).and_then(|at| workers.get(at));
            further.is_none_or(|worker| {
                !self.suspects.contains(&worker.id) && !self.spreading.avoids(&worker.id)
            })
        };
        let place = picked.find(is_asked)?;
        let worker = workers.get(place.checked_sub(1)?)?;
        let place = place as u32;
        let at = |place: u32| {
            place
                .checked_sub(1)
                .map_or(owner, |at| workers[at as usize])
        };
        let way = way_down(place).map(|place| at(place).id.to_string());
        Some(Copy {
            worker,
            place,
            way: way.collect(),
        })
    }

    /// Asks a further worker. `None` if the owner is to be asked.
    pub(super) async fn ask_for_copy(
        &self,
        copy: Copy<'_>,
        request: &BlockRequest,
        key: BlockKey,
    ) -> Option<(bytes::Bytes, ReadSource)> {
        let Copy { worker, place, way } = copy;
        let request = BlockRequest {
            reader: 0,
            copies: 0,
            copy_place: place,
            copy_from: way,
            ..request.clone()
        };
        let near = is_beside(worker, &self.config.node);
        let activity = Activity::default();
        let asked = async {
            if near {
                let socket = &worker.local_socket;
                let local = self.local.request(socket, key, request.clone(), &activity);
                if let Ok(answer) = local.await {
                    return Ok(answer);
                }
            }
            let answer = self.remote.request(worker, &request, &activity).await;
            answer.map(|(answer, bytes)| (answer.reply, bytes))
        };
        let answer = tokio::select! {
            biased;
            answer = self.unless_it_leaves(worker, asked) => answer.ok_or("left"),
            () = activity.silent_for(SILENCE) => {
                self.suspect(worker);
                Err("silent")
            }
            () = tokio::time::sleep(DEADLINE) => Err("late"),
        };
        let (result, given) = match answer {
            Ok(Ok((reply, bytes))) => match self.judge(worker, near, reply) {
                Ok(source) => ("ok", Some((bytes, source))),
                Err(Refusal::Final(_) | Refusal::Next(..)) => ("not_held", None),
            },
            Ok(Err(ConnectionError::Damaged)) => ("damaged", None),
            Ok(Err(ConnectionError::TooOld)) => ("too_old", None),
            Ok(Err(_)) => {
                self.suspect(worker);
                ("unreachable", None)
            }
            Err(result) => (result, None),
        };
        match result {
            "ok" => {}
            "not_held" => self.spreading.avoid(&worker.id, LACKING_FOR),
            _ => self.spreading.avoid(&worker.id, AVOIDED_FOR),
        }
        let reads = &self.config.metrics.copy_reads;
        reads.get_or_create(&ResultLabel { result }).inc();
        given
    }
}
