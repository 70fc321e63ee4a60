//! The plugin, its holder and what serves mounts are killed, stopped and replaced.

use std::path::Path;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use weir_mount::table;
use weir_tests::{Cluster, Lab, Process, Readers, ReadersReport, wait_until};

use super::node::{Files, Node, SOON, compare, fill};
use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "volumes_outlive_the_plugin_and_are_known_after_it",
        volumes_outlive_the_plugin_and_are_known_after_it,
    ),
    (
        "volumes_that_nobody_serves_are_mounted_anew",
        volumes_that_nobody_serves_are_mounted_anew,
    ),
    (
        "the_death_of_either_pod_fails_no_read",
        the_death_of_either_pod_fails_no_read,
    ),
    (
        "a_server_that_is_stopped_in_a_pod_is_replaced_soon",
        a_server_that_is_stopped_in_a_pod_is_replaced_soon,
    ),
    (
        "a_pod_that_is_frozen_keeps_no_reader_waiting",
        a_pod_that_is_frozen_keeps_no_reader_waiting,
    ),
    (
        "a_pod_that_is_killed_while_it_is_frozen_fails_no_read",
        a_pod_that_is_killed_while_it_is_frozen_fails_no_read,
    ),
    (
        "a_holder_without_descriptors_holds_mounts_when_it_has_some_again",
        a_holder_without_descriptors_holds_mounts_when_it_has_some_again,
    ),
    (
        "a_newer_plugin_takes_over_while_volumes_are_read",
        a_newer_plugin_takes_over_while_volumes_are_read,
    ),
    (
        "both_pods_are_replaced_at_once_and_no_read_fails",
        both_pods_are_replaced_at_once_and_no_read_fails,
    ),
    (
        "volumes_whose_pods_both_died_are_mounted_anew",
        volumes_whose_pods_both_died_are_mounted_anew,
    ),
];

/// Longest read that the death of a pod may cause.
const LONGEST: Duration = Duration::from_secs(1);
/// Longest read that a stopped server or a frozen pod may cause: half a second until that is seen, on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(2);

#[track_caller]
fn check(report: &ReadersReport, longest: Duration) {
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.longest < longest, "a read took {:?}", report.longest);
}

