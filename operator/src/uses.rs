//! Whether a pod on a node uses a dataset: only then the node's mounts are given the dataset's credentials.
//!
//! That is read from what the scheduler has bound to the node, and never from what the node says of itself.

use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use weir_core::DatasetName;
use weir_proto::v1;

use crate::volumes::{DATASET_ATTRIBUTE, DRIVER, has_ended, inline_datasets, named_in};

/// Claims of a node's pods that are looked at, and how many at once.
const MAX_CLAIMS: usize = 512;
const CONCURRENT: usize = 8;

/// Whether a pod that has not ended uses a dataset on a node; none if that cannot be told now.
pub(crate) async fn is_used(client: &Client, asked: &v1::NodeUse) -> Option<bool> {
    let dataset: DatasetName = asked.dataset.parse().ok()?;
    let looked = look(client, asked, &dataset).await;
    looked
        .inspect_err(|error| {
            tracing::warn!(node = %asked.node, %dataset, %error, "it is not known whether pods of a node use a dataset");
        })
        .ok()
}

async fn look(
    client: &Client,
    asked: &v1::NodeUse,
    dataset: &DatasetName,
) -> Result<bool, kube::Error> {
    // What the apiserver has in memory: it may lack what came a moment ago, and costs no look at all pods.
    let on_node = ListParams::default()
        .fields(&format!("spec.nodeName={}", asked.node))
        .match_any();
    let pods = Api::<Pod>::all(client.clone()).list(&on_node).await?;
    let mut claims = Vec::new();
    for pod in pods.items.iter().filter(|pod| !has_ended(pod)) {
        let Some(namespace) = pod.namespace() else {
            continue;
        };
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.as_ref());
        if node != Some(&asked.node) || !asked.namespaces.contains(&namespace) {
            continue;
        }
        if inline_datasets(pod, &namespace).any(|named| named == *dataset) {
            return Ok(true);
        }
        let volumes = spec.and_then(|spec| spec.volumes.as_ref());
        let named = volumes.into_iter().flatten();
        let named = named.filter_map(|volume| volume.persistent_volume_claim.as_ref());
        claims.extend(named.map(|claim| (namespace.clone(), claim.claim_name.clone())));
    }
    claims.sort_unstable_by_key(|(namespace, claim)| {
        (claim != dataset.name(), namespace.clone(), claim.clone())
    });
    claims.dedup();
    let looks = claims.into_iter().take(MAX_CLAIMS);
    let mut looks = futures::stream::iter(looks)
        .map(|(namespace, claim)| async move { of_claim(client, &namespace, &claim).await })
        .buffered(CONCURRENT);
    while let Some(found) = looks.next().await {
        if found?.as_ref() == Some(dataset) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The dataset that a claim is bound to, whoever made its volume.
async fn of_claim(
    client: &Client,
    namespace: &str,
    claim: &str,
) -> Result<Option<DatasetName>, kube::Error> {
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
    let claim = claims.get_opt(claim).await?;
    let volume = claim
        .and_then(|claim| claim.spec)
        .and_then(|spec| spec.volume_name);
    let Some(volume) = volume.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let source = volumes
        .get_opt(&volume)
        .await?
        .and_then(|volume| volume.spec)
        .and_then(|spec| spec.csi)
        .filter(|csi| csi.driver == DRIVER);
    let attributes = source.and_then(|csi| csi.volume_attributes);
    let named = attributes.as_ref().and_then(|of| of.get(DATASET_ATTRIBUTE));
    Ok(named.and_then(|named| named_in(named, namespace)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::FakeApi;

    fn put_pod(api: &FakeApi, name: &str, node: &str, volumes: Value, phase: &str) {
        api.put(
            &format!("/api/v1/namespaces/team-a/pods/{name}"),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": "team-a" },
                "spec": { "nodeName": node, "containers": [], "volumes": volumes },
                "status": { "phase": phase },
            }),
        );
    }

    fn put_claim(api: &FakeApi, name: &str, driver: &str, dataset: &str) {
        api.put(
            &format!("/api/v1/namespaces/team-a/persistentvolumeclaims/{name}"),
            json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": { "name": name, "namespace": "team-a" },
                "spec": { "volumeName": format!("pv-{name}") },
            }),
        );
        api.put(
            &format!("/api/v1/persistentvolumes/pv-{name}"),
            json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": { "name": format!("pv-{name}") },
                "spec": { "csi": {
                    "driver": driver, "volumeHandle": "x", "volumeAttributes": { "dataset": dataset },
                } },
            }),
        );
    }

    fn inline(dataset: &str) -> Value {
        json!([{ "name": "d", "csi": { "driver": DRIVER, "volumeAttributes": { "dataset": dataset } } }])
    }

    fn claim(name: &str) -> Value {
        json!([{ "name": "d", "persistentVolumeClaim": { "claimName": name } }])
    }

    fn asked(node: &str, dataset: &str, namespaces: &[&str]) -> v1::NodeUse {
        v1::NodeUse {
            node: node.to_owned(),
            dataset: dataset.to_owned(),
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
        }
    }

    #[tokio::test]
    async fn a_dataset_is_used_where_a_pod_that_may_has_it_and_nowhere_else() {
        let (client, api) = FakeApi::start();
        put_claim(&api, "images", DRIVER, "team-a/images");
        put_claim(&api, "by-hand", DRIVER, "shared@3");
        put_claim(&api, "lent", DRIVER, " team-b/lent@7 ");
        put_claim(&api, "disk", "disk.csi.example.com", "team-a/disk");
        put_pod(&api, "a", "n1", claim("images"), "Running");
        put_pod(&api, "b", "n1", claim("by-hand"), "Pending");
        put_pod(&api, "c", "n1", claim("lent"), "Running");
        put_pod(&api, "d", "n1", claim("disk"), "Running");
        put_pod(&api, "e", "n1", claim("missing"), "Pending");
        put_pod(&api, "f", "n2", inline("text@2"), "Running");
        put_pod(&api, "g", "n2", inline("team-b/other"), "Running");
        put_pod(&api, "h", "n2", inline("ended"), "Succeeded");
        for (node, dataset, namespaces, used) in [
            ("n1", "team-a/images", &["team-a"][..], true),
            ("n1", "team-a/shared", &["team-a"], true),
            ("n1", "team-b/lent", &["team-b", "team-a"], true),
            ("n1", "team-b/lent", &["team-b"], false),
            ("n1", "team-a/disk", &["team-a"], false),
            ("n1", "team-a/text", &["team-a"], false),
            ("n2", "team-a/images", &["team-a"], false),
            ("n2", "team-a/text", &["team-a"], true),
            ("n2", "team-b/other", &["team-b"], false),
            ("n2", "team-b/other", &["team-b", "team-a"], true),
            ("n2", "team-a/ended", &["team-a"], false),
            ("n3", "team-a/images", &["team-a"], false),
            ("n1,spec.nodeName!=n2", "team-a/images", &["team-a"], false),
        ] {
            let asked = asked(node, dataset, namespaces);
            assert_eq!(is_used(&client, &asked).await, Some(used), "{asked:?}");
        }
    }

    #[tokio::test]
    async fn what_the_apiserver_does_not_say_is_no_answer() {
        let (client, api) = FakeApi::start();
        put_claim(&api, "images", DRIVER, "team-a/images");
        put_pod(&api, "a", "n1", claim("images"), "Running");
        let asked = asked("n1", "team-a/images", &["team-a"]);
        for path in ["/api/v1/persistentvolumes/pv-images", "/api/v1/pods"] {
            api.refuse(path, 403);
            assert_eq!(is_used(&client, &asked).await, None, "{path}");
            api.refuse(path, 0);
        }
        assert_eq!(is_used(&client, &asked).await, Some(true));
    }
}
