//! Keys that S3 allows and a file system does not, and very many keys.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_s3_server::{Fault, Rule, Target};
use weir_tests::{BUCKET, Cluster, Lab, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "what_no_file_system_takes_is_left_out_and_counted",
        what_no_file_system_takes_is_left_out_and_counted,
    ),
    (
        "what_of_an_origin_cannot_be_read_is_shown_with_its_dataset",
        what_of_an_origin_cannot_be_read_is_shown_with_its_dataset,
    ),
    (
        "a_raw_control_character_in_a_listing_hides_no_other_key",
        a_raw_control_character_in_a_listing_hides_no_other_key,
    ),
    (
        "a_directory_of_100_000_entries",
        a_directory_of_100_000_entries,
    ),
];

/// Keys and the reason why each of them is left out.
fn bad_keys() -> Vec<(Vec<u8>, &'static str)> {
    let long = format!("long/{}", "x".repeat(256));
    vec![
        (b"a//b".to_vec(), "empty_component"),
        (b"/absolute".to_vec(), "empty_component"),
        (b"a/./b".to_vec(), "dot_component"),
        (b"../escape".to_vec(), "dot_component"),
        (b"a/../../escape".to_vec(), "dot_component"),
        (long.into_bytes(), "name_too_long"),
        (b"latin-\xe9".to_vec(), "not_utf8"),
        (b"zero\0byte".to_vec(), "zero_byte"),
        (b"marker/".to_vec(), "directory_content"),
        (b"both".to_vec(), "shadowed_by_directory"),
    ]
}

/// Keys that are served, among them all that look dangerous and are not.
fn good_keys() -> Vec<String> {
    let mut keys: Vec<String> = (0..2500).map(|n| format!("many/{n:05}")).collect();
    let odd = [
        "both/child",
        "control\u{1}\n\t",
        "quote'\"<&>",
        "percent%2e",
        "plus+",
        "...",
        "a/..b",
        " ",
        "日本語",
    ];
    keys.extend(odd.map(str::to_owned));
    keys
}

fn what_no_file_system_takes_is_left_out_and_counted() {
    let lab = Lab::new();
    lab.s3.edit(BUCKET, |bucket| {
        for (key, _) in bad_keys() {
            bucket.put(key, "bad");
        }
        for key in good_keys() {
            bucket.put(key.clone(), key.into_bytes());
        }
        bucket.put("empty-directory/", "");
    });
    let mount = lab.mount("", &["--dataset", "odd"]);
    for key in good_keys() {
        assert_eq!(mount.read(&key), key.as_bytes(), "{key:?}");
    }
    assert_eq!(std::fs::read_dir(mount.path("many")).unwrap().count(), 2500);
    assert_eq!(
        std::fs::read_dir(mount.path("empty-directory"))
            .unwrap()
            .count(),
        0
    );
    assert!(!lab.path("escape").exists());
    let mut expected = BTreeMap::new();
    for (_, reason) in bad_keys() {
        *expected.entry(reason.to_owned()).or_insert(0_u64) += 1;
    }
    let dataset = lab.weir(["dataset", "get", "odd", "-o", "json"]).ok();
    let dataset: serde_json::Value = serde_json::from_str(&dataset).unwrap();
    let left_out: BTreeMap<String, u64> =
        serde_json::from_value(dataset["snapshots"][0]["left_out"].clone()).unwrap();
    assert_eq!(left_out, expected);
    let shown = lab.weir(["dataset", "get", "odd"]).ok();
    for (reason, count) in expected {
        assert!(
            shown.contains(&format!("{count} {reason}")),
            "{reason}: {shown}"
        );
        let label = format!("reason=\"{reason}\"");
        wait_until(
            "the metric counts what is left out",
            Duration::from_secs(5),
            || (mount.metric("weir_master_left_out_objects", &label) - count as f64).abs() < 0.5,
        );
    }
}

fn what_of_an_origin_cannot_be_read_is_shown_with_its_dataset() {
    let lab = Lab::new();
    let dir = lab.path("data");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "file").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.join("link")).unwrap();
    lab.s3.edit(BUCKET, |bucket| {
        for (key, class) in [
            ("a/old", Some("GLACIER")),
            ("b/older", Some("DEEP_ARCHIVE")),
            ("soon", Some("GLACIER_IR")),
            ("now", None),
        ] {
            bucket.put(key, key);
            if let Some(class) = class {
                bucket.archive(key, class);
            }
        }
    });
    let cluster = Cluster::start(&lab, 1);
    let directory = format!("file://{}:local", dir.display());
    let bucket = format!("s3://{BUCKET}:remote");
    let endpoint = lab.s3.endpoint();
    let made = cluster.weir(&[
        "dataset",
        "create",
        "set",
        &directory,
        &bucket,
        "--endpoint",
        &endpoint,
        "--anonymous",
    ]);
    let told = |text: &str| {
        for part in [
            "2 objects of the newest snapshot are archived, for example GLACIER: a/old",
            "restore",
            "1 link_outside",
            "link_outside: link",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    };
    told(&made.ok());
    told(&cluster.weir(&["dataset", "get", "set"]).ok());
    // A directory that a mount covers is not listed through the mount.
    let mount = lab.mount_at("set", "mnt", &["--master", &cluster.address()]);
    let covered = format!("file://{}", mount.path("local").display());
    let refused = cluster.weir(&["dataset", "create", "covered", &covered]);
    assert!(
        refused.code != 0 && refused.stderr.contains("a mount of Weir covers it"),
        "{refused:?}"
    );
    // A refresh tells what is so now, also when the files are the same.
    lab.s3
        .edit(BUCKET, |bucket| bucket.archive("now", "Archive"));
    std::fs::remove_file(dir.join("link")).unwrap();
    let refreshed = cluster
        .weir(&["dataset", "refresh", "set", "-o", "json"])
        .ok();
    let refreshed: serde_json::Value = serde_json::from_str(&refreshed).unwrap();
    let snapshots = refreshed["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 1, "{refreshed}");
    assert_eq!(snapshots[0]["archived"], 3, "{refreshed}");
    assert_eq!(snapshots[0]["left_out"], serde_json::json!({}));
    let known = cluster.weir(&["dataset", "get", "set", "-o", "json"]).ok();
    let known: serde_json::Value = serde_json::from_str(&known).unwrap();
    assert_eq!(known, refreshed);
}

fn a_raw_control_character_in_a_listing_hides_no_other_key() {
    let lab = Lab::new();
    lab.s3.edit(BUCKET, |bucket| {
        bucket.put("before", "1");
        bucket.put("control\u{1}key", "2");
        bucket.put("zzz", "3");
    });
    lab.s3
        .faults()
        .set([Rule::new(Fault::RawKeys).target(Target::List)]);
    let mount = lab.mount("", &[]);
    assert_eq!(mount.read("before"), b"1");
    assert_eq!(mount.read("zzz"), b"3");
    assert_eq!(mount.read("control\u{1}key"), b"2");
}

fn a_directory_of_100_000_entries() {
    const COUNT: usize = 100_000;
    let lab = Lab::new();
    lab.s3.edit(BUCKET, |bucket| {
        for number in 0..COUNT {
            bucket.put(format!("dir/file-{number:06}"), format!("{number}"));
        }
    });
    let mount = lab.mount("", &[]);
    let mut names: Vec<String> = std::fs::read_dir(mount.path("dir"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), COUNT);
    for number in [0, 1, 4711, COUNT - 1] {
        assert_eq!(
            mount.read(&format!("dir/file-{number:06}")),
            number.to_string().as_bytes()
        );
    }
}
