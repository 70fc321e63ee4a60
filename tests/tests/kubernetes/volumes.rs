//! Pods that read datasets through volumes.
//!
//! What a pod reads is compared byte by byte with the bucket's own files, which the node shows it beside the volume.

use std::path::Path;
use std::time::Duration;

use weir_tests::{BUCKET, wait_until};

use crate::Case;
use crate::kubernetes::cluster::root;
use crate::kubernetes::gangs::{define_jobs, forget_jobs};
use crate::kubernetes::installation::{Installation, NODES, endpoint};
use crate::kubernetes::objects::{kubectl, wait_for};

pub(crate) const CASES: &[Case] = &[
    (
        "every_manifest_of_the_page_is_applied",
        every_manifest_of_the_page_is_applied,
    ),
    (
        "pods_read_every_byte_and_what_is_warm_without_the_origin",
        pods_read_every_byte_and_what_is_warm_without_the_origin,
    ),
    (
        "an_inline_volume_shows_a_directory_of_a_snapshot",
        an_inline_volume_shows_a_directory_of_a_snapshot,
    ),
    (
        "manifests_of_other_pages_are_taken",
        manifests_of_other_pages_are_taken,
    ),
    (
        "the_kernel_reads_ahead_in_volumes_that_are_served_without_privileges",
        the_kernel_reads_ahead_in_volumes_that_are_served_without_privileges,
    ),
    (
        "a_pod_of_another_namespace_is_refused_and_told",
        a_pod_of_another_namespace_is_refused_and_told,
    ),
    ("nothing_stays_mounted", nothing_stays_mounted),
];

/// Longest wait for what follows a change.
const SOON: Duration = Duration::from_mins(1);

/// A pod on a node that runs a command, with volumes at `/data` and the bucket's files at `/expected`.
pub(crate) fn pod(
    weir: &Installation,
    name: &str,
    node: usize,
    volume: &str,
    command: &str,
) -> String {
    let expected = weir.cluster.scratch.path("objects");
    let expected = expected.display();
    // JSON is YAML, with line breaks that stay.
    let command = serde_json::to_string(command).unwrap();
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  nodeSelector: {{kubernetes.io/hostname: node-{node}}}
  containers:
  - name: reader
    image: lab.local/busybox:1
    command: [sh, -ec, {command}]
    volumeMounts: [{{name: data, mountPath: /data}}, {{name: expected, mountPath: /expected, readOnly: true}}]
  volumes:
  - name: data
    {volume}
  - {{name: expected, hostPath: {{path: {expected}, type: Directory}}}}
"
    )
}

/// Such a pod with other files of this machine at `/expected`.
pub(crate) fn with_expected(weir: &Installation, pod: &str, expected: &Path) -> String {
    let objects = weir.cluster.scratch.path("objects").display().to_string();
    pod.replace(&objects, &expected.display().to_string())
}

/// A volume and a claim of a dataset of the default namespace, made by hand.
pub(crate) fn claim(name: &str, dataset: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadOnlyMany]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: \"\"
  claimRef: {{namespace: default, name: {name}}}
  csi: {{driver: csi.weir.io, volumeHandle: default/{name}, readOnly: true, volumeAttributes: {{dataset: {dataset}}}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}, namespace: default}}
spec: {{accessModes: [ReadOnlyMany], storageClassName: \"\", volumeName: {name}, resources: {{requests: {{storage: 1Gi}}}}}}
"
    )
}

pub(crate) fn of_claim(name: &str) -> String {
    format!("persistentVolumeClaim: {{claimName: {name}, readOnly: true}}")
}

pub(crate) fn inline(attributes: &str) -> String {
    format!("csi: {{driver: csi.weir.io, readOnly: true, volumeAttributes: {{{attributes}}}}}")
}

/// The origin is away until this is dropped.
struct OriginAway<'a>(&'a Installation);

impl<'a> OriginAway<'a> {
    fn now(weir: &'a Installation) -> Self {
        weir.cluster.lab(&["stop", "s3"]).ok();
        Self(weir)
    }
}

impl Drop for OriginAway<'_> {
    fn drop(&mut self) {
        self.0.start_s3();
    }
}

