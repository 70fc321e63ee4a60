//! Processes that are killed.

use std::time::Duration;

use rustix::process::{Signal, kill_process};
use weir_tests::wait_until;

use super::table::{Allowed, Outcome, Row};
use super::world::{Effort, to_a_cluster, to_a_mount};

const ANOTHER_STARTS: Duration = Duration::from_secs(15);

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "the_server_is_killed",
        what: "the server of a mount is killed, under cold reads",
        allowed: Allowed::Longest(Duration::from_secs(3)),
        run: server,
    },
    Row {
        name: "the_supervisor_is_killed",
        what: "the supervisor of a mount is killed, under cold reads",
        allowed: Allowed::Longest(Duration::from_secs(3)),
        run: supervisor,
    },
    Row {
        name: "the_holder_is_killed",
        what: "the holder of a mount is killed, under cold reads",
        allowed: Allowed::Longest(Duration::from_secs(3)),
        run: holder,
    },
    Row {
        name: "server_and_supervisor_are_killed",
        what: "server and supervisor of a mount are killed 0 to 4 ms apart, under cold reads",
        allowed: Allowed::Longest(Duration::from_secs(3)),
        run: server_and_supervisor,
    },
    Row {
        name: "a_worker_is_killed",
        what: "one of two workers is killed and started again",
        allowed: Allowed::Longest(Duration::from_secs(4)),
        run: worker,
    },
    Row {
        name: "a_worker_is_stopped",
        what: "one of two workers is stopped (SIGTERM) and started again",
        allowed: Allowed::Longest(Duration::from_secs(4)),
        run: stopped_worker,
    },
    Row {
        name: "the_master_is_killed",
        what: "the master is killed and started again",
        allowed: Allowed::Longest(Duration::from_secs(3)),
        run: master,
    },
];

fn server(effort: Effort) -> Outcome {
    to_a_mount(effort, times(effort), |mount, _| {
        let old = mount.kill_server();
        wait_until("another server starts", ANOTHER_STARTS, || {
            mount.server() != old
        });
    })
}

fn supervisor(effort: Effort) -> Outcome {
    to_a_mount(effort, times(effort), |mount, _| {
        let old = mount.supervisor();
        kill_process(old, Signal::KILL).unwrap();
        wait_until("another supervisor starts", ANOTHER_STARTS, || {
            mount.supervisor() != old
        });
    })
}

fn holder(effort: Effort) -> Outcome {
    to_a_mount(effort, times(effort), |mount, _| {
        let old = mount.holder();
        kill_process(old, Signal::KILL).unwrap();
        wait_until("another holder starts", ANOTHER_STARTS, || {
            mount.holder() != old
        });
    })
}

fn server_and_supervisor(effort: Effort) -> Outcome {
    to_a_mount(effort, times(effort), |mount, number| {
        let killed = [mount.server(), mount.supervisor()];
        let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
        kill_process(killed[order[0]], Signal::KILL).unwrap();
        // What one may still do in that time for the other is what this is about.
        std::thread::sleep(Duration::from_millis(number as u64 / 2 % 5));
        // It may have ended with the other one.
        let _ = kill_process(killed[order[1]], Signal::KILL);
        wait_until("others take their places", ANOTHER_STARTS, || {
            let now = [mount.server(), mount.supervisor()];
            now.iter().all(|pid| !killed.contains(pid))
        });
    })
}

fn worker(effort: Effort) -> Outcome {
    to_a_cluster(effort, times(effort), |cluster, _, number| {
        let number = number % 2;
        cluster.workers[number].take().unwrap().kill();
        cluster.start_worker(number);
        cluster.wait_for_workers(2);
    })
}

fn stopped_worker(effort: Effort) -> Outcome {
    to_a_cluster(effort, times(effort), |cluster, _, number| {
        let number = number % 2;
        let stopping = cluster.workers[number].take().unwrap();
        stopping.signal(Signal::TERM);
        // Its successor does not wait for its end.
        cluster.start_worker(number);
        drop(stopping);
        cluster.wait_for_workers(2);
    })
}

fn master(effort: Effort) -> Outcome {
    to_a_cluster(effort, times(effort), |cluster, readers, _| {
        cluster.master.take().unwrap().kill();
        readers.read_for(effort.pause());
        cluster.start_master();
    })
}

fn times(effort: Effort) -> usize {
    effort.of(3, 20)
}
