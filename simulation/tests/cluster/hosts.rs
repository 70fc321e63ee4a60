//! The hosts: a master on its store, workers with a tier in memory and a block stream, readers of the map and of blocks.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use turmoil::net::{TcpListener, TcpStream};
use weir_client::ClientMetrics;
use weir_client::map::{Doubts, Seen, follow};
use weir_core::{ByteSize, ClusterMap, Location, WorkerInfo};
use weir_master::{Master, MasterConfig, MasterMetrics};
use weir_origin::OriginMetrics;
use weir_proto::v1::master_client::MasterClient;
use weir_trust::{Dial, Incoming, Limits, Role, Simulated, incoming_simulated};
use weir_worker::snapshots::Snapshots;
use weir_worker::stream::serve_simulated;
use weir_worker::{WorkerConfig, heartbeat, service, testing};

use super::clocks::Clock;
use super::origin::Bucket;
use super::reads::Reads;
use super::store::Store;
use super::views::Views;

/// The master's host.
pub(crate) const MASTER: &str = "master";
/// What is read: one over the cluster, and one with a copy in each zone.
pub(crate) const DATASETS: [&str; 2] = ["wide", "near"];
/// Ports of the control services, and of the workers' block streams.
const PORT: u16 = 7440;
const DATA_PORT: u16 = 7441;
/// A worker's tier: all objects fit.
const MEMORY: ByteSize = ByteSize(8 << 20);
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// The name of a worker and of its host.
pub(crate) fn worker(number: usize) -> String {
    format!("worker-{number}")
}

/// The name of a reader's host.
pub(crate) fn reader(number: usize) -> String {
    format!("reader-{number}")
}

/// The zone of the worker, or of the readers, with this number.
pub(crate) fn zone(number: usize) -> &'static str {
    ["a", "b"][number % 2]
}

/// What a simulation is made of.
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) workers: usize,
    /// Workers beside those, which come after a while.
    pub(crate) late: Vec<Duration>,
    /// Processes that follow the map, as mounts do; with `reads` they read blocks, too.
    pub(crate) readers: usize,
    pub(crate) reads: Option<Reads>,
    pub(crate) bucket: Bucket,
    /// The clock of the next host.
    pub(crate) clock: Box<dyn FnMut() -> Clock>,
}

/// All hosts of a simulation.
pub(crate) struct World {
    pub(crate) views: Views,
    _dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn start(sim: &mut turmoil::Sim<'_>, mut setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let workers = setup.workers + setup.late.len();
        let views = Views::of(workers, setup.readers);
        let (path, store, bucket) = (dir.path().to_owned(), Arc::<Store>::default(), setup.bucket);
        let (own, clock) = (bucket.clone(), (setup.clock)());
        sim.host(MASTER, move || {
            tokio::spawn(clock.clone().run(MASTER.to_owned()));
            serve_master(path.clone(), store.clone(), own.clone())
        });
        for number in 0..workers {
            let (views, own, clock) = (views.clone(), bucket.clone(), (setup.clock)());
            let after = number
                .checked_sub(setup.workers)
                .map(|late| setup.late[late]);
            sim.host(worker(number), move || {
                tokio::spawn(clock.clone().run(worker(number)));
                let served = serve_worker(number, views.clone(), own.clone()).boxed_local();
                async move {
                    tokio::time::sleep(after.unwrap_or_default()).await;
                    served.await
                }
            });
        }
        for number in 0..setup.readers {
            let (views, reads, clock) = (views.clone(), setup.reads.clone(), (setup.clock)());
            sim.host(reader(number), move || {
                tokio::spawn(clock.clone().run(reader(number)));
                let (views, reads) = (views.clone(), reads.clone());
                async move {
                    match reads {
                        None => follow_alone(number, views).boxed_local().await,
                        Some(reads) => reads.run(number, setup.seed, views).boxed_local().await,
                    }
                }
            });
        }
        Self { views, _dir: dir }
    }
}

