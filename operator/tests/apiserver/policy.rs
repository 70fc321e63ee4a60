//! What the operator may do to pods.

use serde_json::{Value, json};

use crate::OPERATOR;
use crate::cluster::{Cluster, until};

const PODS: &str = "/api/v1/namespaces/team-a/pods";
const POLICIES: [&str; 2] = [
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

fn pod(name: &str, gates: &[&str]) -> Value {
    let gates: Vec<Value> = gates.iter().map(|name| json!({ "name": name })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "team-a", "annotations": { "team": "a" },
            "labels": { "app": "train", "weir.io/waits-for-data": "true" },
        },
        "spec": { "schedulingGates": gates, "containers": [{ "name": "train", "image": "train:1" }] },
    })
}

fn add(path: &str, value: Value) -> Value {
    json!([{ "op": "add", "path": path, "value": value }])
}

/// One patch of a pod that must be refused.
async fn refused(cluster: &Cluster, pod: &str, patch: &Value, part: &str) {
    let path = format!("{PODS}/{pod}");
    let kind = "application/json-patch+json";
    let refused = cluster.patch_as(OPERATOR, &path, kind, patch).await;
    let why = refused.expect_err(&patch.to_string());
    assert!(why.contains(part), "{patch}: {why}");
}

pub(crate) async fn only_our_gate_and_affinity_are_patched(cluster: &Cluster) {
    cluster.install_kinds(&POLICIES).await;
    cluster.post(PODS, &pod("free", &[])).await.unwrap();
    let both = ["kueue.x-k8s.io/admission", "weir.io/data"];
    cluster.post(PODS, &pod("gated", &both)).await.unwrap();
    let note = add("/metadata/annotations/weir.io~1placed-by", json!("x"));
    let kind = "application/json-patch+json";
    let free = format!("{PODS}/free");
    until("a policy that is in force", || async {
        let tried = cluster.patch_as(OPERATOR, &free, kind, &note).await;
        tried.is_err_and(|why| why.contains("only pods that wait at its own gate"))
    })
    .await;
    let toleration = json!({ "operator": "Exists" });
    for (patch, part) in [
        (
            add("/spec/containers/0/image", json!("evil:1")),
            "what a pod runs",
        ),
        (add("/spec/tolerations/-", toleration), "what a pod runs"),
        (
            add("/spec/nodeSelector", json!({ "a": "b" })),
            "what a pod runs",
        ),
        (
            add("/spec/activeDeadlineSeconds", json!(1)),
            "what a pod runs",
        ),
        (
            json!([{ "op": "remove", "path": "/spec/schedulingGates/0" }]),
            "no gate off but weir.io/data",
        ),
        (
            json!([{ "op": "remove", "path": "/spec/schedulingGates" }]),
            "no gate off but weir.io/data",
        ),
        (add("/metadata/labels/app", json!("other")), "no label off"),
        (
            json!([{ "op": "remove", "path": "/metadata/labels/app" }]),
            "no label off",
        ),
        (
            add("/metadata/annotations/team", json!("b")),
            "no annotation",
        ),
        (
            add("/metadata/finalizers", json!(["weir.io/x"])),
            "neither finalizers",
        ),
    ] {
        refused(cluster, "gated", &patch, part).await;
    }
    // What it does when a pod's data is there.
    let term = json!({ "weight": 1, "preference": { "matchExpressions": [
        { "key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"] },
    ] } });
    let lift = json!([
        { "op": "test", "path": "/spec/schedulingGates/1/name", "value": "weir.io/data" },
        { "op": "remove", "path": "/spec/schedulingGates/1" },
        { "op": "remove", "path": "/metadata/labels/weir.io~1waits-for-data" },
        { "op": "add", "path": "/metadata/annotations/weir.io~1placed-by", "value": "team-a/images" },
        { "op": "add", "path": "/spec/affinity", "value": { "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [term],
        } } },
    ]);
    let gated = format!("{PODS}/gated");
    let lifted = cluster
        .patch_as(OPERATOR, &gated, kind, &lift)
        .await
        .unwrap();
    assert_eq!(
        lifted["spec"]["schedulingGates"],
        json!([{ "name": both[0] }])
    );
    refused(
        cluster,
        "gated",
        &note,
        "only pods that wait at its own gate",
    )
    .await;
    // Others are not concerned.
    let finalizer = json!({ "metadata": { "annotations": { "team": "b" } } });
    cluster.merge(&gated, &finalizer).await.unwrap();
    for pod in [free, gated] {
        cluster.delete(&pod).await.unwrap();
    }
}
