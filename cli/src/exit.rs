//! Exit codes, documented in docs/cli.md.

use std::fmt;
use std::process::ExitCode;

use tonic::Code;

/// Why a command failed, as a script can tell it apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// Anything that has no code of its own.
    Other = 1,
    /// The command line makes no sense (clap uses the same code).
    Usage = 2,
    /// A dataset, path, mount or job does not exist.
    NotFound = 3,
    /// The master or the origin does not answer.
    Unavailable = 4,
    /// The origin refused the credentials.
    Denied = 5,
    /// The name or the mountpoint is taken.
    Conflict = 6,
    /// Ctrl-C, as a shell reports it.
    Interrupted = 130,
}

/// A message for the user and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    reason: Reason,
    message: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self {
            reason,
            message: message.to_string(),
        }
    }

    /// Prints the message and gives the code.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("weir: {}", self.message);
        }
        ExitCode::from(self.reason as u8)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Reason::Other, format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Reason::Other, error)
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let reason = match status.code() {
            Code::NotFound => Reason::NotFound,
            Code::Unavailable | Code::DeadlineExceeded => Reason::Unavailable,
            Code::PermissionDenied | Code::Unauthenticated => Reason::Denied,
            Code::AlreadyExists | Code::FailedPrecondition => Reason::Conflict,
            Code::InvalidArgument => Reason::Usage,
            _ => Reason::Other,
        };
        Self::new(reason, status.message())
    }
}
