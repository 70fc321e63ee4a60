//! A demo that is interrupted leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use weir_demo::kernel::{is_mountpoint, mounted_below};
use weir_demo::wait::wait_for;

/// So many that they are not read in the moment between the mount and the signal.
const FILES: usize = 10_000;
const DEADLINE: Duration = Duration::from_mins(1);

/// What is mounted below a directory, and processes that were told of it.
fn left(dir: &Path) -> Vec<PathBuf> {
    let name = dir.to_str().unwrap();
    let mut found: Vec<PathBuf> = mounted_below(dir);
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(process.path().join("environ"));
        if String::from_utf8_lossy(&environment.unwrap_or_default()).contains(name) {
            found.push(process.path());
        }
    }
    found
}

fn start(source: &Path, scratch: &Path) -> Child {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_weir-demo"));
    demo.arg("--url")
        .arg(format!("file://{}", source.display()))
        .arg("--dir")
        .arg(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    demo.spawn().unwrap()
}

#[test]
fn an_interrupted_demo_unmounts_and_ends_what_it_has_started() {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: there is no /dev/fuse");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for number in 0..FILES {
        std::fs::write(source.join(number.to_string()), "x").unwrap();
    }
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let scratch = dir.path().join(format!("scratch-{code}"));
        let mut demo = start(&source, &scratch);
        wait_for("the mount", DEADLINE, || {
            assert_eq!(demo.try_wait()?, None, "it has ended");
            Ok(is_mountpoint(&scratch.join("mnt")).then_some(()))
        })
        .unwrap();
        kill_process(Pid::from_child(&demo), signal).unwrap();
        let status = wait_for("its end", DEADLINE, || Ok(demo.try_wait()?)).unwrap();
        assert_eq!(status.code(), Some(code));
        // Servers of a mount end a moment after it.
        let ended = wait_for("the end of all", DEADLINE, || {
            Ok(left(&scratch).is_empty().then_some(()))
        });
        ended.unwrap_or_else(|error| panic!("{error}: {:?}", left(&scratch)));
    }
}
