//! What can go wrong with a store of segments.

use std::io;
use std::path::{Path, PathBuf};

use weir_core::{BlockKey, ByteSize};

/// Why an operation on the SSD tier failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// Another process uses the directory.
    #[error(
        "cache directory {} is in use by {}; stop that process or give this one another directory",
        dir.display(),
        holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The holder's process id, if its lock file tells.
        holder: Option<u32>,
    },
    /// The capacity is too small to work with.
    #[error(
        "cache directory {}: a capacity of {} is too small; give it at least {}",
        dir.display(),
        ByteSize(*capacity),
        ByteSize(*least)
    )]
    Capacity {
        /// The directory.
        dir: PathBuf,
        /// Bytes configured.
        capacity: u64,
        /// Bytes needed.
        least: u64,
    },
    /// A block is empty or longer than a segment takes.
    #[error("block {key} of {len} bytes cannot be stored: a block has 1 to {limit} bytes")]
    BlockLength {
        /// The block.
        key: BlockKey,
        /// Its length, in bytes.
        len: u64,
        /// The longest that fits, in bytes.
        limit: u64,
    },
    /// The system refused an operation on a file.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried: a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SegmentError {
    /// Names the file or directory that an error of the system is about.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::cannot("use", path)(source)
    }

    /// For `map_err`: adds what was tried on which file.
    pub(super) fn cannot(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// True if the device, or the quota on it, has no space left.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_disk_full(source))
    }
}

/// True if the device, or the quota on it, has no space left.
pub(super) fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
