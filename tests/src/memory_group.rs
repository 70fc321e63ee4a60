//! Processes with a limit of memory, as in a container.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::comes_true;

/// Longest wait for the processes of a group to be gone.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// Where hierarchies with limits of memory are: of version 1 and 2, and their files.
const PLACES: [(&str, &str, &str); 2] = [
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.oom_control",
    ),
    ("/sys/fs/cgroup", "memory.max", "memory.events"),
];

/// A control group, which is removed when it goes out of scope: after everything that runs in it.
pub struct MemoryGroup {
    dir: PathBuf,
    events: &'static str,
}

impl MemoryGroup {
    /// A group of `limit` bytes, or why there cannot be one here.
    pub fn new(limit: u64) -> Result<Self, String> {
        let mut reasons = Vec::new();
        for (place, limit_file, events) in PLACES {
            let dir = Path::new(place).join(format!("weir-test-{}", std::process::id()));
            let group = Self { dir, events };
            let made = match std::fs::create_dir(&group.dir) {
                Ok(()) => std::fs::write(group.dir.join(limit_file), limit.to_string()),
                Err(error) => Err(error),
            };
            match made {
                Ok(()) => return Ok(group),
                Err(error) => reasons.push(format!("{place}: {error}")),
            }
        }
        Err(reasons.join(", "))
    }

    /// A program at `path` that enters the group and becomes `binary`.
    pub fn wrap(&self, binary: &Path, path: &Path) {
        let procs = self.dir.join("cgroup.procs");
        let (procs, binary) = (procs.display(), binary.display());
        let script = format!("#!/bin/sh\necho $$ > '{procs}' || exit 1\nexec '{binary}' \"$@\"\n");
        std::fs::write(path, script).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// How many processes the kernel has killed for the limit.
    pub fn kills(&self) -> u64 {
        let events = std::fs::read_to_string(self.dir.join(self.events)).unwrap();
        let mut lines = events.lines().filter_map(|line| line.split_once(' '));
        let kills = lines.find(|(name, _)| *name == "oom_kill");
        kills.unwrap().1.trim().parse().unwrap()
    }

    /// Number of the processes in it.
    pub fn processes(&self) -> usize {
        let procs = std::fs::read_to_string(self.dir.join("cgroup.procs"));
        procs.unwrap_or_default().lines().count()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The kernel lets go of a process a moment after its end.
        let gone = || !self.dir.exists() || std::fs::remove_dir(&self.dir).is_ok();
        if !comes_true(END_DEADLINE, gone) {
            eprintln!("{} stays: processes run in it", self.dir.display());
        }
    }
}
