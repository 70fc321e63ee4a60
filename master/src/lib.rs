//! The master: what datasets there are, what their snapshots hold, which workers live, and the jobs that warm and
//! evict them.
//!
//! It is asked when something is mounted, warmed or looked at, never when something is read. What must outlive it is
//! in a [`store::MetaStore`]; manifests are files beside it; which worker holds which block is soft state that workers
//! report again. It must not know how blocks are stored or moved.

#![forbid(unsafe_code)]

mod claims;
mod conditions;
mod config;
mod credentials;
mod datasets;
mod doubtful;
mod error;
mod grants;
mod heartbeats;
mod inventory;
mod jobs;
mod located;
mod manifests;
mod master;
mod members;
mod metrics;
mod mounted;
mod placements;
mod pods;
mod readers;
mod records;
mod service;
pub mod store;
mod work;

pub use config::{CredentialsForMounts, MasterConfig};
pub use credentials::{CredentialKeys, KeyError};
pub use error::MasterError;
pub use manifests::manifest_path;
pub use master::Master;
pub use metrics::MasterMetrics;
pub use service::serve;
