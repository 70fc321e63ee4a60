//! `Warmup`: data that is to be in the cache before somebody reads it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is to be warmed, once. It cannot be changed: make another Warmup.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "weir.io",
    version = "v1alpha1",
    kind = "Warmup",
    plural = "warmups",
    singular = "warmup",
    shortname = "wwu",
    category = "weir",
    namespaced,
    status = "WarmupStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Brings a Dataset, or some paths of it, into the cache.",
    printcolumn(name = "Dataset", type_ = "string", json_path = ".spec.dataset"),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress",
        description = "Share of the bytes that are cached"
    ),
    printcolumn(name = "Rate", type_ = "string", json_path = ".status.rate"),
    printcolumn(name = "ETA", type_ = "string", json_path = ".status.eta"),
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
pub struct WarmupSpec {
    /// Name of a Dataset of the same namespace.
    #[schemars(length(min = 1, max = 63))]
    pub dataset: String,
    /// Files and directories of it; all of it without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(max = 4096)))]
    pub paths: Vec<String>,
    /// Share of the bytes, in percent, with which it is done; all of them without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<i64>,
    /// Of the domains that hold a copy of the Dataset, only those that lie in one of these: `zone=b`, `group=a/r1` or `node=node-5`.
    #[serde(default, rename = "in", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 300)))]
    pub places: Vec<String>,
    /// And of those only the first so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub copies: Option<i64>,
}

/// How far a Warmup is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmupStatus {
    /// The generation of the specification that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// All of it in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<WarmupPhase>,
    /// What it waits for, or what is wrong; none if nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The master's job, and when that was started, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<i64>,
    /// When the job was started, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_started_ns: Option<i64>,
    /// The snapshot that is warmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<i64>,
    /// Bytes that are to be cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<i64>,
    /// Bytes that are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<i64>,
    /// Bytes of them that came from the origin; the others were cached before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_bytes: Option<i64>,
    /// Files that could not be fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_files: Option<i64>,
    /// Share of the bytes that are cached, such as `42%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Bytes that came from the origin in a second, on average, such as `120MiB/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Time until it is done, at the rate at which it went so far, such as `3m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::conditions::time_schema")]
    pub finished: Option<Time>,
    /// What is true of it: `Complete`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions::list_schema")]
    pub conditions: Vec<Condition>,
}

/// A Warmup in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WarmupPhase {
    /// It waits for its Dataset, or for the master.
    Pending,
    /// Workers fetch.
    Running,
    /// It is as warm as was asked for.
    Done,
    /// Something could not be fetched, or it makes no sense.
    Failed,
}

impl WarmupPhase {
    /// Whether nothing follows any more.
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}
