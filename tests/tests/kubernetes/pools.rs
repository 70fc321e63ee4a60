//! Workers as a CachePool.

use std::time::Duration;

use serde_json::Value;
use weir_tests::wait_until;

use crate::Case;
use crate::kubernetes::installation::{Installation, NAMESPACE, NODES};

pub(crate) const CASES: &[Case] = &[
    (
        "the_charts_workers_are_a_pool",
        the_charts_workers_are_a_pool,
    ),
    (
        "the_worker_of_a_cordoned_node_is_drained",
        the_worker_of_a_cordoned_node_is_drained,
    ),
    ("no_node_has_two_workers", no_node_has_two_workers),
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
fn standing(weir: &Installation, node: &str) -> String {
    let status = weir.status();
    let mut workers = status["workers"].as_array().unwrap().iter();
    let worker = workers.find(|worker| worker["id"] == node);
    worker.map_or("none".to_owned(), |worker| {
        worker["state"].as_str().unwrap_or_default().to_owned()
    })
}

fn the_worker_of_a_cordoned_node_is_drained(weir: &Installation) {
    let before = standing(weir, "node-2");
    weir.cluster.kubectl(&["cordon", "node-2"]).ok();
    wait_until("its worker is drained", SOON, || {
        standing(weir, "node-2") == "drained"
    });
    weir.cluster.kubectl(&["uncordon", "node-2"]).ok();
    wait_until("it owns blocks again", SOON, || {
        standing(weir, "node-2") == before
    });
}

/// All nodes have one of the chart's, so the worker of another pool waits, and its pool says so.
fn no_node_has_two_workers(weir: &Installation) {
    let pool = "apiVersion: weir.io/v1alpha1
kind: CachePool
metadata: {name: second}
spec:
  replicas: 1
  tiers: {memory: 16MiB, ssd: [{size: 64MiB}]}
";
    weir.cluster.apply(pool);
    let condition = || {
        let pool = weir.cluster.get(&["cachepool", "second"]);
        let conditions = pool["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.into_iter().flatten();
        let fits = conditions.find(|condition| condition["type"] == "NodesFit");
        fits.map(|fits| fits["reason"].clone()).unwrap_or_default()
    };
    wait_until("no node has two workers", SOON, || {
        condition() == "Unschedulable"
    });
    let delete = ["delete", "cachepool", "second", "--timeout=60s"];
    weir.cluster.kubectl(&delete).ok();
    let set = ["-n", NAMESPACE, "get", "statefulset", "weir-worker-second"];
    wait_until("its workers are gone with it", SOON, || {
        weir.cluster.kubectl(&set).code != 0
    });
}
