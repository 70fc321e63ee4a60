//! Workers that are to leave: cordoned, drained and stopped under readers.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use weir_tests::{Cluster, Lab, Readers, content, wait_until};

use crate::Case;
use crate::system::cluster::{fill, read_epoch, total};
use crate::system::growing::{mount_cached, until_cached, until_mapped};

pub(crate) const CASES: &[Case] = &[
    (
        "a_drained_worker_leaves_without_a_failed_read_or_a_byte_of_the_origin",
        a_drained_worker_leaves_without_a_failed_read_or_a_byte_of_the_origin,
    ),
    (
        "a_cordoned_worker_gets_no_blocks_and_serves_those_that_it_holds",
        a_cordoned_worker_gets_no_blocks_and_serves_those_that_it_holds,
    ),
    (
        "a_drain_survives_its_master_and_ends_clearly_when_it_cannot_go_on",
        a_drain_survives_its_master_and_ends_clearly_when_it_cannot_go_on,
    ),
    (
        "the_last_worker_is_neither_cordoned_nor_drained",
        the_last_worker_is_neither_cordoned_nor_drained,
    ),
];

const SOON: Duration = Duration::from_secs(30);

#[track_caller]
fn worker(cluster: &Cluster<'_>, id: &str) -> Value {
    let shown = cluster.weir(&["worker", "get", id, "-o", "json"]).ok();
    serde_json::from_str(&shown).unwrap()
}

#[track_caller]
fn until_state(cluster: &Cluster<'_>, id: &str, state: &str) {
    let what = format!("worker {id} is {state}");
    wait_until(&what, SOON, || worker(cluster, id)["state"] == state);
}

fn blocks(cluster: &Cluster<'_>, number: usize) -> f64 {
    let worker = cluster.worker(number);
    worker.metric("weir_worker_tier_blocks", "tier=\"ssd\"")
}

fn a_drained_worker_leaves_without_a_failed_read_or_a_byte_of_the_origin() {
    for secure in [false, true] {
        let lab = Lab::new();
        let files = fill(&lab);
        let mut cluster = Cluster::start_either(&lab, 3, secure);
        let (mount, sent) = mount_cached(&lab, &cluster, &files);
        let held = blocks(&cluster, 1);
        assert!(held > 10.0, "{held}");
        let readers = Readers::start(&mount.dir, &files, 2);
        let drained = cluster.weir(&["worker", "drain", "node-1", "--wait", "-o", "json"]);
        let drained: Value = serde_json::from_str(&drained.ok()).unwrap();
        assert_eq!(drained["state"], "done", "{drained}");
        assert!(drained["done_bytes"].as_u64().unwrap() > 0, "{drained}");
        assert_eq!(worker(&cluster, "node-1")["state"], "drained");
        let listed = cluster.weir(&["worker", "list"]).ok();
        assert!(
            listed.contains("drained") && listed.contains("active"),
            "{listed}"
        );
        let status = cluster.weir(&["status"]).ok();
        assert!(status.contains("worker node-1 is drained"), "{status}");
        // As it was said.
        let leaving = cluster.workers[1].take().unwrap();
        leaving.signal(Signal::TERM);
        cluster.wait_for_workers(2);
        readers.read_more(100);
        let report = readers.finish();
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        until_mapped(&cluster, &mount);
        read_epoch(&mount, &files);
        assert_eq!(lab.s3.stats().bytes(), sent, "the origin sent bytes again");
        until_cached(&cluster, total(&files));
        drop(leaving);
    }
}

fn a_cordoned_worker_gets_no_blocks_and_serves_those_that_it_holds() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = Cluster::start(&lab, 2);
    let (mount, sent) = mount_cached(&lab, &cluster, &files);
    let held = blocks(&cluster, 0);
    let cordoned = cluster.weir(&["worker", "cordon", "node-0"]).ok();
    assert!(cordoned.contains("cordoned"), "{cordoned}");
    until_mapped(&cluster, &mount);
    read_epoch(&mount, &files);
    assert_eq!(lab.s3.stats().bytes(), sent, "the origin sent bytes again");
    let given = cluster
        .worker(0)
        .metric("weir_worker_handed_over_bytes_total", "");
    assert!(given > 0.0, "the other one has its blocks from elsewhere");
    // What is new is the other one's, also when all were started again.
    cluster.workers[0].take().unwrap().kill();
    cluster.master.take().unwrap().kill();
    cluster.start_master();
    cluster.start_worker(0);
    cluster.wait_for_workers(2);
    let back = || {
        let worker = worker(&cluster, "node-0");
        worker["state"] == "cordoned" && worker["last_seen_ms"].as_u64() < Some(2500)
    };
    wait_until("it has reported", SOON, back);
    let new: Vec<(String, Vec<u8>)> = (0..40)
        .map(|n| (format!("new/{n}"), content(5000 + n, 50_000)))
        .collect();
    lab.put_all(&new.iter().cloned().collect());
    cluster.weir(&["dataset", "refresh", "set"]).ok();
    cluster.weir(&["warm", "set", "--wait"]).ok();
    assert!(blocks(&cluster, 0) <= held + 0.5, "it got blocks");
    let active = cluster.weir(&["worker", "uncordon", "node-0"]).ok();
    assert!(active.contains("active"), "{active}");
    until_state(&cluster, "node-0", "active");
}

