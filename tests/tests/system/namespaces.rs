//! Datasets of several namespaces in one cluster.

use std::time::Duration;

use weir_tests::{BUCKET, Cluster, Lab, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "the_same_name_in_two_namespaces_is_two_datasets",
        the_same_name_in_two_namespaces_is_two_datasets,
    ),
    (
        "a_name_without_a_namespace_is_in_the_default_one",
        a_name_without_a_namespace_is_in_the_default_one,
    ),
    (
        "hostile_names_are_refused_and_change_nothing",
        hostile_names_are_refused_and_change_nothing,
    ),
];

const SOON: Duration = Duration::from_secs(20);

fn put(lab: &Lab, keys: &[&'static str]) {
    lab.s3.edit(BUCKET, |bucket| {
        for key in keys {
            bucket.put(*key, *key);
        }
    });
}

/// Makes a dataset of one prefix of the lab's bucket.
fn create(lab: &Lab, cluster: &Cluster<'_>, name: &str, prefix: &str) {
    let (url, origin) = (lab.url(prefix), lab.origin_flags());
    let mut args = vec!["dataset", "create", name, &url];
    args.extend(origin.iter().map(String::as_str));
    cluster.weir(&args).ok();
}

/// The names of the datasets that `weir dataset list` shows with these flags.
fn names(cluster: &Cluster<'_>, flags: &[&str]) -> Vec<String> {
    let list = [&["dataset", "list", "-o", "json"], flags].concat();
    let list: serde_json::Value = serde_json::from_str(&cluster.weir(&list).ok()).unwrap();
    let name = |dataset: &serde_json::Value| dataset["name"].as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(name).collect()
}

fn the_same_name_in_two_namespaces_is_two_datasets() {
    let lab = Lab::new();
    put(&lab, &["a/1", "b/1", "b/2", "c/1", "team/1"]);
    let mut cluster = Cluster::start(&lab, 1);
    // One of the default namespace is called as the others' namespace.
    for (name, prefix) in [
        ("team-a/set", "a"),
        ("team-b/set", "b"),
        ("set", "c"),
        ("team-a", "team"),
    ] {
        create(&lab, &cluster, name, prefix);
    }
    for name in ["team-a/set", "team-b/set"] {
        cluster.weir(&["warm", name, "--wait"]).ok();
    }
    for (source, content) in [
        ("team-a/set", "a/1"),
        ("team-b/set@1", "b/1"),
        ("set", "c/1"),
        ("team-a", "team/1"),
    ] {
        let mount = cluster.mount(source, "node-0");
        assert_eq!(mount.read("1"), content.as_bytes());
        let label = match source.split('@').next().unwrap().split_once('/') {
            Some((namespace, name)) => (namespace, name),
            None => ("default", source),
        };
        let label = format!("namespace=\"{}\",dataset=\"{}\"", label.0, label.1);
        wait_until("the read is counted by its namespace", SOON, || {
            mount.metric("weir_client_block_reads_total", &label) >= 1.0
        });
    }
    let all = ["set", "team-a", "team-a/set", "team-b/set"];
    assert_eq!(names(&cluster, &[]), all);
    assert_eq!(names(&cluster, &["-n", "team-a"]), ["team-a/set"]);
    assert_eq!(
        names(&cluster, &["--namespace", "default"]),
        ["set", "team-a"]
    );
    assert!(names(&cluster, &["-n", "nobody"]).is_empty());
    let status = cluster.weir(&["status", "-n", "team-b", "-o", "json"]).ok();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let shown = status["masters"][0]["datasets"].as_array().unwrap();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0]["name"], "team-b/set");
    let files = |namespace: &str| {
        let master = cluster.master.as_ref().unwrap();
        let label = format!("namespace=\"{namespace}\",dataset=\"set\"");
        master.metric("weir_master_dataset_files", &label)
    };
    for (namespace, count) in [("team-a", 1.0), ("team-b", 2.0), ("default", 1.0)] {
        assert!((files(namespace) - count).abs() < 0.1, "{namespace}");
    }
    // What is cached is known by namespace, too.
    wait_until("the inventories are reported", SOON, || {
        let status = cluster.weir(&["status", "-o", "json"]).ok();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let datasets = status["masters"][0]["datasets"].as_array().unwrap();
        let cached = |name: &str| {
            let dataset = datasets.iter().find(|d| d["name"] == name);
            dataset.unwrap()["cached_bytes"].as_u64().unwrap()
        };
        cached("team-a/set") == 3 && cached("team-b/set") == 6
    });

    // One of them goes, the others stay as they are, also over a restart.
    cluster.weir(&["dataset", "delete", "team-a"]).ok();
    cluster.weir(&["dataset", "delete", "team-b/set"]).ok();
    cluster.weir(&["dataset", "get", "team-b/set"]).fails(3);
    cluster.master = None;
    cluster.start_master();
    cluster.wait_for_workers(1);
    assert_eq!(names(&cluster, &[]), ["set", "team-a/set"]);
    put(&lab, &["a/2"]);
    cluster.weir(&["dataset", "refresh", "team-a/set"]).ok();
    let mount = cluster.mount("team-a/set@2", "node-0");
    assert_eq!(mount.read("2"), b"a/2");
    let mounts = |namespace: &str| {
        let status = ["status", "-n", namespace, "-o", "json"];
        let status: serde_json::Value = serde_json::from_str(&cluster.weir(&status).ok()).unwrap();
        status["mounts"].as_array().unwrap().len()
    };
    assert_eq!((mounts("team-a"), mounts("default")), (1, 0));
}

