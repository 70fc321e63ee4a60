use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use serde_json::json;
use weir_proto::v1;

use super::*;
use crate::master::Master;
use crate::testing::{FakeApi, FakeMaster, context};

const PODS: &str = "/api/v1/namespaces/team-a/pods";

struct World {
    api: Arc<FakeApi>,
    master: Arc<FakeMaster>,
    context: Context,
    table: Mutex<Table>,
    warming: Warming,
}

impl World {
    /// A master with the dataset `images`, of which half is cached.
    async fn new() -> Self {
        let (client, api) = FakeApi::start();
        let master = Arc::new(FakeMaster::default());
        let spec = serde_json::from_value(json!({ "sources": [{ "url": "s3://b" }] })).unwrap();
        master.apply(&images(), &spec, 0).await.unwrap();
        let context = context(client, &master);
        context.view.look(&*master).await.unwrap();
        Self {
            api,
            master,
            context,
            table: Mutex::default(),
            warming: Warming::default(),
        }
    }

    /// Makes a pod that has waited for so many seconds; `job` is who made it.
    fn pod(&self, name: &str, share: &str, seconds: i64, job: Option<&str>) {
        let made = Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_secs(seconds);
        let owner = |job| {
            json!([{
                "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": job,
                "uid": format!("uid-of-{job}"), "controller": true,
            }])
        };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "team-a",
                "creationTimestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "labels": { "weir.io/waits-for-data": "true", "app": "x" },
                "annotations": { "weir.io/wait-for": share, "weir.io/wait-timeout": "10m" },
                "ownerReferences": job.map(owner),
            },
            "spec": {
                "containers": [],
                "schedulingGates": [{ "name": "own" }, { "name": "weir.io/data" }],
                "volumes": [{ "name": "d", "persistentVolumeClaim": { "claimName": "images" } }],
            },
        });
        self.api.put(&format!("{PODS}/{name}"), pod);
        self.see(name);
    }

    /// What a watch tells.
    fn see(&self, name: &str) {
        let pod = self.api.get(&format!("{PODS}/{name}")).unwrap();
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.table.lock().see(watcher::Event::Apply(pod));
    }

    async fn look(&self) {
        let mut lifting = Lifting::new(&self.context);
        lifting.look(&self.table, &self.warming).await;
        let wanted = self.table.lock().wanted();
        self.warming.look(&self.context, &wanted).await;
        lifting.look(&self.table, &self.warming).await;
    }

    /// Lets the gate of a pod be tried again now.
    fn try_again(&self, name: &str) {
        let pod = self.api.get(&format!("{PODS}/{name}")).unwrap();
        let mut table = self.table.lock();
        let gated = table.get_mut(pod["metadata"]["uid"].as_str().unwrap());
        gated.unwrap().again = None;
    }

    fn is_gated(&self, name: &str) -> bool {
        let pod = self.api.get(&format!("{PODS}/{name}")).unwrap();
        let has_label = pod["metadata"]["labels"]["weir.io/waits-for-data"].is_string();
        assert_eq!(has_label, gate_of(&pod).is_some());
        has_label
    }

    fn count(&self, call: &str) -> usize {
        let calls = self.master.calls();
        calls.iter().filter(|line| *line == call).count()
    }
}

fn images() -> DatasetName {
    "team-a/images".parse().unwrap()
}

#[tokio::test]
async fn a_pod_goes_when_its_share_is_cached_and_prefers_where_it_is() {
    let world = World::new().await;
    world.pod("early", "50%", 5, None);
    world.pod("late", "51%", 5, None);
    world.look().await;
    assert!(!world.is_gated("early") && world.is_gated("late"));
    let pod = world.api.get(&format!("{PODS}/early")).unwrap();
    assert_eq!(pod["spec"]["schedulingGates"], json!([{ "name": "own" }]));
    assert_eq!(pod["metadata"]["labels"], json!({ "app": "x" }));
    assert_eq!(
        pod["metadata"]["annotations"]["weir.io/placed-by"],
        "team-a/images"
    );
    assert!(
        pod["spec"]["affinity"].to_string().contains("node-1"),
        "{pod}"
    );
    let sent = world.api.sent();
    assert!(sent.contains("50% of team-a/images is cached"), "{sent}");
    assert!(
        sent.contains("it waits until 51% of team-a/images is cached, and for 10m at most"),
        "{sent}"
    );
    // What is told once is not told with each look.
    world.look().await;
    assert_eq!(world.api.sent().matches("waits until 51%").count(), 1);
}

