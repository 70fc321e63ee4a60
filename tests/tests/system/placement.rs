//! Datasets that are held by some domains of a cluster.

use std::time::Duration;

use serde_json::Value;
use weir_tests::{Cluster, Lab, Mount, Readers, drop_pages, wait_until};

use crate::Case;
use crate::system::cluster::{Files, check_all, fill, read_epoch, total};

pub(crate) const CASES: &[Case] = &[
    (
        "a_small_dataset_is_on_one_node_and_stays_there_while_that_is_started_anew",
        a_small_dataset_is_on_one_node_and_stays_there_while_that_is_started_anew,
    ),
    (
        "a_node_keeps_what_it_reads_within_its_bound",
        a_node_keeps_what_it_reads_within_its_bound,
    ),
    (
        "a_copy_is_made_where_readers_are_without_the_origin",
        a_copy_is_made_where_readers_are_without_the_origin,
    ),
    (
        "a_dataset_that_was_spread_over_all_moves_to_one_node_without_the_origin",
        a_dataset_that_was_spread_over_all_moves_to_one_node_without_the_origin,
    ),
    (
        "a_dataset_is_held_where_its_placement_says",
        a_dataset_is_held_where_its_placement_says,
    ),
    (
        "readers_go_on_while_a_dataset_moves_to_another_zone",
        readers_go_on_while_a_dataset_moves_to_another_zone,
    ),
    (
        "the_origin_sends_each_byte_once_for_all_copies",
        the_origin_sends_each_byte_once_for_all_copies,
    ),
    (
        "a_copy_is_read_while_the_workers_of_the_first_one_are_frozen_and_when_they_are_gone",
        a_copy_is_read_while_the_workers_of_the_first_one_are_frozen_and_when_they_are_gone,
    ),
    (
        "a_dataset_moves_without_its_readers_and_without_the_origin",
        a_dataset_moves_without_its_readers_and_without_the_origin,
    ),
    (
        "a_copy_that_is_lost_is_made_again_from_the_other_one",
        a_copy_that_is_lost_is_made_again_from_the_other_one,
    ),
    (
        "one_copy_is_warmed_and_a_path_is_found",
        one_copy_is_warmed_and_a_path_is_found,
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

/// A metric of some workers together.
fn sum(cluster: &Cluster<'_>, workers: &[usize], name: &str, labels: &str) -> u64 {
    let workers = workers.iter().map(|number| cluster.worker(*number));
    workers
        .map(|worker| worker.metric(name, labels) as u64)
        .sum()
}

/// Blocks that some workers hold on SSD.
fn held(cluster: &Cluster<'_>, workers: &[usize]) -> u64 {
    sum(cluster, workers, "weir_worker_tier_blocks", "tier=\"ssd\"")
}

#[track_caller]
fn come_to_hold(cluster: &Cluster<'_>, workers: &[usize], blocks: u64) {
    let what = format!("workers {workers:?} hold {blocks} blocks");
    wait_until(&what, SOON, || held(cluster, workers) == blocks);
}

/// A cluster of workers with these flags, all of which have heard of each other.
fn start<'a>(lab: &'a Lab, flags: &[&[&str]]) -> Cluster<'a> {
    let cluster = Cluster::start_with(lab, flags);
    wait_until("the workers have the newest map", SOON, || {
        let epoch = cluster.status()["epoch"].as_f64();
        let has_it = |number| {
            let worker = cluster.worker(number);
            Some(worker.metric("weir_worker_cluster_map_epoch", "")) == epoch
        };
        (0..flags.len()).all(has_it)
    });
    cluster
}

/// Bytes that some workers have from others.
fn copied(cluster: &Cluster<'_>, workers: &[usize]) -> u64 {
    sum(cluster, workers, "weir_worker_copied_bytes_total", "")
}

/// A mount of the dataset in a zone.
#[track_caller]
fn mount_in<'a>(lab: &'a Lab, cluster: &Cluster<'_>, zone: &str) -> Mount<'a> {
    let address = cluster.address();
    let flags = ["--master", &address, "--node", zone, "--zone", zone];
    lab.mount_at("set", &format!("mnt-{zone}"), &flags)
}

