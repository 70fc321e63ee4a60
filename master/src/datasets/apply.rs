//! Making a dataset be as its specification says.
//!
//! Nothing is changed before all is judged that can be judged without the origins, and nothing when one of them cannot be
//! listed: a dataset is as it was, or as it was declared.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use weir_core::dataset::{MAX_SPEC, SpecError};
use weir_core::{CredentialName, DatasetName, DatasetSpec, Manifest, SnapshotId, SourceSpec};
use weir_origin::{OriginSpec, check_dataset, mounts_of, spec_of_mounts};
use weir_proto::v1;

use super::listing::{Found, origin_of, places};
use super::spec::dataset_spec;
use super::turn::Listing;
use super::{Datasets, MAX_DATASETS, newest, placing, versions};
use crate::credentials::Held;
use crate::error::MasterError;
use crate::records::now_ns;

/// What a dataset is to be.
struct Wanted {
    spec: DatasetSpec,
    /// What readers are told of `spec`.
    mounts: Vec<v1::MountSpec>,
    /// Number that a new snapshot's is above.
    after: u64,
}

/// Highest number that a caller may have snapshots counted on from.
const MAX_AFTER: u64 = 1 << 53;

impl Wanted {
    /// Has the mounts name credentials with their namespace, which is the dataset's own.
    fn qualify(&mut self, dataset: &DatasetName) -> Result<(), MasterError> {
        let origins = self
            .mounts
            .iter_mut()
            .filter_map(|mount| mount.origin.as_mut());
        for origin in origins.filter(|origin| !origin.credentials.is_empty()) {
            let name = CredentialName::of_source(dataset, &origin.credentials)?;
            if name.namespace() != dataset.namespace() {
                return Err(MasterError::Invalid(format!(
                    "credentials {name} are of another namespace than dataset {dataset}; name some of {}",
                    dataset.namespace()
                )));
            }
            origin.credentials = name.into();
        }
        Ok(())
    }
}

impl Datasets {
    /// Makes a dataset of these mounts and lists it into its first snapshot. One that exists with the same mounts is
    /// returned as it is, with the options of the new request.
    pub(crate) async fn create(
        &self,
        request: v1::CreateDatasetRequest,
        gone: CancellationToken,
    ) -> Result<v1::Dataset, MasterError> {
        let name: DatasetName = request.name.parse()?;
        let has_spec = !request.spec.is_empty();
        let mut wanted = if has_spec {
            read(&name, &request.spec)?
        } else {
            let mut spec = spec_of_mounts(&request.mounts);
            spec.shorten_credentials(&name);
            check_dataset(&mut spec)?;
            // As they came: a caller of another version may say more of an origin than a specification of this one can.
            let mounts = request.mounts;
            let after = 0;
            Wanted {
                spec,
                mounts,
                after,
            }
        };
        wanted.qualify(&name)?;
        for mount in &wanted.mounts {
            origin_of(mount)?;
        }
        let listing = self.listing(&name, gone).await?;
        let Some(dataset) = self.known.lock().get(&name).cloned() else {
            return self.make(&listing, wanted).await;
        };
        if places(&dataset.mounts)? != places(&wanted.mounts)? {
            return Err(MasterError::Conflict(format!(
                "dataset {name} exists with other mounts; choose another name, or delete it with `weir dataset delete {name}`"
            )));
        }
        if !has_spec && dataset.mounts == wanted.mounts {
            return Ok(dataset);
        }
        let before = dataset_spec(&dataset)?;
        if !has_spec {
            // Which files are taken is no option of an origin.
            for (new, old) in wanted.spec.sources.iter_mut().zip(&before.sources) {
                new.include.clone_from(&old.include);
                new.exclude.clone_from(&old.exclude);
            }
            wanted.spec.placement.clone_from(&before.placement);
            wanted.spec.access.clone_from(&before.access);
            wanted.spec.refresh = before.refresh;
        }
        if before == wanted.spec {
            return Ok(dataset);
        }
        self.change(&listing, dataset, &before, wanted).await
    }

