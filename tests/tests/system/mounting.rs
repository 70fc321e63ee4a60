//! Mounts that fail, are given up, are refused, or are asked for again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use weir_s3_server::{Config, Fault, Rule, S3Server, Target};
use weir_tests::{BUCKET, Cluster, Lab, Mount, content, is_mountpoint, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_mount_that_fails_leaves_nothing",
        a_mount_that_fails_leaves_nothing,
    ),
    (
        "a_mount_that_is_given_up_ends_at_once_whoever_looks_into_it",
        a_mount_that_is_given_up_ends_at_once_whoever_looks_into_it,
    ),
    (
        "a_mount_that_would_hide_what_it_needs_is_refused",
        a_mount_that_would_hide_what_it_needs_is_refused,
    ),
    (
        "a_live_mount_is_only_taken_over_by_the_same_origin",
        a_live_mount_is_only_taken_over_by_the_same_origin,
    ),
    (
        "a_live_mount_keeps_its_snapshot_and_refuses_another",
        a_live_mount_keeps_its_snapshot_and_refuses_another,
    ),
    (
        "a_take_over_brings_its_environment",
        a_take_over_brings_its_environment,
    ),
    (
        "a_mount_of_a_cluster_does_not_hide_its_own_source",
        a_mount_of_a_cluster_does_not_hide_its_own_source,
    ),
    (
        "one_source_is_mounted_at_several_places_at_the_same_moment",
        one_source_is_mounted_at_several_places_at_the_same_moment,
    ),
];

/// Longest time in which a mount that failed must be gone. Far less than the origin makes it wait.
const AT_ONCE: Duration = Duration::from_secs(15);
/// How long the origin makes listings wait.
const STALL: Duration = Duration::from_mins(3);

/// What a mount of the lab may make.
fn traces(lab: &Lab) -> Vec<PathBuf> {
    let traces = ["mnt", "cache", "ssd"].map(|name| lab.path(name));
    let runs = std::fs::read_dir(lab.path("run")).into_iter().flatten();
    let runs = runs.map(|run| run.unwrap().path());
    let traces = traces.into_iter().filter(|path| path.exists());
    traces.chain(runs).collect()
}

fn a_mount_that_fails_leaves_nothing() {
    let lab = Lab::new();
    let denied = Fault::Status(403, "AccessDenied");
    lab.s3.faults().set([Rule::new(denied).target(Target::All)]);
    let (url, mnt) = (lab.url(""), lab.path("mnt"));
    let ssd = format!("{}:64MiB", lab.path("ssd").display());
    let mut args = vec!["mount", &url, mnt.to_str().unwrap(), "--ssd", &ssd];
    let origin = lab.origin_flags();
    args.extend(origin.iter().map(String::as_str));
    for foreground in [false, true] {
        args.extend(foreground.then_some("--foreground"));
        lab.weir(&args).fails(5);
        assert_eq!(traces(&lab), [] as [PathBuf; 0]);
    }
    // What was there before stays.
    for dir in ["mnt", "cache", "ssd"] {
        std::fs::create_dir(lab.path(dir)).unwrap();
        std::fs::write(lab.path(dir).join("mine"), "x").unwrap();
    }
    lab.weir(&args).fails(5);
    for dir in ["mnt", "cache", "ssd"] {
        let left = std::fs::read_dir(lab.path(dir)).unwrap().count();
        assert_eq!(left, 1, "{dir}");
    }
}

fn one_source_is_mounted_at_several_places_at_the_same_moment() {
    let lab = Lab::new();
    lab.put_all(&[("a".to_owned(), content(1, 1000))].into());
    let places: Vec<PathBuf> = (0..4).map(|n| lab.path(&format!("mnt{n}"))).collect();
    let started: Vec<Child> = places
        .iter()
        .map(|place| {
            let mut command = Command::new(lab.binary());
            command
                .args(["mount", &lab.url(""), place.to_str().unwrap()])
                .args(lab.origin_flags());
            lab.set_environment(&mut command);
            command.spawn().unwrap()
        })
        .collect();
    for mut started in started {
        assert!(started.wait().unwrap().success());
    }
    for place in &places {
        assert_eq!(std::fs::read(place.join("a")).unwrap(), content(1, 1000));
        lab.weir(["unmount", place.to_str().unwrap()]).ok();
    }
    let left = std::fs::read_dir(lab.path("run")).unwrap().count();
    assert_eq!(left, 0, "of what the mounts had reserved");
}

