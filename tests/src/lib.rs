//! What the whole-system tests share: a scratch world with the `weir` binary, an S3 server, mounts and processes.
//!
//! Everything that a test starts is ended by its guard, by process id, also when the test fails.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod authority;
mod cluster;
mod data;
mod lab;
mod memory_group;
mod mount;
mod process;
mod readers;

pub use authority::Authority;
pub use cluster::Cluster;
pub use data::{content, write_tree};
pub use lab::{BUCKET, Lab, Outcome};
pub use memory_group::MemoryGroup;
pub use mount::{Mount, is_mountpoint};
pub use process::{Process, free_port, get};
pub use readers::{Readers, ReadersReport, drop_pages, read_at_random, read_evicted};

use std::time::{Duration, Instant};

/// Why FUSE cannot be tested here, if it cannot.
pub fn fuse_missing() -> Option<String> {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    opened
        .err()
        .map(|error| format!("cannot open /dev/fuse: {error}"))
}

/// Waits until `done`; panics with `what` when that takes longer than `most`.
pub fn wait_until(what: &str, most: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + most;
    while !done() {
        assert!(Instant::now() < deadline, "not within {most:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
