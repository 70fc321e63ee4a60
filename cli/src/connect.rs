//! Finding and calling the master.

use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, Instant};

use tonic::Code;
use tonic::transport::Channel;
use weir_mount::runtime::{self, MountInfo};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_trust::{Dial, Role};

use crate::args::MasterAddress;
use crate::exit::{Failure, Reason, causes};
use crate::trust;

/// Longest wait for the connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Longest wait for a call that only looks something up.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for a call that lists an origin.
pub(crate) const LISTING_DEADLINE: Duration = Duration::from_hours(24);
/// Longest message that is taken: a list of many datasets.
const MAX_MESSAGE: usize = 64 << 20;
/// Begins the address of a Unix socket.
const UNIX: &str = "unix:";
/// The state of a mount names its master's address under this key.
pub(crate) const CONTROL_KEY: &str = "control";
/// Property of a mount: the directory that its processes keep.
pub(crate) const STATE_DIR_KEY: &str = "state_dir";
/// The state of a mount names its metrics' address under this key.
pub(crate) const HTTP_KEY: &str = "http";
/// The state of a mount names its dataset and snapshot under this key.
pub(crate) const SNAPSHOT_KEY: &str = "snapshot";

/// A channel that connects at the first call and again when it breaks.
pub(crate) fn lazy(address: &str, dial: &Dial) -> Result<MasterClient<Channel>, Failure> {
    let channel = dial.channel(address, Role::Master, CONNECT_DEADLINE);
    let channel =
        channel.map_err(|error| Failure::new(Reason::Usage, format!("the master's {error}")))?;
    Ok(MasterClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}

/// The master that a command means: the given one, or that of the mount on this machine. With `dataset`, a mount of
/// that dataset is preferred.
pub(crate) async fn master(
    given: &MasterAddress,
    dataset: Option<&str>,
) -> Result<MasterClient<Channel>, Failure> {
    match given.address() {
        Some(address) => call(address, &trust::dial(&given.certs)?).await,
        // In this machine both ends are known by their users.
        None => call(&embedded(dataset)?, &Dial::default()).await,
    }
}

/// The master at an address, which has answered.
pub(crate) async fn call(address: &str, dial: &Dial) -> Result<MasterClient<Channel>, Failure> {
    let mut client = lazy(address, dial)?;
    let mut probe = tonic::Request::new(v1::GetClusterMapRequest::default());
    probe.set_timeout(CONNECT_DEADLINE);
    match client.get_cluster_map(probe).await {
        Ok(_) => Ok(client),
        Err(status) if status.code() == Code::PermissionDenied => Err(status.into()),
        Err(status) => Err(Failure::new(
            Reason::Unavailable,
            format!(
                "the master at {address} does not answer ({}); {}",
                causes(&status),
                hint(dial)
            ),
        )),
    }
}

fn hint(dial: &Dial) -> &'static str {
    if dial.is_secure() {
        "check --master or WEIR_MASTER, and whether --certs or WEIR_CERTS is of its cluster"
    } else {
        "check --master or WEIR_MASTER; a master with certificates takes callers with --certs, one without them those of its own user"
    }
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

/// The address of a mount's master. Its socket is in the mount's runtime directory, which may have been renamed since. A
/// server of an earlier version has told a port.
fn control_address(mount: &MountInfo) -> Option<String> {
    let told = mount.properties.get(CONTROL_KEY)?;
    let socket = told.strip_prefix(UNIX).map(Path::new);
    let Some(name) = socket.and_then(Path::file_name) else {
        return Some(told.clone());
    };
    Some(unix_address(&mount.dir.join(name)))
}

/// The address of a Unix socket.
pub(crate) fn unix_address(socket: &Path) -> String {
    format!("{UNIX}{}", socket.display())
}

/// Mounts of this machine that have a master of their own, with its address.
pub(crate) fn embedded_mounts() -> Vec<(MountInfo, String)> {
    runtime::list()
        .into_iter()
        .filter_map(|mount| {
            let address = control_address(&mount)?;
            Some((mount, address))
        })
        .collect()
}

/// When a call that lists an origin is asked about, and how often.
const LISTING_LOOK: Duration = Duration::from_secs(1);
/// The next thing that it waits for is told after so long at the earliest.
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// Waits for a call that lists the sources of a dataset, and tells the user what it waits for meanwhile.
pub(crate) async fn listing<T>(
    master: &MasterClient<Channel>,
    dataset: &str,
    call: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        done = call => done,
        never = tell_waits(master.clone(), dataset) => match never {},
    }
}

async fn tell_waits(mut master: MasterClient<Channel>, dataset: &str) -> Infallible {
    let mut last: Option<(Instant, String)> = None;
    loop {
        tokio::time::sleep(LISTING_LOOK).await;
        let look = v1::GetListingRequest {
            dataset: dataset.to_owned(),
        };
        let looked = master.get_listing(request(look, CALL_DEADLINE)).await;
        let waits_for = match looked {
            Ok(reply) => reply.into_inner().waits_for,
            // A master of before this call: there is nothing to be told.
            Err(status) if status.code() == Code::Unimplemented => std::future::pending().await,
            Err(_) => continue,
        };
        let is_news = last
            .as_ref()
            .is_none_or(|(at, told)| *told != waits_for && at.elapsed() > TELL_AGAIN);
        if !waits_for.is_empty() && is_news {
            crate::output::note(format_args!(
                "weir: dataset {dataset} waits for {waits_for} (Ctrl-C gives up)"
            ));
            last = Some((Instant::now(), waits_for));
        }
    }
}

/// A request with a deadline.
pub(crate) fn request<T>(message: T, deadline: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadline);
    request
}
