//! Nodes with a group, whose label somebody else has set.

use std::time::Duration;

use serde_json::Value;
use weir_tests::wait_until;

use crate::Case;
use crate::kubernetes::chart::KUBE_VERSION;
use crate::kubernetes::cluster::root;
use crate::kubernetes::installation::{Installation, NAMESPACE, REALMS, SETTINGS};

pub(crate) const CASES: &[Case] = &[(
    "a_label_of_another_group_does_not_refuse_the_driver",
    a_label_of_another_group_does_not_refuse_the_driver,
)];

const LABEL: &str = "weir.io/group";
const SOON: Duration = Duration::from_secs(90);

/// Applies what the chart makes for the node plugin with this group, and waits until its pods are of it.
fn apply_plugin(weir: &Installation, group: &str) {
    let chart = root().join("deploy/helm/weir");
    let mut args = vec!["helm", "template", "weir", chart.to_str().unwrap()];
    args.extend([KUBE_VERSION, "--namespace", NAMESPACE]);
    args.extend(["--show-only", "templates/plugin.yaml"]);
    let group = format!("worker.group={group}");
    for setting in SETTINGS.iter().chain(&[REALMS, &group]) {
        args.extend(["--set", setting]);
    }
    let made = weir.cluster.exec(&args).ok();
    let path = weir.cluster.scratch.path("plugin.yaml");
    std::fs::write(&path, made).unwrap();
    let apply = ["apply", "-n", NAMESPACE, "-f", path.to_str().unwrap()];
    weir.cluster.kubectl(&apply).ok();
    for set in ["daemonset/weir-plugin", "daemonset/weir-holder"] {
        let status = ["-n", NAMESPACE, "rollout", "status", set, "--timeout=180s"];
        weir.cluster.kubectl(&status).ok();
    }
}

/// What kubelet has made of what the plugin of a node reported: the keys, and the label's value.
fn registered(weir: &Installation, node: &str) -> (Value, Value) {
    let csi = weir.cluster.get(&["csinode", node]);
    let drivers = csi["spec"]["drivers"].as_array();
    let mut drivers = drivers.into_iter().flatten();
    let driver = drivers.find(|driver| driver["name"] == "csi.weir.io");
    let keys = driver.map(|driver| driver["topologyKeys"].clone());
    let labels = weir.cluster.get(&["node", node])["metadata"]["labels"].clone();
    (keys.unwrap_or_default(), labels[LABEL].clone())
}

fn differs(weir: &Installation, node: &str) -> bool {
    let chosen = "app.kubernetes.io/component=plugin";
    let field = format!("spec.nodeName={node}");
    let pods = weir.cluster.get(&[
        "-n",
        NAMESPACE,
        "pods",
        "-l",
        chosen,
        "--field-selector",
        &field,
    ]);
    let pods = pods["items"].as_array().unwrap();
    let runs = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let pod = pods.iter().find(runs).unwrap();
    let name = pod["metadata"]["name"].as_str().unwrap();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}:7461/proxy/metrics");
    let metrics = weir.cluster.kubectl(&["get", "--raw", &path]).ok();
    metrics
        .lines()
        .any(|line| line == "weir_csi_group_differs 1")
}

fn a_label_of_another_group_does_not_refuse_the_driver(weir: &Installation) {
    let label = format!("{LABEL}=a");
    weir.cluster
        .kubectl(&["label", "node", "node-1", &label])
        .ok();
    apply_plugin(weir, "b");
    // Node 2 has no label, and gets what is reported.
    for (node, group) in [("node-1", "a"), ("node-2", "b")] {
        wait_until("kubelet takes the driver", SOON, || {
            let (keys, value) = registered(weir, node);
            keys[0] == LABEL && value == group
        });
        assert_eq!(differs(weir, node), group == "a", "{node}");
    }
    // As the installation was.
    apply_plugin(weir, "");
    for kind in ["clusterrole", "clusterrolebinding"] {
        weir.cluster.kubectl(&["delete", kind, "weir-plugin"]).ok();
    }
    let gone = format!("{LABEL}-");
    weir.cluster
        .kubectl(&["label", "nodes", "--all", &gone])
        .ok();
    for node in ["node-1", "node-2"] {
        wait_until("kubelet takes the driver without a group", SOON, || {
            registered(weir, node)
                .0
                .as_array()
                .is_none_or(Vec::is_empty)
        });
    }
}
