//! Which sources a cluster reads, and with whose keys. Whoever may name a dataset must not be able to name just any file
//! or address.

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use tonic::transport::Endpoint;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_s3_server::{Config, S3Server};
use weir_tests::{BUCKET, Cluster, Lab, Process, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "files_are_read_where_each_process_allows_it_alone",
        files_are_read_where_each_process_allows_it_alone,
    ),
    (
        "who_is_refused_a_thousand_times_does_not_fill_the_log",
        who_is_refused_a_thousand_times_does_not_fill_the_log,
    ),
    (
        "an_endpoint_that_nobody_allowed_gets_no_request_and_no_keys",
        an_endpoint_that_nobody_allowed_gets_no_request_and_no_keys,
    ),
    (
        "a_worker_trusts_no_master_with_an_endpoint",
        a_worker_trusts_no_master_with_an_endpoint,
    ),
    (
        "the_endpoint_of_the_process_s_environment_is_its_own",
        the_endpoint_of_the_process_s_environment_is_its_own,
    ),
];

const SOON: Duration = Duration::from_secs(20);

/// Asserts that a process has told who wanted what.
#[track_caller]
fn told(process: &Process, words: &[&str]) {
    let tells = |line: &str| words.iter().all(|word| line.contains(word));
    let log = process.log();
    assert!(log.lines().any(tells), "{words:?} are not in\n{log}");
}

fn names(cluster: &Cluster<'_>) -> String {
    cluster.weir(&["dataset", "list", "-o", "json"]).ok()
}

fn who_is_refused_a_thousand_times_does_not_fill_the_log() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let master = format!("http://{}", cluster.address());
    let began = Instant::now();
    runtime.block_on(async {
        let channel = Endpoint::from_shared(master).unwrap().connect_lazy();
        let mut client = MasterClient::new(channel);
        for number in 0..1000 {
            let origin = v1::OriginSpec {
                url: "file:///etc".to_owned(),
                ..Default::default()
            };
            let request = v1::CreateDatasetRequest {
                spec: String::new(),
                name: format!("etc-{number}"),
                mounts: vec![v1::MountSpec {
                    origin: Some(origin),
                    path: String::new(),
                }],
            };
            client.create_dataset(request).await.unwrap_err();
        }
    });
    let log = cluster.master.as_ref().unwrap().log();
    let lines = log.lines().filter(|line| line.contains("/etc")).count();
    let windows = began.elapsed().as_secs() as usize / 10 + 2;
    assert!(lines > 0 && lines <= 10 * windows, "{lines} lines");
    // It still works.
    lab.s3.edit(BUCKET, |bucket| bucket.put("a", "content"));
    cluster.create_dataset("set");
}

fn files_are_read_where_each_process_allows_it_alone() {
    let lab = Lab::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("shadow"), "root:secret").unwrap();
    let url = format!("file://{}", outside.path().display());
    let allowed = ["--allow-file", outside.path().to_str().unwrap()];
    {
        let cluster = Cluster::start(&lab, 1);
        symlink(outside.path(), lab.path("innocent")).unwrap();
        let link = format!("file://{}", lab.path("innocent").display());
        let missing = "file:///not/there".to_owned();
        for (name, url) in [
            ("etc", "file:///etc".to_owned()),
            ("outside", url.clone()),
            ("link", link),
            ("missing", missing),
        ] {
            // This caller is one whom the master admits.
            let refused = cluster.weir(&["dataset", "create", name, &url]).fails(5);
            for said in [url.as_str(), "`weir master`", "--allow-file"] {
                assert!(refused.contains(said), "{refused}");
            }
            told(
                cluster.master.as_ref().unwrap(),
                &["WARN", "that user", name, &url],
            );
        }
        let up = format!("file://{}/../etc", lab.path("").display());
        cluster.weir(&["dataset", "create", "up", &up]).fails(2);
        // Nor by another user of this machine.
        let address = cluster.address();
        let create = ["dataset", "create", "nobody", "file:///etc", "--master"];
        let create = [&create[..], &[&address]].concat();
        if let Some(outcome) = lab.weir_as_nobody(create) {
            outcome.fails(4);
        }
        let listed = names(&cluster);
        for name in ["etc", "outside", "link", "missing", "up", "nobody"] {
            assert!(!listed.contains(&format!("{name:?}")), "{listed}");
        }
    }
    // A worker and a mount do not take it from a master that such a directory is theirs to read.
    let lab = Lab::new();
    let cluster = Cluster::start_allowing(&lab, &allowed, &[&[]], &[]);
    cluster.weir(&["dataset", "create", "outside", &url]).ok();
    let mount = cluster.mount("outside", "elsewhere");
    let error = std::fs::read(mount.path("shadow")).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    told(
        cluster.worker(0),
        &["WARN", "`weir worker`", "--allow-file"],
    );
    assert!(mount.log().contains("`weir mount`"), "{}", mount.log());
    drop(mount);
    drop(cluster);
    let lab = Lab::new();
    let cluster = Cluster::start_allowing(&lab, &allowed, &[&allowed], &[]);
    cluster.weir(&["dataset", "create", "outside", &url]).ok();
    let mount = cluster.mount("outside", "elsewhere");
    assert_eq!(mount.read("shadow"), b"root:secret");
}

