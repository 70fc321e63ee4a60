//! The DaemonSet or StatefulSet of a pool.
//!
//! What a worker's pod is, its certificate for instance, the installation says once, by a template that the operator is given. Here
//! only what a pool chooses is put into it.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use kube::{Resource, ResourceExt};
use serde_json::{Map, Value, json};

use super::MAIN_POOL;
use crate::objects::{
    CachePool, CachePoolSpec, GROUP_LABEL_ANNOTATION, MANAGED_BY, MANAGED_LABEL, POOL_ANNOTATION,
    POOL_LABEL, UpdateStrategy, WEIGHT_ANNOTATION, ZONE_LABEL_ANNOTATION,
};

/// The container of the template that is the worker.
const CONTAINER: &str = "worker";
/// Prefix of the names of workloads.
const NAME: &str = "weir-worker";

/// What a pool has made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A worker on every node that fits.
    EveryNode,
    /// So many workers.
    Some(i32),
}

/// Name of a pool's workload.
pub(super) fn name(pool: &str) -> String {
    if pool == MAIN_POOL {
        NAME.to_owned()
    } else {
        format!("{NAME}-{pool}")
    }
}

/// Labels by which a workload knows its pods. Those of the main pool are what the chart's own DaemonSet has, which becomes its.
fn selector(pool: &str) -> Value {
    let mut labels = json!({
        "app.kubernetes.io/name": "weir",
        "app.kubernetes.io/component": CONTAINER,
    });
    if pool != MAIN_POOL {
        labels[POOL_LABEL] = json!(pool);
    }
    labels
}

/// That, as a query.
pub(super) fn selector_text(pool: &str) -> String {
    format!("{POOL_LABEL}={pool}")
}

/// The objects of a pool: the workload, and a disruption budget if it is one that `kubectl drain` evicts from.
pub(super) fn objects(
    pool: &CachePool,
    namespace: &str,
    template: &Value,
    kind: Kind,
) -> Result<Vec<Value>, String> {
    let name = name(&pool.name_any());
    let labels = selector(&pool.name_any());
    let update = pool.spec.update.clone().unwrap_or_default();
    let metadata = json!({
        "name": name,
        "namespace": namespace,
        "labels": {
            "app.kubernetes.io/name": "weir",
            "app.kubernetes.io/component": CONTAINER,
            MANAGED_LABEL: MANAGED_BY,
            POOL_LABEL: pool.name_any(),
        },
        "ownerReferences": [{
            "apiVersion": CachePool::api_version(&()),
            "kind": CachePool::kind(&()),
            "name": pool.name_any(),
            "uid": pool.uid().unwrap_or_default(),
            "controller": true,
            "blockOwnerDeletion": false,
        }],
    });
    let mut spec = json!({
        "selector": { "matchLabels": labels },
        "template": pod(pool, template)?,
    });
    let (kind, mut strategy) = match kind {
        Kind::EveryNode => {
            let at_once = update.max_unavailable.unwrap_or(1);
            (
                "DaemonSet",
                json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": at_once } }),
            )
        }
        Kind::Some(replicas) => {
            spec["replicas"] = json!(replicas);
            spec["serviceName"] = json!(name);
            // They need not wait for one another.
            spec["podManagementPolicy"] = json!("Parallel");
            ("StatefulSet", json!({ "type": "RollingUpdate" }))
        }
    };
    if update.strategy == UpdateStrategy::OnDelete {
        strategy = json!({ "type": "OnDelete" });
    }
    spec["updateStrategy"] = strategy;
    let mut objects = vec![json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec,
    })];
    if kind == "StatefulSet" {
        objects.push(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata,
            "spec": {
                "maxUnavailable": 1,
                "selector": { "matchLabels": { POOL_LABEL: pool.name_any() } },
            },
        }));
    }
    Ok(objects)
}

/// A number that tells whether objects are the same.
pub(super) fn fingerprint(objects: &[Value]) -> u64 {
    let objects = objects.iter().map(Value::to_string);
    BuildHasherDefault::<DefaultHasher>::new().hash_one(objects.collect::<Vec<_>>())
}

