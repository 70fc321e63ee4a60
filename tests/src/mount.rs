//! A mount of the binary under test.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::lab::Lab;
use crate::{is_mountpoint, wait_until};

/// Longest wait for a mount to tell about itself.
const STATUS_DEADLINE: Duration = Duration::from_secs(10);

impl Lab {
    /// Mounts the lab's bucket (or a prefix) at `mnt`, with more flags.
    #[track_caller]
    pub fn mount(&self, prefix: &str, flags: &[&str]) -> Mount<'_> {
        let origin = self.origin_flags();
        let flags: Vec<&str> = origin
            .iter()
            .map(String::as_str)
            .chain(flags.iter().copied())
            .collect();
        self.mount_at(&self.url(prefix), "mnt", &flags)
    }

    /// Mounts `source` at the scratch directory's `name`.
    #[track_caller]
    pub fn mount_at(&self, source: &str, name: &str, flags: &[&str]) -> Mount<'_> {
        Mount::new(self, source, self.path(name), flags)
    }
}

/// A live mount. It is unmounted when it goes out of scope.
pub struct Mount<'a> {
    lab: &'a Lab,
    /// The mountpoint.
    pub dir: PathBuf,
    mounted: bool,
}

impl<'a> Mount<'a> {
    #[track_caller]
    fn new(lab: &'a Lab, source: &str, dir: PathBuf, flags: &[&str]) -> Self {
        let mount = Self {
            lab,
            dir,
            mounted: true,
        };
        let dir = mount.dir.to_str().unwrap();
        lab.weir(["mount", source, dir].iter().chain(flags)).ok();
        mount
    }

    /// A path inside the mount.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Reads a file whole.
    #[track_caller]
    pub fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.path(path))
            .unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()))
    }

    /// Unmounts, which must work.
    #[track_caller]
    pub fn unmount(mut self) {
        // Should that fail, it is detached when this goes out of scope.
        self.lab.weir([Path::new("unmount"), &self.dir]).ok();
        self.mounted = false;
        assert!(!is_mountpoint(&self.dir));
    }

    /// What `weir status` says of this mount.
    #[track_caller]
    pub fn status(&self) -> Value {
        let status = self.lab.weir(["status", "-o", "json"]).ok();
        let status: Value = serde_json::from_str(&status).unwrap();
        let mounts = status["mounts"].as_array().unwrap();
        let own = mounts
            .iter()
            .find(|mount| mount["mountpoint"] == self.dir.to_str().unwrap());
        own.cloned()
            .unwrap_or_else(|| panic!("{} is not in {status}", self.dir.display()))
    }

    /// The process that serves the mount. Waits while it is being started.
    #[track_caller]
    pub fn server(&self) -> Pid {
        self.pid("server_pid")
    }

    /// The process that keeps the mount alive.
    #[track_caller]
    pub fn supervisor(&self) -> Pid {
        self.pid("supervisor_pid")
    }

    /// The process that brings the other two back.
    #[track_caller]
    pub fn holder(&self) -> Pid {
        self.pid("holder_pid")
    }

    #[track_caller]
    fn pid(&self, name: &str) -> Pid {
        let mut pid = None;
        wait_until(name, STATUS_DEADLINE, || {
            pid = self.status()[name]
                .as_i64()
                .and_then(|pid| Pid::from_raw(pid as i32));
            pid.is_some()
        });
        pid.unwrap()
    }

    /// Kills the serving process the hard way.
    #[track_caller]
    pub fn kill_server(&self) -> Pid {
        let server = self.server();
        // One that has died by itself since is as dead.
        let _ = kill_process(server, Signal::KILL);
        server
    }

    /// All samples of its metrics: `name{labels}` and value.
    #[track_caller]
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let mut url = None;
        wait_until("the address of the metrics", STATUS_DEADLINE, || {
            url = self.status()["metrics"].as_str().map(str::to_owned);
            url.is_some()
        });
        crate::process::scrape(&url.unwrap())
    }

    /// Sum of the samples of a metric whose labels contain `label`.
    #[track_caller]
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        weir_demo::metrics::sum(&self.metrics(), name, label)
    }

    /// The log of the mount's processes.
    pub fn log(&self) -> String {
        let runs = std::fs::read_dir(self.lab.path("run"))
            .into_iter()
            .flatten();
        let logs =
            runs.filter_map(|run| std::fs::read_to_string(run.ok()?.path().join("log")).ok());
        logs.collect()
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        if std::thread::panicking() {
            eprintln!("log of the mount:\n{}", self.log());
        }
        let outcome = self
            .lab
            .weir([Path::new("unmount"), Path::new("--lazy"), &self.dir]);
        if outcome.code != 0 && is_mountpoint(&self.dir) {
            eprintln!("{}", outcome.stderr);
            let dir = CString::new(self.dir.as_os_str().as_bytes()).unwrap();
            let _ = rustix::mount::unmount(dir.as_c_str(), UnmountFlags::DETACH);
        }
    }
}
