//! Who may do what: another user of the machine, a process without a certificate, and one with another's.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_tests::{BUCKET, Cluster, Lab, Process, free_port, issue, loopback, wait_until};
use weir_trust::{Authority, Dial, Identity, Role, Subject, Validity};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_server_that_others_can_reach_knows_its_callers_or_does_not_start",
        a_server_that_others_can_reach_knows_its_callers_or_does_not_start,
    ),
    (
        "an_open_server_says_so_everywhere",
        an_open_server_says_so_everywhere,
    ),
    (
        "another_user_cannot_control_a_mount",
        another_user_cannot_control_a_mount,
    ),
    (
        "another_user_cannot_call_a_master_on_loopback",
        another_user_cannot_call_a_master_on_loopback,
    ),
    (
        "a_cluster_with_certificates_works_and_says_so",
        a_cluster_with_certificates_works_and_says_so,
    ),
    ("each_call_is_for_its_roles", each_call_is_for_its_roles),
    (
        "a_forged_heartbeat_is_refused",
        a_forged_heartbeat_is_refused,
    ),
    (
        "only_calls_that_need_large_messages_take_them",
        only_calls_that_need_large_messages_take_them,
    ),
    (
        "renewed_certificates_are_used_without_a_restart",
        renewed_certificates_are_used_without_a_restart,
    ),
    (
        "a_mount_that_has_lost_its_certificate_reads_on",
        a_mount_that_has_lost_its_certificate_reads_on,
    ),
    (
        "certificates_are_made_shown_and_renewed",
        certificates_are_made_shown_and_renewed,
    ),
    (
        "a_lost_certificate_ends_with_its_authority",
        a_lost_certificate_ends_with_its_authority,
    ),
    (
        "a_worker_that_claims_more_than_its_certificate_does_not_start",
        a_worker_that_claims_more_than_its_certificate_does_not_start,
    ),
    (
        "the_lines_of_the_security_page_work",
        the_lines_of_the_security_page_work,
    ),
    (
        "a_cluster_of_one_command_works_and_ends_with_it",
        a_cluster_of_one_command_works_and_ends_with_it,
    ),
];

/// Longest wait for what should come soon.
const SOON: Duration = Duration::from_secs(20);

fn one_file(lab: &Lab) {
    lab.s3.edit(BUCKET, |bucket| bucket.put("a", "content"));
}

fn a_server_that_others_can_reach_knows_its_callers_or_does_not_start() {
    let lab = Lab::new();
    let dir = lab.path("dir");
    let dir = dir.to_str().unwrap();
    let open = format!("0.0.0.0:{}", free_port());
    let http = ["--http", "127.0.0.1:0"];
    let master = ["master", "--dir", dir, "--listen", &open];
    let data = ["--listen", &open, "--control", "127.0.0.1:0"];
    let control = ["--listen", "127.0.0.1:0", "--control", "[::]:0"];
    let worker = ["worker", "--master", "127.0.0.1:1", "--dir", dir];
    for args in [
        master.to_vec(),
        [&worker[..], &data].concat(),
        [&worker[..], &control].concat(),
    ] {
        let message = lab.weir([&args[..], &http].concat()).fails(2);
        assert!(
            message.contains("--certs") && message.contains("--insecure"),
            "{message}"
        );
        assert!(!Path::new(dir).join("store").exists(), "nothing is made");
    }
    let message = lab
        .weir([&master[..], &["--certs", "/nowhere"]].concat())
        .fails(3);
    assert!(message.contains("/nowhere/ca.crt"), "{message}");
    // A variable that is set to nothing is none.
    let mut lab = lab;
    lab.set_env("WEIR_CERTS", "");
    lab.weir(master).fails(2);
}

