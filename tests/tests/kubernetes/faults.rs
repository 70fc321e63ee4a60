//! A pod that reads and compares all the while that something happens to Weir's pods.
//!
//! It reads past the kernel's page cache (O_DIRECT), so that each read asks a server.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use weir_demo::ending::tell;
use weir_tests::wait_until;

use crate::Case;
use crate::kubernetes::installation::{Installation, NAMESPACE, NODES};
use crate::kubernetes::objects::{kubectl, nothing_serves};
use crate::kubernetes::pools::standing;
use crate::kubernetes::volumes::{create, inline, pod, with_expected};

pub(crate) const CASES: &[Case] = &[
    ("a_worker_is_killed", a_worker_is_killed),
    ("the_workers_are_rolled", the_workers_are_rolled),
    ("the_master_is_replaced", the_master_is_replaced),
    ("the_operators_are_killed", the_operators_are_killed),
    ("kubelet_is_restarted", kubelet_is_restarted),
    ("a_node_is_drained", a_node_is_drained),
    (
        "a_plugin_and_its_holder_are_killed_in_turn",
        a_plugin_and_its_holder_are_killed_in_turn,
    ),
    (
        "plugins_and_holders_are_rolled_at_once",
        plugins_and_holders_are_rolled_at_once,
    ),
    (
        "the_processes_of_a_mount_are_killed",
        the_processes_of_a_mount_are_killed,
    ),
    (
        "a_pod_that_holds_mounts_is_frozen",
        a_pod_that_holds_mounts_is_frozen,
    ),
    (
        "both_pods_that_hold_mounts_die_at_once",
        both_pods_that_hold_mounts_die_at_once,
    ),
];

