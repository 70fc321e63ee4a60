//! The client's copy of the cluster map and of its dataset's placement, kept fresh in the background.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use weir_core::placement::domains::Placement;
use weir_core::{ClusterMap, Location, NodeName, PlaceName};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_worker::Doubtful;
use weir_worker::heartbeat::{new_map, replace};
use weir_worker::placements::placement;

use crate::metrics::ClientMetrics;

/// Time between two looks at the master.
const INTERVAL: Duration = Duration::from_secs(2);
/// Shortest time between two looks, however often a worker says that the map is old.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Objects that may be wrong are told of once more after this long. For a second after a block was dropped, a mount on its
/// worker's node may still read it from its old place.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Longest wait for the master's answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// The master's reply has more than the map: it names objects of which page caches may hold wrong bytes.
pub struct Doubts {
    /// The number of the last reply that was taken in; 0 if there was none.
    pub seen: u64,
    /// Who drops their pages.
    pub listener: broadcast::Sender<Arc<Doubtful>>,
    /// Keeps the number, for a process that follows this one.
    pub keep: Box<dyn Fn(u64) + Send + Sync>,
}

impl Doubts {
    fn take_in(&mut self, reply: v1::GetClusterMapReply) {
        let objects = reply.doubtful.into_iter().filter_map(Doubtful::from_wire);
        let all = reply.doubtful_left_out.then_some(Doubtful::All);
        let doubtful: Vec<_> = objects.chain(all).map(Arc::new).collect();
        if !doubtful.is_empty() {
            let listener = self.listener.clone();
            tell(&listener, &doubtful);
            tokio::spawn(async move {
                tokio::time::sleep(AGAIN_AFTER).await;
                tell(&listener, &doubtful);
            });
        }
        // 0 comes from a master that knows no doubts.
        if reply.doubtful_seen != self.seen && reply.doubtful_seen != 0 {
            self.seen = reply.doubtful_seen;
            (self.keep)(self.seen);
        }
    }
}

fn tell(listener: &broadcast::Sender<Arc<Doubtful>>, doubtful: &[Arc<Doubtful>]) {
    for object in doubtful {
        // Without a listener there is no page cache.
        let _ = listener.send(object.clone());
    }
}

/// Asks once for the map, and for the placement of a dataset.
pub fn fetch<'a>(
    master: &'a mut MasterClient<Channel>,
    dataset: &'a str,
) -> BoxFuture<'a, Result<(ClusterMap, Placement), tonic::Status>> {
    async move {
        let question = v1::GetClusterMapRequest {
            dataset: dataset.to_owned(),
            ..v1::GetClusterMapRequest::default()
        };
        let mut reply = ask(master, question).await?;
        let map = new_map(reply.map.take(), reply.map_version, 0)?;
        Ok((map.unwrap_or_default(), placement(reply.placement.take())))
    }
    .boxed()
}

async fn ask(
    master: &mut MasterClient<Channel>,
    question: v1::GetClusterMapRequest,
) -> Result<v1::GetClusterMapReply, tonic::Status> {
    let mut request = tonic::Request::new(question);
    request.set_timeout(DEADLINE);
    Ok(master.get_cluster_map(request).await?.into_inner())
}

/// As [`fetch`], and takes in which objects may be wrong. Gives the map if it is another one than that of the version that is
/// known, which becomes its own.
async fn fetch_all(
    master: &mut MasterClient<Channel>,
    question: v1::GetClusterMapRequest,
    doubts: &mut Doubts,
    known_map: &mut u64,
) -> Result<(Option<ClusterMap>, Placement), tonic::Status> {
    let question = v1::GetClusterMapRequest {
        doubtful_seen: doubts.seen,
        known_map: *known_map,
        ..question
    };
    let mut reply = ask(master, question).await?;
    let map = new_map(reply.map.take(), reply.map_version, *known_map);
    *known_map = if map.is_ok() { reply.map_version } else { 0 };
    let placement = placement(reply.placement.take());
    doubts.take_in(reply);
    Ok((map?, placement))
}

/// Where what the master says of the cluster goes.
pub struct Seen {
    /// The cluster map.
    pub map: watch::Sender<Arc<ClusterMap>>,
    /// The dataset that is mounted.
    pub dataset: String,
    /// Which workers hold it.
    pub placement: watch::Sender<Arc<Placement>>,
    /// The machine that this process runs on.
    pub node: NodeName,
    /// Where that stands, as far as this process was told.
    pub at: Location,
}

impl Seen {
    /// What the master is asked and told, when so many bytes were read since it was last.
    fn question(&self, read_bytes: u64) -> v1::GetClusterMapRequest {
        let name = |place: &Option<PlaceName>| place.as_ref().map(ToString::to_string);
        v1::GetClusterMapRequest {
            dataset: self.dataset.clone(),
            node: self.node.to_string(),
            zone: name(&self.at.zone).unwrap_or_default(),
            group: name(&self.at.group).unwrap_or_default(),
            read_bytes,
            ..v1::GetClusterMapRequest::default()
        }
    }
}

/// Keeps what is `seen` fresh until `stop`; `refresh_now` makes it ask the master at once.
pub fn follow(
    mut master: MasterClient<Channel>,
    seen: Seen,
    refresh_now: Arc<Notify>,
    mut doubts: Doubts,
    metrics: Arc<ClientMetrics>,
    stop: CancellationToken,
) -> BoxFuture<'static, ()> {
    async move {
        let mut known_map = 0;
        let mut told_bytes = 0;
        loop {
            let read_bytes = metrics.bytes_read(&seen.dataset);
            let question = seen.question(read_bytes.saturating_sub(told_bytes));
            let fetched = fetch_all(&mut master, question, &mut doubts, &mut known_map);
            if let Ok((map, placement)) = fetched.await {
                told_bytes = read_bytes;
                // The placement may need workers that the map has just got.
                if let Some(map) = map {
                    metrics.map_epoch.set(map.epoch() as i64);
                    replace(&seen.map, map);
                }
                replace(&seen.placement, placement);
            } // a master that is away changes nothing: the last map stays good
            let pause = async {
                tokio::time::sleep(MIN_INTERVAL).await;
                let _ = tokio::time::timeout(INTERVAL, refresh_now.notified()).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = pause => {}
            }
        }
    }
    .boxed()
}
