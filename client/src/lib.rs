//! The read path: from a file's bytes to blocks, and from a block to whoever holds it.
//!
//! A client computes a block's owner from the cluster map and asks it: in this process, over a Unix socket on this
//! machine, or over TCP. Nothing on this path asks the master. When no owner answers, the client reads the origin.
//! It must not know about inodes or the kernel: that is the mount's.

#![forbid(unsafe_code)]

mod blocks;
mod cluster;
mod error;
mod failures;
mod local;
mod prefetch;
mod reader;
mod silence;
mod source;
mod stale;

pub mod map;
pub mod metrics;

pub use cluster::{ClusterConfig, ClusterReader};
pub use error::{BatchError, BlockError, ReadError};
pub use metrics::{ClientMetrics, ReadSource};
pub use prefetch::{BATCH_BYTES, Batch, PageCache, Placed, ReadAheadTarget};
pub use reader::Reader;
pub use source::BlockSource;
pub use source::any::AnySource;
pub use source::cluster::ClusterSource;
pub use source::embedded::EmbeddedSource;
pub use stale::StaleReads;
