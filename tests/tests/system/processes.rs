//! What the processes look like from outside: their names, and the modes of their files.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use weir_tests::{Cluster, Lab, content};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "processes_are_named_after_what_they_do",
        processes_are_named_after_what_they_do,
    ),
    (
        "files_are_private_whatever_the_umask",
        files_are_private_whatever_the_umask,
    ),
];

fn name_of(pid: Pid) -> String {
    let comm = format!("/proc/{}/comm", pid.as_raw_nonzero());
    std::fs::read_to_string(comm).unwrap().trim().to_owned()
}

fn processes_are_named_after_what_they_do() {
    let lab = Lab::new();
    lab.put_all(&BTreeMap::from([("a".to_owned(), content(1, 1000))]));
    let mount = lab.mount("", &[]);
    assert_eq!(name_of(mount.supervisor()), "weir-mount");
    assert_eq!(name_of(mount.server()), "weir-serve");
    assert_eq!(name_of(mount.holder()), "weir-hold");
    mount.kill_server();
    mount.read("a");
    assert_eq!(name_of(mount.server()), "weir-serve", "the next one, too");
}

/// All below `dir`, and itself, that other users may use in any way.
fn open_to_others(dir: &Path, found: &mut Vec<(PathBuf, u32)>) {
    let metadata = std::fs::symlink_metadata(dir).unwrap();
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 && !metadata.is_symlink() {
        found.push((dir.to_owned(), mode));
    }
    if metadata.is_dir() {
        for entry in std::fs::read_dir(dir).unwrap() {
            open_to_others(&entry.unwrap().path(), found);
        }
    }
}

fn files_are_private_whatever_the_umask() {
    let lab = Lab::new();
    lab.put_all(&BTreeMap::from([("a".to_owned(), content(1, 1000))]));
    let script = lab.path("open-umask");
    let weir = lab.binary();
    let weir = weir.display();
    std::fs::write(&script, format!("#!/bin/sh\numask 0\nexec {weir} \"$@\"\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    lab.use_binary(&script);
    let mount = lab.mount("", &[]);
    mount.read("a");
    let cluster = Cluster::start(&lab, 1);
    cluster.create_dataset("d");
    cluster.weir(&["warm", "d", "--wait"]).ok();
    let mut found = Vec::new();
    for name in ["run", "cache", "master", "node-0"] {
        open_to_others(&lab.path(name), &mut found);
    }
    assert_eq!(found, []);
}
