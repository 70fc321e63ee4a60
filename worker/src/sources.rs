//! What datasets are made of, by which requests that name them are checked.
//!
//! A request on the block stream names a dataset, an origin and a key. Only keys that the dataset can have are read: below
//! one of its sources, and such that a file of the dataset has them. Whoever may read one dataset can so read no other,
//! nor what lies beside them in the same bucket.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use weir_core::keypath::{KeyPath, classify};
use weir_core::{LogLimit, OriginId};
use weir_proto::v1;
use weir_trust::Caller;

/// Least time between two lines about refused requests in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Datasets of one object that are looked at.
const MAX_DATASETS: usize = 16;

/// The sources of all datasets.
#[derive(Debug, Default)]
pub(crate) struct DatasetSources {
    by_dataset: HashMap<Arc<str>, Box<[Source]>>,
    /// The datasets of each origin, in the order of their names.
    by_origin: HashMap<u64, Vec<Arc<str>>>,
}

/// An origin, and what all keys of a dataset begin with there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    origin: u64,
    prefix: Box<str>,
}

/// Sources in a file.
type Kept = Vec<(u64, String)>;

/// Whether a dataset has a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claim {
    /// It may be one of its files.
    Inside,
    /// It is not below any of its sources.
    Outside,
    /// There is no such dataset.
    Unknown,
}

impl DatasetSources {
    /// The table that a master sends.
    pub(crate) fn of_reply(datasets: Vec<v1::DatasetSources>) -> Self {
        let table = datasets.into_iter().map(|dataset| {
            let sources = dataset.sources.into_iter().map(|source| Source {
                origin: source.origin,
                prefix: source.prefix.into(),
            });
            (dataset.dataset, outermost(sources.collect()))
        });
        Self::new(table)
    }

    fn new(table: impl Iterator<Item = (String, Box<[Source]>)>) -> Self {
        let table = table.map(|(dataset, sources)| (Arc::from(dataset), sources));
        let by_dataset: HashMap<Arc<str>, _> = table.collect();
        let mut by_origin: HashMap<u64, Vec<Arc<str>>> = HashMap::new();
        for (dataset, sources) in &by_dataset {
            for source in sources {
                by_origin
                    .entry(source.origin)
                    .or_default()
                    .push(dataset.clone());
            }
        }
        for datasets in by_origin.values_mut() {
            datasets.sort_unstable();
            datasets.dedup();
        }
        Self {
            by_dataset,
            by_origin,
        }
    }

    /// The table as it is kept over a restart.
    pub(crate) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let source = |source: &Source| (source.origin, source.prefix.to_string());
        let rows = self.by_dataset.iter().map(|(dataset, sources)| {
            let sources: Kept = sources.iter().map(source).collect();
            (&**dataset, sources)
        });
        serde_json::to_vec(&rows.collect::<Vec<_>>())
    }

    /// The table that was kept.
    pub(crate) fn of_json(json: &[u8]) -> serde_json::Result<Self> {
        let rows: Vec<(String, Kept)> = serde_json::from_slice(json)?;
        let table = rows.into_iter().map(|(dataset, sources)| {
            let sources = sources.into_iter().map(|(origin, prefix)| Source {
                origin,
                prefix: prefix.into(),
            });
            (dataset, outermost(sources.collect()))
        });
        Ok(Self::new(table))
    }

    /// The datasets that may have a key of an origin, in the order of their names, which is that of all workers. Of many the
    /// first ones.
    pub(crate) fn datasets_of(&self, origin: OriginId, key: &str) -> Vec<Arc<str>> {
        let names = self.by_origin.get(&origin.0).into_iter().flatten();
        let inside = names.filter(|name| self.claim(name, origin, key) == Claim::Inside);
        inside.take(MAX_DATASETS).cloned().collect()
    }

    /// The datasets that may have keys of this one: itself, and those of which a source is below one of its, or above.
    pub(crate) fn overlapping(&self, dataset: &str) -> Vec<Arc<str>> {
        let sources = self.by_dataset.get(dataset).into_iter().flatten();
        let mut names = HashSet::from([Arc::from(dataset)]);
        for source in sources {
            let others = self.by_origin.get(&source.origin).into_iter().flatten();
            let others = others.filter(|name| {
                let mut theirs = self.by_dataset[*name].iter();
                theirs.any(|other| {
                    other.origin == source.origin
                        && (other.prefix.starts_with(&*source.prefix)
                            || source.prefix.starts_with(&*other.prefix))
                })
            });
            names.extend(others.cloned());
        }
        names.into_iter().collect()
    }

    /// Whether a key of an origin is one that the dataset may have.
    pub(crate) fn claim(&self, dataset: &str, origin: OriginId, key: &str) -> Claim {
        let Some(sources) = self.by_dataset.get(dataset) else {
            return Claim::Unknown;
        };
        // None is below another, so only the last before the key can be above it.
        let place = |source: &Source| (source.origin, &*source.prefix) <= (origin.0, key);
        let before = sources.partition_point(place).checked_sub(1);
        let rest = before.and_then(|at| {
            let source = &sources[at];
            let rest = key.strip_prefix(&*source.prefix)?;
            (source.origin == origin.0).then_some(rest)
        });
        match rest.map(|rest| classify(rest.as_bytes(), 1)) {
            Some(Ok(KeyPath::File(_))) => Claim::Inside,
            _ => Claim::Outside,
        }
    }
}

