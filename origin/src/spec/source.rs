//! From a dataset's specification to the origins that readers open, and back.
//!
//! This is the one place that checks a whole specification. What a source says is in [`OriginSpec`] in other words, so both
//! ways name every field: whoever adds one is made to think of it here.

use std::collections::HashMap;

use weir_core::dataset::{HdfsSpec, Patience, SpecError};
use weir_core::{DatasetSpec, SourceSpec};
use weir_proto::v1;

use super::{HdfsOptions, OriginSpec};
use crate::error::OriginError;

/// Why a dataset cannot be so.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DatasetError {
    /// A field of the specification is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A source's URL or one of its options is wrong.
    #[error("{field}: {error}")]
    Source {
        /// The source, as in `spec.sources[0]`.
        field: String,
        /// What is wrong with it.
        error: OriginError,
    },
}

/// Checks a specification as a whole, puts it into its one form, and gives the origins of its sources. Asks nobody.
pub fn check_dataset(spec: &mut DatasetSpec) -> Result<Vec<OriginSpec>, DatasetError> {
    spec.check()?;
    let origin = |(index, source): (usize, &SourceSpec)| {
        let origin = OriginSpec::of_source(source);
        origin
            .validate_declared()
            .map_err(|error| DatasetError::Source {
                field: format!("spec.sources[{index}]"),
                error,
            })?;
        Ok(origin)
    };
    let origins = spec.sources.iter().enumerate().map(origin);
    let origins: Vec<OriginSpec> = origins.collect::<Result<_, DatasetError>>()?;
    check_overlaps(spec, &origins)?;
    Ok(origins)
}

/// Refuses sources that show the same objects at the same paths, which is a slip: one of them does nothing.
fn check_overlaps(spec: &DatasetSpec, origins: &[OriginSpec]) -> Result<(), SpecError> {
    /// Most components of a path or prefix that are compared: what is deeper is not refused.
    const DEEPEST: usize = 256;
    let mut seen = HashMap::new();
    // Two sources show the same at the same path if one's place and path are those of the other with the same names behind
    // both. The outermost such pair of a source is its identity.
    let outermost = |origin: &OriginSpec, path: &str| {
        let (location, prefix) = (origin.location(), origin.prefix());
        // A directory's path is all in its location.
        let (place, prefix) = match location.strip_prefix("file:///") {
            Some(dir) => ("file:///", dir),
            None => (location.as_str(), prefix.trim_end_matches('/')),
        };
        // Two lists of one directory may name other files.
        let place = format!("{place}{}", origin.index_query());
        let (mut prefix, mut path) = (prefix, path);
        let mut pairs = vec![(place.clone(), prefix.to_owned(), path.to_owned())];
        while pairs.len() < DEEPEST && !path.is_empty() {
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            let (outer, last) = prefix.rsplit_once('/').unwrap_or(("", prefix));
            if name != last {
                break;
            }
            (prefix, path) = (outer, above);
            pairs.push((place.clone(), prefix.to_owned(), path.to_owned()));
        }
        pairs
    };
    let pairs: Vec<_> = spec
        .sources
        .iter()
        .zip(origins)
        .map(|(source, origin)| outermost(origin, source.path_in_manifest()))
        .collect();
    let twice = |index: usize, other: usize| {
        Err(SpecError::new(
            format!("spec.sources[{index}]"),
            format!("spec.sources[{other}] has all of its objects at the same paths"),
            "name each place once, with the globs of both",
        ))
    };
    for (index, pairs) in pairs.iter().enumerate() {
        if let Some(other) = seen.insert(&pairs[0], index) {
            return twice(index, other);
        }
    }
    for (index, pairs) in pairs.iter().enumerate() {
        if let Some(other) = pairs[1..].iter().find_map(|pair| seen.get(pair)) {
            return twice(index, *other);
        }
    }
    Ok(())
}