/// Longest wait for what follows a change.
const SOON: Duration = Duration::from_mins(2);
/// Files that are read before something happens, and after it is over.
const SOME: u64 = 40;
/// No read may take so long, also where a debug build shares two cores with other things; the aim is a second on a quiet machine.
const LONGEST_READ: Duration = Duration::from_secs(5);
const OPERATORS_ARE_BACK: [&str; 4] = [
    "rollout",
    "status",
    "deploy/weir-operator",
    "--timeout=100s",
];
/// Prints how many files it has read and the longest of these reads in hundredths of a second, until the file `/tmp/stop` is there.
const READER: &str = r"
cd /expected; n=0; most=0
while [ ! -e /tmp/stop ]; do
  for f in $(find . -type f); do
    [ ! -e /tmp/stop ] || break
    read before rest </proc/uptime
    dd if=/data/$f bs=1M iflag=direct 2>/tmp/error | cmp - $f || { echo wrong: $f; cat /tmp/error; exit 1; }
    read after rest </proc/uptime
    took=$(( ${after%.*}${after#*.} - ${before%.*}${before#*.} ))
    [ $took -le $most ] || most=$took
    n=$((n + 1)); echo $n $most
  done
done";

/// A pod that reads the dataset until it is asked what it saw.
pub(crate) struct Reader<'a> {
    weir: &'a Installation,
    name: &'a str,
}

impl<'a> Reader<'a> {
    fn start(weir: &'a Installation, name: &'a str, node: usize) -> Self {
        create(weir, name);
        let objects = weir.cluster.scratch.path("objects");
        Self::of(weir, name, node, &objects)
    }

    /// Reads the dataset of its name, whose files are in `expected`.
    pub(crate) fn of(weir: &'a Installation, name: &'a str, node: usize, expected: &Path) -> Self {
        let volume = inline(&format!("dataset: {name}"));
        let pod = pod(weir, name, node, &volume, READER);
        weir.cluster.apply(&with_expected(weir, &pod, expected));
        let reader = Self { weir, name };
        reader.wait_for(SOME);
        reader
    }

    /// Files read, and the longest read of one. It must have read them all right.
    #[track_caller]
    pub(crate) fn seen(&self) -> (u64, Duration) {
        let log = self.weir.cluster.kubectl(&["logs", self.name, "--tail=6"]);
        let log = log.stdout;
        assert!(!log.contains("wrong: "), "{}: {log}", self.name);
        let last = log.lines().last().unwrap_or_default();
        let mut numbers = last
            .split_whitespace()
            .map_while(|word| word.parse::<u64>().ok());
        let (count, most) = (numbers.next(), numbers.next());
        (
            count.unwrap_or(0),
            Duration::from_millis(10 * most.unwrap_or(0)),
        )
    }

    /// Waits until it has read so many files more.
    #[track_caller]
    fn wait_for(&self, more: u64) {
        let before = self.seen().0;
        wait_until("the pod reads on", SOON, || self.seen().0 >= before + more);
    }

    /// Ends it: it must have read without an error or a wrong byte. Gives its longest read.
    #[track_caller]
    pub(crate) fn end(self) -> Duration {
        self.wait_for(SOME);
        let cluster = &self.weir.cluster;
        cluster
            .kubectl(&["exec", self.name, "--", "touch", "/tmp/stop"])
            .ok();
        cluster.wait_for_end(self.name);
        let (count, most) = self.seen();
        tell(format_args!(
            "{}: {count} files, longest read {most:?}",
            self.name
        ));
        cluster
            .kubectl(&["delete", "pod", self.name, "--timeout=60s"])
            .ok();
        let dataset = format!("default/{}", self.name);
        self.weir.weir(&["dataset", "delete", &dataset]).ok();
        assert!(most < LONGEST_READ, "{}: {most:?}", self.name);
        most
    }
}

/// `kubectl` in Weir's namespace.
fn system(weir: &Installation, args: &[&str]) -> String {
    kubectl(weir, NAMESPACE, args)
}

pub(crate) fn wait_for_workers(weir: &Installation) {
    wait_until("all workers are back", SOON, || {
        let status = weir.status();
        status["workers"]
            .as_array()
            .is_some_and(|all| all.len() == NODES)
    });
}

fn a_worker_is_killed(weir: &Installation) {
    let reader = Reader::start(weir, "killed", 1);
    for node in 1..=NODES {
        let on = format!("--field-selector=spec.nodeName=node-{node}");
        let label = "--selector=app.kubernetes.io/component=worker";
        system(
            weir,
            &["delete", "pod", label, &on, "--grace-period=0", "--force"],
        );
        system(
            weir,
            &["rollout", "status", "ds/weir-worker", "--timeout=100s"],
        );
        wait_for_workers(weir);
        reader.wait_for(SOME);
    }
    reader.end();
}

fn the_workers_are_rolled(weir: &Installation) {
    let reader = Reader::start(weir, "rolled", 2);
    system(weir, &["rollout", "restart", "ds/weir-worker"]);
    system(
        weir,
        &["rollout", "status", "ds/weir-worker", "--timeout=100s"],
    );
    wait_for_workers(weir);
    reader.end();
}

fn the_master_is_replaced(weir: &Installation) {
    let reader = Reader::start(weir, "headless", 1);
    system(weir, &["delete", "pod", "weir-master-0"]);
    reader.wait_for(SOME);
    system(
        weir,
        &["rollout", "status", "sts/weir-master", "--timeout=100s"],
    );
    wait_for_workers(weir);
    reader.end();
}

/// All of them: their processes, and then their pods.
fn the_operators_are_killed(weir: &Installation) {
    let reader = Reader::start(weir, "unattended", 2);
    let operators = "--selector=app.kubernetes.io/component=operator";
    let kill = ["pkill", "-KILL", "-f", "weir operator"];
    weir.cluster.exec(&kill).ok();
    wait_until("kubelet has started them again", SOON, || {
        let counts = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
        let counts = kubectl(weir, NAMESPACE, &["get", "pods", operators, "-o", counts]);
        !counts.is_empty() && counts.split_whitespace().all(|count| count != "0")
    });
    system(weir, &OPERATORS_ARE_BACK);
    let delete = ["delete", "pod", operators, "--grace-period=0", "--force"];
    system(weir, &delete);
    system(weir, &OPERATORS_ARE_BACK);
    reader.end();
}

fn kubelet_is_restarted(weir: &Installation) {
    let reader = Reader::start(weir, "kubelet", 2);
    weir.cluster.lab(&["restart", "kubelet", "2"]).ok();
    let ready = [
        "wait",
        "--for=condition=Ready",
        "node/node-2",
        "--timeout=60s",
    ];
    weir.cluster.kubectl(&ready).ok();
    reader.end();
}

/// The reader is on the other one. Cordoning it has its worker drained, which kubectl passes over.
fn a_node_is_drained(weir: &Installation) {
    let reader = Reader::start(weir, "drained", 1);
    let drain = ["drain", "node-2", "--ignore-daemonsets", "--timeout=100s"];
    let also = ["--delete-emptydir-data", "--force"];
    weir.cluster.kubectl(&[&drain[..], &also].concat()).ok();
    wait_until("its worker is drained", SOON, || {
        standing(weir, "node-2") == "drained"
    });
    reader.wait_for(SOME);
    weir.cluster.kubectl(&["uncordon", "node-2"]).ok();
    wait_until("it owns blocks again", SOON, || {
        standing(weir, "node-2") == "active"
    });
    system(weir, &OPERATORS_ARE_BACK);
    reader.end();
}

/// Waits until every mount is held by two pods again.
pub(crate) fn wait_for_holders(weir: &Installation) {
    for workload in ["ds/weir-plugin", "ds/weir-holder"] {
        system(weir, &["rollout", "status", workload, "--timeout=100s"]);
    }
}

fn a_plugin_and_its_holder_are_killed_in_turn(weir: &Installation) {
    let reader = Reader::start(weir, "held", 1);
    wait_for_holders(weir);
    for component in ["plugin", "holder", "plugin"] {
        let label = format!("--selector=app.kubernetes.io/component={component}");
        let on = "--field-selector=spec.nodeName=node-1";
        system(
            weir,
            &["delete", "pod", &label, on, "--grace-period=0", "--force"],
        );
        reader.wait_for(SOME);
        wait_for_holders(weir);
    }
    reader.end();
}

fn plugins_and_holders_are_rolled_at_once(weir: &Installation) {
    let reader = Reader::start(weir, "surge", 2);
    wait_for_holders(weir);
    system(
        weir,
        &["rollout", "restart", "ds/weir-plugin", "ds/weir-holder"],
    );
    wait_for_holders(weir);
    reader.end();
}

/// The processes of a pod of the first node, with their names; they are found by its control group.
fn processes(weir: &Installation, label: &str) -> Vec<(Pid, String)> {
    let on = "--field-selector=spec.nodeName=node-1";
    let uid = "jsonpath={.items[0].metadata.uid}";
    let uid = system(weir, &["get", "pod", label, on, "-o", uid]);
    let group = format!("/pod{uid}/");
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let inside = all.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
        let is_inside = read("cgroup")?.contains(&group);
        is_inside.then(|| Some((pid, read("comm")?.trim().to_owned())))?
    });
    inside.collect()
}

