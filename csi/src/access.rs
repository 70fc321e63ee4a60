//! Which pods may mount a dataset: those of its own namespace, and of the namespaces that it lets in.

use weir_core::DatasetName;

use crate::error::CsiError;

/// Fails unless a pod of `namespace` may mount the dataset. `granted` are the namespaces that the dataset lets in beside its
/// own.
pub fn check(namespace: &str, dataset: &DatasetName, granted: &[String]) -> Result<(), CsiError> {
    if dataset.namespace() == namespace || granted.iter().any(|granted| granted == namespace) {
        return Ok(());
    }
    Err(CsiError::Denied(format!(
        "dataset {} does not let in pods of the namespace {namespace}; use a dataset of {namespace}",
        shown(dataset)
    )))
}

/// The name with its namespace, as users of Kubernetes know it.
pub(crate) fn shown(dataset: &DatasetName) -> String {
    format!("{}/{}", dataset.namespace(), dataset.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_mounts_what_is_of_its_namespace_or_lets_it_in() {
        let of = |name: &str| name.parse::<DatasetName>().unwrap();
        assert!(check("team-a", &of("team-a/x"), &[]).is_ok());
        assert!(check("default", &of("x"), &[]).is_ok());
        for (namespace, dataset) in [("team-b", "team-a/x"), ("team-a", "x"), ("", "x")] {
            let error = check(namespace, &of(dataset), &[]).unwrap_err();
            assert!(matches!(error, CsiError::Denied(_)), "{error}");
        }
        assert!(check("team-b", &of("team-a/x"), &["team-b".to_owned()]).is_ok());
    }
}
