//! Who may use a dataset.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SpecError;
use crate::id::check_namespace;

/// Most namespaces that one dataset lets in.
pub const MAX_NAMESPACES: usize = 64;

/// Who may use a dataset beside its own namespace. Pods are held to it by the node plugin; whoever has a certificate of the cluster
/// mounts what the certificate allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "AccessSpec")]
pub struct Access {
    /// Namespaces of Kubernetes whose pods may mount it, too. Each gets a claim of the dataset's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub namespaces: Vec<String>,
}

impl Access {
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let count = self.namespaces.len();
        if count > MAX_NAMESPACES {
            return Err(SpecError::new(
                "spec.access.namespaces",
                format!("there are {count} namespaces"),
                format!("a dataset lets in at most {MAX_NAMESPACES}"),
            ));
        }
        for (index, namespace) in self.namespaces.iter().enumerate() {
            check_namespace(namespace).map_err(|error| {
                SpecError::new(
                    format!("spec.access.namespaces[{index}]"),
                    error.to_string(),
                    "write the name of a namespace",
                )
            })?;
        }
        Ok(())
    }
}
