//! Datasets that are held by some domains of a cluster.

use std::time::Duration;

use serde_json::Value;
use weir_tests::{Cluster, Lab, wait_until};

use crate::Case;
use crate::system::cluster::{Files, check_all, fill, read_epoch, total};

pub(crate) const CASES: &[Case] = &[
    (
        "a_dataset_is_held_where_its_placement_says",
        a_dataset_is_held_where_its_placement_says,
    ),
    (
        "readers_go_on_while_a_dataset_moves_to_another_zone",
        readers_go_on_while_a_dataset_moves_to_another_zone,
    ),
    (
        "a_dataset_whose_zone_is_gone_is_read_and_comes_back_to_it",
        a_dataset_whose_zone_is_gone_is_read_and_comes_back_to_it,
    ),
    (
        "a_placement_that_the_cluster_cannot_have_is_refused",
        a_placement_that_the_cluster_cannot_have_is_refused,
    ),
];

const SOON: Duration = Duration::from_secs(30);
/// Two workers in each of two zones.
const ZONES: [&[&str]; 4] = [
    &["--zone", "a", "--pool", "gpu"],
    &["--zone", "b"],
    &["--zone", "a"],
    &["--zone", "b", "--pool", "gpu"],
];
const IN_A: [usize; 2] = [0, 2];
const IN_B: [usize; 2] = [1, 3];

/// Blocks of the files: each small one has one, and the large one four.
fn blocks(files: &Files) -> u64 {
    files.len() as u64 + 3
}

/// Blocks that some workers hold on SSD.
fn held(cluster: &Cluster<'_>, workers: &[usize]) -> u64 {
    let of = |number: &usize| {
        let worker = cluster.worker(*number);
        worker.metric("weir_worker_tier_blocks", "tier=\"ssd\"") as u64
    };
    workers.iter().map(of).sum()
}

#[track_caller]
fn come_to_hold(cluster: &Cluster<'_>, workers: &[usize], blocks: u64) {
    let what = format!("workers {workers:?} hold {blocks} blocks");
    wait_until(&what, SOON, || held(cluster, workers) == blocks);
}

/// What `weir dataset get` says of the placement.
fn placement(cluster: &Cluster<'_>) -> Value {
    let got = cluster.weir(&["dataset", "get", "set", "-o", "json"]).ok();
    let mut got: Value = serde_json::from_str(&got).unwrap();
    got["placement"].take()
}

fn a_dataset_is_held_where_its_placement_says() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start_with(&lab, &ZONES);
    let flags = ["--spread", "zone", "--in", "b"];
    let shown = cluster.create_dataset_with("set", &flags).ok();
    assert!(shown.contains("held by zone b"), "{shown}");
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    mount.unmount();
    come_to_hold(&cluster, &IN_B, blocks(&files));
    assert_eq!(held(&cluster, &IN_A), 0);
    assert_eq!(lab.s3.stats().bytes(), total(&files));
    // A warm job finds that all is there.
    let warmed = cluster.weir(&["warm", "set", "--wait", "-o", "json"]).ok();
    let warmed: Value = serde_json::from_str(&warmed).unwrap();
    assert_eq!(warmed["done_bytes"], total(&files));
    assert_eq!(warmed["fetched_bytes"], 0);
    // Schedulers are told where that is.
    wait_until("the master knows where it is", SOON, || {
        let located = cluster
            .weir(&["dataset", "where", "set", "-o", "json"])
            .ok();
        let located: Value = serde_json::from_str(&located).unwrap();
        let all = total(&files);
        let nodes = located["nodes"].as_array().unwrap().iter();
        let on_nodes: u64 = nodes
            .map(|node| node["cached_bytes"].as_u64().unwrap())
            .sum();
        located["zones"] == serde_json::json!([{"name": "b", "cached_bytes": all}])
            && located["cached_bytes"] == all
            && on_nodes == all
            && located["groups"] == serde_json::json!([])
    });
    let shown = cluster.weir(&["dataset", "where", "set"]).ok();
    assert!(
        shown.contains("100.0%") && shown.contains("node-1"),
        "{shown}"
    );
    cluster.weir(&["dataset", "where", "none"]).fails(3);
    // The master keeps what it chose.
    let before = placement(&cluster);
    assert_eq!(before["domains"], serde_json::json!(["b"]));
    let mut cluster = cluster;
    cluster.master = None;
    cluster.start_master();
    assert_eq!(placement(&cluster), before);
    wait_until("the workers report to it again", SOON, || {
        let status = cluster.weir(&["status"]).ok();
        ["zone", "pool", "gpu"]
            .iter()
            .all(|text| status.contains(text))
    });
}