fn an_open_server_says_so_everywhere() {
    let lab = Lab::new();
    let (port, http) = (free_port(), free_port());
    let (listen, metrics) = (format!("0.0.0.0:{port}"), format!("127.0.0.1:{http}"));
    let dir = lab.path("master");
    let dir = dir.to_str().unwrap();
    let args = [
        "--dir",
        dir,
        "--listen",
        &listen,
        "--http",
        &metrics,
        "--insecure",
    ];
    let command = lab.command(["master"].iter().chain(&args));
    let master = Process::start(command, lab.path("master.log"), loopback(http));
    assert!(master.metric("weir_insecure", "") > 0.5);
    let log = master.log();
    assert!(
        log.contains("WARN") && log.contains("open to everybody"),
        "{log}"
    );
    let address = format!("127.0.0.1:{port}");
    let status = lab.weir(["status", "--master", &address]).ok();
    assert!(status.contains("callers: insecure"), "{status}");
    // Nor does it ask who another user is.
    if let Some(outcome) = lab.weir_as_nobody(["status", "--master", &address]) {
        outcome.ok();
    }
}

/// TCP ports on which a process listens.
fn listening_ports(pid: Pid) -> BTreeSet<u16> {
    let links = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).unwrap();
    let links = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    let sockets: BTreeSet<String> = links
        .filter_map(|link| {
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let tables = tables.map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    rows.filter_map(|row| {
        let fields: Vec<&str> = row.split_ascii_whitespace().collect();
        let listens = fields[3] == "0A" && sockets.contains(fields[9]);
        let port = fields[1].rsplit(':').next()?;
        listens.then(|| u16::from_str_radix(port, 16).unwrap())
    })
    .collect()
}

/// Attack 2: somebody's dataset was deleted through a root mount's port by user nobody.
fn another_user_cannot_control_a_mount() {
    let lab = Lab::new();
    one_file(&lab);
    let mount = lab.mount("", &[]);
    let metrics = mount.status()["metrics"].as_str().unwrap().to_owned();
    let metrics: u16 = metrics.split([':', '/']).nth(4).unwrap().parse().unwrap();
    assert_eq!(listening_ports(mount.server()), [metrics].into());

    let status: Value = serde_json::from_str(&lab.weir(["status", "-o", "json"]).ok()).unwrap();
    let address = status["masters"][0]["address"].as_str().unwrap().to_owned();
    let name = status["masters"][0]["datasets"][0]["name"]
        .as_str()
        .unwrap();
    let socket = PathBuf::from(address.strip_prefix("unix:").unwrap());
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().unwrap()), 0o700);
    let delete = ["dataset", "delete", name, "--master", &address];
    // The directory refuses another user, the socket does, and its server.
    let Some(outcome) = lab.weir_as_nobody(delete) else {
        return;
    };
    outcome.fails(4);
    for dir in [
        socket.parent().unwrap(),
        socket.parent().unwrap().parent().unwrap(),
    ] {
        set_mode(dir, 0o755);
    }
    lab.weir_as_nobody(delete).unwrap().fails(4);
    set_mode(&socket, 0o666);
    lab.weir_as_nobody(delete).unwrap().fails(4);
    let log = mount.log();
    assert!(log.contains("refused: user 65534 is another user"), "{log}");
    // Its own user is heard, and the dataset is there.
    let list = lab.weir(["dataset", "list", "--master", &address]).ok();
    assert!(list.contains(name), "{list}");
    assert_eq!(mount.read("a"), b"content");
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, mode).unwrap();
}

fn another_user_cannot_call_a_master_on_loopback() {
    let lab = Lab::new();
    one_file(&lab);
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    let status = cluster.status();
    assert_eq!(status["callers"], "same user");
    assert_eq!(status["workers"][0]["callers"], "same user");
    let address = cluster.address();
    let delete = ["dataset", "delete", "set", "--master", &address];
    let Some(outcome) = lab.weir_as_nobody(delete) else {
        return;
    };
    let message = outcome.fails(4);
    assert!(message.contains("its own user"), "{message}");
    let log = cluster.master.as_ref().unwrap().log();
    assert!(log.contains("user 65534 is another user"), "{log}");
    assert!(cluster.weir(&["dataset", "list"]).ok().contains("set"));
}

