//! A dataset as a document: the shape of a Kubernetes object, whose file `weir apply` and later `kubectl` take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DatasetSpec, SpecError};
use crate::id::{DEFAULT_NAMESPACE, DatasetName, NameError, check_namespace};

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
    #[serde(rename = "weir.io/v1alpha1")]
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
    /// Namespace: the same name in two namespaces is two datasets. The rule for its name is that for names.
    #[serde(default = "default_namespace", skip_serializing_if = "is_default")]
    pub namespace: String,
}

fn default_namespace() -> String {
    DEFAULT_NAMESPACE.to_owned()
}

fn is_default(namespace: &str) -> bool {
    namespace == DEFAULT_NAMESPACE
}

impl ApiVersion {
    /// The version that documents are written in.
    pub const NEWEST: &str = "weir.io/v1alpha1";
}

impl DatasetDocument {
    /// The document of a dataset.
    pub fn new(name: &DatasetName, spec: DatasetSpec) -> Self {
        Self {
            api_version: ApiVersion::default(),
            kind: Kind::default(),
            metadata: Metadata {
                name: name.name().to_owned(),
                namespace: name.namespace().to_owned(),
            },
            spec,
        }
    }

    /// The dataset's name.
    pub fn name(&self) -> Result<DatasetName, SpecError> {
        let Metadata { name, namespace } = &self.metadata;
        let wrong = |field: &str, error: NameError| {
            let remedy = if name.contains('/') && field == "metadata.name" {
                "write the namespace as metadata.namespace, and the name alone as metadata.name"
            } else {
                "choose another name"
            };
            SpecError::new(field, error.to_string(), remedy)
        };
        check_namespace(namespace).map_err(|error| wrong("metadata.namespace", error))?;
        DatasetName::in_namespace(namespace, name).map_err(|error| wrong("metadata.name", error))
    }
}
