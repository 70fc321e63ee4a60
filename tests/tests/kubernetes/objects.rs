//! Datasets and Warmups as objects: what the operator makes of them, and pods that read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use weir_tests::{BUCKET, content, wait_until, write_tree};

use crate::Case;
use crate::kubernetes::cluster::FIRST_NODE;
use crate::kubernetes::installation::{Installation, NODES, endpoint};
use crate::kubernetes::volumes::{inline, of_claim, pod, with_expected};

pub(crate) const CASES: &[Case] = &[
    (
        "a_dataset_with_a_secret_is_warmed_read_and_deleted_without_a_trace",
        a_dataset_with_a_secret_is_warmed_read_and_deleted_without_a_trace,
    ),
    (
        "a_pod_of_a_snapshot_sees_it_while_the_dataset_is_at_the_next",
        a_pod_of_a_snapshot_sees_it_while_the_dataset_is_at_the_next,
    ),
    ("pods_run_where_their_data_is", pods_run_where_their_data_is),
    (
        "a_dataset_is_read_in_each_namespace_that_it_lets_in",
        a_dataset_is_read_in_each_namespace_that_it_lets_in,
    ),
];

/// Longest wait for what follows a change.
const SOON: Duration = Duration::from_mins(2);

/// An S3 server of one case, on the first node, until this is dropped.
pub(crate) struct Origin<'a> {
    weir: &'a Installation,
    port: u16,
    dir: PathBuf,
    /// Flags of the keys that its requests are signed with.
    keys: Vec<&'static str>,
}