/// A mount whose origin does not answer, and somebody who waits in it.
fn hanging_mount(lab: &Lab, flags: &[&str]) -> (Child, std::thread::JoinHandle<bool>) {
    let mnt = lab.path("mnt");
    let url = lab.url("");
    // Whoever runs the tests in the background may have told their processes to ignore Ctrl-C.
    let mut command = Command::new("env");
    command
        .arg("--default-signal=INT")
        .arg(lab.binary())
        .args(["mount", &url, mnt.to_str().unwrap()])
        .args(flags)
        .args(lab.origin_flags());
    lab.set_environment(&mut command);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    wait_until("the kernel has mounted it", Duration::from_secs(20), || {
        is_mountpoint(&mnt)
    });
    let visitor = std::thread::spawn(move || std::fs::read_dir(mnt).is_ok());
    (child, visitor)
}

#[track_caller]
fn check_gone(lab: &Lab, child: &mut Child, visitor: std::thread::JoinHandle<bool>) {
    let started = Instant::now();
    wait_until("the command ends", AT_ONCE, || {
        child.try_wait().unwrap().is_some()
    });
    wait_until("the mount is gone", AT_ONCE, || {
        !is_mountpoint(&lab.path("mnt"))
    });
    wait_until("the visitor gets an answer", AT_ONCE, || {
        visitor.is_finished()
    });
    wait_until("what was made is removed", AT_ONCE, || {
        traces(lab).is_empty()
    });
    println!("gone after {:?}", started.elapsed());
}

fn a_mount_that_is_given_up_ends_at_once_whoever_looks_into_it() {
    let lab = Lab::new();
    let stall = Rule::new(Fault::Stall(STALL)).target(Target::All);
    lab.s3.faults().set([stall]);
    // Nobody waits any longer: Ctrl-C, and a time limit.
    let (mut child, visitor) = hanging_mount(&lab, &[]);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    check_gone(&lab, &mut child, visitor);
    let (mut child, visitor) = hanging_mount(&lab, &["--timeout", "5"]);
    check_gone(&lab, &mut child, visitor);
    // The supervisor in the terminal itself, and another command.
    let (mut child, visitor) = hanging_mount(&lab, &["--foreground"]);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    check_gone(&lab, &mut child, visitor);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let (mut child, visitor) = hanging_mount(&lab, &[]);
    lab.weir([Path::new("unmount"), &lab.path("mnt")]).ok();
    check_gone(&lab, &mut child, visitor);
}

fn a_mount_that_would_hide_what_it_needs_is_refused() {
    let mut lab = Lab::new();
    let path = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    let (mnt, deep) = (path("mnt"), path("mnt/deep"));
    std::fs::create_dir_all(&deep).unwrap();
    std::os::unix::fs::symlink("mnt/deep", lab.path("link")).unwrap();
    std::os::unix::fs::symlink(&mnt, lab.path("to-mnt")).unwrap();
    let url = lab.url("");
    let (linked_ssd, linked_mnt) = (format!("{}:64MiB", path("link/ssd")), path("to-mnt"));
    let ssd = format!("{mnt}/.cache:64MiB");
    let new = format!("{}:64MiB", path("new/cache"));
    let cases: [(String, String, &[&str], String); 7] = [
        (
            url.clone(),
            mnt.clone(),
            &["--ssd", &ssd],
            format!("{mnt}/.cache"),
        ),
        (
            url.clone(),
            mnt.clone(),
            &["--ssd", &linked_ssd],
            format!("{deep}/ssd"),
        ),
        (
            url.clone(),
            linked_mnt.clone(),
            &["--ssd", &ssd],
            format!("{mnt}/.cache"),
        ),
        (
            url.clone(),
            path("new"),
            &["--ssd", &new],
            path("new/cache"),
        ),
        (format!("file://{mnt}"), mnt.clone(), &[], mnt.clone()),
        (
            format!("file://{}", path("link")),
            mnt.clone(),
            &[],
            deep.clone(),
        ),
        (format!("file://{deep}"), linked_mnt, &[], deep.clone()),
    ];
    for (source, at, flags, hidden) in cases {
        let args = ["mount", &source, &at];
        let message = lab.weir(args.iter().chain(flags)).fails(2);
        let named = message.contains(&at) && message.contains(&hidden);
        assert!(named && message.contains("choose"), "{message}");
        assert!(!is_mountpoint(&lab.path("mnt")));
    }
    assert!(!lab.path("new").exists());
    let args = ["mount".to_owned(), url, mnt];
    for variable in ["WEIR_RUNTIME_DIR", "XDG_CACHE_HOME", "AWS_CA_BUNDLE"] {
        let mut command = lab.command(&args);
        command.env(variable, &deep);
        let output = command.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        let named = message.contains(&deep) && message.contains(variable);
        assert!(named, "{message}");
    }
    // A path that only begins alike is no reason.
    lab.put_all(&[("a".to_owned(), b"x".to_vec())].into());
    lab.set_env("XDG_CACHE_HOME", lab.path("mnt-cache").to_str().unwrap());
    assert_eq!(lab.mount("", &[]).read("a"), b"x");
}

