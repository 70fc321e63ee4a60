//! Origins: where a dataset's data comes from. S3-compatible stores and directories, behind one trait.
//!
//! A read is conditional on the version that was listed, so that it gives that version's bytes or an error.
//! [`fetch`] makes a read robust: retries, resumption, hedging, digests. This crate must not know about blocks'
//! placement, caches or datasets.

#![forbid(unsafe_code)]

mod digest;
mod error;
mod fetch;
mod file;
mod metrics;
mod s3;
mod spec;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use weir_core::{ObjectRef, OriginId};

pub use digest::Digest;
pub use error::OriginError;
pub use fetch::{FetchPolicy, fetch, retry};
pub use metrics::OriginMetrics;
pub use spec::{Addressing, OriginSpec};

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The full key, in raw bytes: it may be no UTF-8.
    pub key: Vec<u8>,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// The origin's name for this version.
    pub version: String,
}

/// An answer to a read: what the origin really sends.
pub struct Fetched {
    /// The bytes of the object that the body holds: never more than asked for, but it may be fewer.
    pub range: Range<u64>,
    /// The bytes.
    pub body: BoxStream<'static, Result<Bytes, OriginError>>,
    /// Checksum of exactly this body, where the origin gives one.
    pub digest: Option<Digest>,
}

/// A page of a listing, or why there are no more.
pub type ListPage = Result<Vec<Listed>, OriginError>;

/// A place that objects come from.
#[async_trait]
pub trait Origin: Send + Sync + Debug {
    /// Identity, for blocks.
    fn id(&self) -> OriginId;

    /// `s3` or `file`: a metric label.
    fn kind(&self) -> &'static str;

    /// Everything below `prefix`, page by page. A page is retried within the budget.
    fn list(&self, prefix: &str) -> BoxStream<'_, ListPage>;

    /// Asks once for `range` of an object, on condition that it is the version of `object`.
    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError>;
}

/// Opens an origin. Nothing is asked of it yet, but a configuration that makes no sense is refused.
pub async fn open(spec: &OriginSpec) -> Result<Arc<dyn Origin>, OriginError> {
    spec.validate()?;
    Ok(match spec.parse()? {
        spec::Location::S3 { bucket, .. } => Arc::new(s3::S3::open(spec, bucket).await?),
        spec::Location::File { dir } => Arc::new(file::Directory::new(spec.id(), dir.into())),
    })
}
