//! Whose pods belong together: those of one job, or of one pod group.
//!
//! A pod group is known by the label that its scheduler reads, and comes first: several jobs may make one. Else it is the object
//! that made the pod, or made the Job of Kubernetes that did: the launcher of an MPIJob belongs to its workers, and all Jobs of a
//! JobSet are one. A Job of a CronJob is one by itself, as each run is.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use tokio::time::timeout;

/// Labels that name the group of a pod: coscheduling's, its older one, and Kueue's.
const GROUP_LABELS: [&str; 3] = [
    "scheduling.x-k8s.io/pod-group",
    "pod-group.scheduling.sigs.k8s.io",
    "kueue.x-k8s.io/pod-group-name",
];
/// Longest wait for the owner of a Job.
const CALL: Duration = Duration::from_secs(2);
/// Jobs whose owners are remembered.
const MAX_JOBS: usize = 8192;

/// Whose pods belong together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Holder {
    /// An object that made them, directly or by a Job.
    Owner {
        namespace: String,
        /// The group of its kind, empty for Kubernetes' core.
        group: String,
        kind: String,
        name: String,
        uid: String,
    },
    /// All with this label.
    Labelled {
        namespace: String,
        label: String,
        value: String,
    },
}

impl Holder {
    /// As far as a pod itself says it.
    pub(crate) fn of_pod(pod: &ObjectMeta) -> Option<Self> {
        let namespace = pod.namespace.clone().unwrap_or_default();
        let labels = pod.labels.as_ref();
        let labelled = GROUP_LABELS.iter().find_map(|label| {
            let value = labels?.get(*label).filter(|value| !value.is_empty())?;
            Some(((*label).to_owned(), value.clone()))
        });
        if let Some((label, value)) = labelled {
            return Some(Self::Labelled {
                namespace,
                label,
                value,
            });
        }
        Some(Self::of_owner(namespace, controller(pod)?))
    }

    fn of_owner(namespace: String, owner: &OwnerReference) -> Self {
        let group = owner.api_version.split_once('/');
        Self::Owner {
            namespace,
            group: group.map_or_else(String::new, |(group, _)| group.to_owned()),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        }
    }

    /// Whether it is there for one run: its pods see one snapshot then. Those of what runs for ever see what is new.
    pub(crate) fn has_an_end(&self) -> bool {
        let Self::Owner { kind, .. } = self else {
            return true;
        };
        !matches!(
            kind.as_str(),
            "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" | "Node"
        )
    }

    fn is_job(&self) -> bool {
        matches!(self, Self::Owner { group, kind, .. } if group == "batch" && kind == "Job")
    }
}

/// The one that made an object.
fn controller(object: &ObjectMeta) -> Option<&OwnerReference> {
    let mut owners = object.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true))
}

/// Words that are written to the master, and read again.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner {
                namespace,
                group,
                kind,
                name,
                uid,
            } => write!(f, "owner {namespace} {kind}.{group} {name} {uid}"),
            Self::Labelled {
                namespace,
                label,
                value,
            } => write!(f, "pods {namespace} {label} {value}"),
        }
    }
}

impl FromStr for Holder {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let own = |word: &str| word.to_owned();
        match words[..] {
            ["owner", namespace, kind, name, uid] => {
                let (kind, group) = kind.split_once('.').ok_or(())?;
                Ok(Self::Owner {
                    namespace: own(namespace),
                    group: own(group),
                    kind: own(kind),
                    name: own(name),
                    uid: own(uid),
                })
            }
            ["pods", namespace, label, value] => Ok(Self::Labelled {
                namespace: own(namespace),
                label: own(label),
                value: own(value),
            }),
            _ => Err(()),
        }
    }
}

/// Finds out whose pods belong together, and remembers which Job is whose.
pub(crate) struct Holders {
    client: Client,
    /// By the Job's uid; what a Job is that nobody else made is itself.
    jobs: Mutex<HashMap<String, Holder>>,
}

