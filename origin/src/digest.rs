//! Checksums that an origin sends along with a body.
//!
//! A digest covers exactly the bytes of the body that it came with, so that body can be verified before anybody
//! sees it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::checksum::CrcKind;

/// The header of a SHA-256.
const SHA256_HEADER: &str = "x-amz-checksum-sha256";

/// A checksum as the origin sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Digest {
    /// A CRC of this kind.
    Crc(CrcKind, u64),
    /// SHA-256.
    Sha256([u8; 32]),
}

impl Digest {
    /// The digest in the head of an answer, whose headers `text` gives: the cheapest to verify of several.
    pub(crate) fn of<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let mut names = CrcKind::ALL
            .map(CrcKind::header)
            .into_iter()
            .chain([SHA256_HEADER]);
        names.find_map(|name| Self::from_header(name, text(name)?))
    }

    /// Reads a header's value. `None` for a checksum of checksums (`…-3`, from a multipart upload), which says
    /// nothing about the body as a whole, and for what is not a checksum.
    fn from_header(name: &str, value: &str) -> Option<Self> {
        if name == SHA256_HEADER {
            let bytes = STANDARD.decode(value.trim()).ok()?;
            return Some(Self::Sha256(bytes.try_into().ok()?));
        }
        let kind = CrcKind::ALL
            .into_iter()
            .find(|kind| kind.header() == name)?;
        Some(Self::Crc(kind, kind.parse(value)?))
    }

    /// Starts to compute the same kind of digest.
    pub(crate) fn hasher(&self) -> Hasher {
        match self {
            Self::Crc(kind, _) => Hasher::Crc(kind.digest()),
            Self::Sha256(_) => Hasher::Sha(ring::digest::Context::new(&ring::digest::SHA256)),
        }
    }
}

/// A digest in the making.
pub(crate) enum Hasher {
    Crc(crc_fast::Digest),
    Sha(ring::digest::Context),
}

impl Hasher {
    pub(crate) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Crc(crc) => crc.update(data),
            Self::Sha(sha) => sha.update(data),
        }
    }

    /// Whether the bytes so far have this digest.
    pub(crate) fn matches(&self, digest: &Digest) -> bool {
        match (self, digest) {
            (Self::Crc(crc), Digest::Crc(_, value)) => crc.finalize() == *value,
            (Self::Sha(sha), Digest::Sha256(value)) => sha.clone().finish().as_ref() == value,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the CRC catalogue and of FIPS 180 for these nine bytes.
    const INPUT: &[u8] = b"123456789";
    const SHA256: [u8; 32] = [
        0x15, 0xe2, 0xb0, 0xd3, 0xc3, 0x38, 0x91, 0xeb, 0xb0, 0xf1, 0xef, 0x60, 0x9e, 0xc4, 0x19,
        0x42, 0x0c, 0x20, 0xe3, 0x20, 0xce, 0x94, 0xc6, 0x5f, 0xbc, 0x8c, 0x33, 0x12, 0x44, 0x8e,
        0xb2, 0x25,
    ];

    #[test]
    fn every_kind_of_digest_verifies_its_bytes_and_no_others() {
        let digests = [
            Digest::Crc(CrcKind::Crc32c, 0xe306_9283),
            Digest::Crc(CrcKind::Crc32, 0xcbf4_3926),
            Digest::Crc(CrcKind::Crc64Nvme, 0xae8b_1486_0a79_9888),
            Digest::Sha256(SHA256),
        ];
        for digest in digests {
            let mut hasher = digest.hasher();
            hasher.update(&INPUT[..4]);
            hasher.update(&INPUT[4..]);
            assert!(hasher.matches(&digest), "{digest:?}");
            hasher.update(b"0");
            assert!(!hasher.matches(&digest), "{digest:?}");
        }
    }

    #[test]
    fn a_header_is_base64_of_the_big_endian_value() {
        let crc = STANDARD.encode(0xe306_9283_u32.to_be_bytes());
        assert_eq!(
            Digest::from_header("x-amz-checksum-crc32c", &crc),
            Some(Digest::Crc(CrcKind::Crc32c, 0xe306_9283))
        );
        let sha = STANDARD.encode(SHA256);
        assert_eq!(
            Digest::from_header("x-amz-checksum-sha256", &sha),
            Some(Digest::Sha256(SHA256))
        );
        for wrong in [format!("{crc}-3"), sha, String::new()] {
            assert_eq!(
                Digest::from_header("x-amz-checksum-crc32c", &wrong),
                None,
                "{wrong}"
            );
        }
    }
}
