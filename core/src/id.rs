//! Identifiers. Each is a type of its own, so that one cannot be passed where another is meant.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest worker or node name, and longest name of a dataset from before names were labels, in bytes.
pub const MAX_NAME: usize = 128;
/// Longest namespace, and longest name of a new dataset, in bytes: those of a DNS label.
pub const MAX_LABEL: usize = 63;
/// The namespace of datasets that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What is wrong with a name that the user gave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name breaks the rule for names.
    #[error(
        "{what} name {name:?} is not valid: use 1 to {MAX_NAME} letters, digits, '.', '_' or '-', and start with a letter or digit"
    )]
    Invalid {
        /// Which kind of name.
        what: &'static str,
        /// The name as given.
        name: String,
    },
    /// The name breaks the rule for namespaces and new datasets.
    #[error(
        "{what} name {name:?} is not valid: use 1 to {MAX_LABEL} lower-case letters, digits or '-', and start and end with a letter or digit"
    )]
    Label {
        /// Which kind of name.
        what: &'static str,
        /// The name as given.
        name: String,
    },
    /// The part behind `@` is not a snapshot number.
    #[error("snapshot {0:?} is not valid: write NAME@NUMBER, for example imagenet@3")]
    Snapshot(String),
}

fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    let valid = !name.is_empty()
        && name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if valid {
        Ok(())
    } else {
        Err(NameError::Invalid {
            what,
            name: shown(name),
        })
    }
}

/// The rule for names from before they were labels. What breaks it is told the rule of today, which a new name must keep.
fn check_old_name(what: &'static str, name: &str) -> Result<(), NameError> {
    check_name(what, name).or_else(|_| check_label(what, name))
}

/// The rule of DNS labels, which Kubernetes has for names, too.
fn check_label(what: &'static str, name: &str) -> Result<(), NameError> {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let valid = name.len() <= MAX_LABEL
        && is_end(name.chars().next())
        && is_end(name.chars().next_back())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if valid {
        return Ok(());
    }
    Err(NameError::Label {
        what,
        name: shown(name),
    })
}

/// As much of a name as fits a message.
fn shown(name: &str) -> String {
    /// Longest name that is repeated, in characters.
    const LONGEST: usize = 300;
    match name.char_indices().nth(LONGEST) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}…", &name[..end]),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $parse:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Ok(Self($parse(name)?.into()))
            }
        }

        // Equality, order and hash are the text's.
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a dataset, with its namespace if that is not `default`: `imagenet`, `team-a/imagenet`. This is the key
    /// of all that belongs to a dataset, in one form: `default/imagenet` is read as `imagenet`.
    DatasetName,
    qualified
);
name_type!(
    /// The name of one worker; placement hashes it, so it stays the same over a restart.
    WorkerId,
    |name| check_name("worker", name).map(|()| name)
);
name_type!(
    /// The name of the machine that a process runs on.
    NodeName,
    |name| check_name("node", name).map(|()| name)
);
name_type!(
    /// The name of credentials that the master keeps.
    ///
    /// Written as a dataset's: `keys`, `team-a/keys`.
    CredentialName,
    |name| qualified_as("credentials", name)
);

name_type!(
    /// The name of a zone or a group: of a place in the cluster.
    PlaceName,
    |name| check_name("place", name).map(|()| name)
);

/// The one form of a dataset's name. In the default namespace names may be longer and have more characters: those from
/// before namespaces stay valid.
fn qualified(name: &str) -> Result<&str, NameError> {
    qualified_as("dataset", name)
}

fn qualified_as<'a>(what: &'static str, name: &'a str) -> Result<&'a str, NameError> {
    match name.split_once('/') {
        None => check_old_name(what, name).map(|()| name),
        Some((DEFAULT_NAMESPACE, bare)) => check_old_name(what, bare).map(|()| bare),
        Some((namespace, bare)) => {
            check_label("namespace", namespace)?;
            check_label(what, bare)?;
            Ok(name)
        }
    }
}

impl CredentialName {
    /// What a source of a dataset names: `keys` stands for those in the dataset's namespace.
    pub fn of_source(dataset: &DatasetName, name: &str) -> Result<Self, NameError> {
        match name.split_once('/') {
            Some(_) => name.parse(),
            None => format!("{}/{name}", dataset.namespace()).parse(),
        }
    }

    /// The namespace; `default` if the name has none.
    pub fn namespace(&self) -> &str {
        split_name(&self.0).0
    }

    /// Checks the rule that names of new credentials keep.
    pub fn check_new(&self) -> Result<(), NameError> {
        check_label("credentials", split_name(&self.0).1)
    }
}

/// Namespace and name of a dataset's name in its one form.
pub fn split_name(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((DEFAULT_NAMESPACE, name))
}

/// Checks the name of a namespace.
pub fn check_namespace(namespace: &str) -> Result<(), NameError> {
    check_label("namespace", namespace)
}

impl DatasetName {
    /// The dataset called `name` in a namespace.
    pub fn in_namespace(namespace: &str, name: &str) -> Result<Self, NameError> {
        check_namespace(namespace)?;
        check_old_name("dataset", name)?;
        format!("{namespace}/{name}").parse()
    }

    /// The namespace; `default` if the name has none.
    pub fn namespace(&self) -> &str {
        split_name(&self.0).0
    }

    /// The name inside the namespace.
    pub fn name(&self) -> &str {
        split_name(&self.0).1
    }

    /// Checks the rule that names of new datasets keep.
    pub fn check_new(&self) -> Result<(), NameError> {
        check_label("dataset", self.name())
    }

    /// A file name that no other dataset has.
    pub fn file_name(&self) -> String {
        self.0.replace('/', "+")
    }
}

