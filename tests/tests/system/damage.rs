//! Cache files that somebody damages under a live mount.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use weir_tests::{Lab, Mount, content, drop_pages, read_at_random, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "damaged_cache_files_are_dropped_and_refilled",
        damaged_cache_files_are_dropped_and_refilled,
    ),
    (
        "damage_done_while_unmounted_is_found",
        damage_done_while_unmounted_is_found,
    ),
    (
        "damage_costs_as_many_bytes_as_the_damaged_blocks_have",
        damage_costs_as_many_bytes_as_the_damaged_blocks_have,
    ),
    (
        "damage_under_parallel_short_reads_costs_each_block_once",
        damage_under_parallel_short_reads_costs_each_block_once,
    ),
];

fn fill(lab: &Lab) -> BTreeMap<String, Vec<u8>> {
    let files: BTreeMap<String, Vec<u8>> = (0..60)
        .map(|n| (format!("f{n:03}"), content(n, 300_000)))
        .collect();
    lab.put_all(&files);
    files
}

/// Damages every file that holds blocks in the directories below `ssd`.
pub(crate) fn damage_segments(ssd: &Path, damage: Damage) {
    let mut damaged = 0;
    for slot in std::fs::read_dir(ssd).unwrap() {
        let slot = slot.unwrap().path();
        if !slot.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(slot).unwrap() {
            let path = file.unwrap().path();
            if std::fs::metadata(&path).unwrap().len() > 100_000 {
                damage(&path);
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0, "no cache files in {}", ssd.display());
}

pub(crate) fn flip_everywhere(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    for at in (5000..file.metadata().unwrap().len()).step_by(50_000) {
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }
}

/// Exchanges the first half of a file with its second.
fn swap_halves(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let (first, second) = bytes.split_at(bytes.len() / 2 / 4096 * 4096);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .write_all_at(&[second, first].concat(), 0)
        .unwrap();
}

/// A way to damage a file.
pub(crate) type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 6] = [
    ("flipped", flip_everywhere),
    ("swapped", swap_halves),
    ("truncated", |path| {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(70_000)
            .unwrap();
    }),
    ("emptied", |path| {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(0)
            .unwrap();
    }),
    ("replaced", |path| {
        std::fs::write(path.with_extension("other"), content(1, 500_000)).unwrap();
        std::fs::rename(path.with_extension("other"), path).unwrap();
    }),
    ("deleted", |path| std::fs::remove_file(path).unwrap()),
];

/// Mounts with an SSD tier alone, the scratch directory's `ssd`.
fn mount(lab: &Lab) -> Mount<'_> {
    let ssd = format!("{}:256MiB", lab.path("ssd").display());
    lab.mount("", &["--mem", "0", "--ssd", &ssd])
}

#[track_caller]
fn check_all(mount: &Mount<'_>, files: &BTreeMap<String, Vec<u8>>, when: &str) {
    for (name, content) in files {
        assert!(mount.read(name) == *content, "{name} {when}");
    }
}

fn damaged_cache_files_are_dropped_and_refilled() {
    for (what, damage) in DAMAGES {
        let lab = Lab::new();
        let files = fill(&lab);
        let mount = mount(&lab);
        check_all(&mount, &files, "at first");
        wait_until("all blocks are on SSD", Duration::from_secs(10), || {
            mount.metric("weir_worker_tier_blocks", "tier=\"ssd\"") as usize == files.len()
        });
        let before = lab.s3.stats().gets();
        damage_segments(&lab.path("ssd"), damage);
        drop_pages(files.keys().map(|name| mount.path(name)));
        check_all(&mount, &files, &format!("after the file was {what}"));
        assert!(mount.metric("weir_fuse_errors_total", "") < 0.5, "{what}");
        let counted = || {
            mount.metric("weir_worker_damaged_blocks_total", "")
                + mount.metric("weir_worker_lost_segments_total", "")
        };
        let found = format!("{what} files are found and counted");
        wait_until(&found, Duration::from_secs(10), || counted() > 0.5);
        // A file that was unlinked is read on until the check finds it; then its blocks are filled again.
        drop_pages(files.keys().map(|name| mount.path(name)));
        check_all(&mount, &files, &format!("long after the file was {what}"));
        let gets = lab.s3.stats().gets();
        assert!(gets > before, "{what}: nothing was filled again");
    }
}