fn a_cluster_with_certificates_works_and_says_so() {
    let lab = Lab::new();
    one_file(&lab);
    let cluster = Cluster::start_secure(&lab, 2);
    let status = cluster.status();
    assert_eq!(status["callers"], "certificates");
    for worker in status["workers"].as_array().unwrap() {
        assert_eq!(worker["callers"], "certificates", "{worker}");
    }
    let table = cluster.weir(&["status"]).ok();
    assert!(table.contains("callers: certificates"), "{table}");
    cluster.create_dataset("set");
    cluster.weir(&["warm", "set", "--wait"]).ok();
    let mount = cluster.mount("set", "node-0");
    assert_eq!(mount.read("a"), b"content");
    let master = cluster.master.as_ref().unwrap();
    assert!(master.metric("weir_insecure", "") < 0.5);
    let url = mount.status()["metrics"].as_str().unwrap().to_owned();
    let (_, text) = weir_tests::get(&url);
    for text in [text, weir_tests::get(&master.url("metrics")).1] {
        let name = "weir_certificate_expires_timestamp_seconds";
        assert!(text.contains(name), "{text}");
    }
    mount.unmount();
    cluster.weir(&["evict", "set"]).ok();

    // Without a certificate, and with one of another cluster.
    let address = cluster.address();
    let message = lab.weir(["status", "--master", &address]).fails(4);
    assert!(message.contains("--certs"), "{message}");
    let (other, stranger) = (lab.path("other"), lab.path("stranger"));
    let authority = Authority::init(&other, Validity::default()).unwrap();
    let admin = Subject::new(Role::Admin, "admin".parse().unwrap());
    authority.issue(&admin, &[], &stranger).unwrap();
    let stranger = stranger.to_str().unwrap();
    let args = ["status", "--master", &address, "--certs", stranger];
    let message = lab.weir(args).fails(4);
    assert!(message.contains("WEIR_CERTS"), "{message}");
}

fn each_call_is_for_its_roles() {
    let lab = Lab::new();
    one_file(&lab);
    let cluster = Cluster::start_secure(&lab, 1);
    cluster.create_dataset("set");
    let address = cluster.address();
    let certs = issue(&lab, "mount", "gpu-7", &[]);
    let certs = certs.to_str().unwrap();
    let flags = ["--master", &address, "--certs", certs];
    let mount = lab.mount_at("set", "mnt", &flags);
    assert_eq!(mount.read("a"), b"content");
    let delete = ["dataset", "delete", "set"];
    let message = lab.weir(delete.iter().chain(&flags)).fails(5);
    let why = "mount gpu-7 at 127.0.0.1 may not call DeleteDataset: that needs a certificate of role admin";
    assert!(message.contains(why), "{message}");
    let log = cluster.master.as_ref().unwrap().log();
    assert!(log.contains(why), "{log}");
    assert!(cluster.weir(&["dataset", "list"]).ok().contains("set"));
    // A server needs a certificate of its own role.
    let (dir, listen) = (lab.path("second"), format!("127.0.0.1:{}", free_port()));
    let args = [
        "master",
        "--dir",
        dir.to_str().unwrap(),
        "--listen",
        &listen,
    ];
    let message = lab.weir(args.iter().chain(&["--certs", certs])).fails(2);
    assert!(message.contains("mount gpu-7"), "{message}");
}

