//! The machine itself: `weir mount`, and the kernel's calls for binding a directory elsewhere.
//!
//! Invariant: whatever touches a mount runs on a thread that may be left behind. A mount may be one whose server hangs, and
//! then the thread that asks it hangs, too.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, StatVfs};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use weir_core::{NodeName, SnapshotId};
use weir_mount::supervisor::{PEER_VARIABLE, UNPRIVILEGED_VARIABLE};
use weir_mount::table::{self, Entry};
use weir_mount::{MountError, supervisor};
use weir_process::spawn;

use super::{Health, System, Usage};
use crate::access::shown;
use crate::error::{CsiError, said};
use crate::target::{Target, too_old};

/// Longest wait for a mount to become usable, as `weir mount` is told, and what it gets beyond that to clean up.
const MOUNT_DEADLINE: Duration = Duration::from_mins(1);
const MOUNT_GRACE: Duration = Duration::from_secs(15);
/// Longest wait for the end of a mount.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// Longest wait for an answer from a mount.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
/// Between looks whether somebody else who asks has got an answer.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Longest wait for a directory of a mount, which its server looks up.
const BIND_DEADLINE: Duration = Duration::from_secs(15);
/// Most that is read of what `weir mount` has said, in bytes.
const MAX_OUTPUT: usize = 16 << 10;

/// How snapshots are mounted.
#[derive(Clone, Debug)]
pub struct LinuxConfig {
    /// The master, `HOST:PORT`.
    pub master: String,
    /// Directory of this node's certificate.
    pub certs: Option<PathBuf>,
    /// This node's name.
    pub node: NodeName,
    /// More flags of `weir mount`.
    pub flags: Vec<String>,
    /// The socket of the pod that holds the mounts, too.
    pub peer: Option<PathBuf>,
    /// Where mounts keep what must outlive their processes: each has a directory in it.
    pub state_dir: PathBuf,
    /// Where mounts keep what is used again while the master is away.
    pub known_dir: PathBuf,
}

/// The machine.
#[derive(Debug)]
pub struct Linux {
    config: LinuxConfig,
    /// Mounts that were asked whether they live and have not answered.
    asked: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Linux {
    /// Makes the directory for the mounts' state.
    pub fn new(config: LinuxConfig) -> Result<Self, CsiError> {
        std::fs::create_dir_all(&config.state_dir)
            .map_err(CsiError::system("make", &config.state_dir))?;
        Ok(Self {
            config,
            asked: Arc::default(),
        })
    }

    /// What the mount at `dir` keeps.
    fn state_of(&self, dir: &Path) -> PathBuf {
        self.config
            .state_dir
            .join(dir.file_name().unwrap_or_default())
    }

    fn command(&self, snapshot: &SnapshotId, dir: &Path) -> std::process::Command {
        let mut command = spawn::own("mount");
        command
            .arg(snapshot.to_string())
            .arg(dir)
            .args(["--master", &self.config.master])
            .args(["--node", self.config.node.as_str()])
            .args(["--timeout", &MOUNT_DEADLINE.as_secs().to_string()])
            .arg("--known-dir")
            .arg(&self.config.known_dir)
            .arg("--allow-other")
            .args(&self.config.flags)
            .env("XDG_CACHE_HOME", self.state_of(dir))
            .env(UNPRIVILEGED_VARIABLE, "1");
        match &self.config.peer {
            Some(peer) => command.env(PEER_VARIABLE, peer),
            None => command.env_remove(PEER_VARIABLE),
        };
        if let Some(certs) = &self.config.certs {
            command.arg("--certs").arg(certs);
        }
        command
    }
}

/// Runs what may hang on a thread of its own, for at most `most`.
async fn on_a_thread<T: Send + 'static>(
    what: &str,
    most: Duration,
    work: impl FnOnce() -> Result<T, CsiError> + Send + 'static,
) -> Result<T, CsiError> {
    let late = || CsiError::Deadline {
        what: what.to_owned(),
        seconds: most.as_secs(),
    };
    let work = tokio::task::spawn_blocking(work);
    let done = tokio::time::timeout(most, work).await.map_err(|_| late())?;
    done.unwrap_or_else(|_| Err(late()))
}

#[async_trait]
impl System for Linux {
    fn table(&self) -> Result<Vec<Entry>, CsiError> {
        table::read().map_err(CsiError::system("read", "/proc/self/mountinfo"))
    }

