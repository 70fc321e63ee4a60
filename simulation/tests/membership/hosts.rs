//! The hosts: a master on its store, workers, and readers of the map.

use std::io;
use std::net::Ipv4Addr;
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
use weir_core::{ClusterMap, Location, WorkerInfo};
use weir_master::{Master, MasterConfig, MasterMetrics};
use weir_origin::{OriginMetrics, SourcePolicy};
use weir_proto::v1::master_client::MasterClient;
use weir_trust::{Dial, Incoming, Limits, Role, Simulated, incoming_simulated};
use weir_worker::snapshots::Snapshots;
use weir_worker::{heartbeat, service, testing};

use super::store::Store;
use super::views::Views;

/// The master's host.
pub(crate) const MASTER: &str = "master";
/// Processes that follow the map, as mounts do.
pub(crate) const READERS: usize = 2;
const PORT: u16 = 7440;
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// The name of a worker and of its host.
pub(crate) fn worker(number: usize) -> String {
    format!("worker-{number}")
}

/// The name of a reader's host.
pub(crate) fn reader(number: usize) -> String {
    format!("reader-{number}")
}

/// All hosts of a simulation.
pub(crate) struct World {
    pub(crate) views: Views,
    _dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn start(sim: &mut turmoil::Sim<'_>, workers: usize) -> Self {
        let (dir, views) = (tempfile::tempdir().unwrap(), Views::default());
        let (path, store) = (dir.path().to_owned(), Arc::<Store>::default());
        sim.host(MASTER, move || serve_master(path.clone(), store.clone()));
        for number in 0..workers {
            let views = views.clone();
            sim.host(worker(number), move || serve_worker(number, views.clone()));
        }
        for number in 0..READERS {
            let views = views.clone();
            sim.host(reader(number), move || read(number, views.clone()));
        }
        Self { views, _dir: dir }
    }
}

/// Calls over the simulated network.
fn dial() -> Dial {
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

async fn incoming(stop: &CancellationToken) -> io::Result<Incoming> {
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?);
    let accept = move || {
        let listener = listener.clone();
        async move {
            let (stream, from) = listener.accept().await?;
            Ok((Box::new(stream) as Box<dyn Simulated>, from.ip()))
        }
    };
    Ok(incoming_simulated(accept, Limits::default(), stop.clone()))
}

async fn serve_master(dir: PathBuf, store: Arc<Store>) -> turmoil::Result {
    let mut registry = Registry::default();
    let config = MasterConfig {
        dir,
        dial: dial(),
        sources: SourcePolicy::unlimited(),
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

async fn serve_worker(number: usize, views: Views) -> turmoil::Result {
    let name = worker(number);
    let opened = testing::open(testing::config(&name)?)?;
    let address = format!("{name}:{PORT}");
    let zone = if number.is_multiple_of(2) { "a" } else { "b" };
    let info = WorkerInfo {
        id: name.parse()?,
        data_address: address.clone(),
        control_address: address,
        node: name.parse()?,
        location: Location::of_names(zone, "")?,
        local_socket: String::new(),
        weight: 1 << 30,
        cordoned_weight: 0,
    };
    let snapshots = Arc::new(Snapshots::new(master_client()));
    let (map, seen) = watch::channel(Arc::<ClusterMap>::default());
    let stop = CancellationToken::new();
    let incoming = incoming(&stop).await?;
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
    let ((), served, ()) = tokio::join!(beats, served, views.follow(name, seen));
    served?;
    Ok(())
}

async fn read(number: usize, views: Views) -> turmoil::Result {
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
