//! What goes wrong in the master, by what the caller can do.

use tonic::{Code, Status};
use weir_core::DatasetName;
use weir_core::dataset::SpecError;
use weir_core::id::NameError;
use weir_core::manifest::BuildError;
use weir_origin::{DatasetError, OriginError};

use crate::store::StoreError;

/// Why the master could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest file could not be read or written.
    #[error("manifest {path}: {reason}")]
    Manifest {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name is not valid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A specification is wrong.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// What cannot be changed of a dataset would be.
    #[error(transparent)]
    Immutable(SpecError),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such dataset, snapshot, path or job.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken by something else.
    #[error("{0}")]
    Conflict(String),
    /// The origin could not be listed.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The listing does not fit a manifest.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The caller may not say or do this.
    #[error("{0}")]
    Denied(String),
    /// Credentials cannot be decrypted.
    #[error("{0}")]
    Key(String),
    /// The master was not started with what this takes.
    #[error("{0}")]
    Unready(String),
    /// Who asked for a listing has gone while that waited.
    #[error("the listing of dataset {0} was given up while it waited, since its caller has gone")]
    Abandoned(DatasetName),
    /// Whom the master asks has not answered.
    #[error("{0}")]
    Unanswered(String),
    /// Too much of something is under way.
    #[error("{0}")]
    Busy(String),
    /// A part of the master ended while it was working.
    #[error("the master is shutting down: {0}")]
    Ended(String),
}

impl From<SpecError> for MasterError {
    fn from(error: SpecError) -> Self {
        Self::Dataset(error.into())
    }
}

impl From<tokio::task::JoinError> for MasterError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Ended(error.to_string())
    }
}

impl From<MasterError> for Status {
    fn from(error: MasterError) -> Self {
        let code = match &error {
            MasterError::Store(_)
            | MasterError::Manifest { .. }
            | MasterError::Build(BuildError::Scratch { .. }) => Code::Internal,
            MasterError::Name(_)
            | MasterError::Dataset(_)
            | MasterError::Invalid(_)
            | MasterError::Build(_) => Code::InvalidArgument,
            MasterError::NotFound(_) => Code::NotFound,
            MasterError::Conflict(_) | MasterError::Immutable(_) => Code::AlreadyExists,
            MasterError::Denied(_) => Code::PermissionDenied,
            MasterError::Busy(_) => Code::ResourceExhausted,
            MasterError::Ended(_) | MasterError::Unanswered(_) => Code::Unavailable,
            MasterError::Abandoned(_) => Code::Cancelled,
            MasterError::Key(_) | MasterError::Unready(_) => Code::FailedPrecondition,
            MasterError::Origin(error) => match error.kind() {
                "access_denied" | "credentials_expired" | "not_allowed" => Code::PermissionDenied,
                "bucket_missing" | "not_found" => Code::NotFound,
                "config" => Code::InvalidArgument,
                "refused" | "untrusted" | "unsupported" | "malformed" | "no_such_host" => {
                    Code::FailedPrecondition
                }
                _ => Code::Unavailable,
            },
        };
        Self::new(code, error.to_string())
    }
}
