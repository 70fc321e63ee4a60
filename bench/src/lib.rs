//! What the demo and the benchmarks share: data, readers, the systems under test, and tables of what they cost.
//!
//! Everything runs as a user would run it: the `weir` binary, a real S3 server on loopback, real mounts.
//! What is measured must not know that it is: there is no code for benchmarks in the other crates.

pub mod data;
pub mod device;
pub mod fill;
pub mod hdfs;
pub mod http;
pub mod kernel;
pub mod loopback;
pub mod metrics;
pub mod offsets;
pub mod pairs;
pub mod process;
pub mod readers;
pub mod report;
pub mod sendfile;
pub mod server;
pub mod stats;
pub mod suite;
pub mod system;
pub mod table;
pub mod turns;
pub mod usage;
pub mod wait;
pub mod walk;
