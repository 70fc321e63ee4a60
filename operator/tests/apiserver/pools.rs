//! CachePools: rules, workers, sizes and cordoned nodes. No controller makes pods here, so they are made by hand.

use serde_json::{Value, json};
use weir_proto::v1::WorkerState;

use crate::cluster::{Cluster, MemoryMaster, until};

const POOLS: &str = "/apis/weir.io/v1alpha1/cachepools";
const SET: &str = "/apis/apps/v1/namespaces/weir-system/statefulsets/weir-worker-gpu";
const PODS: &str = "/api/v1/namespaces/weir-system/pods";
const NODES: &str = "/api/v1/nodes";

fn pool(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "weir.io/v1alpha1", "kind": "CachePool", "metadata": { "name": name }, "spec": spec,
    })
}

pub(crate) async fn rules(cluster: &Cluster) {
    let auto = json!({ "minReplicas": 3, "maxReplicas": 2, "hitPercent": 90 });
    for (name, spec, part) in [
        ("a.b", json!({}), "lower-case letters"),
        ("gpu", json!({ "replicas": -1 }), "spec.replicas"),
        (
            "gpu",
            json!({ "replicas": 1, "autoscaling": auto }),
            "the smaller one first",
        ),
        (
            "gpu",
            json!({ "schedule": [{ "cron": "0 8 * * *", "replicas": 1 }] }),
            "write spec.replicas",
        ),
        (
            "gpu",
            json!({ "update": { "strategy": "Soon" } }),
            "Unsupported value",
        ),
    ] {
        let refused = cluster.post(POOLS, &pool(name, &spec)).await.unwrap_err();
        assert!(refused.contains(part), "{name}: {refused}");
    }
    let every = pool(
        "every",
        &json!({ "tolerations": [{ "operator": "Exists" }] }),
    );
    cluster.post(POOLS, &every).await.unwrap();
    let path = format!("{POOLS}/every");
    let sized = json!({ "spec": { "replicas": 3 } });
    let refused = cluster.merge(&path, &sized).await.unwrap_err();
    assert!(refused.contains("make another CachePool"), "{refused}");
    cluster.delete(&path).await.unwrap();
}

async fn status(cluster: &Cluster) -> Value {
    let object = cluster.get(&format!("{POOLS}/gpu")).await.unwrap();
    object["status"].clone()
}

async fn condition(cluster: &Cluster, type_: &str) -> Value {
    let status = status(cluster).await;
    let conditions = status["conditions"].as_array().cloned();
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|condition| condition["type"] == type_);
    found.unwrap_or_default()
}

pub(crate) async fn have_workers(cluster: &Cluster, master: &MemoryMaster) {
    for name in ["node-1", "node-2"] {
        let node = json!({ "metadata": { "name": name } });
        cluster.post(NODES, &node).await.unwrap();
    }
    let spec = json!({ "replicas": 2, "nodeSelector": { "disk": "nvme" } });
    cluster.post(POOLS, &pool("gpu", &spec)).await.unwrap();
    until("a pool without nodes that says so", || async {
        condition(cluster, "NodesFit").await["reason"] == "NoNodes"
    })
    .await;
    for name in ["node-1", "node-2"] {
        let label = json!({ "metadata": { "labels": { "disk": "nvme" } } });
        cluster
            .merge(&format!("{NODES}/{name}"), &label)
            .await
            .unwrap();
    }
    until("nodes that fit", || async {
        condition(cluster, "NodesFit").await["reason"] == "Fit"
    })
    .await;
    let set = cluster.get(SET).await.unwrap();
    assert_eq!(set["spec"]["replicas"], 2);
    assert_eq!(set["metadata"]["ownerReferences"][0]["kind"], "CachePool");
    let budgets = "/apis/policy/v1/namespaces/weir-system/poddisruptionbudgets";
    assert!(
        cluster
            .get(&format!("{budgets}/weir-worker-gpu"))
            .await
            .is_some()
    );
    for number in 0..2 {
        let node = format!("node-{}", number + 1);
        let pod = json!({
            "metadata": { "name": format!("weir-worker-gpu-{number}"), "labels": { "weir.io/cache-pool": "gpu" } },
            "spec": { "nodeName": node, "containers": [{ "name": "worker", "image": "weir:1" }] },
        });
        cluster.post(PODS, &pod).await.unwrap();
        master.join(&node);
    }
    ready(cluster, 2).await;
    until("a pool that is ready", || async {
        status(cluster).await["phase"] == "Ready"
    })
    .await;
}

/// Says that so many workers are ready, as the controller of StatefulSets does.
async fn ready(cluster: &Cluster, count: i32) {
    let status = json!({ "status": { "replicas": count, "readyReplicas": count } });
    cluster
        .merge(&format!("{SET}/status"), &status)
        .await
        .unwrap();
}

pub(crate) async fn are_drained(cluster: &Cluster, master: &MemoryMaster) {
    // A node is cordoned and is not any more.
    let node = format!("{NODES}/node-1");
    for (cordoned, standing) in [
        (true, WorkerState::Drained),
        (false, WorkerState::Unspecified),
    ] {
        let cordon = json!({ "spec": { "unschedulable": cordoned } });
        cluster.merge(&node, &cordon).await.unwrap();
        until("a worker that is as its node", || async {
            master.standing("node-1") == standing
        })
        .await;
    }
    // As `kubectl scale` does it.
    let scale = format!("{POOLS}/gpu/scale");
    let now = cluster.get(&scale).await.unwrap();
    assert_eq!(now["status"]["replicas"], 2);
    assert_eq!(now["status"]["selector"], "weir.io/cache-pool=gpu");
    cluster
        .merge(&scale, &json!({ "spec": { "replicas": 1 } }))
        .await
        .unwrap();
    until("a smaller set", || async {
        cluster.get(SET).await.unwrap()["spec"]["replicas"] == 1
    })
    .await;
    assert_eq!(
        master.standing("node-2"),
        WorkerState::Drained,
        "it was drained first"
    );
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    until("an event", || async {
        let events = cluster.get(events).await.unwrap();
        let events = events["items"].as_array().unwrap();
        events
            .iter()
            .any(|event| event["reason"] == "Drained" && event["regarding"]["kind"] == "CachePool")
    })
    .await;
    let path = format!("{POOLS}/gpu");
    cluster.delete(&path).await.unwrap();
    assert!(cluster.get(&path).await.is_none(), "nothing holds it");
}

pub(crate) async fn are_judged(cluster: &Cluster) {
    let bad = pool("bad", &json!({ "tiers": { "memory": "much" } }));
    let refused = cluster.post(POOLS, &bad).await.unwrap_err();
    assert!(refused.contains("spec.tiers.memory"), "{refused}");
}
