//! The worker: cache tiers, fills from the origin, and the serving side of the block stream.
//!
//! A worker holds blocks in memory and on SSD, fetches what it lacks once however many readers wait for it, and
//! serves it to clients in the same process, on the same machine or over the network. It must not know about
//! files, paths or the kernel: those are the client's and the mount's.

mod config;
mod copies;
mod demand;
mod fills;
mod read_source;
mod recent;
mod sources;
mod ssd;
mod sync;

pub mod credentials;
pub mod fill;
pub mod heartbeat;
pub mod inventory;
pub mod memory;
pub mod metrics;
pub mod origins;
pub mod placements;
pub mod schedule;
pub mod service;
pub mod snapshots;
pub mod stream;
mod takeover;
#[doc(hidden)]
pub mod testing;
mod verify;
pub mod warm;
mod worker;

pub use config::{FILL_BUDGET, LEAST_FILL_BUDGET, SsdConfig, WorkerConfig};
pub use metrics::{DatasetReads, WorkerMetrics};
pub use read_source::Source;
pub use ssd::DiskSpace;
pub use verify::Doubtful;
pub use weir_segment::DEFAULT_IDLE_AFTER as EVICT_IDLE;
pub use worker::{Cached, FillWork, PrefetchAnswer, ReadError, Worker, WorkerError};
