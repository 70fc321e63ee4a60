//! What the long-running processes share: logging, the runtime, signals, and the host's name.

use std::ffi::CStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::Mode;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use weir_core::NodeName;

use crate::args::ParentArgs;

/// Longest time that a process takes to end once it was told to.
pub(crate) const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);
/// How often an address that is taken is tried again.
const LISTEN_AGAIN: Duration = Duration::from_millis(50);
/// Connections that may wait to be accepted; the kernel may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// Open files without which no process serves: those of the runtime, of the mount or the listeners, of a small cache, and
/// of connections to the origin.
const LEAST_DESCRIPTORS: u64 = 256;

/// Gives a process that stays its name in `ps` and `top`, and keeps its files from other users: whatever umask it was
/// started with, they are made with the modes 0600 and 0700.
pub(crate) fn begin(name: &CStr) {
    let _ = rustix::thread::set_name(name); // without it, it is named after its file
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// Has this process told to end when the one does that has started it, if there is one to which it belongs.
///
/// # Errors
/// When that one has ended already.
pub(crate) fn end_with(args: &ParentArgs) -> anyhow::Result<()> {
    let Some(parent) = args.parent else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::TERM)).context("cannot follow --parent")?;
    let now = getppid().map(Pid::as_raw_nonzero);
    anyhow::ensure!(
        now.is_some_and(|now| now.get().cast_unsigned() == parent),
        "process {parent} has not started this one, or has ended"
    );
    Ok(())
}

/// Logs to standard error; `WEIR_LOG` chooses what (`info`, `weir_worker=debug`, …). Where it turns on the steps of reads
/// (`weir::read=trace`), there is a line for each when it ends.
pub(crate) fn init_logging() {
    let wanted = std::env::var("WEIR_LOG").ok();
    let wanted = wanted.filter(|wanted| !wanted.is_empty());
    let wanted = wanted.map(|wanted| wanted.parse::<Targets>());
    let is_wrong = matches!(&wanted, Some(Err(_)));
    let usual = || Targets::new().with_default(LevelFilter::INFO);
    let filter = without_libraries(wanted.and_then(Result::ok).unwrap_or_else(usual));
    let lines = fmt::layer()
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    if is_wrong {
        tracing::warn!(
            "WEIR_LOG is not understood, and info is logged; write for instance WEIR_LOG=info,weir_worker=debug"
        );
    }
}

/// What libraries say of each step is for those who ask for it: `kube_runtime` has a line for each look at an object.
fn without_libraries(filter: Targets) -> Targets {
    const LIBRARY: &str = "kube_runtime";
    if filter.iter().any(|(target, _)| target.starts_with(LIBRARY)) {
        return filter;
    }
    let others = filter.default_level().unwrap_or(LevelFilter::OFF);
    filter.with_target(LIBRARY, others.min(LevelFilter::WARN))
}

/// The runtime of a serving process.
///
/// # Errors
/// When there may be too few open files, or the system gives no threads.
pub(crate) fn serving_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    raise_descriptor_limit()?;
    runtime()
}

/// The runtime of a command.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("weir")
        .build()
        .context("cannot start the runtime")
}

/// Allows as many open files as an ordinary process may have: a large cache has thousands of segment files.
///
/// # Errors
/// When that is too few.
pub(crate) fn raise_descriptor_limit() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if let Some(most) = limit.maximum.filter(|most| *most < LEAST_DESCRIPTORS) {
        anyhow::bail!(
            "at most {most} files may be open at once, and {LEAST_DESCRIPTORS} are needed; raise the hard limit \
             (`ulimit -Hn`, LimitNOFILE= of a systemd unit, or the container's ulimits)"
        );
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    Ok(())
}

/// A token that SIGTERM or SIGINT cancels.
pub(crate) fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}

/// Listens on an address, once a process that is ending has given it up; waits at most `deadline`.
///
/// # Errors
/// What the system says of the address.
pub(crate) async fn listen(address: SocketAddr, deadline: Duration) -> io::Result<TcpListener> {
    let end = Instant::now() + deadline;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
            outcome => {
                let listener = outcome?;
                have_many_wait(&listener)?;
                return Ok(listener);
            }
        }
    }
}

/// Lets many connections wait to be accepted. The libraries' 128 or 1024 are not enough for all readers of a large mount, or
/// all mounts of a cluster, that come at the same moment: what does not fit is told nothing, and asks again after a second.
fn have_many_wait(listener: &impl AsFd) -> io::Result<()> {
    Ok(rustix::net::listen(listener, BACKLOG)?)
}

/// Listens on a Unix socket that only this user and root can use, in place of one that was left over.
///
/// # Errors
/// When the path is longer than the 107 bytes that such a name may have, or what the system says.
pub(crate) fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    // Under another name first, which is not longer: whoever knows the path never finds it open to others, or gone.
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new); // left over from a process that was killed
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600))?;
    have_many_wait(&listener)?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// The host's name, as a node name; characters that a name cannot have become `-`.
pub(crate) fn node_name() -> anyhow::Result<NodeName> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    let name: String = host
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                c
            } else {
                '-'
            }
        })
        .collect();
    name.parse()
        .with_context(|| format!("the host's name {host:?} cannot be a node name; use --node"))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_are_heard_when_something_is_wrong_or_somebody_asks() {
        for (wanted, steps, problems) in [
            ("info", false, true),
            ("info,weir_operator=debug", false, true),
            ("error", false, false),
            ("weir_operator=info", false, false),
            ("off", false, false),
            ("info,kube_runtime=debug", true, true),
            ("warn,kube_runtime::controller=info", true, true),
        ] {
            let filter = without_libraries(wanted.parse().unwrap());
            let says = |level| filter.would_enable("kube_runtime::controller", &level);
            assert_eq!(
                (says(Level::INFO), says(Level::WARN)),
                (steps, problems),
                "{wanted}"
            );
        }
    }
}
