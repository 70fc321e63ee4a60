//! docs/metrics.md against what processes serve.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use weir_tests::{BUCKET, Cluster, Lab, get, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[(
    "the_page_lists_what_is_served",
    the_page_lists_what_is_served,
)];

/// Name and type of each metric below a heading of the page that begins with `## heading`.
fn documented(heading: &str) -> BTreeMap<String, String> {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"))
            .unwrap();
    let section = page
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .unwrap_or_else(|| panic!("docs/metrics.md has no section {heading}"));
    let rows = section.lines().filter(|line| line.starts_with("| `weir_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (cells[1].trim_matches('`').to_owned(), cells[2].to_owned())
    })
    .collect()
}

/// Name and type of each metric of an endpoint.
fn served(url: &str) -> BTreeMap<String, String> {
    let (status, text) = get(url);
    assert_eq!(status, 200);
    text.lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let suffix = if kind == "counter" { "_total" } else { "" };
            (format!("{name}{suffix}"), kind.to_owned())
        })
        .collect()
}

#[track_caller]
fn compare(process: &str, served: &BTreeMap<String, String>, sections: &[&str]) {
    let documented: BTreeMap<_, _> = sections
        .iter()
        .flat_map(|heading| documented(heading))
        .collect();
    let names = |of: &BTreeMap<String, String>| of.keys().cloned().collect::<BTreeSet<_>>();
    let missing: Vec<_> = names(served)
        .difference(&names(&documented))
        .cloned()
        .collect();
    assert!(
        missing.is_empty(),
        "{process} serves what docs/metrics.md does not list: {missing:?}"
    );
    let unknown: Vec<_> = names(&documented)
        .difference(&names(served))
        .cloned()
        .collect();
    assert!(
        unknown.is_empty(),
        "docs/metrics.md lists what {process} does not serve: {unknown:?}"
    );
    assert_eq!(*served, documented, "types differ");
}

fn the_page_lists_what_is_served() {
    let lab = Lab::new();
    lab.s3.edit(BUCKET, |bucket| bucket.put("a", "a"));
    let mount = lab.mount("", &[]);
    mount.read("a");
    let url = mount.status()["metrics"].as_str().unwrap().to_owned();
    wait_until("the first inventory", Duration::from_secs(10), || {
        mount.metric("weir_worker_cached_bytes", "") > 0.5
    });
    compare(
        "an embedded mount",
        &served(&url),
        &["Mount", "Worker", "Master", "Origins"],
    );
    let health = get(&url.replace("/metrics", "/healthz"));
    assert_eq!(health, (200, "ok\n".to_owned()));
    mount.unmount();

    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    let mount = lab.mount_at("set", "mnt", &["--master", &cluster.address()]);
    let url = mount.status()["metrics"].as_str().unwrap().to_owned();
    compare("a mount of a cluster", &served(&url), &["Mount", "Origins"]);
    let master = cluster.master.as_ref().unwrap();
    compare(
        "the master",
        &served(&master.url("metrics")),
        &["Master", "Trust", "Origins"],
    );
    mount.read("a");
    let worker = cluster.worker(0);
    wait_until(
        "the worker's first inventory",
        Duration::from_secs(10),
        || worker.metric("weir_worker_cached_bytes", "") > 0.5,
    );
    compare(
        "a worker",
        &served(&worker.url("metrics")),
        &["Worker", "Trust", "Origins"],
    );
    for process in [master, worker] {
        assert_eq!(process.health(), (200, "ok\n".to_owned()));
    }
}
