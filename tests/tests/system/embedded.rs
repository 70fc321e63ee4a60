//! `weir mount URL DIR`: options, errors, and the cache over a restart.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use weir_tests::{Lab, content, drop_pages, is_mountpoint, wait_until, write_tree};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_bucket_is_mounted_read_and_unmounted",
        a_bucket_is_mounted_read_and_unmounted,
    ),
    (
        "a_second_mount_reads_nothing_from_the_origin",
        a_second_mount_reads_nothing_from_the_origin,
    ),
    ("a_directory_is_mounted", a_directory_is_mounted),
    (
        "mistakes_are_named_with_their_remedy",
        mistakes_are_named_with_their_remedy,
    ),
    (
        "tiers_owner_and_modes_are_as_the_flags_say",
        tiers_owner_and_modes_are_as_the_flags_say,
    ),
    (
        "a_foreground_mount_ends_with_its_process",
        a_foreground_mount_ends_with_its_process,
    ),
    (
        "two_mounts_of_one_bucket_have_caches_of_their_own",
        two_mounts_of_one_bucket_have_caches_of_their_own,
    ),
    ("a_refresh_shows_what_changed", a_refresh_shows_what_changed),
    (
        "a_mount_inside_a_directory_is_not_listed_with_it",
        a_mount_inside_a_directory_is_not_listed_with_it,
    ),
];

/// Files of several sizes: empty, small, one block exactly, several blocks.
fn files() -> BTreeMap<String, Vec<u8>> {
    let long = "n".repeat(255);
    [
        ("empty", 0),
        ("one", 1),
        ("dir/sub/small.txt", 1000),
        ("dir/a name with spaces", 4097),
        ("dir/žluťoučký kůň 🐎", 5000),
        (&format!("dir/{long}"), 10),
        ("block", 4 << 20),
        ("blocks", (9 << 20) + 3),
    ]
    .iter()
    .enumerate()
    .map(|(seed, (name, size))| ((*name).to_owned(), content(seed as u64, *size)))
    .collect()
}

fn a_bucket_is_mounted_read_and_unmounted() {
    let lab = Lab::new();
    let files = files();
    lab.put_all(&files);
    let mount = lab.mount("", &[]);
    for pass in 0..2 {
        for (name, content) in &files {
            assert!(mount.read(name) == *content, "{name} in pass {pass}");
        }
        drop_pages(files.keys().map(|name| mount.path(name)));
    }
    let mut names: Vec<_> = std::fs::read_dir(mount.path("dir"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "a name with spaces",
            &"n".repeat(255),
            "sub",
            "žluťoučký kůň 🐎"
        ]
    );
    assert_eq!(
        std::fs::metadata(mount.path("nothing"))
            .unwrap_err()
            .raw_os_error(),
        Some(2)
    );
    let writes = [
        std::fs::write(mount.path("new"), "x"),
        std::fs::write(mount.path("one"), "x"),
        std::fs::remove_file(mount.path("one")),
        std::fs::create_dir(mount.path("new")),
        std::fs::rename(mount.path("one"), mount.path("two")),
    ];
    for write in writes {
        assert_eq!(
            write.unwrap_err().kind(),
            std::io::ErrorKind::ReadOnlyFilesystem
        );
    }
    let (server, supervisor) = (mount.server(), mount.supervisor());
    mount.unmount();
    for pid in [server, supervisor] {
        wait_until("the mount's processes end", Duration::from_secs(10), || {
            !runs(pid)
        });
    }
}

fn runs(pid: Pid) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    state.is_ok_and(|state| !state.contains(") Z "))
}

fn a_second_mount_reads_nothing_from_the_origin() {
    let lab = Lab::new();
    let files = files();
    lab.put_all(&files);
    let mount = lab.mount("", &[]);
    for name in files.keys() {
        mount.read(name);
    }
    mount.unmount();
    let (gets, lists) = (lab.s3.stats().gets(), lab.s3.stats().lists());
    let mount = lab.mount("", &[]);
    for (name, content) in &files {
        assert!(mount.read(name) == *content, "{name}");
    }
    assert_eq!(
        (lab.s3.stats().gets(), lab.s3.stats().lists()),
        (gets, lists)
    );
    let ssd = mount.metric("weir_client_read_bytes_total", "source=\"ssd\"");
    assert!(ssd > 0.0, "nothing came from the SSD tier");
}

