//! Pods as the controllers of jobs make them: of Kubernetes, Kubeflow, Arena, Volcano, Kueue and JobSet.
//!
//! What is written here is what those controllers write into pods from the templates of their jobs: owner, labels, annotations,
//! gates and the scheduler's name. Beside that each pod asks for GPUs, has an affinity of its own, and waits for its data.

use serde_json::{Value, json};

/// A job: its name, the objects that its pods are owned by, and its pods.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Paths of collections, and objects.
    pub(crate) objects: Vec<(&'static str, Value)>,
    pub(crate) pods: Vec<Value>,
    /// What the master is told of whose snapshots these are; it ends with a uid, or with a label's value.
    pub(crate) job: &'static str,
}

fn owner(version: &str, kind: &str, name: &str) -> Value {
    json!([{
        "apiVersion": version, "kind": kind, "name": name, "uid": format!("uid-of-{name}"),
        "controller": true,
    }])
}

/// A pod with what all of them have.
fn pod(name: &str, meta: Value, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "team-a" },
        "spec": {
            "containers": [{
                "name": "train", "image": "train:1",
                "resources": { "limits": { "nvidia.com/gpu": "8" } },
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "images" } }],
            "tolerations": [{ "key": "nvidia.com/gpu", "operator": "Exists" }],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                        { "matchExpressions": [{ "key": "gpu", "operator": "In", "values": ["a100"] }] },
                        { "matchExpressions": [{ "key": "gpu", "operator": "In", "values": ["h100"] }] },
                    ] },
                    "preferredDuringSchedulingIgnoredDuringExecution": [{
                        "weight": 7, "preference": { "matchExpressions": [
                            { "key": "nvlink", "operator": "Exists" },
                        ] },
                    }],
                },
                "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
                    "weight": 1, "podAffinityTerm": {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": { "matchLabels": { "role": "ps" } },
                    },
                }] },
            },
        },
    });
    for (part, more) in [("metadata", meta), ("spec", spec)] {
        for (key, value) in more.as_object().unwrap() {
            pod[part][key] = value.clone();
        }
    }
    pod["metadata"]["annotations"]["weir.io/wait-for"] = json!("95%");
    pod
}

/// The jobs.
pub(crate) fn all() -> Vec<Kind> {
    vec![
        job(),
        pytorch(),
        arena(),
        mpi(),
        volcano(),
        jobset(),
        kueue(),
        coscheduling(),
    ]
}

/// A Job of Kubernetes with two indexes.
fn job() -> Kind {
    let pods = (0..2).map(|index| {
        let meta = json!({
            "ownerReferences": owner("batch/v1", "Job", "plain"),
            "labels": { "batch.kubernetes.io/job-name": "plain", "job-name": "plain" },
            "annotations": { "batch.kubernetes.io/job-completion-index": index.to_string() },
        });
        let spec = json!({ "restartPolicy": "Never", "subdomain": "plain" });
        pod(&format!("plain-{index}"), meta, spec)
    });
    Kind {
        name: "Job",
        objects: Vec::new(),
        pods: pods.collect(),
        job: "owner team-a Job.batch plain uid-of-plain",
    }
}

/// A `PyTorchJob` of Kubeflow's training operator with gang scheduling by Volcano.
fn pytorch() -> Kind {
    let pods = ["master", "worker"].map(|role| {
        let meta = json!({
            "ownerReferences": owner("kubeflow.org/v1", "PyTorchJob", "bert"),
            "labels": {
                "training.kubeflow.org/job-name": "bert",
                "training.kubeflow.org/operator-name": "pytorchjob-controller",
                "training.kubeflow.org/replica-type": role,
                "training.kubeflow.org/replica-index": "0",
            },
            "annotations": {
                "scheduling.k8s.io/group-name": "bert", "volcano.sh/task-spec": role,
            },
        });
        let spec = json!({ "schedulerName": "volcano", "restartPolicy": "OnFailure" });
        pod(&format!("bert-{role}-0"), meta, spec)
    });
    Kind {
        name: "PyTorchJob",
        objects: Vec::new(),
        pods: pods.into(),
        job: "owner team-a PyTorchJob.kubeflow.org bert uid-of-bert",
    }
}

/// A `TFJob` as `arena submit tf --data=images:/data` makes it: the claim, mounted into each replica.
fn arena() -> Kind {
    let pods = ["ps", "worker"].map(|role| {
        let meta = json!({
            "ownerReferences": owner("kubeflow.org/v1", "TFJob", "arena-tf"),
            "labels": {
                "app": "tfjob", "release": "arena-tf", "createdBy": "TFJob", "heritage": "Helm",
                "training.kubeflow.org/job-name": "arena-tf",
                "training.kubeflow.org/replica-type": role,
            },
            "annotations": { "requestGPUsOfJobOwner": "8" },
        });
        let spec = json!({
            "volumes": [
                { "name": "images", "persistentVolumeClaim": { "claimName": "images" } },
                { "name": "data", "emptyDir": {} },
            ],
            "restartPolicy": "Never",
        });
        pod(&format!("arena-tf-{role}-0"), meta, spec)
    });
    Kind {
        name: "TFJob of Arena",
        objects: Vec::new(),
        pods: pods.into(),
        job: "owner team-a TFJob.kubeflow.org arena-tf uid-of-arena-tf",
    }
}

