use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use super::testing::template;
use super::*;
use crate::master::{Master, MasterError, Refusal};
use crate::objects::{POOL_LABEL, PoolPhase};
use crate::testing::{FakeApi, FakeMaster, context};

const GIB: u64 = 1 << 30;

struct World {
    api: Arc<FakeApi>,
    master: Arc<FakeMaster>,
    context: Context,
    now: Timestamp,
    nodes: Vec<Node>,
    template: tempfile::NamedTempFile,
}

impl World {
    /// A cluster of nodes, and a pool `gpu`.
    fn new(nodes: &[&str], spec: Value) -> Self {
        let (client, api) = FakeApi::start();
        let master = Arc::new(FakeMaster::default());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), template().to_string()).unwrap();
        let context = Context {
            pools: crate::pools::Pools::new("weir-system", Some(file.path().to_owned())),
            ..context(client, &master)
        };
        let node = |name: &&str| {
            let node = json!({ "metadata": { "name": name, "labels": { "disk": "nvme" } } });
            serde_json::from_value(node).unwrap()
        };
        let world = Self {
            api,
            master,
            context,
            now: "2026-03-02T00:00:00Z".parse().unwrap(),
            nodes: nodes.iter().map(node).collect(),
            template: file,
        };
        world.declare(spec);
        world
    }

    fn path() -> &'static str {
        "/apis/weir.io/v1alpha1/cachepools/gpu"
    }

    fn declare(&self, spec: Value) {
        let before = self.api.get(Self::path());
        let generation = before.as_ref().map_or(0, |before| {
            before["metadata"]["generation"].as_i64().unwrap()
        });
        let mut object = before.unwrap_or_else(|| {
            json!({
                "apiVersion": "weir.io/v1alpha1", "kind": "CachePool",
                "metadata": { "name": "gpu", "uid": "uid-gpu" },
            })
        });
        object["metadata"]["generation"] = json!(generation + 1);
        object["spec"] = spec;
        self.api.put(Self::path(), object);
    }

    fn pool(&self) -> CachePool {
        serde_json::from_value(self.api.get(Self::path()).unwrap()).unwrap()
    }

    fn set(&self, kind: &str) -> Option<Value> {
        let path = format!("/apis/apps/v1/namespaces/weir-system/{kind}/weir-worker-gpu");
        self.api.get(&path)
    }

    fn replicas(&self) -> i64 {
        let set = self.set("statefulsets").unwrap();
        set["spec"]["replicas"].as_i64().unwrap()
    }

    /// What the controllers of Kubernetes do: pods of a StatefulSet run, one on each node, and are workers.
    fn settle(&self) {
        let Some(mut set) = self.set("statefulsets") else {
            return;
        };
        let replicas = usize::try_from(set["spec"]["replicas"].as_i64().unwrap()).unwrap();
        let running = replicas.min(self.nodes.len());
        let pod = |number: usize| {
            let node = (number < running).then(|| self.nodes[number].name_any());
            let pod = json!({
                "metadata": { "name": format!("weir-worker-gpu-{number}"), "labels": { POOL_LABEL: "gpu" } },
                "spec": { "nodeName": node, "containers": [] },
            });
            serde_json::from_value(pod).unwrap()
        };
        let pods: Vec<Pod> = (0..replicas).map(pod).collect();
        for (number, node) in self.nodes.iter().enumerate() {
            let name = node.name_any();
            if number >= running {
                self.master.leave(&name);
            } else if self.master.worker(&name).is_none_or(|worker| worker.away) {
                self.master.join(&name, 100 * GIB, 10 * GIB);
            }
        }
        self.context.pools.fleet.list(&self.nodes, &pods);
        set["status"] = json!({ "replicas": replicas, "readyReplicas": running });
        let path = "/apis/apps/v1/namespaces/weir-system/statefulsets/weir-worker-gpu";
        self.api.put(path, set);
    }

    /// One look, as the controller has them.
    async fn look(&self) -> CachePoolStatus {
        if self.context.pools.fleet.nodes().is_none() {
            self.context.pools.fleet.list(&self.nodes, &[]);
        }
        let _ = self.context.view.look(&*self.master).await;
        look_at(&self.pool(), &self.context, self.now)
            .await
            .unwrap();
        self.pool().status.unwrap_or_default()
    }

    /// Looks, and what follows from them, until nothing more does.
    async fn rounds(&self, count: usize) -> CachePoolStatus {
        let mut status = self.look().await;
        for _ in 0..count {
            self.settle();
            status = self.look().await;
        }
        status
    }

    fn cordon(&mut self, node: usize, is_cordoned: bool) {
        let spec = self.nodes[node].spec.get_or_insert_default();
        spec.unschedulable = Some(is_cordoned);
        self.settle();
    }

    fn count(&self, call: &str) -> usize {
        let calls = self.master.calls();
        calls.iter().filter(|line| *line == call).count()
    }
}

