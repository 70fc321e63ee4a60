//! Weir in a cluster, installed from the chart, and an S3 server in the cluster's network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use weir_tests::{BUCKET, Kdc, Outcome, content, issue, wait_until, write_tree};

use crate::kubernetes::cluster::{Cluster, FIRST_NODE, root};

/// Where Weir is installed.
pub(crate) const NAMESPACE: &str = "weir-system";
/// Nodes of the cluster.
pub(crate) const NODES: usize = 2;
/// The port of the S3 server on the first node.
const S3_PORT: u16 = 9000;
const KDC_PORT: u16 = 8088;

/// A cluster with Weir.
pub(crate) struct Installation {
    pub(crate) cluster: Cluster,
    /// The bucket's objects.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Whose realm pods know. It runs when a case starts it.
    pub(crate) kdc: Kdc,
    admin: PathBuf,
}

impl Installation {
    /// Starts the cluster and installs Weir; returns when its master and its workers serve.
    pub(crate) fn new() -> Self {
        let cluster = Cluster::up(NODES);
        let archive = cluster.scratch.path("weir-image");
        let make = root().join("build-support/kubernetes/image.sh");
        let mut command = std::process::Command::new(make);
        command.arg(cluster.scratch.binary()).arg(&archive);
        cluster.scratch.run(command).ok();
        cluster.lab(&["image", archive.to_str().unwrap()]).ok();
        let files = files();
        write_tree(&cluster.scratch.path("objects"), &files);
        let admin = make_secrets(&cluster);
        let kdc = make_realm(&cluster);
        let installation = Self {
            cluster,
            files,
            kdc,
            admin,
        };
        installation.start_s3();
        // Nobody makes volumes here.
        let user = ["install", "-d", "-o", "65532", "-g", "65532", MASTER_DIR];
        installation.cluster.on(1, &user).ok();
        installation.cluster.apply(MASTER_VOLUME);
        installation.install_chart(&root().join("deploy/helm/weir"), &[REALMS]);
        installation
    }

    /// Starts the S3 server, or again with what its directory holds now.
    pub(crate) fn start_s3(&self) {
        let lab = &self.cluster;
        lab.lab(&["stop", "s3"]);
        let server = lab.scratch.binary().with_file_name("weir-s3-server");
        let objects = lab.scratch.path("objects");
        let bucket = format!("{BUCKET}={}", objects.display());
        let listen = format!("{FIRST_NODE}:{S3_PORT}");
        let server = server.to_str().unwrap();
        let args = ["start", "s3", server, "--listen", &listen, "--dir", &bucket];
        lab.lab(&args).ok();
    }

    /// Installs a chart with the settings of the tests and more; returns when its master and its workers serve.
    pub(crate) fn install_chart(&self, chart: &Path, more: &[&str]) {
        let mut args = vec!["helm", "install", "weir", chart.to_str().unwrap()];
        args.extend(["--namespace", NAMESPACE, "--wait", "--timeout=100s"]);
        for setting in SETTINGS.iter().chain(more) {
            args.extend(["--set", setting]);
        }
        self.cluster.exec(&args).ok();
        let soon = Duration::from_mins(1);
        wait_until("all workers are in the cluster map", soon, || {
            let status = self.weir(&["status", "-o", "json"]);
            status.code == 0 && workers(&status.stdout) == NODES
        });
    }

    /// Runs a command of Weir against the master, as an administrator.
    #[track_caller]
    pub(crate) fn weir(&self, args: &[&str]) -> Outcome {
        let service = ["-n", NAMESPACE, "service", "weir-master"];
        let service = self.cluster.get(&service);
        let master = format!("{}:7440", service["spec"]["clusterIP"].as_str().unwrap());
        let binary = self.cluster.scratch.binary();
        let certs = self.admin.to_str().unwrap();
        let connect = ["--master", &master, "--certs", certs];
        let binary = binary.to_str().unwrap();
        self.cluster.exec(&[&[binary], args, &connect].concat())
    }

