//! An object, and how its bytes are read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use crc_fast::CrcAlgorithm;

use crate::checksum::{Crc, Kept, Sums};
use crate::pattern::Pattern;

/// An object as it is at one moment.
#[derive(Clone, Debug)]
pub struct Version {
    pub(crate) content: Content,
    pub(crate) size: u64,
    pub(crate) etag: String,
    pub(crate) modified: SystemTime,
    /// CRC-64/NVME, as S3 stores it for every upload nowadays, or what was asked for. Objects from files have none.
    pub(crate) sums: Option<Sums>,
    /// Of an object in an archive, which cannot be read.
    pub(crate) archive: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    Memory(Bytes),
    File(PathBuf),
    Pattern(Pattern),
}

impl Version {
    pub(crate) fn of_memory(content: Bytes) -> Self {
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &content);
        Self {
            size: content.len() as u64,
            etag: format!("{crc:016x}{:016x}", content.len()),
            modified: SystemTime::now(),
            sums: Sums::of(&content, Kept::Whole(Crc::Crc64Nvme)),
            content: Content::Memory(content),
            archive: None,
        }
    }

    pub(crate) fn of_file(path: PathBuf, metadata: &std::fs::Metadata) -> io::Result<Self> {
        let modified = metadata.modified()?;
        let since = modified
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Self {
            size: metadata.len(),
            etag: format!("{:x}-{:x}", since.as_nanos(), metadata.len()),
            modified,
            sums: None,
            archive: None,
            content: Content::File(path),
        })
    }

    /// A reader of the content.
    pub(crate) fn open(&self) -> io::Result<Reader> {
        Ok(match &self.content {
            Content::Memory(bytes) => Reader::Memory(bytes.clone()),
            Content::File(path) => Reader::File(File::open(path)?),
            Content::Pattern(pattern) => Reader::Pattern(*pattern),
        })
    }
}

/// An open object.
pub(crate) enum Reader {
    Memory(Bytes),
    File(File),
    Pattern(Pattern),
}

impl Reader {
    /// The bytes of `range`, which lies within the object.
    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Self::File(file) => {
                let mut buffer = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut buffer, range.start)?;
                Ok(buffer.into())
            }
            Self::Pattern(pattern) => Ok(pattern.bytes(range)),
        }
    }
}
