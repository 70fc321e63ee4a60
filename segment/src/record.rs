//! A block in a segment file: a header, directly followed by the data.
//!
//! The header carries all that recovery needs, with a checksum over itself and one for each 64 KiB *chunk* of the
//! data, so that a read of part of a block verifies only the chunks it touches. A chunk's checksum is that of the
//! checksums of its pages of 4 KiB. The header of a *long* block, of 1 MiB or more, has these, too, so that a read of a
//! few KiB need not read whole chunks; they are not held in memory, and are checked against the chunk's when they are
//! used.
//! Records start at multiples of 64 bytes; a long block's header and data each take whole pages, and begin with one
//! unless a short block precedes them in the same write.
//!
//! ```text
//!  0  magic     u32   "WBLK"            16  segment      u64
//!  4  checksum of where the record      24  block key    16 bytes
//!     starts, in units, and of what     40  chunk count  u32
//!     follows, up to those of pages
//!  8  version   u16                     44  checksum of each chunk, u32 each
//! 10  reserved  u16                         of a long block: CRC-32C of each page, u32 each
//! 12  data length u32                       zeros up to a multiple of 64, or of 4,096 of a long block
//! ```
//! All numbers are little endian; checksums are CRC-32C (RFC 3720).
//!
//! A later version keeps magic, version and segment where they are: by them this one knows that a file is not for it, and leaves it
//! alone. It changes the footer's version, too, whose table says where in a record the data is.

use std::ops::Deref;
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};
use weir_core::{BLOCK_SIZE, BlockKey};

use super::aligned::{PAGE, page_ceil};

/// Bytes of data that share one of the checksums that are held in memory.
pub const CHUNK_SIZE: u32 = 64 << 10;

/// Pages of a chunk.
pub(super) const CHUNK_PAGES: usize = (CHUNK_SIZE as u64 / PAGE) as usize;

/// Longest block, in bytes.
pub const MAX_BLOCK_LEN: u32 = BLOCK_SIZE as u32;

/// Records start at multiples of this many bytes.
pub(super) const UNIT: u64 = 64;

/// Bytes of the longest header up to the checksums of pages: what tells of a record.
pub(super) const HEAD_MAX: u64 = unit_ceil(head_len(MAX_BLOCK_LEN) as u64);

/// A block of so many bytes or more is long: its header has the checksums of its pages.
const LONG: u32 = if cfg!(test) { 128 << 10 } else { 1 << 20 };

const MAGIC: u32 = u32::from_le_bytes(*b"WBLK");
pub(super) const VERSION: u16 = 3;
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

/// Number of pages of a block of `len` bytes.
pub(super) const fn page_count(len: u32) -> usize {
    len.div_ceil(PAGE as u32) as usize
}

const fn is_long(len: u32) -> bool {
    len >= LONG
}

/// Bytes of a header up to the checksums of pages.
const fn head_len(len: u32) -> usize {
    CHUNKS_AT + 4 * chunk_count(len)
}

/// Rounds up to where a part of the record of a block of `len` bytes ends.
const fn part_ceil(len: u32, at: u64) -> u64 {
    if is_long(len) {
        page_ceil(at)
    } else {
        unit_ceil(at)
    }
}

/// Bytes from a long block's data back to the checksums of its pages; `None` for a block that is not long.
pub(super) const fn pages_before_data(len: u32) -> Option<u64> {
    if is_long(len) {
        Some(header_len(len) - head_len(len) as u64)
    } else {
        None
    }
}

/// Bytes from a record's start to its data.
pub(super) const fn header_len(len: u32) -> u64 {
    let pages = if is_long(len) { page_count(len) } else { 0 };
    part_ceil(len, (head_len(len) + 4 * pages) as u64)
}

/// Bytes that the record of a block of `len` bytes takes, up to where the next may start.
pub(super) const fn record_len(len: u32) -> u64 {
    part_ceil(len, header_len(len) + len as u64)
}

