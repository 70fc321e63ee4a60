use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::master::Refusal;
use crate::testing::{FakeApi, FakeMaster, context};

const PATH: &str = "/apis/weir.io/v1alpha1/namespaces/team-a/warmups/early";

struct World {
    api: Arc<FakeApi>,
    master: Arc<FakeMaster>,
    context: Context,
}

impl World {
    fn new(spec: Value) -> Self {
        let (client, api) = FakeApi::start();
        let master = Arc::new(FakeMaster::default());
        let context = context(client, &master);
        let object = json!({
            "apiVersion": "weir.io/v1alpha1", "kind": "Warmup",
            "metadata": { "name": "early", "namespace": "team-a" },
            "spec": spec,
        });
        api.put(PATH, object);
        Self {
            api,
            master,
            context,
        }
    }

    async fn look(&self) -> Option<WarmupStatus> {
        let object: Warmup = serde_json::from_value(self.api.get(PATH)?).unwrap();
        look(&object, &self.context).await.unwrap();
        let object: Warmup = serde_json::from_value(self.api.get(PATH)?).unwrap();
        object.status
    }

    /// Events so far: type, reason and note.
    fn events(&self) -> Vec<(String, String, String)> {
        let all = self
            .api
            .all("/apis/events.k8s.io/v1/namespaces/team-a/events");
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        all.iter()
            .map(|event| {
                assert_eq!(event["regarding"]["name"], "early");
                let [type_, reason, note] = ["type", "reason", "note"].map(|key| text(event, key));
                (type_, reason, note)
            })
            .collect()
    }

    fn count(&self, call: &str) -> usize {
        self.master
            .calls()
            .iter()
            .filter(|line| *line == call)
            .count()
    }
}

#[tokio::test]
async fn a_warmup_is_one_job_that_is_followed_to_its_end() {
    let world = World::new(json!({
        "dataset": "images", "paths": ["/train"], "in": ["zone=b"], "copies": 2,
    }));
    let status = world.look().await.unwrap();
    assert_eq!(
        (status.phase, status.job),
        (Some(WarmupPhase::Running), Some(1))
    );
    world.master.job(1, |job| {
        assert_eq!(job.paths, ["/train"]);
        assert_eq!(
            (job.places.as_slice(), job.copies),
            (&["zone=b".to_owned()][..], 2)
        );
        job.done_bytes = 420;
        job.fetched_bytes = 210;
    });
    let status = world.look().await.unwrap();
    assert_eq!(status.progress.as_deref(), Some("42%"));
    assert!(status.rate.unwrap().ends_with("/s") && status.eta.is_some());
    world.master.job(1, |job| {
        job.done_bytes = 1000;
        job.state = v1::JobState::Done.into();
    });
    let status = world.look().await.unwrap();
    assert_eq!(status.phase, Some(WarmupPhase::Done));
    assert!(status.finished.is_some() && status.eta.is_none());
    world.look().await;
    assert_eq!(world.count("start team-a/images"), 1);
    assert_eq!(world.count("cancel job 1"), 0);
}

#[tokio::test]
async fn it_is_done_with_the_share_that_was_asked_for() {
    let world = World::new(json!({ "dataset": "images", "percent": 90 }));
    world.look().await;
    world.master.job(1, |job| job.done_bytes = 899);
    assert_eq!(
        world.look().await.unwrap().phase,
        Some(WarmupPhase::Running)
    );
    world.master.job(1, |job| job.done_bytes = 900);
    let status = world.look().await.unwrap();
    assert_eq!(status.phase, Some(WarmupPhase::Done));
    assert_eq!(world.count("cancel job 1"), 1, "the rest is not fetched");
}

