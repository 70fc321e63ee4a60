//! A disk for tests: its writes stop at a chosen byte, or fail, when a test says so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::disk::{Disk, LocalDisk, OpenFile};

/// How what a dying write did not get to looks afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Torn {
    /// The file ends there.
    Short,
    /// The file has its full length, with zeros.
    Zeros,
}

#[derive(Debug, Default)]
struct Faults {
    dies_after: Option<(u64, Torn)>,
    dead: bool,
    write_error: Option<Errno>,
    read_error: Option<Errno>,
}

/// The local disk without direct I/O, so that a write can end at any byte.
#[derive(Debug, Default)]
pub(super) struct FaultyDisk {
    faults: Mutex<Faults>,
    read: AtomicU64,
}

impl FaultyDisk {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Lets `bytes` more be written; then nothing changes the disk any more, as if the process had died there.
    pub(super) fn die_after(&self, bytes: u64, torn: Torn) {
        self.faults.lock().dies_after = Some((bytes, torn));
    }

    /// Every write puts half of its bytes down and then fails.
    pub(super) fn fail_writes(&self, error: Option<Errno>) {
        self.faults.lock().write_error = error;
    }

    /// Every read fails.
    pub(super) fn fail_reads(&self, error: Option<Errno>) {
        self.faults.lock().read_error = error;
    }

    /// Bytes read since the last call.
    pub(super) fn take_read(&self) -> u64 {
        self.read.swap(0, Relaxed)
    }

    fn alive(&self) -> io::Result<()> {
        if self.faults.lock().dead {
            return Err(Errno::IO.into());
        }
        Ok(())
    }

    fn open(options: &mut OpenOptions, path: &Path) -> io::Result<OpenFile> {
        let file = options.open(path)?;
        Ok(OpenFile {
            file,
            direct: false,
        })
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<OpenFile> {
        self.alive()?;
        Self::open(OpenOptions::new().write(true).create_new(true), path)
    }

    fn open_read(&self, path: &Path) -> io::Result<OpenFile> {
        Self::open(OpenOptions::new().read(true), path)
    }

    fn open_write(&self, path: &Path) -> io::Result<OpenFile> {
        self.alive()?;
        Self::open(OpenOptions::new().write(true), path)
    }

    fn write_at(&self, file: &OpenFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.alive()?;
        let mut faults = self.faults.lock();
        if let Some(error) = faults.write_error {
            file.file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(error.into());
        }
        if let Some((left, torn)) = faults.dies_after {
            let len = bytes.len() as u64;
            if left < len {
                file.file.write_all_at(&bytes[..left as usize], offset)?;
                if torn == Torn::Zeros {
                    let end = file.file.metadata()?.len().max(offset + len);
                    file.file.set_len(end)?;
                }
                faults.dead = true;
                return Err(Errno::IO.into());
            }
            faults.dies_after = Some((left - len, torn));
        }
        file.file.write_all_at(bytes, offset)
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(error) = self.faults.lock().read_error {
            return Err(error.into());
        }
        let read = LocalDisk.read_at(file, buffer, offset)?;
        self.read.fetch_add(read as u64, Relaxed);
        Ok(read)
    }

    fn truncate(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        self.alive()?;
        LocalDisk.truncate(file, len)
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.alive()?;
        LocalDisk.append(path, bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        LocalDisk.remove(path)
    }
}
