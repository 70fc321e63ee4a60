//! HDFS: a pair of NameNodes and two DataNodes, each a process that can be killed and stopped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use weir_tests::{Lab, Readers, content, is_mountpoint, wait_until};

use crate::Case;
use crate::origins::shared::{Mistake, UnderTest};

mod cluster;
mod kerberos;
mod keytab;

use cluster::{Cluster, cluster};
pub(crate) use cluster::{fetch, start, stop};

pub(crate) const CASES: &[Case] = &[
    (
        "a_service_is_read_by_its_name_and_by_that_of_a_namenode",
        a_service_is_read_by_its_name_and_by_that_of_a_namenode,
    ),
    (
        "a_killed_datanode_costs_no_read",
        a_killed_datanode_costs_no_read,
    ),
    (
        "a_stopped_datanode_costs_a_read_seconds",
        a_stopped_datanode_costs_a_read_seconds,
    ),
    (
        "a_namenode_that_is_started_again_is_waited_for",
        a_namenode_that_is_started_again_is_waited_for,
    ),
    (
        "a_stopped_namenode_is_left_for_the_other",
        a_stopped_namenode_is_left_for_the_other,
    ),
    (
        "a_pair_fails_over_while_it_is_read",
        a_pair_fails_over_while_it_is_read,
    ),
    ("safe_mode_is_waited_out", safe_mode_is_waited_out),
    (
        "a_standby_namenode_alone_is_named",
        a_standby_namenode_alone_is_named,
    ),
    (
        "what_time_and_length_do_not_tell_is_stale_and_never_mixed",
        what_time_and_length_do_not_tell_is_stale_and_never_mixed,
    ),
    (
        "a_file_that_is_being_written_is_left_out",
        a_file_that_is_being_written_is_left_out,
    ),
    (
        "what_a_cluster_refuses_is_told_clearly",
        what_a_cluster_refuses_is_told_clearly,
    ),
    (
        "a_file_that_may_not_be_read_any_more_is_refused",
        a_file_that_may_not_be_read_any_more_is_refused,
    ),
    (
        "a_worker_reads_only_the_clusters_that_it_allows",
        a_worker_reads_only_the_clusters_that_it_allows,
    ),
    (
        "many_files_are_listed_in_few_requests",
        many_files_are_listed_in_few_requests,
    ),
];

/// Of clusters that ask for Kerberos.
pub(crate) const KERBEROS_CASES: &[Case] = kerberos::CASES;
/// Of such clusters, read by a keytab that the master keeps.
pub(crate) const KEYTAB_CASES: &[Case] = keytab::CASES;

/// Longest time in which a read comes back after something has died.
const RECOVERY: Duration = Duration::from_secs(20);

/// For what may pass, and is waited for.
const IMPATIENT: [&str; 2] = ["--patience", "3s"];

/// A world whose commands know the cluster as a user's do.
fn lab(cluster: &Cluster) -> Lab {
    let mut lab = Lab::new();
    lab.set_env("HADOOP_CONF_DIR", cluster.configuration().to_str().unwrap());
    lab
}

/// The same with a configuration that waits for NameNodes as long as those of many clusters.
fn patient_lab(cluster: &Cluster) -> Lab {
    let mut lab = Lab::new();
    let conf = lab.path("conf");
    std::fs::create_dir(&conf).unwrap();
    for name in ["core-site.xml", "hdfs-site.xml"] {
        let text = std::fs::read_to_string(cluster.configuration().join(name)).unwrap();
        let patient = text.replace("<value>3000</value>", "<value>120000</value>");
        assert_eq!(patient != text, name == "core-site.xml", "{text}");
        std::fs::write(conf.join(name), patient).unwrap();
    }
    lab.set_env("HADOOP_CONF_DIR", conf.to_str().unwrap());
    lab
}

/// Puts files into a new directory of the cluster, and gives that.
fn put(cluster: &Cluster, lab: &Lab, name: &str, files: &BTreeMap<String, Vec<u8>>) -> String {
    let dir = format!("/{name}");
    cluster.shell(&["delete", &dir]);
    put_into(cluster, &dir, &lab.path("to-put"), files);
    dir
}

