//! Why a call fails, in one sentence that `kubectl describe pod` shows to a user.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

/// Longest message that is passed on from another process or server, in bytes: an event of Kubernetes holds 1024.
const MAX_SAID: usize = 600;

/// Why a call fails. The message names the volume and says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsiError {
    /// The request or the volume's attributes make no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such dataset, snapshot or directory.
    #[error("{0}")]
    NotFound(String),
    /// The dataset is there, and cannot be mounted yet.
    #[error("{0}")]
    NotReady(String),
    /// The pod may not read the dataset, or Weir may not read its source.
    #[error("{0}")]
    Denied(String),
    /// The master or a source does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// Something else is mounted at the target.
    #[error("{0}")]
    Taken(String),
    /// This node cannot do it.
    #[error("{0}")]
    Node(String),
    /// Another call for the same volume has not ended.
    #[error("another call for {0} is still under way; kubelet tries again")]
    Busy(String),
    /// It took too long.
    #[error("{what} took longer than {seconds} s; kubelet tries again")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// A call to the system failed.
    #[error("cannot {what} {path}: {reason}")]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

impl CsiError {
    /// An error of the system.
    pub(crate) fn system(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::System {
            what,
            path,
            reason: error.to_string(),
        }
    }

    /// The code by which kubelet knows the error.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::NotReady(_) | Self::Node(_) => Code::FailedPrecondition,
            Self::Denied(_) => Code::PermissionDenied,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Taken(_) => Code::AlreadyExists,
            Self::Busy(_) => Code::Aborted,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::System { .. } => Code::Internal,
        }
    }
}

impl From<CsiError> for Status {
    fn from(error: CsiError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// What another process or server said, as one line of bounded length.
pub(crate) fn said(text: &str) -> String {
    let line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match line.char_indices().find(|(at, _)| *at >= MAX_SAID) {
        None => line,
        Some((end, _)) => format!("{}…", &line[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_becomes_one_line_that_fits_an_event() {
        assert_eq!(
            said(" weir: no\nsuch \u{1b}[1mdataset\n"),
            "weir: no such  [1mdataset"
        );
        let long = said(&"é".repeat(10_000));
        assert!(long.len() < MAX_SAID + 8 && long.ends_with('…'));
    }
}
