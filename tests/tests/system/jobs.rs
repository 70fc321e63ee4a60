//! What is done to a cluster's datasets: warm jobs, listings, evictions.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use weir_s3_server::{Fault, Rule};
use weir_tests::{BUCKET, Cluster, Lab, content, wait_until};

use crate::Case;
use crate::system::cluster::fill;

pub(crate) const CASES: &[Case] = &[
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
    let mount = cluster.mount("set", "elsewhere");
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
    let mount = cluster.mount("set", "elsewhere");
    assert_eq!(mount.read("train/images/a.jpg"), b"a");
    assert_eq!(mount.read("train/labels/a.txt"), b"label");
    assert!(!mount.path("other").exists());
}