fn a_live_mount_is_only_taken_over_by_the_same_origin() {
    let lab = Lab::new();
    let files = [("dir/a".to_owned(), b"right".to_vec())].into();
    lab.put_all(&files);
    let other = S3Server::start(Config::default()).unwrap();
    other.edit(BUCKET, |bucket| bucket.put("dir/a", "wrong"));
    let mount = lab.mount("dir", &[]);
    let mnt = mount.dir.to_str().unwrap().to_owned();
    let (here, there) = (lab.s3.endpoint(), other.endpoint());
    let again = |url: &str, flags: &[&str]| {
        let args = ["mount", url, &mnt];
        lab.weir(args.iter().chain(flags))
    };
    let url = lab.url("dir");
    // Before the first read, and after it.
    for _ in 0..2 {
        let server = mount.server();
        let others: [(&str, &[&str]); 5] = [
            (&url, &["--endpoint", &there, "--anonymous"]),
            (&url, &["--endpoint", &here]),
            (
                &url,
                &[
                    "--endpoint",
                    &here,
                    "--anonymous",
                    "--addressing",
                    "virtual",
                ],
            ),
            (
                &url,
                &["--endpoint", &here, "--anonymous", "--dataset", "x"],
            ),
            ("s3://bucket/", &["--endpoint", &here, "--anonymous"]),
        ];
        for (url, flags) in others {
            let message = again(url, flags).fails(6);
            assert!(message.contains("unmount it first"), "{message}");
        }
        assert_eq!(mount.server(), server, "it serves as before");
        assert_eq!(mount.read("a"), b"right");
    }
    // The same, written otherwise.
    let endpoint = format!("{}/", here.replace("http", "HTTP"));
    let server = mount.server();
    again(
        "s3://bucket/dir/",
        &[
            "--endpoint",
            &endpoint,
            "--anonymous",
            "--region",
            "eu-west-1",
        ],
    )
    .ok();
    wait_until("another server serves", Duration::from_secs(20), || {
        mount.server() != server
    });
    assert_eq!(mount.read("a"), b"right");
    mount.unmount();
}

/// Has the mount taken over with `args`, and waits until it is.
#[track_caller]
fn take_over(mount: &Mount<'_>, mut command: Command) {
    let server = mount.server();
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    wait_until("another server serves", Duration::from_secs(20), || {
        mount.server() != server
    });
}

