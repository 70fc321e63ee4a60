//! Disks of the SSD tier that are full, lose what they held, fail or hang.

use std::path::{Path, PathBuf};
use std::time::Duration;

use weir_tests::{Cluster, DiskFault, FaultyDisk, Lab, Mount, wait_until};

use super::table::{Allowed, Outcome, Row};
use super::world::{Effort, fill, under_readers};

/// Longest wait for a disk to be asked for something.
const ASKED: Duration = Duration::from_secs(20);
/// How long a disk stays bad then.
const BAD: Duration = Duration::from_secs(1);

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "the_disk_is_full",
        what: "the disk of the SSD tier answers writes with ENOSPC",
        allowed: Allowed::Longest(Duration::from_secs(5)),
        // Once it is known to be full it is left alone for a while.
        run: |effort| failing(effort, 1, DiskFault::None, DiskFault::FULL),
    },
    Row {
        name: "the_disk_cannot_be_read",
        what: "the disk of the SSD tier answers reads with EIO",
        allowed: Allowed::Longest(Duration::from_secs(5)),
        run: |effort| failing(effort, effort.of(2, 20), DiskFault::BROKEN, DiskFault::None),
    },
    Row {
        name: "the_disk_is_broken",
        what: "the disk of the SSD tier answers reads and writes with EIO",
        allowed: Allowed::Longest(Duration::from_secs(5)),
        run: |effort| {
            failing(
                effort,
                effort.of(2, 20),
                DiskFault::BROKEN,
                DiskFault::BROKEN,
            )
        },
    },
    Row {
        name: "the_disk_hangs",
        what: "the disk of the SSD tier of a mount's own gives no answer for 1 s",
        // Who reads from it waits for it.
        allowed: Allowed::Longest(Duration::from_secs(6)),
        run: |effort| failing(effort, effort.of(2, 10), DiskFault::Hang, DiskFault::Hang),
    },
    Row {
        name: "the_disk_of_a_worker_hangs",
        what: "one of two disks of one of two workers gives no answer for 10 s (a short run: 3 s)",
        allowed: Allowed::Longest(Duration::from_secs(9)),
        run: worker_with_a_disk_that_hangs,
    },
    Row {
        name: "the_disk_loses_what_it_held",
        what: "the cache's files are cut off under a live mount",
        allowed: Allowed::Longest(Duration::from_secs(5)),
        run: losing,
    },
];

/// A mount that keeps all in an SSD tier, and drops what was read longest ago for what is new.
fn mount_on<'a>(lab: &'a Lab, dir: &Path, capacity: &str) -> Mount<'a> {
    let ssd = format!("{}:{capacity}", dir.display());
    let flags = ["--mem", "0", "--ssd", &ssd, "--evict-idle", "0s"];
    lab.mount("", &flags)
}

fn disk(lab: &Lab) -> FaultyDisk {
    FaultyDisk::new(lab.path("disk"), &lab.path("disk-files")).unwrap()
}

fn failing(effort: Effort, times: usize, reads: DiskFault, writes: DiskFault) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let disk = disk(&lab);
    // Half of the files, so that blocks are written again and again however soon all have been read.
    let mount = mount_on(&lab, disk.dir(), "32MiB");
    let times = (times, effort.pause());
    let mut outcome = under_readers(&mount, &files, times, |readers, _| {
        let before = disk.happened();
        disk.fail(reads, writes);
        wait_until("the disk is asked", ASKED, || disk.happened() > before);
        readers.read_for(BAD);
        disk.heal();
    });
    outcome.times = disk.happened();
    mount.unmount();
    outcome
}

fn worker_with_a_disk_that_hangs(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let disk = disk(&lab);
    let ssd = format!("{}:256MiB", disk.dir().display());
    let cluster = Cluster::start_with(&lab, &[&["--ssd", &ssd], &[]]);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    let times = (1, effort.pause());
    let mut outcome = under_readers(&mount, &files, times, |readers, _| {
        // All that a worker owns is on its disks.
        readers.read_more(3 * files.len());
        disk.fail(DiskFault::Hang, DiskFault::Hang);
        wait_until("the disk is asked", ASKED, || disk.happened() > 0);
        readers.read_for(Duration::from_secs(effort.of(3, 10) as u64));
        disk.heal();
    });
    outcome.times = disk.happened();
    mount.unmount();
    outcome
}

fn losing(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let ssd = lab.path("ssd");
    let mount = mount_on(&lab, &ssd, "256MiB");
    let times = (effort.of(3, 20), effort.pause());
    under_readers(&mount, &files, times, |_, _| {
        for file in files_below(&ssd) {
            let file = std::fs::File::options().write(true).open(file);
            let _ = file.and_then(|file| file.set_len(100_000));
        }
    })
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let slots = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = slots.map(|slot| slot.path()).filter(|path| path.is_dir());
    let files = dirs.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    let large = |path: &PathBuf| path.metadata().is_ok_and(|file| file.len() > 100_000);
    files.map(|file| file.path()).filter(large).collect()
}
