//! Where datasets are cached, by node, group and zone.
//!
//! Schedulers may ask for each pod, so an answer is used again for a second: to count the blocks that several workers hold once takes
//! time that grows with workers and blocks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use weir_core::placement::domains::{Placement, Spread, places_by};
use weir_core::{ClusterMap, DatasetName, WorkerInfo};
use weir_proto::v1;

use crate::datasets::{Datasets, Newest};
use crate::error::MasterError;
use crate::inventory::Reports;
use crate::members::Members;

/// How long an answer is given again.
const USED_FOR: Duration = Duration::from_secs(1);

/// The last answers.
#[derive(Debug, Default)]
pub(crate) struct Located {
    known: Mutex<HashMap<DatasetName, (Instant, v1::LocateDatasetReply)>>,
    /// One count at a time: callers that want the same wait for its answer, and others keep no more than one thread busy.
    counting: Arc<tokio::sync::Mutex<()>>,
}

impl Located {
    fn get(&self, name: &DatasetName, now: Instant) -> Option<v1::LocateDatasetReply> {
        let known = self.known.lock();
        let (since, reply) = known.get(name)?;
        (now.saturating_duration_since(*since) < USED_FOR).then(|| reply.clone())
    }

    fn put(&self, name: DatasetName, now: Instant, reply: &v1::LocateDatasetReply) {
        let mut known = self.known.lock();
        // Also those of datasets that are gone.
        known.retain(|_, (since, _)| now.saturating_duration_since(*since) < USED_FOR);
        known.insert(name, (now, reply.clone()));
    }

    /// Where the newest snapshot of a dataset is cached.
    pub(crate) async fn locate(
        self: &Arc<Self>,
        datasets: &Datasets,
        members: &Arc<Members>,
        name: &str,
    ) -> Result<v1::LocateDatasetReply, MasterError> {
        let name: DatasetName = name.parse()?;
        let newest = datasets.newest_of(&name)?;
        if let Some(known) = self.get(&name, Instant::now()) {
            let placement = newest.placement;
            return Ok(v1::LocateDatasetReply { placement, ..known });
        }
        let turn = self.counting.clone().lock_owned().await;
        if let Some(known) = self.get(&name, Instant::now()) {
            let placement = newest.placement;
            return Ok(v1::LocateDatasetReply { placement, ..known });
        }
        let (located, members) = (self.clone(), members.clone());
        let count = move || {
            // Held to the end of the count, also if the caller has gone.
            let _turn = turn;
            let reply = count(&name, newest, &members);
            located.put(name, Instant::now(), &reply);
            reply
        };
        Ok(tokio::task::spawn_blocking(count).await?)
    }
}

fn count(name: &DatasetName, newest: Newest, members: &Members) -> v1::LocateDatasetReply {
    let (blocks, bytes) = (newest.blocks, newest.bytes);
    let cluster = members.cluster().borrow().clone();
    let reports = members.inventories().of(&newest.snapshot);
    let cached_by = |spread| {
        let places = workers_by(&cluster, spread);
        let cached = reports.cached_at((blocks, bytes), places).into_iter();
        let message = |(name, cached_bytes)| v1::CachedAt { name, cached_bytes };
        cached.map(message).collect()
    };
    v1::LocateDatasetReply {
        name: name.to_string(),
        version: newest.snapshot.version,
        bytes,
        cached_bytes: reports.cached(blocks, bytes),
        nodes: cached_by(Spread::Node),
        groups: cached_by(Spread::Group),
        zones: cached_by(Spread::Zone),
        placement: newest.placement,
    }
}

/// What each domain of a placement with several holds of a snapshot of so many blocks and bytes.
pub(crate) fn copies(
    placement: &Placement,
    (blocks, bytes): (u64, u64),
    cluster: &ClusterMap,
    reports: &Reports,
) -> Vec<v1::CachedAt> {
    if placement.domains.len() < 2 {
        return Vec::new();
    }
    let workers = places_by(cluster, placement.spread, placement.pool.as_ref());
    let name = |place: &usize| cluster.workers()[*place].id.as_str();
    let copy = |domain: &String| {
        let places = workers.get(domain.as_str()).into_iter().flatten();
        let workers = std::iter::once((domain.clone(), places.map(name).collect()));
        let cached = reports.cached_at((blocks, bytes), workers);
        v1::CachedAt {
            name: domain.clone(),
            cached_bytes: cached.first().map_or(0, |(_, bytes)| *bytes),
        }
    };
    placement.domains.iter().map(copy).collect()
}

/// The names of the workers of each domain. Groups that nodes were hashed into are none: nobody else knows them.
fn workers_by(cluster: &ClusterMap, spread: Spread) -> impl Iterator<Item = (String, Vec<&str>)> {
    let domains = places_by(cluster, spread, None).into_iter();
    domains.filter_map(move |(domain, places)| {
        let workers = places.into_iter().map(|place| &cluster.workers()[place]);
        let has_group = |worker: &&WorkerInfo| worker.location.group.is_some();
        let workers = workers.filter(|worker| spread != Spread::Group || has_group(worker));
        let names: Vec<&str> = workers.map(|worker| worker.id.as_str()).collect();
        (!names.is_empty()).then(|| (domain.into_owned(), names))
    })
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use tokio_util::sync::CancellationToken;
    use weir_origin::{OriginMetrics, SourcePolicy};

    use super::*;
    use crate::config::MasterConfig;
    use crate::master::Master;
    use crate::metrics::MasterMetrics;

    #[tokio::test]
    async fn callers_that_come_while_another_counts_get_its_answer() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("file"), "x").unwrap();
        let config = MasterConfig {
            dir: dir.path().join("master"),
            sources: SourcePolicy::unlimited(),
            ..MasterConfig::default()
        };
        let mut registry = Registry::default();
        let metrics = MasterMetrics::register(&mut registry);
        let origin = OriginMetrics::register(&mut registry);
        let master = Master::open(config, metrics, origin).await.unwrap();
        let url = format!("file://{}", data.display());
        let create = v1::CreateDatasetRequest {
            name: "set".to_owned(),
            spec: format!(r#"{{"sources":[{{"url":"{url}"}}]}}"#),
            mounts: Vec::new(),
        };
        let made = master.create_dataset(create, CancellationToken::new());
        made.await.unwrap();
        let missing = master.locate_dataset("other").await;
        assert!(matches!(missing, Err(MasterError::NotFound(_))));

        let turn = master.located.counting.clone().lock_owned().await;
        let mut waiting = std::pin::pin!(master.locate_dataset("set"));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        let counted = v1::LocateDatasetReply {
            cached_bytes: 7,
            ..v1::LocateDatasetReply::default()
        };
        let name: DatasetName = "set".parse().unwrap();
        master.located.put(name.clone(), Instant::now(), &counted);
        drop(turn);
        assert_eq!(waiting.await.unwrap().cached_bytes, 7);
        // One that is old is counted anew.
        master.located.known.lock().clear();
        let located = master.locate_dataset("set").await.unwrap();
        assert_eq!((located.version, located.cached_bytes), (1, 0));
        assert_eq!(located.name, "set");
        assert!(master.located.get(&name, Instant::now()).is_some());
    }
}
