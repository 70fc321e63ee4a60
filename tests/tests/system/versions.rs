//! Two versions beside each other, as while one follows the other, and when the newer one is taken back.
//!
//! `WEIR_TEST_VERSIONS` names the program of an earlier version, which `make test-versions` builds; without it there is nothing to be tested.

use std::path::PathBuf;

use rustix::process::{Signal, kill_process};
use weir_demo::ending::tell;
use weir_tests::{Cluster, Lab, Mount, Readers, wait_until};

use crate::Case;
use crate::system::cluster::{self, Files, read_epoch, total};
use crate::system::crash::runs_image_of;
use crate::system::csi::node::{self, Node};
use crate::system::growing::{mount_cached, until_mapped};
use crate::system::restarts::{self, REPLACED};

/// Names the program of an earlier version.
const PROGRAM: &str = "WEIR_TEST_VERSIONS";

pub(crate) const CASES: &[Case] = &[
    (
        "masters_workers_and_clients_of_two_versions_go_together",
        masters_workers_and_clients_of_two_versions_go_together,
    ),
    (
        "what_one_version_has_stored_the_other_reads",
        what_one_version_has_stored_the_other_reads,
    ),
    (
        "a_cluster_that_changes_its_version_fails_no_read",
        a_cluster_that_changes_its_version_fails_no_read,
    ),
    (
        "workers_of_either_version_hand_their_blocks_to_the_other",
        workers_of_either_version_hand_their_blocks_to_the_other,
    ),
    (
        "a_mount_that_changes_its_version_fails_no_cold_read",
        a_mount_that_changes_its_version_fails_no_cold_read,
    ),
    (
        "a_mount_of_a_cluster_that_changes_its_version_fails_no_cold_read",
        a_mount_of_a_cluster_that_changes_its_version_fails_no_cold_read,
    ),
    (
        "pods_of_a_node_that_change_their_version_fail_no_read",
        pods_of_a_node_that_change_their_version_fail_no_read,
    ),
];

/// A version's name, and its program.
#[derive(Clone, Debug)]
struct Version {
    name: &'static str,
    program: PathBuf,
}

/// The earlier version, and the one under test.
fn versions() -> Option<[Version; 2]> {
    let Some(program) = std::env::var_os(PROGRAM).filter(|program| !program.is_empty()) else {
        tell(format_args!(
            "no other version is there: `make test-versions` builds one"
        ));
        return None;
    };
    let version = |name, program| Version { name, program };
    let new = Lab::new().binary();
    Some([version("old", program.into()), version("new", new)])
}

/// From one to the other, both ways.
fn changes() -> Vec<[Version; 2]> {
    let both = versions();
    both.into_iter()
        .flat_map(|[old, new]| [[old.clone(), new.clone()], [new, old]])
        .collect()
}

/// Stops a worker and starts it with another program; waits until it takes part again.
fn change_worker(lab: &Lab, cluster: &mut Cluster<'_>, number: usize, to: &Version) {
    let workers = cluster.workers.len();
    cluster.workers[number].take().unwrap().stop();
    cluster.wait_for_workers(workers - 1);
    lab.use_binary(&to.program);
    cluster.start_worker(number);
    cluster.wait_for_workers(workers);
}

/// The same of the master.
fn change_master(lab: &Lab, cluster: &mut Cluster<'_>, to: &Version) {
    cluster.master.take().unwrap().stop();
    lab.use_binary(&to.program);
    cluster.start_master();
    cluster.wait_for_workers(cluster.workers.len());
}

fn masters_workers_and_clients_of_two_versions_go_together() {
    for [one, other] in changes() {
        for secure in [false, true] {
            // Each part is once the only one of its version.
            for [master, workers, client] in [
                [&other, &one, &one],
                [&one, &other, &one],
                [&one, &one, &other],
            ] {
                tell(format_args!(
                    "master {}, workers {}, client {}, certificates {secure}",
                    master.name, workers.name, client.name
                ));
                let lab = Lab::new();
                let files = cluster::fill(&lab);
                lab.use_binary(&workers.program);
                let mut cluster = Cluster::start_either(&lab, 2, secure);
                change_master(&lab, &mut cluster, master);
                lab.use_binary(&client.program);
                let (mount, sent) = mount_cached(&lab, &cluster, &files);
                assert_eq!(sent, total(&files));
                read_epoch(&mount, &files);
                mount.unmount();
                // Over the worker's socket, and by descriptors of its files.
                let near = cluster.mount("set", "node-0");
                read_epoch(&near, &files);
                near.unmount();
                assert_eq!(lab.s3.stats().bytes(), sent, "the origin sent bytes again");
            }
        }
    }
}

