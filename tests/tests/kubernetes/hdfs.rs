//! Datasets of HDFS, whose NameNode and DataNode run beside the cluster on the first node: of one that believes what callers say, and
//! of one that asks for Kerberos.

use std::path::PathBuf;
use std::time::Duration;

use weir_tests::{REALM, hadoop_jars, wait_until, write_hadoop_properties};

use crate::Case;
use crate::kubernetes::cluster::FIRST_NODE;
use crate::kubernetes::installation::Installation;
use crate::kubernetes::objects::{comparing, end_of, kubectl, secret_reader, status, wait_for};
use crate::kubernetes::volumes::of_claim;

pub(crate) const CASES: &[Case] = &[
    (
        "a_job_reads_a_dataset_of_hdfs",
        a_job_reads_a_dataset_of_hdfs,
    ),
    (
        "a_keytab_in_a_secret_opens_a_dataset_of_hdfs",
        a_keytab_in_a_secret_opens_a_dataset_of_hdfs,
    ),
];

/// Longest wait for a process of HDFS.
const SOON: Duration = Duration::from_mins(2);
const NAMENODE: &str = "org.apache.hadoop.hdfs.server.namenode.NameNode";
const DATANODE: &str = "org.apache.hadoop.hdfs.server.datanode.DataNode";
const SHELL: &str = "org.apache.hadoop.fs.FsShell";
/// The port of the NameNode.
const PORT: u16 = 8020;
/// What the secure one asks for of all that is sent.
const PROTECTION: &str = "privacy";

/// Both of its processes, until this is dropped.
struct Hdfs<'a> {
    weir: &'a Installation,
    dir: PathBuf,
    jars: PathBuf,
    /// Whether it asks for Kerberos.
    secure: bool,
}

impl<'a> Hdfs<'a> {
    fn start(weir: &'a Installation, secure: bool) -> Self {
        let dir = if secure { "hdfs-secure" } else { "hdfs" };
        let hdfs = Self {
            weir,
            dir: weir.cluster.scratch.path(dir),
            jars: hadoop_jars().unwrap(),
            secure,
        };
        hdfs.configure();
        if secure {
            hdfs.start_kdc();
        }
        hdfs.run(&hdfs.java(&[NAMENODE, "-format", "-nonInteractive"]));
        hdfs.run_on("namenode", &hdfs.java(&[NAMENODE]));
        hdfs.run_on("datanode", &hdfs.java(&[DATANODE]));
        // A file without bytes needs no DataNode.
        let some = hdfs.dir.join("hosts");
        let put = ["-put", "-f", some.to_str().unwrap(), "/ready"];
        wait_until("HDFS takes files", SOON, || hdfs.shell(&put).0);
        hdfs
    }

    fn run(&self, command: &[String]) {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        self.weir.cluster.exec(&command).ok();
    }

    fn run_on(&self, name: &str, command: &[String]) {
        let start = ["start", name].into_iter();
        let start: Vec<&str> = start.chain(command.iter().map(String::as_str)).collect();
        self.weir.cluster.lab(&start).ok();
    }

    fn start_kdc(&self) {
        let kdc = &self.weir.kdc;
        self.run_on("kdc", &words(&kdc.daemon()));
        // The shell's own ticket.
        let keytab = kdc.keytab("server").display().to_string();
        let (conf, tickets) = (kdc.krb5_conf(), self.tickets());
        let command = [
            "env",
            &format!("KRB5_CONFIG={}", conf.display()),
            &tickets,
            "kinit",
            "-kt",
            &keytab,
            &kdc.server(),
        ];
        let mut said = String::new();
        let logs_in = || {
            let outcome = self.weir.cluster.exec(&command);
            said = outcome.stderr;
            outcome.code == 0
        };
        assert!(weir_tests::comes_true(SOON, logs_in), "{said}");
    }

    /// The variable that names the shell's tickets.
    fn tickets(&self) -> String {
        format!("KRB5CCNAME={}", self.dir.join("tickets").display())
    }

