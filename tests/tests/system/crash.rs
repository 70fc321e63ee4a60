//! Killing the processes behind a mount while it is read.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use weir_s3_server::{Fault, Rule};
use weir_tests::{
    Lab, Mount, Readers, ReadersReport, content, drop_pages, read_at_random, read_evicted,
    wait_until,
};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "killing_the_server_again_and_again_fails_no_read",
        killing_the_server_again_and_again_fails_no_read,
    ),
    (
        "killing_the_server_while_it_fills_fails_no_read",
        killing_the_server_while_it_fills_fails_no_read,
    ),
    (
        "where_the_kernel_sends_nothing_again_the_next_server_answers_what_is_left",
        where_the_kernel_sends_nothing_again_the_next_server_answers_what_is_left,
    ),
    (
        "the_next_server_answers_what_is_left_before_the_rest_of_its_block_is_there",
        the_next_server_answers_what_is_left_before_the_rest_of_its_block_is_there,
    ),
    (
        "a_server_that_hangs_is_replaced",
        a_server_that_hangs_is_replaced,
    ),
    (
        "killing_the_supervisor_fails_no_read",
        killing_the_supervisor_fails_no_read,
    ),
    (
        "killing_the_process_that_reads_ahead_fails_no_read",
        killing_the_process_that_reads_ahead_fails_no_read,
    ),
    (
        "a_mount_whose_processes_all_died_is_made_again",
        a_mount_whose_processes_all_died_is_made_again,
    ),
    (
        "a_newer_binary_takes_a_live_mount_over",
        a_newer_binary_takes_a_live_mount_over,
    ),
    (
        "an_ordinary_user_mounts_and_survives_a_crash",
        an_ordinary_user_mounts_and_survives_a_crash,
    ),
];

/// Longest read that a kill may cause.
const LONGEST: Duration = Duration::from_millis(500);

/// Longest read where the kernel sends nothing again.
const EIO_WITHIN: Duration = Duration::from_secs(1);
/// Longest read that a server costs which hangs: the 7 s of docs/semantics.md, on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(20);

type Files = Arc<BTreeMap<String, Vec<u8>>>;

fn fill(lab: &Lab) -> Files {
    let files: BTreeMap<String, Vec<u8>> = (0..400)
        .map(|n| {
            (
                format!("d{}/f{n}", n % 10),
                content(n, 1000 + 700 * n as usize),
            )
        })
        .collect();
    lab.put_all(&files);
    Arc::new(files)
}

#[track_caller]
fn check(report: &ReadersReport, least: usize) {
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.longest < LONGEST, "a read took {:?}", report.longest);
    assert!(report.reads >= least, "only {} reads", report.reads);
}

/// Kills the server once it serves, `times` times in a row.
fn kill_servers(mount: &Mount<'_>, readers: &Readers, times: usize) {
    for _ in 0..times {
        readers.read_more(100);
        let old = mount.kill_server();
        wait_until("another server starts", Duration::from_secs(10), || {
            let pid = mount.status()["server_pid"].as_i64();
            pid.is_some_and(|pid| pid != i64::from(old.as_raw_nonzero().get()))
        });
    }
}

fn killing_the_server_again_and_again_fails_no_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &[]);
    for name in files.keys() {
        mount.read(name);
    }
    let readers = Readers::start(&mount.dir, &files, 4);
    kill_servers(&mount, &readers, 10);
    readers.read_more(20);
    check(&readers.finish(), 500);
}

fn killing_the_server_while_it_fills_fails_no_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    let readers = Readers::start(&mount.dir, &files, 4);
    kill_servers(&mount, &readers, 5);
    readers.read_more(20);
    check(&readers.finish(), 100);
    // Names and attributes survive too.
    let listed = std::fs::read_dir(mount.path("d3")).unwrap().count();
    assert_eq!(listed, 40);
}

/// As on Linux before 6.9.
fn where_the_kernel_sends_nothing_again_the_next_server_answers_what_is_left() {
    let mut lab = Lab::new();
    lab.set_env("WEIR_RESEND", "off");
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    // So long that reads are under way whenever a server is killed.
    let stall = Fault::Stall(Duration::from_millis(50));
    lab.s3.faults().set([Rule::new(stall)]);
    let readers = Readers::start(&mount.dir, &files, 4);
    kill_servers(&mount, &readers, 5);
    readers.read_more(20);
    let report = readers.finish();
    // What a server had read, and had no time to enter.
    let failed = report.errors.iter();
    assert!(
        failed.clone().all(|error| error.contains("os error 5")),
        "{:?}",
        report.errors
    );
    assert!(failed.count() < 3, "{:?}", report.errors);
    assert!(
        report.longest < EIO_WITHIN,
        "a read took {:?}",
        report.longest
    );
    let log = mount.log();
    assert!(log.contains("are answered again"), "{log}");
}

