//! `weir worker`: a worker of a cluster.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weir_core::{ByteSize, ClusterMap, Location, NodeName, PlaceName, WorkerId, WorkerInfo};
use weir_origin::{FetchPolicy, OriginMetrics};
use weir_proto::v1::GetClusterMapRequest;
use weir_segment::SegmentError;
use weir_trust::{Access, Dial, Limits, Role, incoming};
use weir_worker::credentials::MasterCredentials;
use weir_worker::snapshots::Snapshots;
use weir_worker::stream::{Admission, serve_local, serve_tcp};
use weir_worker::{DiskSpace, SsdConfig, Worker, WorkerConfig, WorkerError, WorkerMetrics};

use super::workers;
use crate::args::{CacheArgs, MaybePlace, StreamArg, WorkerArgs};
use crate::connect;
use crate::exit::{Failure, Reason};
use crate::http::{self, Exposed};
use crate::memory::{default_fill_memory, default_memory};
use crate::process::{
    SHUTDOWN_DEADLINE, end_with, init_logging, listen, listen_unix, node_name, serving_runtime,
    stop_on_signal,
};
use crate::trust::Trust;

/// Part of a directory's free space that the SSD tier takes when no size is given, and its upper limit.
const DEFAULT_SSD_SHARE: u64 = 5;
const DEFAULT_SSD_LIMIT: u64 = 100 << 30;
/// A tier takes no less, in bytes: four segments that each hold a full block.
const LEAST_SSD: u64 = 17 << 20;
/// Longest wait for another worker of the same name.
const NAMESAKE_DEADLINE: Duration = Duration::from_secs(2);
/// Longest wait for what a predecessor still has that is ending: a little more than it takes.
const PREDECESSOR_DEADLINE: Duration = Duration::from_secs(15);
/// How long a worker that has left the cluster map is there for those who do not know it yet: mounts and workers ask for the map
/// every two seconds. Then nobody waits for one that does not answer.
const FAREWELL: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub(crate) fn run(mut args: WorkerArgs) -> Result<(), Failure> {
    if let Some(command) = args.command.take() {
        return workers::run(command);
    }
    init_logging();
    end_with(&args.parent)?;
    let runtime = serving_runtime()?;
    let outcome = runtime.block_on(serve(args));
    runtime.shutdown_timeout(SHUTDOWN_DEADLINE);
    outcome
}

