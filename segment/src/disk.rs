//! What the store asks of a disk, behind a trait, so that a test can make a write stop at any byte.
//!
//! Files are opened for direct I/O where the file system takes it, because the kernel caches the mount's pages
//! already and a second copy of the blocks below it would only push them out. Where it is refused (some tmpfs and
//! network file systems) I/O is buffered, and the pages are given back at once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, OFlags};

/// A segment file as it was opened.
#[derive(Debug)]
pub struct OpenFile {
    /// The descriptor.
    pub file: File,
    /// True if it does direct I/O: offsets, lengths and memory must be aligned to 4,096 bytes.
    pub direct: bool,
}

/// The operations on files that a store performs. Each may fail as the system call it stands for.
pub trait Disk: Send + Sync + 'static {
    /// Creates a file that must not exist yet, for writing.
    fn create(&self, path: &Path) -> io::Result<OpenFile>;
    /// Opens a file for reading only.
    fn open_read(&self, path: &Path) -> io::Result<OpenFile>;
    /// Opens a file for writing.
    fn open_write(&self, path: &Path) -> io::Result<OpenFile>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, file: &OpenFile, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reads into `buffer` from `offset`; returns how many bytes, fewer than asked at the end of the file.
    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Cuts a file to `len` bytes.
    fn truncate(&self, file: &OpenFile, len: u64) -> io::Result<()>;
    /// Appends to a small side file, creating it if needed.
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Deletes a file; one that is gone already counts as deleted.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The machine's own disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalDisk;

impl LocalDisk {
    fn open(options: &mut OpenOptions, path: &Path) -> io::Result<OpenFile> {
        let direct = options
            .clone()
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(path);
        match direct {
            Ok(file) => Ok(OpenFile { file, direct: true }),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                // Creating may have left the file behind although the flag was refused.
                let file = options.create_new(false).open(path).or_else(|e| {
                    if e.kind() == io::ErrorKind::NotFound {
                        options.create(true).open(path)
                    } else {
                        Err(e)
                    }
                })?;
                Ok(OpenFile {
                    file,
                    direct: false,
                })
            }
            Err(e) => Err(e),
        }
    }
}

impl Disk for LocalDisk {
    fn create(&self, path: &Path) -> io::Result<OpenFile> {
        Self::open(
            OpenOptions::new().write(true).create_new(true).mode(0o600),
            path,
        )
    }

    fn open_read(&self, path: &Path) -> io::Result<OpenFile> {
        Self::open(OpenOptions::new().read(true), path)
    }

    fn open_write(&self, path: &Path) -> io::Result<OpenFile> {
        Self::open(OpenOptions::new().write(true), path)
    }

    fn write_at(&self, file: &OpenFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.file.write_all_at(bytes, offset)?;
        if !file.direct {
            give_back_pages(&file.file, offset, bytes.len());
        }
        Ok(())
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match file.read_at(buffer, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn truncate(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        file.file.set_len(len)
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?
            .write_all(bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Tells the kernel that these pages are not needed again; it may not listen, and nothing depends on it.
pub(super) fn give_back_pages(file: &File, offset: u64, len: usize) {
    let len = std::num::NonZeroU64::new(len as u64);
    let _ = rustix::fs::fadvise(file, offset, len, Advice::DontNeed);
}