#[tokio::test]
async fn many_pods_share_one_job_of_the_master() {
    let world = World::new().await;
    for number in 0..40 {
        let job = format!("job-{}", number % 4);
        world.pod(&format!("p{number}"), "95%", 1, Some(&job));
    }
    world.look().await;
    world.master.job(1, |job| job.done_bytes = 940);
    world.look().await;
    assert!((0..40).all(|number| world.is_gated(&format!("p{number}"))));
    world.master.job(1, |job| job.done_bytes = 950);
    world.look().await;
    assert!((0..40).all(|number| !world.is_gated(&format!("p{number}"))));
    assert_eq!(world.count("start team-a/images"), 1);
    assert_eq!(
        world.count("cancel job 1"),
        0,
        "what is missing is read next"
    );
}

#[tokio::test]
async fn the_pods_of_a_job_go_together_when_the_first_has_waited_long_enough() {
    let world = World::new().await;
    world.pod("a-0", "95%", 601, Some("a"));
    world.pod("a-1", "100%", 2, Some("a"));
    world.pod("b-0", "95%", 2, Some("b"));
    world.look().await;
    assert!(!world.is_gated("a-0") && !world.is_gated("a-1") && world.is_gated("b-0"));
    let sent = world.api.sent();
    assert!(
        sent.contains("DataWaitTimedOut") && sent.contains("Warning"),
        "{sent}"
    );
    assert!(
        sent.contains("50% of team-a/images was cached after 10m; it runs nevertheless"),
        "{sent}"
    );
}

#[tokio::test]
async fn a_master_that_is_away_holds_no_pod_longer_than_it_asks_for() {
    let world = World::new().await;
    world.master.go_away(true);
    world.pod("early", "95%", 580, None);
    world.look().await;
    world.pod("late", "95%", 600, None);
    world.look().await;
    assert!(!world.is_gated("late") && world.is_gated("early"));
    let sent = world.api.sent();
    assert!(sent.contains("the master does not answer"), "{sent}");
}

#[tokio::test]
async fn a_master_that_was_never_there_holds_no_pod_either() {
    let world = World::new().await;
    let nobody = context(world.context.client.clone(), &world.master);
    let mut lifting = Lifting::new(&nobody);
    world.pod("late", "95%", 600, None);
    world.pod("early", "95%", 580, None);
    lifting.look(&world.table, &world.warming).await;
    assert!(!world.is_gated("late") && world.is_gated("early"));
    assert!(world.api.sent().contains("nobody could tell in time"));
}

#[tokio::test]
async fn a_job_that_failed_is_started_again_later_and_the_pod_is_told_why_it_waited() {
    let world = World::new().await;
    world.pod("p", "95%", 1, None);
    world.look().await;
    world.master.job(1, |job| {
        job.state = v1::JobState::Failed.into();
        job.message = "a.jpg: access denied (403)".to_owned();
    });
    world.look().await;
    world.look().await;
    assert_eq!(world.count("start team-a/images"), 1, "not at once");
    assert!(world.is_gated("p"));
    let share = world.warming.share(&images());
    assert_eq!(
        (share.percent, share.trouble.as_str()),
        (50, "a.jpg: access denied (403)")
    );
}

