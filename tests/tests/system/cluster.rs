//! Master, workers and mounts as separate processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use weir_tests::{
    Cluster, Lab, Mount, Process, Readers, content, drop_pages, free_port, loopback,
    read_at_random, wait_until,
};

use crate::Case;
use crate::system::damage::{damage_segments, flip_everywhere};
use crate::system::reading::{put_big_file, races, read_with_blocks_ahead};

pub(crate) const CASES: &[Case] = &[
    (
        "a_dataset_is_warmed_mounted_and_read_from_all_workers",
        a_dataset_is_warmed_mounted_and_read_from_all_workers,
    ),
    (
        "a_mount_on_a_workers_node_takes_the_local_way",
        a_mount_on_a_workers_node_takes_the_local_way,
    ),
    (
        "blocks_of_a_big_file_are_fetched_ahead_by_their_owners",
        blocks_of_a_big_file_are_fetched_ahead_by_their_owners,
    ),
    (
        "parts_of_a_block_on_this_machine_are_read_without_its_worker",
        parts_of_a_block_on_this_machine_are_read_without_its_worker,
    ),
    (
        "no_read_fails_when_workers_and_the_master_die",
        no_read_fails_when_workers_and_the_master_die,
    ),
    (
        "a_worker_that_stops_answers_until_all_know_that_it_has_left",
        a_worker_that_stops_answers_until_all_know_that_it_has_left,
    ),
    (
        "a_worker_with_the_name_of_a_live_one_does_not_start",
        a_worker_with_the_name_of_a_live_one_does_not_start,
    ),
];

pub(crate) type Files = Arc<BTreeMap<String, Vec<u8>>>;

pub(crate) fn fill(lab: &Lab) -> Files {
    let mut files: BTreeMap<String, Vec<u8>> = (0..120)
        .map(|n| (format!("d{}/f{n}", n % 6), content(n, 100_000)))
        .collect();
    files.insert("large".to_owned(), content(1000, (13 << 20) + 1));
    lab.put_all(&files);
    Arc::new(files)
}

pub(crate) fn total(files: &Files) -> u64 {
    files.values().map(|content| content.len() as u64).sum()
}

#[track_caller]
pub(crate) fn check_all(mount: &Mount<'_>, files: &Files) {
    for (name, content) in files.iter() {
        assert!(mount.read(name) == *content, "{name}");
    }
}

/// Reads and compares all files, none of them from the kernel's cache.
#[track_caller]
pub(crate) fn read_epoch(mount: &Mount<'_>, files: &Files) {
    drop_pages(files.keys().map(|name| mount.path(name)));
    check_all(mount, files);
}

fn a_dataset_is_warmed_mounted_and_read_from_all_workers() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let warmed = cluster.weir(&["warm", "set", "--wait", "-o", "json"]).ok();
    let warmed: Value = serde_json::from_str(&warmed).unwrap();
    assert_eq!(warmed["state"], "done");
    assert_eq!(warmed["done_bytes"], total(&files));
    assert_eq!(lab.s3.stats().bytes(), total(&files));
    wait_until(
        "the status knows what is cached",
        Duration::from_secs(15),
        || {
            let dataset = cluster.status()["datasets"][0].take();
            dataset["cached_bytes"] == total(&files) && dataset["cached_ratio"] == 1.0
        },
    );
    let gets = lab.s3.stats().gets();
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    assert_eq!(
        lab.s3.stats().gets(),
        gets,
        "a warm dataset was fetched again"
    );
    let remote = mount.metric("weir_client_read_bytes_total", "source=\"remote\"");
    assert!(
        remote as u64 >= total(&files),
        "{remote} bytes came from workers"
    );
    // Rendezvous hashing spreads the blocks: neither has fewer than a quarter.
    for number in 0..2 {
        let blocks = cluster
            .worker(number)
            .metric("weir_worker_tier_blocks", "tier=\"ssd\"");
        assert!(blocks > 30.0, "worker {number} holds {blocks} blocks");
        let read = cluster
            .worker(number)
            .metric("weir_worker_read_bytes_total", "dataset=\"set\"");
        assert!(read > 0.0);
    }
    let status = cluster.weir(&["status"]).ok();
    for text in ["node-0", "node-1", "set", "100.0%"] {
        assert!(status.contains(text), "{text}: {status}");
    }
}

fn a_mount_on_a_workers_node_takes_the_local_way() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "node-0");
    for _ in 0..2 {
        check_all(&mount, &files);
        weir_tests::drop_pages(files.keys().map(|name| mount.path(name)));
    }
    let bytes = |source: &str| {
        mount.metric(
            "weir_client_read_bytes_total",
            &format!("source=\"{source}\""),
        )
    };
    assert!(
        bytes("remote").abs() < 0.5,
        "{} bytes went over TCP",
        bytes("remote")
    );
    assert!(bytes("memory") + bytes("ssd") >= total(&files) as f64);
    assert!(bytes("origin") > 0.0);
}

fn blocks_of_a_big_file_are_fetched_ahead_by_their_owners() {
    let lab = Lab::new();
    let expected = put_big_file(&lab);
    let cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    read_with_blocks_ahead(&lab, &mount, &expected, || {
        let workers = (0..2).map(|number| races(&cluster.worker(number).metrics()));
        races(&mount.metrics()) + workers.sum::<f64>()
    });
}

