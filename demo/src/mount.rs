//! A mount made by the `weir` binary.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::ensure;

use crate::ending::{Entry, making, tell};
use crate::process::{binary, forget_settings};
use crate::wait::wait_for;

/// Longest wait for a mount to tell about itself.
const STATUS_DEADLINE: Duration = Duration::from_secs(10);

/// Where the program of a home is linked that is not to use this build's.
pub fn program_of(home: &Path) -> PathBuf {
    home.join("program")
}

/// A `weir` command that keeps everything below `home` and knows nothing of the machine's own settings.
pub fn weir(home: &Path) -> anyhow::Result<Command> {
    let other = program_of(home);
    let program = if other.exists() {
        other
    } else {
        binary("weir")?
    };
    let mut command = Command::new(program);
    forget_settings(&mut command, "AWS_");
    forget_settings(&mut command, "WEIR_");
    command
        .env("XDG_CACHE_HOME", home)
        .env("WEIR_RUNTIME_DIR", home.join("run"))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null());
    Ok(command)
}

/// A `weir` command outside of this program's process group: whoever tells the group to end must not stop it halfway.
fn apart(home: &Path) -> anyhow::Result<Command> {
    let mut command = weir(home)?;
    command.process_group(0);
    Ok(command)
}

/// Runs `weir ARGS…` to its end and gives its output.
pub fn run(home: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = weir(home)?.args(args).stderr(Stdio::inherit()).output()?;
    ensure!(
        output.status.success(),
        "weir {args:?} failed: {}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether a command of this home's `weir` has a flag; that of an earlier build may not.
pub fn knows(home: &Path, command: &str, flag: &str) -> anyhow::Result<bool> {
    let help = weir(home)?.args([command, "--help"]).output()?;
    Ok(String::from_utf8_lossy(&help.stdout).contains(flag))
}

/// A live mount. It is unmounted when it goes out of scope.
pub struct Mount {
    /// Where it is.
    pub dir: PathBuf,
    home: PathBuf,
    /// None if it is not mounted any more, or never was.
    mounted: Option<Entry>,
}

/// What `weir status` says of a mount.
pub struct MountStatus {
    /// URL of its metrics.
    pub metrics: String,
    /// The process that serves it.
    pub server_pid: u32,
    /// The process that keeps it alive.
    pub supervisor_pid: u32,
}

impl Mount {
    /// Runs `weir mount SOURCE DIR ARGS…` with a cache of its own below `home`.
    pub fn new(source: &str, dir: &Path, home: &Path, args: &[&str]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        std::fs::create_dir_all(home)?;
        let mut mount = Self {
            dir: dir.to_owned(),
            home: home.to_owned(),
            mounted: None,
        };
        let mut command = apart(home)?;
        command.arg("mount").arg(source).arg(dir).args(args);
        let making = making();
        let output = command.stderr(Stdio::inherit()).output()?;
        ensure!(
            output.status.success(),
            "weir mount {source} failed: {}",
            output.status
        );
        let (dir, home) = (dir.to_owned(), home.to_owned());
        mount.mounted = Some(making.enter(move || {
            if let Err(error) = unmount(&home, &dir, true) {
                tell(format_args!("{error:#}"));
            }
        }));
        Ok(mount)
    }

    /// Runs another `weir` command against this mount's own master and gives its output.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        run(&self.home, args)
    }

    /// What `weir status` says of the mount.
    pub fn status(&self) -> anyhow::Result<MountStatus> {
        wait_for("the mount's status", STATUS_DEADLINE, || {
            let status: serde_json::Value =
                serde_json::from_str(&self.run(&["status", "-o", "json"])?)?;
            let mounts = status["mounts"].as_array().into_iter().flatten();
            let dir = self.dir.to_string_lossy();
            let own = mounts
                .into_iter()
                .find(|mount| mount["mountpoint"] == *dir.as_ref());
            let Some(mount) = own else {
                return Ok(None);
            };
            let pid = |name: &str| mount[name].as_u64().and_then(|pid| u32::try_from(pid).ok());
            let parts = (
                mount["metrics"].as_str(),
                pid("server_pid"),
                pid("supervisor_pid"),
            );
            let (Some(metrics), Some(server_pid), Some(supervisor_pid)) = parts else {
                return Ok(None);
            };
            Ok(Some(MountStatus {
                metrics: metrics.to_owned(),
                server_pid,
                supervisor_pid,
            }))
        })
    }

    /// Unmounts.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.unmount(false)
    }

    fn unmount(&mut self, lazy: bool) -> anyhow::Result<()> {
        match self.mounted.take() {
            Some(_entry) => unmount(&self.home, &self.dir, lazy),
            None => Ok(()),
        }
    }
}

fn unmount(home: &Path, dir: &Path, lazy: bool) -> anyhow::Result<()> {
    let mut command = apart(home)?;
    command.arg("unmount").arg(dir);
    if lazy {
        command.arg("--lazy");
    }
    let status = command.stdout(Stdio::null()).status()?;
    ensure!(status.success(), "weir unmount failed: {status}");
    Ok(())
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount(true) {
            tell(format_args!("{error:#}"));
        }
    }
}
