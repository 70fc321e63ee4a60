//! How a server takes over the kernel's connection, also from one that was killed in the middle of its work.
//!
//! The kernel asks INIT once in the life of a mount, but each [`fuser::Session`] wants to answer one. So the session
//! is given a socket in place of `/dev/fuse`, reads the saved request from it and writes its reply into it; then the
//! real descriptor is put over the socket's number. The first server passes its reply on to the kernel. A later one
//! drops it, and asks the kernel to send again what its predecessor read but never answered.
//!
//! Invariant: whether INIT was answered is decided by the kernel, which accepts one answer and refuses a second with
//! ENOENT. A server that dies between its answer and saying so is thus no special case.
//!
//! `FUSE_DEV_IOC_CLONE` is not used: requests that were read through a cloned descriptor fail when it is closed,
//! which happens when a server dies. All threads of a server read from the one descriptor that its supervisor holds
//! too.
#![forbid(unsafe_code)]

mod init;
mod link;
mod term;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Notifier, Session, SessionACL};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::kept::Kept;
use crate::mounting::table;
use crate::runtime;
use crate::state::{EXIT_UNMOUNTED, FromServer, MountState, ServerFailure};
use link::Link;
use weir_fuse::duty::Duty;
use weir_fuse::fs::SnapshotFs;
use weir_fuse::page_cache::Mounted;
use weir_fuse::send_again;
use weir_process::descriptor::{self, Place};
use weir_process::fdpass;

pub use term::Ended;

/// Longest wait for what the supervisor sent before it started this process.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(5);
/// Longer than any reply to INIT.
const MAX_INIT_REPLY: usize = 4096;
/// Longest wait for the threads of a session to start.
const GATHER_DEADLINE: Duration = Duration::from_secs(10);
/// Start of the names of the threads on which [`fuser`] calls the file system.
const SESSION_THREADS: &str = "fuser-";

/// Why a server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// This process was not started by a supervisor.
    #[error("no supervisor has started this process")]
    NoSupervisor,
    /// What the supervisor sent cannot be used.
    #[error("the hand-over from the supervisor failed: {0}")]
    Message(#[source] io::Error),
    /// The mount was unmounted in the meantime.
    #[error("the mount was unmounted")]
    Unmounted,
    /// The file system and the kernel did not agree on how to talk.
    #[error("the kernel and the file system do not fit together: {0}")]
    Init(String),
    /// A call to the system failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> HandoverError {
    move |source| HandoverError::System { what, source }
}

/// Has whatever belongs to the server close what it holds open in the mount; called before it is unmounted.
pub type LetGo = Box<dyn Fn() + Send + Sync>;

/// How a file system is served.
pub struct ServeConfig {
    /// Threads that read requests of the kernel and call the file system.
    pub threads: usize,
    /// Called before the mount is unmounted.
    pub let_go: Option<LetGo>,
}

impl std::fmt::Debug for ServeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeConfig")
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// A server's end of its mount, before it serves. From here on the supervisor is answered, and replaced if it dies.
#[derive(Debug)]
pub struct Handover {
    link: Arc<Link>,
    mountpoint: PathBuf,
    /// The mount's device number, as the mount table shows it.
    device: String,
    /// The mount's runtime directory.
    dir: PathBuf,
    /// The lock of the mount's processes.
    lock: PathBuf,
    restart: bool,
    init: crate::state::InitExchange,
}

impl Handover {
    /// Takes over what the supervisor passed to this process. Works once in a process.
    pub fn from_env() -> Result<Self, HandoverError> {
        let socket = descriptor::inherited().ok_or(HandoverError::NoSupervisor)?;
        let arrived =
            fdpass::readable(&socket, MESSAGE_DEADLINE).map_err(HandoverError::Message)?;
        if !arrived {
            return Err(HandoverError::Message(io::ErrorKind::TimedOut.into()));
        }
        let (mut state, mut descriptors) = fdpass::receive::<MountState>(socket.as_fd())
            .map_err(HandoverError::Message)?
            .ok_or(HandoverError::NoSupervisor)?;
        let kept = Kept::of(&mut descriptors).map_err(HandoverError::Message)?;
        let holder = descriptors.take(fdpass::Slot::Holder);
        let peer = descriptors.take(fdpass::Slot::Peer);
        state.server_pid = Some(std::process::id());
        let (mountpoint, init) = (state.request.mountpoint.clone(), state.init.clone());
        let (device, dir) = (state.device.clone(), state.dir.clone());
        let link =
            Link::start(socket, kept, holder, peer, state).map_err(system("start a thread"))?;
        Ok(Self {
            link,
            mountpoint,
            device,
            lock: runtime::lock(&dir),
            dir,
            restart: init.reply.is_some(),
            init,
        })
    }