#[tokio::test]
async fn terms_that_are_refused_hold_no_pod_and_a_changed_pod_is_looked_at_again() {
    let world = World::new().await;
    world.pod("refused", "50%", 1, None);
    world.api.refuse_next(&format!("{PODS}/refused"), 422);
    world.look().await;
    assert!(!world.is_gated("refused"));
    let pod = world.api.get(&format!("{PODS}/refused")).unwrap();
    assert!(pod["spec"]["affinity"].is_null());

    world.pod("changed", "50%", 1, None);
    let path = format!("{PODS}/changed");
    let mut pod = world.api.get(&path).unwrap();
    pod["spec"]["affinity"] = json!({ "podAntiAffinity": { "x": 1 } });
    world.api.put(&path, pod);
    world.look().await;
    assert!(world.is_gated("changed"));
    world.see("changed");
    let groups = world.table.lock().groups(Timestamp::now());
    assert_eq!(groups[0][0].failures, 1);
    world.try_again("changed");
    world.look().await;
    assert!(!world.is_gated("changed"));
    let pod = world.api.get(&path).unwrap();
    assert_eq!(
        pod["spec"]["affinity"]["podAntiAffinity"],
        json!({ "x": 1 })
    );
    assert!(pod["spec"]["affinity"]["nodeAffinity"].is_object());
}

#[tokio::test]
async fn a_gate_that_cannot_be_taken_away_is_tried_again_later_and_a_pod_that_is_gone_never() {
    let world = World::new().await;
    world.pod("p", "50%", 1, None);
    let path = format!("{PODS}/p");
    world.api.refuse(&path, 500);
    world.look().await;
    let tries = |world: &World| {
        let log = world.api.log();
        log.iter()
            .filter(|line| **line == format!("PATCH {path}"))
            .count()
    };
    assert_eq!(tries(&world), 1, "it is not tried again at once");
    world.try_again("p");
    world.api.refuse(&path, 0);
    world.api.remove(&path);
    world.look().await;
    assert_eq!((tries(&world), world.table.lock().len()), (2, 0));
}

#[tokio::test]
async fn a_pod_that_reads_nothing_does_not_wait() {
    let world = World::new().await;
    world.pod("p", "95%", 1, None);
    let path = format!("{PODS}/p");
    for (change, volumes) in [("no volume", json!([])), ("no wait", Value::Null)] {
        world.pod("p", "95%", 1, None);
        let mut pod = world.api.get(&path).unwrap();
        if volumes.is_null() {
            pod["metadata"]["annotations"] = json!({});
        } else {
            pod["spec"]["volumes"] = volumes;
        }
        pod["metadata"]["uid"] = json!(change);
        world.api.put(&path, pod);
        world.see("p");
        world.look().await;
        assert!(!world.is_gated("p"), "{change}");
    }
}

#[test]
fn a_pod_that_is_listed_no_more_or_being_deleted_does_not_wait() {
    let mut table = Table::default();
    let pod = |name: &str, change: &dyn Fn(&mut Value)| -> Pod {
        let mut pod = json!({
            "metadata": { "name": name, "namespace": "team-a", "uid": name },
            "spec": { "containers": [], "schedulingGates": [{ "name": "weir.io/data" }] },
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    };
    let as_it_is = |_: &mut Value| {};
    table.see(watcher::Event::Apply(pod("a", &as_it_is)));
    table.see(watcher::Event::Apply(pod("b", &as_it_is)));
    table.see(watcher::Event::Init);
    table.see(watcher::Event::InitApply(pod("b", &as_it_is)));
    table.see(watcher::Event::InitApply(pod("c", &as_it_is)));
    assert_eq!(table.len(), 3, "a list that is not complete says nothing");
    table.see(watcher::Event::InitDone);
    assert_eq!(table.len(), 2);
    table.see(watcher::Event::Apply(pod("b", &|pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    })));
    table.see(watcher::Event::Apply(pod("c", &|pod| {
        pod["spec"]["schedulingGates"] = json!([{ "name": "other" }]);
    })));
    assert_eq!(table.len(), 0);
    table.see(watcher::Event::Apply(pod("d", &as_it_is)));
    table.see(watcher::Event::Delete(pod("d", &as_it_is)));
    assert_eq!(table.len(), 0);
}