/// What `weir dataset get` says of the placement.
fn placement(cluster: &Cluster<'_>) -> Value {
    let got = cluster.weir(&["dataset", "get", "set", "-o", "json"]).ok();
    let mut got: Value = serde_json::from_str(&got).unwrap();
    got["placement"].take()
}

/// The number of the only node that a placement names.
fn node_of(placement: &Value) -> usize {
    let domains = placement["domains"].as_array().unwrap();
    assert_eq!(placement["spread"], "node");
    assert_eq!(domains.len(), 1);
    let name = domains[0].as_str().unwrap();
    name.strip_prefix("node-").unwrap().parse().unwrap()
}

/// Nothing is said of where it is to be.
fn a_small_dataset_is_on_one_node_and_stays_there_while_that_is_started_anew() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = start(&lab, &ZONES);
    let (url, origin) = (lab.url(""), lab.origin_flags());
    let mut create = vec!["dataset", "create", "set", &url];
    create.extend(origin.iter().map(String::as_str));
    let shown = cluster.weir(&create).ok();
    assert!(
        shown.contains("held by node node-") && shown.contains("a quarter of that node's cache"),
        "{shown}"
    );
    let placed = placement(&cluster);
    let own = node_of(&placed);
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    come_to_hold(&cluster, &[own], blocks(&files));
    assert_eq!(held(&cluster, &[0, 1, 2, 3]), blocks(&files));
    assert_eq!(lab.s3.stats().bytes(), total(&files));
    assert_eq!(cluster.status()["datasets"][0]["placement"], placed);
    let located = cluster.weir(&["dataset", "where", "set", "-o", "json"]);
    let located: Value = serde_json::from_str(&located.ok()).unwrap();
    assert_eq!(located["placement"], placed);
    assert!(placed["reason"].as_str().unwrap().contains("quarter"));
    // One that is to be on a node, which is not named.
    let on_own_node = |number: &usize| {
        let name = format!("asked-{number}");
        let made = cluster.create_dataset_with(&name, &["--spread", "node", "-o", "json"]);
        let made: Value = serde_json::from_str(&made.ok()).unwrap();
        node_of(&made["placement"]) == own
    };
    let asked = format!("asked-{}", (0..100).find(on_own_node).unwrap());
    cluster.workers[own].take().unwrap().kill();
    wait_until("that one goes to another node", SOON, || {
        let got = cluster.weir(&["dataset", "get", &asked, "-o", "json"]).ok();
        let got: Value = serde_json::from_str(&got).unwrap();
        node_of(&got["placement"]) != own
    });
    assert_eq!(node_of(&placement(&cluster)), own);
    read_epoch(&mount, &files);
    cluster.start_worker(own);
    cluster.wait_for_workers(4);
    assert_eq!(placement(&cluster), placed);
    let before = lab.s3.stats().bytes();
    read_epoch(&mount, &files);
    assert_eq!(lab.s3.stats().bytes(), before);
}

/// Node 1 has room for all, and node 2 for nothing.
fn a_node_keeps_what_it_reads_within_its_bound() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = start(&lab, &[&[], &["--keep", "64MiB"], &["--keep", "0"]]);
    let flags = ["--spread", "node", "--in", "node-0", "--keep", "node"];
    let shown = cluster.create_dataset_with("set", &flags).ok();
    assert!(
        shown.contains("node node-0, kept by nodes that read it"),
        "{shown}"
    );
    let by_name = |name: &str| {
        let of = |number: &usize| cluster.worker(*number).metric(name, "") as u64;
        [1, 2].iter().map(of).collect::<Vec<u64>>()
    };
    let given = || {
        cluster
            .worker(0)
            .metric("weir_worker_handed_over_bytes_total", "") as u64
    };
    for node in ["node-1", "node-2"] {
        let mount = cluster.mount("set", node);
        check_all(&mount, &files);
        mount.unmount();
    }
    come_to_hold(&cluster, &[1], blocks(&files));
    assert_eq!(
        held(&cluster, &[0, 2]),
        blocks(&files),
        "node 2 keeps nothing"
    );
    wait_until("what is kept is told", SOON, || {
        by_name("weir_worker_kept_for_node_bytes") == [total(&files), 0]
    });
    assert_eq!(lab.s3.stats().bytes(), total(&files));
    // Again, from the node itself.
    let before = given();
    let mount = cluster.mount("set", "node-1");
    read_epoch(&mount, &files);
    assert_eq!(given(), before);
    let asked = ["--spread", "node", "--keep", "zone"];
    cluster.create_dataset_with("other", &asked).fails(2);
}

