//! Which checksums the server keeps of an object.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;

/// A kind of checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crc {
    /// CRC-64/NVME, which S3 keeps of every upload nowadays.
    Crc64Nvme,
    /// CRC-32C.
    Crc32c,
    /// CRC-32.
    Crc32,
}

impl Crc {
    /// The checksum as the bytes that S3 encodes.
    fn bytes(self, data: &[u8]) -> Vec<u8> {
        let value = |algorithm| crc_fast::checksum(algorithm, data);
        match self {
            Self::Crc64Nvme => value(CrcAlgorithm::Crc64Nvme).to_be_bytes().to_vec(),
            Self::Crc32c => value(CrcAlgorithm::Crc32Iscsi).to_be_bytes()[4..].to_vec(),
            Self::Crc32 => value(CrcAlgorithm::Crc32IsoHdlc).to_be_bytes()[4..].to_vec(),
        }
    }
}

/// What is kept of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// No checksum.
    Nothing,
    /// One of all bytes.
    Whole(Crc),
    /// Those of parts of so many bytes, in which the object was uploaded.
    Parts(Crc, u64),
}

/// A checksum of an object, and of its parts if they have some.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sums {
    pub(crate) kind: Crc,
    /// In base64; that of several parts is the checksum of theirs, with their number.
    pub(crate) value: String,
    /// Length and checksum of each part; none of an object that has one of all bytes.
    pub(crate) parts: Vec<(u64, String)>,
}

impl Sums {
    pub(crate) fn of(content: &Bytes, kept: Kept) -> Option<Self> {
        match kept {
            Kept::Nothing => None,
            Kept::Whole(kind) => Some(Self {
                kind,
                value: STANDARD.encode(kind.bytes(content)),
                parts: Vec::new(),
            }),
            Kept::Parts(kind, length) => {
                let parts: Vec<_> = content.chunks(length as usize).collect();
                let sums: Vec<_> = parts.iter().map(|part| kind.bytes(part)).collect();
                let value = STANDARD.encode(kind.bytes(&sums.concat()));
                let lengths = parts.iter().map(|part| part.len() as u64);
                let sums = sums.iter().map(|sum| STANDARD.encode(sum));
                Some(Self {
                    kind,
                    value: format!("{value}-{}", parts.len()),
                    parts: lengths.zip(sums).collect(),
                })
            }
        }
    }

    /// The value where it is of this kind.
    pub(crate) fn value_of(sums: Option<&Self>, kind: Crc) -> Option<String> {
        let sums = sums.filter(|sums| sums.kind == kind)?;
        Some(sums.value.clone())
    }
}
