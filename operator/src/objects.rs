//! The kinds of objects of the group `weir.io`, and their definitions as the chart has them.

mod conditions;
#[allow(
    clippy::duplicated_attributes,
    reason = "each column has a name and a path"
)]
mod dataset;
mod finalizers;
#[allow(
    clippy::duplicated_attributes,
    reason = "each column has a name and a path"
)]
mod pool;
mod schema;
#[allow(
    clippy::duplicated_attributes,
    reason = "each column has a name and a path"
)]
mod warmup;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub(crate) use conditions::{Conditions, Is};
pub use dataset::{Dataset, DatasetStatus, KubernetesSpec, Phase};
pub(crate) use dataset::{Refreshed, StoredSecret};
pub(crate) use finalizers::{hold, let_go};
pub(crate) use pool::{
    Autoscaling, Leaving, LeavingReason, PoolToleration, Scaling, ScheduledSize, SsdTier, Trend,
    UpdateStrategy, ZONE_LABEL,
};
pub use pool::{CachePool, CachePoolSpec, CachePoolStatus, PoolPhase};
pub use warmup::{Warmup, WarmupPhase, WarmupSpec, WarmupStatus};

/// Prefix of all labels and annotations.
macro_rules! key {
    ($name:literal) => {
        concat!("weir.io/", $name)
    };
}

/// Holds a Dataset until all that was made of it is gone.
pub(crate) const FINALIZER: &str = key!("dataset");
/// Holds a Warmup until its job is ended.
pub(crate) const WARMUP_FINALIZER: &str = key!("warmup");
/// Label of volumes and claims: the Dataset's name, and its namespace.
pub(crate) const DATASET_LABEL: &str = key!("dataset");
pub(crate) const NAMESPACE_LABEL: &str = key!("dataset-namespace");
/// Label of what the operator makes.
pub(crate) const MANAGED_LABEL: &str = "app.kubernetes.io/managed-by";
pub(crate) const MANAGED_BY: &str = "weir-operator";
/// Annotation of a Dataset: at each new value its sources are listed again.
pub(crate) const REFRESH_ANNOTATION: &str = key!("refresh");
/// Annotation of a pod or a Dataset: `preferred`, `required` or `off`.
pub(crate) const AFFINITY_ANNOTATION: &str = key!("affinity");
/// Annotation of a pod: the share of its datasets that is to be cached before it runs, and how long it waits for that at most.
pub(crate) const WAIT_ANNOTATION: &str = key!("wait-for");
pub(crate) const TIMEOUT_ANNOTATION: &str = key!("wait-timeout");
/// The scheduling gate of a pod that waits, and the label by which those are found.
pub(crate) const GATE: &str = key!("data");
pub(crate) const GATED_LABEL: &str = key!("waits-for-data");
/// Annotation of a pod that was given terms: the datasets that they are for.
pub(crate) const PLACED_ANNOTATION: &str = key!("placed-by");

/// Label of a CachePool's workload and pods: its name.
pub(crate) const POOL_LABEL: &str = key!("cache-pool");
/// Annotations of a worker's pod, for whoever makes its certificate: the labels of nodes whose values are its zone and its group, and
/// the pool that Datasets name.
pub(crate) const ZONE_LABEL_ANNOTATION: &str = key!("zone-label");
pub(crate) const GROUP_LABEL_ANNOTATION: &str = key!("group-label");
pub(crate) const POOL_ANNOTATION: &str = key!("pool");
/// And the largest cache that it may claim, as sizes with `+` between them.
pub(crate) const WEIGHT_ANNOTATION: &str = key!("max-weight");

/// The definitions of all kinds, each with the name of its file in the chart's `crds/`.
pub fn definitions() -> Vec<(String, CustomResourceDefinition)> {
    let of = |definition: CustomResourceDefinition| {
        let definition = schema::structural(definition);
        let names = &definition.spec.names;
        (format!("{}.yaml", names.plural), definition)
    };
    vec![of(Dataset::crd()), of(Warmup::crd()), of(CachePool::crd())]
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// The variable with which the test writes the files.
    const WRITE: &str = "WEIR_WRITE_SCHEMA";

    fn kept(file: &str) -> PathBuf {
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weir/crds");
        crds.join(file)
    }

    #[test]
    fn the_definitions_in_the_chart_are_those_of_the_types() {
        for (file, definition) in definitions() {
            let yaml =
                serde_saphyr::to_string(&serde_json::to_value(&definition).unwrap()).unwrap();
            let text =
                format!("# Generated from operator/src/objects: `make schema` writes it.\n{yaml}");
            let path = kept(&file);
            if std::env::var_os(WRITE).is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                kept == text,
                "deploy/helm/weir/crds/{file} is not that of the type any more: `make schema` writes it"
            );
        }
    }
}
