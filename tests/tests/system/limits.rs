//! What a process may use: open files.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use weir_tests::{Lab, content};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "too_few_open_files_are_told_before_anything_is_mounted",
        too_few_open_files_are_told_before_anything_is_mounted,
    ),
    (
        "a_mount_works_with_few_open_files",
        a_mount_works_with_few_open_files,
    ),
];

/// A world whose commands have a hard limit of open files.
fn lab_with(descriptors: u32) -> Lab {
    let mut lab = Lab::new();
    let script = lab.path("limited");
    let text = format!(
        "#!/bin/sh\nulimit -n {descriptors}\nexec {} \"$@\"\n",
        lab.binary().display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    lab.use_binary(&script);
    lab
}

fn too_few_open_files_are_told_before_anything_is_mounted() {
    let lab = lab_with(44);
    let (url, dir) = (lab.url(""), lab.path("mnt"));
    let start = Instant::now();
    let mut args = vec!["mount", &url, dir.to_str().unwrap()];
    let origin = lab.origin_flags();
    args.extend(origin.iter().map(String::as_str));
    let message = lab.weir(args).fails(1);
    assert!(
        message.contains("at most 44 files may be open"),
        "{message}"
    );
    assert!(start.elapsed() < Duration::from_secs(10), "{message}");
    assert!(!weir_tests::is_mountpoint(&dir));
}

fn a_mount_works_with_few_open_files() {
    let lab = lab_with(256);
    let files: BTreeMap<String, Vec<u8>> = (0..300)
        .map(|n| (format!("d{}/file{n}", n % 20), content(n, 20_000)))
        .collect();
    lab.put_all(&files);
    let mount = lab.mount("", &[]);
    let names: Vec<_> = files.keys().collect();
    std::thread::scope(|scope| {
        for part in names.chunks(names.len() / 30) {
            let (mount, files) = (&mount, &files);
            scope.spawn(move || {
                for name in part {
                    assert!(mount.read(name) == files[*name], "{name}");
                }
            });
        }
    });
}
