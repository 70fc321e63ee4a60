//! Making, taking over and ending mounts, and the process that keeps each of them alive.
//!
//! A mount has one supervisor. It mounts, holds the connection to the kernel and starts the server again whenever
//! that dies or hangs; it knows nothing of what is served. When the supervisor itself dies the server starts another
//! one. Whoever wants something of a mount asks its supervisor over the control socket of the
//! [runtime directory](crate::runtime).
#![forbid(unsafe_code)]

mod daemon;
mod environment;
mod holder;
mod made;
mod peer;
pub(crate) mod request;
mod running;
mod server;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use weir_process::fdpass::{self, Slot};
use weir_process::{descriptor, spawn};

use crate::mounting::{self, MountError, mountpoint, table};
use crate::runtime;
use crate::state::{Assignment, Outcome};
use daemon::Daemon;
use environment::Environment;
use request::Control;

pub use made::{Made, follow_state, own_state};
pub use peer::{PEER_VARIABLE, PeerSocket};
pub use request::StartRequest;

/// Variable of mounts that are made by a privileged pod: their servers give up its privileges.
pub const UNPRIVILEGED_VARIABLE: &str = "WEIR_UNPRIVILEGED";

/// Between attempts to reach a supervisor that is being replaced.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time in which a dead supervisor is replaced by its server.
const REPLACED_WITHIN: Duration = Duration::from_secs(3);
/// Longest wait for a supervisor that was told to give its mount up.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for the first message to a supervisor.
const ASSIGNMENT_DEADLINE: Duration = Duration::from_secs(5);

/// A mount that is usable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Started {
    /// It was there before, and this program and these arguments serve it now.
    pub took_over: bool,
    /// The supervisor's process.
    pub supervisor_pid: u32,
}

/// Fails when a mount at `mountpoint` would hide `path`, which its processes need. `what` and `remedy` are words for
/// the user.
pub fn check_visible(
    mountpoint: &Path,
    what: &str,
    path: &Path,
    remedy: &str,
) -> Result<(), MountError> {
    match mountpoint::hidden_by(mountpoint, path) {
        None => Ok(()),
        Some(path) => Err(MountError::Hides {
            mountpoint: mountpoint.to_owned(),
            what: what.to_owned(),
            path,
            remedy: remedy.to_owned(),
        }),
    }
}

/// Mounts in the background and returns when the mount is usable, or takes over one that this user has there.
pub fn start(request: StartRequest, deadline: Duration) -> Result<Started, MountError> {
    let made = request.made.clone();
    let outcome = try_start(request, Instant::now() + deadline);
    // The supervisor does that too, unless it was killed or never came to it.
    outcome.inspect_err(|_| made.remove())
}

fn try_start(request: StartRequest, until: Instant) -> Result<Started, MountError> {
    let request = resolve(request)?;
    let mountpoint = request.mountpoint.clone();
    let dir = runtime::dir_of(&mountpoint);
    if runtime::is_live(&dir) {
        let exe = std::env::current_exe().map_err(|error| {
            MountError::of_supervisor(&mountpoint, "cannot find its program", error)
        })?;
        let socket = reach(&dir, &mountpoint)?;
        let environment = Some(Environment::current());
        let take_over = Control::TakeOver {
            request: Box::new(request),
            exe,
            environment,
        };
        ask(&socket, &mountpoint, &take_over)?;
        return ready(wait_for(&socket, &mountpoint, until, "taken over")?, true);
    }
    let (ours, theirs) = fdpass::pair()
        .map_err(|error| MountError::of_supervisor(&mountpoint, "cannot be started", error))?;
    ask(&ours, &mountpoint, &Assignment::Start(request))?;
    let mut command = spawn::own("supervise");
    spawn::spawn_detached(&mut command, theirs.as_fd())
        .map_err(|error| MountError::of_supervisor(&mountpoint, "cannot be started", error))?;
    drop(theirs);
    let outcome = wait_for(&ours, &mountpoint, until, "mounted").inspect_err(|error| {
        if matches!(error, MountError::Deadline { .. }) {
            give_up(&ours, &mountpoint);
        }
    });
    ready(outcome?, false)
}