/// The sources in order, without those that are below another.
fn outermost(mut sources: Vec<Source>) -> Box<[Source]> {
    sources.sort();
    sources.dedup_by(|later, earlier| {
        later.origin == earlier.origin && later.prefix.starts_with(&*earlier.prefix)
    });
    sources.into()
}

/// Tells the operator of requests that were refused, but not of each: whoever makes them can make many.
#[derive(Debug)]
pub(crate) struct Refusals(LogLimit);

impl Default for Refusals {
    fn default() -> Self {
        Self(LogLimit::new(1, LOG_INTERVAL))
    }
}

impl Refusals {
    /// Whether a line could be written now, as if this were one.
    #[cfg(test)]
    pub(crate) fn has_line(&self) -> bool {
        self.0.line().is_some()
    }

    /// Notes a request that was refused.
    pub(crate) fn note(&self, from: &Caller, dataset: &str, origin: OriginId, key: &str) {
        let Some(left_out) = self.0.line() else {
            return;
        };
        let refused = left_out + 1;
        let key: String = key.chars().take(200).flat_map(char::escape_debug).collect();
        let dataset: String = dataset
            .chars()
            .take(200)
            .flat_map(char::escape_debug)
            .collect();
        tracing::warn!(
            %from, dataset, %origin, key, refused,
            "a request was refused: its dataset has no such object"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(datasets: &[(&str, &[(u64, &str)])]) -> DatasetSources {
        let datasets = datasets.iter().map(|(name, sources)| {
            let sources = sources.iter().map(|(origin, prefix)| v1::Source {
                origin: *origin,
                prefix: (*prefix).to_owned(),
            });
            v1::DatasetSources {
                dataset: (*name).to_owned(),
                sources: sources.collect(),
                placement: None,
                former: Vec::new(),
            }
        });
        DatasetSources::of_reply(datasets.collect())
    }

    #[test]
    fn a_key_is_a_dataset_s_if_it_is_below_a_source_and_a_file_may_have_it() {
        let nested = [
            (1, "a/b/"),
            (1, "a/"),
            (1, "a/bc/"),
            (2, ""),
            (3, "x/"),
            (1, "z/"),
        ];
        let table = table(&[("one", &[(1, "a/b/")]), ("many", &nested), ("none", &[])]);
        let claim = |dataset: &str, origin, key: &str| table.claim(dataset, OriginId(origin), key);
        for (dataset, origin, key) in [
            ("one", 1, "a/b/file"),
            ("one", 1, "a/b/c/file"),
            ("many", 1, "a/b/file"),
            ("many", 1, "a/zz/file"),
            ("many", 1, "a/bc/file"),
            ("many", 1, "z/file"),
            ("many", 2, "anything/at/all"),
            ("many", 3, "x/é"),
        ] {
            assert_eq!(
                claim(dataset, origin, key),
                Claim::Inside,
                "{dataset} {origin} {key}"
            );
        }
        let long = format!("a/b/{}", "x".repeat(60_000));
        for (dataset, origin, key) in [
            ("one", 1, "a/bc/file"),
            ("one", 1, "a/bfile"),
            ("one", 1, "a/b"),
            ("one", 1, "a/b/"),
            ("one", 1, "a/c/file"),
            ("one", 1, "b/file"),
            ("one", 1, ""),
            ("one", 2, "a/b/file"),
            ("one", 0, "a/b/file"),
            ("one", 1, "a/b/../../secret"),
            ("one", 1, "a/b/./file"),
            ("one", 1, "a/b//file"),
            ("one", 1, "a/b/fi\0le"),
            ("one", 1, &long),
            ("many", 1, "b/file"),
            ("many", 2, ""),
            ("many", 2, "/etc/shadow"),
            ("many", 2, "../etc/shadow"),
            ("many", 3, "y/file"),
            ("none", 1, "a/b/file"),
        ] {
            assert_eq!(
                claim(dataset, origin, key),
                Claim::Outside,
                "{dataset} {origin} {key:?}"
            );
        }
        for dataset in ["two", "", "one@1", "ONE"] {
            assert_eq!(claim(dataset, 1, "a/b/file"), Claim::Unknown, "{dataset}");
        }
    }

    #[test]
    fn an_object_is_asked_for_by_the_names_of_its_datasets_in_one_order() {
        let all = table(&[
            ("c", &[(1, "a/")]),
            ("b", &[(1, "a/b/"), (1, "x/"), (2, "")]),
            ("a", &[(1, "z/")]),
            ("none", &[]),
        ]);
        let json = all.to_json().unwrap();
        for table in [all, DatasetSources::of_json(&json).unwrap()] {
            let of = |origin, key| -> Vec<String> {
                let names = table.datasets_of(OriginId(origin), key).into_iter();
                names.map(|name| name.to_string()).collect()
            };
            assert_eq!(of(1, "a/b/file"), ["b", "c"]);
            assert_eq!(of(1, "a/file"), ["c"]);
            assert_eq!(of(2, "a/file"), ["b"]);
            assert!(of(3, "a/file").is_empty());
        }
        let names: Vec<String> = (0..1000).map(|n| format!("d{n}")).collect();
        let many: Vec<(&str, &[(u64, &str)])> =
            names.iter().map(|name| (&**name, &[(1, "")][..])).collect();
        assert_eq!(
            table(&many).datasets_of(OriginId(1), "a").len(),
            MAX_DATASETS
        );
    }

    #[test]
    fn datasets_overlap_where_a_source_is_below_another() {
        let table = table(&[
            ("all", &[(1, "")]),
            ("below", &[(1, "a/b/"), (2, "x/")]),
            ("beside", &[(1, "c/")]),
            ("elsewhere", &[(3, "a/b/")]),
        ]);
        let of = |name: &str| {
            let mut names = table.overlapping(name);
            names.sort();
            names.join(" ")
        };
        assert_eq!(of("all"), "all below beside");
        assert_eq!(of("below"), "all below");
        assert_eq!(of("elsewhere"), "elsewhere");
        assert_eq!(of("unknown"), "unknown");
    }

    #[test]
    fn a_prefix_may_be_what_no_file_s_name_is() {
        let table = table(&[("odd", &[(1, "a//../b/")])]);
        let claim = |key: &str| table.claim("odd", OriginId(1), key);
        assert_eq!(claim("a//../b/file"), Claim::Inside);
        assert_eq!(claim("a//../b/../file"), Claim::Outside);
        assert_eq!(claim("b/file"), Claim::Outside);
    }

    #[test]
    fn the_table_survives_its_file() {
        let before = table(&[("one", &[(u64::MAX, "a/b/")])]);
        let json = before.to_json().unwrap();
        let after = DatasetSources::of_json(&json).unwrap();
        assert_eq!(
            after.claim("one", OriginId(u64::MAX), "a/b/c"),
            Claim::Inside
        );
        assert_eq!(after.claim("one", OriginId(1), "a/b/c"), Claim::Outside);
    }

    #[test]
    fn of_many_refusals_few_are_told() {
        let refusals = Refusals::default();
        let caller = Caller::Local { uid: 65_534 };
        for _ in 0..1000 {
            refusals.note(&caller, "set", OriginId(1), "key");
        }
        assert_eq!(refusals.0.left_out(), 999);
    }
}
