//! Credentials that the master keeps: what is read with them, who is given them, and where their secrets are not.

use std::cell::RefCell;
use std::error::Error as _;
use std::fmt::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tonic::Code;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_s3_server::Config;
use weir_tests::{
    BUCKET, Cluster, Lab, Process, content, free_port, get, issue, loopback, wait_until,
};
use weir_trust::{Dial, Identity, Role};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_dataset_is_read_with_its_own_credentials_and_they_show_nowhere",
        a_dataset_is_read_with_its_own_credentials_and_they_show_nowhere,
    ),
    (
        "two_sources_of_one_endpoint_have_two_accounts",
        two_sources_of_one_endpoint_have_two_accounts,
    ),
    (
        "a_rotation_fails_no_read_while_the_service_takes_both",
        a_rotation_fails_no_read_while_the_service_takes_both,
    ),
    (
        "what_was_set_is_there_after_the_master_was_killed",
        what_was_set_is_there_after_the_master_was_killed,
    ),
    (
        "credentials_are_given_to_workers_and_to_mounts_of_their_dataset",
        credentials_are_given_to_workers_and_to_mounts_of_their_dataset,
    ),
    (
        "a_mount_without_credentials_reads_through_workers_alone",
        a_mount_without_credentials_reads_through_workers_alone,
    ),
    (
        "each_slip_with_credentials_is_told_and_changes_nothing",
        each_slip_with_credentials_is_told_and_changes_nothing,
    ),
    (
        "a_master_tells_at_its_start_of_a_key_that_does_not_fit",
        a_master_tells_at_its_start_of_a_key_that_does_not_fit,
    ),
];

const SOON: Duration = Duration::from_secs(30);

/// A secret that nothing else has.
fn secret(number: u32) -> String {
    format!(
        "canary-{number}-{:08x}{number}",
        std::process::id().wrapping_mul(2_654_435_761)
    )
}

/// A world whose server takes one pair of keys.
pub(crate) fn keyed() -> Lab {
    Lab::with(Config {
        credentials: Some(("key-0".to_owned(), secret(0))),
        ..Config::default()
    })
}

/// Writes a key file for the master.
fn key_file(lab: &Lab, digit: &str) -> PathBuf {
    let path = lab.path(&format!("key-{digit}"));
    std::fs::write(&path, format!("{}\n", digit.repeat(64))).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn lines(key: &str, secret: &str) -> String {
    format!("access_key_id = {key}\nsecret_access_key = {secret}\n")
}

/// Gives `weir credentials WHAT` with this input to the cluster's master.
fn credentials(
    cluster: &Cluster<'_>,
    lab: &Lab,
    what: &[&str],
    input: &str,
) -> weir_tests::Outcome {
    let (address, certs) = (cluster.address(), cluster.certs_flags("admin"));
    let args = ["credentials"].iter().chain(what).copied();
    let args = args.chain(["--master", &address]);
    let args = args.chain(certs.iter().map(String::as_str));
    lab.weir_with_input(args, input.as_bytes())
}

/// Everything that anybody can see of the processes and their files, with where it is.
fn all_that_shows(lab: &Lab, cluster: &Cluster<'_>, urls: &[String]) -> Vec<(String, Vec<u8>)> {
    fn walk(dir: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && !path.ends_with("mnt") {
                walk(&path, found);
            } else if kind.is_file() {
                let content = std::fs::read(&path).unwrap_or_default();
                found.push((path.display().to_string(), content));
            }
        }
    }
    let mut found = Vec::new();
    walk(&lab.path(""), &mut found);
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        for name in ["cmdline", "environ"] {
            let path = process.path().join(name);
            if let Ok(content) = std::fs::read(&path) {
                found.push((path.display().to_string(), content));
            }
        }
    }
    for url in urls {
        found.push((url.clone(), get(url).1.into_bytes()));
    }
    for args in [
        &["status", "-o", "json"][..],
        &["status"],
        &["dataset", "list", "-o", "json"],
        &["dataset", "get", "set", "-o", "json"],
        &["credentials", "list"],
        &["credentials", "list", "-o", "json"],
    ] {
        let outcome = cluster.weir(args);
        let shown = format!("{}{}", outcome.stdout, outcome.stderr);
        found.push((args.join(" "), shown.into_bytes()));
    }
    found
}

