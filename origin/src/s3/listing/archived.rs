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

/// Their number, and one of them with its storage class.
#[derive(Debug, Default)]
pub(super) struct Archived {
    count: u64,
    example: Option<(String, &'static str)>,
}

impl Archived {
    /// Counts an object if it is in an archive.
    pub(super) fn add(&mut self, key: &[u8], class: Option<&'static str>) {
        let Some(class) = class else {
            return;
        };
        self.count += 1;
        self.example
            .get_or_insert_with(|| (key.escape_ascii().to_string(), class));
    }

    /// Says what will not be readable, if there is anything.
    pub(super) fn warn(&self, bucket: &str) {
        if let Some((object, class)) = &self.example {
            tracing::warn!(
                origin = bucket,
                archived = self.count,
                object,
                class,
                "objects are archived: reads of those that were not restored fail (`aws s3api restore-object`)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_archives_are_counted_and_one_is_named() {
        let mut archived = Archived::default();
        for (key, class) in [
            ("a", "STANDARD"),
            ("b", "GLACIER_IR"),
            ("c\n", "DEEP_ARCHIVE"),
            ("d", "GLACIER"),
            ("e", ""),
        ] {
            archived.add(key.as_bytes(), super::class(class.as_bytes()));
        }
        assert_eq!(archived.count, 2);
        assert_eq!(archived.example, Some(("c\\n".to_owned(), "DEEP_ARCHIVE")));
    }
}