async fn serve(args: WorkerArgs) -> Result<(), Failure> {
    let Some(master) = args.master.clone() else {
        return Err(Failure::new(
            Reason::Usage,
            "a worker needs its master; give --master HOST:PORT, or WEIR_MASTER",
        ));
    };
    let stop = stop_on_signal()?;
    let trust = Trust::of_server(&args.admit, Role::Worker, &stop).await?;
    if trust.identity().is_none() && args.stream == StreamArg::Tls {
        return Err(Failure::new(
            Reason::Usage,
            "--stream tls needs a certificate; give --certs DIR",
        ));
    }
    let (data_access, control_access) = (trust.access(args.listen)?, trust.access(args.control)?);
    std::fs::create_dir_all(&args.dir).with_context(|| {
        format!(
            "cannot make {}; choose another with --dir",
            args.dir.display()
        )
    })?;
    let node = worker_node(&args, &trust)?;
    let id = worker_id(&args, &trust, &node)?;
    let location = worker_location(&args, &trust)?;
    let host = advertised_host(&args, &trust)?;
    let own_address = format!("{host}:{}", args.listen.port());
    refuse_namesake(&id, &own_address, &master, &trust.dial()).await?;
    let ssd = ssd_tiers(&args.cache, &args.dir.join("ssd"))?;
    let mut registry = Registry::default();
    let metrics = WorkerMetrics::register(&mut registry);
    let origin_metrics = OriginMetrics::register(&mut registry);
    trust.register(&mut registry);
    let config = WorkerConfig {
        id: id.clone(),
        node: node.clone(),
        memory: args.cache.mem.unwrap_or_else(default_memory),
        ssd,
        fill_budget: args.cache.fill_memory.unwrap_or_else(default_fill_memory),
        copies: args.copies,
        keep: args.keep,
        egress_limit: args.egress_limit,
        origins_file: Some(args.dir.join("origins.json")),
        fetch: FetchPolicy::default(),
        sources: args.sources.policy("weir worker").with_credentials(
            MasterCredentials::for_worker(connect::lazy(&master, &trust.dial())?),
        ),
    };
    let worker = open(&config, &metrics, &origin_metrics).await?;
    check_weight(&trust, worker.capacity())?;
    let data = listen(args.listen, PREDECESSOR_DEADLINE).await;
    let data = data.with_context(|| in_use(args.listen))?;
    let control = listen(args.control, PREDECESSOR_DEADLINE).await;
    let control = control.with_context(|| in_use(args.control))?;
    let socket = args.dir.join("worker.sock");
    // A live worker holds the lock of the SSD directory, so this one's name is free.
    let local = listen_unix(&socket).with_context(|| {
        format!(
            "cannot listen on {}; choose a shorter --dir",
            socket.display()
        )
    })?;
    let info = WorkerInfo {
        id,
        data_address: format!("{host}:{}", data.local_addr()?.port()),
        control_address: format!("{host}:{}", control.local_addr()?.port()),
        node,
        location,
        // Others have other working directories.
        local_socket: std::path::absolute(&socket)
            .with_context(|| format!("cannot tell where {} is", socket.display()))?
            .display()
            .to_string(),
        weight: worker.capacity(),
        cordoned_weight: 0,
    };
    let exposed = Exposed {
        registry,
        refresh: Box::new({
            let worker = worker.clone();
            move || worker.update_gauges()
        }),
        mounts: false,
    };
    let http = http::serve(args.http, PREDECESSOR_DEADLINE, exposed, stop.clone()).await?;
    tracing::info!(worker = %info.id, data = %info.data_address, control = %info.control_address, %http, callers = control_access.describe(), "worker started");
    let admission = Admission::new(data_access, args.stream.into(), &info.id);
    tracing::info!(
        protection = admission.describe(),
        "the block stream is served"
    );
    let listeners = Listeners {
        data,
        admission,
        local,
        control,
        control_access,
    };
    run_services(&worker, info, &master, &trust, listeners, stop).await?;
    worker.close(SHUTDOWN_DEADLINE).await;
    // The next start replaces it anyway.
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// Fails if a live worker elsewhere has this one's name: the master would take the two for one that moves to and fro.
/// Nothing was started yet that could be in that one's way. It is not looked for when the master does not answer.
async fn refuse_namesake(
    id: &WorkerId,
    own_address: &str,
    master: &str,
    dial: &Dial,
) -> Result<(), Failure> {
    let mut master = connect::lazy(master, dial)?;
    let asked = master.get_cluster_map(GetClusterMapRequest::default());
    let Ok(Ok(reply)) = timeout(NAMESAKE_DEADLINE, asked).await else {
        return Ok(());
    };
    let workers = reply.into_inner().map.unwrap_or_default().workers;
    let Some(namesake) = workers.iter().find(|worker| worker.id == id.as_str()) else {
        return Ok(());
    };
    let address = &namesake.data_address;
    let mut at_its_address = workers
        .iter()
        .filter(|worker| worker.data_address == *address);
    // At this one's own address was its predecessor, and an address that another worker has now is not its any more.
    if address == own_address || at_its_address.any(|worker| worker.id != namesake.id) {
        return Ok(());
    }
    let connected = timeout(NAMESAKE_DEADLINE, TcpStream::connect(address)).await;
    if !matches!(connected, Ok(Ok(_))) {
        return Ok(()); // it is gone, and this is its successor
    }
    Err(Failure::new(
        Reason::Usage,
        format!(
            "a worker {:?} runs at {address} already; give each its own name with --id",
            namesake.id
        ),
    ))
}

/// The listening sockets of a worker, and whom those on the network admit.
struct Listeners {
    data: TcpListener,
    admission: Arc<Admission>,
    local: UnixListener,
    control: TcpListener,
    control_access: Access,
}

/// Runs streams, control service and heartbeats until `stop`.
async fn run_services(
    worker: &Arc<Worker>,
    info: WorkerInfo,
    master: &str,
    trust: &Trust,
    listeners: Listeners,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let dial = trust.dial();
    let snapshots = Arc::new(Snapshots::new(connect::lazy(master, &dial)?));
    let master = connect::lazy(master, &dial)?;
    let (map, map_seen) = watch::channel(Arc::new(ClusterMap::default()));
    worker.verify_with_others(map_seen.clone(), dial.clone());
    worker.copy_from_others(map_seen.clone(), dial);
    let Listeners {
        data,
        admission,
        local,
        control,
        control_access,
    } = listeners;
    let callers = control_access.describe();
    let own = info.id.clone();
    let farewell = CancellationToken::new();
    let (w, s) = (worker, &farewell);
    let heartbeats = async {
        let (worker, stop) = (worker.clone(), stop.clone());
        let beats = weir_worker::heartbeat::run(
            worker,
            info,
            master,
            snapshots.clone(),
            map,
            callers,
            stop,
        );
        beats.await;
        let last = map_seen.borrow().clone();
        if last.worker(&own).is_none() && !last.workers().is_empty() {
            tokio::time::sleep(FAREWELL).await;
        }
        farewell.cancel();
    };
    let control = incoming(control, control_access, Limits::default(), s.clone());
    let services = async {
        tokio::join!(
            serve_tcp(
                w.clone(),
                map_seen.clone(),
                data,
                admission.clone(),
                s.clone()
            ),
            serve_local(w.clone(), map_seen.clone(), local, s.clone()),
            heartbeats,
            weir_worker::service::serve(
                w.clone(),
                snapshots.clone(),
                Some(admission),
                control,
                s.clone()
            ),
        )
    };
    let ((), (), (), served) = tokio::select! {
        ended = services => ended,
        never = trust.watch() => match never {},
    };
    served
        .context("the control service failed")
        .map_err(Failure::from)
}

/// The SSD tiers that the flags name, or one in `default` with a bounded share of the free space.
pub(crate) fn ssd_tiers(given: &CacheArgs, default: &Path) -> anyhow::Result<Vec<SsdConfig>> {
    let (evict_idle, left_free) = (given.evict_idle(), given.ssd_free);
    if !given.ssd.is_empty() {
        return Ok(given
            .ssd
            .iter()
            .map(|ssd| SsdConfig {
                dir: ssd.dir.clone(),
                capacity: ssd.size,
                evict_idle,
                left_free,
            })
            .collect());
    }
    std::fs::create_dir_all(default).with_context(|| {
        format!(
            "cannot make {}; choose a place with --ssd DIR:SIZE",
            default.display()
        )
    })?;
    let free = DiskSpace::of(default)
        .context("cannot read the free space")?
        .free;
    // What the tier holds already is its own: without it the tier would shrink at each start.
    let held: u64 = std::fs::read_dir(default)?
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum();
    let capacity = ((free + held) / DEFAULT_SSD_SHARE).min(DEFAULT_SSD_LIMIT);
    anyhow::ensure!(
        capacity >= LEAST_SSD,
        "{} is on a disk with {} free, a fifth of which is too little for a cache; free some, or choose a place and a size with --ssd DIR:SIZE",
        default.display(),
        ByteSize(free)
    );
    Ok(vec![SsdConfig {
        dir: default.to_owned(),
        capacity: ByteSize(capacity),
        evict_idle,
        left_free,
    }])
}

fn in_use(address: SocketAddr) -> String {
    format!("cannot listen on {address}; is another worker running?")
}

/// Opens the worker, once a predecessor that is ending has given up its directories.
async fn open(
    config: &WorkerConfig,
    metrics: &Arc<WorkerMetrics>,
    origin_metrics: &Arc<OriginMetrics>,
) -> anyhow::Result<Arc<Worker>> {
    let deadline = Instant::now() + PREDECESSOR_DEADLINE;
    loop {
        match Worker::open(config.clone(), metrics.clone(), origin_metrics.clone()) {
            Err(WorkerError::Segment(SegmentError::Locked { .. })) if Instant::now() < deadline => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// The master would refuse a worker that claims more than its certificate allows.
fn check_weight(trust: &Trust, capacity: u64) -> Result<(), Failure> {
    let subject = trust.identity().map(|identity| identity.subject());
    match subject.and_then(|subject| subject.max_weight) {
        Some(most) if capacity > most.0 => Err(Failure::new(
            Reason::Usage,
            format!(
                "the cache holds {}, and the certificate in --certs allows {most}; give less with --ssd or --mem, or make one that allows more",
                ByteSize(capacity)
            ),
        )),
        _ => Ok(()),
    }
}

/// The worker's node: the one that is given, else the certificate's, else the machine's name.
fn worker_node(args: &WorkerArgs, trust: &Trust) -> Result<NodeName, Failure> {
    let certified = trust
        .identity()
        .and_then(|identity| identity.subject().node);
    match (args.node.clone(), certified) {
        (Some(given), Some(certified)) if given != certified => Err(Failure::new(
            Reason::Usage,
            format!(
                "the certificate in --certs is for node {certified}, not for {given}; leave out --node, or make another certificate"
            ),
        )),
        (Some(node), _) | (None, Some(node)) => Ok(node),
        (None, None) => Ok(node_name()?),
    }
}

/// Zone, group and pool: those that are given, else the certificate's.
fn worker_location(args: &WorkerArgs, trust: &Trust) -> Result<Location, Failure> {
    let certified = trust.identity().map(|identity| identity.subject().place);
    let certified = certified.unwrap_or_default();
    let one = |what: &str, given: &Option<MaybePlace>, certified: Option<PlaceName>| {
        let given = given.as_ref().and_then(|given| given.0.clone());
        match (given, certified) {
            (Some(given), Some(certified)) if given != certified => Err(Failure::new(
                Reason::Usage,
                format!(
                    "the certificate in --certs is for {what} {certified}, not for {given}; leave out --{what}, or make another certificate"
                ),
            )),
            (given, certified) => Ok(given.or(certified)),
        }
    };
    Ok(Location {
        zone: one("zone", &args.zone, certified.zone)?,
        group: one("group", &args.group, certified.group)?,
        pool: one("pool", &args.pool, certified.pool)?,
        machine: args.machine.clone(),
    })
}

/// The worker's name: the one that is given, else the certificate's, else the node's.
fn worker_id(args: &WorkerArgs, trust: &Trust, node: &NodeName) -> Result<WorkerId, Failure> {
    let certified = trust.identity().map(|identity| identity.subject().name);
    if let (Some(given), Some(certified)) = (&args.id, &certified)
        && given.as_str() != certified.as_str()
    {
        return Err(Failure::new(
            Reason::Usage,
            format!(
                "the certificate in --certs is that of worker {certified}, not of {given}; leave out --id, or make another certificate"
            ),
        ));
    }
    if let Some(given) = &args.id {
        return Ok(given.clone());
    }
    let name = certified.as_ref().unwrap_or(node).as_str();
    let id = name.parse();
    Ok(id.context("the node's name cannot be a worker's; use --id")?)
}

fn advertised_host(args: &WorkerArgs, trust: &Trust) -> anyhow::Result<String> {
    if let Some(host) = &args.advertise {
        return Ok(host.clone());
    }
    if args.listen.ip().is_unspecified() {
        let certified = trust.identity().map(|identity| identity.peer().addresses);
        if let Some(first) = certified.and_then(|addresses| addresses.into_iter().next()) {
            return Ok(first);
        }
        return Ok(rustix::system::uname().nodename().to_str()?.to_owned());
    }
    Ok(args.listen.ip().to_string())
}