fn a_directory_is_mounted() {
    let lab = Lab::new();
    let files = files();
    write_tree(&lab.path("source"), &files);
    let mount = lab.mount_at(
        &format!("file://{}", lab.path("source").display()),
        "mnt",
        &[],
    );
    for (name, content) in &files {
        assert!(mount.read(name) == *content, "{name}");
    }
    // What was cached stays; what was not and has changed is refused.
    std::fs::write(lab.path("source/one"), "changed").unwrap();
    drop_pages([mount.path("one")]);
    assert!(mount.read("one") == files["one"]);
}

fn mistakes_are_named_with_their_remedy() {
    let lab = Lab::new();
    let mnt = lab.path("mnt").to_str().unwrap().to_owned();
    let endpoint = lab.s3.endpoint();
    let missing = [
        "mount",
        "s3://not-there",
        &mnt,
        "--endpoint",
        &endpoint,
        "--anonymous",
    ];
    let message = lab.weir(missing).fails(3);
    assert!(message.contains("not-there"), "{message}");
    assert!(!is_mountpoint(Path::new(&mnt)));
    let cases: [(&[&str], i32, &str); 8] = [
        (&["mount", "imagenet", &mnt], 2, "--master"),
        (&["mount", "ftp://host/x", &mnt], 2, "s3://bucket"),
        (&["mount", "file:///not/there", &mnt], 3, "/not/there"),
        (&["mount", "/not/there", &mnt], 2, "write file:///not/there"),
        (&["mount", "s3://b", &mnt, "--mem", "much"], 2, "much"),
        (
            &["mount", "s3://b", &mnt, "--ssd", "/nvme"],
            2,
            "/nvme:50GiB",
        ),
        (&["unmount", &mnt], 3, "weir status"),
        (&["status", "--master", "127.0.0.1:1"], 4, "127.0.0.1:1"),
    ];
    for (args, code, text) in cases {
        let message = lab.weir(args).fails(code);
        assert!(message.contains(text), "{args:?}: {message}");
    }
    std::fs::write(lab.path("file"), "").unwrap();
    let file = lab.path("file").to_str().unwrap().to_owned();
    let source = format!("file://{}", lab.path("").display());
    let message = lab.weir(["mount", &source, &file]).fails(1);
    assert!(message.contains("file"), "{message}");
    // Another source is not put over a live mount.
    lab.put_all(&[("a".to_owned(), b"x".to_vec())].into());
    let mount = lab.mount("", &[]);
    let message = lab.weir(["mount", &source, &mnt]).fails(6);
    assert!(message.contains("unmount"), "{message}");
    drop(mount);
}

fn tiers_owner_and_modes_are_as_the_flags_say() {
    let lab = Lab::new();
    let files: BTreeMap<_, _> = (0..40)
        .map(|n| (format!("f{n}"), content(n, 200_000)))
        .collect();
    lab.put_all(&files);
    let (one, two) = (lab.path("one"), lab.path("two"));
    let (one, two) = (
        format!("{}:64MiB", one.display()),
        format!("{}:64MiB", two.display()),
    );
    let flags = [
        "--mem",
        "0",
        "--ssd",
        &one,
        "--ssd",
        &two,
        "--uid",
        "1234",
        "--gid",
        "4321",
        "--file-mode",
        "0640",
        "--dir-mode",
        "750",
        "--dataset",
        "named",
    ];
    let mount = lab.mount("", &flags);
    for (name, content) in &files {
        assert!(mount.read(name) == *content, "{name}");
    }
    let metadata = std::fs::metadata(mount.path("f1")).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
        (1234, 4321, 0o640)
    );
    assert_eq!(metadata.len(), 200_000);
    assert_eq!(
        std::fs::metadata(&mount.dir).unwrap().mode() & 0o7777,
        0o750
    );
    wait_until(
        "both SSD directories hold blocks",
        Duration::from_secs(10),
        || {
            let metrics = mount.metrics();
            let blocks = metrics.iter().filter(|(name, blocks)| {
                name.starts_with("weir_worker_tier_blocks{tier=\"ssd\"") && **blocks > 0.0
            });
            blocks.count() == 2
        },
    );
    assert!(
        mount
            .metric("weir_worker_tier_capacity_bytes", "tier=\"memory\"")
            .abs()
            < 0.5
    );
    let dataset = lab.weir(["dataset", "get", "named"]).ok();
    assert!(dataset.contains("named@1"), "{dataset}");
}