    async fn serve(&self, snapshot: &SnapshotId, dir: &Path) -> Result<(), CsiError> {
        let name = shown(&snapshot.dataset);
        let system = |what| CsiError::system(what, dir);
        let output = rustix::fs::memfd_create("weir-mount-output", MemfdFlags::CLOEXEC)
            .map_err(|error| system("keep the output of weir mount for")(error.into()))?;
        let output = File::from(output);
        let stderr = output
            .try_clone()
            .map_err(system("keep the output of weir mount for"))?;
        let mut command = tokio::process::Command::from(self.command(snapshot, dir));
        // A file, and no pipe: processes of the mount that live on may still have it open.
        command.stderr(Stdio::from(stderr)).kill_on_drop(true);
        let mut child = command.spawn().map_err(system("start weir mount for"))?;
        let most = MOUNT_DEADLINE + MOUNT_GRACE;
        let ended = tokio::time::timeout(most, child.wait()).await;
        let status = ended
            .map_err(|_| CsiError::Deadline {
                what: format!("the mount of dataset {name}"),
                seconds: most.as_secs(),
            })?
            .map_err(system("wait for weir mount of"))?;
        if status.success() {
            return Ok(());
        }
        let mut text = vec![0; MAX_OUTPUT];
        let length = output.read_at(&mut text, 0).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[..length]);
        Err(explain(&name, status.code(), &text))
    }

    async fn end(&self, dir: &Path) -> Result<(), CsiError> {
        let (at, state) = (dir.to_owned(), self.state_of(dir));
        on_a_thread("the end of a mount", END_DEADLINE, move || {
            // It may be served by a pod that may not unmount.
            match supervisor::detach(&at, END_DEADLINE) {
                Ok(()) | Err(MountError::Mountpoint { .. }) => {}
                Err(error) => return Err(CsiError::Node(said(&error.to_string()))),
            }
            if let Err(error) = std::fs::remove_dir_all(&state) {
                tracing::debug!("{} was not removed: {error}", state.display());
            }
            match std::fs::remove_dir(&at) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(CsiError::system("remove the directory", at)(error))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    async fn health(&self, at: &Path) -> Health {
        // One that does not answer gets no second thread.
        let until = Instant::now() + ANSWER_DEADLINE;
        while !self.asked.lock().insert(at.to_owned()) {
            if Instant::now() > until {
                return Health::Silent;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        let (asked, path) = (self.asked.clone(), at.to_owned());
        let answer = tokio::task::spawn_blocking(move || {
            let answer = rustix::fs::statvfs(&path);
            asked.lock().remove(&path);
            answer
        });
        match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
            Ok(Ok(Ok(usage))) => Health::Alive(usage.into()),
            Ok(Ok(Err(Errno::NOTCONN | Errno::CONNABORTED))) => Health::Dead,
            _ => Health::Silent,
        }
    }

    async fn bind(&self, from: &Path, path: &str, target: &Target) -> Result<(), CsiError> {
        let (from, path, target) = (from.to_owned(), path.to_owned(), target.clone());
        on_a_thread("the volume's directory", BIND_DEADLINE, move || {
            bind(&from, &path, &target)
        })
        .await
    }

    async fn unbind(&self, target: &Target) -> Result<(), CsiError> {
        let path = target.path();
        on_a_thread("the end of the volume", END_DEADLINE, move || {
            // Lazily: what still has a file open there ends by itself, and kubelet must not wait for it.
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            match rustix::mount::unmount(&path, flags) {
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
                Err(error) => Err(CsiError::system("unmount", path)(error.into())),
            }
        })
        .await
    }

    async fn remove(&self, target: &Target) -> Result<(), CsiError> {
        let target = target.clone();
        on_a_thread("the volume's directory", BIND_DEADLINE, move || {
            target.remove()
        })
        .await
    }
}

impl From<StatVfs> for Usage {
    fn from(stat: StatVfs) -> Self {
        Self {
            bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            free_inodes: stat.f_favail,
        }
    }
}

/// Binds a directory of a mount. The copy is made from a descriptor and put onto one, so nothing on either way can be
/// swapped meanwhile; it has the flags of the mount (read-only, no devices, no set-uid) from its first moment.
fn bind(from: &Path, path: &str, target: &Target) -> Result<(), CsiError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = |what: &'static str, at: &Path, error: Errno| match error {
        Errno::NOSYS => too_old(),
        Errno::NOSPC => {
            CsiError::Node(format!("cannot {what} {}: {}", at.display(), table::full()))
        }
        error => CsiError::system(what, at)(error.into()),
    };
    let mut dir = rustix::fs::openat(CWD, from, flags, Mode::empty())
        .map_err(|error| failed("open", from, error))?;
    if !path.is_empty() {
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let inside = rustix::io::retry_on_intr(|| {
            rustix::fs::openat2(&dir, path, flags, Mode::empty(), resolve)
        });
        dir = inside.map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => CsiError::NotFound(format!(
                "the dataset has no directory {path:?}; correct volumeAttributes.path"
            )),
            error => failed("open a directory in", from, error),
        })?;
    }
    let copy = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&dir, "", copy)
        .map_err(|error| failed("copy the mount", from, error))?;
    let onto = target.open_or_make()?;
    let by_descriptors =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", &onto, "", by_descriptors)
        .map_err(|error| failed("mount at", &target.path(), error))
}

