//! What a bucket holds.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;

use crate::checksum::{Kept, Sums};
use crate::generated::Generated;
use crate::version::{Content, Version};

/// Objects by key, in the order of a listing. Keys are bytes: some stores hold names that are not UTF-8.
#[derive(Debug, Default)]
pub struct Bucket {
    objects: BTreeMap<Vec<u8>, Version>,
    /// Objects that are computed when they are asked for; in a bucket that holds no others.
    generated: Option<Generated>,
}

impl Bucket {
    /// A bucket of `count` objects whose names, sizes and bytes follow from their numbers, and which take no memory.
    pub fn generated(count: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            generated: Some(Generated::new(count)),
        }
    }

    /// A bucket of the files below `root`, as they are now. Links are followed.
    pub fn of_directory(root: &Path) -> io::Result<Self> {
        let mut bucket = Self::default();
        let mut directories = vec![(root.to_owned(), String::new())];
        while let Some((directory, prefix)) = directories.pop() {
            for entry in std::fs::read_dir(&directory)? {
                let path = entry?.path();
                let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                    continue; // no key of S3
                };
                let key = format!("{prefix}{name}");
                let metadata = std::fs::metadata(&path)?;
                if metadata.is_dir() {
                    directories.push((path, format!("{key}/")));
                } else if metadata.is_file() {
                    bucket
                        .objects
                        .insert(key.into_bytes(), Version::of_file(path, &metadata)?);
                }
            }
        }
        Ok(bucket)
    }

    /// Puts an object, over one that is there.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, content: impl Into<Bytes>) {
        self.objects
            .insert(key.into(), Version::of_memory(content.into()));
    }

    /// Says that an object was changed at another time, if it is there.
    pub fn set_modified(&mut self, key: &str, modified: SystemTime) {
        if let Some(version) = self.objects.get_mut(key.as_bytes()) {
            version.modified = modified;
        }
    }

    /// Moves an object to an archive of this storage class, if it is there.
    pub fn archive(&mut self, key: &str, class: &'static str) {
        if let Some(version) = self.objects.get_mut(key.as_bytes()) {
            version.archive = Some(class);
        }
    }

    /// Keeps other checksums of an object that is there, and in memory.
    pub fn keep_checksum(&mut self, key: &str, kept: Kept) {
        if let Some(version) = self.objects.get_mut(key.as_bytes())
            && let Content::Memory(content) = &version.content
        {
            version.sums = Sums::of(content, kept);
        }
    }

    /// Removes an object. False when there was none.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        self.objects.remove(key).is_some()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Cow<'_, Version>> {
        match &self.generated {
            Some(generated) => generated.get(key).map(Cow::Owned),
            None => self.objects.get(key).map(Cow::Borrowed),
        }
    }

    /// Objects with this prefix whose keys come after `after`.
    pub(crate) fn list<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&[u8]>,
    ) -> Box<dyn Iterator<Item = (Cow<'a, [u8]>, Cow<'a, Version>)> + 'a> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.to_vec()),
            _ => Bound::Included(prefix.to_vec()),
        };
        if let Some(generated) = &self.generated {
            let objects = generated.list(start);
            let objects =
                objects.map(|(key, version)| (Cow::<[u8]>::Owned(key), Cow::Owned(version)));
            return Box::new(objects.take_while(move |(key, _)| key.starts_with(prefix)));
        }
        let objects = self.objects.range((start, Bound::Unbounded));
        Box::new(
            objects
                .map(|(key, version)| (Cow::Borrowed(key.as_slice()), Cow::Borrowed(version)))
                .take_while(move |(key, _)| key.starts_with(prefix)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_begins_after_a_key_and_ends_with_the_prefix() {
        let mut bucket = Bucket::default();
        for key in ["a", "b/1", "b/2", "b/3", "c"] {
            bucket.put(key, "x");
        }
        let keys = |prefix: &str, after: Option<&str>| -> Vec<String> {
            bucket
                .list(prefix.as_bytes(), after.map(str::as_bytes))
                .map(|(key, _)| String::from_utf8_lossy(&key).into_owned())
                .collect()
        };
        assert_eq!(keys("b/", None), ["b/1", "b/2", "b/3"]);
        assert_eq!(keys("b/", Some("b/1")), ["b/2", "b/3"]);
        assert_eq!(keys("b/", Some("a")), ["b/1", "b/2", "b/3"]);
        assert_eq!(keys("", None).len(), 5);
        assert_eq!(keys("b/", Some("b/3")), Vec::<String>::new());
    }

    #[test]
    fn other_content_is_another_version() {
        let (one, two) = (
            Version::of_memory("one".into()),
            Version::of_memory("two".into()),
        );
        assert_ne!(one.etag, two.etag);
        assert_ne!(one.sums, two.sums);
    }
}