/// Attack 3: one forged heartbeat with weight 2^60 took over all reads.
fn a_forged_heartbeat_is_refused() {
    let lab = Lab::new();
    let cluster = Cluster::start_secure(&lab, 2);
    let epoch = cluster.status()["epoch"].clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let gpu = issue(&lab, "mount", "gpu-7", &[]);
    let beat = |certs: &Path, id: &str, weight: u64, data: &str| {
        let identity = Identity::load(certs).unwrap();
        let info = v1::WorkerInfo {
            id: id.to_owned(),
            node: id.to_owned(),
            data_address: data.to_owned(),
            control_address: data.to_owned(),
            weight,
            ..Default::default()
        };
        let request = v1::HeartbeatRequest {
            worker: Some(info),
            ..Default::default()
        };
        let status = runtime.block_on(async {
            let dial = Dial::new(Some(identity));
            let channel = dial.channel(&cluster.address(), Role::Master, SOON);
            let mut master = MasterClient::new(channel.unwrap());
            master.heartbeat(request).await.unwrap_err()
        });
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
        status.message().to_owned()
    };
    let worker = lab.path("certs/node-0");
    let here = "127.0.0.1:7450";
    let told = [
        beat(&worker, "node-0", 1 << 60, here),
        beat(&worker, "node-1", 1, here),
        beat(&worker, "node-0", 1, "10.0.0.9:7450"),
        beat(&gpu, "node-0", 1, here),
    ];
    // Nor may it say what another one holds.
    let report = v1::ReportInventoryRequest {
        worker: "node-1".to_owned(),
        inventory: Some(v1::Inventory::default()),
    };
    let status = runtime.block_on(async {
        let dial = Dial::new(Some(Identity::load(&worker).unwrap()));
        let channel = dial.channel(&cluster.address(), Role::Master, SOON);
        let mut master = MasterClient::new(channel.unwrap());
        master.report_inventory(report).await.unwrap_err()
    });
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
    let log = cluster.master.as_ref().unwrap().log();
    for (why, about) in told
        .iter()
        .zip(["a weight of", "worker node-1", "10.0.0.9", "Heartbeat"])
    {
        assert!(why.contains(about), "{why}");
        assert!(log.contains(why.as_str()), "{why} is not in {log}");
    }
    let status = cluster.status();
    assert_eq!(status["epoch"], epoch);
    assert_eq!(status["workers"].as_array().unwrap().len(), 2);
}

