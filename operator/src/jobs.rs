//! What the master asks of Kubernetes: of which job a pod is, whether a job is there still, and whether a node's pods use a dataset.
//!
//! By that all pods of a job see one snapshot of a dataset ([`Holder`] says what a job is). Node plugins ask the master, which asks
//! here: no plugin may read pods, since those have secrets in them. Every operator answers, whoever leads.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::core::Status;
use kube::{Client, ResourceExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weir_proto::v1;

use crate::holder::{Holder, Holders};
use crate::master::{Master, MasterError};
use crate::uses::is_used;

/// Calls of the apiserver at once, and the longest wait for one: who asks waits two seconds in all.
const CONCURRENT: usize = 16;
const CALL: Duration = Duration::from_secs(1);
/// How long the master is not asked after it did not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// How often the master is asked whose jobs are to be looked for.
const REVIEW: Duration = Duration::from_mins(1);

/// Kinds of jobs that are looked for: group, versions, kind and the name in URLs. Others are forgotten by the master after a time.
const KINDS: [(&str, &[&str], &str, &str); 12] = [
    ("batch", &["v1"], "Job", "jobs"),
    ("jobset.x-k8s.io", &["v1alpha2"], "JobSet", "jobsets"),
    ("kubeflow.org", &["v1"], "PyTorchJob", "pytorchjobs"),
    ("kubeflow.org", &["v1"], "TFJob", "tfjobs"),
    ("kubeflow.org", &["v2beta1", "v1"], "MPIJob", "mpijobs"),
    ("kubeflow.org", &["v1"], "XGBoostJob", "xgboostjobs"),
    ("kubeflow.org", &["v1"], "PaddleJob", "paddlejobs"),
    ("kubeflow.org", &["v1"], "JAXJob", "jaxjobs"),
    (
        "trainer.kubeflow.org",
        &["v1alpha1"],
        "TrainJob",
        "trainjobs",
    ),
    ("batch.volcano.sh", &["v1alpha1"], "Job", "jobs"),
    ("ray.io", &["v1", "v1alpha1"], "RayJob", "rayjobs"),
    ("ray.io", &["v1", "v1alpha1"], "RayCluster", "rayclusters"),
];

/// Answers the master until `stop`.
pub(crate) async fn answer(client: Client, master: Arc<dyn Master>, stop: &CancellationToken) {
    let holders = Holders::new(client.clone());
    let answering = async {
        let mut known = v1::ExchangePodsRequest::default();
        let mut was_there = true;
        loop {
            match master.exchange_pods(std::mem::take(&mut known)).await {
                Ok(asked) => {
                    was_there = true;
                    let jobs = futures::stream::iter(asked.asked)
                        .map(|pod| tell(&client, &holders, pod))
                        .buffer_unordered(CONCURRENT)
                        .filter_map(std::future::ready)
                        .collect();
                    let uses = futures::stream::iter(asked.asked_uses)
                        .map(|asked| tell_use(&client, asked))
                        .buffer_unordered(CONCURRENT)
                        .filter_map(std::future::ready)
                        .collect();
                    let (jobs, uses) = tokio::join!(jobs, uses);
                    known = v1::ExchangePodsRequest {
                        known: jobs,
                        known_uses: uses,
                    };
                }
                Err(error) => {
                    // One of before this, or one that is away.
                    if was_there {
                        tracing::debug!(%error, "the master does not ask about pods");
                    }
                    was_there = false;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = answering => {}
    }
}

/// Of which job a pod is; none if that cannot be told now.
async fn tell(client: &Client, holders: &Holders, pod: v1::Pod) -> Option<v1::PodJob> {
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
    let found = timeout(CALL, pods.get_metadata_opt(&pod.name)).await;
    let found = found.ok()?.inspect_err(|error| {
        tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %error, "it is not known of which job a pod is");
    });
    let found = found
        .ok()?
        .filter(|found| found.uid().as_ref() == Some(&pod.uid));
    let holder = match &found {
        Some(found) => holders.of_pod(&found.metadata).await,
        None => None,
    };
    let job = holder.filter(Holder::has_an_end);
    Some(v1::PodJob {
        pod: Some(pod),
        job: job.map_or_else(String::new, |job| job.to_string()),
    })
}

/// Whether pods of a node use a dataset; none if that cannot be told now.
async fn tell_use(client: &Client, asked: v1::NodeUse) -> Option<v1::KnownUse> {
    let used = timeout(CALL, is_used(client, &asked)).await.ok()??;
    Some(v1::KnownUse {
        r#use: Some(asked),
        used,
    })
}

/// Tells the master which jobs are gone, until `stop`.
pub(crate) async fn review(client: &Client, master: &Arc<dyn Master>, stop: &CancellationToken) {
    let reviewing = async {
        let mut next = v1::ReviewJobsRequest::default();
        loop {
            match master.review_jobs(std::mem::take(&mut next)).await {
                Ok(asked) => next = look_for(client, asked).await,
                Err(MasterError::Away(_)) => {}
                Err(error) => tracing::debug!(%error, "the master does not ask about jobs"),
            }
            if next.gone.is_empty() {
                tokio::time::sleep(REVIEW).await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = reviewing => {}
    }
}

/// Looks for jobs.
async fn look_for(client: &Client, jobs: Vec<String>) -> v1::ReviewJobsRequest {
    let found = futures::stream::iter(jobs)
        .map(|job| async move {
            let is_there = match job.parse::<Holder>() {
                Ok(holder) => timeout(CALL, is_there(client, &holder)).await,
                // Of another version; nobody here can tell.
                Err(()) => Ok(None),
            };
            (job, is_there.ok().flatten())
        })
        .buffer_unordered(CONCURRENT)
        .collect::<Vec<_>>()
        .await;
    let mut told = v1::ReviewJobsRequest::default();
    for (job, is_there) in found {
        match is_there {
            Some(true) => told.there.push(job),
            Some(false) => told.gone.push(job),
            None => {}
        }
    }
    told
}

/// Whether a job is there; none if that cannot be told.
async fn is_there(client: &Client, holder: &Holder) -> Option<bool> {
    let found = match holder {
        Holder::Owner {
            namespace,
            group,
            kind,
            name,
            uid,
        } => owner_is_there(client, namespace, (group, kind), (name, uid)).await,
        Holder::Labelled {
            namespace,
            label,
            value,
        } => {
            let pods = Api::<Pod>::namespaced(client.clone(), namespace);
            let some = ListParams::default()
                .labels(&format!("{label}={value}"))
                .limit(1);
            let found = pods.list_metadata(&some).await;
            found.map(|found| Some(!found.items.is_empty()))
        }
    };
    found
        .inspect_err(|error| tracing::debug!(%holder, %error, "a job cannot be looked for"))
        .ok()?
}

/// Whether an object of a kind is there, which has a name and a uid.
async fn owner_is_there(
    client: &Client,
    namespace: &str,
    kind: (&str, &str),
    (name, uid): (&str, &str),
) -> Result<Option<bool>, kube::Error> {
    let Some((group, versions, kind, plural)) =
        KINDS.iter().find(|known| (known.0, known.2) == kind)
    else {
        return Ok(None);
    };
    for version in *versions {
        let kind = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let objects = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
        match objects.get_metadata(name).await {
            Ok(found) => return Ok(Some(found.uid().as_deref() == Some(uid))),
            // There is no such kind in this version, which says nothing of the object.
            Err(kube::Error::Api(status)) if status.code == 404 && !names_an_object(&status) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Some(false)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether a refusal is about an object, and not about its kind.
fn names_an_object(status: &Status) -> bool {
    let details = status.details.as_ref();
    details.is_some_and(|details| !details.name.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, FakeMaster};

    fn put(
        api: &FakeApi,
        path: &str,
        uid: &str,
        labels: serde_json::Value,
        owner: Option<(&str, &str)>,
    ) {
        let (namespaced, name) = path.rsplit_once('/').unwrap();
        let namespace = namespaced.split('/').nth_back(1).unwrap();
        let owner = owner.map(|(version, kind)| {
            json!([{
                "apiVersion": version, "kind": kind, "name": "bert", "uid": "u-bert", "controller": true,
            }])
        });
        api.put(
            path,
            json!({
                "apiVersion": "v1", "kind": "X",
                "metadata": {
                    "name": name, "namespace": namespace, "uid": uid, "labels": labels,
                    "ownerReferences": owner,
                },
            }),
        );
    }

    #[tokio::test]
    async fn the_master_is_told_of_which_job_a_pod_is() {
        let (client, api) = FakeApi::start();
        let holders = Holders::new(client.clone());
        let path = |name: &str| format!("/api/v1/namespaces/team-a/pods/{name}");
        put(
            &api,
            &path("a"),
            "u-a",
            json!({}),
            Some(("kubeflow.org/v1", "PyTorchJob")),
        );
        put(
            &api,
            &path("b"),
            "u-b",
            json!({}),
            Some(("apps/v1", "ReplicaSet")),
        );
        put(&api, &path("c"), "u-c", json!({}), None);
        for (name, uid, job) in [
            (
                "a",
                "u-a",
                "owner team-a PyTorchJob.kubeflow.org bert u-bert",
            ),
            // One of the same name that came later.
            ("a", "u-other", ""),
            // It runs for ever: new pods of it see what is new.
            ("b", "u-b", ""),
            ("c", "u-c", ""),
            ("gone", "u", ""),
        ] {
            let pod = v1::Pod {
                namespace: "team-a".to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
            };
            let told = tell(&client, &holders, pod).await.unwrap();
            assert_eq!(told.job, job, "{name} {uid}");
        }
        api.refuse(&path("a"), 403);
        let pod = v1::Pod {
            namespace: "team-a".to_owned(),
            name: "a".to_owned(),
            uid: "u-a".to_owned(),
        };
        assert_eq!(
            tell(&client, &holders, pod).await,
            None,
            "that is no answer"
        );
    }

    #[tokio::test]
    async fn jobs_that_are_gone_are_told_and_those_that_cannot_be_looked_for_are_not() {
        let (client, api) = FakeApi::start();
        let jobs = "/apis/kubeflow.org/v1/namespaces/team-a/pytorchjobs";
        put(&api, &format!("{jobs}/bert"), "u-1", json!({}), None);
        api.refuse("/apis/ray.io/v1/namespaces/team-a/rayjobs/x", 403);
        // The cluster does not have the kind in its first version.
        let of_version =
            |version| format!("/apis/kubeflow.org/{version}/namespaces/team-a/mpijobs");
        api.refuse(&format!("{}/old", of_version("v2beta1")), 404);
        put(
            &api,
            &format!("{}/old", of_version("v1")),
            "u-4",
            json!({}),
            None,
        );
        for version in ["v2beta1", "v1"] {
            api.refuse(&format!("{}/none", of_version(version)), 404);
        }
        let label = json!({ "scheduling.x-k8s.io/pod-group": "gang" });
        put(&api, "/api/v1/namespaces/team-a/pods/p", "u-p", label, None);
        let there = [
            "owner team-a MPIJob.kubeflow.org old u-4",
            "owner team-a PyTorchJob.kubeflow.org bert u-1",
            "pods team-a scheduling.x-k8s.io/pod-group gang",
        ];
        let gone = [
            "owner team-a PyTorchJob.kubeflow.org bert u-2",
            "owner team-a Job.batch other u",
            "pods team-a scheduling.x-k8s.io/pod-group other",
        ];
        let unknown = [
            "owner team-a MPIJob.kubeflow.org none u",
            "owner team-a RayJob.ray.io x u",
            "owner team-a Custom.example.com x u",
            "of another version",
            "",
        ];
        let all = there.iter().chain(&gone).chain(&unknown);
        let mut told = look_for(&client, all.map(|job| (*job).to_owned()).collect()).await;
        told.there.sort();
        told.gone.sort();
        assert_eq!(told.there, there);
        let mut expected = gone;
        expected.sort_unstable();
        assert_eq!(told.gone, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_that_is_away_is_asked_again() {
        let (client, api) = FakeApi::start();
        put(
            &api,
            "/api/v1/namespaces/team-a/pods/a",
            "u-a",
            json!({}),
            Some(("kubeflow.org/v1", "TFJob")),
        );
        let master = Arc::new(FakeMaster::default());
        master.go_away(true);
        let stop = CancellationToken::new();
        let answering = answer(client, master.clone(), &stop);
        let asking = async {
            tokio::time::sleep(Duration::from_mins(1)).await;
            master.go_away(false);
            let pod = v1::Pod {
                namespace: "team-a".to_owned(),
                name: "a".to_owned(),
                uid: "u-a".to_owned(),
            };
            let job = master.ask_about(pod).await;
            assert_eq!(job, "owner team-a TFJob.kubeflow.org bert u-bert");
            stop.cancel();
        };
        tokio::join!(answering, asking);
    }
}
