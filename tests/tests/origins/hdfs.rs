//! HDFS: a pair of NameNodes and two DataNodes, each a process that can be killed and stopped.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::Signal;
use weir_tests::{Lab, Readers, content, wait_until};

use crate::Case;

mod cluster;
mod kerberos;
mod keytab;

pub(crate) use cluster::stop;
use cluster::{Cluster, cluster};

pub(crate) const CASES: &[Case] = &[
    (
        "files_of_every_kind_are_listed_and_read",
        files_of_every_kind_are_listed_and_read,
    ),
    (
        "ranges_are_read_by_many_at_once",
        ranges_are_read_by_many_at_once,
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
        "changed_and_deleted_files_are_stale_and_never_mixed",
        changed_and_deleted_files_are_stale_and_never_mixed,
    ),
    (
        "a_file_that_is_being_written_is_left_out",
        a_file_that_is_being_written_is_left_out,
    ),
    (
        "mistakes_have_one_clear_error_each",
        mistakes_have_one_clear_error_each,
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

/// A world whose commands know the cluster as a user's do.
fn lab(cluster: &Cluster) -> Lab {
    let mut lab = Lab::new();
    lab.set_env("HADOOP_CONF_DIR", cluster.configuration().to_str().unwrap());
    lab
}

/// Puts files into a new directory of the cluster, and gives that.
fn put(cluster: &Cluster, lab: &Lab, name: &str, files: &BTreeMap<String, Vec<u8>>) -> String {
    let dir = format!("/{name}");
    cluster.shell(&["delete", &dir]);
    for (path, bytes) in files {
        let local = lab.path("to-put");
        std::fs::write(&local, bytes).unwrap();
        cluster.shell(&["put", &format!("{dir}/{path}"), local.to_str().unwrap()]);
    }
    dir
}

fn some_files(count: u64, length: usize) -> Arc<BTreeMap<String, Vec<u8>>> {
    let file = |n| (format!("dir {}/file{n}", n % 3), content(n, length));
    Arc::new((0..count).map(file).collect())
}

fn files_of_every_kind_are_listed_and_read() {
    let cluster = cluster();
    let lab = lab(cluster);
    let mut files = BTreeMap::new();
    for (n, name) in [
        "plain",
        "with blanks  and %20 percent",
        "Ünïcode/文件/🦀",
        "deep/er/and/deeper/still",
        "+plus&and=equals?question#hash",
        "quotes'\"`back\\slash",
        "-dash",
        ".hidden/.file",
    ]
    .into_iter()
    .enumerate()
    {
        files.insert(name.to_owned(), content(n as u64, 1000 + n));
    }
    files.insert("empty".to_owned(), Vec::new());
    files.insert("exactly a block".to_owned(), content(50, 1 << 20));
    files.insert("many blocks".to_owned(), content(51, (7 << 20) + 12_345));
    let dir = put(cluster, &lab, "kinds", &files);
    for url in [cluster.url(&dir), cluster.url_of(1, &dir)] {
        let mount = lab.mount_at(&url, "mnt", &[]);
        for (path, bytes) in &files {
            assert!(mount.read(path) == *bytes, "{path} of {url}");
        }
        let all = mount.metric(
            "weir_origin_requests_total",
            "origin=\"hdfs\",operation=\"get\"",
        );
        assert!(all >= files.len() as f64 - 1.0, "{all}");
        mount.unmount();
    }
}

fn ranges_are_read_by_many_at_once() {
    let cluster = cluster();
    let lab = lab(cluster);
    let big = content(7, 40 << 20);
    let files = BTreeMap::from([("big".to_owned(), big.clone())]);
    let dir = put(cluster, &lab, "ranges", &files);
    let mount = lab.mount_at(&cluster.url(&dir), "mnt", &["--read-ahead", "off"]);
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                let file = File::open(mount.path("big")).unwrap();
                let mut rng = rand::rng();
                for _ in 0..40 {
                    let offset = rng.random_range(0..big.len());
                    let length = rng.random_range(1..300_000).min(big.len() - offset);
                    let mut bytes = vec![0; length];
                    file.read_exact_at(&mut bytes, offset as u64).unwrap();
                    assert!(
                        bytes == big[offset..offset + length],
                        "{length} at {offset}"
                    );
                }
            });
        }
    });
}

/// Reads all the time while something is done to the cluster, and gives the longest read.
fn read_while(name: &str, done: impl FnOnce(&Cluster, &Readers)) -> Duration {
    let cluster = cluster();
    let lab = lab(cluster);
    // Far more than is read before the deed.
    let files = some_files(240, 300_000);
    let dir = put(cluster, &lab, name, &files);
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
    let longest = read_while("stopped-namenode", |cluster, _| {
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

fn changed_and_deleted_files_are_stale_and_never_mixed() {
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

fn mistakes_have_one_clear_error_each() {
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
    let web = cluster.web_port();
    let data = cluster.datanode_port();
    for (url, words) in [
        (cluster.url("/no/such/dir"), "does not exist"),
        (cluster.url("/mistakes/dir 0/file0"), "it is a file"),
        (format!("hdfs://127.0.0.1:{web}/x"), "is no NameNode"),
        (format!("hdfs://127.0.0.1:{data}/x"), "without an answer"),
        ("hdfs://no-such-host.invalid:8020/x".to_owned(), "no host"),
        ("hdfs://127.0.0.1:1/x".to_owned(), "refused"),
    ] {
        let error = fails(&lab, &url);
        assert!(error.contains(words), "{url}: {error}");
        assert!(error.contains("; "), "{url} has no remedy: {error}");
    }
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
    cluster.shell(&["many", "/many", "20000"]);
    let began = Instant::now();
    let mount = lab.mount_at(&cluster.url("/many"), "mnt", &[]);
    eprintln!(
        "20,000 files were listed and mounted in {:?}",
        began.elapsed()
    );
    let mut count = 0;
    for dir in std::fs::read_dir(&mount.dir).unwrap() {
        count += std::fs::read_dir(dir.unwrap().path()).unwrap().count();
    }
    assert_eq!(count, 20_000);
    for number in [0, 999, 1000, 1999] {
        let path = format!("{:03}/{number:06}", number / 1000);
        assert_eq!(mount.read(&path), number.to_string().as_bytes());
    }
    let pages = mount.metric("weir_origin_requests_total", "operation=\"list\"");
    assert!(pages < 100.0, "{pages}");
}