fn only_calls_that_need_large_messages_take_them() {
    const LARGE: usize = 8 << 20;
    let lab = Lab::new();
    let cluster = Cluster::start_secure(&lab, 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let master = |certs: PathBuf| {
        let dial = Dial::new(Some(Identity::load(&certs).unwrap()));
        let channel = dial.channel(&cluster.address(), Role::Master, SOON);
        MasterClient::new(channel.unwrap())
    };
    runtime.block_on(async {
        for role in ["mount", "admin"] {
            let certs = issue(&lab, role, &format!("a-{role}"), &[]);
            let request = v1::GetManifestRequest {
                dataset: "x".repeat(LARGE),
                version: 0,
            };
            let refused = master(certs).get_manifest(request).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
        }
        // Read, and then found to be of no dataset.
        let report = v1::ReportInventoryRequest {
            worker: "node-0".to_owned(),
            inventory: Some(v1::Inventory {
                dataset: "none".to_owned(),
                blocks: vec![0; LARGE],
                ..Default::default()
            }),
        };
        let mut worker = master(lab.path("certs/node-0"));
        let refused = worker.report_inventory(report.clone()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound, "{refused}");
        // Not even read.
        let mut mount = master(lab.path("certs/a-mount"));
        let refused = mount.report_inventory(report).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    });
}

fn renewed_certificates_are_used_without_a_restart() {
    let lab = Lab::new();
    let mut cluster = Cluster::start_secure(&lab, 1);
    // All of them end soon.
    let soon = Validity {
        issued: Duration::from_secs(20),
        ..Validity::default()
    };
    let authority = Authority::open(&lab.path("ca"), soon).unwrap();
    let names = ["master", "node-0", "admin"];
    let dirs = names.map(|name| lab.path("certs").join(name));
    let mut end = SystemTime::now();
    for dir in &dirs {
        end = end.max(authority.renew(dir).unwrap().expires);
    }
    // Its connections are made with the short one.
    cluster.workers[0].as_mut().unwrap().kill();
    cluster.start_worker(0);
    cluster.wait_for_workers(1);
    let worker = cluster.worker(0);
    let expires = || worker.metric("weir_certificate_expires_timestamp_seconds", "");
    let seconds = |at: SystemTime| {
        at.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64()
    };
    wait_until("the worker has the short one", SOON, || {
        expires() <= seconds(end)
    });
    cluster.weir(&["status"]).ok();
    let mut rotate = vec!["certs".to_owned(), "rotate".to_owned()];
    rotate.push(lab.path("ca").display().to_string());
    rotate.extend(dirs.iter().map(|dir| dir.display().to_string()));
    let told = lab.weir(&rotate).ok();
    assert_eq!(told.lines().count(), names.len(), "{told}");
    wait_until("the worker has the new one", SOON, || {
        expires() > seconds(end)
    });
    // Connections made with the short ones end with them, and what comes after uses the new ones.
    let after = end + Duration::from_secs(2);
    wait_until("the short ones have ended", SOON * 2, || {
        SystemTime::now() > after
    });
    let master = cluster.master.as_ref().unwrap();
    let before = master.metric("weir_master_heartbeats_total", "");
    wait_until("the worker reports", SOON, || {
        master.metric("weir_master_heartbeats_total", "") >= before + 2.0
    });
    assert_eq!(cluster.status()["workers"].as_array().unwrap().len(), 1);
}

fn a_mount_that_has_lost_its_certificate_reads_on() {
    let lab = Lab::new();
    lab.s3.edit(BUCKET, |bucket| {
        for name in ["a", "b", "c"] {
            bucket.put(name, name);
        }
    });
    let cluster = Cluster::start_secure(&lab, 1);
    cluster.create_dataset("set");
    let certs = issue(&lab, "mount", "gpu-7", &[]);
    let flags = ["--master", &cluster.address(), "--certs"];
    // It reads the origin itself, which is on loopback here.
    let own = [certs.to_str().unwrap(), "--allow-endpoint", "127.0.0.1"];
    let mount = lab.mount_at("set", "mnt", &[&flags[..], &own].concat());
    assert_eq!(mount.read("a"), b"a");
    let away = lab.path("away");
    std::fs::rename(&certs, &away).unwrap();
    mount.kill_server();
    assert_eq!(mount.read("b"), b"b");
    wait_until("the log tells of it", SOON, || {
        mount.log().contains("until this is mended")
    });
    // Once it is back, the mount is one of the cluster again.
    std::fs::rename(&away, &certs).unwrap();
    wait_until("it has its certificate", SOON, || {
        mount.metric("weir_certificate_expires_timestamp_seconds", "") > 0.5
    });
    assert_eq!(mount.read("c"), b"c");
}

fn certificates_are_made_shown_and_renewed() {
    let lab = Lab::new();
    let path = |name: &str| lab.path(name).display().to_string();
    let (ca, worker) = (path("ca"), path("worker"));
    let certs = |args: &[&str]| lab.weir(["certs"].iter().chain(args));
    certs(&["init", &ca]).ok();
    let message = certs(&["init", &ca]).fails(6);
    assert!(message.contains("rotate"), "{message}");
    let named = ["--role", "worker", "--name", "gpu-7"];
    let issue = |out: &str, flags: &[&str]| certs(&[&["issue", &ca, out], flags].concat());
    let limits = [
        "--address",
        "gpu-7.lab",
        "--address",
        "10.0.0.7",
        "--max-weight",
        "2TiB",
        "--node",
        "rack-7",
        "--zone",
        "b",
    ];
    issue(&worker, &[&named[..], &limits].concat()).ok();
    let show = || -> Value {
        serde_json::from_str(&certs(&["show", &worker, "-o", "json"]).ok()).unwrap()
    };
    let shown = show();
    let certificate = &shown["certificate"];
    assert_eq!(certificate["role"], "worker");
    assert_eq!(certificate["name"], "gpu-7");
    assert_eq!(certificate["max_weight_bytes"], 2_u64 << 40);
    assert_eq!(certificate["node"], "rack-7");
    assert_eq!(certificate["zone"], "b");
    assert_eq!(certificate["pool"], Value::Null);
    assert_eq!(
        certificate["addresses"],
        serde_json::json!(["gpu-7.lab", "10.0.0.7"])
    );
    assert_eq!(certificate["state"], "valid");
    let table = certs(&["show", &worker]).ok();
    assert!(
        table.contains("gpu-7.lab 10.0.0.7")
            && table.contains("2TiB  ")
            && table.contains("rack-7"),
        "{table}"
    );
    assert!(
        certs(&["show", &ca])
            .ok()
            .contains("Weir cluster authority")
    );

    // What makes no sense, or would put something where it must not be.
    let mount = ["--role", "mount", "--name", "gpu-7"];
    issue(
        &path("m"),
        &[&mount[..], &["--max-weight", "1GiB"]].concat(),
    )
    .fails(2);
    issue(&path("m"), &["--role", "king", "--name", "a"]).fails(2);
    issue(&path("m"), &["--role", "mount", "--name", "a/../b"]).fails(2);
    issue(
        &path("m"),
        &[&named[..], &["--address", "gpu-7:7450"]].concat(),
    )
    .fails(2);
    issue(&ca, &mount).fails(2);
    issue(&worker, &mount).fails(6);
    certs(&[
        "issue",
        &path("none"),
        &path("m"),
        mount[0],
        mount[1],
        mount[2],
        mount[3],
    ])
    .fails(3);
    assert!(!lab.path("m").exists());

    // One of a short life ends soon in its last quarter only, and is renewed with what it says.
    certs(&["rotate", &ca, &worker, "--days", "10"]).ok();
    assert_eq!(show()["certificate"]["state"], "valid");
    let told = certs(&["rotate", &ca, &worker, "--authority"]).ok();
    assert!(told.contains("new ca.crt"), "{told}");
    assert_eq!(show()["authorities"].as_array().unwrap().len(), 2);
    certs(&["rotate", &ca, &worker]).ok();
    let renewed = show();
    assert_eq!(renewed["certificate"]["state"], "valid");
    assert_eq!(renewed["certificate"]["max_weight_bytes"], 2_u64 << 40);
    assert_eq!(renewed["certificate"]["node"], "rack-7");
    certs(&["rotate", &ca]).fails(2);
    std::fs::write(lab.path("worker/tls.key"), "no key").unwrap();
    let message = certs(&["show", &worker]).fails(1);
    assert!(message.contains("tls.key"), "{message}");
}

/// As docs/security.md says, step by step.
fn a_lost_certificate_ends_with_its_authority() {
    let lab = Lab::new();
    let cluster = Cluster::start_secure(&lab, 1);
    let path = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    let (ca, lost) = (path("ca"), path("lost"));
    let kept = ["master", "admin", "node-0"].map(|name| path(&format!("certs/{name}")));
    std::fs::create_dir(&lost).unwrap();
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        std::fs::copy(
            lab.path("certs/admin").join(file),
            lab.path("lost").join(file),
        )
        .unwrap();
    }
    let rotate = |flags: &[&str]| {
        let kept = kept.iter().map(String::as_str);
        let args = ["certs", "rotate", &ca].into_iter().chain(kept);
        lab.weir(args.chain(flags.iter().copied())).ok();
    };
    let address = cluster.address();
    let status_of_lost = || lab.weir(["status", "--master", &address, "--certs", &lost]);
    rotate(&["--authority"]);
    rotate(&[]);
    // Who has it may well know the new authority, which is no secret.
    let trusted = || std::fs::copy(lab.path("certs/admin/ca.crt"), lab.path("lost/ca.crt"));
    trusted().unwrap();
    wait_until("both authorities are trusted", SOON, || {
        status_of_lost().code == 0
    });
    let all = std::fs::read_to_string(lab.path("ca/ca.crt")).unwrap();
    let (newest, _) = all.split_once("-----END CERTIFICATE-----").unwrap();
    let newest = format!("{newest}-----END CERTIFICATE-----\n");
    std::fs::write(lab.path("ca/ca.crt"), newest).unwrap();
    rotate(&[]);
    wait_until("the lost one is refused", SOON, || {
        status_of_lost().code == 4
    });
    cluster.weir(&["status"]).ok();
    let log = cluster.master.as_ref().unwrap().log();
    assert!(log.contains("UnknownIssuer"), "{log}");
}

