//! The names that every part of Weir shares: identifiers, block identity, manifests, placement and sizes; how often
//! a log may repeat itself, or a slow request may be raced; and what time it is.
//!
//! This crate does no I/O beyond making and mapping the files of manifests, and reading files of settings.
//! It must not know about origins, networks, the kernel or the command line.

#![deny(unsafe_code)]

pub mod block;
pub mod blocknumber;
pub mod bytesize;
pub mod dataset;
mod free_space;
pub mod id;
pub mod keypath;
pub mod log_limit;
pub mod manifest;
pub mod placement;
pub mod race_budget;
pub mod settings;
mod suggest;
pub mod wall_clock;

pub use block::{BLOCK_SIZE, Block, BlockKey, ObjectRef};
pub use bytesize::ByteSize;
pub use dataset::{DatasetDocument, DatasetSpec, SourceSpec};
pub use free_space::{FreeSpace, FreeSpaceError};
pub use id::{
    CredentialName, DatasetName, DatasetRef, NodeName, OriginId, PlaceName, SnapshotId, WorkerId,
};
pub use keypath::LeftOut;
pub use log_limit::{LogLimit, LogLimitByKey};
pub use manifest::{Entry, EntryKind, Manifest, ManifestBuilder};
pub use placement::{ClusterMap, Hashing, Location, WorkerInfo};
pub use race_budget::RaceBudget;
pub use settings::read_settings;