fn a_name_without_a_namespace_is_in_the_default_one() {
    let lab = Lab::new();
    put(&lab, &["a/1"]);
    let cluster = Cluster::start(&lab, 1);
    create(&lab, &cluster, "default/set", "a");
    create(&lab, &cluster, "set", "a");
    create(&lab, &cluster, "team-a/set", "a");
    assert_eq!(names(&cluster, &[]), ["set", "team-a/set"]);
    cluster.weir(&["warm", "default/set", "--wait"]).ok();
    let yaml = cluster
        .weir(&["dataset", "get", "default/set", "-o", "yaml"])
        .ok();
    assert!(!yaml.contains("namespace"), "{yaml}");
    let yaml = cluster
        .weir(&["dataset", "get", "team-a/set", "-o", "yaml"])
        .ok();
    assert!(yaml.contains("name: set\n  namespace: team-a\n"), "{yaml}");
    let path = lab.path("set.yaml");
    std::fs::write(&path, yaml).unwrap();
    let applied = cluster.weir(&["apply", "-f", path.to_str().unwrap()]).ok();
    assert_eq!(applied, "dataset team-a/set unchanged\n");
    let mount = cluster.mount("default/set", "node-0");
    assert_eq!(mount.read("1"), b"a/1");
    let datasets = cluster.status()["datasets"].take();
    let names: Vec<&str> = datasets
        .as_array()
        .unwrap()
        .iter()
        .map(|dataset| dataset["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["set", "team-a/set"]);
}

fn hostile_names_are_refused_and_change_nothing() {
    let lab = Lab::new();
    put(&lab, &["a/1"]);
    let cluster = Cluster::start(&lab, 0);
    let (url, origin) = (lab.url("a"), lab.origin_flags());
    let long = "x".repeat(64);
    let (long_name, long_namespace) = (format!("team/{long}"), format!("{long}/set"));
    for name in [
        "..",
        "../set",
        "team/..",
        "team/",
        "/set",
        "team//set",
        "a/b/c",
        "team/a b",
        "te\nam/set",
        "team/\u{1b}[2J",
        "Team/set",
        "team/Set",
        "team_a/set",
        "team.a/set",
        "set@1",
        "",
        "Set",
        "a.b",
        "a_b",
        "a-",
        &long,
        &long_name,
        &long_namespace,
    ] {
        let mut args = vec!["dataset", "create", name, &url];
        args.extend(origin.iter().map(String::as_str));
        let error = cluster.weir(&args).fails(2);
        assert!(error.contains("use 1 to"), "{name:?}: {error}");
    }
    assert!(names(&cluster, &[]).is_empty());
    assert!(!lab.path("master/manifests").exists());
    let (longest, name) = ("n".repeat(63), "x".repeat(63));
    let longest = format!("{longest}/{name}");
    create(&lab, &cluster, &longest, "a");
    assert_eq!(names(&cluster, &[]), [longest.as_str()]);
    cluster.weir(&["dataset", "list", "-n", "../x"]).fails(2);
    cluster.weir(&["status", "-n", ""]).fails(2);
}
