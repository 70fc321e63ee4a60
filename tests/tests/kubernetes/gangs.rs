//! Jobs of Kubeflow, Arena and Kueue: their pods as the controllers make them, which are played here, with the real scheduler.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use weir_tests::{content, wait_until, write_tree};

use crate::Case;
use crate::kubernetes::installation::Installation;
use crate::kubernetes::objects::{Origin, end_of, kubectl, nothing_serves, of_all, wait_for};
use crate::kubernetes::waiting::is_gated;

pub(crate) const CASES: &[Case] = &[(
    "pods_of_jobs_run_where_their_data_and_their_gpus_are",
    pods_of_jobs_run_where_their_data_and_their_gpus_are,
)];

const SOON: Duration = Duration::from_mins(1);
/// Kinds of jobs: group, version, name, and the name in URLs.
const KINDS: [(&str, &str, &str, &str); 3] = [
    ("kubeflow.org", "v1", "PyTorchJob", "pytorchjobs"),
    ("kubeflow.org", "v1", "TFJob", "tfjobs"),
    ("kubeflow.org", "v2beta1", "MPIJob", "mpijobs"),
];
/// The node that is to hold the data, and the one with GPUs.
const WARM: &str = "node-2";
const WITH_GPUS: &str = "node-1";
const GPU: &str = "nvidia.com/gpu";
/// Gates of Weir and of Kueue.
const DATA: &str = "weir.io/data";
const ADMISSION: &str = "kueue.x-k8s.io/admission";

fn definitions() -> String {
    let mut text = String::new();
    for (group, version, kind, plural) in KINDS {
        let singular = kind.to_lowercase();
        write!(
            text,
            "---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}}}
spec:
  group: {group}
  scope: Namespaced
  names: {{kind: {kind}, plural: {plural}, singular: {singular}}}
  versions:
  - {{name: {version}, served: true, storage: true, schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}
"
        )
        .unwrap();
    }
    text
}

/// Makes the kinds known to the apiserver, without their controllers.
pub(crate) fn define_jobs(weir: &Installation) {
    weir.cluster.apply(&definitions());
    for (group, _, _, plural) in KINDS {
        let definition = format!("crd/{plural}.{group}");
        wait_for(weir, "default", "Established", &definition);
    }
}

pub(crate) fn forget_jobs(weir: &Installation) {
    for (group, _, _, plural) in KINDS {
        let definition = format!("crd/{plural}.{group}");
        let delete = ["delete", &definition, "--timeout=60s"];
        weir.cluster.kubectl(&delete).ok();
    }
}

/// An object of each kind, of its name; gives what its pods are owned by.
fn make_jobs(weir: &Installation) -> [Value; 3] {
    define_jobs(weir);
    KINDS.map(|(group, version, kind, plural)| {
        let version = format!("{group}/{version}");
        let name = kind.to_lowercase();
        weir.cluster.apply(&format!(
            "{{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}, namespace: default}}}}"
        ));
        let job = weir.cluster.get(&[&format!("{plural}.{group}"), &name]);
        json!([{
            "apiVersion": version, "kind": kind, "name": name, "uid": job["metadata"]["uid"],
            "controller": true, "blockOwnerDeletion": true,
        }])
    })
}

/// What all their pods have: they compare what they see with `expected`, and wait for all of it.
fn template(labels: Value, expected: &Path) -> Value {
    json!({
        "metadata": { "labels": labels, "annotations": { "weir.io/wait-for": "100%" } },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "train", "image": "lab.local/busybox:1",
                "command": ["diff", "-r", "/expected", "/data"],
                "volumeMounts": [
                    { "name": "data", "mountPath": "/data" },
                    { "name": "expected", "mountPath": "/expected", "readOnly": true },
                ],
            }],
            "volumes": [
                { "name": "data", "persistentVolumeClaim": { "claimName": "gangs" } },
                { "name": "expected", "hostPath": { "path": expected, "type": "Directory" } },
            ],
        },
    })
}

