//! What a server and its process that stores into the page cache say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The first message, with the mount's descriptor and the memory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) mountpoint: PathBuf,
    /// Held by the mount's supervisor and its server.
    pub(super) lock: PathBuf,
}

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The kernel is to have these.
    Store(Files),
    /// The kernel is to drop what it has of this inode's content. There is one such order at a time.
    Drop(u64),
}

/// Files in a slot of the memory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Files {
    pub(super) slot: usize,
    /// Path of their directory in the mount.
    pub(super) directory: String,
    /// Whether the kernel should learn the directory's names first.
    pub(super) list: bool,
    pub(super) files: Vec<StoredFile>,
}

/// A whole file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredFile {
    pub(super) name: String,
    pub(super) inode: u64,
    /// Where its bytes are in the slot.
    pub(super) offset: usize,
    pub(super) length: usize,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Done {
    /// This slot is no longer needed.
    Read(usize),
    /// The content was dropped.
    Dropped,
}