/// A volume in pods, which both hold when `case` begins. Nothing of it is left behind.
#[track_caller]
fn in_pods(case: impl FnOnce(&mut Node<'_>, &Files)) {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let mut node = Node::start_in_pods(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    node.wait_until_held_twice();
    case(&mut node, &files);
    node.unpublish("a").unwrap();
    node.is_clean();
}

/// It is read all the time while `case` lasts: no read fails or takes longer than `longest`.
#[track_caller]
fn readers_go_on(longest: Duration, case: impl FnOnce(&mut Node<'_>, &Readers)) {
    in_pods(|node, files| {
        let readers = Readers::start(&node.target("a"), files, 3);
        case(node, &readers);
        check(&readers.finish(), longest);
    });
}

fn volumes_outlive_the_plugin_and_are_known_after_it() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let mut node = Node::start(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    node.publish("b", &[("dataset", "x"), ("path", "train")])
        .unwrap();
    node.kill_plugin();
    compare(&node.target("b"), &files, "train/");
    node.start_plugin();
    node.publish("a", &[("dataset", "x")]).unwrap();
    assert_eq!(node.mounts().len(), 3, "no second layer");
    node.unpublish("a").unwrap();
    compare(&node.target("b"), &files, "train/");
    node.kill_plugin();
    // As if the plugin had died before it ended the mount that nobody uses.
    rustix::mount::unmount(node.target("b"), UnmountFlags::DETACH).unwrap();
    node.start_plugin();
    wait_until("the mount without a volume ends", SOON, || {
        node.mounts().is_empty()
    });
    node.unpublish("b").unwrap();
    node.is_clean();
}

fn volumes_that_nobody_serves_are_mounted_anew() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let mut node = Node::start(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    node.publish("b", &[("dataset", "x"), ("path", "train")])
        .unwrap();
    // As when the plugin's pod is killed.
    node.kill_plugin();
    let mut pids = Vec::new();
    wait_until("all processes are known", SOON, || {
        pids = node.processes();
        pids.len() == 3
    });
    // Stopped first, so that none brings another one back.
    for signal in [Signal::STOP, Signal::KILL] {
        for pid in &pids {
            kill_process(*pid, signal).unwrap();
        }
    }
    node.wait_until_dead("a");
    node.start_plugin();
    for name in ["a", "b"] {
        node.wait_until_served(name);
    }
    compare(&node.target("a"), &files, "");
    compare(&node.target("b"), &files, "train/");
    node.publish("a", &[("dataset", "x")]).unwrap();
    for name in ["a", "b"] {
        let condition = node.stats(name).unwrap().volume_condition.unwrap();
        assert!(!condition.abnormal, "{condition:?}");
        node.unpublish(name).unwrap();
    }
    node.is_clean();
}

fn the_death_of_either_pod_fails_no_read() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let mut node = Node::start_in_pods(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    let device = node.mounts()[0].device.clone();
    let readers = Readers::start(&node.target("a"), &files, 3);
    for _ in 0..3 {
        node.wait_until_held_twice();
        node.kill_plugin();
        readers.read_more(100);
        node.start_plugin();
        node.wait_until_held_twice();
        node.holder.take().unwrap().kill();
        readers.read_more(100);
        node.start_holder();
    }
    node.wait_until_held_twice();
    check(&readers.finish(), LONGEST);
    let same = |entry: &table::Entry| entry.device == device;
    assert!(node.mounts().iter().all(same), "it was mounted once");

    // Volumes come and go while the other pod serves, which may not mount.
    node.kill_plugin();
    node.start_plugin();
    node.publish("b", &[("dataset", "x"), ("path", "train")])
        .unwrap();
    compare(&node.target("b"), &files, "train/");
    assert_eq!(node.mounts().len(), 3);
    node.unpublish("a").unwrap();
    compare(&node.target("b"), &files, "train/");
    node.unpublish("b").unwrap();
    node.is_clean();
    // Nothing is left to be held.
    node.publish("c", &[("dataset", "x")]).unwrap();
    node.wait_until_held_twice();
    node.unpublish("c").unwrap();
    node.is_clean();
}

fn a_server_that_is_stopped_in_a_pod_is_replaced_soon() {
    readers_go_on(WATCHDOG, |node, readers| {
        for _ in 0..2 {
            readers.read_more(50);
            let server = node.server();
            kill_process(server, Signal::STOP).unwrap();
            wait_until("another one serves", SOON, || node.server() != server);
            readers.read_more(50);
        }
    });
}

/// Stops all processes of a pod, or has them go on.
fn signal_all(first: &Process, signal: Signal) {
    for pid in Node::pod(first) {
        let _ = kill_process(pid, signal); // it may have ended
    }
}

fn a_pod_that_is_frozen_keeps_no_reader_waiting() {
    readers_go_on(WATCHDOG, |node, readers| {
        signal_all(node.plugin(), Signal::STOP);
        readers.read_more(100);
        // It goes on, and finds that the other one serves.
        signal_all(node.plugin(), Signal::CONT);
        wait_until("its server ends", SOON, || {
            !Node::pod(node.plugin()).contains(&node.server())
        });
        node.wait_until_held_twice();
        // Now it does not serve.
        signal_all(node.plugin(), Signal::STOP);
        readers.read_more(100);
        signal_all(node.plugin(), Signal::CONT);
        node.wait_until_held_twice();
        // The one that serves since then is frozen, too, and so soon.
        let holder = node.holder.as_ref().unwrap();
        signal_all(holder, Signal::STOP);
        readers.read_more(100);
        signal_all(holder, Signal::CONT);
        node.wait_until_held_twice();
    });
}

fn a_pod_that_is_killed_while_it_is_frozen_fails_no_read() {
    readers_go_on(WATCHDOG, |node, readers| {
        signal_all(node.plugin(), Signal::STOP);
        readers.read_more(100);
        // As kubelet does it in the end.
        node.kill_plugin();
        readers.read_more(100);
        node.start_plugin();
        node.wait_until_held_twice();
        readers.read_more(100);
    });
}

fn a_holder_without_descriptors_holds_mounts_when_it_has_some_again() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let node = Node::start_in_pods(&lab, &cluster);
    let allow = |most: u64| {
        for pid in Node::pod(node.holder.as_ref().unwrap()) {
            let limit = Rlimit {
                current: Some(most),
                ..getrlimit(Resource::Nofile)
            };
            prlimit(Some(pid), Resource::Nofile, limit).unwrap();
        }
    };
    allow(3); // those above stay open, and there are no more
    node.publish("a", &[("dataset", "x")]).unwrap();
    compare(&node.target("a"), &files, "");
    lab.weir(["csi", "ready", "--wait", "1"]).fails(4);
    allow(1024);
    node.wait_until_held_twice();
    node.unpublish("a").unwrap();
    node.is_clean();
}

fn a_newer_plugin_takes_over_while_volumes_are_read() {
    readers_go_on(LONGEST, |node, readers| {
        for _ in 0..2 {
            node.roll(Node::start_newer_plugin);
            readers.read_more(100);
            node.publish("a", &[("dataset", "x")]).unwrap();
            assert_eq!(node.mounts().len(), 2);
        }
        node.wait_until_held_twice();
    });
}

/// As when both DaemonSets are rolled with one command: each pod sees that the other one holds all mounts.
fn both_pods_are_replaced_at_once_and_no_read_fails() {
    readers_go_on(LONGEST, |node, readers| {
        for _ in 0..3 {
            node.wait_until_held_twice();
            let holder = node.start_newer_holder();
            let older = [node.start_newer_plugin(), holder];
            let pods = older.each_ref().map(Node::pod);
            for pod in &pods {
                kill_process(Node::first_process(pod), Signal::TERM).unwrap();
            }
            let lives = |pid: &Pid| Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists();
            wait_until("both have ended", SOON, || {
                !pods.iter().flatten().any(lives)
            });
            drop(older);
            readers.read_more(100);
        }
        node.wait_until_held_twice();
    });
}

fn volumes_whose_pods_both_died_are_mounted_anew() {
    in_pods(|node, files| {
        node.holder.take().unwrap().kill();
        node.kill_plugin();
        node.wait_until_dead("a");
        node.start_plugin();
        node.wait_until_served("a");
        compare(&node.target("a"), files, "");
        node.start_holder();
        node.wait_until_held_twice();
    });
}
