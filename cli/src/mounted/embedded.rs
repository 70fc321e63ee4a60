//! A mount with its own master and worker in one process.
//!
//! The read path needs the worker and the manifest alone, so a restarted server begins to serve with those and
//! opens the master behind it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weir_client::{AnySource, EmbeddedSource, Reader, StaleReads};
use weir_core::{ByteSize, ClusterMap, DatasetRef, Location, Manifest, SnapshotId, WorkerInfo};
use weir_fuse::page_cache::PageCacheWriter;
use weir_master::{Master, MasterConfig, MasterMetrics};
use weir_origin::{FetchPolicy, OriginSpec, SourcePolicy};
use weir_proto::v1;
use weir_trust::{Access, Dial, Limits, incoming_unix};
use weir_worker::snapshots::Snapshots;
use weir_worker::{SsdConfig, Worker, WorkerConfig, WorkerMetrics};

use super::{Metrics, MountConfig, Prepared, Source, pinned, read_ahead};
use crate::connect::{CONTROL_KEY, SNAPSHOT_KEY, unix_address};
use crate::exit::Failure;
use crate::process::{SHUTDOWN_DEADLINE, listen_unix};

/// Holds the number of the snapshot that is mounted.
const SERVING_FILE: &str = "serving";
/// Sockets of the master and of the worker, in the mount's runtime directory: for processes of the same user alone. Not
/// longer than the supervisor's, so that their paths fit where its does.
const MASTER_SOCKET: &str = "master.sock";
const WORKER_SOCKET: &str = "worker.sock";

pub(super) async fn prepare(
    config: &MountConfig,
    restarted: bool,
    runtime_dir: &Path,
    page_cache: &Arc<PageCacheWriter>,
    metrics: &mut Metrics,
    stop: CancellationToken,
) -> Result<Prepared, Failure> {
    let Source::Embedded {
        origin,
        dataset,
        memory,
        fill_memory,
        ssd,
        evict_idle,
        ssd_free,
    } = &config.source
    else {
        unreachable!("called for embedded mounts only");
    };
    let worker_metrics = WorkerMetrics::register(&mut metrics.registry);
    let master_metrics = MasterMetrics::register(&mut metrics.registry);
    let tiers: Vec<SsdConfig> = ssd
        .iter()
        .map(|(dir, capacity)| SsdConfig {
            dir: dir.clone(),
            capacity: *capacity,
            evict_idle: *evict_idle,
            left_free: *ssd_free,
        })
        .collect();
    let worker = open_worker(
        config,
        (*memory, *fill_memory),
        &tiers,
        worker_metrics,
        metrics,
    )?;
    worker.origins().add(origin.clone());
    let master_config = MasterConfig {
        dir: config.state_dir.join("master"),
        // What it reads is named by the user whose mount it is.
        sources: SourcePolicy::unlimited(),
        ..MasterConfig::default()
    };
    let (manifest, master) = if restarted {
        let manifest = load_served(&config.state_dir, &master_config, dataset)?;
        (Arc::new(manifest), None)
    } else {
        let master = Master::open(
            master_config.clone(),
            master_metrics.clone(),
            metrics.origin.clone(),
        )
        .await?;
        let manifest = choose_snapshot(&master, dataset, origin, config.refresh).await?;
        let version = manifest.summary().snapshot.version;
        let serving_file = config.state_dir.join(SERVING_FILE);
        std::fs::write(&serving_file, version.to_string())
            .with_context(|| format!("cannot write {}", serving_file.display()))?;
        let original = weir_master::manifest_path(&master_config.dir, &dataset.dataset, version);
        pinned::keep(&config.state_dir, &manifest, Some(&original))?;
        (manifest, Some(master))
    };
    let sockets = match Sockets::listen(runtime_dir) {
        // Reads of a mount that is in use go on without.
        Err(error) if !restarted => return Err(error.into()),
        sockets => sockets,
    };
    let control_address = unix_address(&runtime_dir.join(MASTER_SOCKET));
    let snapshot = manifest.summary().snapshot.to_string();
    let name = &manifest.summary().snapshot.dataset;
    let source = AnySource::Embedded(EmbeddedSource::new(worker.clone(), name));
    let read_ahead = read_ahead(config, page_cache, &manifest);
    let reader = Reader::new(manifest, source, read_ahead, &metrics.client);
    let background = run(Services {
        stale: reader.stale_reads().clone(),
        snapshot: reader.manifest().summary().snapshot.clone(),
        worker: worker.clone(),
        master,
        open_master: Box::pin(Master::open(
            master_config,
            master_metrics,
            metrics.origin.clone(),
        )),
        sockets,
        config: config.clone(),
        stop,
    });
    Ok(Prepared {
        reader,
        doubtful: worker.doubtful_objects(),
        properties: vec![
            (CONTROL_KEY.to_owned(), control_address),
            (SNAPSHOT_KEY.to_owned(), snapshot),
        ],
        refresh: Box::new(move || worker.update_gauges()),
        background: Box::pin(background),
    })
}

fn open_worker(
    config: &MountConfig,
    (memory, fill_budget): (ByteSize, ByteSize),
    ssd: &[SsdConfig],
    worker_metrics: Arc<WorkerMetrics>,
    metrics: &Metrics,
) -> anyhow::Result<Arc<Worker>> {
    let config = WorkerConfig {
        id: config.node.as_str().parse()?,
        node: config.node.clone(),
        memory,
        ssd: ssd.to_vec(),
        fill_budget,
        copies: None,
        keep: None,
        egress_limit: None,
        origins_file: None,
        fetch: FetchPolicy::default(),
        sources: SourcePolicy::unlimited(),
    };
    Ok(Worker::open(
        config,
        worker_metrics,
        metrics.origin.clone(),
    )?)
}

