//! What a process may use: open files, and the room of a cache.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use weir_demo::ending::tell;
use weir_tests::{Lab, content, read_evicted, wait_until};

use crate::Case;

/// Longest wait until what was read has found its room, or none.
const ROOM_DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const CASES: &[Case] = &[
    (
        "too_few_open_files_are_told_before_anything_is_mounted",
        too_few_open_files_are_told_before_anything_is_mounted,
    ),
    (
        "a_mount_works_with_few_open_files",
        a_mount_works_with_few_open_files,
    ),
    (
        "a_server_without_descriptors_says_so_and_goes_on_when_there_are_some",
        a_server_without_descriptors_says_so_and_goes_on_when_there_are_some,
    ),
    (
        "a_full_tier_makes_room_as_its_flag_says",
        a_full_tier_makes_room_as_its_flag_says,
    ),
    (
        "a_tier_leaves_of_its_disk_what_others_are_to_have",
        a_tier_leaves_of_its_disk_what_others_are_to_have,
    ),
];

/// A world whose commands have a hard limit of open files.
fn lab_with(descriptors: u32) -> Lab {
    let lab = Lab::new();
    let script = lab.path("limited");
    let text = format!(
        "#!/bin/sh\nulimit -n {descriptors}\nexec {} \"$@\"\n",
        lab.binary().display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    lab.use_binary(&script);
    lab
}

fn too_few_open_files_are_told_before_anything_is_mounted() {
    // With 10 the processes of the mount could not even say so.
    for most in [44, 10] {
        let lab = lab_with(most);
        let (url, dir) = (lab.url(""), lab.path("mnt"));
        let start = Instant::now();
        let mut args = vec!["mount", &url, dir.to_str().unwrap()];
        let origin = lab.origin_flags();
        args.extend(origin.iter().map(String::as_str));
        let message = lab.weir(args).fails(1);
        let said = format!("at most {most} files may be open");
        assert!(message.contains(&said), "{message}");
        assert!(start.elapsed() < Duration::from_secs(10), "{message}");
        assert!(!weir_tests::is_mountpoint(&dir));
    }
}

fn a_mount_works_with_few_open_files() {
    let lab = lab_with(256);
    let files: BTreeMap<String, Vec<u8>> = (0..300)
        .map(|n| (format!("d{}/file{n}", n % 20), content(n, 20_000)))
        .collect();
    lab.put_all(&files);
    let mount = lab.mount("", &[]);
    let names: Vec<_> = files.keys().collect();
    std::thread::scope(|scope| {
        for part in names.chunks(names.len() / 30) {
            let (mount, files) = (&mount, &files);
            scope.spawn(move || {
                for name in part {
                    assert!(mount.read(name) == files[*name], "{name}");
                }
            });
        }
    });
}

fn a_server_without_descriptors_says_so_and_goes_on_when_there_are_some() {
    let lab = Lab::new();
    // Each in a directory of its own, so that none is fetched ahead of its reader.
    let files: BTreeMap<String, Vec<u8>> = (0..9)
        .map(|n| (format!("d{n}/f"), content(n, 200_000)))
        .collect();
    lab.put_all(&files);
    let mount = lab.mount("", &[]);
    assert!(mount.read("d0/f") == files["d0/f"]);
    let server = mount.server();
    // Those that it has stay; a new one would need a number below 1.
    let none = Rlimit {
        current: Some(1),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(Some(server), Resource::Nofile, none).unwrap();
    let started = Instant::now();
    let failed = std::thread::scope(|scope| {
        let names: Vec<_> = files.keys().skip(1).collect();
        let readers: Vec<_> = names
            .chunks(2)
            .map(|part| {
                let (mount, files, part) = (&mount, &files, part.to_vec());
                scope.spawn(move || {
                    let failed =
                        part.into_iter()
                            .filter(|name| match std::fs::read(mount.path(name)) {
                                Ok(bytes) => {
                                    assert!(bytes == files[*name], "{name}");
                                    false
                                }
                                Err(error) => {
                                    assert_eq!(error.raw_os_error(), Some(5), "{name}: {error}");
                                    true
                                }
                            });
                    failed.count()
                })
            })
            .collect();
        let failed = readers.into_iter().map(|reader| reader.join().unwrap());
        failed.sum::<usize>()
    });
    assert!(failed > 0, "there were descriptors left");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(25), "they took {took:?}");
    prlimit(Some(server), Resource::Nofile, before).unwrap();
    for (name, content) in &files {
        // A failure is remembered for a second, since the kernel asks twice.
        wait_until(name, Duration::from_secs(20), || {
            std::fs::read(mount.path(name)).is_ok_and(|bytes| bytes == *content)
        });
    }
    assert_eq!(mount.server(), server, "it was replaced");
    let log = mount.log();
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(!errors.is_empty(), "{log}");
    for line in errors {
        assert!(line.contains("no file descriptor left"), "{line}");
        assert!(!line.contains("check the service"), "{line}");
    }
}

fn a_full_tier_makes_room_as_its_flag_says() {
    let lab = Lab::new();
    let files: BTreeMap<String, Vec<u8>> = (0..50)
        .map(|n| (format!("f{n:02}"), content(n, 1 << 20)))
        .collect();
    lab.put_all(&files);
    for (idle, evicts) in [("0s", true), ("1h", false), ("never", false)] {
        let tier = format!("{}:24MiB", lab.path(&format!("tier-{idle}")).display());
        let flags = ["--mem", "0", "--ssd", &tier, "--evict-idle", idle];
        let mount = lab.mount("", &flags);
        for (name, content) in &files {
            assert!(mount.read(name) == *content, "{name}");
        }
        let evicted = || mount.metric("weir_worker_evicted_blocks_total", "reason=\"idle\"");
        let refused = || mount.metric("weir_worker_admissions_refused_total", "");
        if evicts {
            wait_until("what is idle makes room", ROOM_DEADLINE, || {
                evicted() > 20.0
            });
        } else {
            wait_until("new blocks are refused", ROOM_DEADLINE, || refused() > 20.0);
            assert!(evicted() < 0.5, "--evict-idle {idle}");
        }
    }
}

/// A small disk in memory, which goes with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(dir: PathBuf, size: &str) -> rustix::io::Result<Self> {
        std::fs::create_dir(&dir).unwrap();
        let size = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), Some(&*size))?;
        Ok(Self(dir))
    }

    fn free(&self) -> u64 {
        let space = rustix::fs::statvfs(&self.0).unwrap();
        space.f_bavail * space.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn a_tier_leaves_of_its_disk_what_others_are_to_have() {
    const MIB: u64 = 1 << 20;
    let lab = Lab::new();
    let disk = match SmallDisk::new(lab.path("disk"), "100m") {
        Ok(disk) => disk,
        Err(error) => {
            return tell(format_args!(
                "not tested: no disk in memory can be mounted ({error})"
            ));
        }
    };
    let mut files: BTreeMap<String, Vec<u8>> = (0..72)
        .map(|n| (format!("f{n:02}"), content(n, MIB as usize)))
        .collect();
    lab.put_all(&files);
    let later = files.split_off("f60");
    let tier = format!("{}:90MiB", disk.0.join("tier").display());
    let flags = ["--mem", "0", "--ssd", &tier, "--ssd-free", "20%"];
    let flags = [&flags[..], &["--read-ahead", "off"]].concat();
    let mount = lab.mount("", &flags);
    let read = |files: &BTreeMap<String, Vec<u8>>| {
        for (name, content) in files {
            let read = read_evicted(&mount.path(name)).unwrap();
            assert!(read == *content, "{name}");
        }
    };
    let of_ssd = |name: &str| mount.metric(name, "tier=\"ssd\"") as u64;
    let used = || of_ssd("weir_worker_tier_used_bytes");
    read(&files);
    wait_until("all is cached", ROOM_DEADLINE, || used() > 60 * MIB);
    assert!(disk.free() >= 20 * MIB);
    let others = disk.0.join("others");
    std::fs::write(&others, content(0, 30 * MIB as usize)).unwrap();
    wait_until("room is left", ROOM_DEADLINE, || disk.free() >= 20 * MIB);
    assert!(used() < 52 * MIB && used() > 30 * MIB, "{}", used());
    let dropped = mount.metric("weir_worker_evicted_bytes_total", "reason=\"disk_short\"");
    assert!(dropped > 8e6, "{dropped}");
    read(&files);
    assert!(disk.free() >= 20 * MIB, "what was dropped is not taken in");
    std::fs::remove_file(&others).unwrap();
    wait_until("it may take more again", ROOM_DEADLINE, || {
        of_ssd("weir_worker_tier_limit_bytes") > 75 * MIB
    });
    let (before, new) = (used(), later.len() as u64 * MIB);
    read(&later);
    wait_until("what is new is cached", ROOM_DEADLINE, || {
        used() >= before + new
    });
    mount.unmount();
}
