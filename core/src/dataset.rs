//! What a dataset is declared to be, in one type for all who say it: files of `weir apply`, the API, the master's store,
//! and later the Kubernetes object.
//!
//! A field exists when it works, and one that is not known is an error. [`DatasetSpec::check`] says what is wrong with the
//! values as far as nobody must be asked and no origin be known; what a URL may be is the origin layer's to say.

mod access;
mod document;
mod filter;
mod patience;
mod refresh;
mod written;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use access::{Access, MAX_NAMESPACES};
pub use document::{ApiVersion, DatasetDocument, Kind, Metadata};
pub use filter::{MAX_GLOBS, SourceFilter};
pub use patience::Patience;
pub use refresh::{Interval, Refresh};

pub use crate::suggest::{did_you_mean, nearest};

use crate::id::DatasetName;
use crate::keypath;
use crate::placement::choice::Wanted;

/// Most sources of one dataset.
pub const MAX_SOURCES: usize = 1_000;
/// Longest specification, as JSON, in bytes: the master keeps each in memory.
pub const MAX_SPEC: usize = 1 << 20;
/// Longest path of a source inside its dataset, in bytes.
const MAX_PATH: usize = 4096;

/// What is wrong with a specification, and what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {remedy}")]
pub struct SpecError {
    /// The field, as in `spec.sources[0].path`.
    pub field: String,
    /// What is wrong with its value.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

impl SpecError {
    /// An error of one field.
    pub fn new(
        field: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// An error of a field of one source.
    pub fn of_source(
        index: usize,
        field: &str,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(format!("spec.sources[{index}].{field}"), problem, remedy)
    }
}

/// What a dataset is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DatasetSpec {
    /// Where the data comes from: 1 to 1000 sources, which together make one tree. Of two files at the same path the one of
    /// the source that is named first is shown.
    #[schemars(length(min = 1, max = 1000))]
    pub sources: Vec<SourceSpec>,
    /// Which workers hold it: what suits its size, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Wanted>,
    /// Who may use it beside its own namespace: nobody, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// When its sources are listed again by themselves: never, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refresh>,
}

/// One place that data comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceSpec {
    /// The place, such as `s3://bucket/prefix`, `hdfs://namenode:port/dir` or `file:///dir`. Taken literally: nothing in it is percent-decoded. Cannot be
    /// changed.
    pub url: String,
    /// Directory of the dataset in which the source appears. Cannot be changed.
    #[serde(default = "root", skip_serializing_if = "is_root")]
    pub path: String,
    /// URL of an S3-compatible service; AWS without one. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Region of the bucket; `us-east-1` without one, corrected by what the service answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where the bucket's name goes in requests.
    #[serde(default, skip_serializing_if = "is_default")]
    pub addressing: Addressing,
    /// Send requests without a signature, for public buckets.
    #[serde(default, skip_serializing_if = "is_default")]
    pub anonymous: bool,
    /// Profile of `~/.aws/config` and `~/.aws/credentials` of each process that reads the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Name of credentials that the master keeps, in the namespace of the dataset (`weir credentials set`). No others are used then.
    /// Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// How long a read waits for a source that fails or is silent before it is an error: a number and `s`, `m` or `h`, from
    /// `1s` to `24h`; 30s without one, and 10m for HDFS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<Patience>,
    /// Globs of which a file's path inside the source must match one to be part of the dataset; all files without any. `*`
    /// and `?` match no `/`, `**` does, as in `**/*.jpg`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub include: Vec<String>,
    /// Globs of which a file's path inside the source must match none, also if it is included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub exclude: Vec<String>,
    /// How a cluster of HDFS is reached.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hdfs: HdfsSpec,
}

/// What a reader of HDFS needs to know. Readers have no Hadoop configuration of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HdfsSpec {
    /// Who reads, where the cluster believes what a client says; the user of the reading process without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Options of Hadoop's client, by their names in `hdfs-site.xml` and `core-site.xml`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
}

/// How a bucket is put into a request's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Addressing {
    /// Path style with an endpoint, virtual-hosted without.
    #[default]
    Auto,
    /// `http://host/bucket/key`.
    Path,
    /// `http://bucket.host/key`.
    Virtual,
}

fn root() -> String {
    "/".to_owned()
}

fn is_root(path: &str) -> bool {
    path == "/"
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl DatasetSpec {
    /// Checks what can be judged without knowing the origins, and puts paths into their one form: `/a/b`.
    pub fn check(&mut self) -> Result<(), SpecError> {
        let count = self.sources.len();
        if count == 0 {
            return Err(SpecError::new(
                "spec.sources",
                "a dataset needs a source",
                "write for instance `- url: s3://bucket/prefix`",
            ));
        }
        if count > MAX_SOURCES {
            return Err(SpecError::new(
                "spec.sources",
                format!("there are {count} sources"),
                format!("a dataset has at most {MAX_SOURCES}; make several datasets"),
            ));
        }
        for (index, source) in self.sources.iter_mut().enumerate() {
            source.check(index)?;
        }
        if let Some(access) = &self.access {
            access.check()?;
        }
        let length = self.to_json().len();
        if length > MAX_SPEC {
            return Err(SpecError::new(
                "spec",
                format!("it is {length} bytes long"),
                format!("a dataset takes at most {MAX_SPEC}; make several datasets"),
            ));
        }
        Ok(())
    }

    /// Has sources name credentials of the dataset's own namespace without it, which is their one form.
    pub fn shorten_credentials(&mut self, dataset: &DatasetName) {
        for source in &mut self.sources {
            if let Some(name) = &mut source.credentials
                && let Some((namespace, bare)) = name.split_once('/')
                && namespace == dataset.namespace()
            {
                *name = bare.to_owned();
            }
        }
    }

    /// As it is stored and sent.
    pub fn to_json(&self) -> String {
        // Strings, lists of strings and flags, which JSON can always hold.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what [`Self::to_json`] wrote.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }
}

impl SourceSpec {
    fn check(&mut self, index: usize) -> Result<(), SpecError> {
        let wrong = |field: &str, problem: String, remedy: &str| {
            Err(SpecError::of_source(index, field, problem, remedy))
        };
        for (field, text) in [
            ("endpoint", &self.endpoint),
            ("region", &self.region),
            ("profile", &self.profile),
        ] {
            if text.as_ref().is_some_and(String::is_empty) {
                return wrong(field, "it is empty".to_owned(), "leave the field out");
            }
        }
        if self.path.len() > MAX_PATH {
            return wrong(
                "path",
                format!("it is {} bytes long", self.path.len()),
                "a path has at most 4096",
            );
        }
        match keypath::parse_path(&self.path) {
            Ok(components) => self.path = format!("/{}", components.join("/")),
            Err(reason) => {
                return wrong(
                    "path",
                    format!("{:?} is not a path ({reason})", self.path),
                    "write names separated by `/`, as in /train",
                );
            }
        }
        SourceFilter::new(&self.include, &self.exclude)
            .map(|_| ())
            .map_err(|error| SpecError::of_source(index, &error.field, error.problem, error.remedy))
    }

    /// The path as manifests have it: without slashes around it, empty for the root.
    pub fn path_in_manifest(&self) -> &str {
        self.path.trim_matches('/')
    }
}

#[cfg(test)]
mod tests;