/// Keys that must never leave.
fn with_keys(lab: &mut Lab) {
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "the-key"),
        ("AWS_SECRET_ACCESS_KEY", "the-secret"),
        ("AWS_SESSION_TOKEN", "the-token"),
    ] {
        lab.set_env(name, value);
    }
}

fn an_endpoint_that_nobody_allowed_gets_no_request_and_no_keys() {
    let thief = TcpListener::bind("127.0.0.2:0").unwrap();
    thief.set_nonblocking(true).unwrap();
    let port = thief.local_addr().unwrap().port();
    let near = [
        format!("http://127.0.0.2:{port}"),
        format!("http://2130706434:{port}"),
        format!("http://0x7f.2:{port}"),
        format!("http://[::ffff:127.0.0.2]:{port}"),
        format!("http://localhost:{port}"),
        format!("http://0.0.0.0:{port}"),
        "http://169.254.169.254".to_owned(),
    ];
    let url = format!("s3://{BUCKET}/");
    // With endpoints named, and without.
    for named in [&["--allow-endpoint", "near.weir.invalid"] as &[&str], &[]] {
        let mut scratch = Lab::new();
        with_keys(&mut scratch);
        let cluster = Cluster::start_allowing(&scratch, named, &[], &[]);
        for endpoint in &near {
            for anonymous in [&["--anonymous"] as &[&str], &[]] {
                let create = ["dataset", "create", "bait", &url, "--endpoint", endpoint];
                let refused = cluster.weir(&[&create[..], anonymous].concat()).fails(5);
                for said in ["`weir master`", "--allow-endpoint"] {
                    assert!(refused.contains(said), "{endpoint}: {refused}");
                }
            }
        }
        let master = cluster.master.as_ref().unwrap();
        told(
            master,
            &["WARN", "that user", "bait", "127.0.0.2", "--allow-endpoint"],
        );
        // Elsewhere, it is the keys that are kept.
        let far = "http://s3.weir.invalid:9000";
        let create = ["dataset", "create", "bait", &url, "--endpoint", far];
        let refused = cluster.weir(&create).fails(5);
        assert!(
            refused.contains(far.trim_start_matches("http://")),
            "{refused}"
        );
        if named.is_empty() {
            assert!(
                refused.contains("credentials of `weir master`"),
                "{refused}"
            );
            let anonymous = [&create[..], &["--anonymous"]].concat();
            let looked_up = cluster.weir(&anonymous).code;
            assert!([4, 7].contains(&looked_up), "{looked_up}");
        }
        let log = master.log();
        assert!(
            !log.contains("the-secret") && !log.contains("the-token"),
            "{log}"
        );
        assert!(!names(&cluster).contains("bait"));
    }
    let nobody = thief.accept().unwrap_err();
    assert_eq!(
        nobody.kind(),
        std::io::ErrorKind::WouldBlock,
        "somebody connected"
    );
}

fn a_worker_trusts_no_master_with_an_endpoint() {
    let lab = Lab::new();
    let elsewhere = S3Server::start(Config {
        listen: ([127, 0, 0, 2], 0).into(),
        ..Config::default()
    })
    .unwrap();
    elsewhere.edit(BUCKET, |bucket| bucket.put("a", "content"));
    let any = ["--allow-endpoint", "any"];
    let other = ["--allow-endpoint", "127.0.0.1"];
    let cluster = Cluster::start_allowing(&lab, &any, &[&other], &other);
    let (url, endpoint) = (lab.url(""), elsewhere.endpoint());
    let create = [
        "dataset",
        "create",
        "set",
        &url,
        "--endpoint",
        &endpoint,
        "--anonymous",
    ];
    cluster.weir(&create).ok();
    let mount = cluster.mount("set", "elsewhere");
    let error = std::fs::read(mount.path("a")).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    assert_eq!(elsewhere.stats().gets(), 0);
    wait_until("the worker tells of it", SOON, || {
        let log = cluster.worker(0).log();
        log.contains("`weir worker`") && log.contains("--allow-endpoint")
    });
}

fn the_endpoint_of_the_process_s_environment_is_its_own() {
    let mut lab = Lab::with(Config {
        credentials: Some(("the-key".to_owned(), "the-secret".to_owned())),
        ..Config::default()
    });
    lab.s3.edit(BUCKET, |bucket| bucket.put("a", "signed"));
    with_keys(&mut lab);
    let endpoint = lab.s3.endpoint();
    lab.set_env("AWS_ENDPOINT_URL", &endpoint);
    let cluster = Cluster::start_allowing(&lab, &[], &[&[]], &[]);
    cluster
        .weir(&["dataset", "create", "set", &lab.url("")])
        .ok();
    let mount = cluster.mount("set", "elsewhere");
    assert_eq!(mount.read("a"), b"signed");
}
