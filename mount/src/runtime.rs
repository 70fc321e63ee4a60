//! The runtime directory: which mounts live on this machine, and how their supervisors are reached.
//!
//! Each mount has a directory of its own with a lock, the supervisor's control socket, its state and its log. The
//! lock is an open file that supervisor and server share, so it is held exactly as long as one of them lives: a
//! directory whose lock can be taken belongs to a dead mount, whatever its files say.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::Uid;
use serde::{Deserialize, Serialize};
use weir_process::lock::LiveLock;

use crate::mounting::{MountError, mountpoint};

/// Chooses the runtime directory of all mounts.
const VARIABLE: &str = "WEIR_RUNTIME_DIR";
const LOCK: &str = "lock";
const STATE: &str = "state.json";
const LOG: &str = "log";
const SOCKET: &str = "control.sock";
/// A log that is longer than this when a mount starts is started anew, in bytes.
const MAX_LOG: u64 = 4 << 20;
/// Bytes of the mountpoint's hash in the directory's name: with the directories above it, the path of the control
/// socket must stay under 108 bytes.
const NAME_BYTES: usize = 8;

/// A live mount, as others see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountInfo {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// What is mounted, as the user wrote it.
    pub source: String,
    /// What the server published, such as the address of its metrics.
    pub properties: BTreeMap<String, String>,
    /// The supervisor's process.
    pub supervisor_pid: u32,
    /// The server's process; none while it is being restarted.
    pub server_pid: Option<u32>,
    /// The process that brings both of them back; none while it is being restarted.
    #[serde(default)]
    pub holder_pid: Option<u32>,
    /// Taken out of the tree while files in it were open.
    #[serde(default)]
    pub detached: bool,
    /// Another pod is to hold it, too.
    #[serde(default)]
    pub has_peer: bool,
    /// Another pod holds it, and has said so.
    #[serde(default)]
    pub held_elsewhere: bool,
    /// A server answers what is asked of it; a version that does not say so is believed to.
    #[serde(default = "yes")]
    pub is_served: bool,
    /// Its runtime directory, as it is named now.
    #[serde(skip)]
    pub dir: PathBuf,
}

fn yes() -> bool {
    true
}

/// All live mounts of this user, those that were detached included.
pub fn list() -> Vec<MountInfo> {
    let Ok(entries) = std::fs::read_dir(base()) else {
        return Vec::new();
    };
    let mut mounts: Vec<MountInfo> = entries
        .filter_map(|entry| {
            let dir = entry.ok()?.path();
            if !is_live(&dir) {
                return None;
            }
            let state = std::fs::read(dir.join(STATE)).ok()?;
            let info: MountInfo = serde_json::from_slice(&state).ok()?;
            Some(MountInfo { dir, ..info })
        })
        .collect();
    mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    mounts
}

/// Whether a mount has a supervisor that listens.
pub fn answers(mount: &MountInfo) -> bool {
    connect_control(&mount.dir).is_ok()
}

/// Whether two paths mean the same mountpoint, without looking into either.
pub fn same_mountpoint(a: &Path, b: &Path) -> bool {
    let resolved = |path: &Path| mountpoint::resolve(path).unwrap_or_else(|_| path.to_owned());
    resolved(a) == resolved(b)
}

/// The directory below which each mount has one of its own: `$WEIR_RUNTIME_DIR`, `/run/weir` for root, `$XDG_RUNTIME_DIR/weir`, or a directory of the user's under `/tmp`.
pub fn base() -> PathBuf {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if let Some(dir) = absolute(VARIABLE) {
        return dir;
    }
    let user = rustix::process::geteuid();
    if user.is_root() {
        return "/run/weir".into();
    }
    match absolute("XDG_RUNTIME_DIR") {
        Some(dir) => dir.join("weir"),
        None => format!("/tmp/weir-{}", user.as_raw()).into(),
    }
}

