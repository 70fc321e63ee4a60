//! Processes that are stopped for a while, as a debugger, a full machine or a hung disk does it.

use std::time::Duration;

use rustix::process::{Signal, kill_process};
use weir_tests::{Lab, wait_until};

use super::table::{Allowed, Outcome, Row};
use super::world::{Effort, cluster, fill, mount_of, under_readers};

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "the_server_freezes",
        what: "the server of a mount freezes and is replaced",
        allowed: Allowed::Longest(Duration::from_secs(15)),
        run: server,
    },
    Row {
        name: "a_worker_freezes",
        what: "one of two workers freezes for 3 s",
        allowed: Allowed::Longest(Duration::from_secs(4)),
        run: worker,
    },
    Row {
        name: "the_master_freezes",
        what: "the master freezes for 20 s (a short run: 3 s)",
        allowed: Allowed::Longest(Duration::from_secs(3)),
        run: master,
    },
];

fn server(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    let times = (effort.of(1, 5), effort.pause());
    under_readers(&mount, &files, times, |_| {
        let frozen = mount.server();
        kill_process(frozen, Signal::STOP).unwrap();
        wait_until("another server starts", Duration::from_secs(30), || {
            mount.server() != frozen
        });
    })
}

fn worker(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = cluster(&lab);
    let mount = mount_of(&lab, &cluster);
    let times = (effort.of(2, 10), effort.pause());
    under_readers(&mount, &files, times, |number| {
        let worker = cluster.worker(number % 2);
        worker.signal(Signal::STOP);
        std::thread::sleep(Duration::from_secs(3));
        worker.signal(Signal::CONT);
        cluster.wait_for_workers(2);
    })
}

fn master(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = cluster(&lab);
    let mount = mount_of(&lab, &cluster);
    let times = (effort.of(1, 3), effort.pause());
    let epoch = cluster.status()["epoch"].clone();
    under_readers(&mount, &files, times, |_| {
        let master = cluster.master.as_ref().unwrap();
        master.signal(Signal::STOP);
        std::thread::sleep(Duration::from_secs(effort.of(3, 20) as u64));
        master.signal(Signal::CONT);
        cluster.keeps_its_workers(&epoch);
    })
}
