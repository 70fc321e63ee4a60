//! What a directory of segments still holds when it is opened.
//!
//! A sealed segment tells it by its footer. One that was being written when its process died, or whose footer is
//! damaged, is told by its journal and from there on is walked header by header. Where a header is damaged the walk goes on
//! at the next one: a header tells where in which segment it is, so that no bytes of a block pass for one. The records of
//! what may have been the last write are verified, since that write may not have finished. The segment is then sealed, so
//! it is walked only once. A file of a later version, as after an upgrade that was taken back, is left as it is, and takes its room of
//! the capacity: the later version uses it again. No length is believed before it was checked against the file's and against the longest block.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::aligned::{AlignedBuf, BufferPool, PAGE, page_ceil, page_floor};
use super::appender::WRITE_MAX;
use super::disk::Disk;
use super::error::SegmentError;
use super::file::{self, EXTENSION, Segment, id_of};
use super::footer;
use super::journal;
use super::location::BlockLocation;
use super::record::{self, HEAD_MAX, Record, UNIT};
use super::removed;

/// Segments that are recovered at the same time.
const THREADS: usize = 4;

/// Bytes that a walk reads at once where records are short.
const WINDOW: u64 = 128 << 10;

/// A segment as it was found.
#[derive(Debug)]
pub(super) struct FoundSegment {
    pub(super) segment: Segment,
    /// In the order of the file.
    pub(super) records: Vec<Record>,
    /// Starts, in record units, of the records that are not to come back.
    pub(super) removed: HashSet<u32>,
}

/// What was found in a directory.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// Oldest first.
    pub(super) segments: Vec<FoundSegment>,
    pub(super) next_id: u64,
    pub(super) torn_records: u64,
    pub(super) lost_segments: u64,
    /// Files of a later version, and their bytes.
    pub(super) newer_segments: u64,
    pub(super) newer_bytes: u64,
}

/// What became of one file.
enum Outcome {
    Found(FoundSegment, u64),
    /// Nothing in it could be used, and it was deleted.
    Useless {
        was_empty: bool,
        torn: u64,
    },
    /// A later version has written it.
    Newer {
        bytes: u64,
    },
}

/// Reads all segments of `dir`, seals those that are not, and deletes files that hold nothing.
///
/// # Errors
/// [`SegmentError::Io`] if the directory cannot be listed or a segment cannot be opened. Damage inside a file is
/// not an error.
pub(super) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    now: Duration,
    pool: &Arc<BufferPool>,
) -> Result<Recovered, SegmentError> {
    let files = list(disk, dir)?;
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(files.len()));
    thread::scope(|scope| {
        for _ in 0..THREADS.min(files.len()) {
            scope.spawn(|| {
                while let Some((id, path)) = files.get(next.fetch_add(1, Relaxed)) {
                    let outcome = recover_file(disk, *id, path, now, pool);
                    outcomes.lock().push(outcome);
                }
            });
        }
    });
    let mut recovered = Recovered {
        next_id: file::next_id(files.last().map_or(0, |(id, _)| *id)),
        ..Recovered::default()
    };
    for outcome in outcomes.into_inner() {
        match outcome? {
            Outcome::Found(found, torn) => {
                recovered.torn_records += torn;
                recovered.segments.push(found);
            }
            Outcome::Useless { was_empty, torn } => {
                recovered.torn_records += torn;
                recovered.lost_segments += u64::from(!was_empty && torn == 0);
            }
            Outcome::Newer { bytes } => {
                recovered.newer_segments += 1;
                recovered.newer_bytes += page_ceil(bytes);
            }
        }
    }
    recovered.segments.sort_by_key(|f| f.segment.id);
    Ok(recovered)
}

/// The segment files of a directory, oldest first. Side files without their segment are deleted.
fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<(u64, PathBuf)>, SegmentError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(SegmentError::cannot("list", dir))? {
        let path = entry.map_err(SegmentError::cannot("list", dir))?.path();
        if let Some(id) = id_of(&path) {
            files.push((id, path));
        } else if path
            .extension()
            .is_some_and(|e| e == removed::EXTENSION || e == journal::EXTENSION)
            && !path.with_extension(EXTENSION).exists()
        {
            disk.remove(&path)
                .map_err(SegmentError::cannot("delete", &path))?;
        }
    }
    files.sort();
    Ok(files)
}