fn a_live_mount_keeps_its_snapshot_and_refuses_another() {
    let lab = Lab::new();
    lab.put_all(&[("a".to_owned(), b"first".to_vec())].into());
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("set");
    let (url, mnt, master) = (lab.url(""), lab.path("mnt"), cluster.address());
    let (mnt, origin) = (mnt.to_str().unwrap(), lab.origin_flags());
    let origin: Vec<&str> = origin.iter().map(String::as_str).collect();
    let in_cluster = ["--master", &master];
    for (source, flags) in [(url.as_str(), &origin[..]), ("set", &in_cluster)] {
        let mount = lab.mount_at(source, "mnt", flags);
        let snapshot = mount.status()["snapshot"].as_str().unwrap().to_owned();
        let (dataset, _) = snapshot.split_once('@').unwrap();
        let args = |version: &str, more: &[&str]| -> Vec<String> {
            let named = format!("{dataset}{version}");
            let what = match source {
                "set" => vec![named],
                url => vec![url.to_owned(), "--dataset".to_owned(), named],
            };
            let first = ["mount", mnt];
            let words = first.iter().chain(flags).chain(more);
            let mut args: Vec<String> = words.map(|word| (*word).to_owned()).collect();
            args.splice(1..1, what);
            args
        };
        let server = mount.server();
        for args in [
            args("@2", &[]),
            args("", &["--refresh"]),
            args("@1", &["--refresh"]),
        ] {
            let message = lab.weir(&args).fails(6);
            let told = message.contains(&snapshot) && message.contains("weir unmount");
            assert!(told, "{message}");
        }
        assert_eq!(mount.server(), server, "it serves as before");
        take_over(&mount, lab.command(args("@1", &[])));
        take_over(&mount, lab.command(args("", &[])));
        assert_eq!(mount.read("a"), b"first");
        mount.unmount();
    }
}

fn a_take_over_brings_its_environment() {
    let mut lab = Lab::new();
    lab.put_all(&[("a".to_owned(), b"x".to_vec())].into());
    for name in ["AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "MY_OWN"] {
        lab.set_env(name, "before");
    }
    let mount = lab.mount("", &[]);
    let (url, mnt) = (lab.url(""), mount.dir.to_str().unwrap());
    let origin = lab.origin_flags();
    let args = ["mount", &url, mnt].into_iter();
    let mut again = lab.command(args.chain(origin.iter().map(String::as_str)));
    again
        .env("AWS_SESSION_TOKEN", "new")
        .env_remove("AWS_CA_BUNDLE");
    take_over(&mount, again);
    let check = |process: Pid| {
        let environment = std::fs::read(format!("/proc/{}/environ", process.as_raw_nonzero()));
        let environment = String::from_utf8(environment.unwrap()).unwrap();
        let has = |variable: &str| environment.split('\0').any(|own| own == variable);
        assert!(has("AWS_SESSION_TOKEN=new"), "{environment}");
        assert!(!environment.contains("AWS_CA_BUNDLE"), "{environment}");
        assert!(has("MY_OWN=before"), "it is none of Weir's");
    };
    check(mount.server());
    check(mount.supervisor());
    // And so do those who come after them.
    let server = mount.kill_server();
    wait_until("another server serves", Duration::from_secs(20), || {
        mount.server() != server
    });
    check(mount.server());
    mount.unmount();
}

fn a_mount_of_a_cluster_does_not_hide_its_own_source() {
    let lab = Lab::new();
    let data = lab.path("data");
    weir_tests::write_tree(&data, &[("set/a".to_owned(), b"right".to_vec())].into());
    let cluster = Cluster::start(&lab, 1);
    let source = format!("file://{}", data.join("set").display());
    cluster.weir(&["dataset", "create", "set", &source]).ok();
    std::os::unix::fs::symlink("data", lab.path("link")).unwrap();
    for at in ["data", "data/set", "link", "link/set"] {
        let at = lab.path(at).to_str().unwrap().to_owned();
        let message = cluster.weir(&["mount", "set", &at]).fails(2);
        let told = message.contains("data/set") && message.contains("choose another mountpoint");
        assert!(told, "{message}");
        assert!(!is_mountpoint(&lab.path("data")) && !is_mountpoint(&data.join("set")));
    }
    let address = cluster.address();
    let beside = lab.mount_at("set", "mnt", &["--master", &address]);
    assert_eq!(beside.read("a"), b"right");
    beside.unmount();
    // On a machine that does not have it, the same path hides nothing.
    std::fs::remove_file(data.join("set/a")).unwrap();
    let there = lab.mount_at("set", "data/set", &["--master", &address]);
    assert!(there.path("a").exists());
    there.unmount();
}