fn condition(status: &CachePoolStatus, type_: &str) -> (String, String, String) {
    let mut conditions = status.conditions.iter();
    let condition = conditions.find(|condition| condition.type_ == type_);
    let condition = condition.unwrap_or_else(|| panic!("no {type_} in {status:#?}"));
    let condition = condition.clone();
    (condition.status, condition.reason, condition.message)
}

#[tokio::test]
async fn a_pool_without_a_size_has_a_worker_on_every_node() {
    let world = World::new(&["a", "b"], json!({ "nodeSelector": { "disk": "nvme" } }));
    let status = world.look().await;
    let set = world.set("daemonsets").unwrap();
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"]["disk"], "nvme");
    assert_eq!(set["metadata"]["ownerReferences"][0]["name"], "gpu");
    assert_eq!(status.nodes, Some(2));
    assert_eq!(condition(&status, ACCEPTED).0, "True");
    assert!(world.pool().metadata.finalizers.is_none());
    let written = world.api.log().len();
    world.look().await;
    assert_eq!(world.api.log().len(), written, "nothing has changed");
    // Somebody changes it by hand.
    let path = "/apis/apps/v1/namespaces/weir-system/daemonsets/weir-worker-gpu";
    let mut edited = set.clone();
    edited["spec"]["template"]["spec"]["nodeSelector"] = json!({});
    edited["metadata"]["generation"] = json!(7);
    world.api.put(path, edited);
    world.look().await;
    let set = world.set("daemonsets").unwrap();
    assert_eq!(
        set["spec"]["template"]["spec"]["nodeSelector"]["disk"],
        "nvme"
    );
}

#[tokio::test]
async fn workers_are_added_at_once_and_counted() {
    let world = World::new(&["a", "b", "c"], json!({ "replicas": 2 }));
    let status = world.rounds(1).await;
    assert_eq!(
        (status.wanted, status.workers, status.ready),
        (Some(2), Some(2), Some(2))
    );
    assert_eq!(status.phase, Some(PoolPhase::Ready));
    assert_eq!(status.bytes, Some(200 * GIB as i64));
    assert_eq!(status.used.as_deref(), Some("10%"));
    assert_eq!(condition(&status, READY).0, "True");
    world.declare(json!({ "replicas": 3 }));
    world.look().await;
    assert_eq!(world.replicas(), 3);
}

#[tokio::test]
async fn a_worker_goes_when_the_others_have_its_blocks() {
    let world = World::new(&["a", "b", "c"], json!({ "replicas": 3 }));
    world.rounds(1).await;
    world.declare(json!({ "replicas": 1 }));
    let status = world.rounds(3).await;
    assert_eq!(world.replicas(), 3, "not before it is drained");
    assert_eq!(world.count("drain c"), 1, "and it is asked for once");
    assert_eq!(status.phase, Some(PoolPhase::Scaling));
    let (is, reason, message) = condition(&status, DRAINED);
    assert_eq!((is.as_str(), reason.as_str()), ("False", "Draining"));
    assert!(message.contains("worker c"), "{message}");
    world
        .master
        .job(1, |job| job.state = v1::JobState::Done.into());
    world.look().await;
    assert_eq!(world.replicas(), 2);
    world.rounds(2).await;
    assert_eq!(world.count("drain b"), 1, "then the next one");
    assert_eq!(
        world.count("uncordon c"),
        1,
        "one that comes back to the node owns blocks"
    );
    world
        .master
        .job(2, |job| job.state = v1::JobState::Done.into());
    let status = world.rounds(3).await;
    assert_eq!(world.replicas(), 1);
    assert!(status.leaving.is_empty(), "{status:#?}");
    assert_eq!(status.phase, Some(PoolPhase::Ready));
    assert!(world.master.worker("b").is_none() && world.master.worker("a").is_some());
}

