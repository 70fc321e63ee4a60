//! The setuid program of the fuse package, which mounts for ordinary users and sends the descriptor back.
//!
//! It takes the number of a socket in `_FUSE_COMMFD` and sends one byte with the descriptor (`SCM_RIGHTS`).
#![forbid(unsafe_code)]

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::{MAX_READ, MountError, table};

/// Longest run of the program.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between looks at whether the program has ended; it takes a few milliseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Most of what it says that is shown.
const MAX_SAID: u64 = 4096;
/// Newest first: some systems have both.
const NAMES: [&str; 2] = ["fusermount3", "fusermount"];
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

pub(super) fn mount(
    mountpoint: &Path,
    source: &str,
    allow_other: bool,
) -> Result<OwnedFd, MountError> {
    let fail = |reason: String| MountError::refused("mount at", mountpoint, reason);
    let (ours, theirs) = UnixStream::pair().map_err(|error| fail(error.to_string()))?;
    let mut options = format!(
        "ro,nosuid,nodev,noatime,default_permissions,max_read={MAX_READ},subtype=weir,fsname={}",
        escape(&format!("weir:{source}"))
    );
    if allow_other {
        options.push_str(",allow_other");
    }
    let mut command = Command::new(program()?);
    command.args(["-o", &options, "--"]).arg(mountpoint);
    command.env(SOCKET_VARIABLE, theirs.as_raw_fd().to_string());
    let child = weir_process::spawn::spawn(quiet(&mut command), theirs.as_fd())
        .map_err(|error| fail(error.to_string()))?;
    drop(theirs);
    let (success, said) = finish(child).map_err(|error| fail(error.to_string()))?;
    if !success {
        return Err(explain(mountpoint, &said));
    }
    ours.set_nonblocking(true)
        .map_err(|error| fail(error.to_string()))?;
    receive(&ours).ok_or_else(|| fail("fusermount3 sent no descriptor".to_owned()))
}

pub(super) fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let fail = |error: std::io::Error| MountError::refused("unmount", mountpoint, error);
    let mut command = Command::new(program()?);
    command
        .arg("-u")
        .args(lazy.then_some("-z"))
        .arg("--")
        .arg(mountpoint);
    let child = quiet(&mut command).spawn().map_err(fail)?;
    let (success, said) = finish(child).map_err(fail)?;
    if success {
        return Ok(());
    }
    let mountpoint = mountpoint.to_owned();
    Err(if said.contains("busy") {
        MountError::Busy { mountpoint }
    } else if said.contains("not found in") || said.contains("nvalid argument") {
        MountError::NotMounted { mountpoint }
    } else {
        MountError::refused("unmount", &mountpoint, said)
    })
}

/// The first program that is installed; `sbin` is not on every user's path.
fn program() -> Result<PathBuf, MountError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).chain(extra).collect();
    NAMES
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)))
        .find(|program| program.is_absolute() && program.is_file())
        .ok_or(MountError::NoFusermount)
}

fn quiet(command: &mut Command) -> &mut Command {
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
}

/// Waits for the program and gives whether it succeeded and what it said. One that hangs is killed.
fn finish(mut child: Child) -> std::io::Result<(bool, String)> {
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::other("fusermount3 did not end in time"));
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(MAX_SAID).read_to_end(&mut said)?;
    }
    Ok((
        status.success(),
        String::from_utf8_lossy(&said).trim().to_owned(),
    ))
}

fn explain(mountpoint: &Path, said: &str) -> MountError {
    if said.contains("user_allow_other") {
        return MountError::AllowOther;
    }
    if said.contains("/dev/fuse")
        || said.contains("device not found")
        || said.contains("failed to open")
    {
        return MountError::NoFuse {
            reason: said.to_owned(),
        };
    }
    if said.contains("No space left on device") {
        return MountError::refused("mount at", mountpoint, table::full());
    }
    MountError::refused("mount at", mountpoint, said)
}

fn receive(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// In an option's value a comma ends it and a backslash takes the next character as it is.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_says_becomes_an_error_that_says_what_to_do() {
        let dir = Path::new("/mnt/x");
        let other = "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf";
        assert_eq!(explain(dir, other), MountError::AllowOther);
        let device = "fusermount3: fuse device not found, try 'modprobe fuse' first";
        assert!(matches!(explain(dir, device), MountError::NoFuse { .. }));
        let access = "fusermount3: user has no write access to mountpoint /mnt/x";
        assert!(explain(dir, access).to_string().contains("no write access"));
        let full = explain(dir, "fusermount3: mount failed: No space left on device");
        assert!(
            full.to_string().contains("raise the sysctl fs.mount-max"),
            "{full}"
        );
    }

    #[test]
    fn a_source_cannot_add_mount_options() {
        assert_eq!(escape("s3://b/a,suid\\,dev"), "s3://b/a\\,suid\\\\\\,dev");
    }
}
