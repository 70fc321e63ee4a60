//! Weir's face to the kernel: a snapshot as a file system, and the processes that keep its mount alive.
//!
//! Three kinds of process share the work. `weir mount` ([`supervisor::start`]) asks for a mount and returns when
//! it is usable. The **supervisor** ([`supervisor::run`]) mounts, keeps the `/dev/fuse` descriptor and restarts the
//! **server**, which answers the kernel ([`handover::Handover::serve`]). Either of the last two may die at any
//! moment: the other one starts it again from the state that both hold, and no reader notices. Should both die together, the
//! **holder** ([`supervisor::hold`]) starts them, which holds the same state and does nothing else.
//!
//! The modules of the mount know nothing of datasets, origins or networks; only [`fs`], [`errno`] and [`ahead`] do.

#![deny(unsafe_code)]

pub mod ahead;
pub mod duty;
pub mod errno;
pub mod fs;
pub mod handover;
pub mod metrics;
pub mod mount;
pub mod runtime;
pub mod supervisor;
pub mod waiting;

mod buffer;
mod descriptor;
mod fdpass;
mod signals;
mod spawn;
mod state;
mod succession;
mod sync;
