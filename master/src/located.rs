//! Where datasets are cached, by node, group and zone.
//!
//! Schedulers may ask for each pod, so an answer is used again for a second: to count the blocks that several workers hold once takes
//! time that grows with workers and blocks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use weir_core::placement::domains::{Spread, domain_of};
use weir_core::{ClusterMap, DatasetName};
use weir_proto::v1;

use crate::datasets::Datasets;
use crate::error::MasterError;
use crate::members::Members;

/// How long an answer is given again.
const USED_FOR: Duration = Duration::from_secs(1);

/// The last answers.
#[derive(Debug, Default)]
pub(crate) struct Located(Mutex<HashMap<DatasetName, (Instant, v1::LocateDatasetReply)>>);

impl Located {
    fn get(&self, name: &DatasetName, now: Instant) -> Option<v1::LocateDatasetReply> {
        let known = self.0.lock();
        let (since, reply) = known.get(name)?;
        (now.saturating_duration_since(*since) < USED_FOR).then(|| reply.clone())
    }

    fn put(&self, name: DatasetName, now: Instant, reply: &v1::LocateDatasetReply) {
        let mut known = self.0.lock();
        // Also those of datasets that are gone.
        known.retain(|_, (since, _)| now.saturating_duration_since(*since) < USED_FOR);
        known.insert(name, (now, reply.clone()));
    }

    /// Where the newest snapshot of a dataset is cached.
    pub(crate) fn locate(
        &self,
        datasets: &Datasets,
        members: &Members,
        name: &str,
    ) -> Result<v1::LocateDatasetReply, MasterError> {
        let name: DatasetName = name.parse()?;
        let now = Instant::now();
        let dataset = datasets.get(&name)?;
        if let Some(known) = self.get(&name, now) {
            return Ok(v1::LocateDatasetReply {
                placement: dataset.placement,
                ..known
            });
        }
        let newest = datasets.newest_of(&name)?;
        let (snapshot, blocks, bytes) = (newest.0, newest.1.blocks, newest.1.bytes);
        let cluster = members.cluster().borrow().clone();
        let inventories = members.inventories();
        let cached_by = |spread| {
            let places = workers_by(&cluster, spread).into_iter();
            let cached = inventories.cached_at(&snapshot, (blocks, bytes), places);
            let message = |(name, cached_bytes)| v1::CachedAt { name, cached_bytes };
            cached.into_iter().map(message).collect()
        };
        let reply = v1::LocateDatasetReply {
            name: name.to_string(),
            version: snapshot.version,
            bytes,
            cached_bytes: inventories.cached(&snapshot, blocks, bytes),
            nodes: cached_by(Spread::Node),
            groups: cached_by(Spread::Group),
            zones: cached_by(Spread::Zone),
            placement: dataset.placement,
        };
        self.put(name, now, &reply);
        Ok(reply)
    }
}

/// The names of the workers of each domain. Groups that nodes were hashed into are none: nobody else knows them.
fn workers_by(cluster: &Arc<ClusterMap>, spread: Spread) -> BTreeMap<String, Vec<&str>> {
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let has_group = |worker: &&weir_core::WorkerInfo| {
        spread != Spread::Group || worker.location.group.is_some()
    };
    for worker in cluster.workers().iter().filter(has_group) {
        if let Some(domain) = domain_of(worker, spread) {
            let workers = places.entry(domain.into_owned()).or_default();
            workers.push(worker.id.as_str());
        }
    }
    places
}
