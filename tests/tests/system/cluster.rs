//! Master, workers and mounts as separate processes.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use weir_s3_server::{Fault, Rule};
use weir_tests::{
    BUCKET, Cluster, Lab, Mount, Process, Readers, content, drop_pages, free_port, read_at_random,
    wait_until,
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
        "a_worker_with_the_name_of_a_live_one_does_not_start",
        a_worker_with_the_name_of_a_live_one_does_not_start,
    ),
    (
        "a_warm_job_is_stopped_and_resumed",
        a_warm_job_is_stopped_and_resumed,
    ),
    (
        "a_warm_job_tells_of_a_file_of_which_only_a_later_block_fails",
        a_warm_job_tells_of_a_file_of_which_only_a_later_block_fails,
    ),
    (
        "datasets_are_listed_refreshed_evicted_and_deleted",
        datasets_are_listed_refreshed_evicted_and_deleted,
    ),
    (
        "one_dataset_joins_several_origins",
        one_dataset_joins_several_origins,
    ),
];

type Files = Arc<BTreeMap<String, Vec<u8>>>;

fn fill(lab: &Lab) -> Files {
    let mut files: BTreeMap<String, Vec<u8>> = (0..120)
        .map(|n| (format!("d{}/f{n}", n % 6), content(n, 100_000)))
        .collect();
    files.insert("large".to_owned(), content(1000, (13 << 20) + 1));
    lab.put_all(&files);
    Arc::new(files)
}

fn total(files: &Files) -> u64 {
    files.values().map(|content| content.len() as u64).sum()
}

fn mount<'a>(lab: &'a Lab, cluster: &Cluster<'_>, node: &str) -> Mount<'a> {
    lab.mount_at(
        "set",
        "mnt",
        &["--master", &cluster.address(), "--node", node],
    )
}