/// A mount reads on the node of a worker that does not hold the dataset.
fn a_copy_is_made_where_readers_are_without_the_origin() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = start(&lab, &ZONES);
    let auto = ["--spread", "auto"];
    cluster.create_dataset_with("set", &auto).ok();
    let first = node_of(&placement(&cluster));
    let near = (0..4).find(|number| *number != first).unwrap();
    let node = format!("node-{near}");
    let mount = cluster.mount("set", &node);
    let names = || placement(&cluster)["domains"].clone();
    let both = serde_json::json!([format!("node-{first}"), node]);
    wait_until("a copy is to be near the reader", 4 * SOON, || {
        read_epoch(&mount, &files);
        names() == both
    });
    let reason = placement(&cluster)["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("one copy more is where its readers are"),
        "{reason}"
    );
    come_to_hold(&cluster, &[near], blocks(&files));
    read_epoch(&mount, &files);
    assert_eq!(lab.s3.stats().bytes(), total(&files));
    let status = cluster.weir(&["status"]).ok();
    assert!(
        status.contains(&format!("node node-{first}, {node}")),
        "{status}"
    );
}

fn a_dataset_that_was_spread_over_all_moves_to_one_node_without_the_origin() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = start(&lab, &ZONES);
    let shown = cluster.create_dataset_with("set", &[]).ok();
    assert!(
        shown.contains("held by all workers (its specification says so)"),
        "{shown}"
    );
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    come_to_hold(&cluster, &[0, 1, 2, 3], blocks(&files));
    let auto = ["--spread", "auto"];
    cluster.create_dataset_with("set", &auto).ok();
    let own = node_of(&placement(&cluster));
    come_to_hold(&cluster, &[own], blocks(&files)); // nobody reads
    read_epoch(&mount, &files);
    assert_eq!(lab.s3.stats().bytes(), total(&files));
}

fn a_dataset_is_held_where_its_placement_says() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = start(&lab, &ZONES);
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
    let cluster = start(&lab, &ZONES);
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
    assert_eq!(lab.s3.stats().bytes(), total(&files), "zone a had it");
    // Back again, and nothing of it is fetched.
    assert_eq!(place("a"), first + 2);
    read_again();
    assert_eq!(lab.s3.stats().bytes(), total(&files));
}

