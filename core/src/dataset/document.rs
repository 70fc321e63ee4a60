//! A dataset as a document: the shape of a Kubernetes object, whose file `weir apply` and later `kubectl` take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DatasetSpec, SpecError};
use crate::id::DatasetName;

/// One dataset, declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "A dataset of Weir, as weir apply takes it")]
pub struct DatasetDocument {
    /// Version of this format.
    pub api_version: ApiVersion,
    /// What the document declares.
    pub kind: Kind,
    /// What it is called.
    pub metadata: Metadata,
    /// What it is made of.
    pub spec: DatasetSpec,
}

/// The versions of the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The only one today.
    #[default]
    #[serde(rename = "weir.dev/v1alpha1")]
    V1Alpha1,
}

/// What documents may declare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// A dataset.
    #[default]
    Dataset,
}

/// The name of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Name, unique in its namespace: 1 to 63 lower-case letters, digits and `-`, a letter or digit first and last. Datasets
    /// from before this rule keep their names.
    pub name: String,
}

impl DatasetDocument {
    /// The document of a dataset.
    pub fn new(name: &DatasetName, spec: DatasetSpec) -> Self {
        Self {
            api_version: ApiVersion::default(),
            kind: Kind::default(),
            metadata: Metadata {
                name: name.to_string(),
            },
            spec,
        }
    }

    /// The dataset's name.
    pub fn name(&self) -> Result<DatasetName, SpecError> {
        let name = self.metadata.name.parse();
        name.map_err(|error: crate::id::NameError| {
            SpecError::new("metadata.name", error.to_string(), "choose another name")
        })
    }
}
