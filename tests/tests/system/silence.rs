//! Workers that do not answer, and that stop.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use weir_s3_server::{Fault, Rule};
use weir_tests::{Cluster, Lab, Mount, Readers, idle_connections, put_apart, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_frozen_worker_costs_its_readers_a_second_once",
        a_frozen_worker_costs_its_readers_a_second_once,
    ),
    (
        "a_frozen_worker_of_the_same_node_costs_its_readers_a_second_once",
        a_frozen_worker_of_the_same_node_costs_its_readers_a_second_once,
    ),
    (
        "a_worker_that_lives_but_does_not_answer_costs_a_second_once",
        a_worker_that_lives_but_does_not_answer_costs_a_second_once,
    ),
    (
        "thousands_of_idle_connections_keep_no_mount_out",
        thousands_of_idle_connections_keep_no_mount_out,
    ),
    (
        "what_a_worker_held_is_read_when_it_is_back_while_the_origin_is_away",
        what_a_worker_held_is_read_when_it_is_back_while_the_origin_is_away,
    ),
    (
        "a_worker_that_stops_and_starts_again_fails_no_cold_read",
        a_worker_that_stops_and_starts_again_fails_no_cold_read,
    ),
];

type Files = Arc<BTreeMap<String, Vec<u8>>>;

/// Reads files of a mount whose worker does not answer. Fails if that costs more than a second or so, or costs it often.
#[track_caller]
fn reads_past_a_silent_worker(mount: &Mount<'_>, files: &Files) {
    let start = Instant::now();
    for (name, content) in files.iter() {
        assert!(mount.read(name) == *content, "{name}");
    }
    let took = start.elapsed();
    let silent = mount.metric("weir_client_failovers_total", "silent");
    assert!(took < Duration::from_secs(12), "the reads took {took:?}");
    assert!(
        (0.5..10.0).contains(&silent),
        "{silent} reads found it silent"
    );
}

fn a_frozen_worker_costs_its_readers_a_second_once() {
    let lab = Lab::new();
    let files = put_apart(&lab, 60);
    let mut cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    // Without a master nobody throws the worker out.
    cluster.master.take().unwrap().kill();
    let _frozen = cluster.worker(0).freeze();
    reads_past_a_silent_worker(&mount, &files);
}

fn a_frozen_worker_of_the_same_node_costs_its_readers_a_second_once() {
    let lab = Lab::new();
    let files = put_apart(&lab, 60);
    let mut cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "node-0");
    assert!(mount.read("d0/file") == files["d0/file"]);
    cluster.master.take().unwrap().kill();
    let _frozen = cluster.worker(0).freeze();
    reads_past_a_silent_worker(&mount, &files);
}

fn a_worker_that_lives_but_does_not_answer_costs_a_second_once() {
    let lab = Lab::new();
    let files = put_apart(&lab, 60);
    // Its heartbeats name an address at which somebody listens who never says a word.
    let cluster = Cluster::start_with(&lab, &[&["--advertise", "127.0.0.2"], &[]]);
    let deaf = TcpListener::bind(("127.0.0.2", cluster.data_port(0))).unwrap();
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    reads_past_a_silent_worker(&mount, &files);
    drop(deaf);
}

fn thousands_of_idle_connections_keep_no_mount_out() {
    let lab = Lab::new();
    let files = put_apart(&lab, 20);
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    // More than a worker takes at once, if as many can be had here.
    let idle = idle_connections(cluster.data_port(0), 4150);
    assert!(!idle.is_empty());
    let start = Instant::now();
    let mount = cluster.mount("set", "elsewhere");
    for (name, content) in files.iter() {
        assert!(mount.read(name) == *content, "{name}");
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(8), "the reads took {took:?}");
    let passed_over = mount.metric("weir_client_failovers_total", "");
    assert!(passed_over < 3.0, "{passed_over} reads were not answered");
}

fn what_a_worker_held_is_read_when_it_is_back_while_the_origin_is_away() {
    let lab = Lab::new();
    let files = put_apart(&lab, 40);
    let mut cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    cluster.weir(&["warm", "set", "--wait"]).ok();
    let mount = cluster.mount("set", "node-1");
    let down = Fault::Status(503, "ServiceUnavailable");
    lab.s3.faults().set([Rule::new(down)]);
    cluster.workers[0].take().unwrap().kill();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (name, content) in files.iter() {
            let mount = &mount;
            scope.spawn(move || assert!(mount.read(name) == *content, "{name}"));
        }
        // The other one is asked in its place, and waits for the origin.
        wait_until("reads wait", Duration::from_secs(20), || {
            cluster.worker(1).metric("weir_origin_waiting_reads", "") > 0.0
        });
        cluster.start_worker(0);
    });
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "the reads took {took:?}");
}

fn a_worker_that_stops_and_starts_again_fails_no_cold_read() {
    let lab = Lab::new();
    let files = put_apart(&lab, 400);
    let mut cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    let stall = Fault::Stall(Duration::from_millis(30));
    lab.s3.faults().set([Rule::new(stall)]);
    let readers = Readers::start(&mount.dir, &files, 4);
    for number in [0, 1, 0] {
        readers.read_more(10);
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