    /// The master in `weir status -o json`.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let status = self.weir(&["status", "-o", "json"]).ok();
        let mut status: Value = serde_json::from_str(&status).unwrap();
        status["masters"][0].take()
    }

    /// What Prometheus gets of all pods.
    pub(crate) fn metrics(&self) -> String {
        let pods = ["-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=weir"];
        let pods = self.cluster.get(&pods);
        let mut text = String::new();
        for pod in pods["items"].as_array().unwrap() {
            let ports = pod["spec"]["containers"][0]["ports"].as_array().unwrap();
            let port = ports.iter().find(|port| port["name"] == "http").unwrap();
            let name = pod["metadata"]["name"].as_str().unwrap();
            let port = port["containerPort"].as_u64().unwrap();
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}:{port}/proxy/metrics");
            text.push_str(&self.cluster.kubectl(&["get", "--raw", &path]).ok());
        }
        text
    }

    /// What is there when a case has failed, for whoever reads why.
    pub(crate) fn picture(&self) -> String {
        let mut text = String::new();
        for args in [
            &["get", "all,pv,pvc,csidrivers,csinodes", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &[
                "-n",
                NAMESPACE,
                "logs",
                "-l",
                "app.kubernetes.io/name=weir",
                "--all-containers",
                "--prefix",
                "--tail=40",
            ],
        ] {
            let outcome = self.cluster.kubectl(args);
            text.push_str(&outcome.stdout);
            text.push_str(&outcome.stderr);
        }
        text
    }
}

/// Where the master's volume is, on the first node.
const MASTER_DIR: &str = "/var/lib/weir/master";
const MASTER_VOLUME: &str = "apiVersion: v1
kind: PersistentVolume
metadata: {name: master}
spec:
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  claimRef: {namespace: weir-system, name: state-weir-master-0}
  hostPath: {path: /var/lib/weir/master}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node-1]}]}]}}
";

/// What the chart is given: the image under test, and what fits on this machine.
pub(crate) const SETTINGS: &[&str] = &[
    "image.repository=lab.local/weir",
    "image.tag=test",
    "certificates.authoritySecret=weir-ca",
    "worker.ssd=256MiB",
    // This machine's disk may be full.
    "worker.free=0",
    "worker.memory=32MiB",
    "worker.resources.requests.memory=128Mi",
];

/// The realms that pods know, which charts of before this value do not take.
pub(crate) const REALMS: &str = "sources.krb5ConfigMap=realms";

/// Where pods and nodes reach the S3 server.
pub(crate) fn endpoint() -> String {
    format!("http://{FIRST_NODE}:{S3_PORT}")
}

fn workers(status: &str) -> usize {
    let status: Value = serde_json::from_str(status).unwrap();
    let workers = status["masters"][0]["workers"].as_array();
    workers.map_or(0, Vec::len)
}

/// As docs/kubernetes.md says: an authority that is made elsewhere, of which the cluster is given what it needs. Gives the
/// certificate of an administrator.
fn make_secrets(cluster: &Cluster) -> PathBuf {
    let scratch = &cluster.scratch;
    let ca = scratch.path("ca");
    scratch
        .weir([Path::new("certs"), Path::new("init"), &ca])
        .ok();
    let admin = issue(scratch, "admin", "admin", &[]);
    cluster.kubectl(&["create", "namespace", NAMESPACE]).ok();
    let (crt, key) = (ca.join("ca.crt"), ca.join("ca.key"));
    let files = [crt, key].map(|file| format!("--from-file={}", file.display()));
    let create = ["-n", NAMESPACE, "create", "secret", "generic", "weir-ca"];
    cluster
        .kubectl(&[&create[..], &[&files[0], &files[1]]].concat())
        .ok();
    admin
}

/// A KDC of the first node, and the ConfigMap by which pods find it.
fn make_realm(cluster: &Cluster) -> Kdc {
    let dir = cluster.scratch.path("kdc");
    std::fs::create_dir(&dir).unwrap();
    let kdc = Kdc::make(&dir, &format!("{FIRST_NODE}:{KDC_PORT}"), "node-1");
    let file = format!("--from-file={}", kdc.krb5_conf().display());
    let create = ["create", "configmap", "realms", &file];
    cluster
        .kubectl(&[&["-n", NAMESPACE], &create[..]].concat())
        .ok();
    kdc
}

/// Small files of a few directories, and some of several blocks.
fn files() -> BTreeMap<String, Vec<u8>> {
    let small = (0..60u64).map(|n| {
        (
            format!("small/{}/{n:03}.bin", n % 3),
            content(n, 2_000 + n as usize * 401),
        )
    });
    let big = (0..2u64).map(|n| {
        (
            format!("big/{n}.bin"),
            content(1_000 + n, (9 << 20) + n as usize),
        )
    });
    small.chain(big).collect()
}
