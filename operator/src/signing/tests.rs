use std::path::Path;

use serde_json::{Value, json};
use weir_trust::{Dial, Renewal, SIGNER, SignError, Signer};

use super::*;
use crate::testing::FakeApi;

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const PODS: &str = "/api/v1/namespaces/weir-system/pods";

/// An apiserver with a worker's pod, and an operator that signs.
struct World {
    api: Arc<FakeApi>,
    desk: Desk,
    ca: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (client, api) = FakeApi::start();
        api.put(
            &format!("{PODS}/weir-worker-x"),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "weir-worker-x", "uid": "u-1",
                    "annotations": { "weir.io/zone-label": "topology.kubernetes.io/zone" },
                },
                "spec": { "nodeName": "gpu-1", "serviceAccountName": "weir-worker", "containers": [] },
                "status": { "phase": "Running", "podIPs": [{ "ip": "10.1.0.7" }] },
            }),
        );
        let zone = json!({ "topology.kubernetes.io/zone": "a" });
        let node = json!({ "metadata": { "name": "gpu-1", "labels": zone } });
        api.put("/api/v1/nodes/gpu-1", node);
        api.review(REVIEWS, said("weir-worker", "weir-worker-x"));
        let ca = authority();
        let desk = desk(client, ca.path());
        Self { api, desk, ca }
    }

    async fn ask(&self, role: &str, token: &str, request: &[u8]) -> Result<v1::SignReply, Status> {
        let mut asked = Request::new(v1::SignRequest {
            request: request.to_vec(),
            role: role.to_owned(),
            token: token.to_owned(),
        });
        let from = Some("10.1.0.7".parse().unwrap());
        asked.extensions_mut().insert(Caller::Anybody { from });
        self.desk.sign(asked).await.map(Response::into_inner)
    }

    /// The refusal of a request that is fine, but for what has been changed.
    async fn refusal(&self, code: Code) -> String {
        let status = self.ask("worker", "t", new().der()).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        status.message().to_owned()
    }

    fn counted(&self, role: &'static str, result: &'static str) -> u64 {
        let labels = Signed { role, result };
        self.desk.metrics.signatures.get_or_create(&labels).get()
    }
}

fn authority() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    Authority::init(dir.path(), Validity::default()).unwrap();
    dir
}

fn desk(client: Client, ca: &Path) -> Desk {
    let metrics = OperatorMetrics::register(&mut prometheus_client::registry::Registry::default());
    Desk::new(client, "weir-system", ca.to_owned(), metrics)
}

fn said(account: &str, pod: &str) -> Value {
    json!({
        "authenticated": true, "audiences": [AUDIENCE],
        "user": {
            "username": format!("system:serviceaccount:weir-system:{account}"),
            "extra": {
                "authentication.kubernetes.io/pod-name": [pod],
                "authentication.kubernetes.io/pod-uid": ["u-1"],
            },
        },
    })
}

