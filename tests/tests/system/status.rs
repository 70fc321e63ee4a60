//! What an operator sees at a glance: devices that fail, copies that lack blocks, jobs that run.

use std::sync::Arc;
use std::time::Duration;

use weir_s3_server::{Fault, Rule};
use weir_tests::{Cluster, DiskFault, FaultyDisk, Lab, content, drop_pages, wait_until};

use crate::Case;
use crate::system::cluster::{Files, check_all, fill, total};

pub(crate) const CASES: &[Case] = &[
    (
        "a_device_that_fails_or_hangs_is_named",
        a_device_that_fails_or_hangs_is_named,
    ),
    (
        "a_copy_that_lacks_blocks_and_a_job_that_runs_are_shown",
        a_copy_that_lacks_blocks_and_a_job_that_runs_are_shown,
    ),
];

const SOON: Duration = Duration::from_secs(30);

#[track_caller]
fn comes_to_say(cluster: &Cluster<'_>, said: &str) {
    wait_until(said, SOON, || cluster.weir(&["status"]).ok().contains(said));
}

fn a_device_that_fails_or_hangs_is_named() {
    let lab = Lab::new();
    // More than a worker's memory holds.
    let files = (0..200).map(|n| (format!("d{}/f{n}", n % 6), content(n, 300_000)));
    let files: Files = Arc::new(files.collect());
    lab.put_all(&files);
    let disk = FaultyDisk::new(lab.path("disk"), &lab.path("disk-files")).unwrap();
    let ssd = format!("{}:256MiB", disk.dir().display());
    let cluster = Cluster::start_with(&lab, &[&["--ssd", &ssd], &[]]);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    let tiers = |cluster: &Cluster<'_>| cluster.status()["workers"][0]["tiers"].take();
    wait_until("the worker's blocks are on its disk", SOON, || {
        let tiers = tiers(&cluster);
        let ssd = tiers.as_array().unwrap().iter();
        let mut ssd = ssd.filter(|tier| tier["tier"] == "ssd");
        ssd.all(|tier| tier["trouble"].is_null() && tier["blocks"].as_u64() > Some(10))
    });
    let again = || drop_pages(files.keys().map(|name| mount.path(name)));

    disk.fail(DiskFault::Hang, DiskFault::None);
    std::thread::scope(|scope| {
        again();
        scope.spawn(|| check_all(&mount, &files));
        comes_to_say(
            &cluster,
            &format!("worker node-0: {} hangs", disk.dir().display()),
        );
        let degraded = cluster
            .worker(0)
            .metric("weir_worker_tier_degraded", "tier=\"ssd\"");
        assert!(degraded > 0.5);
        disk.heal();
    });
    // The worse of two is told.
    disk.fail(DiskFault::BROKEN, DiskFault::None);
    again();
    check_all(&mount, &files);
    disk.heal();
    let other = cluster
        .worker(1)
        .metric("weir_worker_tier_degraded", "tier=\"ssd\"");
    assert!(other < 0.5);
    mount.unmount();
}

fn a_copy_that_lacks_blocks_and_a_job_that_runs_are_shown() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = Cluster::start_with(&lab, &[&["--zone", "a"], &["--zone", "b"]]);
    cluster
        .create_dataset_with("set", &["--spread", "zone", "--in", "a", "--in", "b"])
        .ok();
    let slow = Rule::new(Fault::Stall(Duration::from_millis(300)));
    lab.s3.faults().set([slow]);
    cluster.weir(&["warm", "set"]).ok();
    comes_to_say(&cluster, "warm of set, ");
    lab.s3.faults().clear();
    let copies = || {
        let dataset = cluster.status()["datasets"][0].take();
        let copies = dataset["copies"].as_array().unwrap().clone();
        copies
            .iter()
            .map(|copy| copy["cached_bytes"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let whole = total(&files);
    wait_until("both copies are whole", SOON, || copies() == [whole, whole]);
    wait_until("the job has ended", SOON, || {
        !cluster.weir(&["status"]).ok().contains("warm of set")
    });
    assert!(!cluster.weir(&["status"]).ok().contains("the copy in"));
    // A zone that nobody is in has nothing.
    cluster.workers[1].take().unwrap().kill();
    comes_to_say(&cluster, "dataset set: the copy in b has 0");
}