#[tokio::test]
async fn a_pool_that_is_to_be_larger_again_keeps_its_workers() {
    let world = World::new(&["a", "b"], json!({ "replicas": 2 }));
    world.rounds(1).await;
    world.declare(json!({ "replicas": 1 }));
    world.rounds(1).await;
    assert_eq!(world.count("drain b"), 1);
    world.declare(json!({ "replicas": 2 }));
    let status = world.rounds(1).await;
    assert_eq!(world.replicas(), 2);
    assert_eq!(world.count("uncordon b"), 1, "which ends the drain");
    assert_eq!(
        (status.leaving.len(), status.phase),
        (0, Some(PoolPhase::Ready))
    );
}

#[tokio::test]
async fn a_drain_that_cannot_go_on_is_a_condition_and_not_tried_all_the_time() {
    let mut world = World::new(&["a", "b"], json!({ "replicas": 2 }));
    world.rounds(1).await;
    world.declare(json!({ "replicas": 1 }));
    world.look().await;
    world.master.job(1, |job| {
        job.state = v1::JobState::Failed.into();
        job.message = "the other workers had no room".to_owned();
    });
    let status = world.rounds(5).await;
    assert_eq!(world.replicas(), 2, "no block is lost");
    let (_, reason, message) = condition(&status, DRAINED);
    assert_eq!(reason, "DrainFailed");
    assert_eq!(message, "the other workers had no room");
    assert_eq!(status.phase, Some(PoolPhase::Degraded));
    assert_eq!(world.count("drain b"), 1);
    assert_eq!(world.count("uncordon b"), 1, "it owns blocks meanwhile");
    world.now += SignedDuration::from_mins(31);
    world.rounds(3).await;
    assert_eq!(world.count("drain b"), 2, "after a while it is tried again");
    // That one gets nowhere.
    world.now += SignedDuration::from_mins(16);
    let status = world.rounds(2).await;
    let (_, reason, message) = condition(&status, DRAINED);
    assert_eq!(reason, "DrainFailed");
    assert!(message.contains("nothing of worker b"), "{message}");
    assert_eq!(world.count("drain b"), 2);
}

#[tokio::test]
async fn the_last_worker_of_a_pool_that_is_to_have_none_goes_without() {
    let world = World::new(&["a"], json!({ "replicas": 1 }));
    world.rounds(1).await;
    let last = MasterError::Refused {
        why: Refusal::NotPossible,
        message: "a is the last one".to_owned(),
    };
    world.master.refuse("a", last);
    world.declare(json!({ "replicas": 0 }));
    let status = world.rounds(3).await;
    assert_eq!(world.replicas(), 0);
    assert_eq!(status.phase, Some(PoolPhase::Ready));
}

#[tokio::test]
async fn a_master_that_is_away_keeps_workers_and_adds_some() {
    let world = World::new(&["a", "b", "c"], json!({ "replicas": 2 }));
    world.rounds(1).await;
    world.master.go_away(true);
    world.declare(json!({ "replicas": 3 }));
    world.look().await;
    assert_eq!(world.replicas(), 3);
    world.settle();
    world.declare(json!({ "replicas": 1 }));
    let status = world.rounds(3).await;
    assert_eq!(world.replicas(), 3);
    let (_, reason, message) = condition(&status, DRAINED);
    assert_eq!(reason, "Draining");
    assert!(message.contains("the master does not answer"), "{message}");
}