/// Puts files into a directory of the cluster. `scratch` becomes a directory of this machine with their content.
fn put_into(cluster: &Cluster, dir: &str, scratch: &Path, files: &BTreeMap<String, Vec<u8>>) {
    std::fs::create_dir_all(scratch).unwrap();
    let mut list = String::new();
    for (number, (path, bytes)) in files.iter().enumerate() {
        let local = scratch.join(number.to_string());
        std::fs::write(&local, bytes).unwrap();
        writeln!(list, "{dir}/{path}\t{}", local.display()).unwrap();
    }
    let listed = scratch.join("list");
    std::fs::write(&listed, list).unwrap();
    cluster.shell(&["puts", dir, listed.to_str().unwrap()]);
}

/// A directory of the cluster, as one kind of store beside others.
pub(crate) struct Hdfs {
    dir: String,
    scratch: TempDir,
}

impl UnderTest for Hdfs {
    /// What was seen within a second is taken to be there still.
    const BLIND_FOR: Duration = Duration::from_millis(1100);
    const MANY: usize = 1200;

    fn start() -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let dir = format!("/store{}", STARTED.fetch_add(1, Ordering::Relaxed));
        cluster().shell(&["delete", &dir]);
        cluster().shell(&["mkdir", &dir]);
        let scratch = tempfile::tempdir().unwrap();
        Self { dir, scratch }
    }

    fn address(&self) -> Option<SocketAddr> {
        None
    }

    fn put(&self, key: &str, content: &[u8]) {
        self.put_all(&BTreeMap::from([(key.to_owned(), content.to_vec())]));
    }

    fn put_all(&self, files: &BTreeMap<String, Vec<u8>>) {
        put_into(cluster(), &self.dir, self.scratch.path(), files);
    }

    fn delete(&self, key: &str) {
        cluster().shell(&["delete", &format!("{}/{key}", self.dir)]);
    }

    fn url(&self, _at: SocketAddr) -> String {
        cluster().url(&self.dir)
    }

    fn environment(&self, _at: SocketAddr) -> Vec<(&'static str, String)> {
        let configuration = cluster().configuration();
        let configuration = configuration.to_str().unwrap().to_owned();
        vec![("HADOOP_CONF_DIR", configuration)]
    }

    fn takes(key: &str) -> bool {
        // No part of a path of HDFS may have one.
        !key.contains(':')
    }

    fn mistakes(&self, _at: SocketAddr) -> Vec<Mistake> {
        let cluster = cluster();
        let file = format!("{}/large", self.dir);
        [
            (cluster.url("/no/such/dir"), "does not exist"),
            (cluster.url(&file), "it is a file"),
            (
                format!("hdfs://127.0.0.1:{}/x", cluster.web_port()),
                "is no NameNode",
            ),
            ("hdfs://no-such-host.invalid:8020/x".to_owned(), "no host"),
            ("hdfs://127.0.0.1:1/x".to_owned(), "refused"),
            (
                format!("hdfs://127.0.0.1:{}/x", cluster.datanode_port()),
                "without an answer",
            ),
        ]
        .map(|(url, said)| Mistake::new(url, IMPATIENT.map(str::to_owned).into(), said))
        .into()
    }
}

fn some_files(count: u64, length: usize) -> Arc<BTreeMap<String, Vec<u8>>> {
    let file = |n| (format!("dir {}/file{n}", n % 3), content(n, length));
    Arc::new((0..count).map(file).collect())
}

fn a_service_is_read_by_its_name_and_by_that_of_a_namenode() {
    let cluster = cluster();
    let lab = lab(cluster);
    let files = some_files(10, 5000);
    let dir = put(cluster, &lab, "names", &files);
    for url in [cluster.url(&dir), cluster.url_of(1, &dir)] {
        let mount = lab.mount_at(&url, "mnt", &[]);
        for (path, bytes) in files.iter() {
            assert!(mount.read(path) == *bytes, "{path} of {url}");
        }
        let all = mount.metric(
            "weir_origin_requests_total",
            "origin=\"hdfs\",operation=\"get\"",
        );
        assert!(all >= files.len() as f64, "{all}");
        mount.unmount();
    }
}

/// Reads all the time while something is done to the cluster, and gives the longest read.
fn read_while(name: &str, done: impl FnOnce(&Cluster, &Readers)) -> Duration {
    read_in(&lab(cluster()), name, done)
}

