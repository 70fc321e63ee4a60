//! Servers that are replaced, on purpose or by a kill, while data is read that nobody has read before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use weir_s3_server::{Fault, Rule};
use weir_tests::{Cluster, Lab, Mount, Readers, ReadersReport, content, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_mount_that_is_taken_over_fails_no_cold_read",
        a_mount_that_is_taken_over_fails_no_cold_read,
    ),
    (
        "a_cluster_mount_that_is_taken_over_fails_no_cold_read",
        a_cluster_mount_that_is_taken_over_fails_no_cold_read,
    ),
    (
        "a_server_that_is_killed_as_soon_as_it_serves_fails_no_read",
        a_server_that_is_killed_as_soon_as_it_serves_fails_no_read,
    ),
    (
        "processes_that_die_together_fail_no_read",
        processes_that_die_together_fail_no_read,
    ),
];

/// How long the origin takes for an answer: at any moment, most reads wait for one.
const ANSWER: Duration = Duration::from_millis(40);
/// Longest time in which a server is replaced.
const REPLACED: Duration = Duration::from_secs(20);

type Files = Arc<BTreeMap<String, Vec<u8>>>;

/// More files than are read in a test, each in a directory of its own, so that none is read ahead.
fn fill(lab: &Lab) -> Files {
    let files: BTreeMap<String, Vec<u8>> = (0..3000)
        .map(|n| (format!("d{n}/file"), content(n, 9000)))
        .collect();
    lab.put_all(&files);
    lab.s3.faults().set([Rule::new(Fault::Stall(ANSWER))]);
    Arc::new(files)
}

#[track_caller]
fn check(report: &ReadersReport, least: usize) {
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.reads >= least, "only {} reads", report.reads);
}

/// Reads with four readers while `weir mount` takes the mount over, `times` times.
fn take_over(lab: &Lab, files: &Files, mount: &Mount<'_>, again: &[&str], times: usize) {
    let readers = Readers::start(&mount.dir, files, 4);
    for _ in 0..times {
        readers.read_more(20);
        let server = mount.server();
        lab.weir(again).ok();
        wait_until("another server serves", REPLACED, || {
            mount.server() != server
        });
    }
    check(&readers.finish(), 20);
}

fn a_mount_that_is_taken_over_fails_no_cold_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    let (url, dir, endpoint) = (lab.url(""), mount.dir.to_str().unwrap(), lab.s3.endpoint());
    let again = [
        "mount",
        &url,
        dir,
        "--endpoint",
        &endpoint,
        "--anonymous",
        "--mem",
        "0",
    ];
    take_over(&lab, &files, &mount, &again, 5);
    mount.unmount();
}

fn a_cluster_mount_that_is_taken_over_fails_no_cold_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let address = cluster.address();
    for node in ["node-0", "elsewhere"] {
        let mount = cluster.mount("set", node);
        let dir = mount.dir.to_str().unwrap();
        let again = ["mount", "set", dir, "--master", &address, "--node", node];
        take_over(&lab, &files, &mount, &again, 3);
        mount.unmount();
    }
}

fn a_server_that_is_killed_as_soon_as_it_serves_fails_no_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    for _ in 0..6 {
        let mount = lab.mount("", &["--mem", "0"]);
        let readers = Readers::start(&mount.dir, &files, 4);
        for _ in 0..2 {
            let killed = mount.kill_server();
            let started = Instant::now();
            wait_until("another server serves", REPLACED, || {
                mount.server() != killed && started.elapsed() > ANSWER
            });
        }
        check(&readers.finish(), 4);
        mount.unmount();
    }
}

fn processes_that_die_together_fail_no_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    let readers = Readers::start(&mount.dir, &files, 4);
    let processes = || [mount.supervisor(), mount.server(), mount.holder()];
    for round in 0..8 {
        let before = processes();
        let [supervisor, server, holder] = before;
        // Any two of the three, a few milliseconds apart.
        let killed = match round % 4 {
            0 | 1 => [supervisor, server],
            2 => [server, supervisor],
            _ => [holder, supervisor],
        };
        kill_process(killed[0], Signal::KILL).unwrap();
        // What the other may still do in that time is what this is about.
        std::thread::sleep(Duration::from_millis(round / 2));
        // It may have ended with the other one.
        let _ = kill_process(killed[1], Signal::KILL);
        wait_until("others take their places", REPLACED, || {
            let now = processes();
            let replaced = |pid: &Pid| !killed.contains(pid);
            now.iter().all(replaced)
        });
    }
    check(&readers.finish(), 20);
    mount.unmount();
}