/// The template with what the pool chooses.
fn pod(pool: &CachePool, template: &Value) -> Result<Value, String> {
    let mut template = template.clone();
    let spec = &pool.spec;
    let metadata = object(&mut template, "metadata")?;
    object_in(metadata, "labels").insert(POOL_LABEL.to_owned(), json!(pool.name_any()));
    object_in(metadata, "annotations").extend(places(spec));
    let pod = object(&mut template, "spec")?;
    object_in(pod, "nodeSelector").extend(
        spec.node_selector
            .iter()
            .map(|(key, value)| (key.clone(), json!(value))),
    );
    list_in(pod, "tolerations").extend(spec.tolerations.iter().map(|toleration| json!(toleration)));
    // A node's disks and its worker's socket are one worker's.
    let others = json!({ "matchLabels": selector(MAIN_POOL) });
    object_in(pod, "affinity").insert(
        "podAntiAffinity".to_owned(),
        json!({ "requiredDuringSchedulingIgnoredDuringExecution": [
            { "topologyKey": "kubernetes.io/hostname", "labelSelector": others },
        ] }),
    );
    let (args, disks) = flags(spec, &dir(pod)?);
    for (number, path) in disks.iter().enumerate() {
        let volume = json!({
            "name": format!("disk-{number}"),
            "hostPath": { "path": path, "type": "DirectoryOrCreate" },
        });
        list_in(pod, "volumes").push(volume);
    }
    let worker = worker(pod)?;
    list_in(worker, "args").extend(args.into_iter().map(Value::String));
    for (number, path) in disks.iter().enumerate() {
        let mount = json!({ "name": format!("disk-{number}"), "mountPath": path });
        list_in(worker, "volumeMounts").push(mount);
    }
    if let Some(resources) = &spec.resources {
        worker.insert("resources".to_owned(), json!(resources));
    }
    if let Some(image) = &spec.image {
        let before = worker.get("image").cloned().unwrap_or_default();
        for list in ["initContainers", "containers"] {
            let containers = list_in(pod, list).iter_mut();
            for container in containers.filter(|container| container["image"] == before) {
                container["image"] = json!(image);
            }
        }
    }
    Ok(template)
}

/// The largest cache that a worker may claim to have: that of its disks, as their sizes with `+` between them. None if it follows from
/// the free space of its node.
fn max_weight(spec: &CachePoolSpec) -> Option<String> {
    let sizes = spec.tiers.ssd.iter().map(|tier| tier.size.as_str());
    let sizes: Vec<&str> = sizes.collect();
    (!sizes.is_empty()).then(|| sizes.join("+"))
}

/// What tells whoever makes a worker's certificate what it may claim.
fn places(spec: &CachePoolSpec) -> Map<String, Value> {
    let weight = max_weight(spec);
    [
        // A place that flags say is not the certificate's to say, which would have another.
        (ZONE_LABEL_ANNOTATION, spec.zone_of_nodes()),
        (GROUP_LABEL_ANNOTATION, spec.group_of_nodes()),
        (POOL_ANNOTATION, spec.pool.as_deref()),
        (WEIGHT_ANNOTATION, weight.as_deref()),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), json!(value?))))
    .collect()
}

/// Flags of a worker, and the directories of disks that it must see beside its own.
fn flags(spec: &CachePoolSpec, dir: &str) -> (Vec<String>, Vec<String>) {
    let (mut args, mut disks) = (Vec::new(), Vec::new());
    for tier in &spec.tiers.ssd {
        let path = tier.path.clone().unwrap_or_else(|| format!("{dir}/ssd"));
        args.push(format!("--ssd={path}:{}", tier.size));
        if !path.starts_with(&format!("{dir}/")) {
            disks.push(path);
        }
    }
    if let Some(free) = &spec.tiers.free {
        args.push(format!("--ssd-free={free}"));
    }
    if let Some(memory) = &spec.tiers.memory {
        args.push(format!("--mem={memory}"));
    }
    if let Some(pool) = &spec.pool {
        args.push(format!("--pool={pool}"));
    }
    args.extend(spec.args.iter().cloned());
    (args, disks)
}

fn worker(pod: &mut Map<String, Value>) -> Result<&mut Map<String, Value>, String> {
    let mut containers = list_in(pod, "containers").iter_mut();
    let worker = containers.find(|container| container["name"] == CONTAINER);
    worker
        .and_then(Value::as_object_mut)
        .ok_or_else(|| format!("it has no container {CONTAINER}"))
}

/// The worker's own directory, which is the node's, too.
fn dir(pod: &mut Map<String, Value>) -> Result<String, String> {
    let args = worker(pod)?.get("args").and_then(Value::as_array);
    let mut args = args.into_iter().flatten().filter_map(Value::as_str);
    let dir = args.find_map(|arg| arg.strip_prefix("--dir="));
    dir.map(str::to_owned)
        .ok_or_else(|| "its worker has no flag --dir=".to_owned())
}

fn object<'a>(value: &'a mut Value, key: &str) -> Result<&'a mut Map<String, Value>, String> {
    let found = value.get_mut(key).and_then(Value::as_object_mut);
    found.ok_or_else(|| format!("it has no {key}"))
}

fn object_in<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = object.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    let Value::Object(map) = value else {
        unreachable!("it was just made one")
    };
    map
}