/// Tells a supervisor that nobody waits for its mount any more, and waits until it has taken the mount away.
fn give_up(socket: &OwnedFd, mountpoint: &Path) {
    let told = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
    let until = Instant::now() + GIVEN_UP_WITHIN;
    if told.is_err() || wait_for::<Outcome>(socket, mountpoint, until, "given up").is_err() {
        tracing::warn!("{} is still being given up", mountpoint.display());
    }
}

fn ready(outcome: Outcome, took_over: bool) -> Result<Started, MountError> {
    match outcome {
        Outcome::Ready { supervisor_pid } => Ok(Started {
            took_over,
            supervisor_pid,
        }),
        Outcome::Failed(error) => Err(error),
    }
}

/// Mounts and stays until the mount ends; SIGINT and SIGTERM end it. The log goes to standard error. `ready` is
/// called once, when the mount is usable.
pub fn run_foreground(
    request: StartRequest,
    ready: impl FnOnce() + 'static,
) -> Result<(), MountError> {
    let request = resolve(request)?;
    if runtime::is_live(&runtime::dir_of(&request.mountpoint)) {
        return Err(MountError::NotNow {
            mountpoint: request.mountpoint,
            reason: "already mounted; unmount it first, or leave out --foreground to take it over"
                .to_owned(),
        });
    }
    Daemon::mount(request, false)?.run(daemon::Audience::Foreground(Box::new(ready)))
}

