//! The supervisor's loop: one thread that waits for the kernel, the server, commands and signals at once.
//!
//! Invariant: the connection to the kernel is never closed while the mount is in use, and a server is always running
//! or about to be started.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};

use super::server::{PING_INTERVAL, Server};
use super::{Control, StartRequest, log_to};
use crate::fdpass::{self, Descriptors, Slot};
use crate::mount::{self, MountError, mountpoint, table};
use crate::runtime::{self, MountInfo};
use crate::signals::Signals;
use crate::spawn;
use crate::state::{Assignment, FromServer, InitExchange, MountState, Outcome, ServerFailure};

/// Longest wait for the kernel's first request.
const INIT_DEADLINE: Duration = Duration::from_secs(5);
/// How far the kernel reads ahead, in bytes; it splits this into requests of 1 MiB, so that several are under way.
const READ_AHEAD: u64 = 8 << 20;
/// Wait before a server that failed to start is started again: doubled each time up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest time that a server gets to finish when the mount has ended or is taken over.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Commands that may be connected and have not asked yet.
const MAX_CLIENTS: usize = 8;
/// Longest wait for the server's own reader to close its files before an unmount, and how often it is looked for.
const LET_GO_DEADLINE: Duration = Duration::from_millis(500);
const LET_GO_POLL: Duration = Duration::from_millis(20);

/// Who is told that the mount became usable, or why it did not.
pub(super) enum Audience {
    /// The process on the other side of this socket; when it goes away before the mount is usable, the mount ends.
    Requester(OwnedFd),
    /// This process's own caller.
    Foreground(Box<dyn FnOnce()>),
    /// Nobody: the mount was usable before.
    Nobody,
}

pub(super) struct Daemon {
    state: MountState,
    fuse: OwnedFd,
    lock: OwnedFd,
    control: Option<OwnedFd>,
    signals: Signals,
    server: Option<Server>,
    /// When the next server is started, while there is none.
    start_at: Option<Instant>,
    /// Servers in a row that ended without becoming ready.
    failures: u32,
    clients: Vec<OwnedFd>,
    /// The mount has been taken out of the tree; who waits for its end.
    ending: Option<Ending>,
    /// The request to go back to if no server starts with the new one.
    before: Option<StartRequest>,
    /// When the server that was asked to stop is killed.
    stop_by: Option<Instant>,
    /// Why the mount never became usable.
    failed: Option<MountError>,
}

#[derive(Default)]
struct Ending {
    waiting: Vec<OwnedFd>,
    kill_at: Option<Instant>,
}