/// The CRC-32C of each page of data in pieces, in order.
pub fn page_sums(pieces: &[&[u8]]) -> Vec<u32> {
    const PAGE_LEN: usize = PAGE as usize;
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut sums = Vec::with_capacity(length.div_ceil(PAGE_LEN));
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut filled = 0;
    for mut piece in pieces.iter().copied() {
        while !piece.is_empty() {
            if filled == 0 && piece.len() >= PAGE_LEN {
                let (pages, rest) = piece.split_at(piece.len() - piece.len() % PAGE_LEN);
                sums.extend(pages.chunks_exact(PAGE_LEN).map(crc32_iscsi));
                piece = rest;
                continue;
            }
            let (now, rest) = piece.split_at((PAGE_LEN - filled).min(piece.len()));
            digest.update(now);
            filled += now.len();
            piece = rest;
            if filled == PAGE_LEN {
                sums.push(digest.finalize() as u32);
                digest.reset();
                filled = 0;
            }
        }
    }
    if filled > 0 {
        sums.push(digest.finalize() as u32);
    }
    sums
}

/// The checksum of a chunk whose pages have these.
pub fn chunk_sum(pages: &[u32]) -> u32 {
    let mut bytes = [0; 4 * CHUNK_PAGES];
    for (at, sum) in bytes.chunks_exact_mut(4).zip(pages) {
        at.copy_from_slice(&sum.to_le_bytes());
    }
    crc32_iscsi(&bytes[..4 * pages.len().min(CHUNK_PAGES)])
}

/// The checksum of a chunk.
pub fn chunk_sum_of(data: &[u8]) -> u32 {
    let mut pages = [0; CHUNK_PAGES];
    let count = data.len().div_ceil(PAGE as usize).min(CHUNK_PAGES);
    for (sum, page) in pages.iter_mut().zip(data.chunks(PAGE as usize)) {
        *sum = crc32_iscsi(page);
    }
    chunk_sum(&pages[..count])
}

