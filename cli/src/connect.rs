//! Finding and calling the master.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use weir_mount::runtime::{self, MountInfo};
use weir_proto::v1::master_client::MasterClient;

use crate::exit::{Failure, Reason};

/// Longest wait for the connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Longest wait for a call that only looks something up.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for a call that lists an origin.
pub(crate) const LISTING_DEADLINE: Duration = Duration::from_hours(24);
/// Longest message that is taken: a list of many datasets.
const MAX_MESSAGE: usize = 64 << 20;
/// The state of a mount names its master's address under this key.
pub(crate) const CONTROL_KEY: &str = "control";
/// Property of a mount: the directory that its processes keep.
pub(crate) const STATE_DIR_KEY: &str = "state_dir";
/// The state of a mount names its metrics' address under this key.
pub(crate) const HTTP_KEY: &str = "http";
/// The state of a mount names its dataset and snapshot under this key.
pub(crate) const SNAPSHOT_KEY: &str = "snapshot";

/// A channel that connects at the first call and again when it breaks.
pub(crate) fn lazy(address: &str) -> Result<MasterClient<Channel>, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| {
        Failure::new(
            Reason::Usage,
            format!("master address {address:?} is not valid: write HOST:PORT"),
        )
    })?;
    let channel = endpoint.connect_timeout(CONNECT_DEADLINE).connect_lazy();
    Ok(MasterClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}

/// The master that a command means: the given one, or that of the mount on this machine. With `dataset`, a mount of
/// that dataset is preferred.
pub(crate) async fn master(
    given: Option<&str>,
    dataset: Option<&str>,
) -> Result<MasterClient<Channel>, Failure> {
    let address = match given {
        Some(address) => address.to_owned(),
        None => embedded(dataset)?,
    };
    let mut client = lazy(&address)?;
    let mut probe = tonic::Request::new(weir_proto::v1::GetClusterMapRequest::default());
    probe.set_timeout(CONNECT_DEADLINE);
    client.get_cluster_map(probe).await.map_err(|status| {
        Failure::new(
            Reason::Unavailable,
            format!(
                "the master at {address} does not answer ({}); check --master or WEIR_MASTER",
                status.message()
            ),
        )
    })?;
    Ok(client)
}

fn embedded(dataset: Option<&str>) -> Result<String, Failure> {
    let mut mounts = embedded_mounts();
    if let Some(dataset) = dataset
        && mounts.iter().any(|(mount, _)| serves(mount, dataset))
    {
        mounts.retain(|(mount, _)| serves(mount, dataset));
    }
    match mounts.as_slice() {
        [] => Err(Failure::new(
            Reason::Usage,
            "no master is given and no mount on this machine has one; use --master HOST:PORT or WEIR_MASTER",
        )),
        [(_, address)] => Ok(address.clone()),
        several => {
            let list: Vec<String> = several
                .iter()
                .map(|(mount, address)| {
                    format!("{} (--master {address})", mount.mountpoint.display())
                })
                .collect();
            Err(Failure::new(
                Reason::Usage,
                format!(
                    "several mounts on this machine have a master; choose one: {}",
                    list.join(", ")
                ),
            ))
        }
    }
}

fn serves(mount: &MountInfo, dataset: &str) -> bool {
    mount
        .properties
        .get(SNAPSHOT_KEY)
        .and_then(|snapshot| snapshot.split('@').next())
        == Some(dataset)
}

/// Mounts of this machine that have a master of their own, with its address.
pub(crate) fn embedded_mounts() -> Vec<(MountInfo, String)> {
    runtime::list()
        .into_iter()
        .filter_map(|mount| {
            let address = mount.properties.get(CONTROL_KEY)?.clone();
            Some((mount, address))
        })
        .collect()
}

/// A request with a deadline.
pub(crate) fn request<T>(message: T, deadline: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadline);
    request
}