/// The pods that the training operator makes of a `PyTorchJob`, of the `TFJob` of `arena submit tf --gpus=1 --data=gangs:/data`, and of the
/// workers of an `MPIJob`, whose launcher is a Job's; and a group of pods of Kueue's.
fn pods([pytorch, tf, mpi]: &[Value; 3], expected: &Path) -> Vec<Value> {
    let make = |name: &str, labels: &Value| {
        let mut labels = labels.clone();
        labels["case"] = json!("gangs");
        let mut pod = template(labels, expected);
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod
    };
    let of = |owners: &Value, role: &str| {
        let job = owners[0]["name"].as_str().unwrap();
        let labels = json!({
            "training.kubeflow.org/job-name": job, "training.kubeflow.org/replica-type": role,
            "training.kubeflow.org/replica-index": "0",
        });
        let mut pod = make(&format!("{job}-{role}-0"), &labels);
        pod["metadata"]["ownerReferences"] = owners.clone();
        pod
    };
    let with_gpu = |mut pod: Value| {
        pod["spec"]["containers"][0]["resources"] = json!({ "limits": { GPU: 1 } });
        pod
    };
    let queued = |name: &str| {
        let labels = json!({
            "kueue.x-k8s.io/queue-name": "q", "kueue.x-k8s.io/managed": "true",
            "kueue.x-k8s.io/pod-group-name": "queued",
        });
        let mut pod = make(name, &labels);
        pod["spec"]["schedulingGates"] = json!([{ "name": ADMISSION }]);
        pod
    };
    vec![
        of(pytorch, "master"),
        of(pytorch, "worker"),
        with_gpu(of(tf, "chief")),
        with_gpu(of(tf, "worker")),
        of(mpi, "worker"),
        queued("queued-0"),
        queued("queued-1"),
    ]
}

/// The launcher of the `MPIJob`, whose pod Kubernetes makes.
fn launcher(mpi: &Value, expected: &Path) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": "mpijob-launcher", "labels": { "case": "gangs" }, "ownerReferences": mpi,
        },
        "spec": { "template": template(json!({ "case": "gangs" }), expected) },
    })
}

fn has_gate(pod: &Value, name: &str) -> bool {
    let gates = pod["spec"]["schedulingGates"].as_array();
    gates.is_some_and(|gates| gates.iter().any(|gate| gate["name"] == name))
}

fn pods_of_jobs_run_where_their_data_and_their_gpus_are(weir: &Installation) {
    let cluster = &weir.cluster;
    let served = cluster.scratch.path("gangs");
    let file = |n: u64| (format!("{}/{n}.bin", n % 3), content(n, 70_000));
    write_tree(&served, &(0..30).map(file).collect());
    let origin = Origin::start(weir, 9007, &served, &[]);
    let dataset = of_all("gangs", &origin.endpoint()).replace(
        "spec: {",
        &format!("spec: {{placement: {{spread: node, in: [{WARM}]}}, "),
    );
    cluster.apply(&dataset);
    wait_for(weir, "default", "Ready", "dataset/gangs");
    wait_until("the webhook is asked", SOON, || is_gated(weir, "gangs"));
    give_gpus(weir, "8");
    // Without it nothing is warmed.
    origin.stop();
    let jobs = make_jobs(weir);
    let members = pods(&jobs, &served);
    for object in members.iter().chain([&launcher(&jobs[2], &served)]) {
        cluster.apply(&object.to_string());
    }
    let all = || -> Vec<Value> {
        let pods = cluster.get(&["pods", "-l", "case=gangs"]);
        pods["items"].as_array().unwrap().clone()
    };
    let count = members.len() + 1;
    wait_until("the scheduler passes them over", SOON, || {
        let waits = |pod: &Value| {
            let reason = &pod["status"]["conditions"][0]["reason"];
            has_gate(pod, DATA) && reason == "SchedulingGated"
        };
        let all = all();
        all.len() == count && all.iter().all(waits)
    });
    origin.run();
    wait_until("the data is there for all of them", SOON, || {
        !all().iter().any(|pod| has_gate(pod, DATA))
    });
    for pod in all() {
        let name = pod["metadata"]["name"].as_str().unwrap();
        if has_gate(&pod, ADMISSION) {
            assert!(pod["spec"]["nodeName"].is_null(), "{pod}");
            let admit = r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#;
            let patch = ["patch", "pod", name, "--type=json", "-p", admit];
            kubectl(weir, "default", &patch);
        }
        end_of(weir, "default", name);
    }
    for pod in all() {
        let needs_gpu = !pod["spec"]["containers"][0]["resources"]["limits"].is_null();
        let node = if needs_gpu { WITH_GPUS } else { WARM };
        assert_eq!(pod["spec"]["nodeName"], node, "{pod}");
        let placed = &pod["metadata"]["annotations"]["weir.io/placed-by"];
        assert_eq!(placed, "gangs", "{pod}");
    }
    let objects = ["delete", "pod,job", "-l", "case=gangs", "--timeout=60s"];
    kubectl(weir, "default", &objects);
    forget_jobs(weir);
    give_gpus(weir, "0");
    let delete = ["delete", "dataset/gangs", "--timeout=100s"];
    kubectl(weir, "default", &delete);
    nothing_serves(weir, "gangs");
}

/// As a plugin of devices tells kubelet.
fn give_gpus(weir: &Installation, count: &str) {
    let capacity = json!({ "status": { "capacity": { GPU: count } } }).to_string();
    let patch = [
        "patch",
        "node",
        WITH_GPUS,
        "--subresource=status",
        "-p",
        &capacity,
    ];
    weir.cluster.kubectl(&patch).ok();
}