/// The checksum of each chunk of a block, in order.
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
        Self::collect(data.chunks(CHUNK_SIZE as usize).map(chunk_sum_of))
    }

    /// Those of a block whose pages have these.
    pub(super) fn of_pages(pages: &[u32]) -> Self {
        Self::collect(pages.chunks(CHUNK_PAGES).map(chunk_sum))
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

    /// Writes it, with its data in pieces, to the front of `out`; returns its length. `out` must have room for it.
    pub(super) fn encode(
        &self,
        out: &mut [u8],
        segment: u64,
        pieces: &[&[u8]],
        pages: &[u32],
    ) -> usize {
        let len = self.len;
        let (head, total) = (header_len(len) as usize, record_len(len) as usize);
        let header = &mut out[..head];
        header.fill(0);
        header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&len.to_le_bytes());
        header[16..24].copy_from_slice(&segment.to_le_bytes());
        header[24..40].copy_from_slice(&self.key.0);
        header[40..44].copy_from_slice(&(chunk_count(len) as u32).to_le_bytes());
        for (at, sum) in header[CHUNKS_AT..]
            .chunks_exact_mut(4)
            .zip(self.sums.iter())
        {
            at.copy_from_slice(&sum.to_le_bytes());
        }
        let sum = header_sum(&header[SUMMED..head_len(len)], self.unit);
        header[SUM_AT..SUMMED].copy_from_slice(&sum.to_le_bytes());
        if is_long(len) {
            let places = header[head_len(len)..].chunks_exact_mut(4);
            for (at, sum) in places.zip(pages) {
                at.copy_from_slice(&sum.to_le_bytes());
            }
        }
        let mut at = head;
        for piece in pieces {
            out[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        out[at..total].fill(0);
        total
    }
}

/// The checksum of a header at a place. The same bytes elsewhere, such as those of a copy of the file, have another one.
fn header_sum(summed: &[u8], unit: u32) -> u32 {
    crc32_iscsi(summed) ^ crc32_iscsi(&unit.to_le_bytes())
}

/// Whether the header at the front of `bytes` is one of segment `segment` and of a later version of Weir.
pub(super) fn is_newer(bytes: &[u8], segment: u64) -> bool {
    let version = |two: &[u8]| two.try_into().map(u16::from_le_bytes);
    bytes.get(..4) == Some(&MAGIC.to_le_bytes())
        && bytes.get(16..24) == Some(&segment.to_le_bytes())
        && bytes
            .get(8..10)
            .is_some_and(|two| version(two).is_ok_and(|of| of > VERSION))
}

/// Reads the header at the front of `bytes`, which was found at `at` in segment `segment`.
///
/// `None` for anything but an intact header of that place in that segment. The lengths are checked before they are used.
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
    let unit = u32::try_from(at / UNIT).ok()?;
    if header_sum(bytes.get(SUMMED..head_len(len))?, unit) != word(SUM_AT)? {
        return None;
    }
    let sums: Option<Vec<u32>> = (0..chunks).map(|c| word(CHUNKS_AT + 4 * c)).collect();
    Some(Record {
        key: BlockKey(bytes.get(24..40)?.try_into().ok()?),
        unit,
        len,
        sums: Checksums::from(sums?.as_slice()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(len: usize) -> (Vec<u8>, Checksums) {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let pages = page_sums(&[&data]);
        let sums = Checksums::of_pages(&pages);
        let record = Record {
            key: BlockKey([3; 16]),
            unit: 2,
            len: len as u32,
            sums: sums.clone(),
        };
        let mut out = vec![0xff; record_len(len as u32) as usize + 7];
        let written = record.encode(&mut out, 9, &[&data], &pages);
        out.truncate(written);
        (out, sums)
    }

    #[test]
    fn a_header_read_back_names_the_same_block() {
        for len in [
            1,
            100,
            65_536,
            65_537,
            200_000,
            1 << 20,
            (1 << 20) + 1,
            4 << 20,
        ] {
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
    fn a_header_with_any_flipped_bit_or_of_another_place_or_segment_is_refused() {
        let (bytes, _) = encoded(200_000);
        assert!(decode(&bytes, 9, 128).is_some());
        assert_eq!(decode(&bytes, 8, 128), None);
        for at in (0..1_000_000).step_by(64).filter(|at| *at != 128) {
            assert_eq!(decode(&bytes, 9, at), None);
        }
        let used = CHUNKS_AT + 4 * chunk_count(200_000);
        for bit in 0..used * 8 {
            let mut bad = bytes[..HEAD_MAX as usize].to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad, 9, 128), None, "bit {bit}");
        }
        assert_eq!(decode(&bytes[..used - 1], 9, 128), None);
    }

    #[test]
    fn a_long_block_has_the_checksums_of_its_pages_before_its_data() {
        for len in [LONG as usize, LONG as usize + 1, 4 << 20] {
            let (bytes, sums) = encoded(len);
            let header = header_len(len as u32);
            assert_eq!((header % PAGE, bytes.len() as u64 % PAGE), (0, 0));
            let from = (header - pages_before_data(len as u32).unwrap()) as usize;
            let table = &bytes[from..from + 4 * page_count(len as u32)];
            let pages = table
                .chunks_exact(4)
                .map(|sum| u32::from_le_bytes(sum.try_into().unwrap()));
            let pages: Vec<u32> = pages.collect();
            let data = &bytes[header as usize..][..len];
            assert!(pages.iter().copied().eq(data.chunks(4096).map(crc32_iscsi)));
            assert_eq!(Checksums::of_pages(&pages), sums);
        }
        assert_eq!(pages_before_data(LONG - 1), None);
    }

    #[test]
    fn checksums_of_pieces_are_those_of_the_whole() {
        let data: Vec<u8> = (0..300_000).map(|i| (i % 253) as u8).collect();
        let of_pieces = |pieces: &[&[u8]]| Checksums::of_pages(&page_sums(pieces));
        for cuts in [
            vec![0, 1],
            vec![4096, 8192, 8193],
            vec![65_536],
            vec![7, 65_535, 65_537, 200_000],
        ] {
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([data.len()]) {
                pieces.push(&data[from..cut]);
                from = cut;
            }
            assert_eq!(of_pieces(&pieces), Checksums::of_data(&data));
        }
        let even = &data[..131_072];
        let (a, b) = even.split_at(1000);
        assert_eq!(of_pieces(&[a, b]), Checksums::of_data(even));
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
