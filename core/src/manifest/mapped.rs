//! A manifest's file as memory, which the kernel can take back.
//!
//! Invariant: nobody changes or shortens a mapped file: a page behind its end would end the process. Manifests are written
//! to files without a name or to new ones, and only their names change afterwards. Files that others than this user and
//! root may write to are not mapped. A disk that fails under a mapped page ends the process, as one
//! that fails under its program does.
#![allow(unsafe_code)]

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};
use rustix::fs::{AtFlags, CWD};

/// Bytes from which a manifest's file is mapped: one of some 100,000 files.
pub(super) const MAPPED_FROM: usize = 8 << 20;

/// A whole file in memory.
#[derive(Clone, Debug)]
pub(super) struct Mapped(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    map: Mmap,
    file: File,
}

/// Whether nobody but this user and root may write to a file.
pub(super) fn is_private(metadata: &Metadata) -> bool {
    let owner = metadata.uid();
    let is_own = owner == 0 || owner == rustix::process::geteuid().as_raw();
    is_own && metadata.mode() & 0o022 == 0 && metadata.is_file()
}

impl Mapped {
    pub(super) fn new(file: File) -> io::Result<Self> {
        // SAFETY: nobody changes the file, see above.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self(Arc::new(Inner { map, file })))
    }

    /// Lets go of the pages that were read. They are read again from the file when somebody needs them.
    pub(super) fn release(&self) {
        // SAFETY: the map is shared with the file and only read, so the pages have the same content afterwards.
        // Without effect, the pages stay for as long as the kernel has room.
        let _ = unsafe { self.0.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.0.file
    }

    /// Gives a file that has no name yet one. Fails where it has or had another, and on file systems that cannot.
    pub(super) fn link(&self, path: &Path) -> io::Result<()> {
        let file = format!("/proc/self/fd/{}", self.0.file.as_raw_fd());
        rustix::fs::linkat(CWD, file, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
        Ok(())
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}
