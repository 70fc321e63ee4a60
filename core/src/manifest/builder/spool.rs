//! Bytes that are kept in memory while they are few and in an unnamed file when they are many.
//!
//! A file has no name from its making on, so a crash leaves nothing behind, and nobody but its owner could open it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use super::{BuildError, format};
use crate::manifest::mapped::MAPPED_FROM;

/// Bytes that a reader takes from a spool at once.
const READ_BYTES: usize = 128 << 10;

/// Where to keep what does not fit into memory, and how much fits.
#[derive(Clone, Debug)]
pub(super) struct Scratch {
    /// The directory of the files, which is made if it is missing; without one everything stays in memory.
    pub(super) dir: Option<Arc<Path>>,
    /// Bytes of records that are sorted at once.
    pub(super) run_bytes: usize,
    /// Bytes that each spool keeps in memory.
    pub(super) spool_bytes: usize,
    /// Runs that are merged at once: each has an open file.
    pub(super) fan_in: usize,
    /// Length from which a manifest is mapped from its file instead of being held in memory.
    pub(super) mapped_from: usize,
}

impl Scratch {
    /// Everything in memory.
    pub(super) fn memory() -> Self {
        Self {
            dir: None,
            run_bytes: 64 << 20,
            spool_bytes: 4 << 20,
            fan_in: 64,
            mapped_from: MAPPED_FROM,
        }
    }

    /// Unnamed files in `dir` for all that is more than the limits.
    pub(super) fn directory(dir: &Path) -> Self {
        Self {
            dir: Some(dir.into()),
            ..Self::memory()
        }
    }

    /// A new unnamed file.
    pub(super) fn file(&self) -> Result<File, BuildError> {
        let Some(dir) = self.dir.as_deref() else {
            return Err(self.failed(&io::ErrorKind::Unsupported.into()));
        };
        let file = match unnamed(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir(dir).and_then(|()| unnamed(dir))
            }
            file => file,
        };
        file.map_err(|error| self.failed(&error))
    }

    pub(super) fn failed(&self, error: &io::Error) -> BuildError {
        self.broken(error.to_string())
    }

    /// What was read back is not what was written.
    pub(super) fn damaged(&self) -> BuildError {
        self.broken("a temporary file was read back damaged".to_owned())
    }

    fn broken(&self, reason: String) -> BuildError {
        let dir = self.dir.as_deref().unwrap_or(Path::new(""));
        BuildError::Scratch {
            dir: dir.display().to_string(),
            reason,
        }
    }
}

/// A file without a name in `dir`, for its owner alone.
fn unnamed(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let unnamed = options
        .clone()
        .custom_flags(OFlags::TMPFILE.bits().cast_signed())
        .open(dir);
    match unnamed.as_ref().map_err(io::Error::raw_os_error) {
        Err(Some(code)) if UNKNOWN.contains(&code) => {}
        _ => return unnamed,
    }
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".listing-{}-{number}", std::process::id()));
        match options.clone().create_new(true).open(&path) {
            // Of a process that had this number and crashed before it removed it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            file => {
                let file = file?;
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
        }
    }
}

/// Of the next file that needs a name for a moment.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// What file systems answer that know no files without names.
const UNKNOWN: [i32; 3] = [
    rustix::io::Errno::OPNOTSUPP.raw_os_error(),
    rustix::io::Errno::ISDIR.raw_os_error(),
    rustix::io::Errno::INVAL.raw_os_error(),
];

/// A growing row of bytes.
#[derive(Debug)]
pub(super) struct Spool {
    scratch: Scratch,
    file: Option<File>,
    /// Bytes in the file.
    filed: u64,
    /// What comes behind them.
    memory: Vec<u8>,
}

impl Spool {
    pub(super) fn new(scratch: &Scratch) -> Self {
        Self {
            scratch: scratch.clone(),
            file: None,
            filed: 0,
            memory: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.filed + self.memory.len() as u64
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() >= self.scratch.spool_bytes && self.scratch.dir.is_some() {
            self.flush()?;
        }
        Ok(())
    }

    /// Moves all bytes to the file.
    pub(super) fn flush(&mut self) -> Result<(), BuildError> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.scratch.file()?),
        };
        file.write_all_at(&self.memory, self.filed)
            .map_err(|error| self.scratch.failed(&error))?;
        self.filed += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// Forgets all bytes, and keeps the file.
    fn clear(&mut self) {
        self.filed = 0;
        self.memory.clear();
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), BuildError> {
        let filed = self.filed.saturating_sub(offset);
        let (front, back) = buffer.split_at_mut(filed.min(buffer.len() as u64) as usize);
        if let (Some(file), false) = (&self.file, front.is_empty()) {
            file.read_exact_at(front, offset)
                .map_err(|error| self.scratch.failed(&error))?;
        }
        let start = (offset + front.len() as u64).saturating_sub(self.filed) as usize;
        let rest = self.memory.get(start..start + back.len());
        back.copy_from_slice(rest.ok_or_else(|| self.scratch.damaged())?);
        Ok(())
    }

    /// Puts bytes in the place of others.
    pub(super) fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), BuildError> {
        let filed = self.filed.saturating_sub(offset);
        let (front, back) = bytes.split_at(filed.min(bytes.len() as u64) as usize);
        if let (Some(file), false) = (&self.file, front.is_empty()) {
            file.write_all_at(front, offset)
                .map_err(|error| self.scratch.failed(&error))?;
        }
        let start = (offset + front.len() as u64).saturating_sub(self.filed) as usize;
        let damaged = self.scratch.damaged();
        let place = self.memory.get_mut(start..start + back.len());
        place.ok_or(damaged)?.copy_from_slice(back);
        Ok(())
    }

    /// Gives all bytes in order, a part at a time.
    pub(super) fn each(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        let mut buffer = vec![0; (self.filed as usize).min(1 << 20)];
        let mut at = 0;
        while at < self.filed {
            let part = &mut buffer[..((self.filed - at) as usize).min(1 << 20)];
            self.read_at(part, at)?;
            take(part)?;
            at += part.len() as u64;
        }
        take(&self.memory)
    }

    /// Keeps all bytes in memory; there will be `length`.
    pub(super) fn stay_in_memory(&mut self, length: usize) {
        self.scratch.dir = None;
        self.memory.reserve_exact(length);
    }

    /// All bytes as a file, or as they are in memory.
    pub(super) fn finish(mut self) -> Result<Finished, BuildError> {
        if self.scratch.dir.is_some() {
            self.flush()?;
        }
        Ok(match self.file {
            Some(file) => Finished::File(file),
            None => Finished::Memory(self.memory),
        })
    }
}

