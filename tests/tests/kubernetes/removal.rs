//! What is left when Weir is uninstalled: the last cases, since nothing runs after them.

use std::time::Duration;

use serde_json::json;
use weir_tests::wait_until;

use crate::Case;
use crate::kubernetes::cluster::root;
use crate::kubernetes::installation::{Installation, NAMESPACE, endpoint};
use crate::kubernetes::objects::{kubectl, of_all};
use crate::kubernetes::pools::standing;
use crate::kubernetes::upgrade::IMAGE;
use crate::kubernetes::volumes::{create, inline, pod};

pub(crate) const CASES: &[Case] = &[
    (
        "uninstalling_leaves_no_finalizer_and_no_gated_pod",
        uninstalling_leaves_no_finalizer_and_no_gated_pod,
    ),
    (
        "plain_manifests_install_and_remove_it",
        plain_manifests_install_and_remove_it,
    ),
];

/// What an operator that has died holds: a Dataset, and a pod that waits for its data.
fn held() -> String {
    let dataset = of_all("left", &endpoint());
    format!(
        "{dataset}---
apiVersion: v1
kind: Pod
metadata: {{name: waits, labels: {{weir.io/waits-for-data: \"true\"}}}}
spec:
  schedulingGates: [{{name: weir.io/data}}, {{name: example.org/other}}]
  containers: [{{name: c, image: lab.local/busybox:1, command: [sleep, \"3600\"]}}]
"
    )
}

fn uninstalling_leaves_no_finalizer_and_no_gated_pod(weir: &Installation) {
    let cluster = &weir.cluster;
    cluster.apply(&held());
    let ready = [
        "wait",
        "--for=condition=Ready",
        "dataset/left",
        "--timeout=60s",
    ];
    cluster.kubectl(&ready).ok();
    assert_eq!(
        cluster.get(&["dataset", "left"])["metadata"]["finalizers"],
        json!(["weir.io/dataset"])
    );
    let uninstall = ["helm", "uninstall", "weir", "--namespace", NAMESPACE];
    let wait = ["--wait", "--timeout=200s"];
    cluster.exec(&[&uninstall[..], &wait].concat()).ok();
    let dataset = cluster.get(&["dataset", "left"]);
    assert!(dataset["metadata"]["finalizers"].is_null(), "{dataset}");
    let pod = cluster.get(&["pod", "waits"]);
    assert_eq!(
        pod["spec"]["schedulingGates"],
        json!([{ "name": "example.org/other" }])
    );
    let workloads = "pods,jobs,daemonsets,deployments,statefulsets";
    wait_until("all pods are gone", Duration::from_mins(1), || {
        let left = cluster.get(&["-n", NAMESPACE, workloads]);
        left["items"] == json!([])
    });
    let asked = "mutatingwebhookconfigurations,validatingwebhookconfigurations";
    let configurations = cluster.get(&[asked, "-l", "app.kubernetes.io/name=weir"]);
    assert_eq!(configurations["items"], json!([]));
    // What was made of the Dataset stays for its pods, and goes as anything does.
    for object in [
        "dataset/left",
        "pvc/left",
        "pv/weir.default.left",
        "pod/waits",
    ] {
        cluster.kubectl(&["delete", object, "--timeout=60s"]).ok();
    }
}

/// As docs/kubernetes.md says it is done without Helm. What is to be there before has stayed: definitions, namespace and Secrets.
fn plain_manifests_install_and_remove_it(weir: &Installation) {
    let cluster = &weir.cluster;
    let plain = std::fs::read_to_string(root().join("deploy/kubernetes/weir.yaml")).unwrap();
    let plain = plain.replace("image: weir:0.1.0", &format!("image: {IMAGE}"));
    let file = cluster.scratch.path("plain.yaml");
    std::fs::write(&file, plain).unwrap();
    let file = file.to_str().unwrap();
    cluster.kubectl(&["apply", "-f", file]).ok();
    for workload in ["sts/weir-master", "deploy/weir-operator", "ds/weir-plugin"] {
        let status = ["rollout", "status", workload, "--timeout=100s"];
        kubectl(weir, NAMESPACE, &status);
    }
    wait_until("the node has a worker", Duration::from_mins(2), || {
        standing(weir, "node-1") == "active"
    });
    create(weir, "plain");
    let volume = inline("dataset: plain");
    cluster.apply(&pod(weir, "plain", 1, &volume, "diff -r /expected /data"));
    cluster.wait_for_end("plain");
    kubectl(weir, "default", &["delete", "pod/plain", "--timeout=60s"]);

    let image = format!("--image={IMAGE}");
    let account = r#"--overrides={"spec": {"serviceAccountName": "weir-operator"}}"#;
    let run = ["run", "retire", "--rm", "-i", "--restart=Never", &image];
    let retire = [account, "--", "operator", "retire"];
    kubectl(weir, NAMESPACE, &[&run[..], &retire].concat());
    // Weir has taken its webhook for pods away itself.
    let delete = ["delete", "--ignore-not-found", "-f", file, "--timeout=100s"];
    cluster.kubectl(&delete).ok();
    wait_until("all pods are gone", Duration::from_mins(1), || {
        cluster.get(&["-n", NAMESPACE, "pods"])["items"] == json!([])
    });
    let stays = ["get", "secret/weir-ca", "secret/weir-credentials-key"];
    kubectl(
        weir,
        NAMESPACE,
        &[&stays[..], &["pvc/state-weir-master-0"]].concat(),
    );
}
