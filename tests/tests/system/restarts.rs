//! Servers that are replaced, on purpose or by a kill, while data is read that nobody has read before.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
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
    (
        "a_server_that_starts_slowly_fails_no_read",
        a_server_that_starts_slowly_fails_no_read,
    ),
    (
        "a_server_of_a_cluster_mount_that_starts_slowly_fails_no_read",
        a_server_of_a_cluster_mount_that_starts_slowly_fails_no_read,
    ),
];

/// How long the origin takes for an answer: at any moment, most reads wait for one.
const ANSWER: Duration = Duration::from_millis(40);
/// Longest time in which a server is replaced.
pub(crate) const REPLACED: Duration = Duration::from_secs(20);

pub(crate) type Files = Arc<BTreeMap<String, Vec<u8>>>;

/// More files than are read in a test, each in a directory of its own, so that none is read ahead.
pub(crate) fn fill(lab: &Lab) -> Files {
    let files: BTreeMap<String, Vec<u8>> = (0..3000)
        .map(|n| (format!("d{n}/file"), content(n, 9000)))
        .collect();
    lab.put_all(&files);
    lab.s3.faults().set([Rule::new(Fault::Stall(ANSWER))]);
    Arc::new(files)
}

#[track_caller]
pub(crate) fn check(report: &ReadersReport, least: usize) {
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
        let again = [&again[..], &["--allow-endpoint", "127.0.0.1"]].concat();
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

/// How long a slow disk takes for a file that a server needs to start.
const SLOW: Duration = Duration::from_secs(3);

/// Has the next server wait for `file` as for a slow disk, once: it is a pipe until [`Self::give`].
struct SlowFile {
    file: PathBuf,
    content: Vec<u8>,
}

impl SlowFile {
    fn new(file: &Path) -> Self {
        let pipe = file.with_extension("pipe");
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let content = std::fs::read(file).unwrap();
        std::fs::rename(pipe, file).unwrap();
        let file = file.to_owned();
        Self { file, content }
    }

    fn give(self) {
        // Waits for the server that reads it.
        let mut pipe = std::fs::File::options()
            .write(true)
            .open(&self.file)
            .unwrap();
        let new = self.file.with_extension("again");
        std::fs::write(&new, &self.content).unwrap();
        std::fs::rename(new, &self.file).unwrap();
        pipe.write_all(&self.content).unwrap();
    }
}

/// Replaces the server under cold reads, once by `weir mount` and once by a kill, by one that waits for a file of the
/// mount's state.
fn start_slowly(lab: &Lab, files: &Files, mount: &Mount<'_>, again: &[&str], file: &str) {
    let states = std::fs::read_dir(lab.path("cache/weir")).unwrap();
    let states: Vec<PathBuf> = states.map(|state| state.unwrap().path()).collect();
    let [state] = &states[..] else {
        panic!("{states:?}")
    };
    let readers = Readers::start(&mount.dir, files, 4);
    for planned in [true, false] {
        readers.read_more(20);
        let slow = SlowFile::new(&state.join(file));
        let server = mount.server();
        std::thread::scope(|scope| {
            if planned {
                scope.spawn(|| lab.weir(again).ok());
            } else {
                mount.kill_server();
            }
            wait_until("another server starts", REPLACED, || {
                mount.server() != server
            });
            let started = Instant::now();
            readers.wait_until_stuck();
            wait_until("the disk is slow", 2 * SLOW, || started.elapsed() > SLOW);
            slow.give();
        });
        readers.read_more(20);
    }
    let report = readers.finish();
    check(&report, 80);
    assert!(report.longest > SLOW, "{:?}", report.longest);
}

fn a_server_that_starts_slowly_fails_no_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    let (url, dir, origin) = (lab.url(""), mount.dir.to_str().unwrap(), lab.origin_flags());
    let mut again = vec!["mount", &url, dir, "--mem", "0"];
    again.extend(origin.iter().map(String::as_str));
    start_slowly(&lab, &files, &mount, &again, "serving");
    mount.unmount();
}

fn a_server_of_a_cluster_mount_that_starts_slowly_fails_no_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    let address = cluster.address();
    let flags = ["--master", &address, "--allow-endpoint", "127.0.0.1"];
    let mount = lab.mount_at("set", "mnt", &flags);
    let again = ["mount", "set", mount.dir.to_str().unwrap()];
    let again = [&again[..], &flags].concat();
    start_slowly(&lab, &files, &mount, &again, "manifest");
    mount.unmount();
}