fn readers_go_on_while_a_dataset_moves_to_another_zone() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = Cluster::start_with(&lab, &ZONES);
    let place = |zone: &str| {
        let flags = ["--spread", "zone", "--in", zone];
        cluster.create_dataset_with("set", &flags).ok();
        placement(&cluster)["version"].as_u64().unwrap()
    };
    let first = place("a");
    let mount = cluster.mount("set", "elsewhere");
    let read_again = || read_epoch(&mount, &files);
    read_again();
    come_to_hold(&cluster, &IN_A, blocks(&files));
    assert_eq!(place("a"), first, "nothing has changed");
    assert_eq!(place("b"), first + 1);
    wait_until("the workers of zone b hold it", SOON, || {
        read_again();
        held(&cluster, &IN_B) == blocks(&files)
    });
    assert_eq!(held(&cluster, &IN_A), blocks(&files), "nothing was dropped");
    // Back again, and nothing of it is fetched.
    assert_eq!(place("a"), first + 2);
    let fetched = lab.s3.stats().bytes();
    read_again();
    assert_eq!(lab.s3.stats().bytes(), fetched);
}

fn a_dataset_whose_zone_is_gone_is_read_and_comes_back_to_it() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = Cluster::start_with(&lab, &ZONES);
    let flags = ["--spread", "zone", "--in", "b"];
    cluster.create_dataset_with("set", &flags).ok();
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    come_to_hold(&cluster, &IN_B, blocks(&files));
    for number in IN_B {
        cluster.workers[number] = None;
    }
    read_epoch(&mount, &files);
    cluster.wait_for_workers(2);
    read_epoch(&mount, &files);
    for number in IN_B {
        cluster.start_worker(number);
    }
    cluster.wait_for_workers(4);
    wait_until("its zone is read again", SOON, || {
        let read = |number| {
            let worker = cluster.worker(number);
            worker.metric("weir_worker_read_bytes_total", "dataset=\"set\"")
        };
        read_epoch(&mount, &files);
        IN_B.into_iter().all(|number| read(number) > 0.0)
    });
}

fn a_placement_that_the_cluster_cannot_have_is_refused() {
    let lab = Lab::new();
    lab.put_all(&[("a".to_owned(), b"content".to_vec())].into());
    let cluster = Cluster::start_with(&lab, &ZONES);
    let refused = |flags: &[&str]| cluster.create_dataset_with("set", flags).fails(2);
    for (flags, why) in [
        (
            &["--spread", "zone", "--in", "c"][..],
            "no worker is in zone",
        ),
        (&["--spread", "zone", "--copies", "3"], "3 copies by zone"),
        (
            &["--spread", "zone", "--in", "a", "--in", "a"],
            "named twice",
        ),
        (
            &["--spread", "cluster", "--copies", "2"],
            "one copy over all",
        ),
        (&["--spread", "auto", "--in", "a"], "spread: zone"),
        (&["--pool", "none"], "no worker is in pool"),
        (
            &["--spread", "rack"],
            "cluster, zone, group or node, or auto",
        ),
        (&["--spread", "zone", "--copies", "0"], "a number from 1 on"),
        (&["--in", "a"], "--spread"),
        (&["--spread", "zone", "--pool", "a/b"], "a/b"),
    ] {
        let message = refused(flags);
        assert!(message.contains(why), "{flags:?}: {message}");
    }
    // Nothing was made by that, and a file is told the same.
    cluster.weir(&["dataset", "get", "set"]).fails(3);
    let file = lab.path("set.yaml");
    let (url, endpoint) = (lab.url(""), lab.s3.endpoint());
    let write = |placement: &str| {
        let document = format!(
            "apiVersion: weir.io/v1alpha1\nkind: Dataset\nmetadata:\n  name: set\nspec:\n  sources:\n  - url: {url}\n    endpoint: {endpoint}\n    anonymous: true\n  placement: {placement}\n"
        );
        std::fs::write(&file, document).unwrap();
    };
    let path = file.to_str().unwrap();
    write("{spread: zone, in: [c]}");
    let message = cluster.weir(&["apply", "-f", path]).fails(2);
    assert!(
        message.contains("spec.placement: no worker is in zone"),
        "{message}"
    );
    write("{spread: zone, copie: 2}");
    let message = cluster.weir(&["apply", "-f", path]).fails(2);
    assert!(message.contains("did you mean `copies`"), "{message}");
}
