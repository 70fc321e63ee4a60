//! Workers for the tests of this crate and of those above.
//!
//! It is always there, and no feature: with one, each crate above would be compiled twice. The program does not call it,
//! so that it has no bytes of it.

use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use weir_core::id::NameError;
use weir_core::{ByteSize, Location, WorkerInfo};
use weir_origin::{FetchPolicy, OriginMetrics, SourcePolicy};

use crate::config::{SsdConfig, WorkerConfig};
use crate::metrics::WorkerMetrics;
use crate::worker::{Worker, WorkerError};

/// A worker of this name on node `n`, with no tier and the least budget, which may read any source.
///
/// # Errors
/// When this cannot be a worker's name.
pub fn config(id: &str) -> Result<WorkerConfig, NameError> {
    Ok(WorkerConfig {
        id: id.parse()?,
        node: "n".parse()?,
        memory: ByteSize(0),
        ssd: Vec::new(),
        fill_budget: ByteSize(0),
        copies: None,
        keep: None,
        egress_limit: None,
        origins_file: None,
        fetch: FetchPolicy::default(),
        sources: SourcePolicy::unlimited(),
    })
}

/// What a cluster map says of a worker of this name on node `n`, which has no addresses.
///
/// # Errors
/// When this cannot be a worker's name.
pub fn info(id: &str) -> Result<WorkerInfo, NameError> {
    Ok(WorkerInfo {
        id: id.parse()?,
        data_address: String::new(),
        control_address: String::new(),
        node: "n".parse()?,
        location: Location::default(),
        local_socket: String::new(),
        weight: 1,
        cordoned_weight: 0,
    })
}

/// One SSD directory, which drops blocks as that of a worker with the default flags does.
pub fn ssd(dir: PathBuf, capacity: u64) -> SsdConfig {
    SsdConfig {
        dir,
        capacity: ByteSize(capacity),
        evict_idle: crate::EVICT_IDLE,
        left_free: weir_core::FreeSpace::NONE,
    }
}

/// Opens a worker whose metrics nobody else sees.
///
/// # Errors
/// As [`Worker::open`].
pub fn open(config: WorkerConfig) -> Result<Arc<Worker>, WorkerError> {
    let mut registry = Registry::default();
    let metrics = WorkerMetrics::register(&mut registry);
    Worker::open(config, metrics, OriginMetrics::register(&mut registry))
}
