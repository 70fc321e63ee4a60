//! `weir csi`: the node plugin of Kubernetes.

mod labels;
mod leaving;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use prometheus_client::registry::Registry;
use weir_csi::catalog::MasterCatalog;
use weir_csi::system::{Linux, LinuxConfig};
use weir_csi::topology::NodeIdentity;
use weir_csi::{CsiError, CsiMetrics, DRIVER, KubeletDir, ServerConfig, Volumes};
use weir_mount::supervisor::PeerSocket;
use weir_trust::Role;

use crate::args::{Cli, CsiArgs, CsiCommand, CsiHolderArgs, CsiReadyArgs};
use crate::exit::{Failure, Reason};
use crate::http::{self, Exposed};
use crate::process::{SHUTDOWN_DEADLINE, init_logging, serving_runtime, stop_on_signal};
use crate::renewal;
use crate::trust::Trust;

/// Longest wait for an address that a process which is ending still has.
const HTTP_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether all mounts are held by two pods.
const READY_POLL: Duration = Duration::from_millis(50);

pub(crate) fn run(mut args: CsiArgs) -> Result<ExitCode, Failure> {
    let command = args.command.take();
    if let Some(CsiCommand::Ready(args)) = &command {
        return ready(args);
    }
    init_logging();
    // In a container this is the first process, to which those of mounts belong when their parents have ended.
    if let Some(code) = weir_process::init::run()? {
        return Ok(code);
    }
    let runtime = serving_runtime()?;
    let outcome = match command {
        Some(CsiCommand::Holder(args)) => runtime.block_on(hold(args)),
        _ => runtime.block_on(serve(args)),
    };
    runtime.shutdown_timeout(SHUTDOWN_DEADLINE);
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn serve(args: CsiArgs) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let missing = |flag, variable| {
        let text = format!("the node plugin needs {flag}, or {variable}");
        Failure::new(Reason::Usage, text)
    };
    let node = args.node_id.clone();
    let node = node.ok_or_else(|| missing("--node-id NAME", "WEIR_NODE"))?;
    let master = args.master.clone();
    let master = master.ok_or_else(|| missing("--master HOST:PORT", "WEIR_MASTER"))?;
    let flags = mount_flags(&args)?;
    let sockets = args.peer_dir.as_deref().map(Sockets::new).transpose()?;
    if let Some(sockets) = &sockets {
        serve_peer(&sockets.plugin, &sockets.holder)?;
    }
    let renewal = renewal::start(&args.certs, &args.signed, Role::Mount, &stop).await?;
    let trust = Trust::of_client(&args.certs, renewal)?;
    let mut registry = Registry::default();
    let metrics = CsiMetrics::register(&mut registry);
    trust.register_certificate(&mut registry);
    // No mount's own directory has such a name.
    let known = std::path::absolute(args.dir.join("known")).map_err(anyhow::Error::from)?;
    let system = Linux::new(LinuxConfig {
        master: master.clone(),
        certs: args.certs.dir().map(std::path::absolute).transpose()?,
        node: node.clone(),
        flags,
        peer: sockets.as_ref().map(|sockets| sockets.holder.clone()),
        state_dir: args.dir,
        known_dir: known.clone(),
    })?;
    let mounts = args
        .mounts_dir
        .unwrap_or_else(|| args.kubelet_dir.join("plugins").join(DRIVER).join("mounts"));
    let volumes = Volumes::new(
        Arc::new(system),
        Arc::new(MasterCatalog::new(&master, &trust.dial(), node.as_str())?),
        KubeletDir::new(&args.kubelet_dir)?,
        &mounts,
        &known.join("datasets"),
        metrics.clone(),
    )?;
    let exposed = Exposed {
        registry,
        refresh: Box::new(|| {}),
        mounts: true,
    };
    let http = http::serve(args.http, HTTP_PATIENCE, exposed, stop.clone()).await?;
    tracing::info!(%node, master, %http, "node plugin started");
    let group = args.group.and_then(|group| group.0);
    let config = ServerConfig {
        kubelet_socket: args
            .kubelet_endpoint
            .unwrap_or_else(|| args.endpoint.clone()),
        socket: args.endpoint,
        registration_dir: args.registration_dir,
        take_over: args.take_over,
        node: NodeIdentity {
            labels: labels::of(node.as_str()),
            id: node.to_string(),
            group: group.map(|group| group.to_string()),
        },
    };
    let served = weir_csi::serve(config, Arc::new(volumes), metrics, stop);
    tokio::select! {
        served = served => served?,
        never = trust.watch() => match never {},
    }
    if let Some(sockets) = sockets {
        leave(sockets).await;
    }
    Ok(())
}