/// As on Linux before 6.9, from an origin that takes long for a block.
fn the_next_server_answers_what_is_left_before_the_rest_of_its_block_is_there() {
    const BLOCK: usize = 4 << 20;
    const PART: usize = 4096;
    const TAKES: Duration = Duration::from_secs(10);
    let big = content(1, 4 * BLOCK);
    let mut lab = Lab::new();
    lab.set_env("WEIR_RESEND", "off");
    lab.put_all(&BTreeMap::from([("big".to_owned(), big.clone())]));
    let mount = lab.mount("", &[]);
    lab.s3.faults().set([Rule::new(Fault::Stall(WATCHDOG))]);
    let path = mount.path("big");
    let reading = std::thread::spawn(move || read_at_random(&path, 2 * BLOCK as u64, PART));
    wait_until("the origin is asked", Duration::from_secs(10), || {
        lab.s3.stats().gets() > 0
    });
    let slow = Fault::SlowBody(BLOCK as u64 / TAKES.as_secs());
    lab.s3.faults().set([Rule::new(slow)]);
    let killed = Instant::now();
    mount.kill_server();
    let read = reading.join().unwrap().unwrap();
    let took = killed.elapsed();
    assert!(read == big[2 * BLOCK..][..PART]);
    assert!(took < TAKES / 2, "the read took {took:?}");
    let log = mount.log();
    assert!(log.contains("are answered again"), "{log}");
}

fn a_server_that_hangs_is_replaced() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &[]);
    let hanging = mount.server();
    kill_process(hanging, Signal::STOP).unwrap();
    let started = Instant::now();
    let path = mount.path("d1/f1");
    let read = std::thread::spawn(move || std::fs::read(path));
    wait_until("the read is answered", Duration::from_secs(30), || {
        read.is_finished()
    });
    assert!(read.join().unwrap().unwrap() == files["d1/f1"]);
    let took = started.elapsed();
    assert!(took < WATCHDOG, "the read took {took:?}");
    assert_ne!(mount.server(), hanging, "after {took:?}");
}

fn killing_the_supervisor_fails_no_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &[]);
    for name in files.keys() {
        mount.read(name);
    }
    let readers = Readers::start(&mount.dir, &files, 2);
    for _ in 0..2 {
        let supervisor = mount.supervisor();
        kill_process(supervisor, Signal::KILL).unwrap();
        wait_until("another supervisor starts", Duration::from_secs(10), || {
            mount.supervisor() != supervisor
        });
        // The new one keeps the mount alive as the old one did.
        kill_servers(&mount, &readers, 1);
    }
    check(&readers.finish(), 100);
    mount.unmount();
}

/// The process that reads ahead for a server, while there is one.
fn reader_ahead(server: Pid) -> Option<Pid> {
    let parent = format!("PPid:\t{}\n", server.as_raw_nonzero());
    let processes = std::fs::read_dir("/proc").unwrap();
    processes.filter_map(Result::ok).find_map(|process| {
        let status = std::fs::read_to_string(process.path().join("status")).ok()?;
        let command = std::fs::read(process.path().join("cmdline")).ok()?;
        let is_it = status.contains(&parent) && command.split(|b| *b == 0).nth(1)? == b"read-ahead";
        let pid = process.file_name().to_str()?.parse().ok()?;
        Pid::from_raw(pid).filter(|_| is_it)
    })
}

fn killing_the_process_that_reads_ahead_fails_no_read() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    let server = mount.server();
    let readers = Readers::start(&mount.dir, &files, 4);
    let mut killed = None;
    for _ in 0..2 {
        wait_until("files are read ahead", Duration::from_secs(10), || {
            drop_pages(files.keys().map(|name| mount.path(name)));
            for name in files.keys() {
                assert!(mount.read(name) == files[name], "{name}");
            }
            reader_ahead(server).is_some_and(|pid| killed.replace(pid) != Some(pid))
        });
        kill_process(killed.unwrap(), Signal::KILL).unwrap();
    }
    check(&readers.finish(), 100);
    assert_eq!(mount.server(), server, "the server itself went on");
    mount.unmount();
}

fn a_mount_whose_processes_all_died_is_made_again() {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &[]);
    let readers = Readers::start(&mount.dir, &files, 4);
    wait_until("files are read ahead", Duration::from_secs(10), || {
        mount.metric("weir_client_prefetched_bytes_total", "") > 0.0
    });
    let all = [mount.server(), mount.supervisor(), mount.holder()];
    // Stopped first, so that none sees the others die.
    for signal in [Signal::STOP, Signal::KILL] {
        for process in all {
            kill_process(process, signal).unwrap();
        }
        if signal == Signal::STOP {
            readers.wait_until_stuck(); // and with them what is being stored ahead
        }
    }
    // The kernel gives the mount up: reads fail, and none hangs.
    readers.wait_for_error();
    assert!(!readers.finish().errors.is_empty());
    let gone = read_evicted(&mount.path("d1/f1")).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    std::mem::forget(mount); // the next one has the same mountpoint
    let mount = lab.mount("", &[]);
    for (name, content) in files.iter().take(50) {
        assert!(mount.read(name) == *content, "{name}");
    }
    mount.unmount();
}

