//! Manifests against a plain map of paths.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use weir_core::manifest::{MAX_KEPT_LEFT_OUT, Mount, ROOT};
use weir_core::{EntryKind, LeftOut, Manifest, ManifestBuilder, OriginId, SnapshotId};

fn snapshot(version: u64) -> SnapshotId {
    SnapshotId {
        dataset: "set".parse().unwrap(),
        version,
    }
}

fn mount(prefix: &str, path: &str) -> Mount {
    Mount {
        origin: OriginId::of_location("s3://bucket"),
        spec: "{}".into(),
        prefix: prefix.into(),
        path: path.into(),
    }
}

fn build(keys: &[(&str, u64, &str)], previous: Option<&Manifest>) -> Manifest {
    let mut builder = ManifestBuilder::new();
    let number = builder.add_mount(mount("p/", "")).unwrap();
    for (key, size, version) in keys {
        builder
            .add(number, format!("p/{key}").as_bytes(), *size, 5, version)
            .unwrap();
    }
    let version = previous.map_or(1, |m| m.summary().snapshot.version + 1);
    builder.build(snapshot(version), 0, previous).unwrap()
}

#[test]
fn a_file_gives_back_the_key_and_version_it_was_listed_with() {
    let etag = "0123456789abcdef0123456789abcdef";
    let manifest = build(&[("a/b/c.bin", 9, etag), ("top", 0, "abc-12")], None);
    let index = manifest.resolve("/a/b/c.bin").unwrap();
    let object = manifest.object(index);
    assert_eq!(&*object.key, "p/a/b/c.bin");
    assert_eq!((object.size, &*object.version), (9, etag));
    assert_eq!(manifest.path(index), "a/b/c.bin");
    let top = manifest.resolve("top").unwrap();
    assert_eq!(&*manifest.object(top).version, "abc-12");
    assert_eq!(manifest.blocks(top).count(), 0);
    assert_eq!(manifest.blocks(index).count(), 1);
}

#[test]
fn a_key_that_is_also_a_prefix_is_shadowed_and_counted() {
    let manifest = build(&[("a", 3, "v"), ("a/b", 4, "v"), ("x//y", 1, "v")], None);
    let a = manifest.resolve("a").unwrap();
    assert_eq!(manifest.entry(a).kind, EntryKind::Directory);
    assert!(manifest.resolve("a/b").is_some());
    let left_out = &manifest.summary().left_out;
    assert_eq!(left_out["shadowed_by_directory"], 1);
    assert_eq!(left_out["empty_component"], 1);
    assert_eq!(manifest.summary().left_out_examples.len(), 2);
    assert_eq!(manifest.summary().files, 1);
}

#[test]
fn mounts_appear_at_their_paths_and_the_first_wins_a_clash() {
    let mut builder = ManifestBuilder::new();
    let a = builder.add_mount(mount("", "train")).unwrap();
    let b = builder.add_mount(mount("more/", "/train/")).unwrap();
    builder.add(a, b"x", 1, 0, "first").unwrap();
    builder.add(b, b"more/x", 2, 0, "second").unwrap();
    builder.add(b, b"more/y", 2, 0, "second").unwrap();
    builder.add(b, b"moreover", 2, 0, "second").unwrap();
    let manifest = builder.build(snapshot(1), 0, None).unwrap();
    let x = manifest.resolve("train/x").unwrap();
    assert_eq!(&*manifest.object(x).version, "first");
    let y = manifest.resolve("train/y").unwrap();
    assert_eq!(&*manifest.object(y).key, "more/y");
    assert_eq!(manifest.summary().left_out["shadowed_by_mount"], 1);
    assert_eq!(manifest.summary().files, 2);
}

#[test]
fn a_key_that_is_listed_twice_is_the_newer_one_in_either_order() {
    for [first, second] in [
        [("old", 1), ("new", 2)],
        [("new", 2), ("old", 1)],
        [("old", 1), ("new", 1)],
    ] {
        let mut builder = ManifestBuilder::new();
        let number = builder.add_mount(mount("", "")).unwrap();
        for (version, time) in [first, second] {
            builder.add(number, b"k", 3, time, version).unwrap();
        }
        let manifest = builder.build(snapshot(1), 0, None).unwrap();
        let object = manifest.object(manifest.resolve("k").unwrap());
        assert_eq!(&*object.version, "new");
        let left_out = &manifest.summary().left_out;
        assert_eq!(left_out.get("listed_twice"), Some(&1));
        assert_eq!(left_out.len(), 1, "{left_out:?}");
    }
}

#[test]
fn a_directory_shows_its_newest_entry_or_the_date_of_its_marker() {
    let mut builder = ManifestBuilder::new();
    let number = builder.add_mount(mount("", "")).unwrap();
    builder.add(number, b"empty/", 0, 7, "v").unwrap();
    builder.add(number, b"a/b/c/old", 1, 3, "v").unwrap();
    builder.add(number, b"a/b/new", 1, 5, "v").unwrap();
    builder.add(number, b"a/b/", 0, 9, "v").unwrap();
    let manifest = builder.build(snapshot(1), 0, None).unwrap();
    let date = |path: &str| manifest.entry(manifest.resolve(path).unwrap()).mtime_ns;
    assert_eq!((date("empty"), date("a/b/c")), (7, 3));
    assert_eq!((date("a/b"), date("a"), date("")), (5, 5, 7));
}

