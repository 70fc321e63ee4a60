//! On Kubernetes a mount is given credentials only while a pod on its node uses the dataset, as the operator says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_tests::{issue, wait_until};

use crate::Case;
use crate::system::secrets::{client, keyed, runtime, with_dataset};

pub(crate) const CASES: &[Case] = &[(
    "a_mount_is_given_credentials_where_a_pod_uses_its_dataset",
    a_mount_is_given_credentials_where_a_pod_uses_its_dataset,
)];

const SOON: Duration = Duration::from_secs(30);

/// Says what the master asks about nodes, as an operator does, until it is dropped: a pod on `node-1` uses the dataset.
struct Operator {
    stop: CancellationToken,
    asked: Arc<Mutex<Vec<v1::NodeUse>>>,
}

impl Operator {
    fn start(runtime: &Runtime, mut client: MasterClient<Channel>) -> Self {
        let (stop, asked) = (CancellationToken::new(), Arc::default());
        let operator = Self { stop, asked };
        let (stop, seen) = (operator.stop.clone(), operator.asked.clone());
        let answering = async move {
            let mut told = v1::ExchangePodsRequest::default();
            while let Ok(reply) = client.exchange_pods(told).await {
                let asked = reply.into_inner().asked_uses;
                seen.lock().unwrap().extend(asked.iter().cloned());
                let answers = asked.into_iter().map(|asked| v1::KnownUse {
                    used: asked.node == "node-1",
                    r#use: Some(asked),
                });
                told = v1::ExchangePodsRequest {
                    known: Vec::new(),
                    known_uses: answers.collect(),
                };
            }
        };
        runtime.spawn(async move { stop.run_until_cancelled(answering).await });
        operator
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn a_mount_is_given_credentials_where_a_pod_uses_its_dataset() {
    let lab = keyed();
    let cluster = with_dataset(&lab, &["--credentials-by-pods"]);
    for (name, more) in [
        ("node-1", &[][..]),
        ("node-2", &[]),
        ("plugin", &["--node", "node-1"]),
    ] {
        issue(&lab, "mount", name, more);
    }
    let runtime = runtime();
    let fetch = |who: &str, dataset: &str| {
        let mut client = client(&lab, &runtime, &cluster.address(), Some(who));
        let request = v1::FetchCredentialRequest {
            name: "team".to_owned(),
            dataset: dataset.to_owned(),
            known_revision: 0,
        };
        let given = runtime.block_on(client.fetch_credential(request));
        given.map(|given| given.into_inner().credential.is_some())
    };
    // Nobody who knows pods has come by.
    let unknown = fetch("node-1", "set").unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "{unknown}");
    assert!(
        unknown.message().contains("whether the operator runs"),
        "{unknown}"
    );
    assert!(fetch("node-0", "").unwrap(), "workers need no pod");
    assert!(fetch("admin", "set").unwrap(), "people need no pod");

    let admin = client(&lab, &runtime, &cluster.address(), Some("admin"));
    let operator = Operator::start(&runtime, admin);
    wait_until("the operator is asked", SOON, || {
        fetch("node-1", "set").is_ok()
    });
    assert!(
        fetch("plugin", "set").unwrap(),
        "its certificate names the node"
    );
    let denied = fetch("node-2", "set").unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    assert!(
        denied.message().contains("no pod on node node-2 uses it"),
        "{denied}"
    );
    let asked = operator.asked.lock().unwrap().clone();
    let namespaces = |asked: &v1::NodeUse| asked.namespaces == ["default"];
    assert!(asked.iter().all(namespaces), "{asked:?}");
    // Why a dataset cannot be mounted is told to those who mount.
    let listing = v1::GetListingRequest {
        dataset: "missing".to_owned(),
    };
    let mut plugin = client(&lab, &runtime, &cluster.address(), Some("plugin"));
    runtime.block_on(plugin.get_listing(listing)).unwrap();
    let noted = v1::NoteConditionsRequest::default();
    let refused = runtime.block_on(plugin.note_conditions(noted)).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // Nobody asks about what the mount has no part in.
    assert!(fetch("node-1", "other").is_err());
    assert_eq!(operator.asked.lock().unwrap().len(), asked.len());

    // A node of which nothing is known any more has what it was given, and other mounts read through workers.
    drop(operator);
    assert!(
        fetch("node-1", "set").unwrap(),
        "that is known for some minutes"
    );
    let (address, certs) = (cluster.address(), cluster.certs_flags("node-2"));
    let mut flags = vec!["--master", &address, "--node", "node-2"];
    flags.extend(certs.iter().map(String::as_str));
    flags.extend(["--allow-endpoint", "127.0.0.1", "--read-ahead", "off"]);
    let mount = lab.mount_at("set", "mnt", &flags);
    assert_eq!(mount.read("dir/f"), b"content");
    mount.unmount();
}