/// What became of `weir mount`, by its exit code (docs/cli.md) and its words.
fn explain(name: &str, code: Option<i32>, output: &str) -> CsiError {
    let last = output.trim().lines().next_back().unwrap_or_default();
    let words = last.strip_prefix("weir: ").unwrap_or(last);
    let words = match words {
        "" => "weir mount was killed".to_owned(),
        words => said(words),
    };
    let text = format!("dataset {name} cannot be mounted: {words}");
    match code {
        Some(3) => CsiError::NotFound(text),
        Some(4) => CsiError::Unavailable(text),
        Some(5) => CsiError::Denied(text),
        Some(7) => CsiError::NotReady(text),
        _ => CsiError::Node(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_weir_mount_says_becomes_an_error_that_kubelet_understands() {
        use tonic::Code;
        for (code, output, of, words) in [
            (
                Some(3),
                "weir: no dataset x\n",
                Code::NotFound,
                "no dataset x",
            ),
            (
                Some(4),
                "a\nweir: silent\n\n",
                Code::Unavailable,
                ": silent",
            ),
            (Some(5), "weir: 403", Code::PermissionDenied, "403"),
            (Some(7), "weir: no S3", Code::FailedPrecondition, "no S3"),
            (Some(1), "weir: odd", Code::FailedPrecondition, "odd"),
            (None, "", Code::FailedPrecondition, "was killed"),
        ] {
            let error = explain("team-a/x", code, output);
            assert_eq!(error.code(), of, "{error}");
            let text = error.to_string();
            assert!(
                text.starts_with("dataset team-a/x") && text.contains(words),
                "{text}"
            );
        }
    }

    /// Fills the table of this process's mounts, from a mount at `base` with directories `0`, `1`, …: each is given all that is
    /// mounted below `base` so far, and then what still fits.
    fn fill_the_table(base: &Path) {
        let show = |from: &Path, at: u32| {
            let at = base.join(at.to_string());
            std::fs::create_dir_all(&at).unwrap();
            rustix::mount::mount_bind_recursive(from, &at)
        };
        let mut doubled = 0;
        while show(base, doubled).is_ok() {
            doubled += 1;
        }
        for half in (0..doubled).rev() {
            let _ = show(&base.join(half.to_string()), doubled + 1 + half);
        }
    }

    #[test]
    fn a_full_table_of_mounts_is_no_full_disk() {
        const INSIDE: &str = "WEIR_TEST_FULL_TABLE";
        const NAME: &str = "system::linux::tests::a_full_table_of_mounts_is_no_full_disk";
        /// Of a machine that allows more the table takes too long to fill.
        const MOST: u64 = 200_000;
        if let Some(base) = std::env::var_os(INSIDE) {
            let base = Path::new(&base);
            for dir in ["from", "kubelet/pods", "full"] {
                std::fs::create_dir_all(base.join(dir)).unwrap();
            }
            let kubelet = crate::KubeletDir::new(&base.join("kubelet")).unwrap();
            let target = base.join("kubelet/pods/volume");
            let target = kubelet.target(target.to_str().unwrap()).unwrap();
            let (full, flags) = (base.join("full"), rustix::mount::MountFlags::empty());
            rustix::mount::mount("none", &full, "tmpfs", flags, None).unwrap();
            bind(&base.join("from"), "", &target).unwrap();
            fill_the_table(&full);
            let error = bind(&base.join("from"), "", &target).unwrap_err();
            assert!(error.to_string().contains("fs.mount-max"), "{error}");
            return;
        }
        let most = std::fs::read_to_string("/proc/sys/fs/mount-max").unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if !is_root || most.trim().parse::<u64>().is_ok_and(|most| most > MOST) {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut inside = std::process::Command::new("unshare");
        inside.args(["--mount", "--propagation", "private", "--"]);
        inside.arg(std::env::current_exe().unwrap());
        inside.args(["--exact", NAME]).env(INSIDE, dir.path());
        let output = inside.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn a_mount_that_does_not_answer_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let system = Linux::new(LinuxConfig {
            master: "127.0.0.1:1".to_owned(),
            certs: None,
            node: "node-1".parse().unwrap(),
            flags: Vec::new(),
            peer: None,
            state_dir: dir.path().join("state"),
            known_dir: dir.path().join("known"),
        })
        .unwrap();
        assert!(matches!(system.health(dir.path()).await, Health::Alive(_)));
        system.asked.lock().insert(dir.path().to_owned());
        assert_eq!(system.health(dir.path()).await, Health::Silent);
    }
}