    fn configure(&self) {
        let at = |port: u16| format!("{FIRST_NODE}:{port}");
        let file = |name: &str| format!("file://{}", self.dir.join(name).display());
        std::fs::create_dir_all(self.dir.join("tmp")).unwrap();
        // Nobody else knows the node's name there.
        let hosts = format!("{FIRST_NODE} node-1\n");
        std::fs::write(self.dir.join("hosts"), hosts).unwrap();
        let mut core = vec![("fs.defaultFS", format!("hdfs://{}", at(PORT)))];
        let mut hdfs = vec![
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
        if self.secure {
            let [secure_core, secure] = self.weir.kdc.properties(PROTECTION);
            core.extend(secure_core);
            hdfs.extend(secure);
        }
        for (name, properties) in [("core-site.xml", core), ("hdfs-site.xml", hdfs)] {
            let properties: Vec<_> = properties
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            write_hadoop_properties(&self.dir.join(name), &properties).unwrap();
        }
    }

    /// A JVM that knows the configuration.
    fn java(&self, args: &[&str]) -> Vec<String> {
        let kdc = self.weir.kdc.krb5_conf();
        let mut command = vec![
            "env".to_owned(),
            self.tickets(),
            "java".to_owned(),
            "-Xmx256m".to_owned(),
            "-XX:+UseSerialGC".to_owned(),
            "-XX:TieredStopAtLevel=1".to_owned(),
            format!("-Djava.io.tmpdir={}", self.dir.join("tmp").display()),
            format!("-Djdk.net.hosts.file={}", self.dir.join("hosts").display()),
            format!("-Djava.security.krb5.conf={}", kdc.display()),
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

    /// Puts the bucket's files into a directory.
    fn fill(&self, dir: &str) {
        let objects = self.weir.cluster.scratch.path("objects");
        let (done, said) = self.shell(&["-put", objects.to_str().unwrap(), dir]);
        assert!(done, "{said}");
    }
}

impl Drop for Hdfs<'_> {
    fn drop(&mut self) {
        let all = ["datanode", "namenode", "kdc"];
        for name in &all[..if self.secure { 3 } else { 2 }] {
            self.weir.cluster.lab(&["stop", name]);
        }
    }
}

/// A command with its variables as the words that start it elsewhere.
fn words(command: &std::process::Command) -> Vec<String> {
    let text = |word: &std::ffi::OsStr| word.to_str().unwrap().to_owned();
    let variables = command.get_envs().filter_map(|(name, value)| {
        let value = value?;
        Some(format!("{}={}", text(name), text(value)))
    });
    let program = std::iter::once(text(command.get_program()));
    std::iter::once("env".to_owned())
        .chain(variables)
        .chain(program)
        .chain(command.get_args().map(text))
        .collect()
}

fn a_job_reads_a_dataset_of_hdfs(weir: &Installation) {
    let hdfs = Hdfs::start(weir, false);
    hdfs.fill("/data");
    weir.cluster.apply(&format!(
        "apiVersion: weir.io/v1alpha1
kind: Dataset
metadata: {{name: of-hdfs, namespace: default}}
spec: {{sources: [{{url: \"hdfs://{FIRST_NODE}:{PORT}/data\"}}]}}
"
    ));
    wait_for(weir, "default", "Ready", "dataset/of-hdfs");
    is_read_and_deleted(weir, "default", "of-hdfs");
}

/// By a pod through its claim, each byte compared.
fn is_read_and_deleted(weir: &Installation, namespace: &str, name: &str) {
    let objects = weir.cluster.scratch.path("objects");
    let volume = of_claim(name);
    let pod = comparing(weir, (namespace, name), 2, &volume, &objects);
    weir.cluster.apply(&pod);
    let count = end_of(weir, namespace, name);
    assert_eq!(count.trim(), weir.files.len().to_string());
    let pod = format!("pod/{name}");
    kubectl(weir, namespace, &["delete", &pod, "--timeout=60s"]);
    let dataset = format!("dataset/{name}");
    kubectl(weir, namespace, &["delete", &dataset, "--timeout=100s"]);
}

fn a_keytab_in_a_secret_opens_a_dataset_of_hdfs(weir: &Installation) {
    const TEAM: &str = "team-hdfs";
    let hdfs = Hdfs::start(weir, true);
    hdfs.fill("/data");
    weir.cluster.apply(&secret_reader(TEAM));
    let namenode = format!("hdfs://{FIRST_NODE}:{PORT}");
    let create = |keytab: &str| {
        let keytab = weir.kdc.keytab(keytab);
        let secret = ["create", "secret", "generic", "login"];
        let file = format!("--from-file=keytab={}", keytab.display());
        let principal = format!("--from-literal=principal=reader@{REALM}");
        let endpoints = format!("--from-literal=endpoints={namenode}");
        let from = [file.as_str(), &principal, &endpoints];
        kubectl(weir, TEAM, &[&secret[..], &from].concat());
    };
    // One whose key has been replaced: the Dataset says so, and is read once the Secret is right.
    create("wrong");
    weir.cluster.apply(&format!(
        "apiVersion: weir.io/v1alpha1
kind: Dataset
metadata: {{name: locked, namespace: {TEAM}}}
spec:
  sources:
  - url: {namenode}/data
    credentials: login
    hdfs: {{config: {{hadoop.security.authentication: kerberos, dfs.data.transfer.protection: {PROTECTION}}}}}
"
    ));
    wait_until("the Dataset says that it is not let in", SOON, || {
        let status = status(weir, TEAM, "locked").to_string();
        status.contains("access denied")
    });
    kubectl(weir, TEAM, &["delete", "secret", "login"]);
    create("reader");
    let refresh = ["annotate", "dataset/locked", "weir.io/refresh=now"];
    kubectl(weir, TEAM, &refresh);
    wait_for(weir, TEAM, "Ready", "dataset/locked");
    is_read_and_deleted(weir, TEAM, "locked");
    let delete = ["delete", "namespace", TEAM, "--timeout=100s"];
    weir.cluster.kubectl(&delete).ok();
}