#[tokio::test]
async fn the_worker_of_a_cordoned_node_is_drained_until_it_is_cordoned_no_more() {
    let mut world = World::new(&["a", "b"], json!({ "replicas": 2 }));
    world.rounds(1).await;
    world.cordon(1, true);
    let status = world.rounds(2).await;
    assert_eq!(world.count("drain b"), 1);
    assert_eq!(status.leaving[0].why, LeavingReason::NodeCordoned);
    assert_eq!(world.replicas(), 2, "its pod stays");
    world
        .master
        .job(1, |job| job.state = v1::JobState::Done.into());
    let status = world.rounds(2).await;
    assert_eq!(condition(&status, DRAINED).1, "Drained");
    assert_eq!(world.count("uncordon b"), 0);
    world.cordon(1, false);
    let status = world.rounds(2).await;
    assert_eq!(world.count("uncordon b"), 1);
    assert!(status.leaving.is_empty(), "{status:#?}");
    assert_eq!(world.count("drain b"), 1);
}

#[tokio::test]
async fn a_worker_that_somebody_cordoned_by_hand_stays_cordoned() {
    let mut world = World::new(&["a", "b"], json!({ "replicas": 2 }));
    world.rounds(1).await;
    world.master.drain_worker("b").await.unwrap();
    world.cordon(1, true);
    world.rounds(2).await;
    world.cordon(1, false);
    let status = world.rounds(2).await;
    assert_eq!(world.count("uncordon b"), 0);
    assert!(status.leaving.is_empty(), "{status:#?}");
}

#[tokio::test]
async fn a_pool_that_is_deleted_leaves_no_worker_cordoned() {
    let world = World::new(&["a", "b"], json!({ "replicas": 2 }));
    world.rounds(1).await;
    world.declare(json!({ "replicas": 1 }));
    world.rounds(1).await;
    assert_eq!(world.count("drain b"), 1);
    world.api.remove(World::path());
    let (pools, metrics) = (&world.context.pools, &world.context.metrics);
    let forget = || pools.forget(|_| true, &*world.master, metrics);
    forget().await;
    assert_eq!(world.count("uncordon b"), 0, "its pod runs on");
    pools.fleet.list(&world.nodes, &[]);
    world.master.leave("b");
    world.master.go_away(true);
    forget().await;
    world.master.go_away(false);
    forget().await;
    assert_eq!(world.count("uncordon b"), 1);
    assert!(pools.remembered.lock().is_empty());
}

#[tokio::test]
async fn a_drain_is_known_though_the_status_could_not_be_written() {
    let world = World::new(&["a", "b"], json!({ "replicas": 2 }));
    world.rounds(1).await;
    world.declare(json!({ "replicas": 1 }));
    let status = format!("{}/status", World::path());
    world.api.refuse(&status, 500);
    let looked = look_at(&world.pool(), &world.context, world.now).await;
    assert!(looked.is_err(), "{looked:?}");
    assert_eq!(world.count("drain b"), 1);
    world.api.refuse(&status, 0);
    world.declare(json!({ "replicas": 2 }));
    let status = world.rounds(1).await;
    assert_eq!(world.count("uncordon b"), 1);
    assert!(status.leaving.is_empty(), "{status:#?}");
}