fn read_in(lab: &Lab, name: &str, done: impl FnOnce(&Cluster, &Readers)) -> Duration {
    let cluster = cluster();
    // Far more than is read before the deed.
    let files = some_files(240, 300_000);
    let dir = put(cluster, lab, name, &files);
    let mount = lab.mount_at(
        &cluster.url(&dir),
        "mnt",
        &["--mem", "16MiB", "--read-ahead", "off"],
    );
    let readers = Readers::start(&mount.dir, &files, 4);
    readers.read_more(40);
    done(cluster, &readers);
    readers.read_more(200);
    let report = readers.finish();
    assert_eq!(report.errors, Vec::<String>::new(), "{}", mount.log());
    drop(mount);
    report.longest
}

fn a_killed_datanode_costs_no_read() {
    let longest = read_while("killed", |cluster, _| cluster.datanode(1).kill());
    assert!(longest < RECOVERY, "{longest:?}");
}

fn a_stopped_datanode_costs_a_read_seconds() {
    let longest = read_while("stopped", |cluster, _| {
        cluster.datanode(1).signal(Signal::STOP);
    });
    assert!(longest < RECOVERY, "{longest:?}");
}

fn a_stopped_namenode_is_left_for_the_other() {
    let lab = patient_lab(cluster());
    let longest = read_in(&lab, "stopped-namenode", |cluster, _| {
        cluster.namenode(1).signal(Signal::STOP);
        cluster.activate(2);
    });
    assert!(longest < RECOVERY + RECOVERY, "{longest:?}");
    // It still believes that it is the active one, and must not go on.
    cluster::as_it_is().namenode(1).kill();
}

fn a_pair_fails_over_while_it_is_read() {
    let longest = read_while("failover", |cluster, readers| {
        cluster.deactivate(1);
        readers.read_for(Duration::from_secs(3)); // for this long none is active
        cluster.activate(2);
    });
    assert!(longest < RECOVERY, "{longest:?}");
}

fn a_namenode_that_is_started_again_is_waited_for() {
    let longest = read_while("restart", |cluster, _| {
        cluster.namenode(1).kill();
        cluster.namenode(2).kill();
        cluster.start_namenodes();
    });
    assert!(longest < Duration::from_mins(2), "{longest:?}");
}

fn safe_mode_is_waited_out() {
    let cluster = cluster();
    let lab = lab(cluster);
    let files = some_files(10, 5000);
    let dir = put(cluster, &lab, "safe", &files);
    // A NameNode that has no DataNode yet stays in SafeMode, and knows no block's place.
    cluster.datanode(1).kill();
    cluster.datanode(2).kill();
    cluster.namenode(1).kill();
    cluster.namenode(2).kill();
    cluster.start_namenodes();
    let mount = lab.mount_at(&cluster.url(&dir), "mnt", &[]);
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| mount.read("dir 0/file0"));
        wait_until("the reader waits", RECOVERY, || {
            mount.metric("weir_origin_waiting_reads", "") > 0.0
        });
        assert!(!reader.is_finished());
        cluster.start_datanodes();
        assert!(reader.join().unwrap() == files["dir 0/file0"]);
    });
    drop(mount);
}

