use kube::runtime::watcher;
use prometheus_client::registry::Registry;

use super::*;
use crate::json_patch::applied;
use crate::master::Master;
use crate::placing::Writers;
use crate::testing::{FakeApi, FakeMaster};
use crate::view::View;

struct World {
    api: Arc<FakeApi>,
    master: Arc<FakeMaster>,
    webhook: Webhook,
    writers: Writers,
}

impl World {
    /// A master with the dataset `images` of `team-a`, which lets in `team-b`.
    async fn new() -> Self {
        let (client, api) = FakeApi::start();
        let master = Arc::new(FakeMaster::default());
        let spec = json!({
            "sources": [{ "url": "s3://b" }], "access": { "namespaces": ["team-b"] },
        });
        let spec = serde_json::from_value(spec).unwrap();
        let name = "team-a/images".parse().unwrap();
        master.apply(&name, &spec, 0).await.unwrap();
        let view = Arc::new(View::default());
        view.look(&*master).await.unwrap();
        let (placing, writers) = Placing::new(master.clone(), view);
        let webhook = Webhook {
            client,
            placing: Arc::new(placing),
            metrics: OperatorMetrics::register(&mut Registry::default()),
            is_trusted: AtomicBool::new(false),
        };
        Self {
            api,
            master,
            webhook,
            writers,
        }
    }

    async fn place(&self, namespace: &str, pod: Value) -> JsonPatch {
        let review = review(namespace, "Pod", pod, Value::Null);
        match self.webhook.place(&review).await {
            Answer::Changes(changes) => changes,
            other => panic!("{other:?}"),
        }
    }

    /// Has the Dataset say something of pods.
    fn annotate(&mut self, value: &str) {
        let object = json!({ "metadata": {
            "name": "images", "namespace": "team-a", "annotations": { "weir.io/affinity": value },
        } });
        let object = serde_json::from_value(object).unwrap();
        self.writers
            .datasets
            .apply_watcher_event(&watcher::Event::Apply(object));
    }
}

fn review(namespace: &str, kind: &str, object: Value, old: Value) -> Review {
    let body = json!({ "request": {
        "uid": "u", "namespace": namespace, "kind": { "kind": kind },
        "object": object, "oldObject": old,
        "userInfo": { "username": "ann", "groups": ["dev"], "extra": { "k": ["v"] } },
    } });
    Review::read(body.to_string().as_bytes()).unwrap()
}

fn pod(annotations: Value) -> Value {
    json!({
        "metadata": { "annotations": annotations },
        "spec": { "volumes": [{ "name": "d", "persistentVolumeClaim": { "claimName": "images" } }] },
    })
}

#[tokio::test]
async fn it_is_ready_when_the_apiserver_can_trust_it() {
    let webhook = Arc::new(World::new().await.webhook);
    let (status, why) = healthz(State(webhook.clone())).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(why.contains("certificate"), "{why}");
    webhook.is_trusted.store(true, Ordering::Relaxed);
    assert_eq!(healthz(State(webhook)).await.0, StatusCode::OK);
}

#[tokio::test]
async fn pods_are_placed_by_the_datasets_of_their_claims() {
    let world = World::new().await;
    for namespace in ["team-a", "team-b"] {
        let changes = world.place(namespace, pod(json!({}))).await;
        let text = changes.into_value().to_string();
        assert!(
            text.contains("node-1") && text.contains("weir.io~1placed-by"),
            "{text}"
        );
    }
    assert!(
        world.place("team-c", pod(json!({}))).await.is_empty(),
        "it is not let in"
    );
    let located = world
        .master
        .calls()
        .into_iter()
        .filter(|line| line.starts_with("locate"));
    assert_eq!(located.count(), 1, "the master is asked once for many pods");
    for annotations in [
        json!({ "weir.io/affinity": "off" }),
        json!({ "weir.io/placed-by": "team-a/images" }),
    ] {
        assert!(world.place("team-a", pod(annotations)).await.is_empty());
    }
    let mut bound = pod(json!({}));
    bound["spec"]["nodeName"] = json!("node-9");
    assert!(world.place("team-a", bound).await.is_empty());
}