/// Two mounts read at the same time; then all is dropped and warmed.
fn the_origin_sends_each_byte_once_for_all_copies() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = start(&lab, &ZONES);
    let copies = ["--spread", "zone", "--copies", "2"];
    cluster.create_dataset_with("set", &copies).ok();
    let mounts = ["a", "b"].map(|zone| mount_in(&lab, &cluster, zone));
    std::thread::scope(|threads| {
        for mount in &mounts {
            threads.spawn(|| check_all(mount, &files));
        }
    });
    let both_hold_it = || {
        come_to_hold(&cluster, &IN_A, blocks(&files));
        come_to_hold(&cluster, &IN_B, blocks(&files));
    };
    // On a busy machine a worker may have been silent for a while, and another one was read then.
    wait_until("both zones hold it", SOON, || {
        for mount in &mounts {
            read_epoch(mount, &files);
        }
        [IN_A, IN_B].map(|zone| held(&cluster, &zone)) == [blocks(&files); 2]
    });
    assert_eq!(lab.s3.stats().bytes(), total(&files));
    // All of one zone came from the other.
    let mut copied = [copied(&cluster, &IN_A), copied(&cluster, &IN_B)];
    copied.sort_unstable();
    assert_eq!(copied, [0, total(&files)]);
    for mount in mounts {
        mount.unmount();
    }
    cluster.weir(&["evict", "set"]).ok();
    wait_until("nothing is held", SOON, || {
        held(&cluster, &IN_A) + held(&cluster, &IN_B) == 0
    });
    let warmed = cluster.weir(&["warm", "set", "--wait", "-o", "json"]).ok();
    let warmed: Value = serde_json::from_str(&warmed).unwrap();
    assert_eq!(warmed["done_bytes"], total(&files));
    assert_eq!(warmed["fetched_bytes"], total(&files));
    both_hold_it();
    assert_eq!(lab.s3.stats().bytes(), 2 * total(&files));
}

fn a_copy_is_read_while_the_workers_of_the_first_one_are_frozen_and_when_they_are_gone() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = start(&lab, &ZONES);
    let flags = ["--spread", "zone", "--in", "a", "--in", "b"];
    cluster.create_dataset_with("set", &flags).ok();
    let mount = mount_in(&lab, &cluster, "b");
    for name in files.keys().filter(|name| name.starts_with("d1")) {
        assert!(mount.read(name) == files[name], "{name}");
    }
    let report = {
        let _frozen = IN_A.map(|number| cluster.worker(number).freeze());
        let readers = Readers::start(&mount.dir, &files, 2);
        readers.read_more(2 * files.len());
        readers.finish()
    };
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    // Two workers were silent, each for a moment, on a machine that has others to serve.
    let longest = report.longest;
    assert!(longest < Duration::from_secs(8), "a read took {longest:?}");
    for number in IN_A {
        cluster.workers[number] = None;
    }
    drop_pages(files.keys().map(|name| mount.path(name)));
    check_all(&mount, &files);
    cluster.wait_for_workers(2);
    read_epoch(&mount, &files);
    come_to_hold(&cluster, &IN_B, blocks(&files));
}

fn a_dataset_moves_without_its_readers_and_without_the_origin() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = start(&lab, &ZONES);
    let flags = |zone| ["--spread", "zone", "--in", zone];
    cluster.create_dataset_with("set", &flags("b")).ok();
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    come_to_hold(&cluster, &IN_B, blocks(&files));
    cluster.create_dataset_with("set", &flags("a")).ok();
    come_to_hold(&cluster, &IN_A, blocks(&files)); // nobody reads
    assert_eq!(lab.s3.stats().bytes(), total(&files));
    // A worker more in its zone, while it is read.
    let readers = Readers::start(&mount.dir, &files, 2);
    let new = cluster.add_worker();
    let share = || held(&cluster, &[new]);
    let mut before = 0;
    wait_until("it has its share", SOON, || {
        let now = share();
        now > 0 && now == std::mem::replace(&mut before, now)
    });
    readers.read_more(files.len());
    let report = readers.finish();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    read_epoch(&mount, &files);
    assert_eq!(lab.s3.stats().bytes(), total(&files));
}

