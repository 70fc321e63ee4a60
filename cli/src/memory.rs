//! How much memory this process may use, and the defaults that follow from it.
//!
//! The limit is the least of what the machine has and what the process's control groups allow, from its own up to the
//! mount of their hierarchy, of version 1 and 2: a container often sees only a part of either. What Weir maps whatever
//! its flags say is taken off first, so that the sum of all defaults fits with room for the kernel's page cache.

use std::path::{Path, PathBuf};

use weir_core::ByteSize;
use weir_worker::{FILL_BUDGET, LEAST_FILL_BUDGET};

/// Taken for the machine's memory where it cannot be read.
const UNKNOWN: u64 = 8 << 30;
/// Most of the memory tier by default, and the part that it takes of what is left beside the fixed part.
const MOST_TIER: u64 = 1 << 30;
const TIER_SHARE: u64 = 10;
/// The part that fills take by default.
const FILL_SHARE: u64 = 16;
/// What a serving process maps whatever its flags say: huge buffers for reads of the disk (27 MiB), files on their way
/// to the page cache (24 MiB), blocks that no tier took (16 MiB), ordinary read buffers (8 MiB), the master's store, and
/// the processes themselves.
const FIXED: u64 = 128 << 20;

/// Files with limits in bytes, of version 2 and of version 1. `memory.high` does not kill, but slows everything down
/// to the speed of reclaiming.
const LIMITS: [&str; 2] = ["memory.max", "memory.high"];
const LIMITS_V1: [&str; 1] = ["memory.limit_in_bytes"];

/// The memory tier's size when none is given.
pub(crate) fn default_memory() -> ByteSize {
    tier_of(limit())
}

/// The memory of fills when none is given.
pub(crate) fn default_fill_memory() -> ByteSize {
    fills_of(limit())
}

fn tier_of(limit: u64) -> ByteSize {
    ByteSize((limit.saturating_sub(FIXED) / TIER_SHARE).min(MOST_TIER))
}

fn fills_of(limit: u64) -> ByteSize {
    ByteSize((limit / FILL_SHARE).clamp(LEAST_FILL_BUDGET.0, FILL_BUDGET.0))
}

/// Bytes of memory that this process may use, its page cache included.
pub(crate) fn limit() -> u64 {
    limit_below(Path::new("/"))
}

/// As [`limit`], of the system whose files are below `root`.
fn limit_below(root: &Path) -> u64 {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let machine = machine(&read("proc/meminfo")).unwrap_or(UNKNOWN);
    let own = read("proc/self/cgroup");
    let mounts = read("proc/self/mountinfo");
    let mounts = mounts.lines().filter_map(Hierarchy::parse);
    mounts
        .filter_map(|hierarchy| hierarchy.least(root, &own))
        .fold(machine, u64::min)
}

/// The machine's memory, from `/proc/meminfo`.
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// A mounted hierarchy of control groups that limits memory.
struct Hierarchy {
    /// Which of its groups the mount shows at its top.
    top: PathBuf,
    mountpoint: PathBuf,
    version1: bool,
}

impl Hierarchy {
    /// From a line of `/proc/self/mountinfo`: `36 25 0:31 ROOT MOUNTPOINT OPTIONS … - TYPE SOURCE OPTIONS`.
    fn parse(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (top, mountpoint) = (mount.next()?, mount.next()?);
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let mut has_memory = || {
            let options = filesystem.nth(1).unwrap_or_default();
            options.split(',').any(|option| option == "memory")
        };
        let version1 = match kind {
            "cgroup2" => false,
            "cgroup" if has_memory() => true,
            _ => return None,
        };
        Some(Self {
            top: top.into(),
            mountpoint: mountpoint.into(),
            version1,
        })
    }

