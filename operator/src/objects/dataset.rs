//! `Dataset`: the specification of `weir apply` as an object of Kubernetes, and what is known of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_core::DatasetSpec;

/// What is made of a Dataset: what `weir apply` takes.
///
/// `credentials` of a source names a Secret of the Dataset's namespace.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weir.io",
    version = "v1alpha1",
    kind = "Dataset",
    plural = "datasets",
    singular = "dataset",
    shortname = "wds",
    category = "weir",
    namespaced,
    status = "DatasetStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Training data of object stores, HDFS or web servers, which pods mount by the claim of its name.",
    printcolumn(
        name = "Snapshot",
        type_ = "integer",
        json_path = ".status.snapshot",
        description = "Number of the newest snapshot"
    ),
    printcolumn(name = "Files", type_ = "integer", json_path = ".status.files"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(
        name = "Cached",
        type_ = "string",
        json_path = ".status.cached",
        description = "Share of the newest snapshot that workers hold"
    ),
    printcolumn(
        name = "Hit-Ratio",
        type_ = "string",
        json_path = ".status.hitRatio",
        description = "Share of the read bytes that came from the cache"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesSpec {
    /// What the data is, as everywhere.
    #[serde(flatten)]
    pub dataset: DatasetSpec,
}

/// What is known of a Dataset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetStatus {
    /// The generation of the specification that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// All of it in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What it waits for, or what is wrong; none if nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Number of the newest snapshot. Numbers are never used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<i64>,
    /// Its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<i64>,
    /// Its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Its bytes, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Share of its bytes that at least one worker holds, such as `87%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<String>,
    /// Share of the bytes that were read which came from the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<String>,
    /// Objects of the sources that it does not show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<i64>,
    /// The last refresh that was asked for by the annotation `weir.io/refresh`, and is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refreshed: Option<Refreshed>,
    /// Secrets that the master was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<StoredSecret>,
    /// Namespaces in which it has a volume and a claim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// What is true of it: `Ready`, `Accepted`, `CredentialsReady`, `Listed`, `VolumeReady`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions::list_schema")]
    pub conditions: Vec<Condition>,
}

/// A refresh that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refreshed {
    /// The annotation's value.
    pub request: String,
    /// What came of it.
    pub outcome: String,
}

/// A Secret as the master was given it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoredSecret {
    /// Its name.
    pub name: String,
    /// Its resource version then.
    pub version: String,
}

/// A Dataset in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It was not looked at, or the master is not there to be asked.
    Pending,
    /// Its sources are being listed for the first time.
    Listing,
    /// Pods can use it.
    Ready,
    /// Pods can use it as it was; what it is to be has failed.
    Degraded,
    /// Pods cannot use it, and something must be changed first.
    Failed,
    /// It was deleted, and what was made of it goes.
    Deleting,
}
