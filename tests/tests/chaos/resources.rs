//! Disks that are full or lose what they held, and peers that take all there is.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use weir_tests::{Lab, MemoryGroup, content};

use super::table::{Allowed, Outcome, Row};
use super::world::{Effort, cluster, fill, mount_of, under_readers};

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "the_disk_is_full",
        what: "the disk of the SSD tier has 24 MiB of the 64 MiB that it is given",
        allowed: Allowed::Longest(Duration::from_secs(5)),
        run: full_disk,
    },
    Row {
        name: "the_disk_loses_what_it_held",
        what: "the cache's files are cut off under a live mount",
        allowed: Allowed::Longest(Duration::from_secs(5)),
        run: failing_disk,
    },
    Row {
        name: "idle_connections",
        what: "a worker is given 5,000 connections that say nothing",
        allowed: Allowed::Longest(Duration::from_secs(4)),
        run: idle_connections,
    },
    Row {
        name: "little_memory",
        what: "a mount with all defaults has 256 MiB of memory, and reads more than that",
        allowed: Allowed::Longest(Duration::from_secs(10)),
        run: little_memory,
    },
];

/// A file system in memory, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(lab: &Lab, mib: u32) -> Option<Self> {
        let dir = lab.path("disk");
        std::fs::create_dir(&dir).unwrap();
        let size = CString::new(format!("size={mib}m")).unwrap();
        mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), size.as_c_str()).ok()?;
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let dir = CString::new(self.0.as_os_str().as_bytes()).unwrap();
        let _ = unmount(dir.as_c_str(), UnmountFlags::DETACH);
    }
}

fn full_disk(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let Some(disk) = SmallDisk::new(&lab, 24) else {
        return Outcome::skipped("no file system can be mounted");
    };
    let ssd = format!("{}:64MiB", disk.0.join("cache").display());
    let mount = lab.mount("", &["--mem", "8MiB", "--ssd", &ssd]);
    let pause = Duration::from_secs(effort.of(1, 10) as u64);
    under_readers(&mount, &files, (1, pause), |_| ())
}

fn failing_disk(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let ssd = lab.path("ssd");
    let flag = format!("{}:256MiB", ssd.display());
    let mount = lab.mount("", &["--mem", "0", "--ssd", &flag]);
    let times = (effort.of(3, 20), effort.pause());
    under_readers(&mount, &files, times, |_| {
        for file in files_below(&ssd) {
            let file = std::fs::File::options().write(true).open(file);
            let _ = file.and_then(|file| file.set_len(100_000));
        }
    })
}

fn files_below(dir: &std::path::Path) -> Vec<PathBuf> {
    let slots = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = slots.map(|slot| slot.path()).filter(|path| path.is_dir());
    let files = dirs.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    let large = |path: &PathBuf| path.metadata().is_ok_and(|file| file.len() > 100_000);
    files.map(|file| file.path()).filter(large).collect()
}

fn idle_connections(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let cluster = cluster(&lab);
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let most = limit.maximum.unwrap_or(20_000).saturating_sub(1000) as usize;
    let mount = mount_of(&lab, &cluster);
    let mut idle = Vec::new();
    let mut outcome = under_readers(&mount, &files, (1, effort.pause()), |_| {
        let connect = || TcpStream::connect(("127.0.0.1", cluster.data_port(0)));
        idle.extend((0..most.min(5000)).filter_map(|_| connect().ok()));
        std::thread::sleep(Duration::from_secs(effort.of(1, 10) as u64));
    });
    outcome.times = idle.len();
    outcome
}

fn little_memory(effort: Effort) -> Outcome {
    let group = match MemoryGroup::new(256 << 20) {
        Ok(group) => group,
        Err(reason) => {
            return Outcome::skipped(format!("no control group can be made ({reason})"));
        }
    };
    let mut lab = Lab::new();
    let big = (0..8).map(|n| (format!("big/{n}"), content(n, 40 << 20)));
    let small = (0..100).map(|n| (format!("small/{n}"), content(n, 90_000)));
    let files: BTreeMap<String, Vec<u8>> = big.chain(small).collect();
    lab.put_all(&files);
    let limited = lab.path("weir-limited");
    group.wrap(lab.binary(), &limited);
    lab.use_binary(&limited);
    let mount = lab.mount("", &[]);
    let pause = Duration::from_secs(effort.of(1, 20) as u64);
    let mut outcome = under_readers(&mount, &Arc::new(files), (1, pause), |_| ());
    let kills = group.kills();
    if kills > 0 {
        let killed = format!("the kernel killed {kills} processes for their memory");
        outcome.readers.errors.push(killed);
    }
    mount.unmount();
    outcome
}