impl OriginSpec {
    /// The origin of a source. Where it lies in the dataset, and which of its files are taken, is not the origin's.
    pub fn of_source(source: &SourceSpec) -> Self {
        let SourceSpec {
            url,
            path: _,
            endpoint,
            region,
            addressing,
            anonymous,
            profile,
            credentials,
            patience,
            include: _,
            exclude: _,
            hdfs,
        } = source.clone();
        Self {
            url,
            endpoint,
            region,
            addressing,
            anonymous,
            profile,
            patience_seconds: patience.map(|patience| patience.0),
            credentials,
            hdfs: HdfsOptions {
                user: hdfs.user,
                config: hdfs.config,
            },
        }
    }

    /// The source that this is the origin of, at a path of a dataset.
    pub fn into_source(self, path: &str) -> SourceSpec {
        let Self {
            url,
            endpoint,
            region,
            addressing,
            anonymous,
            profile,
            patience_seconds,
            credentials,
            hdfs: HdfsOptions { user, config },
        } = self;
        SourceSpec {
            url,
            path: format!("/{}", path.trim_matches('/')),
            endpoint,
            region,
            addressing,
            anonymous,
            profile,
            credentials,
            patience: patience_seconds.map(Patience),
            include: Vec::new(),
            exclude: Vec::new(),
            hdfs: HdfsSpec { user, config },
        }
    }
}

/// The specification of a dataset of the API or of a store. Those of versions that had none are made from its mounts.
pub fn spec_of(dataset: &v1::Dataset) -> Result<DatasetSpec, serde_json::Error> {
    let mut spec = if dataset.spec.is_empty() {
        spec_of_mounts(&dataset.mounts)
    } else {
        DatasetSpec::from_json(&dataset.spec)?
    };
    if let Ok(name) = dataset.name.parse() {
        spec.shorten_credentials(&name);
    }
    Ok(spec)
}

/// The specification of a dataset with these mounts.
pub fn spec_of_mounts(mounts: &[v1::MountSpec]) -> DatasetSpec {
    let source = |mount: &v1::MountSpec| {
        let origin = OriginSpec::from(mount.origin.clone().unwrap_or_default());
        origin.into_source(&mount.path)
    };
    DatasetSpec {
        sources: mounts.iter().map(source).collect(),
        ..DatasetSpec::default()
    }
}

/// The mounts of a dataset whose sources have these origins.
pub fn mounts_of(spec: &DatasetSpec, origins: Vec<OriginSpec>) -> Vec<v1::MountSpec> {
    let mount = |(source, origin): (&SourceSpec, OriginSpec)| v1::MountSpec {
        origin: Some(origin.into()),
        path: source.path_in_manifest().to_owned(),
    };
    spec.sources.iter().zip(origins).map(mount).collect()
}

#[cfg(test)]
mod tests {
    use weir_core::dataset::Addressing;

    use super::*;

    fn source(url: &str, path: &str) -> SourceSpec {
        SourceSpec {
            url: url.to_owned(),
            path: path.to_owned(),
            ..SourceSpec::default()
        }
    }

    fn check(sources: Vec<SourceSpec>) -> Result<DatasetSpec, DatasetError> {
        let mut spec = DatasetSpec {
            sources,
            ..DatasetSpec::default()
        };
        check_dataset(&mut spec)?;
        Ok(spec)
    }