/// A spool to which nothing is added any more.
pub(super) enum Finished {
    Memory(Vec<u8>),
    File(File),
}

/// Reads a spool from the beginning.
#[derive(Debug, Default)]
pub(super) struct Reader {
    buffer: Vec<u8>,
    /// What of the buffer was given out.
    at: usize,
    /// Where the buffer ends in the spool.
    end: u64,
}

impl Reader {
    fn position(&self) -> u64 {
        self.end - (self.buffer.len() - self.at) as u64
    }

    /// The next `length` bytes; nothing at the end.
    fn take(&mut self, spool: &Spool, length: usize) -> Result<Option<&[u8]>, BuildError> {
        if self.buffer.len() - self.at < length {
            let position = self.position();
            let left = spool.len() - position;
            if left == 0 {
                return Ok(None);
            }
            if left < length as u64 {
                return Err(spool.scratch.damaged());
            }
            self.buffer
                .resize(length.max(READ_BYTES).min(left as usize), 0);
            spool.read_at(&mut self.buffer, position)?;
            self.end = position + self.buffer.len() as u64;
            self.at = 0;
        }
        let taken = &self.buffer[self.at..self.at + length];
        self.at += length;
        Ok(Some(taken))
    }

    /// The next record of those that [`append_record`] wrote, in the place of `record`'s content. False at the end.
    pub(super) fn next(&mut self, spool: &Spool, record: &mut Vec<u8>) -> Result<bool, BuildError> {
        let Some(length) = self.take(spool, 4)? else {
            return Ok(false);
        };
        let length = format::read_u32(length, 0) as usize;
        let bytes = self.take(spool, length)?;
        record.clear();
        record.extend_from_slice(bytes.unwrap_or_default());
        Ok(true)
    }
}

/// Appends a record that a [`Reader`] gives back. None is empty.
pub(super) fn append_record(spool: &mut Spool, record: &[u8]) -> Result<(), BuildError> {
    spool.append(&(record.len() as u32).to_le_bytes())?;
    spool.append(record)
}

/// Records that come out in the order in which they went in.
#[derive(Debug)]
pub(super) struct Queue {
    spool: Spool,
    reader: Reader,
}

impl Queue {
    pub(super) fn new(scratch: &Scratch) -> Self {
        Self {
            spool: Spool::new(scratch),
            reader: Reader::default(),
        }
    }

    pub(super) fn push(&mut self, record: &[u8]) -> Result<(), BuildError> {
        append_record(&mut self.spool, record)
    }

    /// Puts the oldest record into `record`. False if there is none.
    pub(super) fn pop(&mut self, record: &mut Vec<u8>) -> Result<bool, BuildError> {
        let some = self.reader.next(&self.spool, record)?;
        if !some {
            self.spool.clear();
            self.reader = Reader::default();
        }
        Ok(some)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn small(dir: &Path) -> Scratch {
        Scratch {
            spool_bytes: 16,
            ..Scratch::directory(dir)
        }
    }

    proptest! {
        #[test]
        fn a_queue_is_a_queue_on_disk_too(steps in proptest::collection::vec(
            proptest::option::weighted(0.6, proptest::collection::vec(any::<u8>(), 1..40)), 0..200)) {
            let dir = std::env::temp_dir();
            for scratch in [Scratch::memory(), small(&dir)] {
                let mut queue = Queue::new(&scratch);
                let mut model = std::collections::VecDeque::new();
                let mut popped = Vec::new();
                for step in &steps {
                    if let Some(record) = step {
                        queue.push(record).unwrap();
                        model.push_back(record.clone());
                    } else {
                        let some = queue.pop(&mut popped).unwrap();
                        prop_assert_eq!(some.then(|| popped.clone()), model.pop_front());
                    }
                }
            }
        }

        #[test]
        fn a_spool_gives_back_what_was_written_and_changed(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 1..20),
            at in any::<proptest::sample::Index>(), new in proptest::collection::vec(any::<u8>(), 1..20)) {
            let dir = std::env::temp_dir();
            for scratch in [Scratch::memory(), small(&dir)] {
                let mut spool = Spool::new(&scratch);
                for part in &parts {
                    spool.append(part).unwrap();
                }
                let mut model = parts.concat();
                prop_assert_eq!(spool.len(), model.len() as u64);
                if model.len() >= new.len() {
                    let at = at.index(model.len() - new.len() + 1);
                    spool.write_at(&new, at as u64).unwrap();
                    model[at..at + new.len()].copy_from_slice(&new);
                    let mut read = vec![0; new.len()];
                    spool.read_at(&mut read, at as u64).unwrap();
                    prop_assert_eq!(&read, &new);
                }
                let mut all = Vec::new();
                spool.each(|part| { all.extend_from_slice(part); Ok(()) }).unwrap();
                prop_assert_eq!(all, model);
            }
        }
    }
}