/// Waits until the workers have written all blocks to their disks.
fn until_stored(cluster: &Cluster<'_>, files: &Files) {
    const BLOCK: usize = 4 << 20;
    let blocks: usize = files
        .values()
        .map(|content| content.len().div_ceil(BLOCK))
        .sum();
    let stored = |number| {
        let worker = cluster.worker(number);
        worker.metric("weir_worker_tier_blocks", "tier=\"ssd\"") as usize
    };
    wait_until("all blocks are on disk", REPLACED, || {
        (0..cluster.workers.len()).map(stored).sum::<usize>() >= blocks
    });
}

fn what_one_version_has_stored_the_other_reads() {
    for [from, to] in changes() {
        let order = format!("{} after {}", to.name, from.name);
        let lab = Lab::new();
        let files = cluster::fill(&lab);
        // What the origin has sent when all was read.
        let sent_for = |mount: Mount<'_>| {
            read_epoch(&mount, &files);
            mount.unmount();
            lab.s3.stats().bytes()
        };
        lab.use_binary(&from.program);
        let mut cluster = Cluster::start(&lab, 2);
        let (mount, sent) = mount_cached(&lab, &cluster, &files);
        until_stored(&cluster, &files);
        mount.unmount();
        for worker in &mut cluster.workers {
            worker.take().unwrap().stop();
        }
        cluster.master.take().unwrap().stop();
        lab.use_binary(&to.program);
        cluster.start_master();
        for number in 0..2 {
            cluster.start_worker(number);
        }
        cluster.wait_for_workers(2);
        assert_eq!(sent_for(cluster.mount("set", "elsewhere")), sent, "{order}");
        // What a mount keeps for itself.
        lab.use_binary(&from.program);
        let sent = sent_for(lab.mount("", &[]));
        lab.use_binary(&to.program);
        assert_eq!(sent_for(lab.mount("", &[])), sent, "{order}");
    }
}

fn a_cluster_that_changes_its_version_fails_no_read() {
    for [from, to] in changes() {
        let lab = Lab::new();
        let files = cluster::fill(&lab);
        lab.use_binary(&from.program);
        let mut cluster = Cluster::start_secure(&lab, 3);
        let (mount, _) = mount_cached(&lab, &cluster, &files);
        let readers = Readers::start(&mount.dir, &files, 2);
        for number in 0..3 {
            change_worker(&lab, &mut cluster, number, &to);
            until_mapped(&cluster, &mount);
            readers.read_more(20);
        }
        change_master(&lab, &mut cluster, &to);
        until_mapped(&cluster, &mount);
        readers.read_more(20);
        restarts::check(&readers.finish(), 80);
        mount.unmount();
    }
}

fn workers_of_either_version_hand_their_blocks_to_the_other() {
    for [one, other] in changes() {
        let lab = Lab::new();
        let files = cluster::fill(&lab);
        lab.use_binary(&one.program);
        let mut cluster = Cluster::start_secure(&lab, 2);
        let (mount, sent) = mount_cached(&lab, &cluster, &files);
        // A newcomer of the other version takes its share over, and gives it back when it is drained.
        lab.use_binary(&other.program);
        let new = cluster.add_worker();
        cluster.wait_for_workers(3);
        until_mapped(&cluster, &mount);
        read_epoch(&mount, &files);
        let copied = |number: usize| {
            let worker = cluster.worker(number);
            worker.metric("weir_worker_copied_bytes_total", "")
        };
        assert!(
            copied(new) > 0.0,
            "{} took nothing from {}",
            other.name,
            one.name
        );
        cluster
            .weir(&["worker", "drain", &format!("node-{new}"), "--wait"])
            .ok();
        until_mapped(&cluster, &mount);
        read_epoch(&mount, &files);
        assert_eq!(
            lab.s3.stats().bytes(),
            sent,
            "the origin sent bytes again while {} came and went",
            other.name
        );
        mount.unmount();
    }
}

