//! The client's copy of the cluster map, kept fresh in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use weir_core::ClusterMap;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_worker::service::cluster_map;

use crate::metrics::ClientMetrics;

/// Time between two looks at the master.
const INTERVAL: Duration = Duration::from_secs(2);
/// Shortest time between two looks, however often a worker says that the map is old.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for the master's answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Asks for the map once.
pub async fn fetch(master: &mut MasterClient<Channel>) -> Result<ClusterMap, tonic::Status> {
    let mut request = tonic::Request::new(v1::GetClusterMapRequest {});
    request.set_timeout(DEADLINE);
    let reply = master.get_cluster_map(request).await?.into_inner();
    cluster_map(reply.map.unwrap_or_default())
}

/// Keeps `map` fresh until `stop`; `hurry` makes it look at once.
pub async fn follow(
    mut master: MasterClient<Channel>,
    map: watch::Sender<Arc<ClusterMap>>,
    hurry: Arc<Notify>,
    metrics: Arc<ClientMetrics>,
    stop: CancellationToken,
) {
    loop {
        if let Ok(new) = fetch(&mut master).await {
            metrics.map_epoch.set(new.epoch as i64);
            map.send_if_modified(|old| {
                let changed = **old != new;
                if changed {
                    *old = Arc::new(new);
                }
                changed
            });
        } // a master that is away changes nothing: the last map stays good
        let pause = async {
            tokio::time::sleep(MIN_INTERVAL).await;
            let _ = tokio::time::timeout(INTERVAL, hurry.notified()).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = pause => {}
        }
    }
}
