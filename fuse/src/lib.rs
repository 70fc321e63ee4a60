//! Weir's face to the kernel: a snapshot as a file system, and files that its page cache is given before anybody reads them.
//!
//! [`fs::SnapshotFs`] answers the kernel. [`page_cache`] stores files into the page cache, with a process of its own.
//! [`duty`] is when a server answers: it may be replaced at any moment by one that goes on where it was.
//!
//! This crate must not know how a mount is made, kept alive or ended, nor where blocks are.

#![deny(unsafe_code)]

pub mod duty;
pub mod errno;
pub mod fs;
pub mod metrics;
pub mod page_cache;
pub mod waiting;

pub mod in_flight;

mod again;
mod buffer;
mod logged;
mod resend;
mod sync;

pub use again::Again;
pub use resend::{send_again, sends_again};