/// The directory of a mount; it need not exist.
pub(crate) fn dir_of(mountpoint: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let hash = blake3::hash(mountpoint.as_os_str().as_bytes());
    base().join(&hash.to_hex()[..2 * NAME_BYTES])
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

/// Whether supervisor or server of a mount live.
pub(crate) fn is_live(dir: &Path) -> bool {
    LiveLock::open(&lock(dir)).is_ok_and(|lock| lock.is_held())
}

/// The path of a mount's lock, which is held as long as its supervisor or its server live.
pub(crate) fn lock(dir: &Path) -> PathBuf {
    dir.join(LOCK)
}

/// Makes the directory of a mount and takes its lock. What a dead mount left in it is removed.
pub(crate) fn claim(mountpoint: &Path) -> Result<(PathBuf, OwnedFd), MountError> {
    let base = base();
    let dir = dir_of(mountpoint);
    let fail = |error: io::Error| MountError::Runtime {
        dir: base.clone(),
        reason: error.to_string(),
    };
    private_dir(&base).map_err(fail)?;
    private_dir(&dir).map_err(fail)?;
    let held = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(lock(&dir))
        .map_err(fail)?;
    rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        MountError::NotNow {
            mountpoint: mountpoint.to_owned(),
            reason: "another weir is mounting or unmounting it; try again in a moment".to_owned(),
        }
    })?;
    for stale in [SOCKET, STATE] {
        remove(&dir.join(stale)).map_err(fail)?;
    }
    Ok((dir, held.into()))
}

/// Sends standard error to the mount's log from now on.
pub(crate) fn log_to(dir: &Path) -> io::Result<()> {
    let log = open_log(dir)?;
    Ok(rustix::stdio::dup2_stderr(log)?)
}

/// Opens the log of a mount, to append to it.
fn open_log(dir: &Path) -> io::Result<File> {
    let path = dir.join(LOG);
    if std::fs::metadata(&path).is_ok_and(|log| log.len() > MAX_LOG) {
        std::fs::remove_file(&path)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// The path of a mount's log.
pub(crate) fn log_path(dir: &Path) -> PathBuf {
    dir.join(LOG)
}

/// Writes what others see of a mount, whole or not at all.
pub(crate) fn write_state(dir: &Path, info: &MountInfo) -> io::Result<()> {
    let new = dir.join("state.new");
    std::fs::write(&new, serde_json::to_vec(info)?)?;
    std::fs::rename(new, dir.join(STATE))
}

/// Gives the mountpoint's directory free for the next mount while this one still has users.
pub(crate) fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let mut name = dir.as_os_str().to_owned();
    name.push(format!("-detached-{}", std::process::id()));
    let aside = PathBuf::from(name);
    std::fs::rename(dir, &aside)?;
    Ok(aside)
}

/// The right to a state directory, for a mount that is not in the list of mounts yet. Ends with the process, too, however
/// that ends.
#[derive(Debug)]
pub struct Reserved {
    _name: UnixListener,
}

/// Looks at a name that somebody has and nobody listens at, and the wait between them: it was just taken or just given back.
const LOOKS: u32 = 20;
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Keeps others that start a mount at the same moment from choosing the same state directory. `None` when one of them has.
/// It is a name of the kernel's, not a file, so that nothing is left of a command that is killed. Any user may take such a name,
/// so whoever has it is asked for its user.
///
/// # Errors
/// When the kernel gives no such name, or another user has it.
pub fn reserve(state_dir: &Path) -> io::Result<Option<Reserved>> {
    let name = name_of(state_dir);
    let address = SocketAddr::from_abstract_name(&name)?;
    for _ in 0..LOOKS {
        match UnixListener::bind_addr(&address) {
            Ok(name) => return Ok(Some(Reserved { _name: name })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
        match user_of(&name) {
            Ok(user) if user == rustix::process::geteuid() => return Ok(None),
            Ok(user) => {
                return Err(io::Error::other(format!(
                    "user {} has the name {name}",
                    user.as_raw()
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::thread::sleep(LOOK_INTERVAL);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("somebody has the name {name}")))
}

/// The name of a state directory's reservation.
fn name_of(state_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let hash = blake3::hash(state_dir.as_os_str().as_bytes());
    let user = rustix::process::geteuid().as_raw();
    format!("weir-starting-{user}-{hash}")
}

/// The user who listens at an abstract name. Waits for nobody.
fn user_of(name: &str) -> io::Result<Uid> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let client = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    rustix::net::connect(&client, &address)?;
    weir_process::peer::user(&client)
}

/// Forgets a mount that ended.
pub(crate) fn release(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("{} could not be removed: {error}", dir.display());
    }
}

/// Makes a directory that nobody else may enter; one that exists must already be so.
fn private_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).recursive(true).create(dir) {
        Ok(()) => {}
        Err(error) => return Err(error),
    }
    let metadata = std::fs::symlink_metadata(dir)?;
    let ours = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
    if ours && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} belongs to another user or others may write to it",
        dir.display()
    )))
}

fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Binds the control socket in place of one that a dead supervisor left.
pub(crate) fn bind_control(dir: &Path) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    /// Connections that may wait to be accepted.
    const BACKLOG: i32 = 16;
    let path = socket(dir);
    remove(&path)?;
    let listener = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path)?)?;
    rustix::net::listen(listener.as_fd(), BACKLOG)?;
    Ok(listener)
}

/// Connects to the supervisor of a mount.
pub(crate) fn connect_control(dir: &Path) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket_path = socket(dir);
    let client = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&client, &SocketAddrUnix::new(&socket_path)?)?;
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_is_reserved_by_one_until_that_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = |name: &str| reserve(&dir.path().join(name)).unwrap();
        let first = reserve("a").unwrap();
        assert!(reserve("a").is_none());
        let _other = reserve("b").unwrap();
        drop(first);
        let _again = reserve("a").unwrap();
        assert!(reserve("a").is_none() && reserve("b").is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_that_nobody_listens_at_is_not_taken_for_a_mount_that_starts() {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
        let dir = tempfile::tempdir().unwrap();
        let (unix, stream) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = rustix::net::socket_with(unix, stream, SocketFlags::CLOEXEC, None).unwrap();
        let name = name_of(dir.path());
        let name = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        rustix::net::bind(&socket, &name).unwrap();
        assert!(reserve(dir.path()).is_err());
        drop(socket);
        assert!(reserve(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_name_that_another_user_has_is_not_taken_for_a_mount_that_starts() {
        if !rustix::process::geteuid().is_root() {
            return; // nobody else can be another user here
        }
        let dir = tempfile::tempdir().unwrap();
        let name = SocketAddr::from_abstract_name(name_of(dir.path())).unwrap();
        let taken = std::thread::spawn(move || {
            let nobody = Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            UnixListener::bind_addr(&name).unwrap()
        });
        let taken = taken.join().unwrap();
        let refused = reserve(dir.path()).unwrap_err();
        assert!(refused.to_string().contains("user 65534"), "{refused}");
        drop(taken);
        assert!(reserve(dir.path()).unwrap().is_some());
    }

    /// As in two containers of one pod: they share the kernel's names, and do not see each other's processes.
    #[test]
    fn a_name_of_a_process_that_is_not_seen_here_is_known_by_its_user() {
        const RESERVED: &str = "WEIR_TEST_RESERVED";
        const NAME: &str =
            "runtime::tests::a_name_of_a_process_that_is_not_seen_here_is_known_by_its_user";
        if let Some(dir) = std::env::var_os(RESERVED) {
            assert!(reserve(Path::new(&dir)).unwrap().is_none());
            return;
        }
        if !rustix::process::geteuid().is_root() {
            return; // nobody else makes a namespace
        }
        let dir = tempfile::tempdir().unwrap();
        let _reserved = reserve(dir.path()).unwrap().unwrap();
        let mut inside = std::process::Command::new("unshare");
        inside.args(["--pid", "--fork", "--"]);
        inside.arg(std::env::current_exe().unwrap());
        inside.args(["--exact", NAME]).env(RESERVED, dir.path());
        let output = inside.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    #[test]
    fn a_directory_is_live_as_long_as_its_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_live(dir.path()));
        let lock = File::create(dir.path().join(LOCK)).unwrap();
        assert!(!is_live(dir.path()));
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_live(dir.path()));
        let shared = lock.try_clone().unwrap();
        drop(lock);
        assert!(
            is_live(dir.path()),
            "whoever has the open file holds the lock"
        );
        drop(shared);
        assert!(!is_live(dir.path()));
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(private_dir(&open).is_err());
        assert!(private_dir(&dir.path().join("new")).is_ok());
    }
}
