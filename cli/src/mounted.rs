//! The process that serves a mount: the file system, and in embedded mode master and worker too.
//!
//! It is started by the supervisor, and started again whenever it dies. What the kernel has cached must stay true
//! over that, so a restarted server serves the very snapshot that the first one did: its manifest is kept in the state
//! directory.

mod cluster;
mod embedded;
mod known;
mod pinned;
mod privileges;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::Receiver;
use tokio_util::sync::CancellationToken;
use weir_client::{ClientMetrics, ReadAheadTarget, Reader};
use weir_core::{ByteSize, DatasetRef, FreeSpace, Location, Manifest, NodeName};
use weir_fuse::fs::{Ownership, SnapshotFs};
use weir_fuse::metrics::FuseMetrics;
use weir_fuse::page_cache::PageCacheWriter;
use weir_fuse::waiting::WaitingReads;
use weir_mount::handover::{Handover, ServeConfig};
use weir_origin::{OriginMetrics, OriginSpec};
use weir_worker::Doubtful;

use crate::args::{ReadAheadArg, SourceArgs};
use crate::exit::Failure;
use crate::http::{self, Exposed};
use crate::memory;
use crate::process::{SHUTDOWN_DEADLINE, init_logging, serving_runtime};

/// Threads that answer the kernel, and how many of them are kept from waiting for a network: those answer names and
/// cached reads, and a few more than cores keep the disk busy.
const THREADS: usize = 10;
const UNDISTURBED_THREADS: usize = 4;
/// Snapshots of at most this part of the memory are read ahead into the page cache.
const PAGE_CACHE_SHARE: u64 = 2;

/// All that a serving process must know; written by `weir mount`, free of secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MountConfig {
    pub(crate) source: Source,
    /// Where this mount keeps what must outlive its processes.
    pub(crate) state_dir: PathBuf,
    pub(crate) refresh: bool,
    pub(crate) node: NodeName,
    /// Where it stands, as far as that was said.
    #[serde(default)]
    pub(crate) location: Location,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) file_mode: u16,
    pub(crate) dir_mode: u16,
    pub(crate) http: SocketAddr,
    #[serde(default)]
    pub(crate) read_ahead: ReadAheadArg,
    /// Which sources a mount of a cluster's dataset reads by itself, if no worker answers.
    #[serde(default)]
    pub(crate) allowed: SourceArgs,
    /// Such a mount reads no source by itself.
    #[serde(default)]
    pub(crate) no_origin_fallback: bool,
    /// Where this machine keeps what it knows of the cluster, for mounts that are made while the master is away.
    #[serde(default)]
    pub(crate) known_dir: Option<PathBuf>,
}

/// Where the mount's data comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "a process has one")]
pub(crate) enum Source {
    /// An origin, with master and worker in the serving process.
    Embedded {
        origin: OriginSpec,
        dataset: DatasetRef,
        memory: ByteSize,
        /// Most memory for blocks on their way.
        #[serde(default = "default_fill_memory")]
        fill_memory: ByteSize,
        /// Directory and size of each SSD tier.
        ssd: Vec<(PathBuf, ByteSize)>,
        /// When a tier is full, what nobody has read for this long makes room.
        #[serde(default = "default_evict_idle")]
        evict_idle: Duration,
        /// What tiers leave free of their disks.
        #[serde(default)]
        ssd_free: FreeSpace,
    },
    /// A dataset of a cluster.
    Cluster {
        master: String,
        dataset: DatasetRef,
        /// Directory of the mount's certificate.
        #[serde(default)]
        certs: Option<PathBuf>,
    },
}

/// Of a mount that an older version has made.
fn default_fill_memory() -> ByteSize {
    weir_worker::FILL_BUDGET
}

fn default_evict_idle() -> Duration {
    weir_worker::EVICT_IDLE
}

/// The metrics of a serving process.
struct Metrics {
    registry: Registry,
    client: Arc<ClientMetrics>,
    fuse: Arc<FuseMetrics>,
    origin: Arc<OriginMetrics>,
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::default();
        Self {
            client: ClientMetrics::register(&mut registry),
            fuse: FuseMetrics::register(&mut registry),
            origin: OriginMetrics::register(&mut registry),
            registry,
        }
    }
}

/// What one of the two kinds of mount has set up.
struct Prepared {
    reader: Reader,
    /// Key and value pairs for `weir status`.
    properties: Vec<(String, String)>,
    /// Brings gauges up to date before a scrape.
    refresh: Box<dyn Fn() + Send + Sync>,
    /// Objects of which the kernel may hold wrong bytes.
    doubtful: Receiver<Arc<Doubtful>>,
    /// Services that run beside the file system.
    background: Background,
}

