//! Mounting and unmounting: mount(2) for root, `fusermount3` for everybody else.
//!
//! Invariant: nothing here looks *into* a mount. A stat of a mountpoint waits for the server behind it, which may be
//! the one that is about to start; what is mounted where is read from [`table`], and paths are resolved by
//! [`mountpoint`] without touching the last component.
#![forbid(unsafe_code)]

pub(crate) mod connection;
mod fusermount;
pub(crate) mod mountpoint;
pub mod table;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

/// Type of Weir's mounts in `/proc/self/mountinfo`.
pub const FS_TYPE: &str = "fuse.weir";
/// Largest read that the kernel may ask for, in bytes: what it takes by default (256 pages). Larger ones would only
/// make the first byte wait for more of them.
const MAX_READ: u32 = 1 << 20;
/// Longest wait for an answer from a mount that may be dead.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);
const DEVICE: &str = "/dev/fuse";

/// Why a mount could not be made, found, taken over or ended. It travels from the supervisor to the command, so it
/// holds text instead of the errors behind it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum MountError {
    /// The directory cannot be a mountpoint.
    #[error("cannot mount at {mountpoint}: {reason}")]
    Mountpoint {
        /// The directory as given.
        mountpoint: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The mount would hide what it needs itself.
    #[error(
        "cannot mount at {mountpoint}: {what} {path} lies there and would be hidden by the mount; choose another mountpoint or {remedy}"
    )]
    Hides {
        /// The directory.
        mountpoint: PathBuf,
        /// What lies there.
        what: String,
        /// Where that is, links followed.
        path: PathBuf,
        /// What else can be changed.
        remedy: String,
    },
    /// There is no usable `/dev/fuse`.
    #[error(
        "cannot open /dev/fuse: {reason}; load the kernel module (modprobe fuse), or in a container add --device=/dev/fuse --cap-add=SYS_ADMIN"
    )]
    NoFuse {
        /// What the kernel said.
        reason: String,
    },
    /// An ordinary user needs `fusermount3`, which is not installed.
    #[error(
        "cannot mount as an ordinary user: fusermount3 not found; install the package fuse3, or mount as root"
    )]
    NoFusermount,
    /// Other users may not be let in by an ordinary user.
    #[error(
        "allow_other is refused for ordinary users: put user_allow_other into /etc/fuse.conf, or mount as root"
    )]
    AllowOther,
    /// The kernel or `fusermount3` refused.
    #[error("cannot {action} {mountpoint}: {reason}")]
    Refused {
        /// `mount` or `unmount`.
        action: String,
        /// The directory.
        mountpoint: PathBuf,
        /// What was said.
        reason: String,
    },
    /// Weir has no mount there.
    #[error("no Weir mount at {mountpoint}; `weir status` lists the mounts")]
    NotMounted {
        /// The directory.
        mountpoint: PathBuf,
    },
    /// Programs have files or a working directory in the mount.
    #[error(
        "{mountpoint} is in use; end the programs that use it (fuser -vm lists them), or detach it with --lazy"
    )]
    Busy {
        /// The directory.
        mountpoint: PathBuf,
    },
    /// Another source is mounted there.
    #[error("{mountpoint} is a mount of {mounted}, not of {wanted}; unmount it first")]
    OtherSource {
        /// The directory.
        mountpoint: PathBuf,
        /// What is mounted.
        mounted: String,
        /// What was asked for.
        wanted: String,
    },
    /// A live Weir mount that this runtime directory does not know: another user's, or one made with another
    /// `WEIR_RUNTIME_DIR`.
    #[error(
        "{mountpoint} is a Weir mount of another user or of another WEIR_RUNTIME_DIR; unmount it from there first"
    )]
    Foreign {
        /// The directory.
        mountpoint: PathBuf,
    },
    /// The mount exists but cannot do that now.
    #[error("{mountpoint}: {reason}")]
    NotNow {
        /// The directory.
        mountpoint: PathBuf,
        /// What it is doing.
        reason: String,
    },
    /// The server did not become ready.
    #[error("{reason}")]
    Server {
        /// The server's own message, or how it ended.
        reason: String,
        /// The exit code that it asked for.
        code: u8,
    },
    /// The runtime directory cannot be used.
    #[error("cannot use the runtime directory {dir}: {reason}; WEIR_RUNTIME_DIR chooses another")]
    Runtime {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A process of the mount could not be started, or it does not answer.
    #[error("the supervisor of {mountpoint} {reason}")]
    Supervisor {
        /// The directory.
        mountpoint: PathBuf,
        /// What went wrong with it.
        reason: String,
    },
    /// Somebody ended it before it was usable.
    #[error("{mountpoint} was not mounted: {reason}")]
    GivenUp {
        /// The directory.
        mountpoint: PathBuf,
        /// Who did.
        reason: String,
    },
    /// The time that the caller gave is over.
    #[error("{mountpoint} was not {wanted} in time")]
    Deadline {
        /// The directory.
        mountpoint: PathBuf,
        /// `mounted` or `unmounted`.
        wanted: String,
    },
}

