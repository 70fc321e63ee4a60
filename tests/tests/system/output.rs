//! What commands print, and what becomes of them when nobody takes it.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

use weir_s3_server::{Config, S3Server};
use weir_tests::{Lab, Outcome};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "output_that_nobody_reads_changes_nothing",
        output_that_nobody_reads_changes_nothing,
    ),
    (
        "output_that_cannot_be_written_is_an_error",
        output_that_cannot_be_written_is_an_error,
    ),
    (
        "a_line_break_in_a_name_does_not_break_a_table",
        a_line_break_in_a_name_does_not_break_a_table,
    ),
    (
        "keys_with_a_line_break_work_or_are_named",
        keys_with_a_line_break_work_or_are_named,
    ),
];

/// Commands that print, each in its own way.
const PRINTING: [&[&str]; 6] = [
    &["status"],
    &["status", "-o", "json"],
    &["dataset", "list"],
    &["dataset", "list", "-o", "json"],
    &["completions", "bash"],
    &["--help"],
];

fn lab_with_a_mount() -> Lab {
    let lab = Lab::new();
    lab.s3
        .edit(weir_tests::BUCKET, |bucket| bucket.put("file", "x"));
    lab
}

/// Runs a command with these outputs; gives what it said on the others.
fn run(lab: &Lab, args: &[&str], stdout: Stdio, stderr: Stdio) -> Outcome {
    let mut child = lab
        .command(args)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .unwrap();
    let text = |pipe: Option<&mut dyn Read>| {
        let mut text = String::new();
        pipe.map(|pipe| pipe.read_to_string(&mut text).unwrap());
        text
    };
    let stdout = text(child.stdout.as_mut().map(|pipe| pipe as _));
    let stderr = text(child.stderr.as_mut().map(|pipe| pipe as _));
    let code = child.wait().unwrap().code().unwrap_or(-1);
    Outcome {
        code,
        stdout,
        stderr,
    }
}

/// The writing end of a pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (_, write) = std::io::pipe().unwrap();
    write.into()
}

fn full_device() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

fn output_that_nobody_reads_changes_nothing() {
    let lab = lab_with_a_mount();
    let _mount = lab.mount("", &[]);
    for args in PRINTING {
        let outcome = run(&lab, args, closed_pipe(), Stdio::piped());
        assert_eq!((outcome.code, &*outcome.stderr), (0, ""), "{args:?}");
    }
    // The exit code tells how the command ended, also when its message is lost.
    let nowhere = ["dataset", "get", "nowhere"];
    let outcome = run(&lab, &nowhere, closed_pipe(), closed_pipe());
    assert_eq!(outcome.code, 3);
    let senseless = ["dataset", "--senseless"];
    let outcome = run(&lab, &senseless, closed_pipe(), full_device());
    assert_eq!(outcome.code, 2);
}

fn output_that_cannot_be_written_is_an_error() {
    let lab = lab_with_a_mount();
    let mount = lab.mount("", &[]);
    for args in PRINTING {
        let outcome = run(&lab, args, full_device(), Stdio::piped());
        assert_eq!(outcome.code, 1, "{args:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains("standard output") && outcome.stderr.contains("No space left"),
            "{args:?}: {}",
            outcome.stderr
        );
    }
    // Here the message cannot be written either.
    let outcome = run(&lab, &["status"], full_device(), full_device());
    assert_eq!(outcome.code, 1);
    // What was asked for is done all the same.
    let dir = mount.dir.to_str().unwrap();
    let url = lab.url("");
    let mut args = vec!["mount", &url, dir];
    let origin = lab.origin_flags();
    args.extend(origin.iter().map(String::as_str));
    let outcome = run(&lab, &args, full_device(), Stdio::piped());
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("what the command changed"),
        "{}",
        outcome.stderr
    );
    assert_eq!(mount.read("file"), b"x");
}

fn a_line_break_in_a_name_does_not_break_a_table() {
    let lab = lab_with_a_mount();
    let flags = lab.origin_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mount = lab.mount_at(&lab.url(""), "two\nlines\u{1b}[1m", &flags);
    assert_eq!(mount.read("file"), b"x");
    let table = lab.weir(["status"]).ok();
    assert!(table.contains(r"two\nlines\u{1b}[1m"), "{table}");
    assert!(!table.contains('\u{1b}'), "{table}");
    // JSON has the very name.
    assert_eq!(mount.status()["mountpoint"], mount.dir.to_str().unwrap());
    let missing: PathBuf = lab.path("no\nmount");
    let message = lab.weir(["unmount", missing.to_str().unwrap()]).fails(3);
    assert_eq!(message.lines().count(), 1, "{message}");
}

fn keys_with_a_line_break_work_or_are_named() {
    let mut lab = Lab::new();
    let server = S3Server::start(Config {
        credentials: Some(("the-key".to_owned(), "the-secret".to_owned())),
        ..Config::default()
    })
    .unwrap();
    server.edit("private", |bucket| bucket.put("file", "signed"));
    let endpoint = server.endpoint();
    let flags = ["--endpoint", &endpoint];
    // A secret that was made with `echo`.
    lab.set_env("AWS_ACCESS_KEY_ID", "the-key\n");
    lab.set_env("AWS_SECRET_ACCESS_KEY", "the-secret\n");
    let mount = lab.mount_at("s3://private", "mnt", &flags);
    assert_eq!(mount.read("file"), b"signed");
    mount.unmount();
    lab.set_env("AWS_SESSION_TOKEN", "first\nsecond");
    let dir = lab.path("other");
    let dir = dir.to_str().unwrap();
    let mount = ["mount", "s3://private", dir, "--endpoint", &endpoint];
    let message = lab.weir(mount.iter().chain(&["--refresh"])).fails(2);
    assert!(message.contains("AWS_SESSION_TOKEN"), "{message}");
    assert!(!message.contains("second"), "{message}");
}
