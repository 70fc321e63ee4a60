//! Exit codes, documented in docs/cli.md.

use std::error::Error as _;
use std::fmt;

use tonic::Code;
use weir_worker::snapshots::SnapshotError;

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
    /// The origin answers, but refuses, is not trusted or is no S3 service.
    Refused = 7,
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

    /// The same failure, of which the user has been told.
    pub(crate) fn silent(self) -> Self {
        Self {
            message: String::new(),
            ..self
        }
    }

    /// The same failure, whose message says what it is about.
    pub(crate) fn about(self, what: impl fmt::Display) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    /// The same failure, with another message.
    pub(crate) fn reworded(self, word: impl FnOnce(&str) -> String) -> Self {
        Self {
            message: word(&self.message),
            ..self
        }
    }

    /// The message for the user.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.reason as u8
    }
}

impl Reason {
    /// The reason behind an exit code of another Weir process.
    pub(crate) fn of_code(code: u8) -> Self {
        let known = [
            Self::Usage,
            Self::NotFound,
            Self::Unavailable,
            Self::Denied,
            Self::Conflict,
            Self::Refused,
        ];
        let known = known.into_iter().find(|reason| *reason as u8 == code);
        known.unwrap_or(Self::Other)
    }

    fn of_status(code: Code) -> Self {
        match code {
            Code::NotFound => Self::NotFound,
            Code::Unavailable | Code::DeadlineExceeded => Self::Unavailable,
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied,
            Code::AlreadyExists => Self::Conflict,
            Code::FailedPrecondition => Self::Refused,
            Code::InvalidArgument => Self::Usage,
            _ => Self::Other,
        }
    }
}

impl From<weir_master::MasterError> for Failure {
    fn from(error: weir_master::MasterError) -> Self {
        Self::from(tonic::Status::from(error))
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let reason = match &error {
            SnapshotError::Master { code, .. } => Reason::of_status(*code),
            SnapshotError::Damaged { .. } => Reason::Other,
        };
        Self::new(reason, error)
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
        // What a server says has no source: there was no answer.
        let is_lost = status.source().is_some()
            && matches!(
                status.code(),
                Code::Unknown | Code::Unavailable | Code::Internal | Code::Cancelled
            );
        if is_lost {
            return Self::new(
                Reason::Unavailable,
                format!(
                    "the connection ended before there was an answer ({}); see whether the master runs, and try again: what was done is kept",
                    causes(&status)
                ),
            );
        }
        Self::new(Reason::of_status(status.code()), status.message())
    }
}

/// What is wrong, with the reasons behind it.
pub(crate) fn causes(status: &tonic::Status) -> String {
    let mut causes = status.message().to_owned();
    let mut source = status.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !causes.ends_with(&cause_text) {
            causes = format!("{causes}: {cause_text}");
        }
        source = cause.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_no_answer_and_an_answer_keeps_its_words() {
        let reset = std::io::Error::other("connection reset");
        let failure = Failure::from(tonic::Status::from_error(Box::new(reset)));
        assert_eq!(failure.code(), 4, "{failure:?}");
        for said in ["connection reset", "try again"] {
            assert!(failure.message().contains(said), "{failure:?}");
        }
        let failure = Failure::from(tonic::Status::unknown("odd"));
        assert_eq!((failure.code(), failure.message()), (1, "odd"));
    }
}
