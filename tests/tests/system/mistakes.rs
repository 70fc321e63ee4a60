//! What users get wrong about the places of data: one clear error each, at once, and nothing is changed.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use weir_s3_server::{Fault, Rule, Target};
use weir_tests::{BUCKET, Cluster, Lab, is_mountpoint, wait_until};

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
    (
        "a_refresh_waits_for_a_known_source_says_so_and_can_be_given_up",
        a_refresh_waits_for_a_known_source_says_so_and_can_be_given_up,
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
    (
        "s3://AK:hunter2@bucket/a",
        2,
        &["s3://…", "it holds a user name or password"],
    ),
    ("s3://bucket/none", 3, &["no objects", "none/"]),
    ("s3://missing/a", 3, &["does not exist", "missing"]),
    (
        "s3://locked/a",
        5,
        &["access denied", "locked", "anonymous"],
    ),
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

/// How a refresh ends, which it does now.
#[track_caller]
fn ended(refresh: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until("the refresh ends", AT_ONCE, || {
        status = refresh.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// A refresh that waits, and what it has said of that.
fn waiting_refresh(lab: &Lab, cluster: &Cluster<'_>) -> (Child, String) {
    let address = cluster.address();
    let args = ["dataset", "refresh", "set", "--master", &address];
    let mut command = lab.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut refresh = command.spawn().unwrap();
    let mut said = BufReader::new(refresh.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    (refresh, line)
}

fn a_refresh_waits_for_a_known_source_says_so_and_can_be_given_up() {
    let lab = lab();
    lab.s3.faults().clear();
    let cluster = Cluster::start(&lab, 0);
    let origin = lab.origin_flags();
    let origin: Vec<&str> = origin.iter().map(String::as_str).collect();
    let url = lab.url("a");
    let create = ["dataset", "create", "set", &url, "--patience", "10m"];
    let create = [&create[..], &origin].concat();
    cluster.weir(&create).ok();
    let get = || cluster.weir(&["dataset", "get", "set", "-o", "json"]).ok();
    let before = get();
    lab.s3.edit(BUCKET, |bucket| bucket.put("a/2", "y"));
    let down = || {
        let reset = Rule::new(Fault::Reset).target(Target::All);
        lab.s3.faults().set([reset]);
    };

    down();
    let (mut refresh, said) = waiting_refresh(&lab, &cluster);
    for part in [
        "dataset set waits for origin s3://",
        "not available",
        "Ctrl-C",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    kill_process(Pid::from_child(&refresh), Signal::TERM).unwrap();
    assert!(!ended(&mut refresh).success());
    assert_eq!(get(), before);
    // The master has given it up, too: another one need not wait for it.
    lab.s3.faults().clear();
    let begun = Instant::now();
    cluster.weir(&["dataset", "refresh", "set"]).ok();
    assert!(begun.elapsed() < AT_ONCE);
    let second = get();
    assert_ne!(second, before);

    lab.s3.edit(BUCKET, |bucket| bucket.put("a/3", "z"));
    down();
    let (mut refresh, said) = waiting_refresh(&lab, &cluster);
    assert!(said.contains("waits for"), "{said:?}");
    lab.s3.faults().clear();
    let status = ended(&mut refresh);
    let mut shown = String::new();
    let mut stdout = refresh.stdout.take().unwrap();
    stdout.read_to_string(&mut shown).unwrap();
    assert!(status.success(), "{shown}");
    assert_ne!(get(), second);

    // A patience that ends is an error, and changes nothing.
    let third = get();
    let short = create
        .iter()
        .map(|arg| if *arg == "10m" { "2s" } else { *arg });
    let short: Vec<&str> = short.collect();
    cluster.weir(&short).ok();
    down();
    let begun = Instant::now();
    let error = cluster.weir(&["dataset", "refresh", "set"]).fails(4);
    assert!(error.contains("given up after"), "{error}");
    assert!(begun.elapsed() < AT_ONCE);
    lab.s3.faults().clear();
    let snapshots = |text: &str| -> serde_json::Value {
        serde_json::from_str::<serde_json::Value>(text).unwrap()["snapshots"].clone()
    };
    assert_eq!(snapshots(&get()), snapshots(&third));
}