/// One immutable version of a dataset's listing, written `imagenet@3`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SnapshotId {
    /// The dataset.
    pub dataset: DatasetName,
    /// Counts up from 1 with each refresh that found a change.
    pub version: u64,
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.dataset, self.version)
    }
}

/// A dataset with an optional snapshot, as a user writes it: `imagenet`, `imagenet@3` or `team-a/imagenet@3`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatasetRef {
    /// The dataset.
    pub dataset: DatasetName,
    /// The snapshot's number; the newest one when absent.
    pub version: Option<u64>,
}

impl FromStr for DatasetRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (name, version) = match text.split_once('@') {
            None => (text, None),
            Some((name, number)) => {
                let number = number
                    .parse::<u64>()
                    .ok()
                    .filter(|n| *n > 0)
                    .ok_or_else(|| NameError::Snapshot(shown(text)))?;
                (name, Some(number))
            }
        };
        Ok(Self {
            dataset: name.parse()?,
            version,
        })
    }
}

impl fmt::Display for DatasetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            None => write!(f, "{}", self.dataset),
            Some(version) => write!(f, "{}@{version}", self.dataset),
        }
    }
}

/// Identifies an origin (a bucket on an endpoint, a directory): a stable hash of its canonical location.
///
/// The name of credentials is part of it, if there is one: two datasets that read one bucket share their blocks if they read
/// it with the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OriginId(pub u64);

impl OriginId {
    /// Derives the id from the canonical location, for example `s3://bucket?endpoint=http://host:9000`.
    pub fn of_location(location: &str) -> Self {
        let digest = blake3::hash(location.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        Self(u64::from_le_bytes(first))
    }
}

impl fmt::Display for OriginId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for OriginId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OriginId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_slash_or_a_leading_dot_is_refused() {
        for bad in ["", "a/b", ".hidden", "-x", "a b", &"x".repeat(MAX_NAME + 1)] {
            assert!(bad.parse::<WorkerId>().is_err(), "{bad:?}");
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
        assert!("node-1_2.1".parse::<NodeName>().is_ok());
    }

    #[test]
    fn the_name_of_a_dataset_has_one_form_with_and_without_a_namespace() {
        let longest = format!("{0}/{0}", "x".repeat(MAX_LABEL));
        for (text, form, namespace, name) in [
            ("imagenet", "imagenet", "default", "imagenet"),
            ("default/imagenet", "imagenet", "default", "imagenet"),
            ("Image-net_2.1", "Image-net_2.1", "default", "Image-net_2.1"),
            ("team-a/imagenet", "team-a/imagenet", "team-a", "imagenet"),
            ("7/0", "7/0", "7", "0"),
            (&longest, &longest, &longest[..63], &longest[64..]),
        ] {
            let parsed: DatasetName = text.parse().unwrap();
            let parts = (parsed.as_str(), parsed.namespace(), parsed.name());
            assert_eq!(parts, (form, namespace, name));
            assert_eq!(DatasetName::in_namespace(namespace, name).unwrap(), parsed);
            assert!(!parsed.file_name().contains('/'));
        }
        let files = ["a/b", "a-b", "a", "b"].map(|n| n.parse::<DatasetName>().unwrap().file_name());
        assert_eq!(
            files.iter().collect::<std::collections::HashSet<_>>().len(),
            4
        );
    }

    #[test]
    fn hostile_names_are_refused_wherever_they_stand() {
        let long = "x".repeat(MAX_LABEL + 1);
        let bad = [
            "", ".", "..", "a/b", "/", "a b", "a\0", "a\n", "\u{202e}", "é", "-a", "a-", "A",
            "a_b", "a.b", "@1", "+", &long,
        ];
        for bad in bad {
            for name in [
                format!("{bad}/x"),
                format!("x/{bad}"),
                format!("team/{bad}/x"),
            ] {
                assert!(name.parse::<DatasetName>().is_err(), "{name:?}");
            }
            assert!(DatasetName::in_namespace(bad, "x").is_err(), "{bad:?}");
            assert!(DatasetName::in_namespace("team", bad).is_err(), "{bad:?}");
        }
        for bad in [
            "",
            ".",
            "..",
            "/x",
            "x/",
            "//",
            "a/b/c",
            "default/",
            "default/a/b",
            "a\nb",
            "../x",
            "x/..",
        ] {
            assert!(bad.parse::<DatasetName>().is_err(), "{bad:?}");
        }
        let huge = format!("{}/x", "y".repeat(1 << 20));
        let error = huge.parse::<DatasetName>().unwrap_err();
        assert!(error.to_string().len() < 600, "a message stays short");
        for (name, new) in [
            ("a", true),
            ("t/a", true),
            ("A", false),
            ("a.b", false),
            (&long, false),
        ] {
            let name: DatasetName = name.parse().unwrap();
            assert_eq!(name.check_new().is_ok(), new, "{name}");
        }
    }

    #[test]
    fn a_dataset_reference_takes_an_optional_positive_snapshot_number() {
        let plain: DatasetRef = "imagenet".parse().unwrap();
        assert_eq!(plain.version, None);
        let pinned: DatasetRef = "imagenet@3".parse().unwrap();
        assert_eq!(pinned.version, Some(3));
        assert_eq!(pinned.to_string(), "imagenet@3");
        let of_team: DatasetRef = "team-a/imagenet@3".parse().unwrap();
        assert_eq!(
            (of_team.dataset.namespace(), of_team.version),
            ("team-a", Some(3))
        );
        assert_eq!(of_team.to_string(), "team-a/imagenet@3");
        for bad in [
            "imagenet@",
            "imagenet@0",
            "imagenet@x",
            "@3",
            "team@3/imagenet",
            "a/@3",
        ] {
            assert!(bad.parse::<DatasetRef>().is_err(), "{bad}");
        }
    }
}
