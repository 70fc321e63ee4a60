use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;
use crate::master::Refusal;
use crate::objects::Phase;
use crate::testing::{FakeApi, FakeMaster, context};

/// Longest wait for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    api: Arc<FakeApi>,
    master: Arc<FakeMaster>,
    context: Context,
}

impl World {
    async fn new() -> Self {
        let (client, api) = FakeApi::start();
        let master = Arc::new(FakeMaster::default());
        let context = context(client, &master);
        let world = Self {
            api,
            master,
            context,
        };
        world.ask_master().await;
        world
    }

    async fn ask_master(&self) {
        let _ = self.context.view.look(&*self.master).await;
    }

    fn path(name: &str) -> String {
        format!("/apis/weir.io/v1alpha1/namespaces/team-a/datasets/{name}")
    }

    fn declare(&self, name: &str, spec: Value) {
        let object = json!({
            "apiVersion": "weir.io/v1alpha1", "kind": "Dataset",
            "metadata": { "name": name, "namespace": "team-a" },
            "spec": spec,
        });
        self.api.put(&Self::path(name), object);
    }

    /// Changes an object as a user does.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.api.get(&Self::path(name)).unwrap();
        change(&mut object);
        let generation = object["metadata"]["generation"].as_i64().unwrap();
        object["metadata"]["generation"] = json!(generation + 1);
        self.api.put(&Self::path(name), object);
    }

    fn dataset(&self, name: &str) -> Option<Dataset> {
        let object = self.api.get(&Self::path(name))?;
        Some(serde_json::from_value(object).unwrap())
    }

    /// One look, as the controller has them. A look that waits for an origin would not end.
    async fn look(&self, name: &str) -> Option<DatasetStatus> {
        let object = self.dataset(name)?;
        let looked = tokio::time::timeout(DEADLINE, look(&object, &self.context)).await;
        if let Err(error) = looked.expect("a look that does not end") {
            // Its object was changed meanwhile: the next look has it.
            assert!(error.to_string().contains("409"), "{error}");
        }
        self.dataset(name)
            .map(|object| object.status.unwrap_or_default())
    }

    /// Looks until the status is so.
    async fn until(&self, name: &str, is: impl Fn(&DatasetStatus) -> bool) -> DatasetStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            let status = self.look(name).await.expect("the object is there");
            if is(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{status:#?}");
            tokio::task::yield_now().await;
        }
    }

    async fn until_ready(&self, name: &str) -> DatasetStatus {
        self.until(name, |status| status.phase == Some(Phase::Ready))
            .await
    }
}

fn bucket() -> Value {
    json!({ "sources": [{ "url": "s3://bucket/data" }] })
}

fn condition<'a>(status: &'a DatasetStatus, type_: &str) -> (&'a str, &'a str, &'a str) {
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_);
    condition.map_or(("", "", ""), |condition| {
        (&condition.status, &condition.reason, &condition.message)
    })
}

const VOLUME_PATH: &str = "/api/v1/persistentvolumes/weir.team-a.images";
const CLAIM_PATH: &str = "/api/v1/namespaces/team-a/persistentvolumeclaims/images";

#[tokio::test]
async fn a_dataset_becomes_a_volume_and_a_claim_of_its_name() {
    let world = World::new().await;
    world.declare("images", bucket());
    world.edit("images", |object| {
        object["metadata"]["annotations"] = json!({ "owner": "vision", "other": "x" });
    });
    let status = world.until_ready("images").await;
    assert_eq!(
        (status.snapshot, status.files, status.bytes),
        (Some(1), Some(10), Some(4096))
    );
    assert_eq!(status.size.as_deref(), Some("4KiB"));
    assert_eq!(status.cached.as_deref(), Some("0%"));
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(condition(&status, READY), ("True", "Ready", ""));
    let volume = world.api.get(VOLUME_PATH).unwrap();
    let csi = &volume["spec"]["csi"];
    assert_eq!(csi["driver"], "csi.weir.io");
    assert_eq!(csi["volumeHandle"], "team-a/images");
    assert_eq!(
        csi["volumeAttributes"],
        json!({ "dataset": "team-a/images" })
    );
    assert_eq!(volume["spec"]["accessModes"], json!(["ReadOnlyMany"]));
    assert_eq!(volume["spec"]["capacity"]["storage"], "4096");
    assert_eq!(volume["spec"]["claimRef"]["name"], "images");
    let claim = world.api.get(CLAIM_PATH).unwrap();
    assert_eq!(claim["spec"]["volumeName"], "weir.team-a.images");
    assert_eq!(
        claim["metadata"]["annotations"],
        json!({ "owner": "vision", "description": "s3://bucket/data" })
    );
    world.ask_master().await;
    let status = world.look("images").await.unwrap();
    assert_eq!(status.cached.as_deref(), Some("50%"));
    let written = world.api.log().len();
    world.look("images").await.unwrap();
    world.look("images").await.unwrap();
    assert_eq!(
        world.api.log().len(),
        written,
        "nothing changed, and nothing is written"
    );
}