    #[test]
    fn a_source_is_the_same_after_its_way_to_an_origin_and_back() {
        let full = SourceSpec {
            endpoint: Some("http://host:9000".to_owned()),
            region: Some("eu".to_owned()),
            addressing: Addressing::Virtual,
            anonymous: true,
            profile: Some("dev".to_owned()),
            patience: Some(Patience(600)),
            ..source("s3://bucket/p", "/a/b")
        };
        let hdfs = SourceSpec {
            hdfs: HdfsSpec {
                user: Some("alice".to_owned()),
                config: [(
                    "hadoop.security.authentication".to_owned(),
                    "simple".to_owned(),
                )]
                .into(),
            },
            ..source("hdfs://nn:8020/data", "/")
        };
        for source in [full, hdfs, source("file:///data", "/")] {
            let mut spec = DatasetSpec {
                sources: vec![source],
                ..DatasetSpec::default()
            };
            let origins = check_dataset(&mut spec).unwrap();
            let dataset = v1::Dataset {
                mounts: mounts_of(&spec, origins),
                ..v1::Dataset::default()
            };
            assert_eq!(spec_of(&dataset).unwrap(), spec);
        }
    }

    #[test]
    fn a_wrong_source_is_refused_by_its_number_and_field() {
        let good = || source("s3://bucket/a", "/");
        let patient = SourceSpec {
            patience: Some(Patience(600)),
            endpoint: Some(String::new()),
            ..good()
        };
        for (bad, said) in [
            (source("s4://bucket", "/x"), "spec.sources[1]: origin"),
            (source("bucket", "/x"), "spec.sources[1]: origin"),
            (source("s3://bucket", "/x/../y"), "spec.sources[1].path"),
            (source("s3://bucket", "/x\0"), "spec.sources[1].path"),
            (patient, "spec.sources[1].endpoint: it is empty"),
        ] {
            let error = check(vec![good(), bad]).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
        assert!(
            check(Vec::new())
                .unwrap_err()
                .to_string()
                .contains("needs a source")
        );
        let many = (0..=1000).map(|number| source("s3://b", &format!("/{number}")));
        let error = check(many.collect()).unwrap_err();
        assert!(error.to_string().contains("at most 1000"), "{error}");
    }

    #[test]
    fn the_same_objects_at_the_same_paths_are_refused_and_other_overlaps_are_not() {
        let data = || source("s3://bucket/data", "/");
        for other in [
            source("s3://bucket/data", "/"),
            source("s3://bucket/data/", ""),
            source("s3://bucket/data/train", "/train"),
            source("s3://bucket/data/a/b", "/a/b/"),
        ] {
            for sources in [vec![data(), other.clone()], vec![other.clone(), data()]] {
                let error = check(sources).unwrap_err();
                let error = error.to_string();
                assert!(error.contains("each place once"), "{error}");
                for index in 0..2 {
                    assert!(error.contains(&format!("spec.sources[{index}]")), "{error}");
                }
            }
        }
        let nested = vec![source("file:///data", "/"), source("file:///data/x", "/x")];
        assert!(check(nested).is_err());
        let by = |index: &str| source(&format!("https://h/d/?index={index}"), "/");
        assert!(check(vec![by("a"), by("a")]).is_err());
        check(vec![by("a"), by("b")]).unwrap();
        for other in [
            source("s3://bucket/data", "/copy"),
            source("s3://bucket/data/train", "/other"),
            source("s3://bucket/labels", "/"),
            source("s3://bucket/data2/train", "/train"),
            source("s3://other/data/train", "/train"),
            source("file:///data", "/"),
        ] {
            check(vec![data(), other]).unwrap();
        }
    }

    #[test]
    fn a_dataset_without_a_specification_has_that_of_its_mounts() {
        let dataset = v1::Dataset {
            mounts: vec![v1::MountSpec {
                origin: Some(OriginSpec::parse("s3://bucket/p").unwrap().into()),
                path: "train".to_owned(),
            }],
            ..v1::Dataset::default()
        };
        let spec = spec_of(&dataset).unwrap();
        assert_eq!(spec.sources, [source("s3://bucket/p", "/train")]);
        let newer = v1::Dataset {
            spec: "{\"sources\":[],\"copies\":3}".to_owned(),
            ..v1::Dataset::default()
        };
        assert!(
            spec_of(&newer).is_err(),
            "a field of a newer version is not ignored"
        );
    }
}
