//! The operator against a real apiserver and etcd, with exactly the rights that the chart gives it
//! (`deploy/kubernetes/weir.yaml`).
//!
//! `WEIR_TEST_APISERVER` names the directory with `etcd`, `kube-apiserver` and `helm`, which `make test-apiserver` builds; without it there is
//! nothing to be tested. No controller-manager runs: claims are bound here.

#![allow(clippy::unwrap_used)]

#[path = "apiserver/cluster.rs"]
mod cluster;
#[path = "apiserver/gates.rs"]
mod gates;
#[path = "apiserver/kinds.rs"]
mod kinds;
#[path = "apiserver/labels.rs"]
mod labels;
#[path = "apiserver/policy.rs"]
mod policy;
#[path = "apiserver/pools.rs"]
mod pools;
#[path = "apiserver/signing.rs"]
mod signing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weir_operator::{Operator, OperatorConfig, OperatorMetrics, SigningConfig};

use cluster::{Cluster, MemoryMaster, free_address, until};

const OPERATOR: &str = "system:serviceaccount:weir-system:weir-operator";
const DATASETS: &str = "/apis/weir.io/v1alpha1/namespaces/team-a/datasets";
const WARMUPS: &str = "/apis/weir.io/v1alpha1/namespaces/team-a/warmups";
const CLAIMS: &str = "/api/v1/namespaces/team-a/persistentvolumeclaims";
const PODS: &str = "/api/v1/namespaces/team-a/pods";

/// An operator that runs, and what it runs with.
struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(
        cluster: &Cluster,
        master: &Arc<MemoryMaster>,
        webhook: Option<SocketAddr>,
        signing: Option<SigningConfig>,
    ) -> Self {
        let metrics = OperatorMetrics::register(&mut Registry::default());
        let config = OperatorConfig {
            namespace: "weir-system".to_owned(),
            pod: "operator-0".to_owned(),
            webhook,
            signing,
            worker_template: Some(cluster.worker_template()),
        };
        let operator = Operator::new(cluster.client_as(OPERATOR), master.clone(), metrics, config);
        let stop = CancellationToken::new();
        let told = stop.clone();
        let task = tokio::spawn(async move { operator.run(told).await.unwrap() });
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn dataset(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "weir.io/v1alpha1", "kind": "Dataset",
        "metadata": { "name": name, "namespace": "team-a" }, "spec": spec,
    })
}

fn bucket() -> Value {
    json!({ "sources": [{ "url": "s3://bucket/data" }] })
}

/// All in one: an apiserver takes some seconds to start.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_with_its_rights_against_a_real_apiserver() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    cluster.install().await;
    rules_of_the_definitions(&cluster).await;
    pools::rules(&cluster).await;
    labels::the_plugin_may_read_nodes_where_they_have_a_group(&cluster).await;
    // Before there is an operator, which would let the pods go.
    policy::only_our_gate_and_affinity_are_patched(&cluster).await;
    let master = Arc::new(MemoryMaster::default());
    let webhook = free_address();
    let certificates = tempfile::tempdir().unwrap();
    let signing = signing::prepare(certificates.path()).await;
    let desk = signing.listen;
    let operator = Running::start(&cluster, &master, Some(webhook), Some(signing));
    signing::pods_are_given_certificates(&cluster, desk, certificates.path()).await;
    datasets_become_claims(&cluster).await;
    annotations_go(&cluster).await;
    warmups_are_done(&cluster, &master).await;
    pools::have_workers(&cluster, &master).await;
    pools::are_drained(&cluster, &master).await;
    secrets_need_a_binding(&cluster, &master).await;
    the_webhook_answers(&cluster, webhook).await;
    pools::are_judged(&cluster).await;
    gates::pods_of_all_kinds_wait_and_go_together(&cluster, &master).await;
    gates::a_pod_that_has_waited_long_enough_runs_with_what_is_there(&cluster, &master).await;
    gates::what_makes_no_sense_is_refused(&cluster).await;
    operator.end().await;
    pods_are_made_without_it(&cluster).await;
    gates::nothing_closes_gates_without_it(&cluster).await;
    let again = Running::start(&cluster, &master, Some(webhook), None);
    gates::an_operator_that_was_away_lets_go_what_has_waited(&cluster).await;
    a_deleted_dataset_leaves_nothing(&cluster).await;
    again.end().await;
}

