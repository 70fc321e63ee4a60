//! What the device itself can do.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use rustix::fs::OFlags;

use crate::stats::median;

/// Bytes of one write, as many as those of a full block.
const WRITE: usize = 4 << 20;
const PASSES: usize = 3;
/// What direct writes must be aligned to.
const PAGE: usize = 4096;

/// Bytes per second of direct writes of 4 MiB, one after another, to new files of `length` bytes: the median of a few.
pub fn write_rate(dir: &Path, length: u64) -> anyhow::Result<f64> {
    let path = dir.join("written-directly");
    let memory = vec![0x5a; WRITE + PAGE];
    let start = memory.as_ptr().align_offset(PAGE);
    let data = &memory[start..start + WRITE];
    let writes = length.div_ceil(WRITE as u64);
    let pass = || -> std::io::Result<f64> {
        let file = create(&path)?;
        let started = Instant::now();
        for number in 0..writes {
            file.write_all_at(data, number * WRITE as u64)?;
        }
        Ok((writes * WRITE as u64) as f64 / started.elapsed().as_secs_f64())
    };
    let rates: std::io::Result<Vec<f64>> = (0..PASSES).map(|_| pass()).collect();
    let _ = std::fs::remove_file(&path); // there is none if it could not be made
    Ok(median(&rates.context("direct writes cannot be measured")?))
}

fn create(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    options.custom_flags(OFlags::DIRECT.bits() as i32);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_measured_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write_rate(dir.path(), 10 << 20).unwrap() > 0.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
