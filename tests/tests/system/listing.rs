//! Listings that are too long to be sorted in memory.

use serde_json::Value;
use weir_tests::{BUCKET, Cluster, DiskFault, FaultyDisk, Lab, content};

use crate::Case;

pub(crate) const CASES: &[Case] = &[(
    "a_long_listing_is_sorted_on_disk_and_a_full_disk_leaves_the_dataset_as_it_was",
    a_long_listing_is_sorted_on_disk_and_a_full_disk_leaves_the_dataset_as_it_was,
)];

/// Directories of one file each, with such names that some 30,000 of them are more than a master sorts at once.
const DIRECTORIES: u64 = 36_000;

/// The key of a file at the end of a path of its own.
fn key(number: u64) -> String {
    let name = |letter: &str| letter.repeat(240);
    // Scattered, so that nothing comes in order.
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{number:016x}/{}/{}/{}/f", name("x"), name("y"), name("z"))
}

fn a_long_listing_is_sorted_on_disk_and_a_full_disk_leaves_the_dataset_as_it_was() {
    let lab = Lab::new();
    lab.s3
        .edit(BUCKET, |bucket| bucket.put("first", content(1, 1000)));
    let files = lab.path("files");
    let disk = FaultyDisk::new(lab.path("master/manifests"), &files).unwrap();
    let mut cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    lab.s3.edit(BUCKET, |bucket| {
        for number in 0..DIRECTORIES {
            bucket.put(key(number), content(number, 100));
        }
    });
    let snapshots = |cluster: &Cluster<'_>| -> Value {
        let dataset = cluster.weir(&["dataset", "get", "set", "-o", "json"]).ok();
        serde_json::from_str::<Value>(&dataset).unwrap()["snapshots"].clone()
    };
    let before = snapshots(&cluster);
    let names = || {
        let dir = std::fs::read_dir(&files).unwrap();
        let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };

    disk.fail(DiskFault::None, DiskFault::FULL);
    let message = cluster.weir(&["dataset", "refresh", "set"]).fails(1);
    assert!(disk.happened() > 0);
    let dir = disk.dir().display().to_string();
    for part in ["No space left on device", "see that there is room", &dir] {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert_eq!(snapshots(&cluster), before);
    disk.heal();
    assert_eq!(names(), ["set"], "temporary files are left");

    cluster.weir(&["dataset", "refresh", "set"]).ok();
    assert_eq!(names(), ["set"], "temporary files are left");
    let listed = snapshots(&cluster);
    assert_eq!(listed[1]["files"], DIRECTORIES + 1, "{listed}");
    // The same again, by a master that has read it from its file.
    cluster.master = None;
    cluster.start_master();
    cluster.wait_for_workers(1);
    cluster.weir(&["dataset", "refresh", "set"]).ok();
    assert_eq!(snapshots(&cluster), listed);

    let mount = cluster.mount("set", "node-0");
    for number in [0, 1, DIRECTORIES / 2, DIRECTORIES - 1] {
        assert!(mount.read(&key(number)) == content(number, 100), "{number}");
    }
    assert!(mount.read("first") == content(1, 1000));
}
