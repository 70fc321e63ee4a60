//! Workers that do not answer, and that stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use weir_s3_server::{Fault, Rule};
use weir_tests::{Cluster, Lab, Readers, content};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_frozen_worker_costs_its_readers_a_second_once",
        a_frozen_worker_costs_its_readers_a_second_once,
    ),
    (
        "a_worker_that_stops_and_starts_again_fails_no_cold_read",
        a_worker_that_stops_and_starts_again_fails_no_cold_read,
    ),
];

type Files = Arc<BTreeMap<String, Vec<u8>>>;

/// Files, each in a directory of its own, so that none is read ahead.
fn fill(lab: &Lab, count: u64) -> Files {
    let files: BTreeMap<String, Vec<u8>> = (0..count)
        .map(|n| (format!("d{n}/file"), content(n, 50_000)))
        .collect();
    lab.put_all(&files);
    Arc::new(files)
}

fn a_frozen_worker_costs_its_readers_a_second_once() {
    let lab = Lab::new();
    let files = fill(&lab, 60);
    let mut cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let address = cluster.address();
    let mount = lab.mount_at("set", "mnt", &["--master", &address, "--node", "elsewhere"]);
    // Without a master nobody throws the worker out.
    cluster.master.take().unwrap().kill();
    cluster.worker(0).signal(Signal::STOP);
    let start = Instant::now();
    for (name, content) in files.iter() {
        assert!(mount.read(name) == *content, "{name}");
    }
    let took = start.elapsed();
    let silent = mount.metric("weir_client_failovers_total", "silent");
    cluster.worker(0).signal(Signal::CONT);
    assert!(took < Duration::from_secs(12), "the reads took {took:?}");
    assert!(
        (0.5..10.0).contains(&silent),
        "{silent} reads found it silent"
    );
}

fn a_worker_that_stops_and_starts_again_fails_no_cold_read() {
    let lab = Lab::new();
    let files = fill(&lab, 400);
    let mut cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let address = cluster.address();
    let mount = lab.mount_at("set", "mnt", &["--master", &address, "--node", "elsewhere"]);
    let stall = Fault::Stall(Duration::from_millis(30));
    lab.s3.faults().set([Rule::new(stall)]);
    let readers = Readers::start(&mount.dir, &files, 4);
    for number in [0, 1, 0] {
        std::thread::sleep(Duration::from_millis(400));
        let stopping = cluster.workers[number].take().unwrap();
        stopping.signal(Signal::TERM);
        // Its successor does not wait for its end.
        cluster.start_worker(number);
        drop(stopping);
    }
    let report = readers.finish();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.reads > 20, "only {} reads", report.reads);
}