fn damage_done_while_unmounted_is_found() {
    for (what, damage) in DAMAGES {
        let lab = Lab::new();
        let files = fill(&lab);
        let first = mount(&lab);
        check_all(&first, &files, "at first");
        first.unmount();
        let before = lab.s3.stats().gets();
        damage_segments(&lab.path("ssd"), damage);
        let second = mount(&lab);
        check_all(&second, &files, &format!("after the file was {what}"));
        let gets = lab.s3.stats().gets();
        assert!(gets > before, "{what}: nothing was filled again");
    }
}

fn damage_costs_as_many_bytes_as_the_damaged_blocks_have() {
    const BLOCK: usize = 4 << 20;
    let lab = Lab::new();
    let files: BTreeMap<String, Vec<u8>> = (0..12)
        .map(|n| (format!("f{n:02}"), content(n, 3 * BLOCK)))
        .collect();
    lab.put_all(&files);
    let mount = mount(&lab);
    check_all(&mount, &files, "at first");
    wait_until("all blocks are on SSD", Duration::from_secs(20), || {
        mount.metric("weir_worker_tier_blocks", "tier=\"ssd\"") as usize == 3 * files.len()
    });
    let fetched = || mount.metric("weir_origin_read_bytes_total", "");
    let before = fetched();
    damage_segments(&lab.path("ssd"), |path| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        for at in [1 << 20, 3 << 20] {
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
    });
    for pass in 0..3 {
        drop_pages(files.keys().map(|name| mount.path(name)));
        check_all(&mount, &files, &format!("in pass {pass} after the damage"));
    }
    let damaged = mount.metric("weir_worker_damaged_blocks_total", "");
    let (again, most) = (fetched() - before, damaged * BLOCK as f64);
    assert!(damaged > 3.5, "{damaged} blocks were found damaged");
    assert!(
        again <= most,
        "{again} bytes were fetched for {damaged} blocks"
    );
}

/// Readers of a few KiB here and there find the damage, in a tier with room and in a full one.
fn damage_under_parallel_short_reads_costs_each_block_once() {
    const BLOCK: usize = 4 << 20;
    const SHORT: usize = 4096;
    for capacity in ["256MiB", "40MiB"] {
        let lab = Lab::new();
        let files: BTreeMap<String, Vec<u8>> = (0..8)
            .map(|n| (format!("f{n:02}"), content(n, 2 * BLOCK)))
            .collect();
        lab.put_all(&files);
        let ssd = format!("{}:{capacity}", lab.path("ssd").display());
        let mount = lab.mount("", &["--mem", "0", "--ssd", &ssd, "--read-ahead", "off"]);
        let stored = || mount.metric("weir_worker_tier_blocks", "tier=\"ssd\"") as usize;
        let refused = || mount.metric("weir_worker_admissions_refused_total", "") as usize;
        let mut held = Vec::new();
        for (name, content) in &files {
            let (before, none) = (stored(), refused());
            assert!(mount.read(name) == *content, "{name}");
            wait_until(
                "the blocks are stored or refused",
                Duration::from_secs(20),
                || stored() + refused() >= before + none + 2,
            );
            if refused() > none {
                break;
            }
            held.push(name);
        }
        let full = held.len() < files.len();
        assert_eq!(full, capacity == "40MiB", "{} files are held", held.len());
        damage_segments(&lab.path("ssd"), |path| {
            let file = File::options().read(true).write(true).open(path).unwrap();
            let (length, mut byte) = (file.metadata().unwrap().len(), [0]);
            for at in (length / 2..length).step_by(4096) {
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            }
        });
        drop_pages(held.iter().map(|name| mount.path(name)));
        let fetched = || mount.metric("weir_origin_read_bytes_total", "");
        let before = fetched();
        std::thread::scope(|scope| {
            for reader in 0..4 {
                let (held, files, mount) = (&held, &files, &mount);
                scope.spawn(move || {
                    // All readers come to the damaged pages, each by another way.
                    for step in 0..256 {
                        let name = held[(step + reader) % held.len()];
                        let at = (step * (5 + 2 * reader) % 256) * (2 * BLOCK / 256);
                        let read = read_at_random(&mount.path(name), at as u64, SHORT).unwrap();
                        assert!(read == files[name][at..at + SHORT], "{name} at {at}");
                    }
                });
            }
        });
        let damaged = mount.metric("weir_worker_damaged_blocks_total", "");
        let again = fetched() - before;
        println!("{capacity}: {damaged} damaged blocks, {again} bytes fetched again");
        assert!(damaged > 3.5, "{damaged} blocks were found damaged");
        assert!(
            again <= damaged * BLOCK as f64,
            "{again} bytes for {damaged} blocks in {capacity}"
        );
    }
}
