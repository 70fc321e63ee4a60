//! Mounts that mount(8) makes, as for a line of /etc/fstab.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use weir_tests::{Lab, content, is_mountpoint, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_line_of_fstab_mounts_and_umount_ends_it",
        a_line_of_fstab_mounts_and_umount_ends_it,
    ),
    (
        "the_helper_takes_flags_and_refuses_options_that_it_does_not_know",
        the_helper_takes_flags_and_refuses_options_that_it_does_not_know,
    ),
];

/// A directory that is unmounted whatever becomes of the test.
struct Point<'a>(&'a Path);

impl Drop for Point<'_> {
    fn drop(&mut self) {
        if is_mountpoint(self.0) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
}

/// The binary under test by another name.
fn binary(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.path(name);
    symlink(lab.binary(), &path).unwrap();
    path
}

/// A command with the lab's environment.
fn command(lab: &Lab, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    lab.set_environment(&mut command);
    command
}

#[track_caller]
fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = output(command);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?} {message}", output.status);
}

fn a_line_of_fstab_mounts_and_umount_ends_it() {
    let lab = Lab::new();
    lab.put_all(&[("dir/f".to_owned(), content(1, 5000))].into());
    let dir = lab.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let point = Point(&dir);
    let endpoint = lab.s3.endpoint();
    // mount(8) forgets PATH; what is not installed is told by its path.
    let weir = binary(&lab, "weir");
    let line = format!(
        "{} {} fuse.{} rw,_netdev,nofail,noauto,noexec,x-systemd.automount,allow_other,anonymous,\
         endpoint={endpoint},uid=1234,gid=5678,file_mode=0440,mem=64MiB 0 0\n",
        lab.url(""),
        dir.display(),
        weir.display()
    );
    let fstab = lab.path("fstab");
    std::fs::write(&fstab, line).unwrap();
    let fstab = fstab.to_str().unwrap();
    succeeds(command(&lab, "mount").args(["--fstab", fstab]).arg(&dir));
    assert!(std::fs::read(dir.join("dir/f")).unwrap() == content(1, 5000));
    let found = std::fs::metadata(dir.join("dir/f")).unwrap();
    assert_eq!(
        (found.uid(), found.gid(), found.mode() & 0o777),
        (1234, 5678, 0o440)
    );
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let entry = table
        .lines()
        .find(|line| line.contains(dir.to_str().unwrap()));
    let entry = entry.unwrap();
    let options = entry.split(' ').nth(5).unwrap();
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|other| other == option), "{entry}");
    }
    assert!(
        entry.contains("allow_other") && entry.contains("fuse.weir"),
        "{entry}"
    );
    let status = lab.weir(["status"]).ok();
    assert!(status.contains(dir.to_str().unwrap()), "{status}");
    succeeds(command(&lab, "umount").arg(&dir));
    wait_until("the mount is gone", Duration::from_secs(10), || {
        !is_mountpoint(&dir)
    });
    drop(point);
}

fn the_helper_takes_flags_and_refuses_options_that_it_does_not_know() {
    let lab = Lab::new();
    lab.put_all(&[("f".to_owned(), content(1, 5000))].into());
    let dir = lab.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let _point = Point(&dir);
    let helper = binary(&lab, "mount.weir");
    let mount = |flags: &str, options: &str| {
        let options = format!("{options},anonymous,endpoint={}", lab.s3.endpoint());
        let mut command = command(&lab, &helper);
        command.args([lab.url("").as_str(), dir.to_str().unwrap()]);
        command
            .args(flags.split_whitespace())
            .args(["-o", &options]);
        output(&mut command)
    };
    let refused = mount("", "rw,passwd_file=x,turbo");
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("passwd_file=x, turbo"), "{message}");
    let refused = mount("", "mem=many");
    assert_eq!(refused.status.code(), Some(1));
    // A check alone.
    assert_eq!(mount("-f", "rw").status.code(), Some(0));
    assert!(!is_mountpoint(&dir));
    let failed = mount("-n", "dataset=other@7");
    let message = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(32), "{message}");
    assert!(!is_mountpoint(&dir));
    let mounted = mount("-n -v -s", "ro,turbo");
    let message = String::from_utf8_lossy(&mounted.stderr);
    assert_eq!(mounted.status.code(), Some(0), "{message}");
    assert!(message.contains("weir mount"), "{message}");
    assert!(std::fs::read(dir.join("f")).unwrap() == content(1, 5000));
    lab.weir(["unmount", dir.to_str().unwrap()]).ok();
}
