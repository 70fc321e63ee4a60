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
