//! Workers as a CachePool.

use std::time::Duration;

use serde_json::Value;
use weir_tests::{BUCKET, wait_until};

use crate::Case;
use crate::kubernetes::installation::{Installation, NAMESPACE, NODES, endpoint};

pub(crate) const CASES: &[Case] = &[
    (
        "the_charts_workers_are_a_pool",
        the_charts_workers_are_a_pool,
    ),
    (
        "pools_share_nodes_and_are_emptied_before_they_shrink",
        pools_share_nodes_and_are_emptied_before_they_shrink,
    ),
];

const SOON: Duration = Duration::from_mins(1);

fn the_charts_workers_are_a_pool(weir: &Installation) {
    let mut pool = Value::Null;
    wait_until("the pool is ready", SOON, || {
        pool = weir.cluster.get(&["cachepool", "default"]);
        pool["status"]["phase"] == "Ready"
    });
    assert_eq!(pool["status"]["ready"], NODES as u64, "{pool}");
    assert!(pool["metadata"]["finalizers"].is_null(), "{pool}");
    let set = ["-n", NAMESPACE, "daemonset", "weir-worker"];
    let set = weir.cluster.get(&set);
    assert_eq!(set["metadata"]["ownerReferences"][0]["kind"], "CachePool");
    let shown = weir.cluster.kubectl(&["get", "wcp"]).ok();
    assert!(shown.contains("CAPACITY"), "{shown}");
}

/// How the worker on a node stands.
pub(crate) fn standing(weir: &Installation, node: &str) -> String {
    let status = weir.status();
    let mut workers = status["workers"].as_array().unwrap().iter();
    let worker = workers.find(|worker| worker["id"] == node);
    worker.map_or("none".to_owned(), |worker| {
        worker["state"].as_str().unwrap_or_default().to_owned()
    })
}

/// Has the installation's pool use nodes with these labels alone.
pub(crate) fn use_nodes(weir: &Installation, labels: &str) {
    let spec = format!("{{\"spec\": {{\"nodeSelector\": {labels}}}}}");
    let args = ["patch", "cachepool", "default", "--type=merge", "-p", &spec];
    weir.cluster.kubectl(&args).ok();
}

/// A second pool waits for a node without a worker, gets the one that the first gives up, and is emptied before it goes.
fn pools_share_nodes_and_are_emptied_before_they_shrink(weir: &Installation) {
    let cluster = &weir.cluster;
    cluster.apply(
        "apiVersion: weir.io/v1alpha1
kind: CachePool
metadata: {name: second}
spec:
  replicas: 1
  nodeSelector: {kubernetes.io/hostname: node-2}
  tiers: {memory: 32MiB, ssd: [{size: 256MiB}]}
  resources: {requests: {cpu: 50m, memory: 128Mi}}
",
    );
    let reason = |type_: &str| {
        let pool = cluster.get(&["cachepool", "second"]);
        let conditions = pool["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.into_iter().flatten();
        let found = conditions.find(|condition| condition["type"] == type_);
        found.map_or(Value::Null, |found| found["reason"].clone())
    };
    wait_until("no node has two workers", SOON, || {
        reason("NodesFit") == "Unschedulable"
    });
    use_nodes(weir, "{\"kubernetes.io/hostname\": \"node-1\"}");
    wait_until("the second pool has a worker", SOON, || {
        reason("Ready") == "Ready"
    });
    let url = format!("s3://{BUCKET}/");
    let endpoint = endpoint();
    let create = ["dataset", "create", "default/pooled", &url];
    let from = [
        "--endpoint",
        &endpoint,
        "--anonymous",
        "--spread",
        "cluster",
    ];
    weir.weir(&[&create[..], &from].concat()).ok();
    weir.weir(&["warm", "default/pooled", "--wait"]).ok();
    let cached = |node: &str| {
        let at = ["dataset", "where", "default/pooled", "-o", "json"];
        let at: Value = serde_json::from_str(&weir.weir(&at).ok()).unwrap();
        let nodes = at["nodes"].as_array().cloned().unwrap_or_default();
        let found = nodes.iter().find(|found| found["name"] == node);
        found.map_or(0, |found| found["cached_bytes"].as_u64().unwrap())
    };
    let all: u64 = weir.files.values().map(|file| file.len() as u64).sum();
    wait_until("everything is cached", SOON, || {
        cached("node-1") + cached("node-2") >= all
    });
    let scale = ["scale", "cachepool", "second", "--replicas=0"];
    cluster.kubectl(&scale).ok();
    wait_until("the other pool has all of it", SOON, || {
        cached("node-1") >= all && standing(weir, "node-2") == "none"
    });
    let delete = ["delete", "cachepool", "second", "--timeout=60s"];
    cluster.kubectl(&delete).ok();
    let set = ["-n", NAMESPACE, "get", "statefulset", "weir-worker-second"];
    wait_until("its workers are gone with it", SOON, || {
        cluster.kubectl(&set).code != 0
    });
    use_nodes(weir, "null");
    wait_until("the first pool has both nodes again", SOON, || {
        standing(weir, "node-2") == "active"
    });
    weir.weir(&["dataset", "delete", "default/pooled"]).ok();
}