#[tokio::test]
async fn a_pool_without_nodes_says_so_at_once() {
    let world = World::new(&["a"], json!({ "nodeSelector": { "disk": "tape" } }));
    let status = world.look().await;
    let (is, reason, message) = condition(&status, NODES_FIT);
    assert_eq!((is.as_str(), reason.as_str()), ("False", "NoNodes"));
    assert!(message.contains("disk=tape"), "{message}");
    assert_eq!(status.phase, Some(PoolPhase::Failed));
    let world = World::new(&["a"], json!({ "replicas": 3 }));
    let status = world.rounds(1).await;
    assert_eq!(condition(&status, NODES_FIT).1, "TooFewNodes");
    assert_eq!(status.phase, Some(PoolPhase::Degraded));
    // Two cases of taints: one that is tolerated, and one that Kubernetes takes away again.
    let mut world = World::new(&["a"], json!({}));
    let taints = json!([{ "key": "gpu", "effect": "NoSchedule" }, { "key": "node.kubernetes.io/not-ready", "effect": "NoExecute" }]);
    world.nodes[0].spec = serde_json::from_value(json!({ "taints": taints })).unwrap();
    assert_eq!(condition(&world.look().await, NODES_FIT).1, "NoNodes");
    world.declare(json!({ "tolerations": [{ "key": "gpu", "operator": "Exists" }] }));
    assert_eq!(condition(&world.look().await, NODES_FIT).1, "Fit");
}

#[tokio::test]
async fn what_makes_no_sense_is_a_condition_and_changes_nothing() {
    let world = World::new(&["a"], json!({ "replicas": 1 }));
    world.rounds(1).await;
    world.declare(json!({ "replicas": 1, "tiers": { "memory": "much" } }));
    let status = world.rounds(1).await;
    let (is, reason, message) = condition(&status, ACCEPTED);
    assert_eq!((is.as_str(), reason.as_str()), ("False", "InvalidSpec"));
    assert!(message.contains("spec.tiers.memory"), "{message}");
    assert_eq!(
        status.phase,
        Some(PoolPhase::Degraded),
        "its worker runs on"
    );
    assert_eq!(world.replicas(), 1);
}

#[tokio::test]
async fn what_the_apiserver_refuses_is_a_condition() {
    let world = World::new(&["a"], json!({}));
    let path = "/apis/apps/v1/namespaces/weir-system/daemonsets/weir-worker-gpu";
    world.context.pools.fleet.list(&world.nodes, &[]);
    world.api.refuse(&format!("PATCH {path}"), 422);
    let status = world.look().await;
    let (_, reason, message) = condition(&status, ACCEPTED);
    assert_eq!(reason, "Refused");
    assert!(message.contains("422"), "{message}");
}

#[tokio::test]
async fn a_template_that_cannot_be_used_is_a_condition() {
    let world = World::new(&["a"], json!({}));
    for text in ["", "no JSON", "{}", "[]", "null"] {
        std::fs::write(world.template.path(), text).unwrap();
        let status = world.look().await;
        assert_eq!(condition(&status, ACCEPTED).1, "NoTemplate", "{text:?}");
    }
    assert!(world.set("daemonsets").is_none());
}

#[tokio::test]
async fn a_size_follows_from_what_is_read() {
    let auto = json!({ "minReplicas": 1, "maxReplicas": 3, "cachedPercent": 80, "stabilizationSeconds": 60 });
    let mut world = World::new(
        &["a", "b", "c"],
        json!({ "replicas": 1, "autoscaling": auto }),
    );
    let spec = serde_json::from_value(json!({ "sources": [{ "url": "s3://b" }] })).unwrap();
    // Half of it is cached.
    let name = "team-a/images".parse().unwrap();
    world.master.apply(&name, &spec, 0).await.unwrap();
    world.rounds(1).await;
    world.master.join("a", 100 * GIB, 99 * GIB);
    for _ in 0..4 {
        world.now += SignedDuration::from_secs(30);
        world.look().await;
    }
    assert_eq!(world.replicas(), 2);
    let status = world.pool().status.unwrap();
    let scaling = status.scaling.unwrap();
    assert!(
        scaling.reason.contains("50% of the Datasets"),
        "{scaling:?}"
    );
    assert_eq!(status.wanted, Some(2));
}

#[tokio::test]
async fn a_pool_that_gets_a_size_has_no_daemonset_any_more() {
    let world = World::new(&["a"], json!({}));
    world.look().await;
    assert!(world.set("daemonsets").is_some());
    world.declare(json!({ "replicas": 1 }));
    world.look().await;
    assert!(world.set("daemonsets").is_none());
    assert!(world.set("statefulsets").is_some());
}
