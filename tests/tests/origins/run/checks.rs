//! The runner itself, run over cases that misbehave: `make test` runs this, and needs no storage for it.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use weir_demo::kernel::mounted_below;
use weir_tests::{Lab, wait_until};

use crate::{Case, Suite, nothing};

/// Has this program run the suites of this file.
const CHECKED: &str = "ORIGINS_CHECKED";
/// The limit of their cases: longer than a mount takes to start.
const LIMIT: Duration = Duration::from_secs(8);
/// Longest wait for what the runner ends.
const ENDED: Duration = Duration::from_secs(40);
/// Longest wait for a whole run.
const FINISHED: Duration = Duration::from_mins(3);

const CASES: &[Case] = &[
    ("passes", passes),
    ("fails", || panic!("this is why it fails")),
    ("passes_after_that", passes),
    ("leaves_a_process", leave_a_process),
    ("leaves_a_mount", leave_a_mount),
    ("passes_without_them", passes_without_them),
    ("dies", || std::process::abort()),
    ("passes_in_a_new_process", passes),
];
/// Hang for ever: one is waited for, of the other the runner is killed.
const HANGING: &[Case] = &[("hangs", hang), ("passes_after_that", passes_without_them)];

pub(crate) static SUITES: &[Suite] = &[
    Suite {
        limit: LIMIT,
        ..Suite::new("checked", &[CASES], nothing)
    },
    Suite {
        limit: LIMIT,
        ..Suite::new("hanging", &[HANGING], nothing)
    },
    Suite {
        limit: LIMIT,
        prepare: || panic!("there is no storage"),
        ..Suite::new("unprepared", &[HANGING], nothing)
    },
];

/// Whether this process is to run the suites of this file.
pub(crate) fn are_meant() -> bool {
    std::env::var_os(CHECKED).is_some()
}

/// The checks, for `make test`.
pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name: &str, check: fn()| {
        Trial::test(format!("runner::{name}"), move || {
            check();
            Ok::<(), Failed>(())
        })
    };
    vec![
        trial(
            "names_what_misbehaves_and_goes_on",
            names_what_misbehaves_and_goes_on,
        ),
        trial("ends_all_when_it_is_killed", ends_all_when_it_is_killed),
    ]
}

fn passes() {}

/// A directory of the suite, which its next cases find.
fn at(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

/// Starts what counts as a process of Weir's by its name, and lasts.
#[allow(clippy::zombie_processes, reason = "it is to be left behind")]
fn leave_a_process() {
    let program = at("weir");
    std::fs::copy("/bin/sleep", &program).unwrap();
    let mut sleep = Command::new(program);
    sleep.arg0("sleep").arg("600").stdin(Stdio::null());
    drop(sleep.spawn().unwrap());
}

fn leave_a_mount() {
    let lab = Lab::new();
    let data = lab.path("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "x").unwrap();
    let mount = lab.mount_at(&format!("file://{}", data.display()), "mnt", &[]);
    assert_eq!(mount.read("file"), b"x");
    // Neither is unmounted, nor is its directory removed.
    std::mem::forget(mount);
    std::mem::forget(lab);
}

fn hang() {
    leave_a_process();
    leave_a_mount();
    loop {
        std::thread::park();
    }
}

fn passes_without_them() {
    assert!(below(&std::env::temp_dir()).is_empty());
}

/// What is mounted below a directory, and which programs of it run.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = mounted_below(dir);
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let program = std::fs::read_link(process.path().join("exe"));
        if program.is_ok_and(|program| program.starts_with(dir)) {
            found.push(process.path());
        }
    }
    found
}

/// The runner over the suites that a name chooses, with a scratch directory of its own.
fn start(filter: &str) -> (tempfile::TempDir, Child) {
    let scratch = tempfile::Builder::new().prefix("r-").tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg(filter)
        .env(CHECKED, "1")
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    (scratch, command.spawn().unwrap())
}

/// How the runner has ended, and what it has said.
fn finish((scratch, mut runner): (tempfile::TempDir, Child)) -> (i32, String) {
    let (send, read) = channel();
    let mut output = runner.stdout.take().unwrap();
    std::thread::spawn(move || {
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        let _ = send.send(said);
    });
    let Ok(said) = read.recv_timeout(FINISHED) else {
        runner.kill().unwrap();
        runner.wait().unwrap();
        panic!("the runner does not end");
    };
    let code = runner.wait().unwrap().code().unwrap_or(-1);
    let left = below(scratch.path());
    assert!(left.is_empty(), "{left:?}\n{said}");
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}\n{said}");
    (code, said)
}

fn names_what_misbehaves_and_goes_on() {
    let runs = ["checked", "hanging", "unprepared"].map(start);
    let [checked, hanging, unprepared] = runs.map(finish);
    for (code, said) in [&checked, &hanging, &unprepared] {
        assert_ne!(*code, 0, "{said}");
    }
    for (case, problem) in [
        ("passes", None),
        ("fails", Some("this is why it fails")),
        ("passes_after_that", None),
        ("leaves_a_process", Some("it has left behind: process")),
        ("leaves_a_mount", Some("mounted at")),
        ("passes_without_them", None),
        ("dies", Some("its process has died")),
        ("passes_in_a_new_process", None),
    ] {
        is_told(&checked.1, &format!("checked::{case}"), problem);
    }
    assert!(checked.1.contains("4 passed, 4 failed"), "{}", checked.1);
    let said = &hanging.1;
    is_told(said, "hanging::hangs", Some("it did not end within"));
    is_told(said, "hanging::passes_after_that", None);
    assert!(said.contains("1 passed, 1 failed"), "{said}");
    // Of a suite that cannot begin no case is run.
    let said = &unprepared.1;
    is_told(said, "unprepared::prepare", Some("there is no storage"));
    assert!(said.contains("0 passed, 1 failed"), "{said}");
}

/// Whether a case has the outcome that it should: a problem that its part of the output names, or none.
#[track_caller]
fn is_told(said: &str, case: &str, problem: Option<&str>) {
    let word = if problem.is_some() { "FAILED" } else { "ok" };
    let begin = said.find(&format!("test {case} ... {word}"));
    let told = &said[begin.unwrap_or_else(|| panic!("{case} is not {word} in:\n{said}"))..];
    let told = told[1..].split("\ntest ").next().unwrap_or_default();
    let problem = problem.unwrap_or_default();
    assert!(told.contains(problem), "{case}: {problem} is not in {told}");
}

fn ends_all_when_it_is_killed() {
    let (scratch, mut runner) = start("hanging::hangs");
    wait_until("the case hangs", ENDED, || {
        let found = below(scratch.path());
        found.iter().any(|path| path.ends_with("mnt"))
            && found.iter().any(|path| path.starts_with("/proc"))
    });
    runner.kill().unwrap();
    runner.wait().unwrap();
    wait_until("all that it has started has ended", ENDED, || {
        below(scratch.path()).is_empty()
    });
}