impl Daemon {
    /// Makes a mount. Nothing serves it until [`Self::run`].
    pub(super) fn mount(request: StartRequest, logs_to_file: bool) -> Result<Self, MountError> {
        let at = request.mountpoint.clone();
        let (dir, lock) = runtime::claim(&at)?;
        let system = |what: &str, error: io::Error| super::supervisor_error(&at, what, error);
        if logs_to_file {
            log_to(&dir).map_err(|error| system("cannot open its log", error))?;
        }
        let signals = Signals::watch().map_err(|error| system("cannot watch signals", error))?;
        let control = runtime::bind_control(&dir).map_err(|error| MountError::Runtime {
            dir: dir.clone(),
            reason: error.to_string(),
        })?;
        if mount::detach_dead(&at)? {
            tracing::warn!("a dead mount at {} was detached", at.display());
        }
        mountpoint::check(&at)?;
        let fuse = mount::mount(&at, &request.source, request.allow_other)?;
        let undo = |error: MountError| {
            if let Err(second) = mount::unmount(&at, true) {
                tracing::error!("{second}");
            }
            error
        };
        let init = mount::read_init(&fuse, INIT_DEADLINE).map_err(|error| {
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
                dir,
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
            },
            fuse,
            lock,
            Some(control),
            signals,
        ))
    }

    /// Takes the place of a supervisor that died.
    pub(super) fn adopt(state: MountState, descriptors: &mut Descriptors) -> io::Result<Self> {
        if state.logs_to_file {
            log_to(&state.dir)?;
        }
        tracing::warn!(mountpoint = %state.request.mountpoint.display(), "the supervisor died; another one takes over");
        let fuse = descriptors.need(Slot::Fuse)?;
        let lock = descriptors.need(Slot::Lock)?;
        let line = descriptors.need(Slot::Link)?;
        let process = descriptors.need(Slot::Server)?;
        let control = (!state.detached)
            .then(|| runtime::bind_control(&state.dir))
            .transpose()?;
        let mut daemon = Self::new(state, fuse, lock, control, Signals::watch()?);
        let (pid, ready) = (
            daemon.state.server_pid.unwrap_or_default(),
            daemon.state.was_ready,
        );
        daemon.server = Some(Server::known(process, line, pid, ready));
        Ok(daemon)
    }

    /// Goes on as a newer version of the program, with new arguments for the server.
    pub(super) fn resume(
        state: MountState,
        before: StartRequest,
        descriptors: &mut Descriptors,
    ) -> io::Result<Self> {
        let mut daemon = Self::adopt(state, descriptors)?;
        daemon.before = Some(before);
        daemon.stop_server();
        Ok(daemon)
    }

    fn new(
        state: MountState,
        fuse: OwnedFd,
        lock: OwnedFd,
        control: Option<OwnedFd>,
        signals: Signals,
    ) -> Self {
        Self {
            state,
            fuse,
            lock,
            control,
            signals,
            server: None,
            start_at: None,
            failures: 0,
            clients: Vec::new(),
            ending: None,
            before: None,
            stop_by: None,
            failed: None,
        }
    }

    /// Keeps the mount alive until it ends. Fails when it never became usable.
    pub(super) fn run(mut self, mut audience: Audience) -> Result<(), MountError> {
        if self.server.is_none() {
            self.start_at = Some(Instant::now());
        }
        self.save();
        loop {
            if mount::is_gone(&self.fuse) && self.has_ended() {
                break;
            }
            self.start_server_when_due();
            self.wait(&audience);
            self.hear_server(&mut audience);
            self.reap_server(&mut audience);
            self.hear_signals();
            self.hear_clients(&mut audience);
            if let Some(server) = &mut self.server {
                server.check();
            }
            self.enforce_deadlines();
        }
        self.finish(audience)
    }

    /// After the kernel's side is gone: whether the server has gone too. It gets a while to close its cache.
    fn has_ended(&mut self) -> bool {
        if self.server.is_none() {
            return true;
        }
        let ending = self.ending.get_or_insert_default();
        ending
            .kill_at
            .get_or_insert_with(|| Instant::now() + STOP_DEADLINE);
        false
    }

    fn finish(mut self, audience: Audience) -> Result<(), MountError> {
        runtime::release(&self.state.dir);
        let failed = self.failed.take();
        if let (Audience::Requester(socket), Some(error)) = (&audience, &failed) {
            // The requester may have given up.
            let _ = fdpass::send(socket.as_fd(), &Outcome::Failed(error.clone()), &[]);
        }
        for client in self.ending.take().unwrap_or_default().waiting {
            answer(&client, &Ok::<(), MountError>(()));
        }
        tracing::info!(mountpoint = %self.state.request.mountpoint.display(), "the mount has ended");
        failed.map_or(Ok(()), Err)
    }

    /// Waits until something happens or is due.
    fn wait(&self, audience: &Audience) {
        let mut until = Instant::now() + PING_INTERVAL;
        for due in [self.start_at, self.stop_by] {
            until = due.map_or(until, |due| due.min(until));
        }
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.server.is_none() || !mount::is_gone(&self.fuse) {
            // Asks for nothing: the end of the connection is always told.
            fds.push(PollFd::new(&self.fuse, PollFlags::empty()));
        }
        fds.extend(
            self.control
                .iter()
                .map(|listener| PollFd::new(listener, PollFlags::IN)),
        );
        fds.extend(
            self.clients
                .iter()
                .map(|client| PollFd::new(client, PollFlags::IN)),
        );
        if let Some(server) = &self.server {
            fds.push(PollFd::new(&server.process, PollFlags::IN));
            if server.listens() {
                fds.push(PollFd::new(&server.line, PollFlags::IN));
            }
        }
        if let (Audience::Requester(socket), None) = (audience, &self.failed) {
            fds.push(PollFd::new(socket, PollFlags::IN));
        }
        // An interrupted wait is a short wait.
        let _ = poll(&mut fds, Some(&timeout));
    }

    fn start_server_when_due(&mut self) {
        if self.server.is_some()
            || self.failed.is_some()
            || self.start_at.is_none_or(|at| at > Instant::now())
        {
            return;
        }
        self.start_at = None;
        match Server::start(&self.state, &self.fuse, &self.lock) {
            Ok(server) => {
                self.state.server_pid = Some(server.pid);
                self.server = Some(server);
                self.save();
            }
            Err(error) => {
                tracing::error!("the server could not be started: {error}");
                self.start_later();
            }
        }
    }

    fn start_later(&mut self) {
        let pause = if self.failures == 0 {
            Duration::ZERO
        } else {
            LONGEST_PAUSE.min(SHORTEST_PAUSE * 2_u32.saturating_pow(self.failures - 1))
        };
        self.failures += 1;
        self.start_at = Some(Instant::now() + pause);
    }

    fn hear_server(&mut self, audience: &mut Audience) {
        let mut changed = false;
        while let Some(message) = self.server.as_mut().and_then(Server::receive) {
            match message {
                FromServer::Answering(reply) => self.state.init.reply = Some(reply),
                FromServer::Answered => self.state.init.answered = true,
                FromServer::Ready => self.became_ready(audience),
                FromServer::Publish { key, value } => {
                    self.state.properties.insert(key, value);
                    changed = true;
                }
                FromServer::Pong(_) | FromServer::Failed(_) => {
                    unreachable!("kept by the server's record")
                }
            }
        }
        if changed {
            self.save();
        }
    }

    fn became_ready(&mut self, audience: &mut Audience) {
        if let Some(server) = &mut self.server {
            server.ready = true;
        }
        self.failures = 0;
        self.before = None;
        if !std::mem::replace(&mut self.state.was_ready, true)
            && let Err(error) = table::set_read_ahead(&self.state.device, READ_AHEAD)
        {
            tracing::info!("the kernel reads ahead as far as it does by default: {error}");
        }
        // Whoever is told that the mount is usable may ask about it at once.
        self.save();
        match std::mem::replace(audience, Audience::Nobody) {
            Audience::Requester(socket) => {
                answer(
                    &socket,
                    &Outcome::Ready {
                        supervisor_pid: std::process::id(),
                    },
                );
            }
            Audience::Foreground(ready) => ready(),
            Audience::Nobody => {}
        }
    }

    /// Decides what follows when the server has ended.
    fn reap_server(&mut self, audience: &mut Audience) {
        let ended =
            |server: &Server| fdpass::readable(&server.process, Duration::ZERO).unwrap_or(false);
        if !self.server.as_ref().is_some_and(ended) {
            return;
        }
        // What it said last must be heard before it is forgotten.
        self.hear_server(audience);
        let Some(server) = self.server.take() else {
            return;
        };
        let how = server.reap();
        self.state.server_pid = None;
        let stopped = self.stop_by.take().is_some();
        if mount::is_gone(&self.fuse)
            || self
                .ending
                .as_ref()
                .is_some_and(|ending| ending.kill_at.is_some())
        {
            return;
        }
        if !self.state.was_ready {
            let how = format!("the server {how} before the mount was usable");
            self.give_up(failed(server.failure, how));
            return;
        }
        if !stopped {
            let why = server
                .failure
                .as_ref()
                .map_or("no reason given", |failure| &failure.reason);
            tracing::warn!(
                pid = server.pid,
                "the server {how} ({why}); starting another one"
            );
        }
        if server.ready || stopped {
            self.failures = 0;
        } else if let Some(before) = self.before.take() {
            tracing::error!(
                "no server starts with the new arguments; going back to those of before"
            );
            self.state.request = before;
            if let Audience::Requester(socket) = std::mem::replace(audience, Audience::Nobody) {
                let error = failed(server.failure, how);
                answer(&socket, &Outcome::Failed(error));
            }
        }
        self.start_later();
        self.save();
    }

    /// The mount never became usable: takes it out of the tree again.
    fn give_up(&mut self, error: MountError) {
        self.failed = Some(error);
        if let Some(server) = &self.server {
            server.kill();
        }
        match mount::unmount(&self.state.request.mountpoint, true) {
            // Somebody may have been faster.
            Ok(()) | Err(MountError::NotMounted { .. }) => {}
            Err(error) => tracing::error!("{error}"),
        }
        self.ending.get_or_insert_default().kill_at = Some(Instant::now());
    }

    fn hear_signals(&mut self) {
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

    fn unmount(&mut self, lazy: bool) -> Result<(), MountError> {
        if self.state.detached {
            return Ok(());
        }
        self.take_out(lazy)?;
        if let Some(server) = &mut self.server {
            server.ping();
        }
        if !mount::is_gone(&self.fuse) {
            // Its users keep it alive, and the mountpoint is free for another mount.
            self.control = None;
            self.state.detached = true;
            match runtime::set_aside(&self.state.dir) {
                Ok(dir) => self.state.dir = dir,
                Err(error) => {
                    tracing::warn!("the mount's runtime directory could not be moved: {error}");
                }
            }
            self.save();
        }
        self.ending.get_or_insert_default();
        Ok(())
    }

    /// Takes the mount out of the tree, once the server's own process that reads ahead has let go of it.
    fn take_out(&self, lazy: bool) -> Result<(), MountError> {
        if let Some(server) = &self.server {
            server.let_go();
        }
        let until = Instant::now() + LET_GO_DEADLINE;
        loop {
            match mount::unmount(&self.state.request.mountpoint, lazy) {
                Err(MountError::Busy { .. }) if Instant::now() < until => {
                    std::thread::sleep(LET_GO_POLL);
                }
                outcome => return outcome,
            }
        }
    }

    fn hear_clients(&mut self, audience: &mut Audience) {
        if let (Audience::Requester(socket), None) = (&*audience, &self.failed)
            && fdpass::readable(socket, Duration::ZERO).unwrap_or(true)
        {
            // It never sends anything: it is gone.
            let first_start = !self.state.was_ready;
            *audience = Audience::Nobody;
            if first_start {
                self.give_up(MountError::Deadline {
                    mountpoint: self.state.request.mountpoint.clone(),
                    wanted: "mounted".to_owned(),
                });
            }
        }
        if let Some(listener) = &self.control {
            while self.clients.len() < MAX_CLIENTS {
                match accept_with(listener, SocketFlags::CLOEXEC) {
                    Ok(client) => self.clients.push(client),
                    Err(_) => break,
                }
            }
        }
        for client in std::mem::take(&mut self.clients) {
            match fdpass::try_receive::<Control>(client.as_fd()) {
                Ok(Some((Control::Unmount { lazy }, _))) => self.answer_unmount(client, lazy),
                Ok(Some((Control::TakeOver { request, exe }, _))) => {
                    let (client, error) = self.hand_on(client, request, exe);
                    answer(&client, &Outcome::Failed(error));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.clients.push(client);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!("a command could not be understood: {error}"),
            }
        }
    }

    fn answer_unmount(&mut self, client: OwnedFd, lazy: bool) {
        match self.unmount(lazy) {
            // Whoever detaches a mount that is in use does not wait for its users.
            Ok(()) if self.state.detached => answer(&client, &Ok::<(), MountError>(())),
            Ok(()) => self.ending.get_or_insert_default().waiting.push(client),
            Err(error) => answer(&client, &Err::<(), _>(error)),
        }
    }

    /// Becomes the newer program, which takes over server and mount. Returns only when that is not possible.
    fn hand_on(
        &mut self,
        client: OwnedFd,
        request: StartRequest,
        exe: PathBuf,
    ) -> (OwnedFd, MountError) {
        let at = self.state.request.mountpoint.clone();
        if self.state.request.source != request.source {
            let error = MountError::OtherSource {
                mountpoint: at,
                mounted: self.state.request.source.clone(),
                wanted: request.source,
            };
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
        let passed = fdpass::pair().and_then(|(ours, theirs)| {
            fdpass::send(
                ours.as_fd(),
                &Assignment::Resume { state, before },
                &[
                    (Slot::Fuse, self.fuse.as_fd()),
                    (Slot::Lock, self.lock.as_fd()),
                    (Slot::Link, server.line.as_fd()),
                    (Slot::Server, server.process.as_fd()),
                    (Slot::Client, client.as_fd()),
                ],
            )?;
            Ok(theirs)
        });
        let error = match passed {
            Ok(theirs) => {
                let mut command = Command::new(&exe);
                command
                    .arg("supervise")
                    .stdin(Stdio::null())
                    .stdout(Stdio::null());
                spawn::exec(&mut command, theirs.as_fd())
            }
            Err(error) => error,
        };
        let what = format!("could not become {}", exe.display());
        (client, super::supervisor_error(&at, &what, error))
    }

    fn stop_server(&mut self) {
        if let Some(server) = &self.server {
            server.stop();
            self.stop_by = Some(Instant::now() + STOP_DEADLINE);
        }
    }

    fn enforce_deadlines(&mut self) {
        let now = Instant::now();
        let overdue = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let kill_at = self.ending.as_ref().and_then(|ending| ending.kill_at);
        if overdue(self.stop_by) || overdue(kill_at) {
            if let Some(server) = &self.server {
                tracing::warn!(pid = server.pid, "the server does not end; it is killed");
                server.kill();
            }
            // Reaping it clears the deadline.
            if let Some(stop_by) = &mut self.stop_by {
                *stop_by = now + STOP_DEADLINE;
            }
        }
    }

    /// Shows the mount to others. They can do without; the mount itself goes on.
    fn save(&self) {
        let info = MountInfo {
            mountpoint: self.state.request.mountpoint.clone(),
            source: self.state.request.source.clone(),
            properties: self.state.properties.clone(),
            supervisor_pid: std::process::id(),
            server_pid: self.state.server_pid,
            detached: self.state.detached,
        };
        if let Err(error) = runtime::write_state(&self.state.dir, &info) {
            tracing::warn!("the state of the mount could not be written: {error}");
        }
    }
}

fn answer<T: serde::Serialize>(client: &OwnedFd, message: &T) {
    if let Err(error) = fdpass::send(client.as_fd(), message, &[]) {
        tracing::debug!("a command did not wait for its answer: {error}");
    }
}

/// What a server said when it ended, or else how it did.
fn failed(said: Option<ServerFailure>, how: String) -> MountError {
    let ServerFailure { reason, code } = said.unwrap_or(ServerFailure {
        reason: how,
        code: 1,
    });
    MountError::Server { reason, code }
}