#[track_caller]
fn check_all(mount: &Mount<'_>, files: &Files) {
    for (name, content) in files.iter() {
        assert!(mount.read(name) == *content, "{name}");
    }
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
    let mount = mount(&lab, &cluster, "elsewhere");
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
    let mount = mount(&lab, &cluster, "node-0");
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
    let mount = mount(&lab, &cluster, "elsewhere");
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
    let mount = mount(&lab, &cluster, "node-0");
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
    let mount = mount(&lab, &cluster, "elsewhere");
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
    let successor = Process::start(lab.command(args), lab.path("second.log"), port);
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

fn a_warm_job_is_stopped_and_resumed() {
    let lab = Lab::new();
    let count = 2000;
    lab.s3.edit(BUCKET, |bucket| {
        for number in 0..count {
            bucket.put(format!("f{number}"), content(number, 10_000));
        }
    });
    let total = count * 10_000;
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    lab.s3
        .faults()
        .set([Rule::new(Fault::Stall(Duration::from_millis(300)))]);
    let address = cluster.address();
    let mut command = lab.command(["warm", "set", "--wait", "--master", &address]);
    command
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut errors = child.stderr.take().unwrap();
    let (mut text, mut piece) = (String::new(), [0; 4096]);
    let shows_progress =
        |text: &str| text.contains(" of ") && text.contains("files") && text.contains("ETA");
    while !shows_progress(&text) {
        let read = errors.read(&mut piece).unwrap();
        assert!(read > 0, "no progress: {text}");
        text += &String::from_utf8_lossy(&piece[..read]);
    }
    wait_until("some files are fetched", Duration::from_secs(20), || {
        lab.s3.stats().bytes() > 0
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    errors.read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{text}");
    // What was on its way when the job was stopped still arrives.
    wait_until("nothing is on its way", Duration::from_secs(20), || {
        cluster.worker(0).metric("weir_worker_fills_in_flight", "") < 0.5
    });
    lab.s3.faults().clear();
    let fetched = lab.s3.stats().bytes();
    assert!(
        fetched > 0 && fetched < total,
        "{fetched} bytes before the interruption"
    );
    cluster.weir(&["warm", "set", "--wait"]).ok();
    assert_eq!(lab.s3.stats().bytes(), total, "the job began anew");
}

fn a_warm_job_tells_of_a_file_of_which_only_a_later_block_fails() {
    let lab = Lab::new();
    lab.s3.edit(BUCKET, |bucket| {
        bucket.put("small".to_owned(), content(1, 1000));
        bucket.put("large".to_owned(), content(2, (12 << 20) + 1));
    });
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    let mount = mount(&lab, &cluster, "elsewhere");
    let mut first = [0; 4096];
    let large = std::fs::File::open(mount.path("large")).unwrap();
    large.read_exact_at(&mut first, 0).unwrap();
    wait_until("the first block is kept", Duration::from_secs(10), || {
        cluster.worker(0).metric("weir_worker_tier_blocks", "ssd") > 0.5
    });
    lab.s3
        .faults()
        .set([Rule::new(Fault::Status(403, "AccessDenied")).path("large")]);
    let outcome = cluster.weir(&["warm", "set", "--wait"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains(" 1 file could"), "{outcome:?}");
    assert!(outcome.stderr.contains("large"), "{outcome:?}");
    lab.s3.faults().clear();
    cluster.weir(&["warm", "set", "--wait"]).ok();
}

fn datasets_are_listed_refreshed_evicted_and_deleted() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let json = |args: &[&str]| -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&cluster.weir(&args).ok()).unwrap()
    };
    let datasets = json(&["dataset", "list"]);
    assert_eq!(datasets[0]["name"], "set");
    assert_eq!(datasets[0]["snapshots"][0]["files"], files.len());
    assert!(
        cluster
            .weir(&["dataset", "list"])
            .ok()
            .contains("s3://bucket")
    );
    // Made again as it is: no change. As something else: a conflict.
    cluster.create_dataset("set");
    let other = ["dataset", "create", "set", "file:///tmp"];
    assert!(cluster.weir(&other).fails(6).contains("set"));
    assert!(
        cluster
            .weir(&["dataset", "get", "nothing"])
            .fails(3)
            .contains("nothing")
    );
    assert!(
        cluster
            .weir(&["warm", "set", "no/such/path", "--wait"])
            .fails(3)
            .contains("no/such/path")
    );

    let part: usize = files
        .iter()
        .filter(|(name, _)| name.starts_with("d1/"))
        .map(|(_, content)| content.len())
        .sum();
    assert_eq!(json(&["warm", "set", "d1", "--wait"])["done_bytes"], part);
    assert_eq!(lab.s3.stats().bytes(), part as u64);
    json(&["warm", "set", "--wait"]);
    cluster.weir(&["evict", "set", "d1"]).ok();
    let before = lab.s3.stats().bytes();
    json(&["warm", "set", "--wait"]);
    assert_eq!(
        lab.s3.stats().bytes() - before,
        part as u64,
        "evicted bytes are fetched again, others are not"
    );

    assert!(
        cluster
            .weir(&["dataset", "refresh", "set"])
            .ok()
            .contains("nothing changed")
    );
    lab.s3.edit(BUCKET, |bucket| bucket.put("new", "new"));
    let refreshed = json(&["dataset", "refresh", "set"]);
    assert_eq!(
        refreshed["snapshots"].as_array().unwrap().last().unwrap()["version"],
        2
    );
    let before = lab.s3.stats().bytes();
    json(&["warm", "set", "--wait"]);
    assert_eq!(
        lab.s3.stats().bytes() - before,
        3,
        "unchanged objects share their blocks over snapshots"
    );

    cluster.weir(&["dataset", "delete", "set"]).ok();
    assert_eq!(json(&["dataset", "list"]), Value::Array(Vec::new()));
    wait_until(
        "the deleted dataset's blocks are dropped",
        Duration::from_secs(20),
        || (0..2).all(|number| cluster.worker(number).metric("weir_worker_tier_blocks", "") < 0.5),
    );
}

fn one_dataset_joins_several_origins() {
    let lab = Lab::new();
    lab.s3.edit(BUCKET, |bucket| {
        bucket.put("images/a.jpg", "a");
        bucket.put("other", "other");
    });
    std::fs::create_dir(lab.path("labels")).unwrap();
    std::fs::write(lab.path("labels/a.txt"), "label").unwrap();
    let cluster = Cluster::start(&lab, 1);
    let images = format!("{}:train/images", lab.url("images/"));
    let labels = format!("file://{}:train/labels", lab.path("labels").display());
    let origin = lab.origin_flags();
    let mut args = vec!["dataset", "create", "set", &images, &labels];
    args.extend(origin.iter().map(String::as_str));
    cluster.weir(&args).ok();
    let mount = mount(&lab, &cluster, "elsewhere");
    assert_eq!(mount.read("train/images/a.jpg"), b"a");
    assert_eq!(mount.read("train/labels/a.txt"), b"label");
    assert!(!mount.path("other").exists());
}
