//! An S3 server for tests and measurements.
//!
//! It speaks the real protocol over real sockets (s3s parses requests and verifies signatures), serves buckets from
//! memory or from a directory, counts what it is asked for, and misbehaves on request. It is not for production: reads
//! of files block its threads, and nothing survives its process.
//!
//! It must not know anything of Weir: it stands for services that do not either.

mod body;
mod bucket;
mod checksum;
mod fault;
mod generated;
mod keys;
mod pattern;
mod server;
mod service;
mod version;

pub use bucket::Bucket;
pub use checksum::{Crc, Kept};
pub use fault::{Fault, Faults, Rule, Target};
pub use server::{Config, Identity, S3Server};
pub use service::Stats;
pub use version::Version;