fn what_time_and_length_do_not_tell_is_stale_and_never_mixed() {
    let cluster = cluster();
    let lab = lab(cluster);
    let old = content(1, 20 << 20);
    let new = content(2, 20 << 20);
    let names = [
        "replaced",
        "same-time",
        "deleted",
        "appended",
        "renamed-over",
    ];
    let files: BTreeMap<_, _> = names
        .iter()
        .map(|name| ((*name).to_owned(), old.clone()))
        .collect();
    let dir = put(cluster, &lab, "changed", &files);
    let path = |name: &str| format!("{dir}/{name}");
    for name in names {
        cluster.shell(&["times", &path(name), "1700000000000"]);
    }
    let mount = lab.mount_at(&cluster.url(&dir), "mnt", &["--read-ahead", "off"]);
    // The first block of each is in the cache.
    let opened: Vec<(&str, File)> = names
        .iter()
        .map(|name| {
            let file = File::open(mount.path(name)).unwrap();
            let mut bytes = vec![0; 4096];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == old[..4096]);
            (*name, file)
        })
        .collect();
    let local = lab.path("new");
    std::fs::write(&local, &new).unwrap();
    let local = local.to_str().unwrap();
    cluster.shell(&["put", &path("replaced"), local]);
    cluster.shell(&["put", &path("same-time"), local]);
    // Not to be told from the old one by time and length.
    cluster.shell(&["times", &path("same-time"), "1700000000000"]);
    cluster.shell(&["delete", &path("deleted")]);
    cluster.shell(&["append", &path("appended"), local]);
    cluster.shell(&["close", &path("appended")]);
    cluster.shell(&["put", &path("other"), local]);
    cluster.shell(&["delete", &path("renamed-over")]);
    cluster.shell(&["rename", &path("other"), &path("renamed-over")]);
    for (name, file) in opened {
        let mut stale = 0;
        for offset in (0..old.len()).step_by(1 << 20) {
            let mut bytes = vec![0; 4096];
            match file.read_exact_at(&mut bytes, offset as u64) {
                Ok(()) => assert!(bytes == old[offset..offset + 4096], "{name} at {offset}"),
                Err(error) => {
                    let errno = rustix::io::Errno::STALE.raw_os_error();
                    assert_eq!(error.raw_os_error(), Some(errno), "{name}: {error}");
                    stale += 1;
                }
            }
        }
        assert!(stale > 0, "{name}");
    }
}

fn a_file_that_is_being_written_is_left_out() {
    let cluster = cluster();
    let lab = lab(cluster);
    let files = BTreeMap::from([("closed".to_owned(), content(3, 2 << 20))]);
    let dir = put(cluster, &lab, "writing", &files);
    let part = lab.path("part");
    for (n, length) in [0, 1000, 1 << 20, (1 << 20) + 1].into_iter().enumerate() {
        std::fs::write(&part, content(4, length)).unwrap();
        cluster.shell(&["write", &format!("{dir}/open{n}"), part.to_str().unwrap()]);
    }
    let mount = lab.mount_at(&cluster.url(&dir), "mnt", &[]);
    let names: Vec<_> = std::fs::read_dir(&mount.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["closed"]);
    let left_out = mount.metric("weir_master_left_out_objects", "being_written");
    assert!((left_out - 4.0).abs() < 0.1, "{left_out}");
    for n in 0..4 {
        cluster.shell(&["close", &format!("{dir}/open{n}")]);
    }
    mount.unmount();
    let mount = lab.mount_at(&cluster.url(&dir), "mnt", &["--refresh"]);
    assert!(mount.read("open3") == content(4, (1 << 20) + 1));
}

fn what_a_cluster_refuses_is_told_clearly() {
    let cluster = cluster();
    let mut lab = lab(cluster);
    let files = some_files(3, 100);
    let dir = put(cluster, &lab, "mistakes", &files);
    cluster.shell(&["mkdir", "/mistakes/secret"]);
    cluster.shell(&["chmod", "/mistakes/secret", "700"]);
    cluster.shell(&["mkdir", "/nothing"]);
    let mnt = lab.path("mnt");
    let mnt = mnt.to_str().unwrap();
    let fails = |lab: &Lab, url: &str| {
        let outcome = lab.weir(["mount", url, mnt]);
        assert_ne!(outcome.code, 0, "{url}: {}", outcome.stdout);
        outcome.stderr
    };
    lab.set_env("HADOOP_USER_NAME", "mallory");
    let error = fails(&lab, &cluster.url("/mistakes/secret"));
    assert!(
        error.contains("mallory") && error.contains("HADOOP_USER_NAME"),
        "{error}"
    );
    // What one user may not read fails the listing of all, rather than be missing in it.
    let error = fails(&lab, &cluster.url(&dir));
    assert!(error.contains("secret"), "{error}");
    lab.set_env("HADOOP_CONF_DIR", "/nowhere");
    let error = fails(&lab, "hdfs:///x");
    assert!(error.contains("names no NameNode"), "{error}");
    // A port at which nobody listens is told of in some seconds, with what can be changed of HDFS.
    let begun = Instant::now();
    let error = fails(
        &lab,
        &format!("hdfs://127.0.0.1:{}/x", weir_tests::free_port()),
    );
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "told after {took:?}");
    assert!(
        error.contains("HADOOP_CONF_DIR") && !error.contains("--endpoint"),
        "{error}"
    );
}