/// The body of `weir supervise`: does what the process that started it says.
pub fn run() -> ExitCode {
    match take_assignment() {
        Ok(code) => code,
        Err(error) => {
            // Nobody may be there to read it.
            let text = format!("weir: {error}; this command is started by `weir mount`\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// The body of `weir hold`: keeps a mount's descriptors for the case that supervisor and server die together.
pub fn hold() -> std::io::Result<()> {
    holder::run()
}

fn take_assignment() -> std::io::Result<ExitCode> {
    let missing = || std::io::Error::other("no process has said what to supervise");
    let socket = descriptor::inherited().ok_or_else(missing)?;
    if !fdpass::readable(&socket, ASSIGNMENT_DEADLINE)? {
        return Err(missing());
    }
    let (assignment, mut descriptors) =
        fdpass::try_receive::<Assignment>(socket.as_fd())?.ok_or_else(missing)?;
    let ended = match assignment {
        Assignment::Start(request) => match Daemon::mount(request, true) {
            Ok(daemon) => daemon.run(daemon::Audience::Requester(socket)),
            Err(error) => {
                // The requester may have given up.
                let _ = fdpass::send(socket.as_fd(), &Outcome::Failed(error.clone()), &[]);
                Err(error)
            }
        },
        Assignment::Adopt(state) => {
            Daemon::adopt(state, &mut descriptors)?.run(daemon::Audience::Nobody)
        }
        Assignment::Resume { state, before } => {
            let client = descriptors.take(Slot::Client);
            Daemon::resume(state, before, &mut descriptors)?
                .run(client.map_or(daemon::Audience::Nobody, daemon::Audience::Requester))
        }
    };
    Ok(if ended.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Ends the mount at `dir` and waits until its processes have ended. A mount that is in use is only ended with
/// `lazy`, which takes it out of the tree at once and lets those who have files open finish.
pub fn unmount(dir: &Path, lazy: bool, deadline: Duration) -> Result<(), MountError> {
    let until = Instant::now() + deadline;
    let mountpoint = mountpoint::resolve(dir).map_err(|error| {
        match std::fs::symlink_metadata(dir) {
            // A mount that failed takes its directory with it.
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {
                MountError::NotMounted {
                    mountpoint: dir.to_owned(),
                }
            }
            _ => error,
        }
    })?;
    let runtime_dir = runtime::dir_of(&mountpoint);
    if runtime::is_live(&runtime_dir) {
        let socket = reach(&runtime_dir, &mountpoint)?;
        ask(&socket, &mountpoint, &Control::Unmount { lazy })?;
        return wait_for::<Result<(), MountError>>(&socket, &mountpoint, until, "unmounted")?;
    }
    let entry = table::at(&mountpoint).map_err(|error| MountError::Refused {
        action: "unmount".to_owned(),
        mountpoint: mountpoint.clone(),
        reason: error.to_string(),
    })?;
    if entry.is_none_or(|entry| entry.fs_type != mounting::FS_TYPE) {
        return Err(MountError::NotMounted { mountpoint });
    }
    // All its processes were killed.
    mounting::detach_dead(&mountpoint)?;
    runtime::release(&runtime_dir);
    Ok(())
}

/// Takes the mount at `dir` out of the tree, itself, and tells its processes, which may be those of a pod that may not unmount.
/// It ends with its last user; one without users has ended when this returns.
pub fn detach(dir: &Path, deadline: Duration) -> Result<(), MountError> {
    let until = Instant::now() + deadline;
    let mountpoint = mountpoint::resolve(dir)?;
    match mounting::unmount(&mountpoint, true) {
        Ok(()) | Err(MountError::NotMounted { .. }) => {}
        Err(error) => return Err(error),
    }
    let runtime_dir = runtime::dir_of(&mountpoint);
    while runtime::is_live(&runtime_dir) {
        let told = reach(&runtime_dir, &mountpoint).and_then(|socket| {
            ask(&socket, &mountpoint, &Control::Detached)?;
            wait_for::<Result<(), MountError>>(&socket, &mountpoint, until, "unmounted")?
        });
        match told {
            Ok(()) => return Ok(()),
            // It has seen by itself that the mount is gone, and does not listen any more.
            Err(_) if Instant::now() < until => std::thread::sleep(RETRY_INTERVAL),
            Err(error) => return Err(error),
        }
    }
    runtime::release(&runtime_dir);
    Ok(())
}

fn resolve(mut request: StartRequest) -> Result<StartRequest, MountError> {
    request.mountpoint = mountpoint::resolve(&request.mountpoint)?;
    Ok(request)
}

/// Connects to the supervisor of a live mount. One that has just died is waited for: its server starts another.
fn reach(dir: &Path, mountpoint: &Path) -> Result<OwnedFd, MountError> {
    let until = Instant::now() + REPLACED_WITHIN;
    loop {
        match runtime::connect_control(dir) {
            Ok(socket) => return Ok(socket),
            Err(error) if Instant::now() > until => {
                return Err(MountError::of_supervisor(
                    mountpoint,
                    "does not answer",
                    error,
                ));
            }
            Err(_) => std::thread::sleep(RETRY_INTERVAL),
        }
    }
}

fn ask<T: Serialize>(socket: &OwnedFd, mountpoint: &Path, message: &T) -> Result<(), MountError> {
    fdpass::send(socket.as_fd(), message, &[])
        .map_err(|error| MountError::of_supervisor(mountpoint, "cannot be asked", error))
}

fn wait_for<T: DeserializeOwned>(
    socket: &OwnedFd,
    mountpoint: &Path,
    until: Instant,
    wanted: &str,
) -> Result<T, MountError> {
    let broken = |error| MountError::of_supervisor(mountpoint, "broke off", error);
    let left = until.saturating_duration_since(Instant::now());
    if !fdpass::readable(socket, left).map_err(broken)? {
        return Err(MountError::Deadline {
            mountpoint: mountpoint.to_owned(),
            wanted: wanted.to_owned(),
        });
    }
    match fdpass::try_receive::<T>(socket.as_fd()).map_err(broken)? {
        Some((answer, _)) => Ok(answer),
        None => Err(MountError::Supervisor {
            mountpoint: mountpoint.to_owned(),
            reason: format!(
                "died; its log is {}",
                runtime::log_path(&runtime::dir_of(mountpoint)).display()
            ),
        }),
    }
}
