//! The plugin's two sockets, and what it does by itself: looking for mounts that nobody serves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use weir_trust::{Limits, incoming_unix};

use crate::DRIVER;
use crate::calls::Calls;
use crate::controller::ControllerService;
use crate::error::CsiError;
use crate::identity::IdentityService;
use crate::metrics::CsiMetrics;
use crate::node::NodeService;
use crate::proto::csi::controller_server::ControllerServer;
use crate::proto::csi::identity_server::IdentityServer;
use crate::proto::csi::node_server::NodeServer;
use crate::proto::registration::registration_server::RegistrationServer;
use crate::registration::RegistrationService;
use crate::socket;
use crate::topology::{NodeIdentity, Place};
use crate::volumes::Volumes;

/// Between two looks for mounts that nobody serves, and while some could not be brought back.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
const SWEEP_AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for calls under way when the plugin ends.
const LAST_CALLS: Duration = Duration::from_secs(10);

/// Where the plugin is found.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The CSI socket.
    pub socket: PathBuf,
    /// The same, as kubelet sees it.
    pub kubelet_socket: PathBuf,
    /// Kubelet's directory of plugins' sockets; without one the plugin is not registered.
    pub registration_dir: Option<PathBuf>,
    /// Take the place of a plugin that still listens there, as during an update.
    pub take_over: bool,
    /// Who this node is, and where it stands.
    pub node: NodeIdentity,
}

/// Serves kubelet until `stop`.
pub async fn serve(
    config: ServerConfig,
    volumes: Arc<Volumes>,
    metrics: Arc<CsiMetrics>,
    stop: CancellationToken,
) -> Result<(), CsiError> {
    let tasks = TaskTracker::new();
    let identity = IdentityService {
        has_topology: config.node.group.is_some(),
    };
    let id = config.node.id.clone();
    let place = Arc::new(Place::new(config.node, metrics.clone()));
    let calls = Calls::new(metrics, tasks.clone());
    let controller = ControllerService::new(volumes.clone(), calls.clone());
    let node = NodeService::new(volumes.clone(), id, place, calls);
    // Kubelet calls this one as soon as it has found the other.
    let (listener, _bound) = socket::listen(&config.socket, config.take_over).await?;
    let routes = Routes::new(IdentityServer::new(identity))
        .add_service(ControllerServer::new(controller))
        .add_service(NodeServer::new(node));
    let incoming = incoming_unix(listener, Limits::default(), stop.clone());
    let csi = weir_trust::serve(routes, incoming, stop.clone());
    let socket = &config.socket;
    let csi = async { csi.await.map_err(|error| broken(socket, &error)) };
    let registration = register(
        config.registration_dir,
        config.kubelet_socket,
        config.take_over,
        stop.clone(),
    );
    let sweeping = sweep(&volumes, &stop);
    let all = async { tokio::try_join!(csi, registration, sweeping).map(drop) };
    let last_calls = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_CALLS).await;
    };
    let ended = tokio::select! {
        ended = all => ended,
        () = last_calls => Ok(()),
    };
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(LAST_CALLS, tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("calls of kubelet were still under way at the end");
    }
    ended
}

fn broken(socket: &Path, error: &tonic::transport::Error) -> CsiError {
    CsiError::Node(format!("cannot serve at {}: {error}", socket.display()))
}

/// The socket by which kubelet finds the driver. As the name of the server kubelet sends its path, with `%2F` for each `/`; in such
/// a name percent signs are allowed before an `@` alone, and the call is refused if there is none.
fn registration_socket(dir: &Path) -> PathBuf {
    dir.join(format!("{DRIVER}@reg.sock"))
}

/// Makes the driver known to kubelet until `stop`.
async fn register(
    dir: Option<PathBuf>,
    endpoint: PathBuf,
    take_over: bool,
    stop: CancellationToken,
) -> Result<(), CsiError> {
    let Some(dir) = dir else {
        stop.cancelled().await;
        return Ok(());
    };
    let path = registration_socket(&dir);
    let (listener, _bound) = socket::listen(&path, take_over).await?;
    let service = RegistrationService {
        endpoint: endpoint.to_string_lossy().into_owned(),
    };
    let routes = Routes::new(RegistrationServer::new(service));
    let incoming = incoming_unix(listener, Limits::default(), stop.clone());
    let served = weir_trust::serve(routes, incoming, stop).await;
    served.map_err(|error| broken(&path, &error))
}

/// Looks for mounts that nobody serves, and those that nobody uses, until `stop`.
async fn sweep(volumes: &Volumes, stop: &CancellationToken) -> Result<(), CsiError> {
    loop {
        let pause = match volumes.sweep().await {
            Ok(0) => SWEEP_INTERVAL,
            Ok(_) => SWEEP_AGAIN,
            Err(error) => {
                tracing::warn!("mounts could not be looked through: {error}");
                SWEEP_INTERVAL
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::codegen::http::uri::Authority;

    use super::*;

    #[test]
    fn the_registration_socket_is_a_name_by_which_kubelet_can_call() {
        let path = registration_socket(Path::new("/var/lib/kubelet/plugins_registry"));
        let name = path.to_str().unwrap().replace('/', "%2F");
        assert!(name.parse::<Authority>().is_ok(), "{name}");
        assert!(name.replace('@', "-").parse::<Authority>().is_err());
    }
}