fn new() -> weir_trust::Request {
    weir_trust::Request::new().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_given_a_certificate_of_what_the_apiserver_knows_of_it() {
    let world = World::new();
    let request = new();
    let reply = world.ask("worker", "t", request.der()).await.unwrap();
    let issued = Issued {
        certificate: reply.certificate,
        authorities: reply.authorities,
    };
    let out = tempfile::tempdir().unwrap();
    let peer = request.keep(&issued, &out.path().join("w")).unwrap();
    assert_eq!(peer.subject.to_string(), "worker gpu-1");
    assert_eq!(peer.subject.place.zone.as_ref().unwrap().as_str(), "a");
    assert_eq!(peer.addresses, ["10.1.0.7"]);
    let left = peer.time_left();
    assert!(
        left <= LIFE && left + Duration::from_mins(1) > LIFE,
        "{left:?}"
    );
    assert_eq!(world.counted("worker", "signed"), 1);
    assert!(!format!("{:?}", v1::SignRequest::default()).contains("token"));
}

#[tokio::test(start_paused = true)]
async fn each_who_may_not_have_one_is_told_why() {
    let world = World::new();
    let began = Instant::now();
    for (role, token, request, code) in [
        ("admin", "t", new().der(), Code::InvalidArgument),
        ("mount", "t", new().der(), Code::PermissionDenied),
        ("worker", "", new().der(), Code::InvalidArgument),
        (
            "worker",
            "t".repeat(MAX_TOKEN + 1).as_str(),
            new().der(),
            Code::InvalidArgument,
        ),
        ("worker", "t", &b"none"[..], Code::InvalidArgument),
    ] {
        let status = world.ask(role, token, request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    let pause = began.elapsed();
    assert!(
        pause >= REFUSAL_PAUSE * 5,
        "nobody asks without end: {pause:?}"
    );
    let expired = json!({ "authenticated": false, "error": "token has expired" });
    world.api.review(REVIEWS, expired);
    let why = world.refusal(Code::Unauthenticated).await;
    assert!(why.contains("token has expired"), "{why}");
    let mut foreign = said("weir-worker", "weir-worker-x");
    foreign["user"]["username"] = json!("system:serviceaccount:team-a:weir-worker");
    world.api.review(REVIEWS, foreign);
    let why = world.refusal(Code::PermissionDenied).await;
    assert!(
        why.contains("team-a/weir-worker is none of Weir's"),
        "{why}"
    );
    world
        .api
        .review(REVIEWS, said("weir-worker", "weir-worker-y"));
    let why = world.refusal(Code::PermissionDenied).await;
    assert!(
        why.contains("weir-worker-y of this token has gone"),
        "{why}"
    );
    assert_eq!(world.counted("worker", "signed"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_just_now_is_no_refusal() {
    let world = World::new();
    world.api.refuse(REVIEWS, 500);
    world.refusal(Code::Unavailable).await;
    world.api.refuse(REVIEWS, 0);
    std::fs::rename(world.ca.path().join("ca.key"), world.ca.path().join("k")).unwrap();
    let why = world.refusal(Code::Unavailable).await;
    assert!(why.contains("its log says why"), "{why}");
    assert_eq!(world.counted("worker", "failed"), 2);
    // An apiserver that never answers.
    let (service, _handle) = tower_test::mock::pair::<
        http::Request<kube::client::Body>,
        http::Response<kube::client::Body>,
    >();
    let hung = World {
        desk: desk(Client::new(service, "default"), world.ca.path()),
        ..world
    };
    let began = Instant::now();
    hung.refusal(Code::Unavailable).await;
    assert!(began.elapsed() <= APISERVER_DEADLINE + TURN_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_without_end_is_refused_and_others_are_not() {
    let world = World::new();
    for _ in 0..MAX_OF_POD {
        world.ask("worker", "t", new().der()).await.unwrap();
    }
    let why = world.refusal(Code::ResourceExhausted).await;
    assert!(why.contains("look why it does not keep them"), "{why}");
    world.desk.count("another").unwrap();
    tokio::time::advance(HOUR).await;
    world.ask("worker", "t", new().der()).await.unwrap();
}

/// As `weir worker` asks, but with one token.
struct Asker {
    dial: Dial,
    address: String,
}

impl Signer for Asker {
    fn sign<'a>(
        &'a self,
        request: &'a [u8],
    ) -> futures::future::BoxFuture<'a, Result<Issued, SignError>> {
        Box::pin(async move {
            let away = |error: &dyn std::fmt::Display| SignError::Away(error.to_string());
            let channel = self
                .dial
                .channel(&self.address, Role::Admin, Duration::from_secs(5))
                .map_err(|error| away(&error))?;
            let mut client = v1::certificates_client::CertificatesClient::new(channel);
            let asked = v1::SignRequest {
                request: request.to_vec(),
                role: "worker".to_owned(),
                token: "t".to_owned(),
            };
            let reply = client.sign(asked).await.map_err(|error| away(&error))?;
            let reply = reply.into_inner();
            Ok(Issued {
                certificate: reply.certificate,
                authorities: reply.authorities,
            })
        })
    }

    fn authorities(&self) -> Option<String> {
        None
    }
}

#[tokio::test]
async fn pods_without_a_certificate_know_the_operator_and_are_served_over_tls() {
    let world = World::new();
    let dirs = tempfile::tempdir().unwrap();
    let own = dirs.path().join("operator");
    let signer = Arc::new(OwnCertificate::new(world.ca.path().to_owned()));
    let patience = Duration::from_secs(5);
    Renewal::start(&own, signer, patience).await.unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = free.local_addr().unwrap();
    drop(free);
    let config = SigningConfig {
        listen,
        authority: world.ca.path().to_owned(),
        identity: Identity::load(&own).unwrap(),
    };
    let (client, metrics) = (world.desk.client.clone(), world.desk.metrics.clone());
    let stop = CancellationToken::new();
    let told = stop.clone();
    let serving =
        tokio::spawn(async move { serve(&config, "weir-system", client, metrics, &told).await });
    let map = "/api/v1/namespaces/weir-system/configmaps/weir-authority";
    let published = async {
        while world.api.get(map).is_none() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(patience, published).await.unwrap();
    let authorities = world.api.get(map).unwrap()["data"]["ca.crt"].clone();
    let ca = dirs.path().join("ca.crt");
    std::fs::write(&ca, authorities.as_str().unwrap()).unwrap();
    let asker = |authorities: &Path, name: &str| {
        let dial = Dial::new(Some(Identity::trusting(authorities).unwrap()));
        Arc::new(Asker {
            dial: dial.expecting(name),
            address: listen.to_string(),
        })
    };
    let worker = dirs.path().join("worker");
    let renewal = Renewal::start(&worker, asker(&ca, SIGNER), patience).await;
    renewal.unwrap();
    let worker = Identity::load(&worker).unwrap();
    assert_eq!(worker.subject().to_string(), "worker gpu-1");
    // Nobody asks one who is not the operator, nor one of another authority.
    let stranger = authority();
    for asker in [
        asker(&ca, "somebody"),
        asker(&stranger.path().join("ca.crt"), SIGNER),
    ] {
        let refused = asker.sign(new().der()).await;
        assert!(matches!(refused, Err(SignError::Away(_))), "{refused:?}");
    }
    // What is too long is not read.
    let asker = asker(&ca, SIGNER);
    let channel = asker.dial.channel(&asker.address, Role::Admin, patience);
    let mut client = v1::certificates_client::CertificatesClient::new(channel.unwrap());
    let long = v1::SignRequest {
        request: vec![0; MAX_MESSAGE],
        role: "worker".to_owned(),
        token: "t".to_owned(),
    };
    let refused = client.sign(long).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    stop.cancel();
    timeout(patience, serving).await.unwrap().unwrap().unwrap();
}
