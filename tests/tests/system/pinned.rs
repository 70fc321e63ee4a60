//! A mount outlives its dataset and its snapshot at the master.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_tests::{BUCKET, Cluster, Lab, Mount, content, drop_pages, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_mount_goes_on_after_its_dataset_was_deleted_and_its_server_killed",
        a_mount_goes_on_after_its_dataset_was_deleted_and_its_server_killed,
    ),
    (
        "a_mount_goes_on_after_its_snapshot_was_dropped_and_its_server_killed",
        a_mount_goes_on_after_its_snapshot_was_dropped_and_its_server_killed,
    ),
    (
        "a_mount_of_a_cluster_goes_on_after_its_dataset_was_deleted",
        a_mount_of_a_cluster_goes_on_after_its_dataset_was_deleted,
    ),
];

/// A master keeps so many snapshots of a dataset.
const SNAPSHOTS: u64 = 64;

type Files = BTreeMap<String, Vec<u8>>;

fn fill(lab: &Lab) -> Files {
    let files: Files = (0..20)
        .map(|n| (format!("d{}/f{n}", n % 2), content(n, 50_000)))
        .collect();
    lab.put_all(&files);
    files
}

/// Kills the server, and reads everything: what was read before from the cache, the rest from the origin.
#[track_caller]
fn kill_and_check(mount: &Mount<'_>, files: &Files) {
    for _ in 0..2 {
        let old = mount.kill_server();
        wait_until("another server starts", Duration::from_secs(20), || {
            let pid = mount.status()["server_pid"].as_i64();
            pid.is_some_and(|pid| pid != i64::from(old.as_raw_nonzero().get()))
        });
        drop_pages(files.keys().map(|name| mount.path(name)));
        for (name, content) in files {
            assert!(mount.read(name) == *content, "{name}");
        }
    }
}

fn a_mount_goes_on_after_its_dataset_was_deleted_and_its_server_killed() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--read-ahead", "off"]);
    assert!(mount.read("d0/f0") == files["d0/f0"]);
    let snapshot = mount.status()["snapshot"].as_str().unwrap().to_owned();
    let (dataset, _) = snapshot.split_once('@').unwrap();
    lab.weir(["dataset", "delete", dataset]).ok();
    kill_and_check(&mount, &files);
    assert_eq!(mount.status()["snapshot"], snapshot);
    mount.unmount();
    // The next mount lists the origin again.
    lab.s3.edit(BUCKET, |bucket| bucket.put("new", "new"));
    let mount = lab.mount("", &["--read-ahead", "off"]);
    assert_eq!(mount.read("new"), b"new");
    kill_and_check(&mount, &files);
}

fn a_mount_goes_on_after_its_snapshot_was_dropped_and_its_server_killed() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--read-ahead", "off"]);
    let snapshot = mount.status()["snapshot"].as_str().unwrap().to_owned();
    let (dataset, _) = snapshot.split_once('@').unwrap();
    for number in 0..SNAPSHOTS {
        lab.s3
            .edit(BUCKET, |bucket| bucket.put("new", content(number, 10)));
        lab.weir(["dataset", "refresh", dataset]).ok();
    }
    let known = lab.weir(["dataset", "get", dataset]).ok();
    assert!(!known.contains(&format!("{dataset}@1 ")), "{known}");
    kill_and_check(&mount, &files);
    assert_eq!(mount.status()["snapshot"], snapshot);
}

fn a_mount_of_a_cluster_goes_on_after_its_dataset_was_deleted() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    let flags = ["--master", &cluster.address(), "--read-ahead", "off"];
    let flags = [&flags[..], &["--allow-endpoint", "127.0.0.1"]].concat();
    let mount = lab.mount_at("set", "mnt", &flags);
    assert!(mount.read("d0/f0") == files["d0/f0"]);
    cluster.weir(&["dataset", "delete", "set"]).ok();
    kill_and_check(&mount, &files);
}