    /// Makes a dataset be as it is declared, or judges whether that can be.
    pub(crate) async fn apply(
        &self,
        request: v1::ApplyDatasetRequest,
        gone: CancellationToken,
    ) -> Result<v1::ApplyDatasetReply, MasterError> {
        let name: DatasetName = request.name.parse()?;
        self.check_name(&name)?;
        let mut wanted = read(&name, &request.spec)?;
        if request.after > MAX_AFTER {
            return Err(MasterError::Invalid(format!(
                "no snapshot has the number {}; the highest is {MAX_AFTER}",
                request.after
            )));
        }
        wanted.after = request.after;
        wanted.qualify(&name)?;
        // A judgement waits for no listing.
        let listing = if request.dry_run {
            None
        } else {
            Some(self.listing(&name, gone).await?)
        };
        let known = self.known.lock().get(&name).cloned();
        let before = known.as_ref().map(dataset_spec).transpose()?;
        let outcome = match &before {
            None => v1::ApplyOutcome::Created,
            Some(before) => {
                check_places(&name, before, &wanted.spec)?;
                if *before == wanted.spec {
                    v1::ApplyOutcome::Unchanged
                } else {
                    v1::ApplyOutcome::Configured
                }
            }
        };
        let dataset = match (known, before, &listing) {
            (known, ..) if outcome == v1::ApplyOutcome::Unchanged => known,
            (known, before, None) => {
                drop(self.judge(&wanted, before.as_ref(), request.beside as usize)?);
                known
            }
            (Some(dataset), Some(before), Some(listing)) => {
                Some(self.change(listing, dataset, &before, wanted).await?)
            }
            (_, _, Some(listing)) => Some(self.make(listing, wanted).await?),
        };
        Ok(v1::ApplyDatasetReply {
            outcome: outcome.into(),
            dataset,
        })
    }