impl Holders {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            jobs: Mutex::default(),
        }
    }

    /// Whom a pod belongs to; none if it is one by itself. Of a Job whose owner cannot be told now, the Job.
    pub(crate) async fn of_pod(&self, pod: &ObjectMeta) -> Option<Holder> {
        let holder = Holder::of_pod(pod)?;
        if !holder.is_job() {
            return Some(holder);
        }
        let Holder::Owner {
            namespace,
            name,
            uid,
            ..
        } = &holder
        else {
            return Some(holder);
        };
        if let Some(known) = self.jobs.lock().get(uid) {
            return Some(known.clone());
        }
        let jobs = Api::<Job>::namespaced(self.client.clone(), namespace);
        let job = timeout(CALL, jobs.get_metadata_opt(name)).await;
        let root = match job {
            Ok(Ok(Some(job))) if job.uid().as_ref() == Some(uid) => {
                let owner = controller(&job.metadata).filter(|owner| owner.kind != "CronJob");
                owner.map(|owner| Holder::of_owner(namespace.clone(), owner))
            }
            // It is gone: nobody makes more of its pods.
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                tracing::debug!(%holder, %error, "the owner of a Job is not known");
                return Some(holder);
            }
            Err(_) => return Some(holder),
        };
        let root = root.unwrap_or_else(|| holder.clone());
        let mut jobs = self.jobs.lock();
        if jobs.len() >= MAX_JOBS {
            jobs.clear();
        }
        jobs.insert(uid.clone(), root.clone());
        Some(root)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::FakeApi;

    fn meta(labels: Value, owners: Value) -> ObjectMeta {
        let meta = json!({
            "name": "p", "namespace": "team-a", "labels": labels, "ownerReferences": owners,
        });
        serde_json::from_value(meta).unwrap()
    }

    fn owner(version: &str, kind: &str, name: &str) -> Value {
        json!([{
            "apiVersion": version, "kind": kind, "name": name, "uid": format!("uid-of-{name}"),
            "controller": true,
        }])
    }

    fn job(api: &FakeApi, name: &str, owners: &Value) {
        let path = format!("/apis/batch/v1/namespaces/team-a/jobs/{name}");
        api.put(
            &path,
            json!({
                "apiVersion": "batch/v1", "kind": "Job",
                "metadata": {
                    "name": name, "namespace": "team-a", "uid": format!("uid-of-{name}"),
                    "ownerReferences": owners,
                },
            }),
        );
    }

    #[tokio::test]
    async fn the_pods_of_a_job_and_of_a_group_belong_together() {
        let (client, api) = FakeApi::start();
        let holders = Holders::new(client);
        job(
            &api,
            "launcher",
            &owner("kubeflow.org/v2beta1", "MPIJob", "bert"),
        );
        job(&api, "nightly-1", &owner("batch/v1", "CronJob", "nightly"));
        for (labels, owners, wanted) in [
            (json!({}), json!([]), None),
            (
                json!({}),
                owner("kubeflow.org/v1", "PyTorchJob", "bert"),
                Some("owner team-a PyTorchJob.kubeflow.org bert uid-of-bert"),
            ),
            (
                json!({}),
                owner("batch/v1", "Job", "launcher"),
                Some("owner team-a MPIJob.kubeflow.org bert uid-of-bert"),
            ),
            (
                json!({}),
                owner("batch/v1", "Job", "nightly-1"),
                Some("owner team-a Job.batch nightly-1 uid-of-nightly-1"),
            ),
            (
                json!({}),
                owner("batch/v1", "Job", "gone"),
                Some("owner team-a Job.batch gone uid-of-gone"),
            ),
            (
                json!({ "scheduling.x-k8s.io/pod-group": "gang" }),
                owner("batch/v1", "Job", "launcher"),
                Some("pods team-a scheduling.x-k8s.io/pod-group gang"),
            ),
            (
                json!({ "kueue.x-k8s.io/pod-group-name": "g" }),
                json!([]),
                Some("pods team-a kueue.x-k8s.io/pod-group-name g"),
            ),
        ] {
            let holder = holders.of_pod(&meta(labels, owners)).await;
            if let Some(holder) = &holder {
                assert_eq!(holder.to_string().parse().as_ref(), Ok(holder));
            }
            assert_eq!(holder.map(|holder| holder.to_string()).as_deref(), wanted);
        }
        // One that only refers to it did not make it.
        let mut owners = owner("v1", "ConfigMap", "x");
        owners[0]["controller"] = json!(false);
        assert_eq!(holders.of_pod(&meta(json!({}), owners)).await, None);
    }

    #[tokio::test]
    async fn a_job_is_asked_for_once_and_a_refusal_is_no_answer() {
        let (client, api) = FakeApi::start();
        let holders = Holders::new(client);
        let path = "/apis/batch/v1/namespaces/team-a/jobs/launcher";
        let pod = meta(json!({}), owner("batch/v1", "Job", "launcher"));
        api.refuse(path, 403);
        let holder = holders.of_pod(&pod).await.unwrap();
        assert!(holder.is_job(), "{holder}");
        api.refuse(path, 0);
        job(
            &api,
            "launcher",
            &owner("kubeflow.org/v1", "MPIJob", "bert"),
        );
        let root = holders.of_pod(&pod).await.unwrap();
        assert!(root.to_string().contains("MPIJob"), "{root}");
        api.remove(path);
        assert_eq!(holders.of_pod(&pod).await.unwrap(), root);
    }
}
