//! Objects of a listing that lie in an archive, and cannot be read before somebody restores them.

/// Storage classes whose objects wait for hours: of S3, and of OSS. GLACIER_IR is read at once.
const CLASSES: [&str; 5] = [
    "GLACIER",
    "DEEP_ARCHIVE",
    "Archive",
    "ColdArchive",
    "DeepColdArchive",
];

/// The storage class that a listing names, if it is an archive.
pub(super) fn class(text: &[u8]) -> Option<&'static str> {
    CLASSES.into_iter().find(|known| known.as_bytes() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_must_be_restored_is_archived() {
        for class in ["STANDARD", "GLACIER_IR", "INTELLIGENT_TIERING", ""] {
            assert_eq!(super::class(class.as_bytes()), None);
        }
        assert_eq!(class(b"DEEP_ARCHIVE"), Some("DEEP_ARCHIVE"));
        assert_eq!(class(b"GLACIER"), Some("GLACIER"));
    }
}
