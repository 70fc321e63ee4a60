//! What a node plugin asks of its machine: mounts of snapshots, and directories of them bound to where kubelet wants them.

mod linux;

use std::path::Path;

use async_trait::async_trait;
use weir_core::SnapshotId;
use weir_mount::table::Entry;

use crate::error::CsiError;
use crate::target::Target;

pub use linux::{Linux, LinuxConfig};

/// What a file system says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its size, in bytes.
    pub bytes: u64,
    /// What is free of it, in bytes.
    pub free_bytes: u64,
    /// Files and directories.
    pub inodes: u64,
    /// Those that could still be made.
    pub free_inodes: u64,
}

/// How a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Alive(Usage),
    /// Nobody serves it any more (ENOTCONN).
    Dead,
    /// It does not answer in time.
    Silent,
}

/// The machine, or what a test puts in its place. Each call has a deadline of its own.
#[async_trait]
pub trait System: Send + Sync + 'static {
    /// All mounts, in the order in which they were made.
    fn table(&self) -> Result<Vec<Entry>, CsiError>;

    /// Mounts a snapshot at `dir`, in place of a dead mount there, and returns when it can be read.
    async fn serve(&self, snapshot: &SnapshotId, dir: &Path) -> Result<(), CsiError>;

    /// Takes the mount at `dir` out of the tree, and what was kept for it. It lives on for those who still have files open.
    async fn end(&self, dir: &Path) -> Result<(), CsiError>;

    /// How the mount at a path is.
    async fn health(&self, at: &Path) -> Health;

    /// Makes the directory `path` of the mount at `from` appear at the target, on top of what is there.
    async fn bind(&self, from: &Path, path: &str, target: &Target) -> Result<(), CsiError>;

    /// Takes the topmost mount at the target away.
    async fn unbind(&self, target: &Target) -> Result<(), CsiError>;

    /// Removes the target's directory.
    async fn remove(&self, target: &Target) -> Result<(), CsiError>;
}