fn a_drain_survives_its_master_and_ends_clearly_when_it_cannot_go_on() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = Cluster::start(&lab, 2);
    let (mount, sent) = mount_cached(&lab, &cluster, &files);
    // Slow enough to be stopped in the middle.
    let slowly = ["worker", "drain", "node-0", "--rate", "200KiB"];
    let started = cluster.weir(&slowly).ok();
    assert!(started.contains("running"), "{started}");
    assert!(
        cluster.weir(&slowly).ok().contains("running"),
        "the same one"
    );
    let faster = cluster.weir(&["worker", "drain", "node-0", "--rate", "300KiB"]);
    assert!(
        faster.stderr.contains("under way at 200KiB/s"),
        "{faster:?}"
    );
    assert!(faster.ok().contains("running"));
    assert_eq!(worker(&cluster, "node-0")["state"], "draining");
    let status = cluster.weir(&["status"]).ok();
    assert!(
        status.contains("worker node-0 is being drained"),
        "{status}"
    );
    cluster.master.take().unwrap().kill();
    cluster.start_master();
    cluster.wait_for_workers(2);
    let goes_on = || {
        let drain = &worker(&cluster, "node-0")["drain"];
        drain["done_bytes"].as_u64().is_some_and(|done| done > 0)
    };
    wait_until("the drain goes on", SOON, goes_on);
    let cancelled = cluster
        .weir(&["worker", "drain", "node-0", "--cancel"])
        .ok();
    assert!(
        cancelled.contains("cancelled") && cancelled.contains("uncordon"),
        "{cancelled}"
    );
    assert_eq!(worker(&cluster, "node-0")["state"], "cordoned");
    let again = cluster.weir(&["worker", "drain", "node-0", "--cancel"]);
    assert!(again.fails(3).contains("not being drained"));
    // Uncordoning ends one, too.
    cluster.weir(&slowly).ok();
    cluster.weir(&["worker", "uncordon", "node-0"]).ok();
    assert_eq!(worker(&cluster, "node-0")["state"], "active");
    assert_eq!(lab.s3.stats().bytes(), sent);
    // It dies while the others take over, and they do not have everything.
    let waiting = std::thread::scope(|scope| {
        let draining = scope.spawn(|| cluster.weir(&[&slowly[..], &["--wait"]].concat()));
        until_state(&cluster, "node-0", "draining");
        cluster.worker(0).signal(Signal::KILL);
        draining.join().unwrap()
    });
    let message = waiting.fails(1);
    assert!(message.contains("node-0 left before"), "{message}");
    cluster.workers[0] = None;
    cluster.wait_for_workers(1);
    until_mapped(&cluster, &mount);
    read_epoch(&mount, &files);
}

fn the_last_worker_is_neither_cordoned_nor_drained() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 2);
    let none = cluster.weir(&["worker", "drain", "nobody"]).fails(3);
    assert!(none.contains("no worker nobody"), "{none}");
    cluster.weir(&["worker", "get", "nobody"]).fails(3);
    cluster.weir(&["worker", "uncordon", "nobody"]).fails(3);
    cluster
        .weir(&["worker", "drain", "node-0", "--rate", "0"])
        .fails(2);
    // There is nothing to be taken over.
    cluster.weir(&["worker", "drain", "node-0", "--wait"]).ok();
    assert_eq!(worker(&cluster, "node-0")["state"], "drained");
    for command in ["cordon", "drain"] {
        let message = cluster.weir(&["worker", command, "node-1"]).fails(7);
        assert!(message.contains("last one"), "{message}");
    }
    assert_eq!(worker(&cluster, "node-1")["state"], "active");
    // Nor can a command be one to run a worker with.
    let mixed = lab.weir([
        "worker",
        "--id",
        "w",
        "list",
        "--master",
        &cluster.address(),
    ]);
    assert_eq!(mixed.code, 2, "{mixed:?}");
    let without = lab.weir(["worker", "--dir", "/nonexistent"]);
    assert!(without.fails(2).contains("--master"));
}
