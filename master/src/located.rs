//! Where datasets are cached, by node, group and zone.
//!
//! Schedulers may ask for each pod, so an answer is used again for a second: to count the blocks that several workers hold once takes
//! time that grows with workers and blocks. For a path the manifest is walked, too, which takes up to half a second for ten million
//! files. However many ask, one thread counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use roaring::RoaringBitmap;
use weir_core::blocknumber::numbered_files;
use weir_core::placement::domains::{Placement, Spread, places_by};
use weir_core::{ClusterMap, DatasetName, Manifest, WorkerInfo};
use weir_proto::v1;

use crate::datasets::{Datasets, Newest};
use crate::error::MasterError;
use crate::inventory::Reports;
use crate::members::Members;

/// How long an answer is given again.
const USED_FOR: Duration = Duration::from_secs(1);
/// Answers that are kept for that.
const MAX_KNOWN: usize = 1024;
/// Longest path that is asked for, in bytes: that of the kernel.
const MAX_PATH: usize = 4096;

/// A dataset and a path inside of it, which is empty for all.
type Asked = (DatasetName, String);

/// The last answers.
#[derive(Debug, Default)]
pub(crate) struct Located {
    known: Mutex<HashMap<Asked, (Instant, v1::LocateDatasetReply)>>,
    /// One count at a time: callers that want the same wait for its answer, and others keep no more than one thread busy.
    counting: Arc<tokio::sync::Mutex<()>>,
}

impl Located {
    fn get(&self, asked: &Asked, now: Instant) -> Option<v1::LocateDatasetReply> {
        let known = self.known.lock();
        let (since, reply) = known.get(asked)?;
        (now.saturating_duration_since(*since) < USED_FOR).then(|| reply.clone())
    }

    fn put(&self, asked: Asked, now: Instant, reply: &v1::LocateDatasetReply) {
        let mut known = self.known.lock();
        // Also those of datasets that are gone.
        known.retain(|_, (since, _)| now.saturating_duration_since(*since) < USED_FOR);
        if known.len() < MAX_KNOWN {
            known.insert(asked, (now, reply.clone()));
        }
    }

    /// Where the newest snapshot of a dataset is cached, or what it has at a path.
    pub(crate) async fn locate(
        self: &Arc<Self>,
        datasets: &Datasets,
        members: &Arc<Members>,
        name: &str,
        path: &str,
    ) -> Result<v1::LocateDatasetReply, MasterError> {
        let name: DatasetName = name.parse()?;
        if path.len() > MAX_PATH {
            return Err(MasterError::Invalid(format!(
                "a path has at most {MAX_PATH} bytes"
            )));
        }
        let newest = datasets.newest_of(&name)?;
        let asked = (name, path.to_owned());
        if let Some(known) = self.get(&asked, Instant::now()) {
            let placement = newest.placement;
            return Ok(v1::LocateDatasetReply { placement, ..known });
        }
        let turn = self.counting.clone().lock_owned().await;
        if let Some(known) = self.get(&asked, Instant::now()) {
            let placement = newest.placement;
            return Ok(v1::LocateDatasetReply { placement, ..known });
        }
        let manifest = if path.is_empty() {
            None
        } else {
            let version = newest.snapshot.version;
            Some(datasets.manifest(asked.0.as_str(), Some(version)).await?)
        };
        let (located, members) = (self.clone(), members.clone());
        let reason = datasets.explained(datasets.get(&asked.0)?).placement_reason;
        let count = move || {
            // Held to the end of the count, also if the caller has gone.
            let _turn = turn;
            let part = manifest.map(|manifest| part_at(&manifest, &asked.1));
            let mut reply = count(&asked, newest, part.transpose()?.as_ref(), &members);
            reply.placement_reason = reason;
            located.put(asked, Instant::now(), &reply);
            Ok(reply)
        };
        tokio::task::spawn_blocking(count).await?
    }
}

/// What a snapshot has at a path.
#[derive(Debug, PartialEq)]
struct Part {
    blocks: RoaringBitmap,
    bytes: u64,
}

/// Walks the manifest up to the last file that is at the path.
fn part_at(manifest: &Manifest, path: &str) -> Result<Part, MasterError> {
    let top = manifest.resolve(path).ok_or_else(|| {
        let snapshot = &manifest.summary().snapshot;
        MasterError::NotFound(format!(
            "{snapshot} has no {path:?}; list the mount to see its paths"
        ))
    })?;
    let files: RoaringBitmap = manifest.files_below(top).collect();
    let last = files.max().unwrap_or_default();
    let mut part = Part {
        blocks: RoaringBitmap::new(),
        bytes: 0,
    };
    for (index, numbers) in numbered_files(manifest).take_while(|(index, _)| *index <= last) {
        if files.contains(index) {
            part.blocks.insert_range(numbers);
            part.bytes += manifest.entry(index).size;
        }
    }
    manifest.release();
    Ok(part)
}

