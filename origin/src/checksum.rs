//! Checksums that an origin keeps of whole objects, or of their parts.
//!
//! Objects of several blocks are read in ranges, which come without a checksum. But CRCs can be combined: those of pieces
//! that were read at different times and places give the one of the whole, which is compared with what the origin says.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;

/// A checksum that can be combined.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CrcKind {
    /// CRC-64/NVME.
    Crc64Nvme,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-32 (ISO-HDLC, as in zip).
    Crc32,
}

impl CrcKind {
    /// All kinds, the strongest first.
    pub const ALL: [Self; 3] = [Self::Crc64Nvme, Self::Crc32c, Self::Crc32];

    /// The header in which S3 sends it.
    pub(crate) fn header(self) -> &'static str {
        match self {
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc32 => "x-amz-checksum-crc32",
        }
    }

    /// Starts to compute one.
    pub(crate) fn digest(self) -> crc_fast::Digest {
        crc_fast::Digest::new(match self {
            Self::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
            Self::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Self::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
        })
    }

    /// The checksum of these pieces, one after the other.
    pub fn of<'a>(self, pieces: impl IntoIterator<Item = &'a [u8]>) -> u64 {
        let mut digest = self.digest();
        pieces.into_iter().for_each(|piece| digest.update(piece));
        digest.finalize()
    }

    /// The highest bit of a checksum, and the generator polynomial with its bits reversed.
    fn polynomial(self) -> (u64, u64) {
        match self {
            Self::Crc64Nvme => (1 << 63, 0x9a6c_9329_ac4b_c9b5),
            Self::Crc32c => (1 << 31, 0x82f6_3b78),
            Self::Crc32 => (1 << 31, 0xedb8_8320),
        }
    }

    /// The product of two polynomials, as zlib's `multmodp` computes it.
    fn multiply(self, a: u64, mut b: u64) -> u64 {
        let (mut bit, polynomial) = self.polynomial();
        let mut product = 0;
        while bit > 0 {
            if a & bit != 0 {
                product ^= b;
            }
            bit >>= 1;
            b = (b >> 1) ^ if b & 1 == 1 { polynomial } else { 0 };
        }
        product
    }

    /// What a checksum is multiplied with when so many bytes follow: x to the power of their bits. To be used for all
    /// pieces of the same length, for it takes some microseconds.
    #[must_use]
    pub fn shift(self, length: u64) -> Shift {
        let (one, _) = self.polynomial();
        // x^8 for one byte, squared for each further bit of the length.
        let (mut power, mut left) = (one >> 8, length);
        let mut factor = one;
        while left > 0 {
            if left & 1 == 1 {
                factor = self.multiply(factor, power);
            }
            power = self.multiply(power, power);
            left >>= 1;
        }
        Shift(factor)
    }

    /// The checksum of bytes that have `first`, followed by those of `shift` that have `second`.
    #[must_use]
    pub fn combine(self, first: u64, shift: Shift, second: u64) -> u64 {
        self.multiply(shift.0, first) ^ second
    }

    /// Reads a value as S3 writes it: base64 of the big-endian bytes.
    pub(crate) fn parse(self, text: &str) -> Option<u64> {
        let bytes = STANDARD.decode(text.trim()).ok()?;
        match self {
            Self::Crc64Nvme => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
            Self::Crc32c | Self::Crc32 => Some(u32::from_be_bytes(bytes.try_into().ok()?).into()),
        }
    }
}

/// A length, as [`CrcKind::combine`] needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shift(u64);

/// The checksum of one part of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartSum {
    /// Bytes of the part; never 0.
    pub length: u64,
    /// Its checksum.
    pub value: u64,
}

/// What an origin says of the bytes of an object version. A checksum of all of it is that of a single part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectChecksum {
    kind: CrcKind,
    parts: Vec<PartSum>,
    /// Where each part ends.
    ends: Vec<u64>,
}

impl ObjectChecksum {
    /// The checksums of all parts of an object of `size` bytes, in order. `None` if the parts are not the object.
    pub fn new(kind: CrcKind, parts: Vec<PartSum>, size: u64) -> Option<Self> {
        let mut ends = Vec::with_capacity(parts.len());
        let mut end = 0_u64;
        for part in &parts {
            end = end.checked_add(part.length).filter(|_| part.length > 0)?;
            ends.push(end);
        }
        (end == size && size > 0).then_some(Self { kind, parts, ends })
    }

    /// Its kind.
    pub fn kind(&self) -> CrcKind {
        self.kind
    }

    /// All parts, in order.
    pub fn parts(&self) -> &[PartSum] {
        &self.parts
    }

    /// The bytes of a part.
    pub fn range(&self, part: usize) -> Range<u64> {
        self.ends[part] - self.parts[part].length..self.ends[part]
    }

    /// The numbers of the parts that have some of these bytes.
    pub fn parts_of(&self, range: &Range<u64>) -> Range<usize> {
        let first = self.ends.partition_point(|end| *end <= range.start);
        let before = |end: &u64| *end < range.end;
        let last = self.ends.partition_point(before);
        first..(last + 1).min(self.parts.len())
    }

    /// Cuts a range of the object where parts begin.
    pub fn cut(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.parts_of(&range).map(move |part| {
            let Range { start, end } = self.range(part);
            start.max(range.start)..end.min(range.end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_pieces_is_that_of_the_whole_for_each_kind() {
        let data: Vec<u8> = (0..100_003_u32).map(|at| (at % 251) as u8).collect();
        for kind in CrcKind::ALL {
            let whole = kind.of([&data[..]]);
            for at in [0, 1, 4096, 65_536, 100_002, 100_003] {
                let (first, second) = data.split_at(at);
                let (a, b) = (kind.of([first]), kind.of([second]));
                let shift = kind.shift(second.len() as u64);
                assert_eq!(kind.combine(a, shift, b), whole, "{kind:?} {at}");
                assert_eq!(kind.of([first, second]), whole);
            }
        }
        // The check values of the CRC catalogue.
        let values = CrcKind::ALL.map(|kind| kind.of([&b"123456789"[..]]));
        assert_eq!(values, [0xae8b_1486_0a79_9888, 0xe306_9283, 0xcbf4_3926]);
    }

    #[test]
    fn parts_must_be_the_object_and_ranges_are_cut_at_them() {
        let part = |length| PartSum { length, value: 1 };
        let new = |lengths: &[u64], size| {
            let parts = lengths.iter().copied().map(part).collect();
            ObjectChecksum::new(CrcKind::Crc32c, parts, size)
        };
        for (lengths, size) in [
            (&[10_u64, 10][..], 21),
            (&[10, 0, 10], 20),
            (&[u64::MAX, 2], 1),
            (&[], 0),
        ] {
            assert_eq!(new(lengths, size), None, "{lengths:?}");
        }
        let sum = new(&[10, 5, 20], 35).unwrap();
        let cut = |range| {
            let pieces = sum.cut(range).map(|piece| (piece.start, piece.end));
            pieces.collect::<Vec<_>>()
        };
        assert_eq!(cut(0..35), [(0, 10), (10, 15), (15, 35)]);
        assert_eq!(cut(10..15), [(10, 15)]);
        assert_eq!(cut(9..16), [(9, 10), (10, 15), (15, 16)]);
        assert_eq!(cut(34..35), [(34, 35)]);
    }
}
