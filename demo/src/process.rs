//! Processes that the benchmark starts. What was started is ended when it goes out of scope.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::ending::{END_DEADLINE, Entry, end_child, making, tell};
use crate::wait::wait_for;

/// Longest wait for a process to come up.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// A binary beside this one, or beside the directory of this one if that is a test.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let mut own = std::env::current_exe()?;
    if own.parent().is_some_and(|dir| dir.ends_with("deps")) {
        own.pop();
    }
    let path = own.with_file_name(name);
    ensure!(
        path.exists(),
        "{} is missing; build it first",
        path.display()
    );
    Ok(path)
}

/// A TCP port of loopback that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Takes the machine's own variables that begin with `prefix` from a command.
pub fn forget_settings(command: &mut Command, prefix: &str) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(prefix) {
            command.env_remove(name);
        }
    }
}

/// A process that runs until it is dropped.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    _entry: Entry,
}

impl Process {
    /// Starts `command`, whose output goes to `log`, and waits until `ready` says so.
    pub fn start(
        mut command: Command,
        log: &Path,
        mut ready: impl FnMut() -> bool,
    ) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        let name = command.get_program().display().to_string();
        let making = making();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id();
        let mut process = Self {
            child,
            name,
            log: log.to_owned(),
            _entry: making.enter(move || {
                end_child(pid);
            }),
        };
        let name = process.name.clone();
        wait_for(&name, START_DEADLINE, || {
            if let Some(status) = process.child.try_wait()? {
                bail!("{name} ended with {status}: {}", process.output());
            }
            Ok(ready().then_some(()))
        })?;
        Ok(process)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Tells it to end, and waits until it has.
    pub fn end(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            kill_process(pid, Signal::TERM)?;
        }
        self.wait()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        let name = self.name.clone();
        wait_for(&name, END_DEADLINE, || Ok(self.child.try_wait()?))?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if !end_child(self.child.id()) {
            let name = &self.name;
            tell(format_args!(
                "{name} did not end when it was told to and was killed"
            ));
        }
    }
}
