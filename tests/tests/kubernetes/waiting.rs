//! Pods that wait for their data, jobs that see one snapshot, and Datasets that wait for their pods.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use weir_tests::{wait_until, write_tree};

use crate::Case;
use crate::kubernetes::installation::{Installation, endpoint};
use crate::kubernetes::objects::{Origin, kubectl, nothing_serves, of_all, status, wait_for};
use crate::kubernetes::volumes::{claim, of_claim, pod};

pub(crate) const CASES: &[Case] = &[
    (
        "pods_of_a_job_wait_for_their_data_and_see_one_snapshot",
        pods_of_a_job_wait_for_their_data_and_see_one_snapshot,
    ),
    (
        "a_dataset_stays_while_a_node_has_it_mounted",
        a_dataset_stays_while_a_node_has_it_mounted,
    ),
];

const SOON: Duration = Duration::from_mins(1);

/// A job of two pods, one after the other, that wait for all of the Dataset `steps`. Each tells the version that it sees, and ends when
/// the directory `flags` has the file `go`.
fn job(flags: &Path) -> String {
    let flags = flags.display();
    format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: steps, namespace: default}}
spec:
  completions: 2
  parallelism: 1
  template:
    metadata:
      labels: {{case: steps}}
      annotations: {{weir.io/wait-for: \"100%\"}}
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers:
      - name: step
        image: lab.local/busybox:1
        command: [sh, -ec, \"cat /data/version; until [ -e /flags/go ]; do sleep 1; done\"]
        volumeMounts: [{{name: data, mountPath: /data}}, {{name: flags, mountPath: /flags, readOnly: true}}]
      volumes:
      - {{name: data, persistentVolumeClaim: {{claimName: steps, readOnly: true}}}}
      - {{name: flags, hostPath: {{path: {flags}, type: Directory}}}}
"
    )
}

/// Whether a pod with this claim would be given the gate.
pub(crate) fn is_gated(weir: &Installation, claim: &str) -> bool {
    let volume = of_claim(claim);
    let pod = pod(weir, "tried", 1, &volume, "true").replace(
        "metadata: {name: tried}",
        "metadata: {name: tried, annotations: {weir.io/wait-for: 100%}}",
    );
    let path = weir.cluster.scratch.path("tried.yaml");
    std::fs::write(&path, pod).unwrap();
    let create = ["create", "--dry-run=server", "-o", "yaml", "-f"];
    let path = path.to_str().unwrap();
    let made = weir.cluster.kubectl(&[&create[..], &[path]].concat()).ok();
    made.contains("schedulingGates")
}

fn pods_of_a_job_wait_for_their_data_and_see_one_snapshot(weir: &Installation) {
    let cluster = &weir.cluster;
    let path = |name: &str| cluster.scratch.path(name);
    let (served, flags) = (path("steps"), path("flags"));
    let version = |version: &str| {
        let file = ("version".to_owned(), version.as_bytes().to_vec());
        write_tree(&served, &BTreeMap::from([file]));
    };
    version("1");
    std::fs::create_dir(&flags).unwrap();
    let origin = Origin::start(weir, 9003, &served, &[]);
    cluster.apply(&of_all("steps", &origin.endpoint()));
    wait_for(weir, "default", "Ready", "dataset/steps");
    // A webhook that the apiserver does not trust yet is passed over.
    wait_until("the webhook is asked", SOON, || is_gated(weir, "steps"));
    // Without it nothing is warmed.
    origin.stop();
    cluster.apply(&job(&flags));
    let pods = || -> Vec<Value> {
        let pods = cluster.get(&["pods", "-l", "case=steps"]);
        pods["items"].as_array().unwrap().clone()
    };
    let waits = |pod: &Value| {
        let reason = &pod["status"]["conditions"][0]["reason"];
        pod["spec"]["schedulingGates"][0]["name"] == "weir.io/data" && reason == "SchedulingGated"
    };
    wait_until("its pod waits", SOON, || pods().first().is_some_and(waits));
    origin.run();
    let running = |pod: &Value| pod["status"]["phase"] == "Running";
    wait_until("it runs", SOON, || pods().iter().any(running));
    let first = &pods()[0];
    assert!(first["spec"]["schedulingGates"].is_null(), "{first}");
    let placed = &first["metadata"]["annotations"]["weir.io/placed-by"];
    assert!(placed.to_string().contains("steps"), "{first}");

    origin.stop();
    version("2");
    origin.run();
    let annotate = ["annotate", "dataset/steps", "weir.io/refresh=again"];
    kubectl(weir, "default", &annotate);
    wait_until("the dataset is at its second snapshot", SOON, || {
        status(weir, "default", "steps")["snapshot"] == 2
    });
    std::fs::write(flags.join("go"), "").unwrap();
    wait_for(weir, "default", "Complete", "job/steps");
    let all = pods();
    assert_eq!(all.len(), 2, "{all:?}");
    for pod in &all {
        let name = pod["metadata"]["name"].as_str().unwrap();
        assert_eq!(kubectl(weir, "default", &["logs", name]), "1", "{pod}");
    }
    let objects = ["delete", "job/steps", "dataset/steps", "--timeout=100s"];
    kubectl(weir, "default", &objects);
    nothing_serves(weir, "steps");
}

/// For a pod with a claim that the operator did not make: its node tells the master.
fn a_dataset_stays_while_a_node_has_it_mounted(weir: &Installation) {
    let cluster = &weir.cluster;
    cluster.apply(&of_all("leased", &endpoint()));
    wait_for(weir, "default", "Ready", "dataset/leased");
    let volume = of_claim("by-hand");
    let reader = pod(weir, "leases", 2, &volume, "exec sleep 3600");
    let claim = claim("by-hand", "leased");
    cluster.apply(&format!("{claim}---\n{reader}"));
    wait_for(weir, "default", "Ready", "pod/leases");
    let delete = ["delete", "dataset/leased", "--wait=false"];
    kubectl(weir, "default", &delete);
    wait_until("the Dataset says where it is mounted", SOON, || {
        let status = status(weir, "default", "leased").to_string();
        status.contains("it is mounted on node-2")
    });
    let compare = ["exec", "leases", "--", "diff", "-r", "/expected", "/data"];
    kubectl(weir, "default", &compare);
    kubectl(weir, "default", &["delete", "pod/leases", "--timeout=60s"]);
    let gone = ["wait", "--for=delete", "dataset/leased", "--timeout=100s"];
    kubectl(weir, "default", &gone);
    nothing_serves(weir, "leased");
}