async fn rules_of_the_definitions(cluster: &Cluster) {
    for (name, spec, part) in [
        ("a.b", bucket(), "lower-case letters"),
        ("none", json!({ "sources": [] }), "spec.sources"),
        (
            "copies",
            json!({ "sources": [{ "url": "s3://b" }], "placement": { "copies": "many" } }),
            "write a number from 1 on, or all",
        ),
        (
            "word",
            json!({ "sources": [{ "url": "s3://b", "addressing": "Path" }] }),
            "Unsupported value",
        ),
    ] {
        let refused = cluster
            .post(DATASETS, &dataset(name, spec))
            .await
            .unwrap_err();
        assert!(refused.contains(part), "{name}: {refused}");
    }
    for copies in [json!(2), json!("all")] {
        let mut spec = bucket();
        spec["placement"] = json!({ "spread": "zone", "copies": copies });
        cluster
            .post(DATASETS, &dataset("fine", spec))
            .await
            .unwrap();
        cluster.delete(&format!("{DATASETS}/fine")).await.unwrap();
    }
    let two = json!({ "sources": [{ "url": "s3://a" }, { "url": "s3://b", "path": "/b" }] });
    cluster.post(DATASETS, &dataset("two", two)).await.unwrap();
    let one = json!({ "spec": { "sources": [{ "url": "s3://a" }] } });
    let refused = cluster
        .merge(&format!("{DATASETS}/two"), &one)
        .await
        .unwrap_err();
    assert!(refused.contains("cannot be taken away"), "{refused}");
    cluster.delete(&format!("{DATASETS}/two")).await.unwrap();
    let warmup = json!({
        "apiVersion": "weir.io/v1alpha1", "kind": "Warmup",
        "metadata": { "name": "w", "namespace": "team-a" }, "spec": { "dataset": "images" },
    });
    cluster.post(WARMUPS, &warmup).await.unwrap();
    let other = json!({ "spec": { "dataset": "other" } });
    let refused = cluster
        .merge(&format!("{WARMUPS}/w"), &other)
        .await
        .unwrap_err();
    assert!(refused.contains("make another one"), "{refused}");
    cluster.delete(&format!("{WARMUPS}/w")).await.unwrap();
}

async fn datasets_become_claims(cluster: &Cluster) {
    cluster
        .post(DATASETS, &dataset("images", bucket()))
        .await
        .unwrap();
    let claim = format!("{CLAIMS}/images");
    until("a claim", || async { cluster.get(&claim).await.is_some() }).await;
    cluster.bind(&claim, "weir.team-a.images").await;
    until("a Dataset that is ready", || async {
        let object = cluster.get(&format!("{DATASETS}/images")).await.unwrap();
        object["status"]["phase"] == "Ready"
    })
    .await;
    let object = cluster.get(&format!("{DATASETS}/images")).await.unwrap();
    assert_eq!(
        object["status"]["observedGeneration"],
        object["metadata"]["generation"]
    );
    assert_eq!(object["status"]["snapshot"], 1);
    an_event(cluster, "Ready", "images").await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/weir-system/leases/weir-operator";
    assert!(cluster.get(leases).await.is_some());
}

/// Waits for an event of an object of team-a.
async fn an_event(cluster: &Cluster, reason: &str, object: &str) {
    let events = "/apis/events.k8s.io/v1/namespaces/team-a/events?limit=2000";
    until("an event", || async {
        let events = cluster.get(events).await.unwrap();
        let mut events = events["items"].as_array().unwrap().iter();
        events.any(|event| event["reason"] == reason && event["regarding"]["name"] == object)
    })
    .await;
}

/// An annotation that is taken from a Dataset goes from its volume and claim.
async fn annotations_go(cluster: &Cluster) {
    let path = format!("{DATASETS}/images");
    let objects = [
        "/api/v1/persistentvolumes/weir.team-a.images".to_owned(),
        format!("{CLAIMS}/images"),
    ];
    for owner in [json!("vision"), Value::Null] {
        let patch = json!({ "metadata": { "annotations": { "owner": owner } } });
        cluster.merge(&path, &patch).await.unwrap();
        for object in &objects {
            until("the owner of a Dataset on its volume and claim", || async {
                let annotations = &cluster.get(object).await.unwrap()["metadata"]["annotations"];
                annotations["owner"] == owner && annotations["description"] == "s3://bucket/data"
            })
            .await;
        }
    }
}

async fn warmups_are_done(cluster: &Cluster, master: &MemoryMaster) {
    let warmup = json!({
        "apiVersion": "weir.io/v1alpha1", "kind": "Warmup",
        "metadata": { "name": "early", "namespace": "team-a" }, "spec": { "dataset": "images" },
    });
    master.warm(Some(40));
    cluster.post(WARMUPS, &warmup).await.unwrap();
    an_event(cluster, "Running", "early").await;
    master.warm(None);
    until("a Warmup that is done", || async {
        let object = cluster.get(&format!("{WARMUPS}/early")).await.unwrap();
        object["status"]["phase"] == "Done" && object["status"]["progress"] == "100%"
    })
    .await;
    an_event(cluster, "Done", "early").await;
    cluster.delete(&format!("{WARMUPS}/early")).await.unwrap();
    until("a Warmup that is gone", || async {
        cluster.get(&format!("{WARMUPS}/early")).await.is_none()
    })
    .await;
}

