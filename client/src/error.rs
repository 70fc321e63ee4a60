//! Why bytes could not be read: as the kernel's face is told, and before that, of one block.

use weir_origin::OriginError;

/// Why bytes of a file could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The object is no longer the one of the snapshot.
    #[error(
        "{path}: the object has changed at the origin since snapshot {snapshot}; make a new one with `weir dataset refresh`: {message}"
    )]
    Stale {
        /// Path inside the dataset.
        path: String,
        /// The snapshot that was read.
        snapshot: String,
        /// What the origin said.
        message: String,
    },
    /// Neither a worker nor the origin could give the bytes.
    #[error("{path}: {message}")]
    Unavailable {
        /// Path inside the dataset.
        path: String,
        /// The last thing that went wrong.
        message: String,
    },
}

/// What went wrong with one block.
#[derive(Clone, Debug)]
pub enum BlockError {
    /// The object is no longer the one of the snapshot; what the origin said.
    Changed(String),
    /// Nobody could give the bytes; the last thing that went wrong.
    Failed(String),
}

impl From<weir_worker::ReadError> for BlockError {
    fn from(error: weir_worker::ReadError) -> Self {
        match error {
            weir_worker::ReadError::Origin(OriginError::Changed { .. }) => {
                Self::Changed(error.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Why a block did not come with the others that were asked for together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchError {
    /// It cannot be read; whoever asks for it is told why.
    Unreadable,
    /// It is to be asked for alone.
    NotTogether,
}
