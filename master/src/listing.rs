//! Listing the origins of a dataset, one listing of a dataset at a time.

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use tokio::sync::OwnedMutexGuard;
use weir_core::manifest::Mount;
use weir_core::{DatasetName, Manifest, ManifestBuilder, SnapshotId};
use weir_origin::OriginSpec;
use weir_proto::v1;

use crate::error::MasterError;
use crate::master::{Master, now_ns};

impl Master {
    /// Waits for the right to list a dataset, or to delete it.
    pub(crate) async fn listing(&self, name: &DatasetName) -> Listing<'_> {
        let lock = self
            .listings
            .lock()
            .entry(name.clone())
            .or_default()
            .clone();
        // Made before the wait, so that the table is tidied also if that is given up.
        let mut listing = Listing {
            master: self,
            name: name.clone(),
            held: None,
        };
        listing.held = Some(lock.lock_owned().await);
        listing
    }

    /// Lists all mounts into a manifest. Entries that did not change keep the inodes of `previous`.
    pub(crate) async fn list(
        &self,
        mounts: &[v1::MountSpec],
        snapshot: SnapshotId,
        previous: Option<Arc<Manifest>>,
    ) -> Result<Manifest, MasterError> {
        let started = Instant::now();
        let mut builder = ManifestBuilder::new();
        for mount in mounts {
            let spec = origin_of(mount)?;
            let prefix = spec.prefix().into_owned();
            let number = builder.add_mount(Mount {
                origin: spec.id(),
                spec: serde_json::to_string(&spec)
                    .map_err(|error| MasterError::Invalid(error.to_string()))?,
                prefix: prefix.clone(),
                path: mount.path.clone(),
            })?;
            let origin = weir_origin::open(&spec).await?;
            let mut pages =
                std::pin::pin!(weir_origin::list(&*origin, &prefix, &self.origin_metrics));
            while let Some(page) = pages.next().await {
                for object in page? {
                    builder.add(
                        number,
                        &object.key,
                        object.size,
                        object.mtime_ns,
                        &object.version,
                    )?;
                }
            }
        }
        let manifest = tokio::task::spawn_blocking(move || {
            builder.build(snapshot, now_ns(), previous.as_deref())
        })
        .await??;
        let summary = manifest.summary();
        let left_out: u64 = summary.left_out.values().sum();
        tracing::info!(snapshot = %summary.snapshot, files = summary.files, bytes = summary.bytes, left_out, took = ?started.elapsed(), "listed");
        self.metrics.listed(started.elapsed());
        Ok(manifest)
    }
}

/// The right to list a dataset, or to delete it.
pub(crate) struct Listing<'a> {
    master: &'a Master,
    name: DatasetName,
    held: Option<OwnedMutexGuard<()>>,
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        self.held = None;
        // Callers may name any dataset, so what nobody waits for is forgotten.
        let mut listings = self.master.listings.lock();
        if let Some(lock) = listings.get(&self.name)
            && Arc::strong_count(lock) == 1
        {
            listings.remove(&self.name);
        }
    }
}

/// The valid origin of a mount.
fn origin_of(mount: &v1::MountSpec) -> Result<OriginSpec, MasterError> {
    let spec = mount
        .origin
        .clone()
        .ok_or_else(|| MasterError::Invalid("a mount without an origin".to_owned()))?;
    let spec = OriginSpec::from(spec);
    spec.validate()?;
    Ok(spec)
}

/// What makes mounts the same: where the data is and where it appears, not how it is reached.
pub(crate) fn places(
    mounts: &[v1::MountSpec],
) -> Result<Vec<(String, String, String)>, MasterError> {
    mounts
        .iter()
        .map(|mount| {
            let spec = origin_of(mount)?;
            let path = mount.path.trim_matches('/').to_owned();
            Ok((spec.location(), spec.prefix().into_owned(), path))
        })
        .collect()
}