fn a_newer_binary_takes_a_live_mount_over() {
    let lab = Lab::new();
    let files = fill(&lab);
    let newer = lab.path("weir-newer");
    std::fs::copy(lab.binary(), &newer).unwrap();
    let old = lab.binary();
    let readers;
    {
        let mount = lab.mount("", &[]);
        for name in files.keys() {
            mount.read(name);
        }
        readers = Readers::start(&mount.dir, &files, 4);
        readers.read_more(20);
        std::mem::forget(mount); // the newer binary ends it
    }
    lab.use_binary(&newer);
    let mount = lab.mount("", &[]);
    for pid in [mount.server(), mount.supervisor()] {
        wait_until("the newer binary runs", Duration::from_secs(10), || {
            let exe = std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()))
                .unwrap_or_default();
            assert_ne!(exe, old, "the old binary still serves");
            exe == newer || runs_image_of(pid, &newer)
        });
    }
    readers.read_more(20);
    check(&readers.finish(), 40);
    mount.unmount();
}

/// Whether a process runs a copy of the file, which may have been put into memory.
pub(crate) fn runs_image_of(pid: rustix::process::Pid, file: &std::path::Path) -> bool {
    let running = std::fs::metadata(format!("/proc/{}/exe", pid.as_raw_nonzero()));
    running.is_ok_and(|running| running.len() == std::fs::metadata(file).unwrap().len())
}

/// Gives everybody access to `/dev/fuse`, as Debian does, and takes it back.
struct OpenFuse(Permissions);

impl OpenFuse {
    fn new() -> Self {
        let before = std::fs::metadata("/dev/fuse").unwrap().permissions();
        std::fs::set_permissions("/dev/fuse", Permissions::from_mode(0o666)).unwrap();
        Self(before)
    }
}

impl Drop for OpenFuse {
    fn drop(&mut self) {
        let _ = std::fs::set_permissions("/dev/fuse", self.0.clone());
    }
}

fn an_ordinary_user_mounts_and_survives_a_crash() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return; // then every other test is about an ordinary user's mount
    }
    let lab = Lab::new();
    let files = fill(&lab);
    let _open = OpenFuse::new();
    std::fs::set_permissions(lab.path(""), Permissions::from_mode(0o755)).unwrap();
    let binary = lab.path("weir");
    std::fs::copy(lab.binary(), &binary).unwrap();
    lab.use_binary(&binary);
    for dir in ["mnt", "cache", "run"] {
        std::fs::create_dir(lab.path(dir)).unwrap();
        chown(lab.path(dir), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(args);
        lab.set_environment(&mut command);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {text}");
        output.stdout
    };
    let weir = binary.to_str().unwrap();
    let mnt = lab.path("mnt").to_str().unwrap().to_owned();
    let (url, origin) = (lab.url(""), lab.origin_flags());
    let mut args = vec![weir, "mount", &url, &mnt];
    args.extend(origin.iter().map(String::as_str));
    as_nobody(&args);
    let unmount = Unmount(&as_nobody, [weir, "unmount", &mnt]);
    let file = format!("{mnt}/d1/f1");
    assert!(as_nobody(&["cat", &file]) == files["d1/f1"]);
    let server_pid = || {
        let status = as_nobody(&[weir, "status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        status["mounts"][0]["server_pid"].as_i64()
    };
    for kill in 0..3 {
        let server = server_pid().unwrap() as i32;
        kill_process(
            rustix::process::Pid::from_raw(server).unwrap(),
            Signal::KILL,
        )
        .unwrap();
        let file = format!("{mnt}/d{kill}/f{}", 10 + kill);
        assert!(as_nobody(&["cat", &file]) == files[&format!("d{kill}/f{}", 10 + kill)]);
        wait_until("another server serves", Duration::from_secs(10), || {
            server_pid().is_some_and(|pid| pid != i64::from(server))
        });
    }
    drop(unmount);
    assert!(!weir_tests::is_mountpoint(&lab.path("mnt")));
}

/// Unmounts also when the test fails.
struct Unmount<'a, F: Fn(&[&str]) -> Vec<u8>>(&'a F, [&'a str; 3]);

impl<F: Fn(&[&str]) -> Vec<u8>> Drop for Unmount<'_, F> {
    fn drop(&mut self) {
        (self.0)(&self.1);
    }
}
