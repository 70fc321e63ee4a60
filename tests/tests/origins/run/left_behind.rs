//! What a suite has started and mounted: found by its scratch directory, in which all its files are.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use weir_demo::kernel::mounted_below;
use weir_tests::comes_true;

/// The variable that names it to every process of a suite, and to theirs.
const VARIABLE: &str = "TMPDIR";
/// Longest wait for what ends by itself, and for what was killed.
const END: Duration = Duration::from_secs(5);
const KILLED: Duration = Duration::from_secs(20);

/// The scratch directory of a suite.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes it, unless it is there.
    pub(crate) fn make(&self) {
        std::fs::create_dir_all(&self.0).unwrap();
    }

    /// One that is there, or is to be made.
    pub(crate) fn of(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Has a process, and all that it will start, use it.
    pub(crate) fn mark(&self, command: &mut Command) {
        command.env(VARIABLE, &self.0);
    }

    /// What a case has not ended although it should have: mounts, and processes of Weir's.
    pub(crate) fn left_by_case(&self) -> Option<String> {
        self.left(is_weir)
    }

    /// The same of the suite: whatever there is.
    pub(crate) fn left_by_suite(&self) -> Option<String> {
        self.left(|_| true)
    }

    fn left(&self, counts: fn(Pid) -> bool) -> Option<String> {
        let mut left = String::new();
        comes_true(END, || {
            let mounts = self.mounts().into_iter();
            let mounts = mounts.map(|path| format!("mounted at {}", path.display()));
            let processes = self.processes().into_iter().filter(|pid| counts(*pid));
            let processes = processes.map(|pid| format!("process {}", shown(pid)));
            left = mounts.chain(processes).collect::<Vec<_>>().join(", ");
            left.is_empty()
        });
        (!left.is_empty()).then_some(left)
    }

    /// Ends what a case has left.
    pub(crate) fn tidy_case(&self) {
        self.end(is_weir);
    }

    /// Ends all that there is, and removes the directory.
    pub(crate) fn tidy(&self) {
        self.end(|_| true);
        let _ = std::fs::remove_dir_all(&self.0);
        // The last suite's takes that of the run with it.
        let _ = self.0.parent().map(std::fs::remove_dir);
    }

    fn end(&self, counts: fn(Pid) -> bool) {
        // Some bring others back until they are killed themselves.
        comes_true(KILLED, || {
            let mut left = self.processes();
            left.retain(|pid| counts(*pid));
            for pid in &left {
                let _ = kill_process(*pid, Signal::KILL);
            }
            let mounts = self.mounts();
            for path in &mounts {
                let path = CString::new(path.as_os_str().as_bytes()).unwrap();
                let _ = rustix::mount::unmount(path.as_c_str(), UnmountFlags::DETACH);
            }
            left.is_empty() && mounts.is_empty()
        });
    }

    /// Processes that were given this directory, but this one.
    fn processes(&self) -> Vec<Pid> {
        let mark = [VARIABLE.as_bytes(), b"=", self.0.as_os_str().as_bytes()].concat();
        let own = rustix::process::getpid();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let pids = pids.filter_map(Pid::from_raw).filter(|pid| *pid != own);
        pids.filter(|pid| {
            let environment = std::fs::read(of(*pid, "environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|one| one == mark)
        })
        .collect()
    }

    /// What is mounted in this directory, the inner ones first.
    fn mounts(&self) -> Vec<PathBuf> {
        mounted_below(&self.0)
    }
}

fn of(pid: Pid, name: &str) -> PathBuf {
    Path::new("/proc")
        .join(pid.as_raw_nonzero().to_string())
        .join(name)
}

/// Whether it is a process of the program under test.
fn is_weir(pid: Pid) -> bool {
    let program = std::fs::read_link(of(pid, "exe")).unwrap_or_default();
    program.file_name().is_some_and(|name| name == "weir")
}

/// A process as it is named in messages.
fn shown(pid: Pid) -> String {
    let line = std::fs::read(of(pid, "cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    let line: String = line.chars().take(200).collect();
    format!("{} ({line})", pid.as_raw_nonzero())
}
