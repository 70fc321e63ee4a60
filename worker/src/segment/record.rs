//! A block in a segment file: a header, directly followed by the data.
//!
//! The header carries all that recovery needs, with a checksum over itself and one for each 64 KiB *chunk* of the
//! data, so that a read of part of a block verifies only the chunks it touches. Records start at multiples of 64
//! bytes.
//!
//! ```text
//!  0  magic     u32   "WBLK"            16  segment      u64
//!  4  checksum of all that follows      24  block key    16 bytes
//!  8  version   u16                     40  chunk count  u32
//! 10  reserved  u16                     44  CRC-32C of each chunk, u32 each; zeros up to a multiple of 64
//! 12  data length u32
//! ```
//! All numbers are little endian; checksums are CRC-32C (RFC 3720).

use std::ops::Deref;
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};
use weir_core::{BLOCK_SIZE, BlockKey};

/// Bytes of data that share one checksum.
///
/// A random read of a few KiB reads and checks this much; a smaller chunk would make the index larger, since it
/// holds all checksums.
pub const CHUNK_SIZE: u32 = 64 << 10;

/// Longest block, in bytes.
pub const MAX_BLOCK_LEN: u32 = BLOCK_SIZE as u32;

/// Records start at multiples of this many bytes.
pub(super) const UNIT: u64 = 64;

/// Longest header, in bytes.
pub(super) const HEADER_MAX: u64 = header_len(MAX_BLOCK_LEN);

const MAGIC: u32 = u32::from_le_bytes(*b"WBLK");
const VERSION: u16 = 1;
const SUM_AT: usize = 4;
const SUMMED: usize = 8;
const CHUNKS_AT: usize = 44;

/// Rounds up to where a record may start.
pub(super) const fn unit_ceil(at: u64) -> u64 {
    (at + UNIT - 1) & !(UNIT - 1)
}

/// Number of chunks in a block of `len` bytes.
pub(super) const fn chunk_count(len: u32) -> usize {
    len.div_ceil(CHUNK_SIZE) as usize
}

/// Bytes from a record's start to its data.
pub(super) const fn header_len(len: u32) -> u64 {
    unit_ceil((CHUNKS_AT + 4 * chunk_count(len)) as u64)
}

/// Bytes that the record of a block of `len` bytes takes, up to where the next may start.
pub(super) const fn record_len(len: u32) -> u64 {
    unit_ceil(header_len(len) + len as u64)
}

/// The CRC-32C of each chunk of a block, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    held: HeldSums,
    count: u32,
}

/// The checksums of a block whose length is known from elsewhere, in 16 bytes: in place for up to two chunks,
/// shared beyond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HeldSums {
    Inline([u32; 2]),
    Shared(Arc<[u32]>),
}

impl Checksums {
    /// Computes the checksums of a block's data.
    pub fn of_data(data: &[u8]) -> Self {
        Self::collect(data.chunks(CHUNK_SIZE as usize).map(crc32_iscsi))
    }

    /// As [`Self::of_data`], for data in pieces.
    pub(super) fn of_pieces(pieces: &[&[u8]]) -> Self {
        if let [data] = pieces {
            return Self::of_data(data);
        }
        let mut sums = Vec::new();
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        let mut left = CHUNK_SIZE as usize;
        for mut piece in pieces.iter().copied() {
            while !piece.is_empty() {
                let (now, rest) = piece.split_at(left.min(piece.len()));
                digest.update(now);
                piece = rest;
                left -= now.len();
                if left == 0 {
                    sums.push(digest.finalize() as u32);
                    digest.reset();
                    left = CHUNK_SIZE as usize;
                }
            }
        }
        if left < CHUNK_SIZE as usize {
            sums.push(digest.finalize() as u32);
        }
        Self::from(sums.as_slice())
    }

    /// Gives a block of `len` bytes its checksums back.
    pub(super) fn of_held(held: HeldSums, len: u32) -> Self {
        let count = chunk_count(len) as u32;
        Self { held, count }
    }

    pub(super) fn into_held(self) -> HeldSums {
        self.held
    }

    fn collect(sums: impl ExactSizeIterator<Item = u32>) -> Self {
        let count = sums.len() as u32;
        if count > 2 {
            let held = HeldSums::Shared(sums.collect());
            return Self { held, count };
        }
        let mut inline = [0; 2];
        for (at, sum) in inline.iter_mut().zip(sums) {
            *at = sum;
        }
        let held = HeldSums::Inline(inline);
        Self { held, count }
    }
}

impl From<&[u32]> for Checksums {
    /// Takes over checksums in the order of their chunks.
    fn from(sums: &[u32]) -> Self {
        Self::collect(sums.iter().copied())
    }
}

impl Deref for Checksums {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        let held: &[u32] = match &self.held {
            HeldSums::Inline(sums) => sums,
            HeldSums::Shared(sums) => sums,
        };
        &held[..held.len().min(self.count as usize)]
    }
}

/// Where a record is inside its segment, and what is needed to verify its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: BlockKey,
    /// Start of the header, in units of 64 bytes.
    pub(super) unit: u32,
    /// Length of the data, in bytes.
    pub(super) len: u32,
    pub(super) sums: Checksums,
}

impl Record {
    /// Start of the header in the file, in bytes.
    pub(super) fn start(&self) -> u64 {
        u64::from(self.unit) * UNIT
    }

    /// Start of the data in the file, in bytes.
    pub(super) fn data_start(&self) -> u64 {
        self.start() + header_len(self.len)
    }

    /// End of the data in the file, in bytes.
    pub(super) fn data_end(&self) -> u64 {
        self.data_start() + u64::from(self.len)
    }

