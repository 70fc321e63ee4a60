//! The one rule that turns an origin's key into a path, and says why a key has no path.
//!
//! A key below the dataset's prefix is split at `/`. It is served when every component is a file name that
//! Linux takes: not empty, not `.` or `..`, at most 255 bytes, UTF-8 and without a zero byte. Then the path *is*
//! the key, so the key of an entry can always be put together again from its path, and no key can lead out of
//! the mount. Every other key is left out and counted by its reason. `docs/semantics.md` states the same rule
//! for users.

use std::fmt;

/// Longest file name that Linux takes, in bytes.
pub const MAX_NAME: usize = 255;

/// Why an object of the origin has no path in the dataset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LeftOut {
    /// Two slashes in a row, or one at the beginning: `a//b`.
    EmptyComponent,
    /// A component is `.` or `..`.
    DotComponent,
    /// A component is longer than 255 bytes.
    NameTooLong,
    /// The key is not UTF-8.
    NotUtf8,
    /// The key has a zero byte.
    ZeroByte,
    /// The key ends in `/`, which makes a directory, but has content, which a directory cannot hold.
    DirectoryContent,
    /// The key is also the prefix of other keys: the directory is served.
    ShadowedByDirectory,
    /// Another mount of the dataset has a file at the same path.
    ShadowedByMount,
    /// The origin listed the key more than once, as when an object is replaced between two pages: the newest is served.
    ListedTwice,
    /// A symbolic link of a directory leads out of it.
    LinkOutside,
    /// A symbolic link leads nowhere.
    LinkBroken,
    /// A link leads back to a directory above it, or the directory is too deep for any path.
    TooDeep,
    /// A mount of Weir.
    WeirMount,
    /// Neither a file nor a directory: a socket, a pipe, a device.
    SpecialFile,
    /// A file that somebody is writing: what it has so far is no version of it.
    BeingWritten,
    /// The source has globs of files to include, and none matches.
    NotIncluded,
    /// A glob of the source excludes it.
    Excluded,
}

impl LeftOut {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 17] = [
        Self::EmptyComponent,
        Self::DotComponent,
        Self::NameTooLong,
        Self::NotUtf8,
        Self::ZeroByte,
        Self::DirectoryContent,
        Self::ShadowedByDirectory,
        Self::ShadowedByMount,
        Self::ListedTwice,
        Self::LinkOutside,
        Self::LinkBroken,
        Self::TooDeep,
        Self::WeirMount,
        Self::SpecialFile,
        Self::BeingWritten,
        Self::NotIncluded,
        Self::Excluded,
    ];

    /// The reason as a label for metrics and JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::EmptyComponent => "empty_component",
            Self::DotComponent => "dot_component",
            Self::NameTooLong => "name_too_long",
            Self::NotUtf8 => "not_utf8",
            Self::ZeroByte => "zero_byte",
            Self::DirectoryContent => "directory_content",
            Self::ShadowedByDirectory => "shadowed_by_directory",
            Self::ShadowedByMount => "shadowed_by_mount",
            Self::ListedTwice => "listed_twice",
            Self::LinkOutside => "link_outside",
            Self::LinkBroken => "link_broken",
            Self::TooDeep => "too_deep",
            Self::WeirMount => "weir_mount",
            Self::SpecialFile => "special_file",
            Self::BeingWritten => "being_written",
            Self::NotIncluded => "not_included",
            Self::Excluded => "excluded",
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What a key below the prefix stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyPath<'a> {
    /// A file, at this path.
    File(&'a str),
    /// A marker for a directory (a key that ends in `/`), at this path; empty for the prefix itself.
    Directory(&'a str),
}

/// Applies the rule to `key`, the part of an object's key behind the prefix, whose object has `size` bytes.
pub fn classify(key: &[u8], size: u64) -> Result<KeyPath<'_>, LeftOut> {
    if key.contains(&0) {
        return Err(LeftOut::ZeroByte);
    }
    let key = std::str::from_utf8(key).map_err(|_| LeftOut::NotUtf8)?;
    let (path, directory) = match key.strip_suffix('/') {
        Some(path) => (path, true),
        None => (key, key.is_empty()),
    };
    if !(directory && path.is_empty()) {
        path.split('/').try_for_each(check_component)?;
    }
    match (directory, size) {
        (false, _) => Ok(KeyPath::File(path)),
        (true, 0) => Ok(KeyPath::Directory(path)),
        (true, _) => Err(LeftOut::DirectoryContent),
    }
}

fn check_component(name: &str) -> Result<(), LeftOut> {
    match name {
        "" => Err(LeftOut::EmptyComponent),
        "." | ".." => Err(LeftOut::DotComponent),
        name if name.len() > MAX_NAME => Err(LeftOut::NameTooLong),
        _ => Ok(()),
    }
}

/// Cleans a path inside a dataset that a user wrote (`/a/b/`, `a/b`): the components, or what is wrong.
pub fn parse_path(path: &str) -> Result<Vec<&str>, LeftOut> {
    let trimmed = path.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(Vec::new());
    }
    if trimmed.contains('\0') {
        return Err(LeftOut::ZeroByte);
    }
    trimmed
        .split('/')
        .map(|name| check_component(name).map(|()| name))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_that_are_not_paths_are_left_out_with_their_reason() {
        let long = [b'x'; 256];
        for (key, reason) in [
            (&b"a//b"[..], LeftOut::EmptyComponent),
            (b"/a", LeftOut::EmptyComponent),
            (b"a//", LeftOut::EmptyComponent),
            (b"//", LeftOut::EmptyComponent),
            (b".", LeftOut::DotComponent),
            (b"a/../b", LeftOut::DotComponent),
            (b"a/./", LeftOut::DotComponent),
            (b"a/\xff", LeftOut::NotUtf8),
            (b"a\0b", LeftOut::ZeroByte),
            (&long, LeftOut::NameTooLong),
        ] {
            assert_eq!(classify(key, 0), Err(reason), "{key:?}");
        }
        assert_eq!(classify(b"a/", 3), Err(LeftOut::DirectoryContent));
    }

    #[test]
    fn a_key_with_spaces_unicode_controls_or_255_bytes_is_its_own_path() {
        let longest = "x".repeat(255);
        for key in [
            "a b/c",
            "été/日本",
            "tab\there/new\nline",
            "...",
            "a/.b",
            &longest,
        ] {
            assert_eq!(classify(key.as_bytes(), 1), Ok(KeyPath::File(key)));
        }
        assert_eq!(classify(b"a/b/", 0), Ok(KeyPath::Directory("a/b")));
        assert_eq!(classify(b"", 0), Ok(KeyPath::Directory("")));
    }

    proptest! {
        #[test]
        fn no_key_yields_a_path_that_leaves_the_mount(key in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(0u8), any::<u8>()], 0..24)) {
            if let Ok(KeyPath::File(path)) = classify(&key, 1) {
                prop_assert_eq!(path.as_bytes(), &key[..]);
                for name in path.split('/') {
                    prop_assert!(!matches!(name, "" | "." | ".."));
                    prop_assert!(name.len() <= MAX_NAME);
                }
            }
        }
    }
}