#[tokio::test]
async fn a_frozen_origin_keeps_no_other_dataset_waiting() {
    let world = World::new().await;
    world.master.hang("team-a/stuck");
    world.declare("stuck", bucket());
    world.declare("images", bucket());
    let status = world
        .until("stuck", |status| {
            condition(status, LISTED).1 == "WaitsForOrigin"
        })
        .await;
    assert_eq!(status.phase, Some(Phase::Listing));
    assert!(status.message.unwrap().contains("does not answer"));
    world.until_ready("images").await;
    // Another specification takes the place of one that hangs.
    world.edit("stuck", |object| {
        object["spec"]["sources"][0]["region"] = json!("eu-west-1");
    });
    world.look("stuck").await;
    let end = Instant::now() + DEADLINE;
    let applied = |line: &String| line.starts_with("apply team-a/stuck");
    while world.master.calls().into_iter().filter(applied).count() < 2 {
        assert!(Instant::now() < end);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_specification_is_told_and_the_master_is_not_asked() {
    let world = World::new().await;
    for (name, spec, reason, part) in [
        (
            "a",
            json!({ "sources": [] }),
            "InvalidSpec",
            "needs a source",
        ),
        (
            "b",
            json!({ "sources": [{ "url": "gopher://x" }] }),
            "InvalidSpec",
            "spec.sources[0]: origin gopher",
        ),
        (
            "c",
            json!({ "sources": [{ "url": "s3://b", "credentials": "other/keys" }] }),
            "InvalidSpec",
            "another namespace",
        ),
        ("A.b", bucket(), "InvalidName", "lower-case"),
    ] {
        world.declare(name, spec);
        let status = world.look(name).await.unwrap();
        assert_eq!(status.phase, Some(Phase::Failed), "{name}");
        let (is, why, message) = condition(&status, ACCEPTED);
        assert_eq!((is, why), ("False", reason), "{name}: {message}");
        assert!(message.contains(part), "{message}");
        assert_eq!(condition(&status, READY).0, "False");
    }
    let asked = world.master.calls();
    let is_told = |line: &String| line == "survey" || line.starts_with("note ");
    assert!(asked.iter().all(is_told), "{asked:?}");
    assert_eq!(world.master.noted("team-a/b").reason, "InvalidSpec");
}

#[tokio::test]
async fn what_the_master_refuses_is_told_and_an_origin_is_tried_again() {
    let world = World::new().await;
    let refused = |why, message: &str| MasterError::Refused {
        why,
        message: message.to_owned(),
    };
    world.declare("moved", bucket());
    world.master.refuse(
        "team-a/moved",
        refused(
            Refusal::Immutable,
            "the place of a source cannot be changed",
        ),
    );
    let status = world
        .until("moved", |status| status.phase == Some(Phase::Failed))
        .await;
    assert_eq!(condition(&status, ACCEPTED).1, "Immutable");
    world.declare("closed", bucket());
    world.master.refuse(
        "team-a/closed",
        refused(Refusal::AccessDenied, "access denied (403)"),
    );
    let status = world
        .until("closed", |status| status.phase == Some(Phase::Failed))
        .await;
    assert_eq!(
        condition(&status, LISTED),
        ("False", "AccessDenied", "access denied (403)")
    );
    let noted = world.master.noted("team-a/closed");
    assert_eq!(
        (noted.reason.as_str(), noted.message.as_str()),
        ("AccessDenied", "access denied (403)"),
        "pods are told"
    );
    let judged = || {
        world
            .master
            .calls()
            .iter()
            .filter(|line| **line == "judge team-a/closed")
            .count()
    };
    let before = judged();
    world.look("closed").await;
    assert_eq!(
        judged(),
        before,
        "it is tried again later, not with each look"
    );
    world.master.accept("team-a/closed");
    world.edit("closed", |object| {
        object["spec"]["sources"][0]["region"] = json!("eu-west-1");
    });
    world.until_ready("closed").await;
}

#[tokio::test]
async fn secrets_go_to_the_master_and_nowhere_else() {
    let world = World::new().await;
    let path = "/api/v1/namespaces/team-a/secrets/keys";
    world.declare(
        "images",
        json!({ "sources": [{ "url": "s3://bucket/data", "credentials": "keys" }] }),
    );
    let status = world.look("images").await.unwrap();
    let (is, reason, message) = condition(&status, CREDENTIALS);
    assert_eq!((is, reason), ("False", "SecretMissing"));
    assert!(message.contains("team-a/keys"), "{message}");
    assert_eq!(condition(&status, ACCEPTED).1, "WaitsForCredentials");
    world.api.refuse(path, 403);
    let status = world.look("images").await.unwrap();
    assert_eq!(condition(&status, CREDENTIALS).1, "SecretForbidden");
    world.api.refuse(path, 0);
    let secret = |key: &str| {
        json!({ "metadata": { "name": "keys" }, "data": {
            "access_key_id": STANDARD.encode("open"),
            "secret_access_key": STANDARD.encode(key),
        } })
    };
    world.api.put(path, secret("hunter2"));
    world.until_ready("images").await;
    assert!(world.master.credential("team-a/keys").is_some());
    let sets = || {
        world
            .master
            .calls()
            .iter()
            .filter(|line| *line == "set team-a/keys")
            .count()
    };
    world.look("images").await;
    assert_eq!(sets(), 1, "it is given once");
    world.api.put(path, secret("hunter3"));
    world.look("images").await;
    assert_eq!(sets(), 2, "a new version is given again");
    let sent = world.api.sent();
    for secret in ["hunter2", "hunter3"] {
        assert!(!sent.contains(secret) && !sent.contains(&STANDARD.encode(secret)));
    }
    // One that goes is missed, though the master has it still, and is forgotten with the Dataset.
    world.api.remove(path);
    for _ in 0..2 {
        let status = world.look("images").await.unwrap();
        let (is, reason, _) = condition(&status, CREDENTIALS);
        assert_eq!((is, reason), ("False", "SecretMissing"));
        assert_eq!(status.phase, Some(Phase::Degraded));
        assert_eq!(status.secrets.len(), 1);
    }
}

#[tokio::test]
async fn credentials_that_were_made_by_hand_need_no_secret() {
    let world = World::new().await;
    world.declare(
        "images",
        json!({ "sources": [{ "url": "s3://bucket/data", "credentials": "keys" }] }),
    );
    world.context.view.learn_credentials("team-a/keys");
    world.until_ready("images").await;
    let status = world.look("images").await.unwrap();
    assert_eq!(condition(&status, CREDENTIALS).1, "KeptByMaster");
    assert_eq!(status.phase, Some(Phase::Ready));
}

#[tokio::test]
async fn a_deleted_dataset_goes_in_order_and_not_while_a_pod_uses_it() {
    let world = World::new().await;
    world.declare("images", bucket());
    world.until_ready("images").await;
    // As Kubernetes holds a claim that a pod uses.
    let mut claim = world.api.get(CLAIM_PATH).unwrap();
    claim["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
    world.api.put(CLAIM_PATH, claim);
    let pod = |phase: &str, volume: Value| {
        json!({
            "metadata": { "name": "train-0" }, "status": { "phase": phase },
            "spec": { "containers": [], "volumes": [volume] },
        })
    };
    let by_claim = json!({ "name": "d", "persistentVolumeClaim": { "claimName": "images" } });
    let pod_path = "/api/v1/namespaces/team-a/pods/train-0";
    world.api.put(pod_path, pod("Running", by_claim));
    world.edit("images", |object| {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    let status = world.look("images").await.unwrap();
    assert_eq!(status.phase, Some(Phase::Deleting));
    let (is, reason, message) = condition(&status, READY);
    assert_eq!((is, reason), ("False", "InUse"));
    assert!(
        message.contains("train-0") && message.contains("team-a"),
        "{message}"
    );
    assert!(world.api.get(VOLUME_PATH).is_some());
    // The claim has gone, and another pod reads inline.
    world.api.remove(CLAIM_PATH);
    let inline = json!({ "name": "d", "csi": {
        "driver": "csi.weir.io", "volumeAttributes": { "dataset": "images@1" },
    } });
    world.api.put(pod_path, pod("Running", inline.clone()));
    let status = world.look("images").await.unwrap();
    assert_eq!(condition(&status, READY).1, "InUse");
    assert!(
        !world
            .master
            .calls()
            .contains(&"delete team-a/images".to_owned())
    );
    world.api.put(pod_path, pod("Succeeded", inline));
    // A master that is away keeps the object, and the operator gets on with others.
    world.master.go_away(true);
    let status = world.look("images").await.unwrap();
    assert_eq!(condition(&status, READY).1, "MasterUnavailable");
    assert!(world.api.get(VOLUME_PATH).is_none());
    world.master.go_away(false);
    assert!(world.look("images").await.is_none(), "the object is gone");
    assert!(
        world
            .master
            .calls()
            .contains(&"delete team-a/images".to_owned())
    );
    let log = world.api.log();
    let at = |line: &str| log.iter().position(|one| one == line).expect(line);
    assert!(at(&format!("DELETE {CLAIM_PATH}")) < at(&format!("DELETE {VOLUME_PATH}")));
}

#[tokio::test]
async fn what_a_node_has_mounted_is_not_deleted_though_its_pods_are_gone() {
    let world = World::new().await;
    world.declare("images", bucket());
    world.until_ready("images").await;
    world.edit("images", |object| {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    world.master.mount_on(None);
    let status = world.look("images").await.unwrap();
    assert!(condition(&status, READY).2.contains("just started"));
    world
        .master
        .mount_on(Some(&["gpu-7", "n2", "n3", "n4", "n5", "n6"]));
    assert!(world.master.noted("team-a/images").deleting);
    let status = world.look("images").await.unwrap();
    let (_, reason, message) = condition(&status, READY);
    assert_eq!(reason, "InUse");
    assert!(
        message.contains("gpu-7") && message.contains("n5 and 1 more"),
        "{message}"
    );
    let is_deleted = |world: &World| {
        let calls = world.master.calls();
        calls.iter().any(|line| line.starts_with("delete"))
    };
    assert!(!is_deleted(&world));
    world.master.mount_on(Some(&[]));
    assert!(world.look("images").await.is_none());
    assert!(is_deleted(&world));
    assert!(!world.master.noted("team-a/images").deleting);
}

#[tokio::test]
async fn what_others_made_under_the_same_name_is_never_touched() {
    let world = World::new().await;
    let foreign = json!({ "metadata": { "name": "images", "namespace": "team-a" }, "spec": {} });
    world.api.put(CLAIM_PATH, foreign);
    world.declare("images", bucket());
    let status = world
        .until("images", |status| status.phase == Some(Phase::Failed))
        .await;
    let (is, reason, message) = condition(&status, VOLUME);
    assert_eq!((is, reason), ("False", "NameClash"));
    assert!(message.contains("team-a/images"), "{message}");
    world.edit("images", |object| {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    assert!(world.look("images").await.is_none());
    let touched = world
        .api
        .log()
        .into_iter()
        .filter(|line| line.ends_with(CLAIM_PATH));
    assert_eq!(touched.count(), 0);
}

#[tokio::test]
async fn known_datasets_stay_ready_while_the_master_is_away() {
    let world = World::new().await;
    world.declare("images", bucket());
    world.until_ready("images").await;
    assert_eq!(world.master.noted("team-a/images").reason, "", "taken back");
    world.master.go_away(true);
    let away = context(world.context.client.clone(), &world.master);
    look(&world.dataset("images").unwrap(), &away)
        .await
        .unwrap();
    let status = world.dataset("images").unwrap().status.unwrap();
    assert_eq!(
        (status.phase, status.snapshot),
        (Some(Phase::Ready), Some(1))
    );
    world.declare("new", bucket());
    look(&world.dataset("new").unwrap(), &away).await.unwrap();
    let status = world.dataset("new").unwrap().status.unwrap();
    assert_eq!(status.phase, Some(Phase::Pending));
    assert_eq!(condition(&status, ACCEPTED).1, "MasterUnavailable");
}

#[tokio::test]
async fn a_master_that_lost_its_disk_counts_snapshots_on() {
    let world = World::new().await;
    world.declare("images", bucket());
    world.until_ready("images").await;
    world.master.lose_disk();
    world.ask_master().await;
    let status = world
        .until("images", |status| status.snapshot == Some(2))
        .await;
    assert_eq!(status.phase, Some(Phase::Ready));
    assert!(
        world
            .master
            .calls()
            .contains(&"apply team-a/images after 1".to_owned())
    );
}

#[tokio::test]
async fn each_new_value_of_the_annotation_is_one_refresh() {
    let world = World::new().await;
    world.declare("images", bucket());
    world.until_ready("images").await;
    let refreshes = || {
        world
            .master
            .calls()
            .iter()
            .filter(|line| line.starts_with("refresh"))
            .count()
    };
    for (request, count) in [("1", 1), ("2", 2)] {
        world.edit("images", |object| {
            object["metadata"]["annotations"] = json!({ "weir.io/refresh": request });
        });
        let done = |status: &DatasetStatus| {
            status
                .refreshed
                .as_ref()
                .is_some_and(|done| done.request == request)
        };
        let status = world.until("images", done).await;
        assert_eq!(status.refreshed.unwrap().outcome, "unchanged");
        world.look("images").await;
        world.look("images").await;
        assert_eq!(refreshes(), count);
    }
    assert_eq!(world.until_ready("images").await.snapshot, Some(1));
}

#[tokio::test]
async fn namespaces_that_may_use_it_get_a_claim_of_their_own_until_they_may_not() {
    let world = World::new().await;
    let mut spec = bucket();
    spec["access"] = json!({ "namespaces": ["team-b", "team-a"] });
    world.declare("images", spec);
    world.until_ready("images").await;
    let volume = "/api/v1/persistentvolumes/weir.team-a.images.team-b";
    let claim = "/api/v1/namespaces/team-b/persistentvolumeclaims/images";
    let csi = &world.api.get(volume).unwrap()["spec"]["csi"];
    assert_eq!(csi["volumeHandle"], "team-a/images#team-b");
    assert_eq!(
        csi["volumeAttributes"],
        json!({ "dataset": "team-a/images" })
    );
    assert!(world.api.get(claim).is_some());
    world.edit("images", |object| object["spec"]["access"] = Value::Null);
    world
        .until("images", |status| status.namespaces == ["team-a"])
        .await;
    assert!(world.api.get(volume).is_none() && world.api.get(claim).is_none());
    assert!(world.api.get(VOLUME_PATH).is_some() && world.api.get(CLAIM_PATH).is_some());
}

#[tokio::test]
async fn a_claim_that_was_deleted_by_hand_is_made_anew() {
    let world = World::new().await;
    world.declare("images", bucket());
    world.until_ready("images").await;
    world.api.remove(CLAIM_PATH);
    world
        .until("images", |status| condition(status, VOLUME).0 == "False")
        .await;
    world.until_ready("images").await;
    assert!(world.api.get(CLAIM_PATH).is_some());
}

#[tokio::test]
async fn an_apiserver_that_refuses_a_volume_is_told_of() {
    let world = World::new().await;
    world.api.refuse(VOLUME_PATH, 403);
    world.declare("images", bucket());
    let status = world
        .until("images", |status| {
            condition(status, VOLUME).1 == "ApiserverFailed"
        })
        .await;
    assert_eq!(status.phase, Some(Phase::Pending));
    assert!(condition(&status, VOLUME).2.contains("403"));
}

#[tokio::test]
async fn what_was_published_stays_usable_while_a_change_of_it_is_refused() {
    let world = World::new().await;
    let mut spec = bucket();
    spec["access"] = json!({ "namespaces": ["team-b"] });
    world.declare("images", spec);
    world.until_ready("images").await;
    let refused = |why, message: &str| MasterError::Refused {
        why,
        message: message.to_owned(),
    };
    let claim = "/api/v1/namespaces/team-b/persistentvolumeclaims/images";
    let other = "/api/v1/namespaces/team-c/persistentvolumeclaims/images";
    let degraded = |status: &DatasetStatus, part: &str| {
        assert_eq!(status.phase, Some(Phase::Degraded), "{status:?}");
        let (is, reason, message) = condition(status, READY);
        assert_eq!((is, reason), ("True", "AsItWas"));
        assert!(message.contains(part), "{message}");
        assert!(status.message.as_ref().unwrap().contains(part));
        assert!(world.api.get(CLAIM_PATH).is_some() && world.api.get(claim).is_some());
        assert!(world.api.get(other).is_none());
    };
    // It makes no sense, and lets in others.
    world.edit("images", |object| {
        object["spec"]["sources"][0]["url"] = json!("gopher://x");
        object["spec"]["access"] = json!({ "namespaces": ["team-c"] });
    });
    let status = world.look("images").await.unwrap();
    degraded(&status, "gopher");
    assert_eq!(condition(&status, ACCEPTED).1, "InvalidSpec");
    // A claim that goes meanwhile is made anew.
    world.api.remove(CLAIM_PATH);
    let status = world.look("images").await.unwrap();
    assert_eq!(
        (status.phase, condition(&status, READY).1),
        (Some(Phase::Pending), "InvalidSpec")
    );
    while world.api.get(CLAIM_PATH).is_none() {
        world.look("images").await;
    }
    // The master refuses it for good, or its listing fails.
    for (why, message) in [
        (Refusal::Immutable, "the place cannot be changed"),
        (Refusal::Failed, "the bucket does not answer"),
    ] {
        world.master.refuse("team-a/images", refused(why, message));
        world.edit("images", |object| {
            object["spec"]["sources"][0]["url"] =
                json!(format!("s3://{}/data", why.reason().to_lowercase()));
            object["spec"]["access"] = json!({ "namespaces": ["team-b"] });
        });
        let failed = |status: &DatasetStatus| {
            status
                .conditions
                .iter()
                .any(|condition| condition.message == message)
        };
        degraded(&world.until("images", failed).await, message);
    }
    world.master.accept("team-a/images");
    world.edit("images", |object| {
        object["spec"]["sources"][0]["url"] = json!("s3://bucket/data");
        object["spec"]["access"] = json!({ "namespaces": ["team-b", "team-d"] });
    });
    world.until_ready("images").await;
    // Of a namespace that is not there the own one hears, and its pods go on.
    world.api.refuse(
        "/api/v1/namespaces/team-e/persistentvolumeclaims/images",
        404,
    );
    world.edit("images", |object| {
        object["spec"]["access"] = json!({ "namespaces": ["team-b", "team-e"] });
    });
    let listed = |status: &DatasetStatus| condition(status, LISTED).0 == "True";
    degraded(&world.until("images", listed).await, "no namespace team-e");
    // An apiserver that fails takes nothing away.
    world.api.refuse(CLAIM_PATH, 500);
    let status = world.look("images").await.unwrap();
    assert_eq!(status.phase, Some(Phase::Degraded));
    assert_eq!(condition(&status, VOLUME).1, "ApiserverFailed");
}

#[tokio::test]
async fn annotations_that_a_dataset_has_no_more_go_from_its_volume_and_claim() {
    let world = World::new().await;
    world.declare("images", bucket());
    world.edit("images", |object| {
        object["metadata"]["annotations"] = json!({ "owner": "vision", "description": "photos" });
    });
    world.until_ready("images").await;
    let shown = |path: &str| world.api.get(path).unwrap()["metadata"]["annotations"].clone();
    for path in [VOLUME_PATH, CLAIM_PATH] {
        let both = json!({ "owner": "vision", "description": "photos" });
        assert_eq!(shown(path), both);
    }
    world.edit("images", |object| {
        object["metadata"]["annotations"] = Value::Null;
    });
    world.look("images").await.unwrap();
    for path in [VOLUME_PATH, CLAIM_PATH] {
        assert_eq!(shown(path), json!({ "description": "s3://bucket/data" }));
    }
    // What somebody else writes there stays, and is not fought over.
    let mut claim = world.api.get(CLAIM_PATH).unwrap();
    claim["metadata"]["annotations"]["owner"] = json!("by hand");
    world.api.put(CLAIM_PATH, claim);
    let written = world.api.log().len();
    world.look("images").await.unwrap();
    assert_eq!(shown(CLAIM_PATH)["owner"], "by hand");
    assert_eq!(world.api.log().len(), written);
}