/// Of three zones two hold the dataset. One of them goes.
fn a_copy_that_is_lost_is_made_again_from_the_other_one() {
    let lab = Lab::new();
    let files = fill(&lab);
    let zones = ["a", "b", "c"];
    let flags = zones.map(|zone| ["--zone", zone]);
    let flags: Vec<&[&str]> = flags.iter().map(|flags| &flags[..]).collect();
    let mut cluster = start(&lab, &flags);
    let copies = ["--spread", "zone", "--copies", "2"];
    cluster.create_dataset_with("set", &copies).ok();
    cluster.weir(&["warm", "set", "--wait"]).ok();
    let chosen: Vec<usize> = placement(&cluster)["domains"]
        .as_array()
        .unwrap()
        .iter()
        .map(|zone| zones.iter().position(|known| zone == known).unwrap())
        .collect();
    let [first, second] = chosen[..] else {
        panic!("{chosen:?}");
    };
    let all = blocks(&files);
    come_to_hold(&cluster, &[first], all);
    come_to_hold(&cluster, &[second], all);
    let mount = cluster.mount("set", "elsewhere");
    let readers = Readers::start(&mount.dir, &files, 2);
    readers.read_more(10);
    cluster.workers[first].take().unwrap().kill();
    come_to_hold(&cluster, &[3 - first - second], all);
    let report = readers.finish();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    read_epoch(&mount, &files);
    assert_eq!(lab.s3.stats().bytes(), total(&files));
}

fn one_copy_is_warmed_and_a_path_is_found() {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = start(&lab, &ZONES);
    let flags = ["--spread", "zone", "--in", "a", "--in", "b"];
    cluster.create_dataset_with("set", &flags).ok();
    let in_d1 = |name: &&String| name.starts_with("d1/");
    let some: Vec<&String> = files.keys().filter(in_d1).collect();
    let bytes: u64 = some.iter().map(|name| files[*name].len() as u64).sum();
    // The first copy alone, of one directory.
    let warm = [
        "warm", "set", "d1", "--in", "zone=a", "--wait", "-o", "json",
    ];
    let warmed: Value = serde_json::from_str(&cluster.weir(&warm).ok()).unwrap();
    assert_eq!(warmed["done_bytes"], bytes);
    // They take what is theirs some seconds after they came, but not yet.
    assert_eq!(copied(&cluster, &IN_B), 0);
    come_to_hold(&cluster, &IN_A, some.len() as u64);
    let located = |path: &str| -> Value {
        let located = cluster.weir(&["dataset", "where", "set", path, "-o", "json"]);
        serde_json::from_str(&located.ok()).unwrap()
    };
    wait_until("the master knows where it is", SOON, || {
        let directory = located("d1");
        let mut zones = directory["zones"].as_array().unwrap().iter();
        let a = serde_json::json!({"name": "a", "cached_bytes": bytes});
        directory["bytes"] == bytes && zones.any(|zone| *zone == a)
    });
    let file = located(some[0]);
    let length = files[some[0]].len();
    assert_eq!(file["path"], *some[0]);
    assert_eq!(file["cached_bytes"], length);
    assert_eq!(located("d2")["cached_bytes"], 0);
    cluster.weir(&["dataset", "where", "set", "d9"]).fails(3);
    // The second one, which takes what is there from the first.
    let warm = [
        "warm", "set", "d1", "--in", "zone=b", "--wait", "-o", "json",
    ];
    let warmed: Value = serde_json::from_str(&cluster.weir(&warm).ok()).unwrap();
    assert_eq!(warmed["done_bytes"], bytes);
    assert_eq!(warmed["fetched_bytes"], 0);
    come_to_hold(&cluster, &IN_B, some.len() as u64);
    assert_eq!(lab.s3.stats().bytes(), bytes);
    for (flags, code, why) in [
        (&["--in", "zone=bb"][..], 2, "did you mean \"b\"?"),
        (&["--in", "zon=b"], 2, "did you mean `zone`?"),
        (
            &["--in", "node=node-0"],
            2,
            "none of that lies in node=node-0",
        ),
        (&["--copies", "3"], 2, "the dataset has 2"),
        (&["--copies", "0"], 2, "0"),
        (&["--in", "zone=b", "--copies", "2"], 2, "has 1 in zone=b"),
    ] {
        let args: Vec<&str> = ["warm", "set"].iter().chain(flags).copied().collect();
        let message = cluster.weir(&args).fails(code);
        assert!(message.contains(why), "{flags:?}: {message}");
    }
}

fn a_dataset_whose_zone_is_gone_is_read_and_comes_back_to_it() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = start(&lab, &ZONES);
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
    let cluster = start(&lab, &ZONES);
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
