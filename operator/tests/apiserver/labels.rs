//! What the node plugin may learn of its node.

use serde_json::{Value, json};
use weir_operator::NodeLabels;

use crate::cluster::{Cluster, collection, rendered};

const PLUGIN: &str = "system:serviceaccount:weir-system:weir-plugin";
const TEMPLATE: &str = "templates/plugin.yaml";
const NODES: &str = "/api/v1/nodes";
const LABEL: &str = "weir.io/group";

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

/// Whether each of its pods has a token for the apiserver, by the name of what makes them.
fn tokens(objects: &[Value]) -> Vec<(String, bool)> {
    let sets = of_kind(objects, "DaemonSet").into_iter();
    sets.map(|set| {
        let token = &set["spec"]["template"]["spec"]["automountServiceAccountToken"];
        let name = set["metadata"]["name"].as_str().unwrap();
        (name.to_owned(), token.as_bool().unwrap())
    })
    .collect()
}

pub(crate) async fn the_plugin_may_read_nodes_where_they_have_a_group(cluster: &Cluster) {
    for (name, labels) in [("node-7", json!({ LABEL: "a" })), ("node-8", json!({}))] {
        let node = json!({ "metadata": { "name": name, "labels": labels } });
        cluster.post(NODES, &node).await.unwrap();
    }
    let label = async |node: &str| {
        let labels = NodeLabels::new(cluster.client_as(PLUGIN), node);
        labels.label(LABEL).await.map_err(|error| error.to_string())
    };
    // Without a group nothing is reported to kubelet, and nothing is to be read.
    let without = rendered(TEMPLATE, "worker.group=");
    assert_eq!(of_kind(&without, "ClusterRole"), [] as [&Value; 0]);
    assert!(
        tokens(&without).iter().all(|(_, token)| !token),
        "{without:?}"
    );
    let refused = label("node-7").await.unwrap_err();
    assert!(refused.contains("forbidden"), "{refused}");

    let with = rendered(TEMPLATE, "worker.group=rack-7");
    let expected = [("weir-plugin", true), ("weir-holder", false)];
    assert_eq!(
        tokens(&with),
        expected.map(|(name, token)| (name.to_owned(), token))
    );
    for kind in ["ClusterRole", "ClusterRoleBinding"] {
        let [object] = of_kind(&with, kind)[..] else {
            panic!("not one {kind}");
        };
        cluster.post(&collection(object), object).await.unwrap();
    }
    crate::until("rights of the plugin", || async {
        label("node-7").await.is_ok()
    })
    .await;
    assert_eq!(label("node-7").await.unwrap().as_deref(), Some("a"));
    assert_eq!(label("node-8").await.unwrap(), None);
    assert!(label("node-9").await.unwrap_err().contains("not found"));
    let kind = "application/merge-patch+json";
    let change = json!({ "metadata": { "labels": { LABEL: "b" } } });
    let node = format!("{NODES}/node-7");
    let changed = cluster.patch_as(PLUGIN, &node, kind, &change).await;
    assert!(changed.unwrap_err().contains("forbidden"));
    let listed = cluster.client_as(PLUGIN);
    let request = http::Request::get(NODES).body(Vec::new()).unwrap();
    assert!(listed.request_text(request).await.is_err());
    for name in ["node-7", "node-8"] {
        cluster.delete(&format!("{NODES}/{name}")).await.unwrap();
    }
}