impl<'a> Origin<'a> {
    pub(crate) fn start(
        weir: &'a Installation,
        port: u16,
        dir: &Path,
        keys: &[&'static str],
    ) -> Self {
        let origin = Self {
            weir,
            port,
            dir: dir.to_owned(),
            keys: keys.to_vec(),
        };
        origin.run();
        origin
    }

    /// With what its directory holds now.
    pub(crate) fn run(&self) {
        let server = self.weir.cluster.scratch.binary();
        let server = server.with_file_name("weir-s3-server");
        let bucket = format!("{BUCKET}={}", self.dir.display());
        let listen = format!("{FIRST_NODE}:{}", self.port);
        let name = self.name();
        let args = ["start", &name, server.to_str().unwrap()];
        let flags = ["--listen", &listen, "--dir", &bucket];
        let args = [&args[..], &flags, &self.keys].concat();
        self.weir.cluster.lab(&args).ok();
    }

    pub(crate) fn stop(&self) {
        self.weir.cluster.lab(&["stop", &self.name()]);
    }

    fn name(&self) -> String {
        format!("s3-{}", self.port)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{FIRST_NODE}:{}", self.port)
    }
}

impl Drop for Origin<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `kubectl` in a namespace.
#[track_caller]
pub(crate) fn kubectl(weir: &Installation, namespace: &str, args: &[&str]) -> String {
    let all = [&["-n", namespace], args].concat();
    weir.cluster.kubectl(&all).ok()
}

#[track_caller]
pub(crate) fn wait_for(weir: &Installation, namespace: &str, condition: &str, object: &str) {
    let condition = format!("--for=condition={condition}");
    let args = ["wait", &condition, object, "--timeout=100s"];
    kubectl(weir, namespace, &args);
}

/// A dataset of all objects of an origin that asks for no keys.
pub(crate) fn of_all(name: &str, endpoint: &str) -> String {
    format!(
        "apiVersion: weir.io/v1alpha1
kind: Dataset
metadata: {{name: {name}, namespace: default}}
spec: {{sources: [{{url: \"s3://{BUCKET}/\", endpoint: \"{endpoint}\", anonymous: true}}]}}
"
    )
}

/// Such a dataset, and a warm-up of the same name, which has ended.
#[track_caller]
fn create_warm(weir: &Installation, name: &str, endpoint: &str) {
    let dataset = of_all(name, endpoint);
    weir.cluster.apply(&format!(
        "{dataset}---
apiVersion: weir.io/v1alpha1
kind: Warmup
metadata: {{name: {name}, namespace: default}}
spec: {{dataset: {name}}}
"
    ));
    wait_for(weir, "default", "Complete", &format!("warmup/{name}"));
}

/// A pod of a namespace that compares all of its volume with a directory of this machine.
pub(crate) fn comparing(
    weir: &Installation,
    (namespace, name): (&str, &str),
    node: usize,
    volume: &str,
    expected: &Path,
) -> String {
    let command = "diff -r /expected /data && find /data -type f | wc -l";
    let pod = pod(weir, name, node, volume, command);
    with_expected(weir, &pod, expected).replace(
        &format!("metadata: {{name: {name}}}"),
        &format!("metadata: {{name: {name}, namespace: {namespace}}}"),
    )
}

/// Waits until a pod has ended well; gives its log.
#[track_caller]
pub(crate) fn end_of(weir: &Installation, namespace: &str, pod: &str) -> String {
    let phase = || {
        let args = ["get", "pod", pod, "-o", "jsonpath={.status.phase}"];
        kubectl(weir, namespace, &args)
    };
    let mut last = String::new();
    wait_until("the pod ends", SOON, || {
        last = phase();
        last == "Succeeded" || last == "Failed"
    });
    let log = kubectl(weir, namespace, &["logs", pod]);
    assert_eq!(last, "Succeeded", "{pod}: {log}");
    log
}

pub(crate) fn status(weir: &Installation, namespace: &str, name: &str) -> Value {
    let found = weir.cluster.get(&["-n", namespace, "dataset", name]);
    found["status"].clone()
}

/// The rights by which the operator reads the namespace's Secrets.
pub(crate) fn secret_reader(namespace: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: weir-secrets, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir-secret-reader}}
subjects: [{{kind: ServiceAccount, name: weir-operator, namespace: weir-system}}]
"
    )
}

fn a_dataset_with_a_secret_is_warmed_read_and_deleted_without_a_trace(weir: &Installation) {
    const TEAM: &str = "team-s3";
    let objects = weir.cluster.scratch.path("objects");
    let keys = ["--access-key", "AKIATEST", "--secret-key", "secret"];
    let origin = Origin::start(weir, 9001, &objects, &keys);
    let endpoint = origin.endpoint();
    weir.cluster.apply(&format!(
        "{}---
apiVersion: v1
kind: Secret
metadata: {{name: keys, namespace: {TEAM}}}
stringData: {{access_key_id: AKIATEST, secret_access_key: secret, endpoints: \"{endpoint}\"}}
---
apiVersion: weir.io/v1alpha1
kind: Dataset
metadata: {{name: images, namespace: {TEAM}}}
spec: {{sources: [{{url: \"s3://{BUCKET}/\", endpoint: \"{endpoint}\", credentials: keys}}]}}
",
        secret_reader(TEAM)
    ));
    wait_for(weir, TEAM, "Ready", "dataset/images");
    let volume = of_claim("images");
    let count = weir.files.len().to_string();
    let first = comparing(weir, (TEAM, "first"), 1, &volume, &objects);
    weir.cluster.apply(&first);
    assert_eq!(end_of(weir, TEAM, "first").trim(), count);
    weir.cluster.apply(&format!(
        "apiVersion: weir.io/v1alpha1
kind: Warmup
metadata: {{name: all, namespace: {TEAM}}}
spec: {{dataset: images}}
"
    ));
    wait_for(weir, TEAM, "Complete", "warmup/all");
    wait_until("the status says that all is cached", SOON, || {
        status(weir, TEAM, "images")["cached"] == "100%"
    });
    // On another node, whose kernel knows none of it, and without the origin.
    origin.stop();
    let second = comparing(weir, (TEAM, "second"), 2, &volume, &objects);
    weir.cluster.apply(&second);
    assert_eq!(end_of(weir, TEAM, "second").trim(), count);

    // A pod that uses it holds it, and the Dataset says so.
    let reader = pod(weir, "reader", 1, &volume, "sleep 3600");
    let reader = reader.replace(
        "metadata: {name: reader}",
        "metadata: {name: reader, namespace: team-s3}",
    );
    weir.cluster.apply(&reader);
    wait_for(weir, TEAM, "Ready", "pod/reader");
    kubectl(weir, TEAM, &["delete", "dataset/images", "--wait=false"]);
    wait_until("the Dataset says who uses it", SOON, || {
        status(weir, TEAM, "images").to_string().contains("reader")
    });
    kubectl(weir, TEAM, &["exec", "reader", "--", "ls", "/data"]);
    let pods = [
        "delete",
        "pod",
        "first",
        "second",
        "reader",
        "--timeout=60s",
    ];
    kubectl(weir, TEAM, &pods);
    kubectl(
        weir,
        TEAM,
        &["wait", "--for=delete", "dataset/images", "--timeout=100s"],
    );
    let left = weir.cluster.get(&["pv,pvc", "-A"]);
    assert!(!left.to_string().contains(TEAM), "{left}");
    let listed = weir.weir(&["dataset", "list", "-o", "json"]).ok();
    assert!(!listed.contains(TEAM), "{listed}");
    kubectl(weir, TEAM, &["delete", "warmup/all", "--timeout=60s"]);
    let gone = ["delete", "namespace", TEAM, "--timeout=100s"];
    weir.cluster.kubectl(&gone).ok();
    nothing_serves(weir, TEAM);
}

/// Waits until no node has a mount or a process of a dataset.
#[track_caller]
pub(crate) fn nothing_serves(weir: &Installation, dataset: &str) {
    for node in 1..=NODES {
        wait_until("nothing of it is mounted", SOON, || {
            let mounts = weir.cluster.on(node, &["cat", "/proc/mounts"]).ok();
            !mounts.contains(dataset)
        });
    }
    // The nodes have their processes in common.
    wait_until("nothing of it is served", SOON, || {
        let processes = weir.cluster.exec(&["ps", "-eo", "args"]).ok();
        let serves = |line: &str| line.contains("serve-mount") && line.contains(dataset);
        !processes.lines().any(serves)
    });
}

fn a_pod_of_a_snapshot_sees_it_while_the_dataset_is_at_the_next(weir: &Installation) {
    let path = |name: &str| weir.cluster.scratch.path(name);
    let files = |version: u64| -> BTreeMap<String, Vec<u8>> {
        let names = (0..12u64).filter(|n| *n != 3 + version);
        let file = |n: u64| (format!("d/{n}.bin"), content(n + 100 * version, 90_000));
        names.map(file).collect()
    };
    let (first, second, served) = (path("version-1"), path("version-2"), path("versions"));
    write_tree(&first, &files(1));
    write_tree(&second, &files(2));
    write_tree(&served, &files(1));
    let origin = Origin::start(weir, 9002, &served, &[]);
    create_warm(weir, "versions", &origin.endpoint());
    origin.stop();
    std::fs::remove_dir_all(&served).unwrap();
    write_tree(&served, &files(2));
    origin.run();
    let annotate = ["annotate", "dataset/versions", "weir.io/refresh=again"];
    kubectl(weir, "default", &annotate);
    wait_until("the dataset is at its second snapshot", SOON, || {
        status(weir, "default", "versions")["snapshot"] == 2
    });
    for (name, volume, expected) in [
        ("old", inline("dataset: versions, snapshot: \"1\""), &first),
        ("old-too", inline("dataset: versions@1"), &first),
        ("new", of_claim("versions"), &second),
    ] {
        let pod = comparing(weir, ("default", name), 1, &volume, expected);
        weir.cluster.apply(&pod);
        assert_eq!(end_of(weir, "default", name).trim(), "11");
    }
    let pods = ["delete", "pod", "old", "old-too", "new", "--timeout=60s"];
    kubectl(weir, "default", &pods);
    let objects = [
        "delete",
        "warmup/versions",
        "dataset/versions",
        "--timeout=100s",
    ];
    kubectl(weir, "default", &objects);
    nothing_serves(weir, "versions");
}

/// It is small enough for one node, which the master has chosen.
fn pods_run_where_their_data_is(weir: &Installation) {
    create_warm(weir, "placed", &endpoint());
    let holds = || {
        let at = weir.weir(&["dataset", "where", "default/placed", "-o", "json"]);
        let at: Value = serde_json::from_str(&at.ok()).unwrap();
        let nodes = at["nodes"].as_array().unwrap().iter();
        let holding = nodes.filter(|node| node["cached_bytes"].as_u64() > Some(0));
        let names = holding.map(|node| node["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    let mut at = Vec::new();
    wait_until("one node holds it", SOON, || {
        at = holds();
        at.len() == 1
    });
    wait_until("the status says that all is cached", SOON, || {
        status(weir, "default", "placed")["cached"] == "100%"
    });
    let names = ["here-1", "here-2", "here-3"];
    for name in names {
        let pod = pod(weir, name, 1, &of_claim("placed"), "ls /data");
        let anywhere = "  nodeSelector: {kubernetes.io/hostname: node-1}\n";
        assert!(pod.contains(anywhere));
        weir.cluster.apply(&pod.replace(anywhere, ""));
        end_of(weir, "default", name);
        let pod = weir.cluster.get(&["pod", name]);
        assert_eq!(pod["spec"]["nodeName"], at[0], "{pod}");
        let placed_by = &pod["metadata"]["annotations"]["weir.io/placed-by"];
        assert!(placed_by.to_string().contains("placed"), "{placed_by}");
    }
    let pods = [
        "delete",
        "pod",
        names[0],
        names[1],
        names[2],
        "--timeout=60s",
    ];
    kubectl(weir, "default", &pods);
    let objects = [
        "delete",
        "warmup/placed",
        "dataset/placed",
        "--timeout=100s",
    ];
    kubectl(weir, "default", &objects);
}

/// And one of theirs with the same name gets no second claim.
fn a_dataset_is_read_in_each_namespace_that_it_lets_in(weir: &Installation) {
    const GUESTS: &str = "guests";
    let cluster = &weir.cluster;
    cluster.kubectl(&["create", "namespace", GUESTS]).ok();
    let access = format!("spec: {{access: {{namespaces: [{GUESTS}]}}, ");
    let shared = of_all("shared", &endpoint());
    cluster.apply(&shared.replace("spec: {", &access));
    let bound = "--for=jsonpath={.status.phase}=Bound";
    wait_until("its claim is there", SOON, || {
        let get = ["-n", GUESTS, "get", "pvc", "shared"];
        cluster.kubectl(&get).code == 0
    });
    let wait = ["wait", bound, "pvc/shared", "--timeout=60s"];
    kubectl(weir, GUESTS, &wait);
    let objects = cluster.scratch.path("objects");
    for (name, volume) in [
        ("by-claim", of_claim("shared")),
        ("inline", inline("dataset: default/shared")),
    ] {
        let pod = comparing(weir, (GUESTS, name), 1, &volume, &objects);
        cluster.apply(&pod);
        let count = end_of(weir, GUESTS, name);
        assert_eq!(count.trim(), weir.files.len().to_string());
    }
    cluster.apply(&shared.replace("namespace: default", &format!("namespace: {GUESTS}")));
    wait_until("the second one says why it has no claim", SOON, || {
        let status = status(weir, GUESTS, "shared").to_string();
        status.contains("NameClash")
    });
    kubectl(weir, GUESTS, &["delete", "pod", "--all", "--timeout=60s"]);
    let delete = ["delete", "dataset/shared", "--timeout=100s"];
    for namespace in [GUESTS, "default"] {
        kubectl(weir, namespace, &delete);
    }
    let left = cluster.get(&["pv,pvc", "-A"]);
    assert!(!left.to_string().contains("shared"), "{left}");
    let gone = ["delete", "namespace", GUESTS, "--timeout=100s"];
    cluster.kubectl(&gone).ok();
    nothing_serves(weir, "shared");
}
