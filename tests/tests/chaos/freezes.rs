//! Processes that are stopped for a while, as a debugger, a full machine or a hung disk does it.

use std::time::Duration;

use rustix::process::{Signal, kill_process};
use weir_tests::wait_until;

use super::table::{Allowed, Outcome, Row};
use super::world::{Effort, to_a_cluster, to_a_mount};

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "the_server_freezes",
        what: "the server of a mount freezes and is replaced",
        allowed: Allowed::Longest(Duration::from_secs(15)),
        run: server,
    },
    Row {
        name: "the_supervisor_freezes_and_the_server_is_killed",
        what: "the supervisor of a mount freezes, and its server is killed",
        allowed: Allowed::Longest(Duration::from_secs(20)),
        run: supervisor,
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

/// A worker that is passed over by its readers, and that stays in the cluster map.
const WORKER_IS_FROZEN: Duration = Duration::from_secs(3);

fn server(effort: Effort) -> Outcome {
    to_a_mount(effort, effort.of(1, 5), |mount, _| {
        let frozen = mount.server();
        kill_process(frozen, Signal::STOP).unwrap();
        wait_until("another server starts", Duration::from_secs(30), || {
            mount.server() != frozen
        });
    })
}

fn supervisor(effort: Effort) -> Outcome {
    to_a_mount(effort, effort.of(1, 5), |mount, _| {
        let (frozen, killed) = (mount.supervisor(), mount.server());
        kill_process(frozen, Signal::STOP).unwrap();
        kill_process(killed, Signal::KILL).unwrap();
        wait_until("others take their places", Duration::from_secs(40), || {
            mount.supervisor() != frozen && mount.server() != killed
        });
    })
}

fn worker(effort: Effort) -> Outcome {
    to_a_cluster(effort, effort.of(2, 10), |cluster, readers, number| {
        let frozen = cluster.worker(number % 2).freeze();
        readers.read_for(WORKER_IS_FROZEN);
        drop(frozen);
        cluster.wait_for_workers(2);
    })
}

fn master(effort: Effort) -> Outcome {
    to_a_cluster(effort, effort.of(1, 3), |cluster, readers, _| {
        let epoch = cluster.status()["epoch"].clone();
        let frozen = cluster.master.as_ref().unwrap().freeze();
        readers.read_for(Duration::from_secs(effort.of(3, 20) as u64));
        drop(frozen);
        cluster.keeps_its_workers(&epoch);
    })
}