fn count(
    (name, path): &Asked,
    newest: Newest,
    part: Option<&Part>,
    members: &Members,
) -> v1::LocateDatasetReply {
    let cluster = members.cluster().borrow().clone();
    let all = members.inventories().of(&newest.snapshot);
    let (reports, blocks, bytes) = match part {
        None => (all, newest.blocks, newest.bytes),
        Some(part) => {
            let reports = all.only(&part.blocks, part.bytes);
            (reports, part.blocks.len(), part.bytes)
        }
    };
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
        path: path.clone(),
        placement_reason: String::new(),
    }
}

/// What each domain of a placement with several holds of a snapshot of so many blocks and bytes.
pub(crate) fn copies(
    placement: &Placement,
    size: (u64, u64),
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
        v1::CachedAt {
            name: domain.clone(),
            cached_bytes: reports.cached_by(size, places.map(name)),
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

    /// A master with the dataset `set` of these files.
    async fn master_of(dir: &std::path::Path, files: &[(&str, usize)]) -> Arc<Master> {
        let data = dir.join("data");
        for (name, length) in files {
            let path = data.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; *length]).unwrap();
        }
        let config = MasterConfig {
            dir: dir.join("master"),
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
        master
    }

    fn asked(path: &str) -> Asked {
        ("set".parse().unwrap(), path.to_owned())
    }

    #[tokio::test]
    async fn callers_that_come_while_another_counts_get_its_answer() {
        let dir = tempfile::tempdir().unwrap();
        let master = master_of(dir.path(), &[("file", 1)]).await;
        let missing = master.locate_dataset("other", "").await;
        assert!(matches!(missing, Err(MasterError::NotFound(_))));

        let turn = master.located.counting.clone().lock_owned().await;
        let mut waiting = std::pin::pin!(master.locate_dataset("set", ""));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        let counted = v1::LocateDatasetReply {
            cached_bytes: 7,
            ..v1::LocateDatasetReply::default()
        };
        master.located.put(asked(""), Instant::now(), &counted);
        drop(turn);
        assert_eq!(waiting.await.unwrap().cached_bytes, 7);
        // One that is old is counted anew.
        master.located.known.lock().clear();
        let located = master.locate_dataset("set", "").await.unwrap();
        assert_eq!((located.version, located.cached_bytes), (1, 0));
        assert_eq!(located.name, "set");
        assert!(master.located.get(&asked(""), Instant::now()).is_some());
        assert!(master.located.get(&asked("file"), Instant::now()).is_none());
    }

    #[tokio::test]
    async fn what_is_at_a_path_is_counted_alone() {
        let dir = tempfile::tempdir().unwrap();
        let big = 2 * weir_core::BLOCK_SIZE as usize + 5;
        let files = [("a/x", 10), ("a/y/z", 20), ("b", big), ("c/x", 40)];
        let master = master_of(dir.path(), &files).await;
        let manifest = master.manifest("set", None).await.unwrap();
        let mut seen = RoaringBitmap::new();
        for (path, blocks, bytes) in [("a", 2, 30), ("/b/", 3, big as u64), ("c/x", 1, 40)] {
            let part = part_at(&manifest, path).unwrap();
            assert_eq!((part.blocks.len(), part.bytes), (blocks, bytes), "{path}");
            assert!(part.blocks.is_disjoint(&seen), "{path}");
            seen |= part.blocks;
            let located = master.locate_dataset("set", path).await.unwrap();
            assert_eq!((located.bytes, &*located.path), (bytes, path));
        }
        assert_eq!(seen.len(), manifest.summary().blocks);
        assert_eq!(part_at(&manifest, "/").unwrap().blocks, seen);
        for path in ["a/none", "b/x", "a/../b"] {
            let missing = master.locate_dataset("set", path).await;
            assert!(matches!(missing, Err(MasterError::NotFound(_))), "{path}");
        }
        let long = "x/".repeat(MAX_PATH);
        let refused = master.locate_dataset("set", &long).await;
        assert!(matches!(refused, Err(MasterError::Invalid(_))));
    }

    #[test]
    fn answers_for_many_paths_are_not_all_kept() {
        let located = Located::default();
        let (now, reply) = (Instant::now(), v1::LocateDatasetReply::default());
        for number in 0..2 * MAX_KNOWN {
            located.put(asked(&number.to_string()), now, &reply);
        }
        assert_eq!(located.known.lock().len(), MAX_KNOWN);
    }
}