/// Reads while a mount becomes one of the other version, in turns, and each time one of its processes is killed.
fn change_mount(
    lab: &Lab,
    files: &restarts::Files,
    mount: &Mount<'_>,
    again: &[&str],
    versions: &[Version; 2],
) {
    let readers = Readers::start(&mount.dir, files, 4);
    for round in 0..6 {
        let to = &versions[(round + 1) % 2];
        readers.read_more(20);
        lab.use_binary(&to.program);
        lab.weir(again).ok();
        for process in [Mount::server, Mount::supervisor] {
            wait_until("the other version runs", REPLACED, || {
                runs_image_of(process(mount), &to.program)
            });
        }
        readers.read_more(20);
        let process = [Mount::server, Mount::supervisor, Mount::holder][round % 3];
        let killed = process(mount);
        kill_process(killed, Signal::KILL).unwrap();
        wait_until("another one takes its place", REPLACED, || {
            process(mount) != killed
        });
    }
    readers.read_more(20);
    restarts::check(&readers.finish(), 20);
}

fn a_mount_that_changes_its_version_fails_no_cold_read() {
    for versions in changes() {
        let lab = Lab::new();
        let files = restarts::fill(&lab);
        lab.use_binary(&versions[0].program);
        let mount = lab.mount("", &["--mem", "0"]);
        let (url, dir, endpoint) = (lab.url(""), mount.dir.to_str().unwrap(), lab.s3.endpoint());
        let origin = ["--endpoint", &endpoint, "--anonymous", "--mem", "0"];
        let again = [&["mount", &url, dir][..], &origin].concat();
        change_mount(&lab, &files, &mount, &again, &versions);
        mount.unmount();
    }
}

fn a_mount_of_a_cluster_that_changes_its_version_fails_no_cold_read() {
    for versions in changes() {
        let lab = Lab::new();
        let files = restarts::fill(&lab);
        lab.use_binary(&versions[1].program);
        let cluster = Cluster::start(&lab, 2);
        cluster.create_dataset("set");
        let address = cluster.address();
        for node in ["node-0", "elsewhere"] {
            lab.use_binary(&versions[0].program);
            let mount = cluster.mount("set", node);
            let dir = mount.dir.to_str().unwrap();
            let again = ["mount", "set", dir, "--master", &address, "--node", node];
            let again = [&again[..], &["--allow-endpoint", "127.0.0.1"]].concat();
            change_mount(&lab, &files, &mount, &again, &versions);
            mount.unmount();
        }
    }
}

fn pods_of_a_node_that_change_their_version_fail_no_read() {
    for versions in changes() {
        let lab = Lab::new();
        for version in &versions {
            lab.use_binary(&version.program);
            if lab.weir(["csi", "holder", "--help"]).code != 0 {
                let name = version.name;
                tell(format_args!("the {name} version has no node plugin"));
                return;
            }
        }
        lab.use_binary(&versions[0].program);
        let cluster = Cluster::start(&lab, 1);
        let files = node::fill(&lab, &cluster);
        let mut node = Node::start_in_pods(&lab, &cluster);
        node.publish("a", &[("dataset", "x")]).unwrap();
        node.wait_until_held_twice();
        let readers = Readers::start(&node.target("a"), &files, 3);
        // There, back, and there again: the plugin first, as the chart's order is, and the holder first.
        for round in 0..3 {
            lab.use_binary(&versions[(round + 1) % 2].program);
            let pods = [Node::start_newer_plugin, Node::start_newer_holder];
            for pod in [pods[round % 2], pods[(round + 1) % 2]] {
                node.roll(pod);
                readers.read_more(100);
            }
            node.publish("a", &[("dataset", "x")]).unwrap();
        }
        node.wait_until_held_twice();
        restarts::check(&readers.finish(), 600);
        node.unpublish("a").unwrap();
        node.is_clean();
    }
}
