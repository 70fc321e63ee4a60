//! Listing the origins of a dataset.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use weir_core::dataset::SourceFilter;
use weir_core::manifest::{LeftOutObject, Mount};
use weir_core::{DatasetSpec, Manifest, ManifestBuilder, OriginId, SnapshotId};
use weir_origin::{Hindrance, OriginSpec};
use weir_proto::v1;

use super::Datasets;
use super::turn::Listing;
use crate::error::MasterError;
use crate::records::now_ns;

impl Datasets {
    /// Lists all sources, whose origins the mounts are. Entries that did not change keep the inodes of `previous`. Sources
    /// of `known` have been listed before, and are waited for as long as reads of them wait.
    pub(crate) async fn list(
        &self,
        listing: &Listing<'_>,
        known: &HashSet<OriginId>,
        spec: &DatasetSpec,
        mounts: &[v1::MountSpec],
        snapshot: SnapshotId,
        previous: Option<Arc<Manifest>>,
    ) -> Result<Found, MasterError> {
        let started = Instant::now();
        let mut builder = self.manifests.builder();
        let mut archived = Archived::default();
        let (mut objects, mut place) = (0, None);
        let mut counts = Vec::with_capacity(mounts.len());
        for (source, mount) in spec.sources.iter().zip(mounts) {
            let filter = SourceFilter::new(&source.include, &source.exclude)?;
            let mut count = Count::default();
            let spec = origin_of(mount)?;
            let prefix = spec.prefix().into_owned();
            let number = builder.add_mount(Mount {
                origin: spec.id(),
                spec: serde_json::to_string(&spec)
                    .map_err(|error| MasterError::Invalid(error.to_string()))?,
                prefix: prefix.clone(),
                path: mount.path.clone(),
            })?;
            let origin = weir_origin::open(&spec, &self.sources).await?;
            if let Some(contact) = origin.contact()
                && known.contains(&origin.id())
            {
                contact.assume_known();
            }
            let _shown = listing.lists(origin.clone());
            let mut pages =
                std::pin::pin!(weir_origin::list(&*origin, &prefix, &self.origin_metrics));
            while let Some(page) = listing.page(&*origin, &mut pages).await? {
                objects += page.len() as u64;
                for object in page {
                    let Some(path) = object.key.strip_prefix(prefix.as_bytes()) else {
                        continue; // a sibling such as `data2/` of the prefix `data/`: not part of the dataset
                    };
                    let is_file = !(path.is_empty() || path.ends_with(b"/"));
                    count.listed += u64::from(is_file);
                    if let Some(reason) = filter.leaves_out(path) {
                        // A directory is not shown then if none of its files is.
                        if is_file {
                            count.filtered += 1;
                            builder.leave_out(reason, &object.key);
                        }
                        continue;
                    }
                    match object.hindrance {
                        Some(Hindrance::LeftOut(reason)) => {
                            builder.leave_out(reason, &object.key);
                            continue;
                        }
                        Some(Hindrance::Archived(class)) => archived.add(&object.key, class),
                        None => {}
                    }
                    builder.add(
                        number,
                        &object.key,
                        object.size,
                        object.mtime_ns,
                        &object.version,
                    )?;
                }
                listing.take_place(objects, &mut place).await?;
                builder = with_room(builder).await?;
            }
            counts.push(count);
        }
        let (manifest, left_out_objects) = tokio::task::spawn_blocking(move || {
            builder.build_telling(snapshot, now_ns(), previous.as_deref())
        })
        .await??;
        let summary = manifest.summary();
        let left_out: u64 = summary.left_out.values().sum();
        let line = self.listed.line();
        if let Some(untold) = line {
            tracing::info!(snapshot = %summary.snapshot, files = summary.files, bytes = summary.bytes, left_out, archived = archived.objects, took = ?started.elapsed(), untold, "listed");
        }
        self.metrics.listed(started.elapsed());
        if line.is_some() && archived.objects > 0 {
            tracing::warn!(
                snapshot = %summary.snapshot, archived = archived.objects, example = archived.example,
                "objects are archived: reads of those that were not restored fail"
            );
        }
        Ok(Found {
            manifest,
            left_out: left_out_objects,
            archived,
            counts,
        })
    }
}

/// Sorts what was listed and moves it to disk if it is much.
async fn with_room(mut builder: ManifestBuilder) -> Result<ManifestBuilder, MasterError> {
    if !builder.is_full() {
        return Ok(builder);
    }
    let sorted = tokio::task::spawn_blocking(move || builder.make_room().map(|()| builder));
    Ok(sorted.await??)
}

/// What a listing found.
pub(crate) struct Found {
    pub(crate) manifest: Manifest,
    /// The first of what the manifest leaves out.
    pub(crate) left_out: Vec<LeftOutObject>,
    pub(crate) archived: Archived,
    /// Of each source.
    pub(crate) counts: Vec<Count>,
}

/// Files of one source.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) listed: u64,
    /// Of those, how many its globs left out.
    pub(crate) filtered: u64,
}

impl Found {
    /// Notes with a snapshot what of the origin it cannot serve.
    pub(crate) fn note_hindrances(&self, snapshot: &mut v1::Snapshot) {
        let summary = self.manifest.summary();
        snapshot.left_out = summary.left_out.clone().into_iter().collect();
        snapshot
            .left_out_examples
            .clone_from(&summary.left_out_examples);
        snapshot.archived = self.archived.objects;
        snapshot.archived_example.clone_from(&self.archived.example);
    }
}

/// Objects in an archive: their number, and one of them with its storage class.
#[derive(Debug, Default)]
pub(crate) struct Archived {
    objects: u64,
    example: String,
}

impl Archived {
    fn add(&mut self, key: &[u8], class: &str) {
        self.objects += 1;
        if self.objects == 1 {
            self.example = format!("{class}: {}", key.escape_ascii());
        }
    }
}

/// The valid origin of a mount.
pub(super) fn origin_of(mount: &v1::MountSpec) -> Result<OriginSpec, MasterError> {
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
