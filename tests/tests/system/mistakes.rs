//! What users get wrong about the places of data: one clear error each, at once, and nothing is changed.

use std::time::{Duration, Instant};

use weir_s3_server::{Fault, Rule, Target};
use weir_tests::{BUCKET, Cluster, Lab, is_mountpoint};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_place_that_cannot_be_listed_is_one_error_and_changes_nothing",
        a_place_that_cannot_be_listed_is_one_error_and_changes_nothing,
    ),
    (
        "a_dataset_whose_source_is_refused_stays_as_it_was",
        a_dataset_whose_source_is_refused_stays_as_it_was,
    ),
];

/// Longest time for an error that does not pass; one that is taken to pass is waited for 30 s.
const AT_ONCE: Duration = Duration::from_secs(10);
/// Nobody may list this one.
const LOCKED: &str = "locked";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.s3.edit(BUCKET, |bucket| bucket.put("a/1", "x"));
    lab.s3.edit(LOCKED, |bucket| bucket.put("a/1", "x"));
    lock(&lab, LOCKED);
    lab
}

fn lock(lab: &Lab, bucket: &str) {
    let denied = Rule::new(Fault::Status(403, "AccessDenied"));
    let denied = denied.target(Target::List).path(&format!("/{bucket}"));
    lab.s3.faults().set([denied]);
}

/// The place, exit code, and what must be said.
const MISTAKES: &[(&str, i32, &[&str])] = &[
    ("s4://bucket/a", 2, &["did you mean s3://?"]),
    ("bucket/a", 2, &["s3://"]),
    ("s3:///a", 2, &["s3://bucket/prefix"]),
    ("s3://bucket/none", 3, &["no objects", "none/"]),
    ("s3://missing/a", 3, &["does not exist", "missing"]),
    ("s3://locked/a", 5, &["access denied", "locked"]),
];

#[track_caller]
fn check(error: &str, url: &str, said: &[&str], begun: Instant) {
    for said in said {
        assert!(error.contains(said), "{url}: {said:?} is not in {error}");
    }
    assert_eq!(error.trim_end().lines().count(), 1, "{url}: {error}");
    let took = begun.elapsed();
    assert!(took < AT_ONCE, "{url}: told after {took:?}");
}

fn a_place_that_cannot_be_listed_is_one_error_and_changes_nothing() {
    let lab = lab();
    let cluster = Cluster::start(&lab, 0);
    let origin = lab.origin_flags();
    let origin: Vec<&str> = origin.iter().map(String::as_str).collect();
    let good = ["dataset", "create", "set", &lab.url("a")];
    cluster.weir(&[&good[..], &origin].concat()).ok();
    let list = || cluster.weir(&["dataset", "list", "-o", "yaml"]).ok();
    let before = list();
    for (url, code, said) in MISTAKES {
        let begun = Instant::now();
        let create = ["dataset", "create", "other", url];
        let error = cluster.weir(&[&create[..], &origin].concat()).fails(*code);
        check(&error, url, said, begun);

        let begun = Instant::now();
        let mnt = lab.path("mnt");
        let mount = ["mount", url, mnt.to_str().unwrap()];
        let error = lab.weir([&mount[..], &origin].concat()).fails(*code);
        check(&error, url, said, begun);
        assert!(!is_mountpoint(&mnt));

        let begun = Instant::now();
        let endpoint = lab.s3.endpoint();
        let of =
            |url: &str| format!("  - url: {url}\n    endpoint: {endpoint}\n    anonymous: true\n");
        let text = format!(
            "apiVersion: weir.io/v1alpha1\nkind: Dataset\nmetadata:\n  name: set\nspec:\n  sources:\n{}{}    path: /more\n",
            of(&lab.url("a")),
            of(url)
        );
        let path = lab.path("set.yaml");
        std::fs::write(&path, text).unwrap();
        let apply = ["apply", "-f", path.to_str().unwrap()];
        let error = cluster.weir(&apply).fails(*code);
        check(&error, url, said, begun);
        assert_eq!(list(), before, "{url}");
    }
}

fn a_dataset_whose_source_is_refused_stays_as_it_was() {
    let lab = lab();
    let cluster = Cluster::start(&lab, 1);
    let origin = lab.origin_flags();
    let origin: Vec<&str> = origin.iter().map(String::as_str).collect();
    let create = ["dataset", "create", "set", &lab.url("a")];
    cluster.weir(&[&create[..], &origin].concat()).ok();
    let get = || cluster.weir(&["dataset", "get", "set", "-o", "json"]).ok();
    let before = get();
    lab.s3.edit(BUCKET, |bucket| bucket.put("a/2", "y"));
    lock(&lab, BUCKET);
    let error = cluster.weir(&["dataset", "refresh", "set"]).fails(5);
    assert!(error.contains("access denied"), "{error}");
    assert_eq!(get(), before);
    let mount = cluster.mount("set", "node-0");
    assert_eq!(mount.read("1"), b"x");
    assert!(!mount.path("2").exists());
    lab.s3.faults().clear();
    cluster.weir(&["dataset", "refresh", "set"]).ok();
    assert_ne!(get(), before);
}
