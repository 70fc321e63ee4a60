//! Cache files that somebody damages under a live mount.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use weir_tests::{BUCKET, Lab, content, drop_pages, wait_until};

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
];

fn fill(lab: &Lab) -> BTreeMap<String, Vec<u8>> {
    let files: BTreeMap<String, Vec<u8>> = (0..60)
        .map(|n| (format!("f{n:03}"), content(n, 300_000)))
        .collect();
    lab.s3.edit(BUCKET, |bucket| {
        for (key, content) in &files {
            bucket.put(key.as_str(), content.clone());
        }
    });
    files
}

/// Files of the SSD tier that hold blocks, the largest first.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<(u64, PathBuf)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (std::fs::metadata(&path).unwrap().len(), path))
        .filter(|(size, _)| *size > 100_000)
        .collect();
    files.sort_by(|a, b| b.cmp(a));
    files.into_iter().map(|(_, path)| path).collect()
}

fn flip_everywhere(path: &Path) {
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
type Damage = fn(&Path);

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

fn damaged_cache_files_are_dropped_and_refilled() {
    for (what, damage) in DAMAGES {
        let lab = Lab::new();
        let files = fill(&lab);
        let ssd = lab.path("ssd");
        let flag = format!("{}:256MiB", ssd.display());
        let mount = lab.mount("", &["--mem", "0", "--ssd", &flag]);
        for name in files.keys() {
            mount.read(name);
        }
        wait_until("all blocks are on SSD", Duration::from_secs(10), || {
            mount.metric("weir_worker_tier_blocks", "tier=\"ssd\"") as usize == files.len()
        });
        let own = std::fs::read_dir(&ssd)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let dir = if own.is_dir() { own } else { ssd.clone() };
        let before = lab.s3.stats().gets();
        for segment in segments(&dir) {
            damage(&segment);
        }
        drop_pages(files.keys().map(|name| mount.path(name)));
        for (name, content) in &files {
            assert!(
                mount.read(name) == *content,
                "{name} after the file was {what}"
            );
        }
        assert!(mount.metric("weir_fuse_errors_total", "") < 0.5, "{what}");
        wait_until(
            &format!("{what} files are found and counted"),
            Duration::from_secs(10),
            || {
                let counted = mount.metric("weir_worker_damaged_blocks_total", "")
                    + mount.metric("weir_worker_lost_segments_total", "");
                counted > 0.5
            },
        );
        // A file that was unlinked is read on until the check finds it; then its blocks are filled again.
        drop_pages(files.keys().map(|name| mount.path(name)));
        for (name, content) in &files {
            assert!(
                mount.read(name) == *content,
                "{name} again after the file was {what}"
            );
        }
        assert!(
            lab.s3.stats().gets() > before,
            "{what}: nothing was filled again"
        );
    }
}

fn damage_done_while_unmounted_is_found() {
    for (what, damage) in DAMAGES {
        let lab = Lab::new();
        let files = fill(&lab);
        let ssd = lab.path("ssd");
        let flag = format!("{}:256MiB", ssd.display());
        let mount = lab.mount("", &["--mem", "0", "--ssd", &flag]);
        for name in files.keys() {
            mount.read(name);
        }
        mount.unmount();
        let own = std::fs::read_dir(&ssd)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let dir = if own.is_dir() { own } else { ssd.clone() };
        for segment in segments(&dir) {
            damage(&segment);
        }
        let mount = lab.mount("", &["--mem", "0", "--ssd", &flag]);
        for (name, content) in &files {
            assert!(
                mount.read(name) == *content,
                "{name} after the file was {what}"
            );
        }
    }
}
