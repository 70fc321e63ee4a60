//! The bytes of a manifest.
//!
//! ```text
//! "WEIRMAN1" | u32 header length | header (JSON) | inodes? | inode order? | entries | names | versions | CRC-64/NVME
//! ```
//!
//! Integers are little-endian. An entry is 32 bytes: parent u32, name offset u32, name length u8, kind u8, mount
//! u16, version offset u32, then for a file its size u64 and for a directory `first child << 32 | children`, and
//! the time of change i64. A version is a tag byte and 16 bytes for the usual 32 hexadecimal digits, or a tag
//! byte, a u16 length and text.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{DamagedManifest, EntryKind, Summary};

pub(super) const MAGIC: &[u8; 8] = b"WEIRMAN1";
pub(super) const RECORD_LEN: usize = 32;
pub(super) const CHECKSUM_LEN: usize = 8;
/// Bytes of a mapped manifest that are in memory while it is checked.
const CHECKED_AT_ONCE: usize = 16 << 20;
const VERSION_HEX: u8 = 0;
const VERSION_TEXT: u8 = 1;

#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) summary: Summary,
    pub(super) count: u32,
    pub(super) own_inodes: bool,
    pub(super) names_len: u64,
    pub(super) versions_len: u64,
}

/// Where each table lies in the bytes.
#[derive(Clone, Debug)]
pub(super) struct Sections {
    pub(super) count: u32,
    pub(super) entries: Range<usize>,
    pub(super) inodes: Option<Range<usize>>,
    pub(super) by_inode: Option<Range<usize>>,
    pub(super) names: Range<usize>,
    pub(super) versions: Range<usize>,
}

#[derive(Clone)]
pub(super) struct Record {
    pub(super) parent: u32,
    pub(super) name: Range<usize>,
    pub(super) kind: EntryKind,
    pub(super) mount: u16,
    pub(super) version: u32,
    /// Size of a file; first child and number of children of a directory.
    pub(super) a: u64,
    pub(super) mtime_ns: i64,
}

impl Record {
    pub(super) fn read(entries: &[u8], index: u32) -> Self {
        let record = &entries[index as usize * RECORD_LEN..][..RECORD_LEN];
        let start = read_u32(record, 4) as usize;
        Self {
            parent: read_u32(record, 0),
            name: start..start + usize::from(record[8]),
            kind: if record[9] == 0 {
                EntryKind::Directory
            } else {
                EntryKind::File
            },
            mount: u16::from_le_bytes([record[10], record[11]]),
            version: read_u32(record, 12),
            a: read_u64(record, 16),
            mtime_ns: read_u64(record, 24).cast_signed(),
        }
    }

    pub(super) fn bytes(&self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        bytes[..4].copy_from_slice(&self.parent.to_le_bytes());
        bytes[4..8].copy_from_slice(&(self.name.start as u32).to_le_bytes());
        bytes[8] = self.name.len() as u8;
        bytes[9] = u8::from(self.kind == EntryKind::File);
        bytes[10..12].copy_from_slice(&self.mount.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.a.to_le_bytes());
        bytes[24..].copy_from_slice(&self.mtime_ns.to_le_bytes());
        bytes
    }

    /// The children of a directory; empty for a file.
    pub(super) fn children(&self) -> Range<u32> {
        match self.kind {
            EntryKind::File => 0..0,
            EntryKind::Directory => {
                let first = (self.a >> 32) as u32;
                first..first.saturating_add(self.a as u32)
            }
        }
    }
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(super) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Appends a version to the arena and gives its offset.
pub(super) fn write_version(arena: &mut Vec<u8>, version: &str) -> u32 {
    let offset = arena.len() as u32;
    if let Some(raw) = parse_hex32(version) {
        arena.push(VERSION_HEX);
        arena.extend_from_slice(&raw);
    } else {
        arena.push(VERSION_TEXT);
        arena.extend_from_slice(&(version.len() as u16).to_le_bytes());
        arena.extend_from_slice(version.as_bytes());
    }
    offset
}

pub(super) fn read_version(arena: &[u8], offset: u32) -> Option<String> {
    let rest = arena.get(offset as usize..)?;
    match *rest.first()? {
        VERSION_HEX => {
            let raw: [u8; 16] = rest.get(1..17)?.try_into().ok()?;
            Some(format!("{:032x}", u128::from_be_bytes(raw)))
        }
        VERSION_TEXT => {
            let len = usize::from(u16::from_le_bytes([*rest.get(1)?, *rest.get(2)?]));
            let text = rest.get(3..3 + len)?;
            std::str::from_utf8(text).ok().map(str::to_owned)
        }
        _ => None,
    }
}

fn parse_hex32(text: &str) -> Option<[u8; 16]> {
    let lower_hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 32 || !text.as_bytes().iter().all(lower_hex) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// What comes before the tables.
pub(super) fn head(header: &Header) -> Vec<u8> {
    // A summary is plain data: strings, numbers and maps with string keys, which JSON can always hold.
    let json = serde_json::to_vec(header).unwrap_or_default();
    let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + json.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&json);
    bytes
}

/// Checks magic, checksum and the lengths of the sections. Calls `release` when a part has been read.
pub(super) fn parse(
    bytes: &[u8],
    release: impl Fn(),
) -> Result<(Summary, Sections), DamagedManifest> {
    let fail = |what| DamagedManifest(what);
    let body_len = bytes
        .len()
        .checked_sub(CHECKSUM_LEN)
        .ok_or(fail("too short"))?;
    let (body, sum) = bytes.split_at(body_len);
    if !body.starts_with(MAGIC) || body.len() < MAGIC.len() + 4 {
        return Err(fail("not a manifest, or of another version"));
    }
    let mut expected = Checksum::new();
    for part in body.chunks(CHECKED_AT_ONCE) {
        expected.update(part);
        release();
    }
    if sum != expected.bytes() {
        return Err(fail("the checksum is wrong"));
    }
    let header_start = MAGIC.len() + 4;
    let header_end = header_start + read_u32(body, MAGIC.len()) as usize;
    let header: Header = body
        .get(header_start..header_end)
        .and_then(|json| serde_json::from_slice(json).ok())
        .ok_or(fail("the header is not readable"))?;
    let count = header.count as usize;
    let mut at = header_end;
    let mut take = |len: usize| {
        let start = at;
        at = at.checked_add(len)?;
        (at <= body.len()).then_some(start..at)
    };
    let short = fail("a table is cut short");
    let mut own = |len| -> Result<Option<Range<usize>>, DamagedManifest> {
        if header.own_inodes {
            take(len).map(Some).ok_or(short.clone())
        } else {
            Ok(None)
        }
    };
    let (inodes, by_inode) = (own(count * 8)?, own(count * 4)?);
    let entries = take(count * RECORD_LEN).ok_or(short.clone())?;
    let names = take(header.names_len as usize).ok_or(short.clone())?;
    let versions = take(header.versions_len as usize).ok_or(short)?;
    if at != body.len() || count == 0 {
        return Err(fail("its tables do not fill it"));
    }
    let sections = Sections {
        count: header.count,
        entries,
        inodes,
        by_inode,
        names,
        versions,
    };
    Ok((header.summary, sections))
}

/// The sum over all that stands before it.
pub(super) struct Checksum(crc_fast::Digest);

impl Checksum {
    pub(super) fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn bytes(&self) -> [u8; CHECKSUM_LEN] {
        self.0.finalize().to_le_bytes()
    }
}