fn a_foreground_mount_ends_with_its_process() {
    let lab = Lab::new();
    lab.put_all(&files());
    let mnt = lab.path("mnt");
    let url = lab.url("");
    let args = ["mount", &url, mnt.to_str().unwrap(), "--foreground"];
    let mut command = lab.command(args.iter().copied());
    command
        .args(lab.origin_flags())
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    wait_until("it is mounted", Duration::from_secs(20), || {
        is_mountpoint(&mnt)
    });
    assert_eq!(std::fs::read(mnt.join("one")).unwrap(), files()["one"]);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut status = None;
    wait_until("it ends", Duration::from_secs(20), || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success(), "{status:?}");
    assert!(!is_mountpoint(&mnt));
}

fn two_mounts_of_one_bucket_have_caches_of_their_own() {
    let lab = Lab::new();
    let files = files();
    lab.put_all(&files);
    let origin = lab.origin_flags();
    let flags: Vec<&str> = origin.iter().map(String::as_str).collect();
    let url = lab.url("");
    let first = lab.mount_at(&url, "first", &flags);
    let second = lab.mount_at(&url, "second", &flags);
    for (name, content) in &files {
        assert!(
            first.read(name) == *content && second.read(name) == *content,
            "{name}"
        );
    }
    first.unmount();
    drop_pages(files.keys().map(|name| second.path(name)));
    assert!(second.read("blocks") == files["blocks"]);
}

fn a_refresh_shows_what_changed() {
    let lab = Lab::new();
    lab.put_all(&files());
    let mount = lab.mount("", &["--dataset", "set"]);
    lab.s3.edit(weir_tests::BUCKET, |bucket| {
        bucket.put("new", "new");
        bucket.put("one", "changed");
        bucket.delete(b"empty");
    });
    let refreshed = lab.weir(["dataset", "refresh", "set"]).ok();
    assert!(refreshed.contains("set@2"), "{refreshed}");
    // The mount keeps its snapshot; the object that it has not read yet is no longer to be had.
    assert!(!mount.path("new").exists());
    let error = std::fs::read(mount.path("one")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(116), "{error}");
    mount.unmount();
    let mount = lab.mount("", &["--dataset", "set"]);
    assert_eq!(mount.read("new"), b"new");
    assert_eq!(mount.read("one"), b"changed");
    assert!(!mount.path("empty").exists());
    mount.unmount();
    let mount = lab.mount("", &["--dataset", "set@1"]);
    assert!(mount.path("empty").exists() && !mount.path("new").exists());
}

fn a_mount_inside_a_directory_is_not_listed_with_it() {
    let lab = Lab::new();
    std::fs::create_dir_all(lab.path("source/sub")).unwrap();
    std::fs::write(lab.path("source/sub/file"), "content").unwrap();
    let source = format!("file://{}", lab.path("source").display());
    lab.s3
        .edit(weir_tests::BUCKET, |bucket| bucket.put("object", "o"));
    let inside = lab.mount_at(&source, "source/sub/mnt", &["--dataset", "set"]);
    let flags = lab.origin_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let another = lab.mount_at(&lab.url(""), "source/other", &flags);
    assert_eq!(another.read("object"), b"o");
    let unchanged = lab.weir(["dataset", "refresh", "set"]).ok();
    assert!(!unchanged.contains("set@2"), "{unchanged}");
    std::fs::write(lab.path("source/new"), "").unwrap();
    let refreshed = lab.weir(["dataset", "refresh", "set"]).ok();
    assert!(refreshed.contains("set@2"), "{refreshed}");
    inside.unmount();
    let again = lab.mount_at(&source, "again", &["--dataset", "set"]);
    let mut names: Vec<_> = std::fs::read_dir(again.path("sub"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["file"]);
    assert!(!again.path("other").exists() && again.path("new").exists());
    assert_eq!(again.read("sub/file"), b"content");
}
