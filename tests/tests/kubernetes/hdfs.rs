//! A dataset of HDFS, whose NameNode and DataNode run beside the cluster on the first node.

use std::path::PathBuf;
use std::time::Duration;

use weir_tests::{hadoop_jars, wait_until, write_hadoop_properties};

use crate::Case;
use crate::kubernetes::cluster::FIRST_NODE;
use crate::kubernetes::installation::Installation;
use crate::kubernetes::objects::{comparing, end_of, kubectl, wait_for};
use crate::kubernetes::volumes::of_claim;

pub(crate) const CASES: &[Case] = &[(
    "a_job_reads_a_dataset_of_hdfs",
    a_job_reads_a_dataset_of_hdfs,
)];

/// Longest wait for a process of HDFS.
const SOON: Duration = Duration::from_mins(2);
const NAMENODE: &str = "org.apache.hadoop.hdfs.server.namenode.NameNode";
const DATANODE: &str = "org.apache.hadoop.hdfs.server.datanode.DataNode";
const SHELL: &str = "org.apache.hadoop.fs.FsShell";
/// The port of the NameNode.
const PORT: u16 = 8020;

/// Both of its processes, until this is dropped.
struct Hdfs<'a> {
    weir: &'a Installation,
    dir: PathBuf,
    jars: PathBuf,
}

impl<'a> Hdfs<'a> {
    fn start(weir: &'a Installation) -> Self {
        let hdfs = Self {
            weir,
            dir: weir.cluster.scratch.path("hdfs"),
            jars: hadoop_jars().unwrap(),
        };
        hdfs.configure();
        let cluster = &weir.cluster;
        let format = [NAMENODE, "-format", "-nonInteractive"];
        cluster
            .exec(
                &hdfs
                    .java(&format)
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>(),
            )
            .ok();
        for (name, class) in [("namenode", NAMENODE), ("datanode", DATANODE)] {
            let java = hdfs.java(&[class]);
            let start = ["start", name]
                .into_iter()
                .chain(java.iter().map(String::as_str));
            cluster.lab(&start.collect::<Vec<_>>()).ok();
        }
        // A file without bytes needs no DataNode.
        let some = hdfs.dir.join("hosts");
        let put = ["-put", "-f", some.to_str().unwrap(), "/ready"];
        let mut said = String::new();
        wait_until("HDFS takes files", SOON, || {
            let outcome = hdfs.shell(&put);
            said = outcome.1;
            outcome.0
        });
        hdfs
    }

    fn configure(&self) {
        let at = |port: u16| format!("{FIRST_NODE}:{port}");
        let file = |name: &str| format!("file://{}", self.dir.join(name).display());
        std::fs::create_dir_all(self.dir.join("tmp")).unwrap();
        // Nobody else knows the node's name there.
        let hosts = format!("{FIRST_NODE} node-1\n");
        std::fs::write(self.dir.join("hosts"), hosts).unwrap();
        let core = [("fs.defaultFS", format!("hdfs://{}", at(PORT)))];
        let hdfs = [
            ("dfs.namenode.name.dir", file("namenode")),
            ("dfs.datanode.data.dir", file("datanode")),
            ("dfs.namenode.rpc-address", at(PORT)),
            ("dfs.namenode.http-address", at(PORT + 1)),
            ("dfs.datanode.address", at(PORT + 2)),
            ("dfs.datanode.http.address", at(PORT + 3)),
            ("dfs.datanode.ipc.address", at(PORT + 4)),
            ("dfs.replication", "1".to_owned()),
            ("dfs.blocksize", "1048576".to_owned()),
            ("dfs.namenode.safemode.extension", "0".to_owned()),
            // By its mean over all, which is nothing for a moment with each heartbeat of the only one: then that one is too busy.
            ("dfs.namenode.redundancy.considerLoad", "false".to_owned()),
            (
                "dfs.namenode.datanode.registration.ip-hostname-check",
                "false".to_owned(),
            ),
        ];
        for (name, properties) in [("core-site.xml", &core[..]), ("hdfs-site.xml", &hdfs)] {
            let properties: Vec<_> = properties
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            write_hadoop_properties(&self.dir.join(name), &properties).unwrap();
        }
    }

    /// A JVM that knows the configuration.
    fn java(&self, args: &[&str]) -> Vec<String> {
        let mut command = vec![
            "java".to_owned(),
            "-Xmx256m".to_owned(),
            "-XX:+UseSerialGC".to_owned(),
            "-XX:TieredStopAtLevel=1".to_owned(),
            format!("-Djava.io.tmpdir={}", self.dir.join("tmp").display()),
            format!("-Djdk.net.hosts.file={}", self.dir.join("hosts").display()),
            "-cp".to_owned(),
            format!("{}:{}/*", self.dir.display(), self.jars.display()),
        ];
        command.extend(args.iter().map(ToString::to_string));
        command
    }

    /// A command of `hdfs dfs`: whether it has worked, and what it said.
    fn shell(&self, args: &[&str]) -> (bool, String) {
        let java = self.java(&[&[SHELL], args].concat());
        let java: Vec<&str> = java.iter().map(String::as_str).collect();
        let outcome = self.weir.cluster.exec(&java);
        (outcome.code == 0, outcome.stderr)
    }
}

impl Drop for Hdfs<'_> {
    fn drop(&mut self) {
        for name in ["datanode", "namenode"] {
            self.weir.cluster.lab(&["stop", name]);
        }
    }
}

fn a_job_reads_a_dataset_of_hdfs(weir: &Installation) {
    let hdfs = Hdfs::start(weir);
    let objects = weir.cluster.scratch.path("objects");
    let (done, said) = hdfs.shell(&["-put", objects.to_str().unwrap(), "/data"]);
    assert!(done, "{said}");
    weir.cluster.apply(&format!(
        "apiVersion: weir.io/v1alpha1
kind: Dataset
metadata: {{name: of-hdfs, namespace: default}}
spec: {{sources: [{{url: \"hdfs://{FIRST_NODE}:{PORT}/data\"}}]}}
"
    ));
    wait_for(weir, "default", "Ready", "dataset/of-hdfs");
    let volume = of_claim("of-hdfs");
    let pod = comparing(weir, ("default", "of-hdfs"), 2, &volume, &objects);
    weir.cluster.apply(&pod);
    let count = end_of(weir, "default", "of-hdfs");
    assert_eq!(count.trim(), weir.files.len().to_string());
    kubectl(weir, "default", &["delete", "pod/of-hdfs", "--timeout=60s"]);
    let delete = ["delete", "dataset/of-hdfs", "--timeout=100s"];
    kubectl(weir, "default", &delete);
}
