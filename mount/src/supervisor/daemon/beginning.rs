//! How a supervisor comes to its mount: it makes it, takes it over from one that died, or was its older version.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use weir_process::fdpass::{Descriptors, Slot};
use weir_process::signals::Signals;

use super::Daemon;
use crate::kept::Kept;
use crate::mounting::{self, MountError, mountpoint, table};
use crate::runtime;
use crate::state::{InitExchange, MountState};
use crate::supervisor::holder::Holder;
use crate::supervisor::request::StartRequest;
use crate::supervisor::server::Server;

/// Longest wait for the kernel's first request.
const INIT_DEADLINE: Duration = Duration::from_secs(5);

impl Daemon {
    /// Makes a mount. Nothing serves it until [`Self::run`]. When that fails, what was made for it is removed.
    pub(in crate::supervisor) fn mount(
        request: StartRequest,
        logs_to_file: bool,
    ) -> Result<Self, MountError> {
        let made = request.made.clone();
        let claimed = runtime::claim(&request.mountpoint);
        let outcome = claimed.and_then(|(dir, lock)| {
            Self::mount_claimed(request, logs_to_file, &dir, lock)
                .inspect_err(|_| runtime::release(&dir))
        });
        outcome.inspect_err(|_| made.remove())
    }

    fn mount_claimed(
        request: StartRequest,
        logs_to_file: bool,
        dir: &Path,
        lock: OwnedFd,
    ) -> Result<Self, MountError> {
        let at = request.mountpoint.clone();
        let system = |what: &str, error: io::Error| MountError::of_supervisor(&at, what, error);
        if logs_to_file {
            runtime::log_to(dir).map_err(|error| system("cannot open its log", error))?;
        }
        let signals = Signals::watch().map_err(|error| system("cannot watch signals", error))?;
        let control = runtime::bind_control(dir).map_err(|error| MountError::Runtime {
            dir: dir.to_owned(),
            reason: error.to_string(),
        })?;
        if mounting::detach_dead(&at)? {
            tracing::warn!("a dead mount at {} was detached", at.display());
        }
        mountpoint::check(&at)?;
        // Without it requests that are under way when a server dies are failed.
        let in_flight = (!weir_fuse::sends_again())
            .then(weir_fuse::in_flight::memory)
            .transpose()
            .map_err(|error| system("cannot keep what is under way", error))?;
        let fuse = mounting::mount(&at, &request.source, request.allow_other)?;
        let undo = |error: MountError| {
            if let Err(second) = mounting::unmount(&at, true) {
                tracing::error!("{second}");
            }
            error
        };
        let init = mounting::read_init(&fuse, INIT_DEADLINE).map_err(|error| {
            undo(MountError::refused(
                "mount at",
                &at,
                format!("the kernel did not greet: {error}"),
            ))
        })?;
        let device = table::at(&at)
            .ok()
            .flatten()
            .map(|entry| entry.device)
            .unwrap_or_default();
        let started_at = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        Ok(Self::new(
            MountState {
                request,
                dir: dir.to_owned(),
                device,
                started_at,
                logs_to_file,
                detached: false,
                was_ready: false,
                init: InitExchange {
                    request: init,
                    reply: None,
                    answered: false,
                },
                properties: BTreeMap::new(),
                server_pid: None,
                taken_over_at: 0,
                taken_over_times: 0,
            },
            Kept {
                fuse,
                lock,
                in_flight,
            },
            Some(control),
            signals,
        ))
    }

    /// Takes the place of a supervisor that died.
    pub(in crate::supervisor) fn adopt(
        state: MountState,
        descriptors: &mut Descriptors,
    ) -> io::Result<Self> {
        if state.logs_to_file {
            runtime::log_to(&state.dir)?;
        }
        tracing::warn!(mountpoint = %state.request.mountpoint.display(), "the supervisor died; another one takes over");
        let kept = Kept::of(descriptors)?;
        let control = (!state.detached)
            .then(|| runtime::bind_control(&state.dir))
            .transpose()?;
        let mut daemon = Self::new(state, kept, control, Signals::watch()?);
        daemon.holder = descriptors.take(Slot::Holder).map(Holder::known);
        if daemon.holder.is_none() && daemon.state.was_ready {
            daemon.hold_at = Some(Instant::now());
        }
        daemon.peer = descriptors.take(Slot::Peer).map(Holder::known);
        if daemon.peer.is_none() && daemon.state.was_ready {
            daemon.peer_at = Some(Instant::now());
        }
        // Without a server it was the holder that has started this process.
        if let (Some(process), Some(line)) =
            (descriptors.take(Slot::Server), descriptors.take(Slot::Link))
        {
            let pid = daemon.state.server_pid.unwrap_or_default();
            let ready = daemon.state.was_ready;
            daemon.server = Some(Server::known(process, line, pid, ready));
        }
        Ok(daemon)
    }

    /// Goes on as a newer version of the program, with new arguments for the server.
    pub(in crate::supervisor) fn resume(
        state: MountState,
        before: StartRequest,
        descriptors: &mut Descriptors,
    ) -> io::Result<Self> {
        let mut daemon = Self::adopt(state, descriptors)?;
        daemon.before = Some(before);
        daemon.stop_server();
        Ok(daemon)
    }
}