fn a_file_that_may_not_be_read_any_more_is_refused() {
    let cluster = cluster();
    let mut lab = lab(cluster);
    let files = some_files(3, 100);
    let dir = put(cluster, &lab, "revoked", &files);
    lab.set_env("HADOOP_USER_NAME", "mallory");
    let mount = lab.mount_at(&cluster.url(&dir), "mnt", &["--read-ahead", "off"]);
    assert!(mount.read("dir 0/file0") == files["dir 0/file0"]);
    cluster.shell(&["chmod", &format!("{dir}/dir 1/file1"), "600"]);
    let begun = Instant::now();
    let error = std::fs::read(mount.path("dir 1/file1")).unwrap_err();
    let errno = rustix::io::Errno::IO.raw_os_error();
    assert_eq!(error.raw_os_error(), Some(errno), "{}", mount.log());
    let log = mount.log();
    assert!(
        log.contains("mallory") && log.contains("dir 1/file1"),
        "{log}"
    );
    let took = begun.elapsed();
    assert!(took < RECOVERY, "refused after {took:?}");
    assert!(mount.read("dir 2/file2") == files["dir 2/file2"]);
}

fn a_standby_namenode_alone_is_named() {
    let cluster = cluster();
    let lab = lab(cluster);
    let dir = put(cluster, &lab, "standby", &some_files(1, 100));
    let mnt = lab.path("mnt");
    let url = cluster.url_of(2, &dir);
    let begun = Instant::now();
    let args = [&["mount", &url, mnt.to_str().unwrap()][..], &IMPATIENT].concat();
    let outcome = lab.weir(args);
    assert_ne!(outcome.code, 0, "{}", outcome.stdout);
    let error = outcome.stderr;
    assert!(error.contains("standby"), "{error}");
    assert!(error.contains("; "), "it has no remedy: {error}");
    let took = begun.elapsed();
    assert!(took < RECOVERY, "told after {took:?}");
    assert!(!is_mountpoint(&mnt));
}

fn a_worker_reads_only_the_clusters_that_it_allows() {
    let cluster = cluster();
    let lab = lab(cluster);
    let files = some_files(3, 100);
    let dir = put(cluster, &lab, "allowed", &files);
    let url = cluster.url(&dir);
    let refusing = weir_tests::Cluster::start_allowing(&lab, &[], &[&[]], &[]);
    let error = refusing.weir(&["dataset", "create", "set", &url]).stderr;
    assert!(error.contains("--allow-endpoint"), "{error}");
    drop(refusing);
    let allowed = [
        "--allow-endpoint".to_owned(),
        format!("127.0.0.1:{}", cluster.rpc_port(1)),
        "--allow-endpoint".to_owned(),
        format!("127.0.0.1:{}", cluster.rpc_port(2)),
    ];
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    let allowing = weir_tests::Cluster::start_allowing(&lab, &allowed, &[&allowed], &allowed);
    allowing.weir(&["dataset", "create", "set", &url]).ok();
    let mount = allowing.mount("set", "node");
    for (path, bytes) in files.iter() {
        assert!(mount.read(path) == *bytes, "{path}");
    }
}

fn many_files_are_listed_in_few_requests() {
    let cluster = cluster();
    let lab = lab(cluster);
    cluster.shell(&["many", "/many", "10000"]);
    let began = Instant::now();
    let mount = lab.mount_at(&cluster.url("/many"), "mnt", &[]);
    eprintln!(
        "10,000 files were listed and mounted in {:?}",
        began.elapsed()
    );
    let mut count = 0;
    for dir in std::fs::read_dir(&mount.dir).unwrap() {
        count += std::fs::read_dir(dir.unwrap().path()).unwrap().count();
    }
    assert_eq!(count, 10_000);
    for number in [0, 999, 1000, 1999] {
        let path = format!("{:03}/{number:06}", number / 1000);
        assert_eq!(mount.read(&path), number.to_string().as_bytes());
    }
    let pages = mount.metric("weir_origin_requests_total", "operation=\"list\"");
    assert!(pages < 60.0, "{pages}");
}
