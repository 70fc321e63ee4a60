//! What the demo and the benchmarks share: data, readers, and the processes under test.
//!
//! Everything runs as a user would run it: the `weir` binary, a real S3 server on loopback, real mounts.

pub mod data;
pub mod http;
pub mod metrics;
pub mod readers;
pub mod rig;
pub mod stats;