    /// Whether another server has served this mount: what the kernel caches of it must stay true.
    pub fn is_restart(&self) -> bool {
        self.restart
    }

    /// The mount as its processes see it.
    pub fn mounted(&self) -> Mounted {
        let (mountpoint, device) = (self.mountpoint.clone(), self.device.clone());
        Mounted {
            mountpoint: mountpoint.clone(),
            lock: self.lock.clone(),
            is_on_top: Box::new(move || {
                let top = table::at(&mountpoint).ok().flatten();
                top.is_some_and(|top| top.device == device)
            }),
        }
    }

    /// The mount's runtime directory, where its sockets are. It may be renamed while the mount lives.
    pub fn runtime_dir(&self) -> &Path {
        &self.dir
    }

    /// The kernel's end of the mount.
    pub fn fuse(&self) -> std::os::fd::BorrowedFd<'_> {
        self.link.fuse()
    }

    /// Makes a fact known to those who ask about the mount, such as the address of its metrics. What is told before
    /// [`Self::serve`] is known when the mount becomes usable.
    pub fn publish(&self, key: &str, value: &str) {
        self.link.publish(key, value);
    }

    /// Tells why this server cannot serve. If it is the first of the mount, `weir mount` fails with these words and
    /// this exit code.
    pub fn fail(&self, reason: &str, code: u8) {
        self.link.send(&FromServer::Failed(ServerFailure {
            reason: reason.to_owned(),
            code,
        }));
    }

    /// Serves `fs` on the mount, on threads of its own. Not generic, so that the code of these threads is made in this
    /// crate, as fast as it is to be.
    pub fn serve(
        &mut self,
        mut fs: SnapshotFs,
        config: ServeConfig,
    ) -> Result<Serving, HandoverError> {
        let duty = fs.duty();
        let again = self.link.in_flight().map(|memory| fs.share(memory));
        let again = again
            .transpose()
            .map_err(system("share what is under way"))?;
        let threads = config.threads.max(1);
        let mut options = fuser::Config::default();
        options.n_threads = Some(threads);
        let (session, kernel, reply) = self.greet(fs, options)?;
        let notifier = session.notifier();
        let place = Place::new(session.as_fd(), notifier.clone());
        let resend = self.answer(reply)?;
        self.run(session)?;
        gather(&kernel, &duty, threads)?;
        place
            .put(self.link.fuse())
            .map_err(system("take over /dev/fuse"))?;
        if resend && !send_again(self.link.fuse()) {
            if let Some(again) = again {
                let begun = again.answer_all(self.link.fuse());
                begun.map_err(system("answer what is under way"))?;
            } else {
                tracing::warn!(
                    "this kernel cannot send unanswered requests again (Linux 6.9 can): reads that were under way when the server before this one ended will hang"
                );
            }
        }
        self.link.term().begin(&duty);
        if let Some(let_go) = config.let_go {
            self.link.set_let_go(let_go);
        }
        self.end_when_a_session_thread_panics();
        duty.begin();
        self.link.ready();
        Ok(Serving {
            link: self.link.clone(),
            notifier,
            place,
        })
    }

    /// Starts the session's threads.
    fn run(&self, session: Session<SnapshotFs>) -> Result<(), HandoverError> {
        let link = self.link.clone();
        std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || {
                let ended = match session.run() {
                    _ if crate::mounting::is_gone(link.fuse()) => Ended::Unmounted,
                    Ok(()) => Ended::Failed("the session ended by itself".to_owned()),
                    Err(error) => Ended::Failed(format!("the session failed: {error}")),
                };
                link.term().end(ended);
            })
            .map_err(system("start a thread"))?;
        Ok(())
    }

    /// Lets a session answer the saved request over a socket. Gives the session, the socket's other end and the answer.
    fn greet(
        &self,
        fs: SnapshotFs,
        options: fuser::Config,
    ) -> Result<(Session<SnapshotFs>, OwnedFd, Vec<u8>), HandoverError> {
        let (kernel, session): (OwnedFd, OwnedFd) =
            fdpass::pair().map_err(system("make a socket"))?;
        rustix::net::send(&kernel, &self.init.request, SendFlags::NOSIGNAL)
            .map_err(|error| system("write the INIT request")(error.into()))?;
        // The kernel checks who may look into the mount, by the option allow_other.
        let session = Session::from_fd(fs, session, SessionACL::All, options)
            .map_err(|error| HandoverError::Init(error.to_string()))?;
        let mut reply = vec![0; MAX_INIT_REPLY];
        let (length, _) = rustix::net::recv(&kernel, &mut reply[..], RecvFlags::DONTWAIT)
            .map_err(|error| system("read the INIT reply")(error.into()))?;
        reply.truncate(length);
        Ok((session, kernel, reply))
    }

    /// Gives the kernel its answer unless it has one. Returns whether another server was there before.
    fn answer(&mut self, reply: Vec<u8>) -> Result<bool, HandoverError> {
        let ours = init::parse(&reply).map_err(HandoverError::Init)?;
        if let Some(theirs) = self
            .init
            .reply
            .as_deref()
            .and_then(|reply| init::parse(reply).ok())
            && let Some(difference) = ours.check_against(&theirs).map_err(HandoverError::Init)?
        {
            tracing::warn!("{difference}; unmount and mount again to have it");
        }
        if self.init.answered {
            return Ok(true);
        }
        self.link.answering(&reply);
        let fresh = match rustix::io::retry_on_intr(|| rustix::io::write(self.link.fuse(), &reply))
        {
            Ok(_) => true,
            // A server before this one died after its answer and before it could say so.
            Err(Errno::NOENT) if !crate::mounting::is_gone(self.link.fuse()) => false,
            Err(Errno::NODEV | Errno::NOENT) => return Err(HandoverError::Unmounted),
            Err(error) => return Err(system("answer INIT")(error.into())),
        };
        self.link.answered();
        self.init.answered = true;
        Ok(!fresh)
    }

    /// A panic ends the thread that it happens on, and with it a part of the mount's service, for good. The request
    /// itself fails with EIO while the thread unwinds; then the process ends and the next one has all its threads.
    fn end_when_a_session_thread_panics(&self) {
        let link = self.link.clone();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            let thread = std::thread::current();
            if thread
                .name()
                .is_some_and(|name| name.starts_with(SESSION_THREADS))
            {
                link.term().end(Ended::Failed(
                    "a thread that answers the kernel panicked".to_owned(),
                ));
            }
        }));
    }
}