    /// The path of the process's group, from `/proc/self/cgroup`: lines of `NUMBER:CONTROLLERS:PATH`.
    fn own_group<'a>(&self, groups: &'a str) -> Option<&'a Path> {
        let mut lines = groups.lines().filter_map(|line| {
            let (number, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_it = if self.version1 {
                controllers.split(',').any(|name| name == "memory")
            } else {
                number == "0" && controllers.is_empty()
            };
            is_it.then_some(Path::new(path))
        });
        lines.next()
    }

    /// The least limit of the process's group and of those above it, as far as the mount shows them.
    fn least(&self, root: &Path, groups: &str) -> Option<u64> {
        let own = self.own_group(groups)?;
        // In a container the mount shows the container's own group at its top, whose path may be that of the host.
        let inside = own.strip_prefix(&self.top).unwrap_or(Path::new(""));
        let mountpoint = self.mountpoint.strip_prefix("/").ok()?;
        let files: &[&str] = if self.version1 { &LIMITS_V1 } else { &LIMITS };
        let limits = inside.ancestors().flat_map(|group| {
            // A group that the mount does not show has no files here, and a path with `..` leads out of it.
            let dir = root
                .join(mountpoint)
                .join(group.strip_prefix("/").unwrap_or(group));
            files.iter().filter_map(move |file| {
                let text = std::fs::read_to_string(dir.join(file)).ok()?;
                text.trim().parse::<u64>().ok() // "max" is no limit
            })
        });
        limits.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const V2: &str =
        "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";

    /// The limit of a system with 16 GiB and these files.
    fn limit_with(mounts: &str, groups: &str, files: &[(&str, &str)]) -> u64 {
        let root = tempfile::tempdir().unwrap();
        let given = [
            (
                "proc/meminfo",
                "MemTotal:       16777216 kB\nMemFree: 1 kB\n",
            ),
            ("proc/self/mountinfo", mounts),
            ("proc/self/cgroup", groups),
        ];
        for (path, text) in given.iter().chain(files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        limit_below(root.path())
    }

    #[test]
    fn without_a_limit_all_of_the_machine_counts() {
        assert_eq!(limit_with("", "", &[]), 16 * GIB);
        let unlimited = [("sys/fs/cgroup/a/memory.max", "max\n")];
        assert_eq!(limit_with(V2, "0::/a\n", &unlimited), 16 * GIB);
        let unlimited = [(
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "9223372036854771712\n",
        )];
        assert_eq!(limit_with(V1, "4:memory:/a\n", &unlimited), 16 * GIB);
    }

    #[test]
    fn the_least_limit_up_the_hierarchy_of_version_2_counts() {
        let files = [
            ("sys/fs/cgroup/kube/memory.max", "536870912\n"),
            ("sys/fs/cgroup/kube/pod/memory.max", "max\n"),
            ("sys/fs/cgroup/kube/pod/own/memory.max", "1073741824\n"),
        ];
        assert_eq!(limit_with(V2, "0::/kube/pod/own\n", &files), 512 * MIB);
        let high = [("sys/fs/cgroup/kube/pod/memory.high", "268435456\n")];
        let files: Vec<_> = files.into_iter().chain(high).collect();
        assert_eq!(limit_with(V2, "0::/kube/pod/own\n", &files), 256 * MIB);
        // A neighbour's limit is none of ours.
        assert_eq!(limit_with(V2, "0::/kube-2/own\n", &files), 16 * GIB);
    }

    #[test]
    fn a_container_of_version_2_sees_its_own_group_at_the_top() {
        let files = [("sys/fs/cgroup/memory.max", "268435456\n")];
        assert_eq!(limit_with(V2, "0::/\n", &files), 256 * MIB);
        // Without a namespace of its own, the group's path is the host's.
        let bound = "31 23 0:28 /docker/1f2e /sys/fs/cgroup ro - cgroup2 cgroup rw";
        assert_eq!(limit_with(bound, "0::/docker/1f2e\n", &files), 256 * MIB);
        assert_eq!(limit_with(bound, "0::/../other\n", &files), 256 * MIB);
    }

    #[test]
    fn limits_of_version_1_count_also_beside_version_2() {
        let both = format!(
            "{V1}\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
        );
        let groups = "9:name=systemd:/x\n4:cpu,memory:/batch/job\n2:cpuacct:/\n0::/\n";
        let files = [
            (
                "sys/fs/cgroup/memory/batch/memory.limit_in_bytes",
                "402653184\n",
            ),
            (
                "sys/fs/cgroup/memory/batch/job/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/cpu/batch/memory.limit_in_bytes", "1\n"),
        ];
        assert_eq!(limit_with(&both, groups, &files), 384 * MIB);
        let container =
            "35 31 0:32 /docker/1f2e /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let files = [("sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n")];
        assert_eq!(
            limit_with(container, "4:memory:/docker/1f2e\n", &files),
            256 * MIB
        );
    }

    #[test]
    fn what_cannot_be_understood_is_no_limit() {
        let files = [("sys/fs/cgroup/a/memory.max", "-1\nmany")];
        for groups in ["", "0", "0::", "::::", "0::/a", "x:y:z"] {
            assert_eq!(limit_with(V2, groups, &files), 16 * GIB, "{groups}");
        }
        for mounts in ["- cgroup2", "a b c d - cgroup2 x", "1 2 3 4 5 - cgroup x"] {
            assert_eq!(limit_with(mounts, "0::/a", &files), 16 * GIB, "{mounts}");
        }
    }

    #[test]
    fn all_that_is_mapped_by_default_leaves_room_within_the_limit() {
        for limit in [256 * MIB, 512 * MIB, GIB, 4 * GIB, 64 * GIB] {
            let (tier, fills) = (tier_of(limit).0, fills_of(limit).0);
            let recent = tier / 16;
            let mapped = FIXED + tier + fills + recent;
            assert!(mapped <= limit / 8 * 5, "{mapped} of {limit}");
        }
        assert_eq!(
            (tier_of(64 * GIB).0, fills_of(64 * GIB)),
            (GIB, FILL_BUDGET)
        );
        assert_eq!((tier_of(0).0, fills_of(0)), (0, LEAST_FILL_BUDGET));
    }
}
