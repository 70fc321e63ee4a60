//! Files of several blocks against the origin's checksum.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_s3_server::{Fault, Kept, Rule};
use weir_tests::{
    BUCKET, Cluster, Lab, Mount, all_right, content, drop_pages, put_big_files, read_at_random,
    verify_under_flips, wait_until,
};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "big_files_are_right_for_good_once_they_were_verified",
        big_files_are_right_for_good_once_they_were_verified,
    ),
    (
        "big_files_of_a_cluster_are_right_for_good_once_they_were_verified",
        big_files_of_a_cluster_are_right_for_good_once_they_were_verified,
    ),
    (
        "what_a_cluster_never_has_right_is_eio_at_all_its_workers",
        what_a_cluster_never_has_right_is_eio_at_all_its_workers,
    ),
    (
        "a_big_file_that_never_has_its_checksum_is_eio",
        a_big_file_that_never_has_its_checksum_is_eio,
    ),
    (
        "an_origin_without_checksums_is_seldom_asked_for_them",
        an_origin_without_checksums_is_seldom_asked_for_them,
    ),
];

const EIO: i32 = 5;
const DEADLINE: Duration = Duration::from_mins(1);
const MIB: usize = 1 << 20;

fn big_files_are_right_for_good_once_they_were_verified() {
    let lab = Lab::new();
    let files = put_big_files(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    verify_under_flips(&lab, &mount, &files);
    for _ in 0..5 {
        drop_pages(files.keys().map(|name| mount.path(name)));
        assert!(all_right(&mount, &files));
    }
}

/// A cluster of three workers, and a mount of it on a node without one.
fn cluster(lab: &Lab) -> (Cluster<'_>, Mount<'_>) {
    let cluster = Cluster::start(lab, 3);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    (cluster, mount)
}

/// Of all workers together.
fn sum(cluster: &Cluster<'_>, name: &str, label: &str) -> f64 {
    (0..3).map(|n| cluster.worker(n).metric(name, label)).sum()
}

fn big_files_of_a_cluster_are_right_for_good_once_they_were_verified() {
    let lab = Lab::new();
    let files = put_big_files(&lab);
    let (cluster, mount) = cluster(&lab);
    let flips = Rule::new(Fault::FlipBit).probability(0.2);
    lab.s3.faults().set([flips]);
    let right = || {
        sum(
            &cluster,
            "weir_worker_files_verified_total",
            "result=\"right\"",
        )
    };
    wait_until("all files are verified", DEADLINE, || {
        all_right(&mount, &files);
        right() > files.len() as f64 - 0.5
    });
    // What is cached now is what counts.
    lab.s3.faults().set([]);
    // The mount hears of it with the cluster map.
    wait_until("the kernel has dropped what was wrong", DEADLINE, || {
        all_right(&mount, &files)
    });
    for _ in 0..5 {
        drop_pages(files.keys().map(|name| mount.path(name)));
        assert!(all_right(&mount, &files));
    }
}

fn what_a_cluster_never_has_right_is_eio_at_all_its_workers() {
    let lab = Lab::new();
    let files = put_big_files(&lab);
    let (cluster, mount) = cluster(&lab);
    lab.s3
        .faults()
        .set([Rule::new(Fault::FlipBit).path("big2")]);
    let refused =
        || std::fs::read(mount.path("big2")).is_err_and(|e| e.raw_os_error() == Some(EIO));
    wait_until("what is never right is refused", DEADLINE, refused);
    // All of its blocks, whose owners are several.
    for offset in (0..files["big2"].len()).step_by(4 * MIB) {
        wait_until("each block is refused", DEADLINE, || {
            read_at_random(&mount.path("big2"), offset as u64, 4096).is_err()
        });
    }
    let given_up = sum(
        &cluster,
        "weir_worker_files_verified_total",
        "result=\"given_up\"",
    );
    assert!(given_up > 0.5, "{given_up}");
    assert!(mount.read("big0") == files["big0"]);
}

fn a_big_file_that_never_has_its_checksum_is_eio() {
    let lab = Lab::new();
    let files = put_big_files(&lab);
    let mount = lab.mount("", &[]);
    lab.s3.faults().set([
        Rule::new(Fault::FlipBit).path("big1"),
        Rule::new(Fault::FlipBit).path("big3"),
    ]);
    for name in ["big1", "big3"] {
        wait_until("what is never right is refused", DEADLINE, || {
            std::fs::read(mount.path(name)).is_err_and(|e| e.raw_os_error() == Some(EIO))
        });
        let log = mount.log();
        let told = |line: &&str| line.contains("refused for 5 minutes") && line.contains(name);
        assert_eq!(log.lines().filter(told).count(), 1, "{log}");
    }
    for name in ["big0", "big2", "big4"] {
        assert!(mount.read(name) == files[name], "{name}");
    }
    let given_up = mount.metric("weir_worker_files_verified_total", "result=\"given_up\"");
    assert!(given_up > 1.5 && given_up < 2.5, "{given_up}");
    assert!(mount.metric("weir_worker_checksum_mismatches_total", "") > 19.5);
}

fn an_origin_without_checksums_is_seldom_asked_for_them() {
    let lab = Lab::new();
    let files: BTreeMap<String, Vec<u8>> = (0..30)
        .map(|n| (format!("f{n:02}"), content(n, 4 * MIB + 1)))
        .collect();
    lab.put_all(&files);
    lab.s3.edit(BUCKET, |bucket| {
        for name in files.keys() {
            bucket.keep_checksum(name, Kept::Nothing);
        }
    });
    let mount = lab.mount("", &["--mem", "0"]);
    for (name, content) in &files {
        assert!(mount.read(name) == *content, "{name}");
    }
    let without = || mount.metric("weir_worker_files_verified_total", "result=\"no_checksum\"");
    wait_until("it is known that there is none", DEADLINE, || {
        without() > 15.5
    });
    // Each is asked for while the answer to the one before is under way, at most.
    let heads = lab.s3.stats().heads();
    assert!((16..30).contains(&heads), "{heads}");
}
