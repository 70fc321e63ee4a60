//! What is left when Weir is uninstalled: the last cases, since nothing runs after them.

use std::time::Duration;

use serde_json::json;
use weir_tests::wait_until;

use crate::Case;
use crate::kubernetes::installation::{Installation, NAMESPACE, endpoint};
use crate::kubernetes::objects::of_all;

pub(crate) const CASES: &[Case] = &[(
    "uninstalling_leaves_no_finalizer_and_no_gated_pod",
    uninstalling_leaves_no_finalizer_and_no_gated_pod,
)];

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
