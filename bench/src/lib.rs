//! What the benchmarks share beside what the demo has: suites, the systems under test, and tables of what they cost.
//!
//! Everything runs as a user would run it: the `weir` binary, a real S3 server on loopback, real mounts.
//! What is measured must not know that it is: there is no code for benchmarks in the other crates.

pub mod device;
pub mod fill;
pub mod hdfs;
pub mod loopback;
pub mod offsets;
pub mod pairs;
pub mod report;
pub mod sendfile;
pub mod server;
pub mod suite;
pub mod system;
pub mod table;
pub mod turns;
pub mod walk;

pub use weir_demo::{data, http, kernel, metrics, process, readers, stats, usage, wait};