/// One after the other, as the OOM killer does it.
fn the_processes_of_a_mount_are_killed(weir: &Installation) {
    let reader = Reader::start(weir, "processes", 1);
    for name in ["weir-serve", "weir-mount", "weir-hold", "weir-serve"] {
        wait_for_holders(weir);
        let is_meant = |(_, own): &&(Pid, String)| own == name;
        let mut killed = 0;
        for component in ["plugin", "holder"] {
            let label = format!("--selector=app.kubernetes.io/component={component}");
            for (pid, _) in processes(weir, &label).iter().filter(is_meant) {
                killed += usize::from(kill_process(*pid, Signal::KILL).is_ok());
            }
        }
        assert!(killed > 0, "there is no {name}");
        reader.wait_for(SOME);
    }
    reader.end();
}

/// Kubelet ends it by its liveness probe; its readers do not wait for that.
fn a_pod_that_holds_mounts_is_frozen(weir: &Installation) {
    let reader = Reader::start(weir, "frozen", 1);
    wait_for_holders(weir);
    for component in ["plugin", "holder"] {
        let label = format!("--selector=app.kubernetes.io/component={component}");
        let on = "--field-selector=spec.nodeName=node-1";
        let restarts = || {
            let count = "jsonpath={.items[0].status.containerStatuses[0].restartCount}";
            system(weir, &["get", "pod", &label, on, "-o", count])
        };
        let (before, begun) = (restarts(), Instant::now());
        let stopped = processes(weir, &label);
        assert!(stopped.len() > 3, "{stopped:?}");
        for (pid, _) in stopped {
            let _ = kill_process(pid, Signal::STOP); // it may have ended
        }
        reader.wait_for(SOME);
        wait_until("kubelet has started it again", SOON, || {
            restarts() != before
        });
        tell(format_args!(
            "kubelet started the {component} again after {:?}",
            begun.elapsed()
        ));
        wait_for_holders(weir);
        reader.wait_for(SOME);
    }
    reader.end();
}

/// What no survivor is left for: new pods get a mount of their own, and nothing of the dead one stays.
fn both_pods_that_hold_mounts_die_at_once(weir: &Installation) {
    create(weir, "orphaned");
    let cluster = &weir.cluster;
    let volume = inline("dataset: orphaned");
    cluster.apply(&pod(weir, "before", 1, &volume, "exec sleep 3600"));
    let ready = ["wait", "--for=condition=Ready", "pod/before"];
    cluster.kubectl(&ready).ok();
    wait_for_holders(weir);
    let labels = ["plugin", "holder"]
        .map(|component| format!("--selector=app.kubernetes.io/component={component}"));
    let all = labels.iter().flat_map(|label| processes(weir, label));
    let all: Vec<_> = all.collect();
    assert!(all.len() > 6, "{all:?}");
    // Stopped first, so that none brings another one back.
    for signal in [Signal::STOP, Signal::KILL] {
        for (pid, _) in &all {
            let _ = kill_process(*pid, signal); // it may have ended
        }
    }
    let compare = "diff -r /expected /data";
    cluster.apply(&pod(weir, "after", 1, &volume, compare));
    cluster.wait_for_end("after");
    wait_for_holders(weir);
    let delete = ["delete", "pod", "before", "after", "--timeout=60s"];
    cluster.kubectl(&delete).ok();
    weir.weir(&["dataset", "delete", "default/orphaned"]).ok();
    nothing_serves(weir, "orphaned");
}