/// Waits until this pod may end.
async fn leave(sockets: Sockets) {
    let left = tokio::task::spawn_blocking(move || leaving::wait(&sockets.dir));
    if let Err(error) = left.await {
        tracing::error!("the other pod was not waited for: {error}");
    }
}

/// The sockets by which the node plugin and its holder find each other.
struct Sockets {
    dir: PathBuf,
    plugin: PathBuf,
    holder: PathBuf,
}

impl Sockets {
    fn new(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir)?;
        let made = std::fs::create_dir_all(&dir);
        made.with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self {
            plugin: dir.join("plugin.sock"),
            holder: dir.join("holder.sock"),
            dir,
        })
    }
}

/// Holds what mounts of the other pod give to this one, on a thread of its own, for as long as this process lives.
fn serve_peer(own: &Path, other: &Path) -> anyhow::Result<()> {
    let socket = PeerSocket::bind(own, other);
    let socket = socket.with_context(|| format!("cannot listen at {}", own.display()))?;
    let own = own.to_owned();
    std::thread::Builder::new()
        .name("peer".to_owned())
        .spawn(move || {
            let error = socket.serve();
            tracing::error!(
                "no mount can be held for others: {}: {error}",
                own.display()
            );
            // The next process can, and the mounts are held by the other pod.
            std::process::exit(1);
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// `weir csi holder`.
async fn hold(args: CsiHolderArgs) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let sockets = Sockets::new(&args.peer_dir)?;
    serve_peer(&sockets.holder, &sockets.plugin)?;
    // What it serves shows the certificate in its own pod. It holds mounts meanwhile.
    let renewal = renewal::start(&args.certs, &args.signed, Role::Mount, &stop).await?;
    let trust = Trust::of_client(&args.certs, renewal)?;
    let mut registry = Registry::default();
    trust.register_certificate(&mut registry);
    let exposed = Exposed {
        registry,
        refresh: Box::new(|| {}),
        mounts: true,
    };
    let http = http::serve(args.http, HTTP_PATIENCE, exposed, stop.clone()).await?;
    tracing::info!(%http, "holder of the node plugin's mounts started");
    tokio::select! {
        () = stop.cancelled() => {}
        never = trust.watch() => match never {},
    }
    leave(sockets).await;
    Ok(())
}

/// `weir csi ready`: whether the death of either pod would be survived.
fn ready(args: &CsiReadyArgs) -> Result<ExitCode, Failure> {
    let until = Instant::now() + Duration::from_secs(args.wait);
    loop {
        let Some(alone) = leaving::held_alone() else {
            return Ok(ExitCode::SUCCESS);
        };
        if Instant::now() >= until {
            return Err(Failure::new(
                Reason::Unavailable,
                format!(
                    "{} is held by one pod alone; see whether both pods of this node run",
                    alone.source
                ),
            ));
        }
        std::thread::sleep(READY_POLL);
    }
}

/// The flags that all mounts get, which are read once here: a mistake in them must not wait for the first pod.
fn mount_flags(args: &CsiArgs) -> Result<Vec<String>, Failure> {
    let mut flags = args.mount_flags.clone();
    let places = [("--zone", &args.zone), ("--group", &args.group)];
    for (flag, place) in places {
        if let Some(place) = place.as_ref().and_then(|place| place.0.as_ref()) {
            flags.extend([flag.to_owned(), place.to_string()]);
        }
    }
    let line = ["weir", "mount", "dataset@1", "/mnt"];
    let line = line.into_iter().chain(flags.iter().map(String::as_str));
    match Cli::try_parse_from(line) {
        Ok(_) => Ok(flags),
        Err(error) => {
            let error = error.to_string();
            let first = error.lines().next().unwrap_or_default();
            Err(Failure::new(
                Reason::Usage,
                format!("what stands behind -- are flags of `weir mount`: {first}"),
            ))
        }
    }
}

impl From<CsiError> for Failure {
    fn from(error: CsiError) -> Self {
        let reason = match &error {
            CsiError::Invalid(_) => Reason::Usage,
            CsiError::NotFound(_) => Reason::NotFound,
            CsiError::Denied(_) => Reason::Denied,
            CsiError::Unavailable(_) | CsiError::Deadline { .. } => Reason::Unavailable,
            CsiError::Taken(_) | CsiError::Busy(_) => Reason::Conflict,
            CsiError::NotReady(_) | CsiError::Node(_) | CsiError::System { .. } => Reason::Other,
        };
        Self::new(reason, error)
    }
}
