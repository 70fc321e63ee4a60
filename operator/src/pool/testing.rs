//! Pools and a template for tests.

use serde_json::{Value, json};

use crate::objects::CachePool;

/// A pool with a specification.
pub(super) fn pool(name: &str, spec: Value) -> CachePool {
    let object = json!({
        "apiVersion": "weir.io/v1alpha1", "kind": "CachePool",
        "metadata": { "name": name, "uid": format!("uid-{name}"), "generation": 1 },
        "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// A worker's pod, as an installation has it.
pub(super) fn template() -> Value {
    let dir = "/var/lib/weir/worker";
    json!({
        "metadata": {
            "labels": { "app.kubernetes.io/name": "weir", "app.kubernetes.io/component": "worker" },
            "annotations": { "prometheus.io/port": "7452" },
        },
        "spec": {
            "nodeSelector": { "kubernetes.io/os": "linux" },
            "initContainers": [{ "name": "before", "image": "weir:1" }],
            "containers": [{
                "name": "worker", "image": "weir:1", "args": ["worker", format!("--dir={dir}")],
                "volumeMounts": [{ "name": "state", "mountPath": dir }],
            }],
            "volumes": [{ "name": "state", "hostPath": { "path": dir } }],
        },
    })
}