fn parts_of_a_block_on_this_machine_are_read_without_its_worker() {
    /// Parts of a page each, far enough from each other.
    const PARTS: u64 = 100;
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    cluster.weir(&["warm", "set", "--wait"]).ok();
    let mount = cluster.mount("set", "node-0");
    let (path, content) = (mount.path("large"), &files["large"]);
    let read_parts = || {
        drop_pages([path.clone()]);
        for part in 0..PARTS {
            let at = part * 7919 % PARTS * (content.len() as u64 / PARTS);
            let expected = &content[at as usize..][..100];
            assert!(read_at_random(&path, at, 100).unwrap() == expected, "{at}");
        }
    };
    let asked = || {
        cluster
            .worker(0)
            .metric("weir_worker_stream_requests_total", "")
    };
    let before = asked();
    read_parts();
    let asked = asked() - before;
    assert!(
        asked < PARTS as f64 / 2.0,
        "the worker was asked {asked} times"
    );
    let counted = |source: &str| {
        let label = format!("source=\"{source}\"");
        let worker = cluster.worker(0);
        worker.metric("weir_worker_block_reads_total", &label)
    };
    let told = || {
        // Of the latest reads the worker hears with the next request, a second later at the soonest.
        drop_pages([path.clone()]);
        read_at_random(&path, 0, 100).unwrap();
        counted("ssd") + counted("memory") >= PARTS as f64
    };
    wait_until("the reads to be counted", Duration::from_secs(10), told);

    // Places that are known must not hide damage.
    read_parts();
    damage_segments(&lab.path("node-0"), flip_everywhere);
    read_parts();
    let found = || {
        let worker = cluster.worker(0);
        worker.metric("weir_worker_damaged_blocks_total", "")
            + worker.metric("weir_worker_lost_segments_total", "")
    };
    wait_until("the damage to be found", Duration::from_secs(10), || {
        found() > 0.5
    });
}

fn no_read_fails_when_workers_and_the_master_die() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    let readers = Readers::start(&mount.dir, &files, 3);
    let pause = || readers.read_more(30);
    pause();
    cluster.workers[0].take().unwrap().kill();
    pause();
    cluster.master.take().unwrap().kill();
    pause();
    mount.kill_server(); // starts again without a master
    pause();
    cluster.start_master();
    cluster.start_worker(0);
    cluster.wait_for_workers(2);
    cluster.workers[1].take().unwrap().kill();
    pause();
    cluster.workers[0].take().unwrap().kill();
    pause();
    let report = readers.finish();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.reads > 100, "only {} reads", report.reads);
    assert!(
        report.longest < Duration::from_secs(5),
        "a read took {:?}",
        report.longest
    );
    // Without any worker the client reads the origin itself.
    assert!(mount.metric("weir_client_read_bytes_total", "source=\"origin\"") > 0.0);
    assert!(mount.metric("weir_client_failovers_total", "") > 0.5);
}

/// In a cluster of pods its address goes with it, and whoever asks there hears nothing at all.
fn a_worker_that_stops_answers_until_all_know_that_it_has_left() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    let leaving = cluster.worker(0);
    let (address, soon) = (loopback(cluster.data_port(0)), Duration::from_secs(20));
    let answers = || std::net::TcpStream::connect(address).is_ok();
    let epoch = || mount.metric("weir_client_cluster_map_epoch", "");
    let before = epoch();
    leaving.signal(Signal::TERM);
    wait_until("the mount knows it", soon, || {
        let answered = answers();
        let knows = epoch() > before;
        assert!(answered || knows, "readers would wait for it");
        knows
    });
    check_all(&mount, &files);
    wait_until("then it ends", soon, || !answers());
}

fn a_worker_with_the_name_of_a_live_one_does_not_start() {
    let lab = Lab::new();
    let mut cluster = Cluster::start(&lab, 1);
    let (master, dir, port) = (cluster.address(), lab.path("second"), free_port());
    let http = format!("127.0.0.1:{port}");
    let args = [
        "worker",
        "--master",
        &master,
        "--dir",
        dir.to_str().unwrap(),
        "--node",
        "node-0",
        "--listen",
        "127.0.0.1:0",
        "--control",
        "127.0.0.1:0",
        "--http",
        &http,
    ];
    let outcome = lab.weir(args);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("--id"), "{outcome:?}");
    let former = workers(&cluster);
    assert_eq!(former.len(), 1);
    // Once the other is dead, its successor may be elsewhere, even before the master misses it.
    cluster.workers[0].as_mut().unwrap().kill();
    let successor = Process::start(lab.command(args), lab.path("second.log"), loopback(port));
    wait_until(
        "the successor is in the map",
        Duration::from_secs(5),
        || {
            let now = workers(&cluster);
            now.len() == 1 && now != former
        },
    );
    drop(successor);
}

/// Names and addresses of the workers.
fn workers(cluster: &Cluster<'_>) -> Vec<(String, String)> {
    let status = cluster.status();
    let workers = status["workers"].as_array().unwrap().iter();
    let text = |worker: &Value, field: &str| worker[field].as_str().unwrap().to_owned();
    workers
        .map(|worker| (text(worker, "id"), text(worker, "data_address")))
        .collect()
}
