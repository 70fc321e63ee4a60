//! Segment files of any bytes: nothing panics, hangs or takes memory without bound, and no wrong byte is read.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::path::Path;

use weir_core::BlockKey;
use weir_fuzz::{Counting, Target};
use weir_segment::{SegmentConfig, SegmentStore};

#[global_allocator]
static COUNTING: Counting = Counting;

const CAPACITY: u64 = 128 << 20;
/// Lengths of the blocks in the files that are damaged.
const LENGTHS: [usize; 6] = [1, 100, 4096, 5000, 70_000, 3];
/// Bytes of a header before the checksums of its chunks, and of a footer's trailer.
const HEAD: usize = 44;
const TRAILER: usize = 64;

fn key(n: usize) -> BlockKey {
    BlockKey([n as u8 + 1; 16])
}

fn content(n: usize) -> Vec<u8> {
    (0..LENGTHS[n]).map(|at| (at * 7 + n) as u8).collect()
}

fn open(dir: &Path) -> SegmentStore {
    SegmentStore::open(SegmentConfig::new(dir, CAPACITY)).unwrap()
}

/// The only file in a directory with this ending, if there is one.
fn file(dir: &Path, ending: &str) -> Vec<u8> {
    let mut paths = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let path = paths.find(|path| path.extension().is_some_and(|e| e == ending));
    path.map_or_else(Vec::new, |path| std::fs::read(path).unwrap())
}

/// A journal and a segment, as one input: the journal's length stands before it.
fn input(dir: &Path) -> Vec<u8> {
    let (journal, segment) = (file(dir, "journal"), file(dir, "segment"));
    let length = (journal.len() as u16).to_le_bytes();
    [&length[..], &journal, &segment].concat()
}

/// Directories of a store that was closed, and of one whose process died.
fn seeds() -> [Vec<u8>; 2] {
    let (closed, dead) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(closed.path());
    for n in 0..LENGTHS.len() {
        store.put(key(n), &content(n)).unwrap();
    }
    drop(store);
    let store = open(dead.path());
    for n in 0..LENGTHS.len() {
        store.put(key(n), &content(n)).unwrap();
    }
    // Enough small ones for a journal.
    for n in 0..40 {
        store.put(BlockKey([n + 100; 16]), b"small").unwrap();
    }
    let seed = input(dead.path());
    [input(closed.path()), seed]
}

/// Opens a directory with these files, reads all that is found, and gives the number of blocks and of what was read.
fn recover(input: &[u8], known: bool) -> (usize, usize) {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    let dir = in_memory.or_else(|_| tempfile::tempdir()).unwrap();
    let (length, rest) = input.split_first_chunk::<2>().unwrap_or((&[0; 2], input));
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (journal, segment) = rest.split_at(length);
    // The number of the segment is in its headers.
    let number = segment.get(16..24).and_then(|id| id.try_into().ok());
    let number = number.map_or(1, u64::from_le_bytes);
    let path = dir.path().join(format!("{number:016x}.segment"));
    std::fs::write(&path, segment).unwrap();
    if !journal.is_empty() {
        std::fs::write(path.with_extension("journal"), journal).unwrap();
    }
    let store = open(dir.path());
    let mut found = Vec::new();
    store.for_each(|key, _| found.push(key));
    let mut read = 0;
    for block in &found {
        if let Some(bytes) = store.read(block, 0..u32::MAX).unwrap() {
            read += 1;
            let expected = (0..LENGTHS.len()).find(|n| key(*n) == *block);
            if known && let Some(n) = expected {
                assert!(bytes == content(n), "wrong bytes of block {n}");
            }
        }
    }
    // It can be used on.
    store.put(BlockKey([255; 16]), b"later").unwrap();
    (found.len(), read)
}

/// Makes the checksums of the first header and of the footer right.
fn sum(input: &mut [u8]) {
    let crc = |bytes: &[u8]| crc_fast::crc32_iscsi(bytes).to_le_bytes();
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map_or(0, u32::from_le_bytes) as usize
    };
    let Some((length, rest)) = input.split_first_chunk_mut::<2>() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let segment = &mut rest[length..];
    let chunks = word(segment, 40).min(64);
    if let Some(header) = segment.get(8..HEAD + 4 * chunks) {
        // Of what it says, and of its place.
        let (own, place) = (crc(header), crc(&[0; 4]));
        let sum = u32::from_le_bytes(own) ^ u32::from_le_bytes(place);
        segment[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    if let Some(trailer) = segment.len().checked_sub(TRAILER) {
        let (offset, table) = (word(segment, trailer + 24), word(segment, trailer + 32));
        if let Some(table) = segment.get(offset..offset.saturating_add(table)) {
            let sum = crc(table);
            segment[trailer + 40..trailer + 44].copy_from_slice(&sum);
        }
        let sum = crc(&segment[trailer..trailer + 44]);
        segment[trailer + 44..trailer + 48].copy_from_slice(&sum);
    }
}

#[test]
fn segments_of_any_bytes_give_right_bytes_or_none() {
    let mut target = Target::new("segment")
        .memory(64 << 20)
        .words(&["WBLK", "WEIRSEGM"]);
    for seed in seeds() {
        target = target.seed(seed);
    }
    target.run(|input| recover(input, true));
}

#[test]
fn segment_headers_of_any_content_with_right_checksums() {
    let mut target = Target::new("segment-header").memory(64 << 20).repair(sum);
    for seed in seeds() {
        target = target.seed(seed);
    }
    target.run(|input| recover(input, false));
}