#[tokio::test]
async fn it_waits_for_its_dataset_and_starts_again_what_the_master_has_lost() {
    let world = World::new(json!({ "dataset": "images" }));
    world.master.refuse(
        "team-a/images",
        MasterError::Refused {
            why: Refusal::NotFound,
            message: "there is no dataset team-a/images".to_owned(),
        },
    );
    let status = world.look().await.unwrap();
    assert_eq!(status.phase, Some(WarmupPhase::Pending));
    assert_eq!(status.conditions[0].reason, "NotFound");
    world.master.accept("team-a/images");
    world.look().await;
    world.master.lose_disk();
    let status = world.look().await.unwrap();
    assert_eq!(status.phase, Some(WarmupPhase::Running));
    assert_eq!(world.count("start team-a/images"), 3);
}

#[tokio::test]
async fn a_job_ends_with_its_warmup_and_a_master_that_is_away_holds_none() {
    for is_away in [false, true] {
        let world = World::new(json!({ "dataset": "images" }));
        world.look().await;
        world.master.go_away(is_away);
        let mut object = world.api.get(PATH).unwrap();
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        world.api.put(PATH, object);
        assert!(world.look().await.is_none(), "the object is gone");
        assert_eq!(world.count("cancel job 1"), usize::from(!is_away));
    }
}

#[tokio::test]
async fn what_could_not_be_fetched_is_told() {
    let world = World::new(json!({ "dataset": "images" }));
    world.look().await;
    world.master.job(1, |job| {
        job.state = v1::JobState::Done.into();
        (job.failed_files, job.message) = (3, "a.jpg: access denied (403)".to_owned());
    });
    let status = world.look().await.unwrap();
    assert_eq!(status.phase, Some(WarmupPhase::Failed));
    assert_eq!(status.failed_files, Some(3));
    assert!(status.message.unwrap().contains("access denied"));
}

#[tokio::test]
async fn each_turn_of_a_warmup_is_one_event() {
    let world = World::new(json!({ "dataset": "images" }));
    let away = MasterError::Refused {
        why: Refusal::NotFound,
        message: "there is no dataset team-a/images".to_owned(),
    };
    world.master.refuse("team-a/images", away);
    let told = |type_: &str, reason: &str, part: &str| {
        let events = world.events();
        let mut found = events.iter().filter(|event| event.1 == reason);
        let event = found
            .next()
            .unwrap_or_else(|| panic!("{reason}: {events:?}"));
        assert!(event.0 == type_ && event.2.contains(part), "{event:?}");
        assert!(found.next().is_none(), "{events:?}");
        events.len()
    };
    for _ in 0..3 {
        world.look().await;
    }
    assert_eq!(told("Normal", "NotFound", "no dataset team-a/images"), 1);
    world.master.accept("team-a/images");
    for done in [10, 20, 30] {
        world.look().await;
        world.master.job(1, |job| job.done_bytes = done);
    }
    // Another job in its place is no news.
    world.master.lose_disk();
    world.look().await;
    assert_eq!(
        told("Normal", "Running", "1000B of snapshot 1 of images"),
        2
    );
    world.master.job(1, |job| {
        job.state = v1::JobState::Done.into();
        (job.done_bytes, job.fetched_bytes) = (1000, 400);
    });
    for _ in 0..3 {
        world.look().await;
    }
    assert_eq!(told("Normal", "Done", "1000B of 1000B are cached"), 3);

    let failing = World::new(json!({ "dataset": "images" }));
    failing.look().await;
    failing.master.job(1, |job| {
        job.state = v1::JobState::Failed.into();
        (job.failed_files, job.message) = (3, "a.jpg: access denied (403)".to_owned());
    });
    for _ in 0..3 {
        failing.look().await;
    }
    let events = failing.events();
    let failed: Vec<_> = events.iter().filter(|event| event.0 == "Warning").collect();
    assert_eq!(failed.len(), 1, "{events:?}");
    assert!(failed[0].1 == "Failed" && failed[0].2.contains("3; a.jpg: access denied (403)"));
    assert_eq!(events.len(), 2);
}