impl MountError {
    pub(crate) fn refused(action: &str, mountpoint: &Path, reason: impl ToString) -> Self {
        Self::Refused {
            action: action.to_owned(),
            mountpoint: mountpoint.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn of_supervisor(mountpoint: &Path, what: &str, error: io::Error) -> Self {
        Self::Supervisor {
            mountpoint: mountpoint.to_owned(),
            reason: format!("{what}: {error}"),
        }
    }
}

/// Mounts at `mountpoint`, which is [resolved](mountpoint::resolve), and gives the connection to the kernel. The
/// mount is read-only; nothing answers there until a server does. `source` is shown by `df` and `mount`.
pub(crate) fn mount(
    mountpoint: &Path,
    source: &str,
    allow_other: bool,
) -> Result<OwnedFd, MountError> {
    if rustix::process::geteuid().is_root() {
        match mount_as_root(mountpoint, source, allow_other) {
            // Root without CAP_SYS_ADMIN: the kernel lets the setuid program do it, if there is one.
            Err(MountError::Refused { reason, .. }) if reason == Errno::PERM.to_string() => {}
            other => return other,
        }
    }
    fusermount::mount(mountpoint, source, allow_other)
}

fn mount_as_root(
    mountpoint: &Path,
    source: &str,
    allow_other: bool,
) -> Result<OwnedFd, MountError> {
    let fuse = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(
        |error| MountError::NoFuse {
            reason: error.to_string(),
        },
    )?;
    let mut options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={MAX_READ}",
        fuse.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if allow_other {
        options.push_str(",allow_other");
    }
    let options = CString::new(options)
        .map_err(|error| MountError::refused("mount at", mountpoint, error))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(
        format!("weir:{source}"),
        mountpoint,
        FS_TYPE,
        flags,
        options.as_c_str(),
    )
    .map_err(|error| match error {
        Errno::NODEV => MountError::NoFuse {
            reason: "the kernel has no fuse file system".to_owned(),
        },
        Errno::NOSPC => MountError::refused("mount at", mountpoint, table::full()),
        error => MountError::refused("mount at", mountpoint, error),
    })?;
    Ok(fuse)
}

/// Takes the mount out of the tree. Fails with [`MountError::Busy`] while it is in use; with `lazy` it is detached at
/// once and ends with its last user.
pub(crate) fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    if rustix::process::geteuid().is_root() {
        let mut flags = UnmountFlags::NOFOLLOW;
        if lazy {
            flags |= UnmountFlags::DETACH;
        }
        match rustix::mount::unmount(mountpoint, flags) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) => {
                return Err(MountError::Busy {
                    mountpoint: mountpoint.to_owned(),
                });
            }
            Err(Errno::INVAL | Errno::NOENT) => {
                return Err(MountError::NotMounted {
                    mountpoint: mountpoint.to_owned(),
                });
            }
            Err(Errno::PERM) => {}
            Err(error) => return Err(MountError::refused("unmount", mountpoint, error)),
        }
    }
    fusermount::unmount(mountpoint, lazy)
}

/// Whether the kernel's side of the mount is gone: unmounted by somebody and no longer in use.
pub(crate) fn is_gone(fuse: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fuse, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // A connection that ended polls as an error, whatever was asked for.
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

/// Makes room for a mount where dead mounts of Weir lie, whose processes were all killed. Returns whether there were
/// any; a live one is [`MountError::Foreign`], since the caller has looked for its own.
pub(crate) fn detach_dead(mountpoint: &Path) -> Result<bool, MountError> {
    /// More mounts on top of each other than anybody makes.
    const MOST: usize = 64;
    let mut detached = false;
    for _ in 0..MOST {
        let top = table::at(mountpoint)
            .map_err(|error| MountError::refused("mount at", mountpoint, error))?;
        if top.is_none_or(|top| top.fs_type != FS_TYPE) {
            return Ok(detached);
        }
        if !is_dead(mountpoint) {
            return Err(MountError::Foreign {
                mountpoint: mountpoint.to_owned(),
            });
        }
        unmount(mountpoint, true)?;
        detached = true;
    }
    Err(MountError::refused(
        "mount at",
        mountpoint,
        "too many dead mounts lie on top of each other",
    ))
}

/// Whether nobody serves the mount any more. Asks what the kernel never answers from its caches. A server that hangs
/// makes the question hang too, so it has a thread of its own, which is left behind.
fn is_dead(mountpoint: &Path) -> bool {
    let (answer, answered) = mpsc::channel();
    let path = mountpoint.to_owned();
    let probe = std::thread::Builder::new()
        .name("mount-probe".to_owned())
        .spawn(move || {
            // The receiver may have stopped to wait.
            let _ = answer.send(rustix::fs::statfs(&path).map(drop));
        });
    probe.is_ok()
        && matches!(
            answered.recv_timeout(PROBE_DEADLINE),
            Ok(Err(Errno::NOTCONN))
        )
}

/// Reads the kernel's first request, INIT, which it sends by itself after the mount.
pub(crate) fn read_init(fuse: &OwnedFd, deadline: Duration) -> io::Result<Vec<u8>> {
    /// The kernel refuses to fill a buffer of less than 8 KiB.
    const BUFFER: usize = 64 << 10;
    if !weir_process::fdpass::readable(fuse, deadline)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut request = vec![0; BUFFER];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(fuse, &mut request))?;
    request.truncate(length);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_a_process_border_unchanged() {
        let error = MountError::OtherSource {
            mountpoint: "/mnt/a".into(),
            mounted: "s3://a".into(),
            wanted: "s3://b".into(),
        };
        let json = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<MountError>(&json).unwrap(), error);
        assert_eq!(
            error.to_string(),
            "/mnt/a is a mount of s3://a, not of s3://b; unmount it first"
        );
    }
}
