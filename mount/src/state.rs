//! What must survive the death of any one process of a mount.
//!
//! The whole of it is passed to each process that starts, in one message, so that supervisor and server can each
//! bring the other one back. It crosses versions when a mount is upgraded: a field that is added needs a default, and
//! one that is removed is ignored by the next version.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::mounting::MountError;
use crate::supervisor::request::StartRequest;

/// All that the processes of a mount know of it beside the descriptors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MountState {
    /// What was asked for; the mountpoint is resolved.
    pub(crate) request: StartRequest,
    /// The mount's runtime directory.
    pub(crate) dir: PathBuf,
    /// The file system's device number, as the mount table shows it.
    pub(crate) device: String,
    /// When the mount was made, in seconds since 1970.
    pub(crate) started_at: u64,
    /// Standard error is the log file, not a terminal.
    pub(crate) logs_to_file: bool,
    /// No longer in the tree: serves those who still have files open.
    pub(crate) detached: bool,
    /// A server has been ready since the mount was made.
    pub(crate) was_ready: bool,
    /// The kernel's INIT request and what became of it.
    pub(crate) init: InitExchange,
    /// What the server published.
    pub(crate) properties: BTreeMap<String, String>,
    /// The server's process.
    pub(crate) server_pid: Option<u32>,
    /// When it was last taken over from a pod that was frozen, in seconds since 1970.
    #[serde(default)]
    pub(crate) taken_over_at: u64,
    /// How often it was in a row, each time within a minute of the time before.
    #[serde(default)]
    pub(crate) taken_over_times: u32,
}

/// The INIT exchange: the kernel asks once in the life of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InitExchange {
    /// The request as it was read.
    pub(crate) request: Vec<u8>,
    /// What a server answered, or was about to answer.
    pub(crate) reply: Option<Vec<u8>>,
    /// The answer is known to have reached the kernel.
    pub(crate) answered: bool,
}

/// The first message to a supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Assignment {
    /// Make a mount; say what came of it over the same socket, as an [`Outcome`].
    Start(StartRequest),
    /// The supervisor before died; its server, or the third holder if that died too, sends what it knows.
    Adopt(MountState),
    /// This process was the supervisor in an older version and has executed the newer one.
    Resume {
        /// The mount, with the new request in it.
        state: MountState,
        /// The request of before, for the case that no server starts with the new one.
        before: StartRequest,
    },
}

/// What became of [`Assignment::Start`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// The mount is usable.
    Ready {
        /// The supervisor's process.
        supervisor_pid: u32,
    },
    /// Nothing is mounted.
    Failed(MountError),
}

/// From the supervisor to its server; the first message is a [`MountState`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToServer {
    /// Are you well?
    Ping(u64),
    /// Finish what must be finished and exit; another server takes over.
    Stop,
    /// The mount is about to be unmounted: nothing of this server may keep it busy.
    LetGo,
    /// There is another third holder; the message has the line to it.
    Holder,
    /// There is another holder in another pod; the message has the line to it.
    Peer,
}

/// From a server to its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromServer {
    /// Answers [`ToServer::Ping`] with its number.
    Pong(u64),
    /// This reply to INIT goes to the kernel next.
    Answering(Vec<u8>),
    /// The kernel has it.
    Answered,
    /// Requests of the kernel are being answered.
    Ready,
    /// A fact for those who ask about the mount.
    Publish {
        /// Its name.
        key: String,
        /// Its value.
        value: String,
    },
    /// This server cannot serve; it is about to exit.
    Failed(ServerFailure),
}

/// Why a server cannot serve.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ServerFailure {
    pub(crate) reason: String,
    pub(crate) code: u8,
}

/// Exit code of a server whose mount was unmounted.
pub(crate) const EXIT_UNMOUNTED: u8 = 66;