    /// Where the next record may start, in bytes.
    pub(super) fn end(&self) -> u64 {
        self.start() + record_len(self.len)
    }
}

/// Writes a record to the front of `out`; returns its length. `out` must have room for it.
pub(super) fn encode(
    out: &mut [u8],
    segment: u64,
    key: &BlockKey,
    pieces: &[&[u8]],
    sums: &Checksums,
) -> usize {
    let len = pieces.iter().map(|piece| piece.len()).sum::<usize>() as u32;
    let (head, total) = (header_len(len) as usize, record_len(len) as usize);
    let chunks = chunk_count(len);
    let header = &mut out[..head];
    header.fill(0);
    header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&len.to_le_bytes());
    header[16..24].copy_from_slice(&segment.to_le_bytes());
    header[24..40].copy_from_slice(&key.0);
    header[40..44].copy_from_slice(&(chunks as u32).to_le_bytes());
    for (at, sum) in header[CHUNKS_AT..].chunks_exact_mut(4).zip(sums.iter()) {
        at.copy_from_slice(&sum.to_le_bytes());
    }
    let sum = crc32_iscsi(&header[SUMMED..CHUNKS_AT + 4 * chunks]);
    header[SUM_AT..SUMMED].copy_from_slice(&sum.to_le_bytes());
    let mut at = head;
    for piece in pieces {
        out[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    out[at..total].fill(0);
    total
}

/// Reads the header at the front of `bytes`, which was found at `at` in segment `segment`.
///
/// `None` for anything but an intact header of that segment. The lengths are checked before they are used.
pub(super) fn decode(bytes: &[u8], segment: u64, at: u64) -> Option<Record> {
    let word = |at: usize| -> Option<u32> {
        let word = bytes.get(at..at + 4)?;
        word.try_into().map(u32::from_le_bytes).ok()
    };
    let version = bytes.get(8..10)?;
    if word(0)? != MAGIC || version != VERSION.to_le_bytes() {
        return None;
    }
    if bytes.get(16..24)? != segment.to_le_bytes() {
        return None;
    }
    let (len, chunks) = (word(12)?, word(40)? as usize);
    if len == 0 || len > MAX_BLOCK_LEN || chunks != chunk_count(len) {
        return None;
    }
    if crc32_iscsi(bytes.get(SUMMED..CHUNKS_AT + 4 * chunks)?) != word(SUM_AT)? {
        return None;
    }
    let sums: Option<Vec<u32>> = (0..chunks).map(|c| word(CHUNKS_AT + 4 * c)).collect();
    Some(Record {
        key: BlockKey(bytes.get(24..40)?.try_into().ok()?),
        unit: u32::try_from(at / UNIT).ok()?,
        len,
        sums: Checksums::from(sums?.as_slice()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(len: usize) -> (Vec<u8>, Checksums) {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let sums = Checksums::of_data(&data);
        let mut out = vec![0xff; record_len(len as u32) as usize + 7];
        let written = encode(&mut out, 9, &BlockKey([3; 16]), &[&data[..]], &sums);
        out.truncate(written);
        (out, sums)
    }

    #[test]
    fn a_header_read_back_names_the_same_block() {
        for len in [1, 100, 65_536, 65_537, 200_000, 4 << 20] {
            let (bytes, sums) = encoded(len);
            assert_eq!(bytes.len() as u64 % UNIT, 0);
            let record = decode(&bytes, 9, 128).unwrap();
            assert_eq!(record.key, BlockKey([3; 16]));
            assert_eq!((record.len as usize, record.start()), (len, 128));
            assert_eq!(record.sums, sums);
            assert_eq!(record.end() - record.start(), bytes.len() as u64);
        }
    }

    #[test]
    fn a_header_with_any_flipped_bit_or_of_another_segment_is_refused() {
        let (bytes, _) = encoded(200_000);
        assert_eq!(decode(&bytes, 8, 0), None);
        let used = CHUNKS_AT + 4 * chunk_count(200_000);
        for bit in 0..used * 8 {
            let mut bad = bytes[..HEADER_MAX as usize].to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad, 9, 0), None, "bit {bit}");
        }
        assert_eq!(decode(&bytes[..used - 1], 9, 0), None);
    }

    #[test]
    fn checksums_of_pieces_are_those_of_the_whole() {
        let data: Vec<u8> = (0..300_000).map(|i| (i % 253) as u8).collect();
        for cuts in [vec![0, 1], vec![65_536], vec![7, 65_535, 65_537, 200_000]] {
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([data.len()]) {
                pieces.push(&data[from..cut]);
                from = cut;
            }
            assert_eq!(Checksums::of_pieces(&pieces), Checksums::of_data(&data));
        }
        let even = &data[..131_072];
        let (a, b) = even.split_at(1000);
        assert_eq!(Checksums::of_pieces(&[a, b]), Checksums::of_data(even));
    }

    #[test]
    fn a_block_of_up_to_two_chunks_keeps_its_checksums_in_place() {
        let held = |len| Checksums::of_data(&vec![1; len]).into_held();
        assert!(matches!(held(131_072), HeldSums::Inline(_)));
        assert!(matches!(held(131_073), HeldSums::Shared(_)));
        assert_eq!(size_of::<HeldSums>(), 16);
    }

    #[test]
    fn checksums_are_as_many_as_chunks_however_they_are_held() {
        for len in [1, 65_536, 65_537, 131_072, 131_073, 1 << 22] {
            let sums = Checksums::of_data(&vec![5; len]);
            assert_eq!(sums.len(), chunk_count(len as u32));
            assert_eq!(Checksums::from(&sums[..]), sums);
            let back = Checksums::of_held(sums.clone().into_held(), len as u32);
            assert_eq!(back, sums);
        }
    }
}
