//! Verification of the bytes that a digest covers.
//!
//! Up to one block of bytes is held back until it is verified. A longer body passes through as it comes, but its last
//! piece is held, so that a reader never sees a complete body that is wrong.

use std::ops::Range;

use bytes::Bytes;
use weir_core::BLOCK_SIZE;

use crate::digest::{Digest, Hasher};

/// A digest and what has arrived of its bytes.
pub(super) struct Check {
    range: Range<u64>,
    digest: Digest,
    hasher: Hasher,
    arrived: u64,
    /// Bytes held back; `None` when they are too many to hold.
    held: Option<Vec<Bytes>>,
}

/// What to do after some bytes were added.
pub(super) enum Checked {
    /// Wait for more.
    Hold,
    /// Yield these unverified bytes, which are not the last.
    Pass(Bytes),
    /// All bytes match: yield these.
    Verified(Vec<Bytes>),
    /// The bytes do not match. Those from `again_from` on were not yielded and can be fetched again.
    Mismatch { again_from: Option<u64> },
}

impl Check {
    /// A check of `range`, of which nothing has arrived.
    pub(super) fn new(range: Range<u64>, digest: Digest) -> Self {
        Self {
            hasher: digest.hasher(),
            arrived: 0,
            held: (range.end - range.start <= BLOCK_SIZE).then(Vec::new),
            range,
            digest,
        }
    }

    /// Adds the next bytes. A resumed read delivers them under a request of its own, which may go beyond the range:
    /// what is behind it is not checked.
    pub(super) fn add(&mut self, bytes: Bytes) -> Checked {
        let len = self.range.end - self.range.start;
        let covered = (len - self.arrived).min(bytes.len() as u64);
        self.hasher.update(&bytes[..covered as usize]);
        self.arrived += covered;
        let complete = self.arrived == len;
        match (&mut self.held, complete) {
            (Some(held), false) => {
                held.push(bytes);
                Checked::Hold
            }
            (None, false) => Checked::Pass(bytes),
            (held, true) if self.hasher.matches(&self.digest) => {
                let mut pieces = held.take().unwrap_or_default();
                pieces.push(bytes);
                Checked::Verified(pieces)
            }
            (held, true) => Checked::Mismatch {
                again_from: held.as_ref().map(|_| self.range.start),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::CrcKind;

    fn crc(data: &[u8]) -> Digest {
        Digest::Crc(CrcKind::Crc32c, crc_fast::crc32_iscsi(data).into())
    }

    #[test]
    fn a_body_longer_than_a_block_passes_but_for_its_last_piece() {
        let data = Bytes::from(vec![7; BLOCK_SIZE as usize + 1]);
        for (digest, right) in [(crc(&data), true), (Digest::Crc(CrcKind::Crc32c, 1), false)] {
            let mut check = Check::new(0..data.len() as u64, digest);
            assert!(matches!(check.add(data.slice(..1000)), Checked::Pass(b) if b.len() == 1000));
            match check.add(data.slice(1000..)) {
                Checked::Verified(pieces) => assert!(right && pieces.len() == 1),
                Checked::Mismatch { again_from } => assert!(!right && again_from.is_none()),
                _ => panic!("the last piece was not checked"),
            }
        }
    }

    #[test]
    fn bytes_behind_the_covered_ones_are_passed_along_unchecked() {
        let mut check = Check::new(10..14, crc(b"abcd"));
        assert!(matches!(
            check.add(Bytes::from_static(b"ab")),
            Checked::Hold
        ));
        let Checked::Verified(pieces) = check.add(Bytes::from_static(b"cdef")) else {
            panic!("not verified");
        };
        assert_eq!(pieces.concat(), b"abcdef");
    }
}
