//! What the whole-system tests share: a scratch world with the `weir` binary, an S3 server, mounts and processes.
//!
//! Everything that a test starts is ended by its guard, by process id, also when the test fails.
//!
//! The tests see what a user sees: files, commands, metrics, logs. They must not know what is inside of the processes.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod authority;
mod big;
mod cluster;
mod data;
mod disk;
mod epochs;
mod hadoop;
mod idle;
mod kdc;
mod lab;
pub mod memory_group;
mod mount;
mod network;
mod nobody;
mod process;
mod readers;

pub use authority::{Authority, self_signed};
pub use big::{all_right, put_big_files, verify_under_flips};
pub use cluster::{Cluster, issue};
pub use data::{content, put_apart, write_tree};
pub use disk::{DiskFault, FaultyDisk};
pub use epochs::{Epochs, SlowRead};
pub use hadoop::{hadoop_jars, write_hadoop_properties};
pub use idle::idle_connections;
pub use kdc::{Kdc, REALM};
pub use lab::{BUCKET, Lab, Outcome};
pub use memory_group::MemoryGroup;
pub use mount::Mount;
pub use network::Network;
pub use nobody::as_nobody;
pub use process::{Frozen, Process, free_port, get, loopback};
pub use readers::{Readers, ReadersReport, drop_pages, read_at_random, read_evicted};
pub use weir_demo::kernel::is_mountpoint;

use std::time::{Duration, Instant};

/// Time between two looks at what a test waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

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
#[track_caller]
pub fn wait_until(what: &str, most: Duration, done: impl FnMut() -> bool) {
    assert!(comes_true(most, done), "not within {most:?}: {what}");
}

/// Waits until `done`. False when that takes longer than `most`.
pub fn comes_true(most: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + most;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    true
}