#[test]
fn unchanged_entries_keep_their_inode_over_a_refresh_and_changed_ones_never_reuse_one() {
    let first = build(&[("a/1", 1, "v"), ("a/2", 1, "v"), ("b", 1, "v")], None);
    let second = build(
        &[("0", 1, "v"), ("a/1", 1, "v"), ("a/2", 1, "w")],
        Some(&first),
    );
    let inode = |m: &Manifest, path: &str| m.inode(m.resolve(path).unwrap());
    assert_eq!(inode(&first, "a/1"), inode(&second, "a/1"));
    assert_eq!(inode(&first, "a"), inode(&second, "a"));
    assert_eq!(second.inode(ROOT), 1);
    for path in ["a/2", "0"] {
        let fresh = inode(&second, path);
        assert!(fresh >= first.summary().next_inode, "{path}");
        assert_eq!(second.by_inode(fresh), second.resolve(path));
    }
    assert_eq!(second.by_inode(inode(&first, "b")), None);
    assert_eq!(second.by_inode(0), None);
    assert_ne!(first.summary().digest, second.summary().digest);
    let third = build(
        &[("0", 1, "v"), ("a/1", 1, "v"), ("a/2", 1, "w")],
        Some(&second),
    );
    assert_eq!(third.summary().digest, second.summary().digest);
}

#[test]
fn a_damaged_manifest_is_refused() {
    let bytes = build(&[("a/1", 1, "v"), ("b", 1, "v")], None)
        .as_bytes()
        .to_vec();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(
            Manifest::from_bytes(Bytes::from(damaged)).is_err(),
            "byte {at}"
        );
        let cut = Bytes::from(bytes[..at].to_vec());
        assert!(Manifest::from_bytes(cut).is_err(), "cut at {at}");
    }
    assert!(Manifest::from_bytes(Bytes::from(bytes)).is_ok());
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]{1,2}", "[.]{1,3}", "é|日| |", Just("x".repeat(255))]
}

proptest! {
    #[test]
    fn every_key_is_served_at_its_path_or_counted(keys in proptest::collection::btree_map(
        proptest::collection::vec(name(), 1..4).prop_map(|names| names.join("/")), 0u64..10_000_000, 0..30)) {
        let listed: Vec<(&str, u64, &str)> =
            keys.iter().map(|(key, size)| (key.as_str(), *size, "v")).collect();
        let manifest = build(&listed, None);
        let reread = Manifest::from_bytes(manifest.as_bytes().clone()).unwrap();
        let served: BTreeMap<String, u64> = reread
            .files_below(ROOT)
            .map(|index| (reread.path(index), reread.entry(index).size))
            .collect();
        let left_out: u64 = reread.summary().left_out.values().sum();
        // Markers make directories and hide nothing.
        let markers = keys
            .iter()
            .filter(|(key, size)| **size == 0 && (key.ends_with('/') || key.is_empty()))
            .filter(|(key, _)| !served.contains_key(key.trim_end_matches('/')))
            .count() as u64;
        prop_assert!(served.len() as u64 + left_out <= keys.len() as u64);
        prop_assert!(served.len() as u64 + left_out + markers >= keys.len() as u64);
        for (path, size) in &served {
            prop_assert_eq!(keys.get(path), Some(size));
            let index = reread.resolve(path).unwrap();
            let object = reread.object(index);
            prop_assert_eq!(object.key.as_ref(), format!("p/{}", path));
            prop_assert_eq!(reread.by_inode(reread.inode(index)), Some(index));
        }
        for directory in 0..reread.len() {
            let names: Vec<&str> = reread.children(directory).map(|c| reread.entry(c).name).collect();
            prop_assert!(names.is_sorted_by(|a, b| a < b));
        }
    }
}

#[test]
fn the_first_objects_left_out_for_each_reason_are_told_with_their_keys() {
    let mut builder = ManifestBuilder::new();
    let a = builder.add_mount(mount("", "train")).unwrap();
    let b = builder.add_mount(mount("more/", "/train/x/")).unwrap();
    builder.add(a, b"x/deep/file", 1, 0, "first").unwrap();
    builder.add(b, b"more/deep/file", 2, 0, "second").unwrap();
    builder.add(b, b"more/deep", 2, 0, "second").unwrap();
    let many = MAX_KEPT_LEFT_OUT + 10;
    for number in 0..many {
        let key = format!("x//{number}");
        builder.add(a, key.as_bytes(), 1, 0, "v").unwrap();
    }
    builder.leave_out(LeftOut::NotUtf8, b"\xff");
    let (manifest, left_out) = builder.build_telling(snapshot(1), 0, None).unwrap();
    assert_eq!(manifest.summary().left_out["empty_component"], many);
    let keys = |reason: LeftOut| -> Vec<&[u8]> {
        let of = left_out.iter().filter(|object| object.reason == reason);
        of.map(|object| &*object.key).collect()
    };
    assert_eq!(keys(LeftOut::ShadowedByMount), [b"more/deep/file"]);
    assert_eq!(keys(LeftOut::ShadowedByDirectory), [b"more/deep"]);
    assert_eq!(keys(LeftOut::NotUtf8), [b"\xff"]);
    let empty = keys(LeftOut::EmptyComponent);
    assert_eq!(empty.len() as u64, MAX_KEPT_LEFT_OUT);
    assert_eq!(empty[0], b"x//0");
}

#[test]
fn long_keys_of_objects_that_are_left_out_are_counted_and_not_all_kept() {
    let mut builder = ManifestBuilder::new();
    let long = vec![b'x'; 1 << 20];
    for reason in LeftOut::ALL {
        builder.leave_out(reason, &long);
    }
    let (manifest, left_out) = builder.build_telling(snapshot(1), 0, None).unwrap();
    assert_eq!(manifest.summary().left_out.len(), LeftOut::ALL.len());
    assert_eq!(left_out.len(), 4);
}
