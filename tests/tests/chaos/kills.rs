//! Processes that are killed.

use std::time::Duration;

use rustix::process::{Signal, kill_process};
use weir_tests::{Lab, wait_until};

use super::table::{Allowed, Outcome, Row};
use super::world::{Effort, cluster, fill, mount_of, under_readers};

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
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    let times = (effort.of(3, 20), effort.pause());
    under_readers(&mount, &files, times, |_| {
        let old = mount.kill_server();
        wait_until("another server starts", ANOTHER_STARTS, || {
            mount.server() != old
        });
    })
}

fn supervisor(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    let times = (effort.of(3, 20), effort.pause());
    under_readers(&mount, &files, times, |_| {
        let old = mount.supervisor();
        kill_process(old, Signal::KILL).unwrap();
        wait_until("another supervisor starts", ANOTHER_STARTS, || {
            mount.supervisor() != old
        });
    })
}

fn server_and_supervisor(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    let times = (effort.of(3, 20), effort.pause());
    under_readers(&mount, &files, times, |number| {
        let killed = [mount.server(), mount.supervisor()];
        let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
        kill_process(killed[order[0]], Signal::KILL).unwrap();
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
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = cluster(&lab);
    let mount = mount_of(&lab, &cluster);
    let times = (effort.of(3, 20), effort.pause());
    under_readers(&mount, &files, times, |number| {
        let number = number % 2;
        cluster.workers[number].take().unwrap().kill();
        cluster.start_worker(number);
        cluster.wait_for_workers(2);
    })
}

fn stopped_worker(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = cluster(&lab);
    let mount = mount_of(&lab, &cluster);
    let times = (effort.of(3, 20), effort.pause());
    under_readers(&mount, &files, times, |number| {
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
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = cluster(&lab);
    let mount = mount_of(&lab, &cluster);
    let times = (effort.of(3, 20), effort.pause());
    under_readers(&mount, &files, times, |_| {
        cluster.master.take().unwrap().kill();
        std::thread::sleep(effort.pause());
        cluster.start_master();
    })
}
