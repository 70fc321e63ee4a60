//! Certificates for pods whose tokens a real apiserver has made, and reads.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tonic::Code;
use weir_operator::{OwnCertificate, SigningConfig};
use weir_proto::v1;
use weir_proto::v1::certificates_client::CertificatesClient;
use weir_trust::{Authority, Dial, Identity, Issued, Renewal, Request, Role, SIGNER, Validity};

use crate::cluster::{Cluster, free_address, until};

const ACCOUNTS: &str = "/api/v1/namespaces/weir-system/serviceaccounts";
const PODS: &str = "/api/v1/namespaces/weir-system/pods";
const AUTHORITY: &str = "/api/v1/namespaces/weir-system/configmaps/weir-authority";

/// An authority, and what the operator needs to sign with it.
pub(crate) async fn prepare(dir: &Path) -> SigningConfig {
    let (ca, own) = (dir.join("ca"), dir.join("operator"));
    Authority::init(&ca, Validity::default()).unwrap();
    let signer = Arc::new(OwnCertificate::new(ca.clone()));
    let patience = Duration::from_secs(5);
    Renewal::start(&own, signer, patience).await.unwrap();
    SigningConfig {
        listen: free_address(),
        authority: ca,
        identity: Identity::load(&own).unwrap(),
    }
}

async fn make_pod(cluster: &Cluster, name: &str, account: &str) -> Value {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "weir-system", "annotations": {
            "weir.io/zone-label": "topology.kubernetes.io/zone", "weir.io/max-weight": "1GiB",
        } },
        "spec": {
            "serviceAccountName": account, "nodeName": "gpu-1",
            "containers": [{ "name": "weir", "image": "weir:1" }],
        },
    });
    cluster.post(PODS, &pod).await.unwrap()
}

/// A token as kubelet projects it.
async fn token(cluster: &Cluster, account: &str, audience: &str, pod: &Value) -> String {
    let bound = json!({
        "kind": "Pod", "apiVersion": "v1",
        "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
    });
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "metadata": { "namespace": "weir-system" },
        "spec": { "audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound },
    });
    let made = cluster
        .post(&format!("{ACCOUNTS}/{account}/token"), &request)
        .await;
    made.unwrap()["status"]["token"]
        .as_str()
        .unwrap()
        .to_owned()
}

pub(crate) async fn pods_are_given_certificates(cluster: &Cluster, at: SocketAddr, dir: &Path) {
    until("an authority that is published", || async {
        cluster.get(AUTHORITY).await.is_some()
    })
    .await;
    let published = cluster.get(AUTHORITY).await.unwrap();
    let ca = dir.join("published.crt");
    std::fs::write(&ca, published["data"]["ca.crt"].as_str().unwrap()).unwrap();
    let identity = Identity::trusting(&ca).unwrap();
    let dial = Dial::new(Some(identity)).expecting(SIGNER);
    let channel = dial.channel(&at.to_string(), Role::Admin, Duration::from_secs(5));
    let client = CertificatesClient::new(channel.unwrap());
    let ask = |role: &'static str, token: &str, request: &Request| {
        let asked = v1::SignRequest {
            request: request.der().to_vec(),
            role: role.to_owned(),
            token: token.to_owned(),
        };
        let mut client = client.clone();
        async move {
            let signed = client.sign(asked).await.map(tonic::Response::into_inner);
            signed.map_err(|status| (status.code(), status.message().to_owned()))
        }
    };
    let labels = json!({ "topology.kubernetes.io/zone": "a" });
    let node = json!({ "kind": "Node", "metadata": { "name": "gpu-1", "labels": labels } });
    cluster.post("/api/v1/nodes", &node).await.unwrap();
    let pod = make_pod(cluster, "weir-worker-x", "weir-worker").await;
    let ours = token(cluster, "weir-worker", "weir-operator", &pod).await;
    let request = Request::new().unwrap();
    let (code, why) = ask("worker", &ours, &request).await.unwrap_err();
    assert_eq!(
        code,
        Code::Unavailable,
        "kubelet has not told the address: {why}"
    );
    let status = json!({ "status": { "phase": "Running", "podIPs": [{ "ip": "10.1.0.7" }] } });
    let status_of = format!("{PODS}/weir-worker-x/status");
    cluster.merge(&status_of, &status).await.unwrap();
    let reply = ask("worker", &ours, &request).await.unwrap();
    let issued = Issued {
        certificate: reply.certificate,
        authorities: reply.authorities,
    };
    let peer = request.keep(&issued, &dir.join("worker")).unwrap();
    assert_eq!(peer.subject.to_string(), "worker gpu-1");
    assert_eq!(peer.subject.place.zone.unwrap().as_str(), "a");
    assert_eq!(peer.subject.max_weight.unwrap().0, 1 << 30);
    assert_eq!(peer.addresses, ["10.1.0.7"]);

    let mount = make_pod(cluster, "weir-plugin-x", "weir-plugin").await;
    let mounts = token(cluster, "weir-plugin", "weir-operator", &mount).await;
    let other = token(cluster, "weir-worker", "somebody-else", &pod).await;
    let forged = format!("{ours}x");
    for (role, token, code, part) in [
        (
            "worker",
            &mounts,
            Code::PermissionDenied,
            "of role mount, not of worker",
        ),
        (
            "worker",
            &other,
            Code::Unauthenticated,
            "for the audience weir-operator",
        ),
        (
            "worker",
            &forged,
            Code::Unauthenticated,
            "does not take the token",
        ),
    ] {
        let (said, why) = ask(role, token, &request).await.unwrap_err();
        assert!(said == code && why.contains(part), "{said:?} {why}");
    }
    ask("mount", &mounts, &request).await.unwrap();
    // The token of a pod that has gone, and of one that has its name.
    cluster.delete_now(&format!("{PODS}/weir-worker-x")).await;
    let (_, why) = ask("worker", &ours, &request).await.unwrap_err();
    assert!(why.contains("token"), "{why}");
    make_pod(cluster, "weir-worker-x", "weir-worker").await;
    let (_, why) = ask("worker", &ours, &request).await.unwrap_err();
    assert!(why.contains("token"), "{why}");
    for pod in ["weir-worker-x", "weir-plugin-x"] {
        cluster.delete_now(&format!("{PODS}/{pod}")).await;
    }
}
