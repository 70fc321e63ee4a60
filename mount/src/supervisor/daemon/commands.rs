//! What others ask for: commands over the control socket, and signals.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{SocketFlags, accept_with};
use weir_process::fdpass::{self, Slot};
use weir_process::spawn;

use super::{Audience, Daemon, answer};
use crate::mounting::MountError;
use crate::state::{Assignment, Outcome};
use crate::supervisor::request::{Control, StartRequest};

/// Commands that may be connected and have not asked yet.
pub(super) const MAX_CLIENTS: usize = 8;
/// Longest time that a command takes to ask; it does so at once, unless it is stopped.
pub(super) const ASKED_WITHIN: Duration = Duration::from_secs(5);

impl Daemon {
    pub(super) fn hear_signals(&mut self) {
        let Some(signal) = self.signals.take() else {
            return;
        };
        tracing::info!(signal, "told to end the mount");
        if let Err(error) = self.unmount(false) {
            tracing::warn!("{error}; detaching it, it ends with its last user");
            if let Err(error) = self.unmount(true) {
                tracing::error!("{error}");
            }
        }
    }

    pub(super) fn hear_clients(&mut self, audience: &mut Audience) {
        if let (Audience::Requester(socket), None) = (&*audience, &self.failed)
            && fdpass::readable(socket, Duration::ZERO).unwrap_or(true)
        {
            // It never sends anything: it is gone, or waits no longer.
            if self.state.was_ready {
                *audience = Audience::Nobody;
            } else {
                // It may want to know when the mount is gone.
                self.give_up_for("nobody waited for it any longer");
            }
        }
        if let Some(listener) = &self.control {
            while self.clients.len() < MAX_CLIENTS {
                match accept_with(listener, SocketFlags::CLOEXEC) {
                    Ok(client) => self.clients.push((client, Instant::now())),
                    Err(_) => break,
                }
            }
        }
        for (client, since) in std::mem::take(&mut self.clients) {
            match fdpass::try_receive::<Control>(client.as_fd()) {
                Ok(Some((Control::Unmount { lazy }, _))) => self.answer_unmount(client, lazy),
                Ok(Some((Control::Detached, _))) => {
                    self.detach();
                    self.answer_end(client);
                }
                Ok(Some((
                    Control::TakeOver {
                        request,
                        exe,
                        environment,
                    },
                    _,
                ))) => {
                    let mut command = Command::new(exe);
                    if let Some(environment) = environment {
                        environment.give(&mut command);
                    }
                    let (client, error) = self.hand_on(client, *request, command);
                    answer(&client, &Outcome::Failed(error));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Others may want its place.
                    if since.elapsed() < ASKED_WITHIN {
                        self.clients.push((client, since));
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::warn!("a command could not be understood: {error}"),
            }
        }
    }

    pub(super) fn answer_unmount(&mut self, client: OwnedFd, lazy: bool) {
        match self.unmount(lazy) {
            Ok(()) => self.answer_end(client),
            Err(error) => answer(&client, &Err::<(), _>(error)),
        }
    }

    fn answer_end(&mut self, client: OwnedFd) {
        if self.state.detached {
            // Whoever detaches a mount that is in use does not wait for its users.
            answer(&client, &Ok::<(), MountError>(()));
        } else {
            self.ending.get_or_insert_default().waiting.push(client);
        }
    }

    /// Becomes the newer program, which takes over server and mount. Returns only when that is not possible.
    fn hand_on(
        &mut self,
        client: OwnedFd,
        request: StartRequest,
        mut command: Command,
    ) -> (OwnedFd, MountError) {
        let at = self.state.request.mountpoint.clone();
        if let Some(error) = other_source(&self.state.request, &request) {
            return (client, error);
        }
        let busy = match (&self.server, &self.ending) {
            (_, Some(_)) => Some("it is being unmounted"),
            (Some(server), None) if server.ready => None,
            _ => Some("its server is just being started; try again in a moment"),
        };
        let (None, Some(server)) = (busy, &self.server) else {
            let reason = busy.unwrap_or_default().to_owned();
            return (
                client,
                MountError::NotNow {
                    mountpoint: at,
                    reason,
                },
            );
        };
        if self.state.request.allow_other != request.allow_other {
            tracing::warn!(
                "--allow-other cannot be changed on a live mount; unmount and mount again to have it"
            );
        }
        let mut state = self.state.clone();
        let before = std::mem::replace(&mut state.request, request);
        let mut descriptors = self.kept.descriptors();
        descriptors.extend([
            (Slot::Link, server.line.as_fd()),
            (Slot::Server, server.process.as_fd()),
            (Slot::Client, client.as_fd()),
        ]);
        let passed = fdpass::pair().and_then(|(ours, theirs)| {
            fdpass::send(
                ours.as_fd(),
                &Assignment::Resume { state, before },
                &descriptors,
            )?;
            Ok(theirs)
        });
        let error = match passed {
            Ok(theirs) => {
                command
                    .arg("supervise")
                    .stdin(Stdio::null())
                    .stdout(Stdio::null());
                // The newer version starts its own.
                for holder in [self.holder.take(), self.peer.take()].into_iter().flatten() {
                    holder.dismiss();
                }
                let error = spawn::exec(&mut command, theirs.as_fd());
                (self.hold_at, self.peer_at) = (Some(Instant::now()), Some(Instant::now()));
                error
            }
            Err(error) => error,
        };
        let exe = Path::new(command.get_program());
        let what = format!("could not become {}", exe.display());
        (client, MountError::of_supervisor(&at, &what, error))
    }
}

/// The error of a take-over by something else than what is mounted.
pub(super) fn other_source(mounted: &StartRequest, wanted: &StartRequest) -> Option<MountError> {
    // An older version knows the user's words alone.
    let by_words = mounted.identity.is_empty() || wanted.identity.is_empty();
    let (mounted_is, wanted_is) = if by_words {
        (&mounted.source, &wanted.source)
    } else {
        (&mounted.identity, &wanted.identity)
    };
    (mounted_is != wanted_is).then(|| MountError::OtherSource {
        mountpoint: mounted.mountpoint.clone(),
        mounted: mounted_is.clone(),
        wanted: wanted_is.clone(),
    })
}
