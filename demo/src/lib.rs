//! What the demo and the benchmarks measure with: data, a real S3 server on loopback, mounts made by the `weir` binary,
//! readers, and what all of it costs.
//!
//! It must not know any other crate of Weir, so that a demo on a fresh machine builds nothing that only measurements need.

pub mod data;
pub mod ending;
pub mod http;
pub mod kernel;
pub mod metrics;
pub mod mount;
pub mod process;
pub mod readers;
pub mod server;
pub mod stats;
pub mod usage;
pub mod wait;
