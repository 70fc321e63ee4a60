//! A mount of a cluster's dataset.
//!
//! Manifest and cluster map are kept in the state directory, so a server that is restarted while the master is
//! away still serves; and on a machine that keeps what it knows also for a new mount of the same snapshot.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use weir_client::map::{Doubts, Seen};
use weir_client::{AnySource, ClusterConfig, ClusterReader, ClusterSource, Reader};
use weir_core::{ClusterMap, DatasetRef, Manifest, SnapshotId};
use weir_fuse::page_cache::PageCacheWriter;
use weir_origin::FetchPolicy;
use weir_proto::v1::master_client::MasterClient;
use weir_trust::{Dial, Identity};
use weir_worker::credentials::MasterCredentials;
use weir_worker::snapshots::{SnapshotError, fetch_manifest};

use super::known::{KEEP, Known};
use super::{Metrics, MountConfig, Prepared, Source, pinned, read_ahead};
use crate::connect::{self, SNAPSHOT_KEY};
use crate::exit::Failure;
use crate::trust;

const MAP_FILE: &str = "cluster-map.json";
const PLACEMENT_FILE: &str = "placement.json";
/// Holds the number of the master's last reply about objects of which the page cache may hold wrong bytes.
const DOUBTS_FILE: &str = "doubtful-seen";
/// Longest wait for a manifest that this machine has kept.
const KEPT_PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for a master's map: of the first server of a mount, and of one that follows another one.
const MAP_DEADLINE: Duration = Duration::from_secs(10);
const RESTART_PATIENCE: Duration = Duration::from_millis(200);
/// Such objects whose pages have not been dropped yet.
const MAX_DOUBTFUL: usize = 1024;

pub(super) async fn prepare(
    config: &MountConfig,
    restarted: bool,
    page_cache: &Arc<PageCacheWriter>,
    metrics: &mut Metrics,
    stop: CancellationToken,
) -> Result<Prepared, Failure> {
    let Source::Cluster {
        master,
        dataset,
        certs,
    } = &config.source
    else {
        unreachable!("called for cluster mounts only");
    };
    let load = if restarted {
        // Its readers go on, from the origin at worst, whatever has become of the certificate.
        Identity::load_when_there
    } else {
        Identity::load
    };
    let identity = certs.as_deref().map(load).transpose()?;
    if let Some(identity) = &identity {
        trust::register(&mut metrics.registry, identity);
    }
    let dial = Dial::new(identity.clone());
    let mut client = connect::lazy(master, &dial)?;
    let map_file = config.state_dir.join(MAP_FILE);
    let known_here = config.known_dir.as_deref().map(Known::new);
    let mut is_away = restarted;
    let manifest = if restarted {
        pinned::load(&config.state_dir)?
    } else {
        let name = dataset.dataset.as_str();
        if config.refresh {
            let refresh = weir_proto::v1::RefreshDatasetRequest {
                name: name.to_owned(),
            };
            let refresh = connect::request(refresh, connect::LISTING_DEADLINE);
            let mut asked = client.clone();
            connect::listing(&client, name, asked.refresh_dataset(refresh)).await?;
        }
        let (manifest, is_given) =
            first_manifest(&mut client, dataset, &config.state_dir, known_here.as_ref()).await?;
        is_away = !is_given;
        manifest
    };
    let placement_file = config.state_dir.join(PLACEMENT_FILE);
    let name = manifest.summary().snapshot.dataset.clone();
    let asked = weir_client::map::fetch(&mut client, name.as_str());
    // Readers wait for a server that follows another one, and what was known a moment ago will do for the first reads.
    let patience = if is_away {
        RESTART_PATIENCE
    } else {
        MAP_DEADLINE
    };
    let known = tokio::time::timeout(patience, asked).await;
    let known = known.ok().and_then(Result::ok);
    let is_fresh = known.is_some();
    let (known, placed) = known.unwrap_or_else(|| {
        let here = known_here.as_ref();
        let map = saved::<ClusterMap>(&map_file);
        let map = map.or_else(|| saved(&here?.map()));
        let placed = saved(&placement_file);
        let placed = placed.or_else(|| saved(&here?.placement(&name)));
        (map.unwrap_or_default(), placed.unwrap_or_default())
    });
    let (map, map_seen) = watch::channel(Arc::new(known));
    let (placement, placement_seen) = watch::channel(Arc::new(placed));
    let mut sources = config.allowed.policy("weir mount");
    if !config.no_origin_fallback {
        let master = connect::lazy(master, &dial)?;
        sources = sources.with_credentials(MasterCredentials::for_mount(master, name.clone()));
    }
    let refresh_now = Arc::new(Notify::new());
    let cluster = ClusterReader::new(ClusterConfig {
        node: config.node.clone(),
        location: config.location.clone(),
        map: map_seen.clone(),
        placement: placement_seen.clone(),
        refresh_now: refresh_now.clone(),
        dial,
        fetch: Arc::new(FetchPolicy::default()),
        sources,
        origin_fallback: !config.no_origin_fallback,
        metrics: metrics.client.clone(),
        origin_metrics: metrics.origin.clone(),
    });
    let snapshot = manifest.summary().snapshot.to_string();
    let seen = Seen {
        map,
        dataset: name.to_string(),
        placement,
        node: config.node.clone(),
        at: config.location.clone(),
    };
    let of = name.clone();
    let source = ClusterSource::new(Arc::new(cluster), name);
    let source = AnySource::Cluster(source);
    let read_ahead = read_ahead(config, page_cache, &manifest);
    let reader = Reader::new(Arc::new(manifest), source, read_ahead, &metrics.client);
    let (stale, snapshot_id) = (
        reader.stale_reads().clone(),
        reader.manifest().summary().snapshot.clone(),
    );
    let (reporter, reporting) = (client.clone(), stop.clone());
    let (listener, doubtful) = broadcast::channel(MAX_DOUBTFUL);
    let doubts_file = config.state_dir.join(DOUBTS_FILE);
    let told = std::fs::read_to_string(&doubts_file)
        .ok()
        .filter(|_| restarted);
    let doubts = Doubts {
        seen: told.and_then(|seen| seen.parse().ok()).unwrap_or(0),
        listener,
        keep: Box::new(move |seen| {
            if let Err(error) = pinned::save(&doubts_file, seen.to_string().as_bytes()) {
                tracing::warn!("what is known of doubtful objects could not be saved: {error:#}");
            }
        }),
    };
    let counted = metrics.client.clone();
    let follow = weir_client::map::follow(client, seen, refresh_now, doubts, counted, stop.clone());
    let background = async move {
        let report = stale.report(snapshot_id, reporter, reporting);
        let keep = async {
            let known = async {
                let Some(known) = &known_here else {
                    return;
                };
                let (map, placement) = (known.map(), known.placement(&of));
                let map = |json: &[u8]| known.save(&map, json);
                let placement = |json: &[u8]| known.save(&placement, json);
                tokio::join!(
                    keep_newest(map_seen.clone(), map, KEEP, is_fresh, stop.clone()),
                    keep_newest(
                        placement_seen.clone(),
                        placement,
                        KEEP,
                        is_fresh,
                        stop.clone()
                    ),
                );
            };
            let map = |json: &[u8]| pinned::save(&map_file, json);
            let placement = |json: &[u8]| pinned::save(&placement_file, json);
            tokio::join!(
                keep_newest(map_seen.clone(), map, Duration::ZERO, true, stop.clone()),
                keep_newest(
                    placement_seen.clone(),
                    placement,
                    Duration::ZERO,
                    true,
                    stop.clone()
                ),
                known
            )
        };
        let services = async { tokio::join!(follow, report, keep) };
        tokio::select! {
            _ = services => {}
            never = trust::watch(identity.as_ref()) => match never {},
        }
    };
    Ok(Prepared {
        reader,
        doubtful,
        properties: vec![(SNAPSHOT_KEY.to_owned(), snapshot)],
        refresh: Box::new(|| {}),
        background: Box::pin(background),
    })
}