    /// Refuses what this master may not read, one dataset too many, and a new placement that the cluster cannot have; a zone may
    /// have gone since it was placed there before.
    /// Credentials that it names are kept until what this gives is dropped.
    fn judge(
        &self,
        wanted: &Wanted,
        before: Option<&DatasetSpec>,
        beside: usize,
    ) -> Result<Held<'_>, MasterError> {
        let origins = wanted.mounts.iter().map(origin_of);
        let origins: Vec<OriginSpec> = origins.collect::<Result<_, _>>()?;
        for origin in &origins {
            self.sources.check(origin)?;
        }
        let held = self.credentials.hold(&origins)?;
        let known = self.known.lock().len();
        if before.is_none() && known.saturating_add(beside) >= MAX_DATASETS {
            let more = match beside {
                0 => String::new(),
                beside => format!(" after {beside} others"),
            };
            return Err(MasterError::Busy(format!(
                "there are {known} datasets, no more fit{more}: a master has at most {MAX_DATASETS}; delete some with `weir dataset delete`"
            )));
        }
        let placed_before = before.and_then(|before| before.placement.as_ref());
        if wanted.spec.placement.as_ref() != placed_before {
            placing::check(&wanted.spec, &self.cluster())?;
        }
        Ok(held)
    }

    /// Lists a new dataset into its first snapshot.
    async fn make(
        &self,
        listing: &Listing<'_>,
        wanted: Wanted,
    ) -> Result<v1::Dataset, MasterError> {
        let name = listing.name();
        let _held = self.judge(&wanted, None, 0)?;
        let found = self.list_next(listing, &wanted, None).await?;
        check_found(&wanted.spec, &DatasetSpec::default(), &found)?;
        let dataset = v1::Dataset {
            name: name.to_string(),
            spec: wanted.spec.to_json(),
            mounts: wanted.mounts,
            snapshots: Vec::new(),
            created_ns: now_ns(),
            placement: None,
            former_placements: Vec::new(),
            placement_reason: String::new(),
            deleting: false,
        };
        self.add_snapshot(name, dataset, found).await
    }

    /// Changes a dataset that was `before`, and lists it again if it may have other files then.
    async fn change(
        &self,
        listing: &Listing<'_>,
        mut dataset: v1::Dataset,
        before: &DatasetSpec,
        wanted: Wanted,
    ) -> Result<v1::Dataset, MasterError> {
        let _held = self.judge(&wanted, Some(before), 0)?;
        let has_same_files = have_same_files(before, &wanted.spec);
        dataset.spec = wanted.spec.to_json();
        dataset.mounts.clone_from(&wanted.mounts);
        if has_same_files {
            // Another region, profile or signature, of sources that are not listed again.
            self.save(listing.name(), &mut dataset, None).await?;
            return Ok(dataset);
        }
        let listed = self.relist(listing, dataset, wanted, Some(before));
        let (dataset, _) = listed.await?;
        Ok(dataset)
    }

    /// Lists the origins of a dataset that is to be so from now on. Gives it, and whether a new snapshot was made.
    /// With `before`, each source that it did not have must have files.
    async fn relist(
        &self,
        listing: &Listing<'_>,
        mut dataset: v1::Dataset,
        wanted: Wanted,
        before: Option<&DatasetSpec>,
    ) -> Result<(v1::Dataset, bool), MasterError> {
        let name = listing.name();
        let previous = match newest(name, &dataset) {
            None => None,
            // One that cannot be read any more is replaced.
            Some((id, _)) => self.load_manifest(id).await.ok(),
        };
        let found = self.list_next(listing, &wanted, previous.clone()).await?;
        if let Some(before) = before {
            check_found(&wanted.spec, before, &found)?;
        }
        if let Some(previous) = &previous {
            check_not_emptied(name, previous, &found)?;
        }
        let digest = &found.manifest.summary().digest;
        if previous.is_none_or(|previous| previous.summary().digest != *digest) {
            return Ok((self.add_snapshot(name, dataset, found).await?, true));
        }
        // The same files, but what is beside them may be other than it was.
        if let Some((snapshot, _)) = newest(name, &dataset) {
            let (manifests, left_out) = (self.manifests.clone(), found.left_out.clone());
            let save = move || manifests.save_left_out(&snapshot, &left_out);
            tokio::task::spawn_blocking(save).await??;
        }
        let known = self.get(name)?;
        dataset.snapshots.clone_from(&known.snapshots);
        if let Some(newest) = dataset.snapshots.last_mut() {
            found.note_hindrances(newest);
        }
        if dataset != known {
            if let Some(newest) = dataset.snapshots.last() {
                self.metrics.show_snapshot(name.as_str(), newest);
            }
            self.save(name, &mut dataset, None).await?;
        }
        Ok((dataset, false))
    }

    /// Lists the origins again. Gives the dataset and whether a new snapshot was made.
    pub(crate) async fn refresh(
        &self,
        name: &str,
        gone: CancellationToken,
    ) -> Result<(v1::Dataset, bool), MasterError> {
        let name: DatasetName = name.parse()?;
        let listing = self.listing(&name, gone).await?;
        let dataset = self.get(&name)?;
        let wanted = Wanted {
            spec: dataset_spec(&dataset)?,
            mounts: dataset.mounts.clone(),
            after: 0,
        };
        self.relist(&listing, dataset, wanted, None).await
    }

    async fn list_next(
        &self,
        listing: &Listing<'_>,
        wanted: &Wanted,
        previous: Option<Arc<Manifest>>,
    ) -> Result<Found, MasterError> {
        let name = listing.name();
        let before = self
            .known
            .lock()
            .get(name)
            .map(|before| before.mounts.clone());
        let before = before.unwrap_or_default();
        let known: Result<HashSet<_>, _> = before
            .iter()
            .map(|mount| Ok::<_, MasterError>(origin_of(mount)?.id()))
            .collect();
        let known = known?;
        let snapshot = SnapshotId {
            dataset: name.clone(),
            version: versions::last(&self.records, name).await?.max(wanted.after) + 1,
        };
        let (spec, mounts) = (&wanted.spec, &wanted.mounts);
        self.list(listing, &known, spec, mounts, snapshot, previous)
            .await
    }
}

/// Reads a specification of a request.
fn read(name: &DatasetName, json: &str) -> Result<Wanted, MasterError> {
    if json.len() > MAX_SPEC {
        return Err(MasterError::Invalid(format!(
            "the specification is {} bytes long, of at most {MAX_SPEC}",
            json.len()
        )));
    }
    let mut spec = DatasetSpec::from_json(json).map_err(|error| {
        MasterError::Invalid(format!(
            "this master does not understand the specification: {error}; if it is of an earlier version than this command, upgrade it first"
        ))
    })?;
    spec.shorten_credentials(name);
    let origins = check_dataset(&mut spec)?;
    let mounts = mounts_of(&spec, origins);
    Ok(Wanted {
        spec,
        mounts,
        after: 0,
    })
}

