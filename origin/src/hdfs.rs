//! HDFS: files of a cluster, by Hadoop's own protocols and without a JVM.
//!
//! A version is a file's id, its time of change and its length. Files are looked at and opened in one step, so that a
//! reader is always of one version: the blocks of a file are never written anew, only added to or cut off, and after a
//! body that took longer than a moment the version is looked at again before its last byte is given. Every call has a
//! deadline of ours.

mod calls;
mod dial;
mod failure;
mod files;
mod listing;
mod login;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use hdfs_native::client::ListedEntry;
use weir_core::{ObjectRef, OriginId};

use crate::error::OriginError;
use crate::origin::{Fetched, Listed, Origin};
use crate::policy::FetchPolicy;
use crate::sources::SourcePolicy;
use crate::spec::OriginSpec;
use crate::spec::hdfs::NameNodes;
use crate::transport::contact::Contact;

use calls::Calls;
use files::Files;

/// A cluster, read by one user.
#[derive(Debug)]
pub(crate) struct HdfsOrigin {
    id: OriginId,
    calls: Arc<Calls>,
    files: Files,
    /// Of listings.
    policy: FetchPolicy,
}

impl HdfsOrigin {
    /// Opens a cluster. Sends nothing to it.
    pub(crate) async fn open(
        spec: &OriginSpec,
        namenodes: NameNodes,
        sources: &SourcePolicy,
    ) -> Result<Self, OriginError> {
        let calls = Arc::new(Calls::new(spec, namenodes, sources).await?);
        Ok(Self {
            id: spec.id(),
            files: Files::new(calls.clone()),
            policy: FetchPolicy::of_listings(spec),
            calls,
        })
    }
}

#[async_trait]
impl Origin for HdfsOrigin {
    fn id(&self) -> OriginId {
        self.id
    }

    fn kind(&self) -> &'static str {
        "hdfs"
    }

    fn describe(&self) -> &str {
        &self.calls.describe
    }

    fn contact(&self) -> Option<&Contact> {
        Some(&self.calls.contact)
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Vec<Listed>, OriginError>> {
        listing::pages(self.calls.clone(), prefix, self.policy.clone())
    }

    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError> {
        self.files.read(object, range).await
    }
}

/// The name of a file's version.
fn version(entry: &ListedEntry) -> String {
    format!(
        "{:x}-{:x}-{:x}",
        entry.file_id, entry.modification_time, entry.length
    )
}