fn a_worker_that_claims_more_than_its_certificate_does_not_start() {
    let lab = Lab::new();
    let ca = lab.path("ca");
    Authority::init(&ca, Validity::default()).unwrap();
    let limits = ["--max-weight", "32MiB", "--node", "rack-7", "--zone", "b"];
    let certs = issue(&lab, "worker", "small", &limits);
    let (certs, dir) = (certs.to_str().unwrap(), lab.path("small"));
    let ssd = format!("{}:64MiB", dir.join("ssd").display());
    let args = [
        "worker",
        "--master",
        "127.0.0.1:1",
        "--dir",
        dir.to_str().unwrap(),
        "--ssd",
        &ssd,
    ];
    let free = [
        "--listen",
        "127.0.0.1:0",
        "--control",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
    ];
    let certs = ["--certs", certs];
    let run = |more: &[&str]| {
        let args = args.iter().chain(&free).chain(&certs).chain(more);
        lab.weir(args).fails(2)
    };
    assert!(run(&[]).contains("allows 32MiB"));
    assert!(run(&["--id", "other"]).contains("worker small, not of other"));
    assert!(run(&["--node", "rack-8"]).contains("for node rack-7, not for rack-8"));
    assert!(run(&["--zone", "c"]).contains("for zone b, not for c"));
    assert!(run(&["--zone", "b/c"]).contains("b/c"));
    assert!(run(&["--insecure"]).contains("choose one"));
}

