//! The life of a mount: the processes that make it, keep it alive and end it.
//!
//! Three kinds of process share the work. `weir mount` ([`supervisor::start`]) asks for a mount and returns when
//! it is usable. The **supervisor** ([`supervisor::run`]) mounts, keeps the `/dev/fuse` descriptor and restarts the
//! **server**, which answers the kernel ([`handover::Handover::serve`]). Either of the last two may die at any
//! moment: the other one starts it again from the state that both hold, and no reader notices. Should both die together, the
//! **holder** ([`supervisor::hold`]) starts them, which holds the same state and does nothing else.
//!
//! This crate must not know about datasets, origins or networks.

#![forbid(unsafe_code)]

pub mod handover;
pub mod runtime;
pub mod supervisor;

mod adoption;
mod kept;
mod mounting;
mod state;
mod succession;
mod sync;

pub use mounting::{FS_TYPE, MountError, table};

// Under this name for `handover/term.rs`, which is also compiled elsewhere with another one.
use weir_fuse::duty;

pub use weir_fuse::sends_again;
