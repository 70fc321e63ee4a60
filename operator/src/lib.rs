//! Weir's objects in Kubernetes, and the controllers that make them true.
//!
//! A Dataset of Kubernetes is what `weir apply` takes. The operator has the master apply it, makes a volume and a claim of its
//! name, and tells in its status what the master knows of it. It is level-triggered: whatever was missed or undone, the next look
//! finds what is to be done. A Dataset that is broken waits by itself, and keeps no other from what it is to be.
//!
//! It also signs the certificates of Weir's pods ([`SigningConfig`]).
//!
//! This crate must not know how the master keeps datasets, nor how a node mounts them.

#![forbid(unsafe_code)]

mod context;
mod dataset;
mod durations;
mod error;
mod fleet;
mod gates;
mod holder;
mod jobs;
mod json_patch;
mod labels;
mod leader;
mod listings;
mod master;
mod metrics;
mod noted;
mod objects;
mod operator;
mod placing;
mod pool;
mod pools;
mod report;
mod retire;
mod secrets;
mod signing;
mod uses;
mod view;
mod volumes;
mod warmup;
mod webhook;

#[cfg(test)]
mod testing;

pub use error::OperatorError;
pub use labels::NodeLabels;
pub use master::{GrpcMaster, Known, Master, MasterError, Refusal, Survey};
pub use metrics::OperatorMetrics;
pub use objects::{
    CachePool, CachePoolSpec, CachePoolStatus, Dataset, DatasetStatus, KubernetesSpec, Phase,
    PoolPhase, Warmup, WarmupPhase, WarmupSpec, WarmupStatus, definitions,
};
pub use operator::{Operator, OperatorConfig};
pub use retire::{Retired, retire};
pub use secrets::SecretError;
pub use signing::{OwnCertificate, SigningConfig};