/// docs/security.md, with addresses, a bucket and directories of the test.
fn the_lines_of_the_security_page_work() {
    let lab = Lab::new();
    lab.s3
        .edit(BUCKET, |bucket| bucket.put("imagenet/a", "content"));
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once("in ten lines").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let code = section.split("```").skip(1).step_by(2);
    let lines: Vec<&str> = code
        .flat_map(str::lines)
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(lines.len(), 10, "{lines:?}");
    let (master, data, control) = (free_port(), free_port(), free_port());
    let dir = lab.path("");
    std::fs::create_dir(lab.path("state")).unwrap();
    let endpoint = lab.s3.endpoint();
    let (mut servers, mut mount) = (Vec::new(), None);
    for line in lines {
        let line = line
            .replace("gpu-1.lab", "127.0.0.1")
            .replace(" m:7440", &format!(" 127.0.0.1:{master}"))
            .replace("0.0.0.0:7440", &format!("0.0.0.0:{master}"))
            .replace("0.0.0.0:7450", &format!("0.0.0.0:{data}"))
            .replace("0.0.0.0:7451", &format!("0.0.0.0:{control}"))
            .replace(":500GiB", ":64MiB")
            .replace(" certs/", &format!(" {}/", dir.join("certs").display()));
        let mut words: Vec<&str> = line.split(' ').skip(1).collect();
        let http = free_port();
        let metrics = format!("127.0.0.1:{http}");
        match words[0] {
            "master" | "worker" => {
                words.extend(["--http", &metrics, "--allow-endpoint", "127.0.0.1"]);
            }
            "dataset" => words.extend(["--endpoint", &endpoint, "--anonymous"]),
            _ => {}
        }
        let mut command = lab.command(&words);
        command.current_dir(&dir);
        if matches!(words[0], "master" | "worker") {
            let log = lab.path(&format!("{}.log", words[0]));
            servers.push(Process::start(command, log, loopback(http)));
            continue;
        }
        if words[0] == "dataset" {
            let up = || servers[0].metric("weir_master_workers", "") > 0.5;
            wait_until("the worker is in the map", SOON, up);
        }
        if words[0] == "mount" {
            mount = Some(lab.mount_at(words[1], "mnt", &words[3..]));
            continue;
        }
        let outcome = lab.run(command).ok();
        if words[0] == "status" {
            assert!(outcome.contains("callers: certificates"), "{outcome}");
        }
    }
    let mount = mount.unwrap();
    assert_eq!(mount.read("a"), b"content");
    mount.unmount();
}

