//! What a file system must offer so that servers can replace each other.

use std::sync::Arc;

use fuser::Filesystem;

use crate::duty::Duty;

/// A file system that can be handed over.
pub trait Served: Filesystem {
    /// The file system calls `Duty::gather` on each FORGET, and leaves requests unanswered that fail when the duty
    /// is over.
    fn duty(&self) -> Arc<Duty>;
}
