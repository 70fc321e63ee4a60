//! Files that many read at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use weir_tests::{Cluster, Lab, Mount, content};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_file_that_many_read_at_once_spreads_from_worker_to_worker",
        a_file_that_many_read_at_once_spreads_from_worker_to_worker,
    ),
    (
        "a_frozen_worker_with_copies_fails_no_reader",
        a_frozen_worker_with_copies_fails_no_reader,
    ),
    (
        "a_worker_sends_no_more_than_it_may",
        a_worker_sends_no_more_than_it_may,
    ),
];

const WORKERS: usize = 6;
const MOUNTS: usize = 10;
const SIZE: usize = 24 << 20;
/// Of a file of which only the first part is read while the owner does not yet know how many want it.
const LARGE: usize = 48 << 20;
const FIRST: usize = 12 << 20;

/// A cluster whose workers send little in a second, and a dataset of one file with one copy on one node.
fn start<'a>(lab: &'a Lab, size: usize, flags: &[&str]) -> Cluster<'a> {
    let files = BTreeMap::from([("model".to_owned(), content(7, size))]);
    lab.put_all(&files);
    let cluster = Cluster::start_with(lab, &[flags; WORKERS]);
    cluster
        .create_dataset_with("set", &["--spread", "node"])
        .ok();
    cluster
}

fn mounts<'a>(cluster: &Cluster<'a>) -> Vec<Mount<'a>> {
    let mount = |number: usize| {
        let (dir, node) = (format!("mnt-{number}"), format!("elsewhere-{number}"));
        cluster.mount_at("set", &dir, &["--node", &node])
    };
    (0..MOUNTS).map(mount).collect()
}

/// Reads the file through all mounts at once; gives the longest that one took.
#[track_caller]
fn read_all(mounts: &[Mount<'_>], size: usize) -> Duration {
    read_part(mounts, size, 0..size)
}

/// The same for a part of the file. All begin when the last one can.
#[track_caller]
fn read_part(mounts: &[Mount<'_>], size: usize, part: Range<usize>) -> Duration {
    let expected = &content(7, size)[part.clone()];
    let all_can = &Barrier::new(mounts.len());
    std::thread::scope(|scope| {
        let readers = mounts.iter().map(|mount| {
            let start = part.start as u64;
            scope.spawn(move || {
                let file = File::open(mount.dir.join("model")).unwrap();
                let mut bytes = vec![0; expected.len()];
                all_can.wait();
                let since = Instant::now();
                file.read_exact_at(&mut bytes, start).unwrap();
                assert!(bytes == expected, "wrong bytes");
                since.elapsed()
            })
        });
        let readers: Vec<_> = readers.collect();
        let took = readers.into_iter().map(|reader| reader.join().unwrap());
        took.max().unwrap()
    })
}

fn of_workers(cluster: &Cluster<'_>, name: &str) -> Vec<f64> {
    let workers = (0..WORKERS).map(|number| cluster.worker(number).metric(name, ""));
    workers.collect()
}

fn a_file_that_many_read_at_once_spreads_from_worker_to_worker() {
    let lab = Lab::new();
    let cluster = start(&lab, LARGE, &["--egress-limit", "8MiB"]);
    let mounts = mounts(&cluster);
    // How much of this the owner sends is a matter of who comes first.
    read_part(&mounts, LARGE, 0..FIRST);
    let before = of_workers(&cluster, "weir_worker_read_bytes_total");
    read_part(&mounts, LARGE, FIRST..LARGE);
    assert_eq!(
        lab.s3.stats().bytes(),
        LARGE as u64,
        "the origin sent it once"
    );
    let given = of_workers(&cluster, "weir_worker_read_bytes_total");
    let given: Vec<f64> = given
        .iter()
        .zip(&before)
        .map(|(now, before)| now - before)
        .collect();
    let all: f64 = given.iter().sum();
    let most = given.iter().copied().fold(0.0, f64::max);
    let results: Vec<f64> = ["ok", "not_held", "late", "silent", "unreachable"]
        .iter()
        .map(|result| {
            let label = format!("result=\"{result}\"");
            let of = |mount: &Mount<'_>| mount.metric("weir_client_copy_reads_total", &label);
            mounts.iter().map(of).sum()
        })
        .collect();
    assert!(
        most < all / 2.0,
        "one worker serves: {given:?}, before: {before:?}, copies ok, not held, late, silent, unreachable: {results:?}"
    );
    let serving = given.iter().filter(|given| **given > 0.0).count();
    assert!(serving >= 3, "{given:?}");
    // The owner has sent each copy to a few only, and these to others.
    let copied = of_workers(&cluster, "weir_worker_handed_over_bytes_total");
    let spread = copied.iter().filter(|copied| **copied > 0.0).count();
    assert!(spread >= 2, "{copied:?}");
    let all_copied: f64 = copied.iter().sum();
    assert!(all_copied <= 5.1 * LARGE as f64, "{copied:?}");
    let kept: f64 = of_workers(&cluster, "weir_worker_kept_copies_bytes")
        .iter()
        .sum();
    assert!(kept > 0.0 && kept <= 5.0 * LARGE as f64, "{kept}");
    let reads: f64 = mounts
        .iter()
        .map(|mount| mount.metric("weir_client_copy_reads_total", "result=\"ok\""))
        .sum();
    assert!(reads > 0.0);
}

fn a_frozen_worker_with_copies_fails_no_reader() {
    let lab = Lab::new();
    let cluster = start(&lab, SIZE, &["--egress-limit", "8MiB"]);
    let mounts = mounts(&cluster);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_all(&mounts, SIZE));
        // One that has begun to serve copies, and does not own the file.
        let serving = || {
            let kept = of_workers(&cluster, "weir_worker_kept_copies_bytes");
            kept.iter().position(|kept| *kept > 0.0)
        };
        let soon = Duration::from_mins(1);
        weir_tests::wait_until("a worker has a copy", soon, || serving().is_some());
        let frozen = cluster.worker(serving().unwrap()).freeze();
        reading.join().unwrap();
        drop(frozen);
    });
}

fn a_worker_sends_no_more_than_it_may() {
    let lab = Lab::new();
    let cluster = start(&lab, SIZE, &["--egress-limit", "8MiB", "--copies", "0"]);
    let mounts = mounts(&cluster);
    let took = read_all(&mounts[..4], SIZE);
    let least = Duration::from_secs_f64((4 * SIZE) as f64 / f64::from(8 << 20));
    assert!(took > least.mul_f64(0.9), "{took:?}");
    let given = of_workers(&cluster, "weir_worker_read_bytes_total");
    let serving = given.iter().filter(|given| **given > 0.0).count();
    assert_eq!(serving, 1, "copies were made: {given:?}");
}