/// A command that runs until it is told to end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn children(pid: u32) -> Vec<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(path).unwrap();
    let children = children.split_whitespace();
    children
        .map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap())
        .collect()
}

fn a_cluster_of_one_command_works_and_ends_with_it() {
    let mut lab = Lab::new();
    one_file(&lab);
    let (dir, port) = (lab.path("dev"), free_port().to_string());
    let dir = dir.to_str().unwrap();
    let start = |lab: &Lab| {
        let size = ["--workers", "2", "--zones", "2"];
        let args = [&["dev"][..], &size, &["--dir", dir, "--port", &port]].concat();
        let mut command = lab.command(args);
        let mut running = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let export = lines.find_map(|line| {
            let line = line.unwrap();
            Some(line.trim().strip_prefix("export ")?.to_owned())
        });
        (running, export.expect("it ended before it was up"))
    };
    let (mut running, export) = start(&lab);
    for variable in export.split(' ') {
        let (name, value) = variable.split_once('=').unwrap();
        lab.set_env(name, value);
    }
    let status = lab.weir(["status", "-o", "json"]).ok();
    let status: Value = serde_json::from_str(&status).unwrap();
    let master = &status["masters"][0];
    assert_eq!(master["callers"], "certificates");
    let workers = master["workers"].as_array().unwrap();
    let zones: Vec<_> = workers.iter().map(|worker| &worker["zone"]).collect();
    assert_eq!(zones, ["a", "b"]);
    let nodes: Vec<_> = workers.iter().map(|worker| &worker["node"]).collect();
    assert_eq!(nodes, ["node-1", "node-2"]);
    assert!(
        workers
            .iter()
            .all(|worker| worker["callers"] == "certificates")
    );
    let (url, origin) = (lab.url(""), lab.origin_flags());
    let create = ["dataset", "create", "set", &url];
    let origin = origin.iter().map(String::as_str);
    lab.weir(create.into_iter().chain(origin)).ok();
    let mount = lab.mount_at("set", "mnt", &[]);
    assert_eq!(mount.read("a"), b"content");
    mount.unmount();
    // A second one on the same port does not start, and leaves the first alone.
    lab.weir(["dev", "--dir", dir, "--port", &port]).fails(1);

    let parts = children(running.0.id());
    assert_eq!(parts.len(), 3);
    let own = Pid::from_child(&running.0);
    kill_process(own, Signal::TERM).unwrap();
    assert!(running.0.wait().unwrap().success());
    assert!(parts.iter().all(|part| test_kill_process(*part).is_err()));
    // Again with what it had, and killed the hard way.
    let (mut running, _) = start(&lab);
    assert!(lab.weir(["dataset", "list"]).ok().contains("set"));
    let parts = children(running.0.id());
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    wait_until("its processes end, too", SOON, || {
        parts.iter().all(|part| !is_running(*part))
    });
}

/// Whether a process is there, and not only its entry that nobody has collected.
fn is_running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
    stat.is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('Z')
    })
}
