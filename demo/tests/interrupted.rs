//! A demo that is interrupted leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
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

/// What a demo says, the first line when it begins to read.
fn output(scratch: &Path) -> PathBuf {
    scratch.with_extension("out")
}

fn start(source: &Path, scratch: &Path) -> Child {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_weir-demo"));
    demo.arg("--url")
        .arg(format!("file://{}", source.display()))
        .arg("--dir")
        .arg(scratch)
        .stdin(Stdio::null())
        .stdout(File::create(output(scratch)).unwrap())
        .process_group(0);
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
    for (name, signal, of_group, reads, code) in [
        ("interrupted", Signal::INT, None, false, 130),
        ("terminated", Signal::TERM, None, false, 143),
        // timeout(1) tells the process and then its group. Two signals of one kind might become one.
        ("early", Signal::INT, Some(Signal::TERM), false, 130),
        ("late", Signal::INT, Some(Signal::TERM), true, 130),
    ] {
        let scratch = dir.path().join(name);
        let mut demo = start(&source, &scratch);
        wait_for("the mount", DEADLINE, || {
            assert_eq!(demo.try_wait()?, None, "it has ended");
            let (mounted, said) = (scratch.join("mnt"), output(&scratch).metadata()?);
            let comes = is_mountpoint(&mounted) && (!reads || said.len() > 0);
            Ok(comes.then_some(()))
        })
        .unwrap();
        let pid = Pid::from_child(&demo);
        kill_process(pid, signal).unwrap();
        if let Some(signal) = of_group {
            kill_process_group(pid, signal).unwrap();
        }
        let status = wait_for("its end", DEADLINE, || Ok(demo.try_wait()?)).unwrap();
        assert_eq!(status.code(), Some(code));
        // Servers of a mount end a moment after it.
        let ended = wait_for("the end of all", DEADLINE, || {
            Ok(left(&scratch).is_empty().then_some(()))
        });
        ended.unwrap_or_else(|error| panic!("{error}: {:?}", left(&scratch)));
    }
}
