//! What a pod's certificate says: what the apiserver knows of the pod, and nothing that it says itself.
//!
//! The address is the one that kubelet has told the apiserver of this pod. No other pod of the network has it, so a call back to it
//! would prove no more. A pod in the network of its node has the node's, which it shares with all such pods there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tonic::Status;
use weir_core::{ByteSize, NodeName, PlaceName};
use weir_trust::{Place, Role, Subject};

use super::token::Bearer;
use crate::objects::{
    GROUP_LABEL_ANNOTATION, POOL_ANNOTATION, WEIGHT_ANNOTATION, ZONE_LABEL_ANNOTATION,
};

/// The pod that a token was made for, if it is still there.
pub(super) fn same(pod: Option<Pod>, bearer: &Bearer) -> Result<Pod, Status> {
    let gone = |what: String| Err(Status::permission_denied(what));
    let name = &bearer.pod;
    let Some(pod) = pod else {
        return gone(format!("the pod {name} of this token has gone"));
    };
    if pod.uid().as_deref() != Some(&bearer.uid) {
        return gone(format!(
            "the pod {name} of this token has gone, and another one has its name"
        ));
    }
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|spec| spec.service_account_name.as_deref());
    if account != Some(&bearer.account) {
        return gone(format!(
            "the pod {name} has another service account than its token"
        ));
    }
    let node = spec.and_then(|spec| spec.node_name.as_deref());
    if bearer.node.is_some() && node.is_some() && bearer.node.as_deref() != node {
        return gone(format!("the pod {name} is on another node than its token"));
    }
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    if let Some(phase @ ("Succeeded" | "Failed")) = phase {
        // Its address may be another pod's by now.
        return gone(format!("the pod {name} has ended ({phase})"));
    }
    Ok(pod)
}

/// Whether a pod's certificate depends on its node's labels.
pub(super) fn is_placed(pod: &Pod, role: Role) -> bool {
    let keys = [ZONE_LABEL_ANNOTATION, GROUP_LABEL_ANNOTATION];
    role == Role::Worker && keys.iter().any(|key| pod.annotations().contains_key(*key))
}

/// Whom a pod's certificate names, and which addresses. `labels` are those of its node.
pub(super) fn named(
    pod: &Pod,
    labels: &BTreeMap<String, String>,
    role: Role,
) -> Result<(Subject, Vec<String>), Status> {
    let not_yet = |what: &str| {
        Status::unavailable(format!(
            "the apiserver does not know the pod's {what} yet; ask again"
        ))
    };
    let spec = pod.spec.as_ref();
    let node = spec.and_then(|spec| spec.node_name.as_deref());
    let node = node.ok_or_else(|| not_yet("node"))?;
    // What others call is a worker at its address, and everybody else by name.
    let mut addresses = Vec::new();
    let subject = match role {
        Role::Worker => {
            let status = pod.status.iter();
            let known = status.flat_map(|status| status.pod_ips.iter().flatten());
            addresses.extend(known.map(|address| address.ip.clone()));
            if addresses.is_empty() {
                return Err(not_yet("address"));
            }
            let mut subject = Subject::new(role, parse(node, "node")?);
            subject.node = Some(parse::<NodeName>(node, "node")?);
            let said = |key: &str| pod.annotations().get(key);
            let of_node = |key: &str| place(said(key).and_then(|label| labels.get(label)), key);
            subject.place = Place {
                zone: of_node(ZONE_LABEL_ANNOTATION)?,
                group: of_node(GROUP_LABEL_ANNOTATION)?,
                pool: place(said(POOL_ANNOTATION), POOL_ANNOTATION)?,
            };
            subject.max_weight = said(WEIGHT_ANNOTATION).map(|most| sum(most)).transpose()?;
            subject
        }
        Role::Mount => {
            let mut subject = Subject::new(role, parse(node, "node")?);
            subject.node = Some(parse::<NodeName>(node, "node")?);
            subject
        }
        // There is one master, which may be on any node.
        Role::Master | Role::Admin => Subject::new(role, parse(&pod.name_any(), "pod")?),
    };
    Ok((subject, addresses))
}

fn place(name: Option<&String>, key: &str) -> Result<Option<PlaceName>, Status> {
    let name = name.filter(|name| !name.is_empty());
    name.map(|name| parse(name, key)).transpose()
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
    what: &str,
) -> Result<T, Status> {
    text.parse().map_err(|error| {
        Status::permission_denied(format!(
            "no certificate can name the pod's {what} {text:?}: {error}"
        ))
    })
}

