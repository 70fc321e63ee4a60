//! The one face of every origin: list it, and read a part of one object version.
//!
//! An origin makes single attempts and checks what comes back; [`fetch`](crate::fetch()) adds patience. The bytes of
//! a [`Fetched`] are always those of the version that was asked for: a changed object is an error, never other bytes.

use std::fmt::Debug;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use weir_core::keypath::LeftOut;
use weir_core::{ObjectRef, OriginId};

use crate::checksum::ObjectChecksum;
use crate::digest::Digest;
use crate::error::OriginError;
use crate::transport::contact::Contact;

/// One object of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The full key, as raw bytes.
    pub key: Vec<u8>,
    /// Length in bytes.
    pub size: u64,
    /// Last change, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// The origin's name for this version; see [`ObjectRef::version`].
    pub version: String,
    /// Why it cannot be read as it is.
    pub hindrance: Option<Hindrance>,
}

impl Listed {
    /// What is no object to be read, and is listed to be counted.
    pub(crate) fn left_out(key: Vec<u8>, reason: LeftOut) -> Self {
        Self {
            key,
            size: 0,
            mtime_ns: 0,
            version: String::new(),
            hindrance: Some(Hindrance::LeftOut(reason)),
        }
    }
}

/// Why something of a listing cannot be read as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// It lies in an archive, with this storage class, and reads fail until somebody has restored it.
    Archived(&'static str),
    /// It is no object; it was listed to be counted.
    LeftOut(LeftOut),
}

/// The answer to one read.
pub struct Fetched {
    /// What the origin really sends: starts where it was asked to, is not empty, and may end before the asked end.
    pub range: Range<u64>,
    /// Exactly the bytes of `range`, or an error.
    pub body: BoxStream<'static, Result<Bytes, OriginError>>,
    /// Checksum over exactly the bytes of `range`, when the origin sent one.
    pub digest: Option<Digest>,
}

impl Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetched")
            .field("range", &self.range)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// A storage that datasets come from.
#[async_trait]
pub trait Origin: Send + Sync + Debug {
    /// Identifies the origin in block identities.
    fn id(&self) -> OriginId;

    /// The URL's scheme, one of a few: a label of metrics.
    fn kind(&self) -> &'static str;

    /// The origin in messages: `s3://bucket`.
    fn describe(&self) -> &str;

    /// Every object whose key starts with `prefix`, in pages, in the origin's order. A page is retried by itself,
    /// within a time budget; the first error ends the stream.
    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Vec<Listed>, OriginError>>;

    /// Makes one attempt to read `range`, which must not be empty and must lie inside the object, of exactly this
    /// version. Returns when the answer's head has been checked; the body is still to come.
    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError>;

    /// What the origin says of the bytes of exactly this version, in one attempt. `None` if it has no checksum that can be
    /// combined.
    async fn checksum(&self, _object: &ObjectRef) -> Result<Option<ObjectChecksum>, OriginError> {
        Ok(None)
    }

    /// What is known of the service that is asked. `None` where nobody is waited for: directories.
    fn contact(&self) -> Option<&Contact> {
        None
    }

    /// Closes connections that nobody has used for a while; called now and then.
    fn close_idle(&self) {}
}