/// The manifest of a new mount, which is kept in its state directory, and whether the master has given it.
async fn first_manifest(
    client: &mut MasterClient<Channel>,
    named: &DatasetRef,
    state_dir: &Path,
    known: Option<&Known>,
) -> Result<(Manifest, bool), Failure> {
    let snapshot = SnapshotId {
        dataset: named.dataset.clone(),
        version: named.version.unwrap_or_default(),
    };
    let kept = known.filter(|known| known.has(&snapshot));
    let fetched = fetch_manifest(client, snapshot.dataset.as_str(), snapshot.version);
    let fetched = if kept.is_some() {
        // It never changes, so it does as well as the master's.
        let fetched = tokio::time::timeout(KEPT_PATIENCE, fetched).await;
        fetched.unwrap_or_else(|_| Err(SnapshotError::late(&snapshot, KEPT_PATIENCE)))
    } else {
        fetched.await
    };
    let error = match fetched {
        Ok(manifest) => {
            let file = pinned::keep(state_dir, &manifest, None)?;
            if let Some(known) = known {
                known.keep(&manifest.summary().snapshot, &file);
            }
            return Ok((manifest, true));
        }
        Err(error) => error,
    };
    let kept = kept.filter(|_| error.is_away());
    let Some((manifest, file)) = kept.and_then(|known| known.load(&snapshot)) else {
        return Err(error.into());
    };
    tracing::warn!(%snapshot, "mounted by what this machine knows of it: {error}");
    pinned::keep(state_dir, &manifest, Some(&file))?;
    Ok((manifest, false))
}

/// What was kept in a file, if it can be read.
fn saved<T: DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// Keeps what is known of the cluster, for a server that is started while the master is away: now, if it is `fresh`, and when it has
/// changed, after `pause` at the earliest.
async fn keep_newest<T: Serialize>(
    mut known: watch::Receiver<Arc<T>>,
    save: impl Fn(&[u8]) -> anyhow::Result<()>,
    pause: Duration,
    fresh: bool,
    stop: CancellationToken,
) {
    let mut is_due = fresh;
    loop {
        if is_due {
            let current = known.borrow_and_update().clone();
            let json = serde_json::to_vec(&*current).map_err(anyhow::Error::from);
            if let Err(error) = json.and_then(|json| save(&json)) {
                tracing::warn!("what is known of the cluster is not kept: {error:#}");
            }
        }
        is_due = true;
        let next = async {
            tokio::time::sleep(pause).await;
            known.changed().await
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = next => if changed.is_err() { return },
        }
    }
}