/// Services that end when the mount does.
type Background = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where files go ahead of their readers. A snapshot that the page cache cannot hold with room to spare would push
/// its own files out before anybody reads them.
fn read_ahead(
    config: &MountConfig,
    page_cache: &Arc<PageCacheWriter>,
    manifest: &Manifest,
) -> ReadAheadTarget {
    let fits = || manifest.summary().bytes <= memory::limit() / PAGE_CACHE_SHARE;
    match config.read_ahead {
        ReadAheadArg::Off => ReadAheadTarget::Off,
        ReadAheadArg::PageCache => ReadAheadTarget::PageCache(page_cache.clone()),
        ReadAheadArg::Auto if fits() => ReadAheadTarget::PageCache(page_cache.clone()),
        ReadAheadArg::Auto | ReadAheadArg::Tiers => ReadAheadTarget::Tiers,
    }
}

/// `weir serve-mount`. The exit code tells the supervisor whether the mount is gone.
pub(crate) fn run(config: &str) -> ExitCode {
    if let Err(error) = privileges::begin_without() {
        crate::output::note(format_args!(
            "weir: the privileges of this process cannot be given up: {error}"
        ));
        return ExitCode::FAILURE;
    }
    init_logging();
    let mut handover = match Handover::from_env() {
        Ok(handover) => handover,
        Err(error) => {
            crate::output::note(format_args!(
                "weir: {error}; this command is started by `weir mount`"
            ));
            return ExitCode::FAILURE;
        }
    };
    let outcome = serde_json::from_str(config)
        .context("the mount's configuration is not readable")
        .map_err(Failure::from)
        .and_then(|config| serve(&config, &mut handover));
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            tracing::error!("{}", failure.message());
            handover.fail(failure.message(), failure.code());
            ExitCode::FAILURE
        }
    }
}

fn serve(config: &MountConfig, handover: &mut Handover) -> Result<ExitCode, Failure> {
    let own = match &config.source {
        Source::Cluster { .. } if handover.is_restart() => {
            weir_mount::supervisor::follow_state(&config.state_dir)
        }
        _ => weir_mount::supervisor::own_state(&config.state_dir).map(Some),
    };
    let _own = own.with_context(|| format!("cannot use {}", config.state_dir.display()))?;
    let runtime = serving_runtime()?;
    let _inside = runtime.enter();
    let stop = CancellationToken::new();
    let mut metrics = Metrics::new();
    let restarted = handover.is_restart();
    let page_cache = PageCacheWriter::new(handover.mounted(), handover.fuse());
    let page_cache = page_cache.context("cannot keep the mount's descriptor")?;
    let prepared = runtime.block_on(async {
        match &config.source {
            Source::Embedded { .. } => {
                let dir = handover.runtime_dir();
                embedded::prepare(
                    config,
                    restarted,
                    dir,
                    &page_cache,
                    &mut metrics,
                    stop.clone(),
                )
                .await
            }
            Source::Cluster { .. } => {
                cluster::prepare(config, restarted, &page_cache, &mut metrics, stop.clone()).await
            }
        }
    })?;
    let ownership = Ownership {
        uid: config.uid,
        gid: config.gid,
        file_mode: config.file_mode,
        dir_mode: config.dir_mode,
    };
    // Connections between the processes of a cluster belong to the runtime.
    let here = match &config.source {
        Source::Embedded { .. } => THREADS - UNDISTURBED_THREADS,
        Source::Cluster { .. } => 0,
    };
    let waiting = Arc::new(WaitingReads::new(runtime.handle().clone(), here));
    let exposed = Exposed {
        registry: metrics.registry,
        refresh: prepared.refresh,
        mounts: false,
    };
    // All that others want to know of the mount is told before it is usable.
    handover.publish(
        crate::connect::STATE_DIR_KEY,
        &config.state_dir.to_string_lossy(),
    );
    for (key, value) in &prepared.properties {
        handover.publish(key, value);
    }
    // The mount works without its metrics, so a taken port is not the end of it.
    match runtime.block_on(http::serve(
        config.http,
        Duration::ZERO,
        exposed,
        stop.clone(),
    )) {
        Ok(address) => handover.publish(crate::connect::HTTP_KEY, &address.to_string()),
        Err(error) => tracing::error!("{error:#}"),
    }
    let reader = Arc::new(prepared.reader);
    let started = page_cache.start(&reader, &waiting);
    started.context("cannot start the threads that fill the page cache")?;
    let dropping = page_cache.drop_doubtful(reader.manifest().clone(), prepared.doubtful);
    dropping.context("cannot start the thread that drops pages")?;
    let writer = page_cache.clone();
    let fs = SnapshotFs::new(reader, ownership, waiting, metrics.fuse.clone());
    let serving = handover.serve(
        fs,
        ServeConfig {
            threads: THREADS,
            let_go: Some(Box::new(move || page_cache.let_go())),
        },
    );
    let serving = serving.map_err(anyhow::Error::from)?;
    let background = runtime.spawn(prepared.background);
    let ended = serving.wait();
    writer.let_go();
    stop.cancel();
    let closed = async { tokio::time::timeout(SHUTDOWN_DEADLINE, background).await };
    if runtime.block_on(closed).is_err() {
        tracing::warn!("the services did not end in time");
    }
    serving.leave();
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(ended.exit_code())
}