/// An `MPIJob`: workers of its own, and a launcher that a Job of Kubernetes makes.
fn mpi() -> Kind {
    let launcher = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": "mpi-launcher", "namespace": "team-a",
            "ownerReferences": owner("kubeflow.org/v2beta1", "MPIJob", "mpi"),
        },
        "spec": { "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "l", "image": "l:1" }],
        } } },
    });
    let labels = |role: &str| {
        json!({
            "training.kubeflow.org/job-name": "mpi", "training.kubeflow.org/job-role": role,
            "training.kubeflow.org/operator-name": "mpi-operator",
        })
    };
    let worker = json!({
        "ownerReferences": owner("kubeflow.org/v2beta1", "MPIJob", "mpi"),
        "labels": labels("worker"),
    });
    // The uid of the Job is put in when it is made.
    let launched = json!({
        "ownerReferences": owner("batch/v1", "Job", "mpi-launcher"), "labels": labels("launcher"),
    });
    Kind {
        name: "MPIJob",
        objects: vec![("/apis/batch/v1/namespaces/team-a/jobs", launcher)],
        pods: vec![
            pod(
                "mpi-worker-0",
                worker,
                json!({ "hostname": "mpi-worker-0" }),
            ),
            pod(
                "mpi-launcher-x",
                launched,
                json!({ "restartPolicy": "Never" }),
            ),
        ],
        job: "owner team-a MPIJob.kubeflow.org mpi uid-of-mpi",
    }
}

/// A Job of Volcano.
fn volcano() -> Kind {
    let pods = (0..2).map(|index| {
        let meta = json!({
            "ownerReferences": owner("batch.volcano.sh/v1alpha1", "Job", "vc"),
            "labels": {
                "volcano.sh/job-name": "vc", "volcano.sh/queue-name": "default",
                "volcano.sh/job-namespace": "team-a", "volcano.sh/task-spec": "train",
            },
            "annotations": {
                "scheduling.k8s.io/group-name": "vc-uid", "volcano.sh/task-index": index.to_string(),
            },
        });
        let spec = json!({ "schedulerName": "volcano" });
        pod(&format!("vc-train-{index}"), meta, spec)
    });
    Kind {
        name: "Job of Volcano",
        objects: Vec::new(),
        pods: pods.collect(),
        job: "owner team-a Job.batch.volcano.sh vc uid-of-vc",
    }
}

/// A `JobSet` with two Jobs of Kubernetes.
fn jobset() -> Kind {
    let names = ["set-driver-0", "set-workers-0"];
    let objects = names.map(|name| {
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": name, "namespace": "team-a",
                "ownerReferences": owner("jobset.x-k8s.io/v1alpha2", "JobSet", "set"),
            },
            "spec": { "template": { "spec": {
                "restartPolicy": "Never", "containers": [{ "name": "l", "image": "l:1" }],
            } } },
        });
        ("/apis/batch/v1/namespaces/team-a/jobs", job)
    });
    let pods = names.map(|name| {
        let meta = json!({
            "ownerReferences": owner("batch/v1", "Job", name),
            "labels": { "jobset.sigs.k8s.io/jobset-name": "set" },
        });
        pod(
            &format!("{name}-0"),
            meta,
            json!({ "restartPolicy": "Never" }),
        )
    });
    Kind {
        name: "JobSet",
        objects: objects.into(),
        pods: pods.into(),
        job: "owner team-a JobSet.jobset.x-k8s.io set uid-of-set",
    }
}

/// A group of pods that Kueue holds by a gate of its own.
fn kueue() -> Kind {
    let pods = (0..2).map(|index| {
        let meta = json!({
            "labels": {
                "kueue.x-k8s.io/queue-name": "q", "kueue.x-k8s.io/managed": "true",
                "kueue.x-k8s.io/pod-group-name": "queued",
            },
            "annotations": { "kueue.x-k8s.io/pod-group-total-count": "2" },
        });
        let gates = json!([{ "name": "kueue.x-k8s.io/admission" }]);
        pod(
            &format!("queued-{index}"),
            meta,
            json!({ "schedulingGates": gates }),
        )
    });
    Kind {
        name: "pod group of Kueue",
        objects: Vec::new(),
        pods: pods.collect(),
        job: "pods team-a kueue.x-k8s.io/pod-group-name queued",
    }
}

/// Two Jobs that are one gang to the coscheduling plugin.
fn coscheduling() -> Kind {
    let pods = ["one", "other"].map(|job| {
        let meta = json!({
            "ownerReferences": owner("batch/v1", "Job", job),
            "labels": { "scheduling.x-k8s.io/pod-group": "gang" },
        });
        let spec = json!({ "schedulerName": "scheduler-plugins-scheduler" });
        pod(&format!("gang-{job}"), meta, spec)
    });
    Kind {
        name: "pod group of coscheduling",
        objects: Vec::new(),
        pods: pods.into(),
        job: "pods team-a scheduling.x-k8s.io/pod-group gang",
    }
}