fn list_in<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = object.entry(key).or_insert(Value::Null);
    if !value.is_array() {
        *value = json!([]);
    }
    let Value::Array(list) = value else {
        unreachable!("it was just made one")
    };
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::testing::{pool, template};

    fn made(spec: Value, kind: Kind) -> Vec<Value> {
        objects(&pool("gpu", spec), "weir-system", &template(), kind).unwrap()
    }

    #[test]
    fn what_a_pool_chooses_is_put_into_the_pods_of_the_installation() {
        let spec = json!({
            "nodeSelector": { "disk": "nvme" },
            "tolerations": [{ "key": "gpu", "operator": "Exists" }],
            "tiers": { "memory": "2GiB", "ssd": [
                { "size": "10GiB" }, { "path": "/mnt/nvme0/weir", "size": "1TiB" },
            ], "free": "0" },
            "resources": { "limits": { "memory": "6Gi" } },
            "pool": "gpu", "groupLabel": "rack", "image": "weir:next", "args": ["--keep=0"],
            "update": { "maxUnavailable": 3 },
        });
        let set = &made(spec, Kind::EveryNode)[0];
        assert_eq!(set["kind"], "DaemonSet");
        assert_eq!(set["metadata"]["name"], "weir-worker-gpu");
        assert_eq!(set["metadata"]["ownerReferences"][0]["uid"], "uid-gpu");
        assert_eq!(
            set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
            3
        );
        let template = &set["spec"]["template"];
        assert_eq!(template["metadata"]["labels"][POOL_LABEL], "gpu");
        let annotations = &template["metadata"]["annotations"];
        assert_eq!(
            annotations[ZONE_LABEL_ANNOTATION],
            "topology.kubernetes.io/zone"
        );
        assert_eq!(annotations[GROUP_LABEL_ANNOTATION], "rack");
        assert_eq!(annotations[WEIGHT_ANNOTATION], "10GiB+1TiB");
        assert_eq!(
            annotations["prometheus.io/port"], "7452",
            "what was there stays"
        );
        let pod = &template["spec"];
        assert_eq!(
            pod["nodeSelector"],
            json!({ "kubernetes.io/os": "linux", "disk": "nvme" })
        );
        assert_eq!(
            pod["tolerations"],
            json!([{ "key": "gpu", "operator": "Exists" }])
        );
        let worker = &pod["containers"][0];
        assert_eq!(
            worker["args"],
            json!([
                "worker",
                "--dir=/var/lib/weir/worker",
                "--ssd=/var/lib/weir/worker/ssd:10GiB",
                "--ssd=/mnt/nvme0/weir:1TiB",
                "--ssd-free=0",
                "--mem=2GiB",
                "--pool=gpu",
                "--keep=0",
            ])
        );
        assert_eq!(
            worker["resources"],
            json!({ "limits": { "memory": "6Gi" } })
        );
        assert_eq!(pod["volumes"][1]["hostPath"]["path"], "/mnt/nvme0/weir");
        assert_eq!(worker["volumeMounts"][1]["mountPath"], "/mnt/nvme0/weir");
        assert_eq!(worker["image"], "weir:next");
        assert_eq!(pod["initContainers"][0]["image"], "weir:next");
        let apart =
            &pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(apart[0]["topologyKey"], "kubernetes.io/hostname");
    }

    #[test]
    fn so_many_workers_are_a_statefulset_with_a_budget() {
        let spec = json!({ "replicas": 3, "update": { "strategy": "OnDelete" } });
        let objects = made(spec, Kind::Some(3));
        assert_eq!(objects[0]["kind"], "StatefulSet");
        assert_eq!(objects[0]["spec"]["replicas"], 3);
        assert_eq!(
            objects[0]["spec"]["updateStrategy"],
            json!({ "type": "OnDelete" })
        );
        assert_eq!(objects[1]["kind"], "PodDisruptionBudget");
        let counted = &objects[1]["spec"]["selector"]["matchLabels"];
        assert_eq!(*counted, json!({ POOL_LABEL: "gpu" }));
    }

    #[test]
    fn the_main_pool_is_what_the_charts_own_daemonset_was() {
        let pool = pool(
            MAIN_POOL,
            json!({ "args": ["--zone=a"], "zoneLabel": "zone" }),
        );
        let set = objects(&pool, "weir-system", &template(), Kind::EveryNode).unwrap();
        assert_eq!(set[0]["metadata"]["name"], "weir-worker");
        assert!(set[0]["spec"]["selector"]["matchLabels"][POOL_LABEL].is_null());
        let annotations = &set[0]["spec"]["template"]["metadata"]["annotations"];
        assert!(
            annotations[ZONE_LABEL_ANNOTATION].is_null(),
            "a flag says it"
        );
    }

    #[test]
    fn a_template_that_is_none_is_an_error() {
        for template in [
            Value::Null,
            json!({ "metadata": {}, "spec": {} }),
            json!({ "metadata": {}, "spec": { "containers": [{ "name": "other" }] } }),
            json!({ "metadata": {}, "spec": { "containers": [{ "name": "worker", "args": [] }] } }),
        ] {
            let pool = pool("gpu", json!({}));
            objects(&pool, "weir-system", &template, Kind::EveryNode).unwrap_err();
        }
    }

    #[test]
    fn the_same_objects_have_the_same_fingerprint() {
        let spec = json!({ "nodeSelector": { "a": "1", "b": "2" } });
        let one = fingerprint(&made(spec.clone(), Kind::EveryNode));
        assert_eq!(one, fingerprint(&made(spec.clone(), Kind::EveryNode)));
        assert_ne!(one, fingerprint(&made(spec, Kind::Some(1))));
    }
}