fn recover_file(
    disk: &dyn Disk,
    id: u64,
    path: &Path,
    now: Duration,
    pool: &Arc<BufferPool>,
) -> Result<Outcome, SegmentError> {
    let opened = disk
        .open_read(path)
        .map_err(SegmentError::cannot("open", path))?;
    let metadata = opened
        .file
        .metadata()
        .map_err(SegmentError::cannot("examine", path))?;
    let (file, direct) = (Arc::new(opened.file), opened.direct);
    // A device that cannot read a footer may still read most of the headers.
    let table = footer::read(disk, &file, id, metadata.len()).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "cannot read the footer of a segment");
        None
    });
    let (records, torn, len) = if let Some(records) = table {
        (records, 0, metadata.len())
    } else {
        let mut records = journal::read(path, id, metadata.len());
        let known = records.len();
        let damaged = walk(disk, &file, id, metadata.len(), &mut records);
        // The journal names only writes that had finished.
        let walked = records.split_off(known);
        let walked_count = walked.len();
        records.extend(whole_records(disk, &file, direct, walked, pool));
        let torn = (known + walked_count - records.len()) as u64 + damaged;
        if records.is_empty() && is_newer(disk, &file, id) {
            let bytes = metadata.len();
            return Ok(Outcome::Newer { bytes });
        }
        let len = seal(disk, path, id, &records).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "cannot seal a recovered segment");
            metadata.len()
        });
        (records, torn, len)
    };
    if records.is_empty() {
        for path in [path, &removed::path_of(path), &journal::path_of(path)] {
            disk.remove(path)
                .map_err(SegmentError::cannot("delete", path))?;
        }
        let was_empty = metadata.len() == 0;
        return Ok(Outcome::Useless { was_empty, torn });
    }
    let segment = Segment::new(id, path.to_owned(), file, direct, &metadata, now);
    segment.charged.store(page_ceil(len), Relaxed);
    segment.written_len.store(len, Relaxed);
    segment.sealed.store(true, Relaxed);
    let found = FoundSegment {
        segment,
        records,
        removed: removed::read(path, id),
    };
    Ok(Outcome::Found(found, torn))
}

/// Whether the first record of a segment is of a later version.
fn is_newer(disk: &dyn Disk, file: &File, id: u64) -> bool {
    let mut page = AlignedBuf::zeroed(PAGE as usize);
    let read = disk.read_at(file, page.bytes_mut(), 0);
    read.is_ok_and(|read| record::is_newer(&page.bytes()[..read], id))
}

/// Finds the records behind those in `records` by their headers, each of which says where the next may be. Gives in how many
/// places a damaged header had to be passed over.
fn walk(disk: &dyn Disk, file: &File, id: u64, file_len: u64, records: &mut Vec<Record>) -> u64 {
    let mut window = Window {
        disk,
        file,
        start: 0,
        filled: 0,
        buffer: AlignedBuf::zeroed((WINDOW + 2 * PAGE) as usize),
    };
    let mut at = records.last().map_or(0, Record::end);
    let (mut lost, mut damaged) = (false, 0);
    while at + UNIT <= file_len {
        let sparse = !lost
            && records
                .last()
                .is_some_and(|r| u64::from(r.len) > WINDOW / 4);
        let Ok(header) = window.bytes(at, HEAD_MAX as usize, sparse) else {
            break;
        };
        match record::decode(header, id, at) {
            Some(record) if record.data_end() <= file_len => {
                damaged += u64::from(std::mem::take(&mut lost));
                at = record.end();
                records.push(record);
            }
            // The zeros that fill up a batch's last page.
            None if !at.is_multiple_of(PAGE)
                && header.iter().take(UNIT as usize).all(|b| *b == 0) =>
            {
                at = page_ceil(at);
            }
            _ => {
                lost = true;
                at += UNIT;
            }
        }
    }
    damaged
}

/// Those of a segment's last records that were written whole: verifies all that may belong to the last write.
fn whole_records(
    disk: &dyn Disk,
    file: &Arc<File>,
    direct: bool,
    mut records: Vec<Record>,
    pool: &Arc<BufferPool>,
) -> Vec<Record> {
    let end = records.last().map_or(0, Record::end);
    records.retain(|record| {
        let location = || BlockLocation {
            file: Arc::clone(file),
            direct,
            offset: record.data_start(),
            len: record.len,
            checksums: record.sums.clone(),
            page_checksums_at: None,
        };
        let read = || location().read_through(disk, 0..record.len, pool);
        record.start() + WRITE_MAX < end || read().is_ok()
    });
    records
}

/// Cuts off what follows the last record and writes the footer; returns the file's length then.
fn seal(disk: &dyn Disk, path: &Path, id: u64, records: &[Record]) -> io::Result<u64> {
    let end = page_ceil(records.last().map_or(0, Record::end));
    let mut table = Vec::new();
    for record in records {
        footer::push_entry(&mut table, record);
    }
    let footer = footer::encode(id, end, records.len() as u32, &table);
    let writer = disk.open_write(path)?;
    disk.truncate(&writer, end)?;
    disk.write_at(&writer, footer.bytes(), end)?;
    // Best effort: beside a footer it is not read.
    let _ = disk.remove(&journal::path_of(path));
    Ok(end + footer.capacity() as u64)
}

/// The part of a file that a walk looks at.
struct Window<'a> {
    disk: &'a dyn Disk,
    file: &'a File,
    start: u64,
    filled: usize,
    buffer: AlignedBuf,
}

impl Window<'_> {
    /// Up to `want` bytes at `at`, fewer at the end of the file. A sparse walk reads no more than that.
    fn bytes(&mut self, at: u64, want: usize, sparse: bool) -> io::Result<&[u8]> {
        let end = self.start + self.filled as u64;
        if at < self.start || at + want as u64 > end {
            self.start = page_floor(at);
            let most = if sparse { PAGE } else { WINDOW };
            let len = page_ceil((at + want as u64 - self.start).max(most)) as usize;
            let space = &mut self.buffer.bytes_mut()[..len];
            self.filled = self.disk.read_at(self.file, space, self.start)?;
        }
        let from = ((at - self.start) as usize).min(self.filled);
        let to = (from + want).min(self.filled);
        Ok(&self.buffer.bytes()[from..to])
    }
}