pub(crate) fn create(weir: &Installation, name: &str) {
    create_from(weir, name, &endpoint());
}

/// Makes a dataset of all objects of an S3 server.
pub(crate) fn create_from(weir: &Installation, name: &str, endpoint: &str) {
    let url = format!("s3://{BUCKET}/");
    let name = format!("default/{name}");
    let args = ["dataset", "create", &name, &url, "--endpoint", endpoint];
    weir.weir(&[&args[..], &["--anonymous"]].concat()).ok();
}

/// Manifests of a page of docs/; its other blocks are parts of some, and values of the chart.
fn manifests(page: &str) -> Vec<String> {
    let page = root().join(format!("docs/{page}.md"));
    let page = std::fs::read_to_string(page).unwrap();
    let blocks = page.split("```yaml\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap());
    let manifests = blocks.filter(|block| block.contains("apiVersion:"));
    manifests.map(str::to_owned).collect()
}

/// What the other pages show names nodes, keys and controllers that are not here: the apiserver and Weir's admission take it.
fn manifests_of_other_pages_are_taken(weir: &Installation) {
    let cluster = &weir.cluster;
    cluster.kubectl(&["create", "namespace", "team-a"]).ok();
    define_jobs(weir);
    let mut taken = 0;
    for page in ["kubernetes-objects", "kubernetes-jobs", "kubernetes-fluid"] {
        // Fluid's own are shown beside those that take their place.
        let manifests = manifests(page).into_iter();
        for manifest in manifests.filter(|manifest| !manifest.contains("data.fluid.io")) {
            let path = cluster.scratch.path("shown.yaml");
            std::fs::write(&path, manifest).unwrap();
            let apply = ["apply", "--dry-run=server", "-f", path.to_str().unwrap()];
            cluster.kubectl(&apply).ok();
            taken += 1;
        }
    }
    assert!(taken >= 8, "only {taken} manifests");
    forget_jobs(weir);
    let delete = ["delete", "namespace", "team-a", "--timeout=60s"];
    cluster.kubectl(&delete).ok();
}

/// In the order of docs/kubernetes.md, with an image and a bucket that are here in the place of the page's.
fn every_manifest_of_the_page_is_applied(weir: &Installation) {
    create(weir, "images");
    let manifests = manifests("kubernetes").into_iter().map(|manifest| {
        manifest
            .replace("image: python:3.13", "image: lab.local/busybox:1")
            .replace("http://minio.storage:9000", &endpoint())
            .replace("s3://training/images", &format!("s3://{BUCKET}/"))
    });
    let manifests: Vec<String> = manifests.collect();
    assert!(manifests.len() >= 3, "only {} manifests", manifests.len());
    for manifest in &manifests {
        weir.cluster.apply(manifest);
    }
    let wait = |args: &[&str]| {
        weir.cluster
            .kubectl(&[&["wait", "--timeout=100s"], args].concat())
            .ok();
    };
    wait(&["--for=condition=Ready", "dataset/pictures"]);
    wait(&["--for=condition=Complete", "job/count"]);
    wait(&["--for=condition=Ready", "pod/look"]);
    let count = weir.cluster.kubectl(&["logs", "job/count"]).ok();
    assert_eq!(count.trim(), weir.files.len().to_string());
    let path = weir.cluster.scratch.path("page.yaml");
    std::fs::write(&path, manifests.join("\n---\n")).unwrap();
    let delete = ["delete", "--timeout=90s", "-f", path.to_str().unwrap()];
    weir.cluster.kubectl(&delete).ok();
    weir.weir(&["dataset", "delete", "default/images"]).ok();
}

fn pods_read_every_byte_and_what_is_warm_without_the_origin(weir: &Installation) {
    create(weir, "epochs");
    weir.cluster.apply(&claim("epochs", "epochs"));
    let all = "diff -r /expected /data && find /data -type f | wc -l";
    let job = pod(weir, "epoch-1", 1, &of_claim("epochs"), all);
    weir.cluster.apply(&job);
    let count = weir.cluster.wait_for_end("epoch-1");
    assert_eq!(count.trim(), weir.files.len().to_string());
    // What nobody kept, since a tier had no room at that moment.
    weir.weir(&["warm", "default/epochs", "--wait"]).ok();
    // On another node, whose kernel knows none of it.
    let away = OriginAway::now(weir);
    let job = pod(weir, "epoch-2", 2, &of_claim("epochs"), all);
    weir.cluster.apply(&job);
    weir.cluster.wait_for_end("epoch-2");
    drop(away);
    for (kind, name) in [
        ("pod", "epoch-1"),
        ("pod", "epoch-2"),
        ("pvc", "epochs"),
        ("pv", "epochs"),
    ] {
        weir.cluster
            .kubectl(&["delete", kind, name, "--timeout=60s"])
            .ok();
    }
    weir.weir(&["dataset", "delete", "default/epochs"]).ok();
}

fn an_inline_volume_shows_a_directory_of_a_snapshot(weir: &Installation) {
    create(weir, "inline");
    let command = "diff -r /expected/small/1 /data && ! touch /data/new && ! rm /data/001.bin";
    let volume = inline("dataset: inline, snapshot: \"1\", path: small/1");
    let inline = pod(weir, "inline", 2, &volume, command);
    weir.cluster.apply(&inline);
    weir.cluster.wait_for_end("inline");
    weir.cluster
        .kubectl(&["delete", "pod", "inline", "--timeout=60s"])
        .ok();
    weir.weir(&["dataset", "delete", "default/inline"]).ok();
}

/// Epochs of files of several blocks take twice as long where it does not.
fn the_kernel_reads_ahead_in_volumes_that_are_served_without_privileges(weir: &Installation) {
    create(weir, "ahead");
    let cluster = &weir.cluster;
    let volume = inline("dataset: ahead");
    cluster.apply(&pod(weir, "ahead", 1, &volume, "exec sleep 3600"));
    wait_for(weir, "default", "Ready", "pod/ahead");
    let look = "device=$(grep mounts/ahead@1 /proc/self/mountinfo | cut -d' ' -f3)
        cat /sys/class/bdi/$device/read_ahead_kb";
    let kib = cluster.on(1, &["sh", "-ec", look]).ok();
    assert_eq!(kib.trim(), "8192");
    // Nor has any thread of what serves it a privilege, though its pod has all of them.
    let look = "for server in $(pgrep -f '[s]erve-mount.*ahead@1'); do cat /proc/$server/task/*/status; done";
    let threads = cluster.on(1, &["sh", "-ec", look]).ok();
    let mut privileges = threads.lines().filter(|line| line.starts_with("CapEff:"));
    let none = |line: &str| line.ends_with("\t0000000000000000");
    assert!(
        threads.contains("CapEff:") && privileges.all(none),
        "{threads}"
    );
    kubectl(weir, "default", &["delete", "pod/ahead", "--timeout=60s"]);
    weir.weir(&["dataset", "delete", "default/ahead"]).ok();
}

fn a_pod_of_another_namespace_is_refused_and_told(weir: &Installation) {
    create(weir, "private");
    weir.cluster
        .kubectl(&["create", "namespace", "others"])
        .ok();
    let refused = pod(
        weir,
        "refused",
        1,
        &inline("dataset: default/private"),
        "true",
    );
    let refused = refused.replace("{name: refused}", "{name: refused, namespace: others}");
    weir.cluster.apply(&refused);
    wait_until("the pod is told why", SOON, || {
        let described = weir
            .cluster
            .kubectl(&["-n", "others", "describe", "pod", "refused"]);
        described
            .ok()
            .contains("does not let in pods of the namespace others")
    });
    weir.cluster
        .kubectl(&["delete", "namespace", "others", "--timeout=60s"])
        .ok();
    weir.weir(&["dataset", "delete", "default/private"]).ok();
}

/// The cases before have deleted their pods.
fn nothing_stays_mounted(weir: &Installation) {
    for node in 1..=NODES {
        let mut mounts = String::new();
        let gone = || {
            mounts = weir.cluster.on(node, &["cat", "/proc/mounts"]).ok();
            !mounts.contains("kubernetes.io~csi") && !mounts.contains("plugins/csi.weir.io")
        };
        assert!(weir_tests::comes_true(SOON, gone), "node {node}: {mounts}");
    }
}