fn sum(sizes: &str) -> Result<ByteSize, Status> {
    let mut all = 0u64;
    for size in sizes.split('+') {
        let size: ByteSize = parse(size.trim(), WEIGHT_ANNOTATION)?;
        all = all.saturating_add(size.0);
    }
    Ok(ByteSize(all))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": "weir-worker-x", "uid": "u-1",
                "annotations": {
                    WEIGHT_ANNOTATION: "100GiB+1GiB", POOL_ANNOTATION: "gpu",
                    ZONE_LABEL_ANNOTATION: "topology.kubernetes.io/zone", GROUP_LABEL_ANNOTATION: "rack",
                },
            },
            "spec": { "nodeName": "gpu-1", "serviceAccountName": "weir-worker", "containers": [] },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.1.0.7" }, { "ip": "fd00::7" }] },
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    /// The labels of a node that stands in no rack.
    fn labels() -> BTreeMap<String, String> {
        [("topology.kubernetes.io/zone".to_owned(), "a".to_owned())].into()
    }

    fn bearer() -> Bearer {
        Bearer {
            namespace: "weir-system".to_owned(),
            account: "weir-worker".to_owned(),
            pod: "weir-worker-x".to_owned(),
            uid: "u-1".to_owned(),
            node: Some("gpu-1".to_owned()),
        }
    }

    #[test]
    fn a_worker_is_named_after_its_node_and_bound_to_what_its_pod_has() {
        let (subject, addresses) = named(&pod(|_| ()), &labels(), Role::Worker).unwrap();
        assert_eq!(subject.to_string(), "worker gpu-1");
        assert_eq!(subject.node.unwrap().as_str(), "gpu-1");
        assert_eq!(subject.max_weight, Some(ByteSize(101 << 30)));
        assert_eq!(subject.place.pool.unwrap().as_str(), "gpu");
        assert_eq!(subject.place.zone.unwrap().as_str(), "a");
        assert_eq!(subject.place.group, None);
        assert!(is_placed(&pod(|_| ()), Role::Worker) && !is_placed(&pod(|_| ()), Role::Mount));
        assert_eq!(addresses, ["10.1.0.7", "fd00::7"]);
        let (mount, addresses) = named(&pod(|_| ()), &labels(), Role::Mount).unwrap();
        assert!(addresses.is_empty());
        assert_eq!(mount.to_string(), "mount gpu-1");
        assert_eq!(mount.node.unwrap().as_str(), "gpu-1");
        let (master, _) = named(&pod(|_| ()), &labels(), Role::Master).unwrap();
        assert_eq!(master.to_string(), "master weir-worker-x");
    }

    #[test]
    fn what_is_not_known_yet_is_asked_for_again_and_a_limit_that_is_unclear_is_none() {
        for part in ["spec", "status"] {
            let pod = pod(|pod| pod[part] = json!({ "containers": [] }));
            let status = named(&pod, &labels(), Role::Worker).unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
        }
        for (at, value) in [
            ("/metadata/annotations/weir.io~1max-weight", "much"),
            ("/metadata/annotations/weir.io~1max-weight", "1GiB+"),
            ("/metadata/annotations/weir.io~1pool", "no pool"),
        ] {
            let pod = pod(|pod| *pod.pointer_mut(at).unwrap() = json!(value));
            let status = named(&pod, &labels(), Role::Worker).unwrap_err();
            assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
            assert!(status.message().contains("weir.io/"), "{status}");
        }
    }

    #[test]
    fn a_token_whose_pod_has_gone_is_nobodys() {
        same(Some(pod(|_| ())), &bearer()).unwrap();
        assert!(same(None, &bearer()).is_err());
        for (at, value) in [
            ("/metadata/uid", "u-2"),
            ("/spec/serviceAccountName", "weir-plugin"),
            ("/spec/nodeName", "gpu-2"),
            ("/status/phase", "Failed"),
            ("/status/phase", "Succeeded"),
        ] {
            let other = pod(|pod| *pod.pointer_mut(at).unwrap() = json!(value));
            let status = same(Some(other), &bearer()).unwrap_err();
            assert_eq!(status.code(), tonic::Code::PermissionDenied, "{at}");
        }
    }
}