/// Gives each of the session's threads a message that touches the memory of its buffer; see [`Duty`].
fn gather(kernel: &OwnedFd, duty: &Duty, threads: usize) -> Result<(), HandoverError> {
    let message = init::nothing();
    for _ in 0..threads {
        rustix::net::send(kernel, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
            .map_err(|error| system("wake a thread")(error.into()))?;
    }
    if duty.wait_for(threads, GATHER_DEADLINE) {
        return Ok(());
    }
    Err(HandoverError::Init(
        "the threads that answer it did not start in time".to_owned(),
    ))
}

impl Ended {
    /// The exit code that tells the supervisor, and whoever reads its log.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unmounted => ExitCode::from(EXIT_UNMOUNTED),
            Self::Replaced => ExitCode::SUCCESS,
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

/// A mount that is being served.
#[derive(Debug)]
pub struct Serving {
    link: Arc<Link>,
    notifier: Notifier,
    /// Where the session's threads read requests and write answers.
    place: Place<Notifier>,
}

impl Serving {
    /// Cuts this process off from the kernel: what it has not answered is left to the next server. Called before
    /// anything ends that requests wait for, since each would be answered with an error.
    pub fn leave(&self) {
        let cut = fdpass::pair().and_then(|(dead, peer)| {
            // Nobody reads what is written there, and nobody ever writes what is read.
            std::mem::forget(peer);
            self.place.put(dead.as_fd())
        });
        if let Err(error) = cut {
            tracing::warn!("reads that are under way may fail: {error}");
        }
    }

    /// Tells the kernel of changes.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Ends [`Self::wait`]: this process wants to exit and be replaced.
    pub fn stop(&self) {
        self.link.term().end(Ended::Replaced);
    }

    /// Waits until this server has to end. The process should then finish its work and exit with the
    /// [code](Ended::exit_code).
    pub fn wait(&self) -> Ended {
        loop {
            // The wait is for an event that may never come; it is cut up so that none is without a deadline.
            if let Some(ended) = self.wait_until(Instant::now() + Duration::from_hours(1)) {
                return ended;
            }
        }
    }

    /// As [`Self::wait`], until a deadline; `None` when the server may go on.
    pub fn wait_until(&self, deadline: Instant) -> Option<Ended> {
        self.link.term().wait_until(deadline)
    }
}
