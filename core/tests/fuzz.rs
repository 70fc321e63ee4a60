//! A manifest of any bytes is refused or can be used without a panic.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use bytes::Bytes;
use weir_core::manifest::{Manifest, ManifestBuilder, Mount};
use weir_core::{EntryKind, OriginId, SnapshotId};
use weir_fuzz::{Counting, Target};

#[global_allocator]
static COUNTING: Counting = Counting;

/// Files that are looked at of one manifest; a directory's table may claim many.
const MOST: usize = 2000;

fn manifest(previous: Option<&Manifest>, files: u32) -> Manifest {
    let mut builder = ManifestBuilder::new();
    for (number, path) in ["", "more/of it"].into_iter().enumerate() {
        let mount = Mount {
            origin: OriginId(number as u64),
            spec: "{}".to_owned(),
            prefix: "p/".to_owned(),
            path: path.to_owned(),
        };
        let mount = builder.add_mount(mount).unwrap();
        for n in 0..files {
            let key = format!("p/d{}/f{n}", n % 3);
            let version = if n % 2 == 0 {
                format!("{n:032x}")
            } else {
                format!("v{n}")
            };
            let size = u64::from(n) << (n % 40);
            builder
                .add(mount, key.as_bytes(), size, i64::from(n), &version)
                .unwrap();
        }
    }
    let snapshot = SnapshotId {
        dataset: "set".parse().unwrap(),
        version: 1,
    };
    builder.build(snapshot, 1, previous).unwrap()
}

/// Makes the checksum at the end right.
fn sum(bytes: &mut [u8]) {
    if let Some(body) = bytes.len().checked_sub(8) {
        let algorithm = crc_fast::CrcAlgorithm::Crc64Nvme;
        let sum = crc_fast::checksum(algorithm, &bytes[..body]);
        bytes[body..].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Calls everything that a mount calls, and tells what was found.
fn use_it(bytes: &[u8]) -> Result<(u32, usize, u64), &'static str> {
    let manifest = match Manifest::from_bytes(Bytes::copy_from_slice(bytes)) {
        Ok(manifest) => manifest,
        Err(_) if bytes.len() < 20 => return Err("short"),
        Err(_) => return Err("damaged"),
    };
    let mut blocks = 0;
    for past in [manifest.len(), u32::MAX] {
        assert_eq!(manifest.entry(past).index, past);
        let _ = manifest.path(past);
    }
    for index in 0..manifest.len().min(MOST as u32) {
        let entry = manifest.entry(index);
        let inode = manifest.inode(index);
        let _ = (
            manifest.by_inode(inode),
            manifest.path(index),
            manifest.version(index),
        );
        let found = manifest.lookup(entry.parent, entry.name);
        assert!(found.is_none_or(|found| found < manifest.len()));
        if entry.kind == EntryKind::File {
            let _ = (manifest.mount(index), manifest.object(index));
            blocks += manifest.blocks(index).take(3).count() as u64;
        }
        if entry.kind == EntryKind::File {
            let (mount, version) = (manifest.mount(index), manifest.version(index));
            let same =
                |other| manifest.is_same_file(other, mount, entry.size, entry.mtime_ns, &version);
            assert!(same(index));
            let _ = same(manifest.len() - 1 - index);
        }
    }
    let files = manifest.files_below(0).take(MOST).count();
    let _ = manifest.resolve("more/of it/d1/f1");
    Ok((manifest.len(), files, blocks))
}

#[test]
fn manifests_of_any_bytes() {
    let first = manifest(None, 12);
    let second = manifest(Some(&first), 9);
    Target::new("manifest")
        .seed(first.as_bytes().to_vec())
        .seed(second.as_bytes().to_vec())
        .seed(manifest(None, 0).as_bytes().to_vec())
        .words(&[
            "WEIRMAN1",
            "\"count\":4294967295",
            "\"own_inodes\":true",
            "\"names_len\":18446744073709551615",
            "\"path\":\"",
            "..",
            "[[[[",
        ])
        .repair(sum)
        .run(use_it);
}