/// Calls over the simulated network.
pub(crate) fn dial() -> Dial {
    Dial::simulated(|address| {
        let connect = async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Box::new(stream) as Box<dyn Simulated>)
        };
        connect.boxed()
    })
}

/// The master, as callers have it.
pub(crate) fn master_client() -> MasterClient<Channel> {
    let address = format!("{MASTER}:{PORT}");
    let channel = dial().channel(&address, Role::Master, CONNECT_DEADLINE);
    MasterClient::new(channel.unwrap())
}

async fn listen(port: u16) -> io::Result<Arc<TcpListener>> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    Ok(Arc::new(listener))
}

async fn accept(listener: Arc<TcpListener>) -> io::Result<(Box<dyn Simulated>, IpAddr)> {
    let (stream, from) = listener.accept().await?;
    Ok((Box::new(stream), from.ip()))
}

async fn incoming(stop: &CancellationToken) -> io::Result<Incoming> {
    let listener = listen(PORT).await?;
    let accept = move || accept(listener.clone());
    Ok(incoming_simulated(accept, Limits::default(), stop.clone()))
}

async fn serve_master(dir: PathBuf, store: Arc<Store>, bucket: Bucket) -> turmoil::Result {
    let mut registry = Registry::default();
    let config = MasterConfig {
        dir,
        dial: dial(),
        sources: bucket.policy(),
        ..MasterConfig::default()
    };
    let metrics = MasterMetrics::register(&mut registry);
    let origin = OriginMetrics::register(&mut registry);
    let master = Master::with_store(config, store, metrics, origin)?;
    let stop = CancellationToken::new();
    let incoming = incoming(&stop).await?;
    weir_master::serve(master, incoming, stop).await?;
    Ok(())
}

async fn serve_worker(number: usize, views: Views, bucket: Bucket) -> turmoil::Result {
    let name = worker(number);
    let opened = testing::open(WorkerConfig {
        memory: MEMORY,
        sources: bucket.policy(),
        ..testing::config(&name)?
    })?;
    let info = WorkerInfo {
        id: name.parse()?,
        data_address: format!("{name}:{DATA_PORT}"),
        control_address: format!("{name}:{PORT}"),
        node: name.parse()?,
        location: Location::of_names(zone(number), "")?,
        local_socket: String::new(),
        weight: MEMORY.0,
        cordoned_weight: 0,
    };
    let snapshots = Arc::new(Snapshots::new(master_client()));
    let (map, seen) = watch::channel(Arc::<ClusterMap>::default());
    let stop = CancellationToken::new();
    let incoming = incoming(&stop).await?;
    opened.copy_from_others(seen.clone(), dial());
    let listener = listen(DATA_PORT).await?;
    let accept = move || accept(listener.clone());
    let blocks = serve_simulated(opened.clone(), seen.clone(), accept, stop.clone());
    let beats = heartbeat::run(
        opened.clone(),
        info,
        master_client(),
        snapshots.clone(),
        map,
        "insecure",
        stop.clone(),
    );
    let served = service::serve(opened, snapshots, None, incoming, stop);
    let ((), (), served, ()) = tokio::join!(beats, blocks, served, views.follow(name, seen));
    served?;
    Ok(())
}

async fn follow_alone(number: usize, views: Views) -> turmoil::Result {
    let (map, map_seen) = watch::channel(Arc::<ClusterMap>::default());
    let seen = Seen {
        map,
        dataset: String::new(),
        placement: watch::Sender::new(Arc::default()),
        node: reader(number).parse()?,
        at: Location::default(),
    };
    let doubts = Doubts {
        seen: 0,
        listener: broadcast::Sender::new(1),
        keep: Box::new(|_| ()),
    };
    let metrics = ClientMetrics::register(&mut Registry::default());
    let stop = CancellationToken::new();
    let following = follow(
        master_client(),
        seen,
        Arc::new(Notify::new()),
        doubts,
        metrics,
        stop,
    );
    tokio::join!(following, views.follow(reader(number), map_seen));
    Ok(())
}