/// Where a text is.
fn places(all: &[(String, Vec<u8>)], text: &str) -> Vec<String> {
    let has = |content: &[u8]| {
        content
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    let places = all.iter().filter(|(_, content)| has(content));
    places.map(|(place, _)| place.clone()).collect()
}

fn a_dataset_is_read_with_its_own_credentials_and_they_show_nowhere() {
    let lab = keyed();
    let key = key_file(&lab, "1");
    let file = |number: u64| (format!("dir-{number}/f"), content(number, 20_000));
    lab.s3.edit(BUCKET, |bucket| {
        for number in 0..6 {
            let (name, content) = file(number);
            bucket.put(name, content);
        }
    });
    let flags = ["--credentials-key", key.to_str().unwrap()];
    let mut cluster = Cluster::start_secure_master(&lab, &flags, 2);
    let (endpoint, url) = (lab.s3.endpoint(), lab.url(""));
    let told = RefCell::new(String::new());
    let run = |what: &[&str], input: &str| {
        let outcome = credentials(&cluster, &lab, what, input);
        let mut told = told.borrow_mut();
        write!(told, "{}{}", outcome.stdout, outcome.stderr).unwrap();
        outcome
    };
    let set = ["set", "team", "--endpoint", &endpoint];
    run(&set, &lines("key-0", &secret(0))).ok();
    // Nothing of the processes' own reads this bucket.
    let plain = ["dataset", "create", "plain", &url, "--endpoint", &endpoint];
    cluster.weir(&plain).fails(5);
    let create = ["dataset", "create", "set", &url, "--endpoint", &endpoint];
    let create = [&create[..], &["--credentials", "team"]].concat();
    cluster.weir(&create).ok();
    let mount = cluster.mount("set", "node-0");
    let reads = |number: u64| {
        let (name, content) = file(number);
        std::fs::read(mount.path(&name)).is_ok_and(|bytes| bytes == content)
    };
    assert!(reads(0));

    // New ones: workers that run use them, as soon as the service refuses the old.
    let other = secret(1);
    lab.s3.replace_keys("key-1", &other);
    run(&["rotate", "team"], &lines("key-1", &other)).ok();
    assert!(reads(1));
    // Wrong ones are named where a read fails, and not shown.
    lab.s3.replace_keys("key-2", &secret(2));
    run(&["rotate", "team"], &lines("key-2", &secret(3))).ok();
    let (name, _) = file(2);
    let error = std::fs::read(mount.path(&name)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let refresh = cluster.weir(&["dataset", "refresh", "set"]);
    told.borrow_mut().push_str(&refresh.stderr);
    let refused = refresh.fails(5);
    assert!(
        refused.contains("team") && refused.contains("rotate"),
        "{refused}"
    );
    run(&["rotate", "team"], &lines("key-2", &secret(2))).ok();
    wait_until("it is read again", SOON, || reads(2));

    // While the master is away workers go on, and without workers the mount reads by itself once the master is back.
    cluster.master.as_mut().unwrap().kill();
    assert!(reads(3));
    for worker in cluster.workers.iter_mut().flatten() {
        worker.kill();
    }
    cluster.start_master();
    wait_until("the mount reads by itself", SOON, || reads(4));
    assert!(mount.metric("weir_client_read_bytes_total", "origin") > 1.0);
    for number in 0..2 {
        cluster.start_worker(number);
    }
    cluster.wait_for_workers(2);
    wait_until("it is read", SOON, || reads(5));

    // A server that goes over cannot say what it had.
    mount.kill_server();
    wait_until("it is read after a restart", SOON, || reads(0));
    let listed = cluster.weir(&["credentials", "list", "-o", "json"]).ok();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["name"], "team");
    assert_eq!(listed[0]["kind"], "keys");
    assert_eq!(listed[0]["datasets"][0], "set");
    assert!(listed[0]["last_used"].is_string(), "{listed}");

    let metrics = || mount.status()["metrics"].as_str().unwrap().to_owned();
    wait_until("the new server serves its metrics", SOON, || {
        let url = metrics();
        let address = url.trim_start_matches("http://").split('/').next();
        address.is_some_and(|address| TcpStream::connect(address).is_ok())
    });
    let mut urls = vec![metrics()];
    let servers = cluster.workers.iter().flatten().chain(&cluster.master);
    urls.extend(servers.map(|server| server.url("metrics")));
    let mut all = all_that_shows(&lab, &cluster, &urls);
    all.push((
        "what commands said".to_owned(),
        told.into_inner().into_bytes(),
    ));
    for number in 0..4 {
        let found = places(&all, &secret(number));
        assert!(found.is_empty(), "secret {number} is in {found:?}");
    }
    // What is no secret is found, so that what is looked at is what there is.
    for (text, place) in [
        ("team", "master.log"),
        ("team", "node-0/origins.json"),
        ("team", "dataset get"),
        ("credentials-key", "cmdline"),
        ("weir_origin_requests_total", "metrics"),
    ] {
        let found = places(&all, text);
        assert!(
            found.iter().any(|found| found.contains(place)),
            "{text}: {found:?}"
        );
    }
    std::fs::write(lab.path("control"), secret(0)).unwrap();
    let all = all_that_shows(&lab, &cluster, &[]);
    let control = lab.path("control").display().to_string();
    assert_eq!(places(&all, &secret(0)), [control]);
    mount.unmount();
}

fn two_sources_of_one_endpoint_have_two_accounts() {
    let lab = keyed();
    let key = key_file(&lab, "1");
    for (number, bucket) in [(4, "one"), (5, "two")] {
        lab.s3
            .edit(bucket, |of| of.put("f", format!("in {bucket}")));
        lab.s3
            .add_account(&format!("key-{bucket}"), &secret(number), bucket);
    }
    let flags = ["--credentials-key", key.to_str().unwrap()];
    let cluster = Cluster::start_secure_master(&lab, &flags, 1);
    let endpoint = lab.s3.endpoint();
    for (number, bucket) in [(4, "one"), (5, "two")] {
        let set = ["set", bucket, "--endpoint", &endpoint];
        let input = lines(&format!("key-{bucket}"), &secret(number));
        credentials(&cluster, &lab, &set, &input).ok();
    }
    let runtime = runtime();
    let mut admin = client(&lab, &runtime, &cluster.address(), Some("admin"));
    let source = |bucket: &str, with: &str| v1::MountSpec {
        origin: Some(v1::OriginSpec {
            url: format!("s3://{bucket}"),
            endpoint: endpoint.clone(),
            credentials: with.to_owned(),
            ..v1::OriginSpec::default()
        }),
        path: bucket.to_owned(),
    };
    let mut create = |name: &str, mounts: Vec<v1::MountSpec>| {
        let create = v1::CreateDatasetRequest {
            spec: String::new(),
            name: name.to_owned(),
            mounts,
        };
        runtime.block_on(admin.create_dataset(create)).map(drop)
    };
    // Each account has its own bucket and no other.
    let refused = create("swapped", vec![source("one", "two")]).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    create("both", vec![source("one", "one"), source("two", "two")]).unwrap();
    let mount = cluster.mount("both", "node-0");
    assert_eq!(mount.read("one/f"), b"in one");
    assert_eq!(mount.read("two/f"), b"in two");
    mount.unmount();
    // What one dataset has cached is not another's that reads it with other credentials, though those show it, too.
    lab.s3.add_account("key-three", &secret(6), "one");
    let set = ["set", "three", "--endpoint", &endpoint];
    credentials(&cluster, &lab, &set, &lines("key-three", &secret(6))).ok();
    create("same", vec![source("one", "one")]).unwrap();
    create("other", vec![source("one", "three")]).unwrap();
    let gets = |name: &str, mnt: &str| {
        let before = lab.s3.stats().gets();
        let mount = cluster.mount(name, mnt);
        assert_eq!(mount.read("one/f"), b"in one");
        mount.unmount();
        lab.s3.stats().gets() - before
    };
    assert_eq!(gets("same", "node-0"), 0);
    assert_eq!(gets("other", "node-0"), 1);
}

fn a_rotation_fails_no_read_while_the_service_takes_both() {
    /// Files that each thread reads, all of them cold.
    const FILES: u32 = 150;
    let lab = keyed();
    let cluster = with_dataset(&lab, &[]);
    lab.s3.edit(BUCKET, |bucket| {
        for reader in 0..4 {
            for number in 0..FILES {
                bucket.put(format!("r-{reader}/{number}"), format!("{reader} {number}"));
            }
        }
    });
    cluster.weir(&["dataset", "refresh", "set"]).ok();
    let address = cluster.address();
    let certs = cluster.certs_flags("admin");
    let flags = [
        "--master",
        &address,
        "--node",
        "node-0",
        "--read-ahead",
        "off",
    ];
    let flags = flags.into_iter().chain(certs.iter().map(String::as_str));
    let flags: Vec<&str> = flags.chain(["--allow-endpoint", "127.0.0.1"]).collect();
    let mount = lab.mount_at("set", "mnt", &flags);
    let done = std::sync::atomic::AtomicU32::new(0);
    let (mount, done) = (&mount, &done);
    std::thread::scope(|scope| {
        let read = |reader: u32| {
            move || {
                for number in 0..FILES {
                    let path = mount.path(&format!("r-{reader}/{number}"));
                    let content = std::fs::read(&path).unwrap();
                    assert_eq!(content, format!("{reader} {number}").into_bytes());
                    done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
        };
        for reader in 0..4 {
            scope.spawn(read(reader));
        }
        let read = |count| {
            wait_until("they have read", SOON, || {
                done.load(std::sync::atomic::Ordering::Relaxed) >= count
            });
        };
        read(50);
        lab.s3.add_account("key-1", &secret(1), BUCKET);
        let rotated = lines("key-1", &secret(1));
        credentials(&cluster, &lab, &["rotate", "team"], &rotated).ok();
        read(150);
        // The old are taken back, sooner than anybody asks for new ones by itself.
        lab.s3.replace_keys("key-1", &secret(1));
    });
    mount.status();
}

fn what_was_set_is_there_after_the_master_was_killed() {
    let lab = keyed();
    let key = key_file(&lab, "1");
    lab.s3.edit(BUCKET, |bucket| bucket.put("f", "content"));
    let flags = ["--credentials-key", key.to_str().unwrap()];
    let mut cluster = Cluster::start_secure_master(&lab, &flags, 1);
    let (endpoint, url) = (lab.s3.endpoint(), lab.url(""));
    let set = ["set", "team", "--endpoint", &endpoint];
    credentials(&cluster, &lab, &set, &lines("key-0", &secret(8))).ok();
    credentials(
        &cluster,
        &lab,
        &["rotate", "team"],
        &lines("key-0", &secret(0)),
    )
    .ok();
    cluster.master.as_mut().unwrap().kill();
    cluster.start_master();
    cluster.wait_for_workers(1);
    let create = ["dataset", "create", "set", &url, "--endpoint", &endpoint];
    let create = [&create[..], &["--credentials", "team"]].concat();
    cluster.weir(&create).ok();
    // A worker that was given them, and is started again after the master was, asks again.
    cluster.master.as_mut().unwrap().kill();
    cluster.workers[0].as_mut().unwrap().kill();
    cluster.start_master();
    cluster.start_worker(0);
    cluster.wait_for_workers(1);
    let mount = cluster.mount("set", "node-0");
    assert_eq!(mount.read("f"), b"content");
    mount.unmount();
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// A client that shows the lab's certificate of this name.
pub(crate) fn client(
    lab: &Lab,
    runtime: &tokio::runtime::Runtime,
    master: &str,
    name: Option<&str>,
) -> MasterClient<tonic::transport::Channel> {
    let _inside = runtime.enter();
    let identity = name.map(|name| Identity::load(&lab.path("certs").join(name)).unwrap());
    let dial = Dial::new(identity);
    MasterClient::new(dial.channel(master, Role::Master, SOON).unwrap())
}

/// Makes a cluster with certificates, one worker, the credentials `team`, and the dataset `set` that uses them.
pub(crate) fn with_dataset<'a>(lab: &'a Lab, master_flags: &[&str]) -> Cluster<'a> {
    let key = key_file(lab, "1");
    lab.s3.edit(BUCKET, |bucket| {
        bucket.put("dir/f", "content");
        bucket.put("other/f", "content");
    });
    let flags = ["--credentials-key", key.to_str().unwrap()];
    let cluster = Cluster::start_secure_master(lab, &[&flags[..], master_flags].concat(), 1);
    let endpoint = lab.s3.endpoint();
    let set = ["set", "team", "--endpoint", &endpoint];
    credentials(&cluster, lab, &set, &lines("key-0", &secret(0))).ok();
    let url = lab.url("");
    let create = ["dataset", "create", "set", &url, "--endpoint", &endpoint];
    cluster
        .weir(&[&create[..], &["--credentials", "team"]].concat())
        .ok();
    cluster
}

fn credentials_are_given_to_workers_and_to_mounts_of_their_dataset() {
    let lab = keyed();
    let cluster = with_dataset(&lab, &[]);
    let endpoint = lab.s3.endpoint();
    let set = ["set", "unused", "--endpoint", &endpoint];
    credentials(&cluster, &lab, &set, &lines("key-0", &secret(0))).ok();
    issue(&lab, "mount", "reader", &[]);
    let runtime = runtime();
    let fetch = |who: Option<&str>, name: &str, dataset: &str| {
        let mut client = client(&lab, &runtime, &cluster.address(), who);
        let request = v1::FetchCredentialRequest {
            name: name.to_owned(),
            dataset: dataset.to_owned(),
            known_revision: 0,
        };
        let given = runtime.block_on(client.fetch_credential(request));
        given.map(|given| given.into_inner().credential.is_some())
    };
    for (who, dataset) in [("node-0", ""), ("reader", "set"), ("admin", "set")] {
        assert!(
            fetch(Some(who), "team", dataset).unwrap(),
            "{who} {dataset}"
        );
    }
    for (who, name, dataset) in [
        ("node-0", "unused", ""),
        ("reader", "team", ""),
        ("reader", "team", "other"),
        ("reader", "unused", "set"),
        ("admin", "team", ""),
        ("node-0", "none", ""),
    ] {
        let denied = fetch(Some(who), name, dataset).unwrap_err();
        assert_eq!(
            denied.code(),
            Code::PermissionDenied,
            "{who} {name} {dataset}: {denied}"
        );
    }
    // A stranger is not even connected.
    let denied = fetch(None, "team", "set").unwrap_err();
    // What it says depends on how far the connection came; an answer of the master's has no source.
    assert!(denied.source().is_some(), "{denied}");
    let log = cluster.master.as_ref().unwrap().log();
    assert!(
        log.contains("mount reader at 127.0.0.1 is not given"),
        "{log}"
    );
    // Nor may others than people set, list or delete them.
    let mut reader = client(&lab, &runtime, &cluster.address(), Some("reader"));
    let listed = runtime.block_on(reader.list_credentials(v1::ListCredentialsRequest {}));
    assert_eq!(listed.unwrap_err().code(), Code::PermissionDenied);
    let delete = v1::DeleteCredentialRequest {
        name: "unused".to_owned(),
    };
    let deleted = runtime.block_on(reader.delete_credential(delete));
    assert_eq!(deleted.unwrap_err().code(), Code::PermissionDenied);

    // A dataset that is gone gives them to nobody.
    cluster.weir(&["dataset", "delete", "set"]).ok();
    let denied = fetch(Some("reader"), "team", "set").unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    cluster.weir(&["credentials", "delete", "team"]).ok();
}

fn a_mount_without_credentials_reads_through_workers_alone() {
    let lab = keyed();
    let mut cluster = with_dataset(&lab, &["--no-origin-fallback"]);
    issue(&lab, "mount", "reader", &[]);
    let runtime = runtime();
    let mut reader = client(&lab, &runtime, &cluster.address(), Some("reader"));
    let fetch = v1::FetchCredentialRequest {
        name: "team".to_owned(),
        dataset: "set".to_owned(),
        known_revision: 0,
    };
    let denied = runtime
        .block_on(reader.fetch_credential(fetch))
        .unwrap_err();
    assert!(
        denied.message().contains("--no-origin-fallback"),
        "{denied}"
    );

    let (address, certs) = (cluster.address(), cluster.certs_flags("reader"));
    let mut flags = vec!["--master", &address, "--node", "node-0"];
    flags.extend(certs.iter().map(String::as_str));
    flags.extend(["--allow-endpoint", "127.0.0.1", "--read-ahead", "off"]);
    for (name, more) in [("mnt", &[][..]), ("mnt-2", &["--no-origin-fallback"])] {
        let mount = lab.mount_at("set", name, &[&flags[..], more].concat());
        assert_eq!(mount.read("dir/f"), b"content");
        cluster.workers[0].as_mut().unwrap().kill();
        let gets = lab.s3.stats().gets();
        let error = std::fs::read(mount.path("other/f")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
        assert_eq!(
            lab.s3.stats().gets(),
            gets,
            "the mount has asked the origin"
        );
        cluster.start_worker(0);
        cluster.wait_for_workers(1);
        wait_until("it is read", SOON, || {
            std::fs::read(mount.path("other/f")).is_ok_and(|bytes| bytes == b"content")
        });
        mount.unmount();
        cluster.weir(&["evict", "set"]).ok();
    }
    let dir = lab.path("own");
    let args = ["mount", "s3://bucket", dir.to_str().unwrap()];
    let refused = lab
        .weir(args.iter().chain(&["--no-origin-fallback"]))
        .fails(2);
    assert!(refused.contains("--master"), "{refused}");
}

fn each_slip_with_credentials_is_told_and_changes_nothing() {
    let lab = keyed();
    let cluster = with_dataset(&lab, &[]);
    let (endpoint, url) = (lab.s3.endpoint(), lab.url(""));
    let good = lines("key-0", &secret(0));
    let before = cluster.weir(&["credentials", "list", "-o", "json"]).ok();
    let fails = |what: &[&str], input: &str, code: i32, said: &str| {
        let message = credentials(&cluster, &lab, what, input).fails(code);
        assert!(message.contains(said), "{what:?}: {message}");
        assert!(!message.contains("canary"), "{message}");
    };
    fails(&["set", "team"], &good, 6, "weir credentials rotate team");
    fails(&["rotate", "none"], &good, 3, "weir credentials set none");
    fails(&["delete", "none"], "", 3, "no credentials none");
    fails(&["delete", "team"], "", 6, "dataset set");
    let elsewhere = ["rotate", "team", "--endpoint", "http://other:9000"];
    fails(&elsewhere, &good, 6, "dataset set is read with them");
    fails(&["set", "a/b/c"], &good, 2, "not valid");
    fails(&["set", "new"], "", 2, "secret_access_key");
    fails(&["set", "new"], &secret(6), 2, "secret_access_key");
    fails(&["set", "new", "--from", "/nowhere"], "", 2, "/nowhere");
    fails(
        &["set", "new"],
        &lines("key 0", &secret(6)),
        2,
        "the access key",
    );
    fails(&["set", "new", "--role-arn", "r"], &good, 2, "no ARN");
    fails(
        &["set", "new", "--endpoint", "minio"],
        &good,
        2,
        "is no service",
    );
    fails(
        &["set", "new", "--header", "Authorization"],
        &secret(6),
        2,
        "--endpoint",
    );
    fails(
        &["set", "new", "--principal", "weir@LAB"],
        &secret(6),
        2,
        "no keytab",
    );
    fails(
        &["set", "new", "--secret-key", &secret(6)],
        &good,
        2,
        "not taken from arguments",
    );
    for what in ["set", "rotate"] {
        let named = [what, "team", "key-0", &secret(6)];
        fails(&named, &good, 2, "not taken from arguments");
    }
    for (namespace, count) in [("default", 1), ("other", 0)] {
        let list = ["credentials", "list", "-n", namespace, "-o", "json"];
        let listed: Value = serde_json::from_str(&cluster.weir(&list).ok()).unwrap();
        assert_eq!(listed.as_array().unwrap().len(), count, "{namespace}");
    }
    let huge = "x".repeat(60_000);
    fails(&["set", "new"], &huge, 2, "secret_access_key");
    // Not to a master far away without a certificate.
    let far = ["credentials", "set", "new", "--master", "192.0.2.1:7440"];
    let refused = lab.weir_with_input(far, good.as_bytes()).fails(2);
    assert!(refused.contains("--certs"), "{refused}");

    let create = |flags: &[&str]| {
        let create = ["dataset", "create", "new", &url];
        cluster.weir(&[&create[..], flags].concat())
    };
    let on = ["--endpoint", &endpoint];
    let with = |name| ["--credentials", name];
    let message = create(&[on, with("none")].concat()).fails(3);
    assert!(message.contains("weir credentials set none"), "{message}");
    let message = create(&[&on[..], &with("team"), &["--anonymous"]].concat()).fails(2);
    assert!(message.contains("--anonymous"), "{message}");
    // Team's keys are not for AWS, nor for any other service.
    let message = create(&with("team")).fails(2);
    assert!(
        message.contains("not for https://s3.amazonaws.com"),
        "{message}"
    );
    let elsewhere = ["--endpoint", "https://evil.example"];
    let message = create(&[elsewhere, with("team")].concat()).fails(2);
    assert!(
        message.contains("not for https://evil.example"),
        "{message}"
    );
    let header = [
        "set",
        "header",
        "--header",
        "X-Token",
        "--endpoint",
        &endpoint,
    ];
    credentials(&cluster, &lab, &header, &secret(6)).ok();
    let message = create(&[on, with("header")].concat()).fails(2);
    assert!(message.contains("of the kind header"), "{message}");
    fails(&["rotate", "header"], "a\nb", 2, "line break");
    credentials(&cluster, &lab, &["rotate", "header"], &secret(7)).ok();
    credentials(&cluster, &lab, &["delete", "header"], "").ok();
    assert_eq!(
        cluster.weir(&["credentials", "list", "-o", "json"]).ok(),
        before
    );
    let datasets = cluster.weir(&["dataset", "list", "-o", "json"]).ok();
    assert!(!datasets.contains("\"new\""), "{datasets}");
}

fn a_master_tells_at_its_start_of_a_key_that_does_not_fit() {
    let mut lab = keyed();
    let (one, two) = (key_file(&lab, "1"), key_file(&lab, "2"));
    let (one, two) = (
        one.to_str().unwrap().to_owned(),
        two.to_str().unwrap().to_owned(),
    );
    let (port, http) = (free_port(), free_port());
    let (listen, metrics) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{http}"));
    let dir = lab.path("master");
    let args = ["master", "--dir", dir.to_str().unwrap()];
    let args = [&args[..], &["--listen", &listen, "--http", &metrics]].concat();
    let start = |lab: &Lab, flags: &[&str]| {
        let command = lab.command(args.iter().chain(flags));
        Process::start(command, lab.path("master.log"), loopback(http))
    };
    let refused = |lab: &Lab, flags: &[&str], code| {
        let message = lab.weir(args.iter().chain(flags)).fails(code);
        assert!(!message.contains("1111"), "{message}");
        message
    };
    let set = |lab: &Lab| {
        let set = ["credentials", "set", "team", "--master", &listen];
        lab.weir_with_input(set, lines("key-0", &secret(0)).as_bytes())
    };
    {
        // Without a key it takes none, and nobody who is not known sets any.
        let _master = start(&lab, &[]);
        let message = set(&lab).fails(7);
        assert!(message.contains("--credentials-key"), "{message}");
    }
    {
        let _master = start(&lab, &["--credentials-key", &one, "--insecure"]);
        let message = set(&lab).fails(5);
        assert!(message.contains("--insecure"), "{message}");
    }
    {
        // Processes of the same user on this machine are known.
        let _master = start(&lab, &["--credentials-key", &one]);
        set(&lab).ok();
    }
    let message = refused(&lab, &["--credentials-key", &two], 1);
    assert!(message.contains("not the one"), "{message}");
    let message = refused(&lab, &[], 1);
    assert!(
        message.contains("no key") && message.contains("--credentials-key"),
        "{message}"
    );
    std::fs::set_permissions(&one, std::fs::Permissions::from_mode(0o644)).unwrap();
    let message = refused(&lab, &["--credentials-key", &one], 2);
    assert!(message.contains("chmod 600"), "{message}");
    let message = refused(&lab, &["--credentials-key", "/dev/null"], 2);
    assert!(message.contains("regular file"), "{message}");
    std::fs::set_permissions(&one, std::fs::Permissions::from_mode(0o600)).unwrap();
    // A newer key in front of the file, and then it alone, in a variable.
    let both = format!("{}\n{}\n", "2".repeat(64), "1".repeat(64));
    std::fs::write(&one, both).unwrap();
    drop(start(&lab, &["--credentials-key", &one]));
    lab.set_env("WEIR_CREDENTIALS_KEY", &"2".repeat(64));
    let _master = start(&lab, &[]);
    let listed = lab.weir(["credentials", "list", "--master", &listen]).ok();
    assert!(listed.contains("team"), "{listed}");
}
