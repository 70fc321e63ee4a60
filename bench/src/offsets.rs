//! Reads of a few bytes at random places of big files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::readers::{Pass, pass};

/// A place to read at.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    file: usize,
    offset: u64,
}

/// `count` places in `files` files of `size` bytes, each a multiple of `length`.
pub fn places(files: usize, size: u64, length: u64, count: usize, seed: u64) -> Vec<Place> {
    let mut random = SmallRng::seed_from_u64(seed);
    let place = |_| Place {
        file: random.random_range(0..files),
        offset: random.random_range(0..size / length) * length,
    };
    (0..count).map(place).collect()
}

/// Reads `length` bytes at each place, with `threads` threads that have all files open.
pub fn read_places(
    root: &Path,
    files: &[PathBuf],
    places: &[Place],
    length: usize,
    threads: usize,
) -> anyhow::Result<Pass> {
    let opened: Vec<File> = open(root, files)?;
    let buffer = || Ok(vec![0; length]);
    pass(places, 0, threads, buffer, |buffer, place| {
        opened[place.file].read_exact_at(buffer, place.offset)?;
        Ok(length as u64)
    })
}

/// Reads the same places below both roots and compares the bytes.
pub fn compare_places(
    roots: [&Path; 2],
    files: &[PathBuf],
    places: &[Place],
    length: usize,
) -> anyhow::Result<()> {
    let [ours, theirs] = [open(roots[0], files)?, open(roots[1], files)?];
    let mut buffers = [vec![0; length], vec![0; length]];
    for place in places {
        ours[place.file].read_exact_at(&mut buffers[0], place.offset)?;
        theirs[place.file].read_exact_at(&mut buffers[1], place.offset)?;
        anyhow::ensure!(
            buffers[0] == buffers[1],
            "{}: wrong bytes behind offset {}",
            files[place.file].display(),
            place.offset
        );
    }
    Ok(())
}

fn open(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<File>> {
    let open = |file: &PathBuf| {
        let path = root.join(file);
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    };
    files.iter().map(open).collect()
}
