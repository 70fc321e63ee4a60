//! Bytes that a test can make again to compare.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::lab::Lab;

/// `length` bytes that depend on `seed` alone.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Puts files into the lab's bucket, each in a directory of its own, so that none is read ahead.
pub fn put_apart(lab: &Lab, count: u64) -> Arc<BTreeMap<String, Vec<u8>>> {
    let files: BTreeMap<String, Vec<u8>> = (0..count)
        .map(|n| (format!("d{n}/file"), content(n, 50_000)))
        .collect();
    lab.put_all(&files);
    Arc::new(files)
}

/// Writes files below `root`.
pub fn write_tree(root: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (path, content) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}