async fn secrets_need_a_binding(cluster: &Cluster, master: &MemoryMaster) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys", "namespace": "team-a" },
        "stringData": { "access_key_id": "open", "secret_access_key": "hunter2" },
    });
    cluster
        .post("/api/v1/namespaces/team-a/secrets", &secret)
        .await
        .unwrap();
    let spec = json!({ "sources": [{ "url": "s3://bucket/closed", "credentials": "keys" }] });
    cluster
        .post(DATASETS, &dataset("closed", spec))
        .await
        .unwrap();
    let path = format!("{DATASETS}/closed");
    until("a condition that says so", || async {
        let object = cluster.get(&path).await.unwrap();
        object["status"].to_string().contains("SecretForbidden")
    })
    .await;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": { "name": "weir-secrets", "namespace": "team-a" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "weir-secret-reader" },
        "subjects": [{ "kind": "ServiceAccount", "name": "weir-operator", "namespace": "weir-system" }],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/team-a/rolebindings";
    cluster.post(bindings, &binding).await.unwrap();
    until("credentials at the master", || async {
        master.has_credentials("team-a/keys")
    })
    .await;
    cluster.delete(&path).await.unwrap();
    gone(cluster, "closed").await;
    assert!(!master.has_credentials("team-a/keys"));
}

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["containers"] = json!([{
        "name": "train", "image": "train:1",
        "resources": { "limits": { "nvidia.com/gpu": "8" } },
    }]);
    spec["volumes"] = json!([{ "name": "d", "persistentVolumeClaim": { "claimName": "images" } }]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "team-a" }, "spec": spec,
    })
}

async fn the_webhook_answers(cluster: &Cluster, webhook: SocketAddr) {
    cluster.install_webhook(webhook).await;
    until("a webhook that is trusted", || async {
        let bad = dataset("bad", json!({ "sources": [{ "url": "gopher://x" }] }));
        let refused = cluster.post(DATASETS, &bad).await;
        let is_refused = refused
            .as_ref()
            .is_err_and(|message| message.contains("spec.sources[0]: origin gopher"));
        if refused.is_ok() {
            cluster.delete(&format!("{DATASETS}/bad")).await.unwrap();
        }
        is_refused
    })
    .await;
    let moved = json!({ "spec": { "sources": [{ "url": "s3://other" }] } });
    let refused = cluster
        .merge(&format!("{DATASETS}/images"), &moved)
        .await
        .unwrap_err();
    assert!(refused.contains("cannot be moved"), "{refused}");
    // One who may make Datasets and read no Secrets.
    let spec = json!({ "sources": [{ "url": "s3://bucket/x", "credentials": "keys" }] });
    let refused = cluster
        .post_as("ann", DATASETS, &dataset("sneaky", spec))
        .await
        .unwrap_err();
    assert!(
        refused.contains("ann may not read Secret keys"),
        "{refused}"
    );
    cluster
        .post_as("ann", DATASETS, &dataset("honest", bucket()))
        .await
        .unwrap();
    cluster.delete(&format!("{DATASETS}/honest")).await.unwrap();
    let own = json!({ "key": "gpu", "operator": "In", "values": ["a100"] });
    let spec = json!({
        "schedulingGates": [{ "name": "kueue.x-k8s.io/admission" }],
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [own] }],
        } } },
    });
    // The apiserver takes a moment to know a new configuration.
    let mut number = 0;
    let made = loop {
        number += 1;
        let made = cluster
            .post(PODS, &pod(&format!("train-{number}"), spec.clone()))
            .await
            .unwrap();
        if made["metadata"]["annotations"]["weir.io/placed-by"] == "team-a/images" {
            break made;
        }
        assert!(number < 100, "{made}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let affinity = &made["spec"]["affinity"]["nodeAffinity"];
    let preferred = &affinity["preferredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(
        preferred[0]["preference"]["matchExpressions"][0]["values"],
        json!(["node-1"])
    );
    let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(
        required["nodeSelectorTerms"][0]["matchExpressions"],
        json!([own])
    );
    assert_eq!(made["spec"]["schedulingGates"], spec["schedulingGates"]);
    assert_eq!(
        made["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"],
        "8"
    );
}

async fn pods_are_made_without_it(cluster: &Cluster) {
    let made = cluster.post(PODS, &pod("alone", json!({}))).await.unwrap();
    assert!(made["spec"]["affinity"].is_null());
    let spec = json!({ "sources": [{ "url": "s3://bucket/x", "credentials": "keys" }] });
    let refused = cluster
        .post_as("ann", DATASETS, &dataset("sneaky", spec))
        .await
        .unwrap_err();
    assert!(
        refused.contains("secrets.weir.io"),
        "a right that nobody proves is none: {refused}"
    );
}

async fn a_deleted_dataset_leaves_nothing(cluster: &Cluster) {
    cluster.delete(&format!("{DATASETS}/images")).await.unwrap();
    gone(cluster, "images").await;
    assert!(cluster.get(&format!("{CLAIMS}/images")).await.is_none());
}

/// Waits until nothing is left of a Dataset that was deleted.
async fn gone(cluster: &Cluster, name: &str) {
    let claim = format!("{CLAIMS}/{name}");
    let volume = format!("/api/v1/persistentvolumes/weir.team-a.{name}");
    until("a Dataset that is gone", || async {
        // Without a controller-manager nobody takes the protection of claims and volumes away.
        cluster.unprotect(&claim).await;
        cluster.unprotect(&volume).await;
        cluster.get(&format!("{DATASETS}/{name}")).await.is_none()
            && cluster.get(&volume).await.is_none()
    })
    .await;
}