#[tokio::test]
async fn a_pod_says_how_it_is_placed_and_else_its_dataset_does() {
    let mut world = World::new().await;
    let text = |changes: JsonPatch| changes.into_value().to_string();
    world.annotate("required");
    assert!(text(world.place("team-a", pod(json!({}))).await).contains("required"));
    let own = json!({ "weir.io/affinity": "preferred" });
    assert!(text(world.place("team-a", pod(own)).await).contains("preferred"));
    world.annotate("off");
    assert!(world.place("team-a", pod(json!({}))).await.is_empty());
    world.annotate("of course");
    assert!(text(world.place("team-a", pod(json!({}))).await).contains("preferred"));
}

#[tokio::test]
async fn a_pod_that_waits_gets_a_gate_and_its_terms_later() {
    let world = World::new().await;
    let waits = pod(json!({ "weir.io/wait-for": "95%" }));
    let asked = review("team-a", "Pod", waits.clone(), Value::Null);
    let Answer::Waits(changes) = world.webhook.place(&asked).await else {
        panic!("it does not wait");
    };
    let gated = applied(&waits, &changes.into_value()).unwrap();
    assert_eq!(
        gated["spec"]["schedulingGates"],
        json!([{ "name": "weir.io/data" }])
    );
    assert_eq!(
        gated["metadata"]["labels"]["weir.io/waits-for-data"],
        "true"
    );
    assert!(gated["spec"]["affinity"].is_null());
    // It reads nothing here, and so is left as it is.
    assert!(world.place("team-c", waits).await.is_empty());
    let wrong = pod(json!({ "weir.io/wait-for": "soon" }));
    let wrong = review("team-a", "Pod", wrong, Value::Null);
    let Answer::Refused(why) = world.webhook.place(&wrong).await else {
        panic!("it is taken");
    };
    assert!(
        why.contains("weir.io/wait-for: \"soon\" is no share"),
        "{why}"
    );
}

#[tokio::test]
async fn a_pod_waits_for_a_dataset_that_was_made_with_it_and_is_not_listed_yet() {
    let mut world = World::new().await;
    let mut new = pod(json!({ "weir.io/wait-for": "95%" }));
    new["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!("new");
    assert!(world.place("team-a", new.clone()).await.is_empty());
    let object = json!({ "metadata": { "name": "new", "namespace": "team-a" } });
    let object = serde_json::from_value(object).unwrap();
    world
        .writers
        .datasets
        .apply_watcher_event(&watcher::Event::Apply(object));
    let asked = review("team-a", "Pod", new, Value::Null);
    assert!(matches!(
        world.webhook.place(&asked).await,
        Answer::Waits(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_master_that_is_frozen_holds_no_pod() {
    let world = World::new().await;
    world.master.hang("team-a/images");
    let began = tokio::time::Instant::now();
    let review = review("team-a", "Pod", pod(json!({})), Value::Null);
    let pods = (0..100).map(|_| world.webhook.place(&review));
    let placed = futures::future::join_all(pods).await;
    assert!(
        placed
            .iter()
            .all(|placed| matches!(placed, Answer::Unknown))
    );
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_names_a_secret_must_be_allowed_to_read_it() {
    let world = World::new().await;
    let dataset = json!({
        "metadata": { "name": "new" },
        "spec": { "sources": [{ "url": "s3://b", "credentials": "keys" }] },
    });
    let made = review("team-a", "Dataset", dataset.clone(), Value::Null);
    let refused = world.webhook.judge(&made).await.unwrap_err();
    assert!(
        refused.contains("ann may not read Secret keys"),
        "{refused}"
    );
    let sent = world.api.sent();
    assert!(
        sent.contains("\"verb\":\"get\"") && sent.contains("\"dev\""),
        "{sent}"
    );
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    world.api.refuse(path, 500);
    assert!(
        world
            .webhook
            .judge(&made)
            .await
            .unwrap_err()
            .contains("try again")
    );
    let asked = world.api.log().len();
    let touched = review("team-a", "Dataset", dataset.clone(), dataset);
    assert_eq!(world.webhook.judge(&touched).await, Ok(()));
    assert_eq!(world.api.log().len(), asked, "nothing new is named");
}

#[test]
fn what_is_no_review_is_not_understood() {
    for body in [
        "",
        "{}",
        "[]",
        r#"{"request":{}}"#,
        r#"{"request":{"uid":7}}"#,
    ] {
        assert!(Review::read(body.as_bytes()).is_none(), "{body}");
    }
}