/// Refuses to take away or move a source: mounts read the dataset's snapshots by it.
fn check_places(
    name: &DatasetName,
    before: &DatasetSpec,
    after: &DatasetSpec,
) -> Result<(), MasterError> {
    let new: HashSet<_> = after.sources.iter().map(place).collect();
    let gone = |(_, source): &(usize, &SourceSpec)| !new.contains(&place(source));
    let Some((index, gone)) = before.sources.iter().enumerate().find(gone) else {
        return Ok(());
    };
    let old: HashSet<_> = before.sources.iter().map(place).collect();
    let moved = after.sources.get(index);
    let moved = moved.filter(|source| !old.contains(&place(source)));
    let (field, problem) = match moved {
        None => (
            format!("spec.sources[{index}]"),
            format!(
                "the source {} of dataset {name} cannot be taken away",
                gone.url
            ),
        ),
        Some(moved) => {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let (field, from, to) = if gone.url != moved.url {
                ("url", gone.url.clone(), moved.url.clone())
            } else if gone.path != moved.path {
                ("path", gone.path.clone(), moved.path.clone())
            } else if gone.credentials != moved.credentials {
                (
                    "credentials",
                    text(&gone.credentials),
                    text(&moved.credentials),
                )
            } else {
                ("endpoint", text(&gone.endpoint), text(&moved.endpoint))
            };
            (
                format!("spec.sources[{index}].{field}"),
                format!(
                    "the place of a source of dataset {name} cannot be changed, from {from:?} to {to:?}"
                ),
            )
        }
    };
    let remedy = format!(
        "choose another name for the dataset, or delete it first with `weir dataset delete {name}`"
    );
    Err(MasterError::Immutable(SpecError::new(
        field, problem, remedy,
    )))
}

/// What of a source cannot change.
fn place(source: &SourceSpec) -> (String, String, &str) {
    let origin = OriginSpec::of_source(source);
    (
        origin.location(),
        origin.prefix().into_owned(),
        source.path.as_str(),
    )
}

/// Whether what decides which files a dataset has is the same.
fn have_same_files(before: &DatasetSpec, after: &DatasetSpec) -> bool {
    let is_same = |(before, after): (&SourceSpec, &SourceSpec)| {
        let index = |source| OriginSpec::of_source(source).index_query();
        place(before) == place(after)
            && index(before) == index(after)
            && before.include == after.include
            && before.exclude == after.exclude
    };
    before.sources.len() == after.sources.len()
        && before.sources.iter().zip(&after.sources).all(is_same)
}

/// Refuses a dataset of which a source has nothing to show that `before` did not have.
fn check_found(spec: &DatasetSpec, before: &DatasetSpec, found: &Found) -> Result<(), MasterError> {
    for (index, (source, count)) in spec.sources.iter().zip(&found.counts).enumerate() {
        if before.sources.contains(source) {
            continue;
        }
        if count.listed == 0 {
            let origin = OriginSpec::of_source(source);
            let nothing = match (origin.scheme(), &*origin.prefix()) {
                ("s3" | "oss" | "gs" | "az" | "azure" | "abfs" | "abfss", prefix)
                    if !prefix.is_empty() =>
                {
                    format!(
                        "there are no objects whose key starts with {prefix:?}; check the prefix"
                    )
                }
                ("http" | "https", _) => {
                    "neither its index nor its pages name a file; check the URL".to_owned()
                }
                ("file", _) => {
                    "there are no files in it; check the path, and that what belongs there is mounted"
                        .to_owned()
                }
                _ => "there are no files in it; check its name".to_owned(),
            };
            return Err(MasterError::NotFound(format!(
                "spec.sources[{index}]: {}: {nothing}",
                source.url
            )));
        }
        if count.listed > 0 && count.listed == count.filtered {
            return Err(MasterError::NotFound(format!(
                "spec.sources[{index}]: {}: its globs leave out all of its {} objects; check `include` and `exclude`",
                source.url, count.listed
            )));
        }
    }
    Ok(())
}

/// Refuses a listing that leaves nothing of a dataset: a directory whose file system is not mounted, or a prefix whose data is
/// just being replaced, is no reason to show readers nothing.
fn check_not_emptied(
    name: &DatasetName,
    previous: &Manifest,
    found: &Found,
) -> Result<(), MasterError> {
    if found.manifest.summary().files > 0 || previous.summary().files == 0 {
        return Ok(());
    }
    let sources = match found.counts.len() {
        1 => "its source".to_owned(),
        count => format!("all of its {count} sources"),
    };
    Err(MasterError::NotFound(format!(
        "dataset {name} would have no files any more: {sources} had none to show when they were listed, and {} were there before; check the sources, or delete the dataset with `weir dataset delete {name}` if that is right",
        previous.summary().files
    )))
}

#[cfg(test)]
mod tests;
