//! Origins: where a dataset's data comes from. Object stores, HDFS, web servers and directories, behind one trait.
//!
//! A read is conditional on the version that was listed, so that it gives that version's bytes or an error.
//! [`fetch()`] makes a read robust: retries, resumption, hedging, digests. [`object_checksum()`] asks for what guards objects
//! that are read in ranges. [`open()`] knows all kinds of origin.
//!
//! This crate must not know about blocks' placement, caches or datasets.

#![deny(unsafe_code)]

mod azure;
mod checksum;
mod credential;
mod digest;
mod error;
#[cfg(test)]
mod fake;
mod fetch;
mod file;
mod gcs;
mod hdfs;
mod metrics;
mod object_checksum;
mod opening;
mod origin;
mod pace;
mod policy;
mod s3;
mod sources;
mod spec;
mod store;
mod transport;
mod web;

pub use checksum::{CrcKind, ObjectChecksum, PartSum, Shift};
pub use credential::{
    CREDENTIAL_DEADLINE, Credential, CredentialError, CredentialKind, CredentialSource, MAX_SECRET,
    Secret,
};
pub use digest::Digest;
pub use error::OriginError;
pub use fetch::fetch;
pub use metrics::OriginMetrics;
pub use object_checksum::object_checksum;
pub use opening::{list, open};
pub use origin::{Fetched, Hindrance, Listed, Origin};
pub use pace::Pace;
pub use policy::FetchPolicy;
pub use s3::signature::{Keys, Signer};
pub use sources::{AllowedDir, AllowedEndpoint, SourcePolicy};
pub use spec::source::{DatasetError, check_dataset, mounts_of, spec_of, spec_of_mounts};
pub use spec::{Addressing, HdfsOptions, OriginSpec};
pub use transport::contact::Contact;
