//! The processes under test: an S3 server, and mounts. What was started is ended when it goes out of scope.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// Longest wait for a process to end after it was told to.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// A binary beside this one.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(name);
    ensure!(
        path.exists(),
        "{} is missing; build it first",
        path.display()
    );
    Ok(path)
}

/// An S3 server on loopback that serves a directory as one bucket.
pub struct S3 {
    child: Child,
    /// Its URL.
    pub endpoint: String,
}

impl S3 {
    /// Starts it and waits until it is ready. Its answers come `latency` milliseconds late.
    pub fn start(bucket: &str, directory: &Path, latency: u64) -> anyhow::Result<Self> {
        let mut child = Command::new(binary("weir-s3-server")?)
            .args(["--listen", "127.0.0.1:0", "--dir"])
            .arg(format!("{bucket}={}", directory.display()))
            .args(["--latency", &latency.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let endpoint = line
            .split_whitespace()
            .find(|word| word.starts_with("http://"))
            .map(str::to_owned);
        let mut server = Self {
            child,
            endpoint: String::new(),
        };
        server.endpoint = endpoint.with_context(|| format!("the S3 server said {line:?}"))?;
        Ok(server)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing else to do about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A mount made by the `weir` binary.
pub struct Mount {
    /// Where it is.
    pub dir: PathBuf,
    cache: PathBuf,
    mounted: bool,
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
    /// Runs `weir mount SOURCE DIR ARGS…` with a cache of its own below `cache`.
    pub fn new(source: &str, dir: &Path, cache: &Path, args: &[&str]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        std::fs::create_dir_all(cache)?;
        let mut mount = Self {
            dir: dir.to_owned(),
            cache: cache.to_owned(),
            mounted: false,
        };
        let mut command = mount.weir()?;
        command.arg("mount").arg(source).arg(dir).args(args);
        let status = command.status()?;
        ensure!(status.success(), "weir mount {source} failed: {status}");
        mount.mounted = true;
        Ok(mount)
    }

    fn weir(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(binary("weir")?);
        command
            .env("XDG_CACHE_HOME", &self.cache)
            .env("WEIR_RUNTIME_DIR", self.cache.join("run"))
            .env("AWS_EC2_METADATA_DISABLED", "true");
        Ok(command)
    }

    /// Runs another `weir` command against this mount's own master and gives its output.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.weir()?.args(args).stderr(Stdio::inherit()).output()?;
        ensure!(
            output.status.success(),
            "weir {args:?} failed: {}",
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What `weir status` says of the mount.
    pub fn status(&self) -> anyhow::Result<MountStatus> {
        let deadline = Instant::now() + END_DEADLINE;
        loop {
            let status: serde_json::Value =
                serde_json::from_str(&self.run(&["status", "-o", "json"])?)?;
            let mount = &status["mounts"][0];
            let pid = |name: &str| mount[name].as_u64().and_then(|pid| u32::try_from(pid).ok());
            let metrics = mount["metrics"].as_str();
            if let (Some(metrics), Some(server), Some(supervisor)) =
                (metrics, pid("server_pid"), pid("supervisor_pid"))
            {
                return Ok(MountStatus {
                    metrics: metrics.to_owned(),
                    server_pid: server,
                    supervisor_pid: supervisor,
                });
            }
            if Instant::now() > deadline {
                bail!("the mount does not tell its metrics' address: {status}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Unmounts.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.unmount()
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        if !std::mem::take(&mut self.mounted) {
            return Ok(());
        }
        let status = self.weir()?.arg("unmount").arg(&self.dir).status()?;
        ensure!(status.success(), "weir unmount failed: {status}");
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{error:#}");
        }
    }
}

/// Empties the kernel's caches of pages, names and inodes. False where that is not permitted.
pub fn drop_kernel_caches() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}
