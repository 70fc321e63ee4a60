//! Workers that come, go and come back: what they take over, and what the origin sends for that.

use std::time::Duration;

use weir_tests::{Cluster, Lab, Mount, Readers, wait_until};

use crate::Case;
use crate::system::cluster::{Files, fill, read_epoch, total};

pub(crate) const CASES: &[Case] = &[
    (
        "a_new_worker_takes_its_share_from_the_others_and_none_from_the_origin",
        a_new_worker_takes_its_share_from_the_others_and_none_from_the_origin,
    ),
    (
        "a_worker_that_comes_back_has_its_share_and_one_that_does_not_is_replaced_once",
        a_worker_that_comes_back_has_its_share_and_one_that_does_not_is_replaced_once,
    ),
];

/// Longest wait for the cluster map and the tiers.
const SOON: Duration = Duration::from_secs(30);

/// Waits until the workers' tiers hold all of a dataset, as the master knows.
#[track_caller]
pub(crate) fn until_cached(cluster: &Cluster<'_>, bytes: u64) {
    wait_until("the dataset is cached", SOON, || {
        cluster.status()["datasets"][0]["cached_bytes"] == bytes
    });
}

/// A mount of the lab's bucket as the dataset `set`, all of which the workers hold; and what the origin has sent for that.
#[track_caller]
pub(crate) fn mount_cached<'a>(
    lab: &Lab,
    cluster: &Cluster<'a>,
    files: &Files,
) -> (Mount<'a>, u64) {
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    read_epoch(&mount, files);
    until_cached(cluster, total(files));
    (mount, lab.s3.stats().bytes())
}

/// Waits until a mount has the master's cluster map.
#[track_caller]
pub(crate) fn until_mapped(cluster: &Cluster<'_>, mount: &Mount<'_>) {
    wait_until("the mount has the newest map", SOON, || {
        let epoch = mount.metric("weir_client_cluster_map_epoch", "");
        cluster.status()["epoch"].as_f64() == Some(epoch)
    });
}

fn a_new_worker_takes_its_share_from_the_others_and_none_from_the_origin() {
    for secure in [false, true] {
        let lab = Lab::new();
        let files = fill(&lab);
        let mut cluster = Cluster::start_either(&lab, 3, secure);
        let (mount, sent) = mount_cached(&lab, &cluster, &files);
        assert_eq!(sent, total(&files));
        // Readers go on while it comes.
        let readers = Readers::start(&mount.dir, &files, 2);
        let new = cluster.add_worker();
        cluster.wait_for_workers(4);
        until_mapped(&cluster, &mount);
        readers.read_more(100);
        let report = readers.finish();
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        read_epoch(&mount, &files);
        assert_eq!(lab.s3.stats().bytes(), sent, "the origin sent bytes again");
        let metric = |worker: usize, name: &str| cluster.worker(worker).metric(name, "");
        let copied = metric(new, "weir_worker_copied_bytes_total");
        let share = copied / total(&files) as f64;
        assert!(
            (0.03..0.9).contains(&share),
            "it took over {share} of the bytes"
        );
        let from_origin = metric(new, "weir_worker_fill_bytes_total");
        assert!(from_origin < 0.5, "{from_origin} bytes");
        let given: f64 = (0..3)
            .map(|number| metric(number, "weir_worker_handed_over_bytes_total"))
            .sum();
        assert!(
            (given - copied).abs() < 0.5,
            "{given} given, {copied} taken"
        );
        // What it has now it need not ask for again.
        wait_until("it holds its share", SOON, || {
            let tier = cluster
                .worker(new)
                .metric("weir_worker_tier_used_bytes", "ssd");
            tier >= copied
        });
        read_epoch(&mount, &files);
        let again = metric(new, "weir_worker_copied_bytes_total");
        assert!((again - copied).abs() < 0.5, "it took blocks over twice");
    }
}

fn a_worker_that_comes_back_has_its_share_and_one_that_does_not_is_replaced_once() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = Cluster::start(&lab, 3);
    let (mount, sent) = mount_cached(&lab, &cluster, &files);
    let epoch = cluster.status()["epoch"].clone();
    // Within the ten seconds that a silent worker has.
    cluster.workers[2].take().unwrap().kill();
    cluster.start_worker(2);
    wait_until("it has reported again", SOON, || {
        let status = cluster.status();
        let worker = &status["workers"][2];
        worker["last_seen_ms"].as_u64().is_some_and(|ms| ms < 2500)
    });
    read_epoch(&mount, &files);
    assert_eq!(lab.s3.stats().bytes(), sent, "its share was fetched again");
    assert_eq!(cluster.status()["epoch"], epoch, "it left the map");
    // For good: its share is fetched once, and nobody else's.
    cluster.workers[2].take().unwrap().kill();
    cluster.wait_for_workers(2);
    until_mapped(&cluster, &mount);
    read_epoch(&mount, &files);
    let lost = lab.s3.stats().bytes() - sent;
    let share = lost as f64 / total(&files) as f64;
    assert!((0.03..0.9).contains(&share), "{share} of the bytes");
    until_cached(&cluster, total(&files));
    read_epoch(&mount, &files);
    assert_eq!(lab.s3.stats().bytes(), sent + lost, "it was fetched twice");
    // It comes back with what it had, which is its share again.
    cluster.start_worker(2);
    cluster.wait_for_workers(3);
    until_mapped(&cluster, &mount);
    read_epoch(&mount, &files);
    assert_eq!(lab.s3.stats().bytes(), sent + lost);
}
