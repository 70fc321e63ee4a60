//! `CachePool`: workers of one kind, on the nodes that it chooses.
//!
//! It is the cluster's and not a namespace's, since its pods run on the cluster's nodes as root, with their disks: who may make one
//! is an administrator of the cluster in any case, and there is no namespace in which one would be overlooked.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Label of nodes with their zone, unless a pool names another one.
pub(crate) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The workers of a pool.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "weir.io",
    version = "v1alpha1",
    kind = "CachePool",
    plural = "cachepools",
    singular = "cachepool",
    shortname = "wcp",
    category = "weir",
    status = "CachePoolStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Workers, which keep blocks of Datasets on the nodes that it chooses.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.workers",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Wanted",
        type_ = "integer",
        json_path = ".status.wanted",
        description = "Workers that there are to be"
    ),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.ready"),
    printcolumn(
        name = "Capacity",
        type_ = "string",
        json_path = ".status.capacity",
        description = "What its workers can keep"
    ),
    printcolumn(
        name = "Used",
        type_ = "string",
        json_path = ".status.used",
        description = "Share of that which is in use"
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
pub struct CachePoolSpec {
    /// Workers; one on every node that fits, without it. Not more than one is on a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: Option<i32>,
    /// Labels of nodes that fit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that fit all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<PoolToleration>,
    /// Where a worker keeps blocks.
    #[serde(default)]
    pub tiers: Tiers,
    /// What a worker asks of its node. The memory of the limit is to be larger than the tier by a GiB or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<PoolResources>,
    /// The pool that Datasets name in `placement.pool`; without it the workers are for those that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub pool: Option<String>,
    /// Label of nodes whose value is the zone of a worker there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub zone_label: Option<String>,
    /// Label of nodes whose value is the group of a worker there, inside of its zone: the rack or the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub group_label: Option<String>,
    /// Image of the workers; that of the installation without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub image: Option<String>,
    /// More flags of `weir worker`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1000)))]
    pub args: Vec<String>,
    /// How workers are replaced when something of them has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<PoolUpdate>,
    /// Sizes from certain times on, in place of `replicas`. With `autoscaling` they are the least size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub schedule: Vec<ScheduledSize>,
    /// Sizes that follow from what is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
}

impl CachePoolSpec {
    /// The label of nodes whose value is a worker's zone; none if a flag says the zone.
    pub(crate) fn zone_of_nodes(&self) -> Option<&str> {
        let label = self.zone_label.as_deref().unwrap_or(ZONE_LABEL);
        (!self.has_flag("--zone")).then_some(label)
    }

    /// The one whose value is its group; none if a flag says the group, or if it has none.
    pub(crate) fn group_of_nodes(&self) -> Option<&str> {
        let label = self.group_label.as_deref();
        label.filter(|_| !self.has_flag("--group"))
    }

    /// Whether its workers are given a flag beside those of the other fields.
    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.args.iter().any(|arg| arg.starts_with(flag))
    }
}

/// Where a worker keeps blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tiers {
    /// Size of the tier in memory, such as `4GiB`; what `weir worker` takes of the node's, without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Directories of the nodes' disks; without any, a fifth of what is free where the installation's workers are, and 100 GiB at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ssd: Vec<SsdTier>,
    /// Free space of the disks that is left to others, such as `50GiB` or `20%`; what the installation's workers leave, without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<String>,
}

/// A directory of a node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SsdTier {
    /// The directory, such as `/mnt/nvme0/weir`; one in the directory of the installation's workers, without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 1000))]
    pub path: Option<String>,
    /// How much of it may be used, such as `1TiB`.
    pub size: String,
}

/// A taint that is tolerated, as in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolToleration {
    /// Key of the taint; any without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `Equal` or `Exists`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// Value of the taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`; any without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// For how long a taint with `NoExecute` is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// Resources of a worker's container, as in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolResources {
    /// What it is sure to get.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
    /// What it never gets more of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
}

/// How workers are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolUpdate {
    /// When.
    #[serde(default)]
    pub strategy: UpdateStrategy,
    /// How many may be away at once while they are replaced, of a pool with a worker on every node; one without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_unavailable: Option<i32>,
}

/// When workers are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpdateStrategy {
    /// One after the other.
    #[default]
    RollingUpdate,
    /// When somebody deletes their pods.
    OnDelete,
}

/// A size from a time on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduledSize {
    /// When it begins, as in a crontab: minute, hour, day of month, month, day of week. It lasts until the next one of the schedule
    /// begins.
    #[schemars(length(min = 9, max = 200))]
    pub cron: String,
    /// Time zone of `cron`, such as `Asia/Shanghai`; UTC without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub time_zone: Option<String>,
    /// Workers.
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: i32,
}

/// Bounds and aims of a size that follows from what is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    /// Least workers.
    #[schemars(range(min = 1, max = 10_000))]
    pub min_replicas: i32,
    /// Most workers.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_replicas: i32,
    /// Share of the Datasets' bytes, in percent, that is to be cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub cached_percent: Option<i32>,
    /// Share of the bytes that are read, in percent, that is to come from the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub hit_percent: Option<i32>,
    /// For how long something must be so before a worker is added or taken away, and the least time between two such steps; 300
    /// without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 86_400))]
    pub stabilization_seconds: Option<i32>,
}

/// How a pool is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CachePoolStatus {
    /// The generation of the specification that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// All of it in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<PoolPhase>,
    /// What it waits for, or what is wrong; none if nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Nodes that fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i32>,
    /// Workers that there are to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<i32>,
    /// Pods of workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<i32>,
    /// Those of them that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<i32>,
    /// Bytes that its workers can keep: on their disks, or in memory if they have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// That, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<String>,
    /// Bytes that they keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<i64>,
    /// Share of the bytes that is in use, such as `87%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// Selects the pods of its workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// What the size followed from last, of a pool with `autoscaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// Workers whose blocks the others take over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<Leaving>,
    /// What is true of it: `Ready`, `Accepted`, `NodesFit`, `Drained`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions::list_schema")]
    pub conditions: Vec<Condition>,
}

/// The state of autoscaling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scaling {
    /// The size.
    pub size: i32,
    /// Where it tends to.
    #[serde(default)]
    pub trend: Trend,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::conditions::time_schema")]
    pub since: Option<Time>,
    /// When the size was changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::conditions::time_schema")]
    pub changed: Option<Time>,
    /// Why it tends there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Where the size of a pool tends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Trend {
    /// It is right.
    #[default]
    Stay,
    /// More workers.
    Out,
    /// Fewer.
    In,
}

/// A worker that is to go, or whose node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Leaving {
    /// Its name at the master, which is that of its node.
    pub worker: String,
    /// Why it goes.
    #[serde(default)]
    pub why: LeavingReason,
    /// The master's job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<i64>,
    /// Bytes that others have taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<i64>,
    /// When the last of them were, or when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::conditions::time_schema")]
    pub at: Option<Time>,
    /// Why the others could not take over its blocks; none while they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Somebody had cordoned it before, and it stays so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_cordoned: bool,
}

/// Why a worker goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LeavingReason {
    /// The pool is to be smaller.
    #[default]
    ScaleIn,
    /// Its node is cordoned.
    NodeCordoned,
}

/// A pool in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PoolPhase {
    /// Its workers are being started.
    Pending,
    /// All workers are ready.
    Ready,
    /// It gets larger, or a worker is about to go.
    Scaling,
    /// Some workers are ready, and something is wrong.
    Degraded,
    /// No worker can run, and something must be changed first.
    Failed,
}