/// The manifest that the server before this one mounted. A server of an earlier version kept its number alone.
fn load_served(
    state_dir: &Path,
    master: &MasterConfig,
    dataset: &DatasetRef,
) -> anyhow::Result<Manifest> {
    let serving_file = state_dir.join(SERVING_FILE);
    let version = std::fs::read_to_string(&serving_file)
        .ok()
        .and_then(|text| text.parse::<u64>().ok())
        .ok_or_else(|| anyhow!("{} is not readable", serving_file.display()))?;
    let is_served = |manifest: &Manifest| {
        let snapshot = &manifest.summary().snapshot;
        snapshot.dataset == dataset.dataset && snapshot.version == version
    };
    match pinned::load(state_dir) {
        Ok(manifest) if is_served(&manifest) => Ok(manifest),
        _ => {
            let original = weir_master::manifest_path(&master.dir, &dataset.dataset, version);
            let manifest = pinned::read(original.clone())?;
            pinned::keep(state_dir, &manifest, Some(&original))?;
            Ok(manifest)
        }
    }
}

/// Makes the dataset if it is new, lists it again if asked to, and gives the manifest to mount.
async fn choose_snapshot(
    master: &Arc<Master>,
    dataset: &DatasetRef,
    origin: &OriginSpec,
    refresh: bool,
) -> Result<Arc<Manifest>, Failure> {
    let name = dataset.dataset.to_string();
    let mount = v1::MountSpec {
        origin: Some(origin.clone().into()),
        path: String::new(),
    };
    let created = master
        .create_dataset(
            v1::CreateDatasetRequest {
                spec: String::new(),
                name: name.clone(),
                mounts: vec![mount],
            },
            CancellationToken::new(),
        )
        .await?;
    if refresh {
        let refresh = master.refresh_dataset(&name, CancellationToken::new());
        refresh.await?;
    } else if let Some(newest) = created.snapshots.last() {
        tracing::info!(snapshot = %format!("{name}@{}", newest.version), listed = newest.created_ns, "mounting a known snapshot; --refresh lists the origin again");
    }
    Ok(master.manifest(&name, dataset.version).await?)
}

/// What the mount's master and worker listen on.
struct Sockets {
    master: UnixListener,
    worker: UnixListener,
    /// The runtime directory. A mount that was detached has its own renamed, and another may have its name then: the two
    /// call each other by this descriptor.
    dir: File,
}

impl Sockets {
    fn listen(dir: &Path) -> anyhow::Result<Self> {
        let listen = |name| {
            let path = dir.join(name);
            listen_unix(&path).with_context(|| format!("cannot listen on {}", path.display()))
        };
        Ok(Self {
            master: listen(MASTER_SOCKET)?,
            worker: listen(WORKER_SOCKET)?,
            dir: File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?,
        })
    }

    /// The address of one of them, for this process alone.
    fn address(&self, name: &str) -> String {
        let dir = format!("/proc/self/fd/{}", self.dir.as_raw_fd());
        unix_address(&Path::new(&dir).join(name))
    }
}

struct Services {
    stale: Arc<StaleReads>,
    snapshot: SnapshotId,
    worker: Arc<Worker>,
    master: Option<Arc<Master>>,
    open_master: OpenMaster,
    sockets: anyhow::Result<Sockets>,
    config: MountConfig,
    stop: CancellationToken,
}

type OpenMaster =
    std::pin::Pin<Box<dyn Future<Output = Result<Arc<Master>, weir_master::MasterError>> + Send>>;

/// Runs the master's and the worker's services until `stop`. Reads go on whatever becomes of them.
async fn run(services: Services) {
    let Services {
        stale,
        snapshot,
        worker,
        master,
        open_master,
        sockets,
        config,
        stop,
    } = services;
    let closing = worker.clone();
    let result = async {
        let sockets = sockets?;
        let master = match master {
            Some(master) => master,
            None => open_master.await?,
        };
        let info = WorkerInfo {
            id: worker.config().id.clone(),
            data_address: String::new(),
            control_address: sockets.address(WORKER_SOCKET),
            node: config.node.clone(),
            location: Location::default(),
            local_socket: String::new(),
            weight: worker.capacity(),
            cordoned_weight: 0,
        };
        let address = sockets.address(MASTER_SOCKET);
        let connect = || {
            let client = crate::connect::lazy(&address, &Dial::default());
            client.map_err(|failure| anyhow!("{}", failure.message()))
        };
        let client = connect()?;
        let snapshots = Arc::new(Snapshots::new(connect()?));
        let (map, _) = watch::channel(Arc::new(ClusterMap::default()));
        let (s, w) = (stop.clone(), worker.clone());
        let (limits, callers) = (Limits::default(), Access::SameUser.describe());
        let to_master = incoming_unix(sockets.master, limits, s.clone());
        let to_worker = incoming_unix(sockets.worker, limits, s.clone());
        let (master_served, worker_served, (), ()) = tokio::join!(
            weir_master::serve(master, to_master, s.clone()),
            weir_worker::service::serve(w.clone(), snapshots.clone(), None, to_worker, s.clone()),
            stale.report(snapshot, client.clone(), s.clone()),
            weir_worker::heartbeat::run(w, info, client, snapshots, map, callers, s),
        );
        master_served?;
        worker_served?;
        anyhow::Ok(())
    };
    if let Err(error) = result.await {
        tracing::error!("the mount's master ended, reads go on: {error:#}");
        stop.cancelled().await;
    }
    closing.close(SHUTDOWN_DEADLINE).await;
}
