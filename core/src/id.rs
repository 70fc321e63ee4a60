//! Identifiers. Each is a type of its own, so that one cannot be passed where another is meant.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest dataset, worker or node name, in bytes.
pub const MAX_NAME: usize = 128;

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
            name: name.to_owned(),
        })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
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
                check_name($what, name)?;
                Ok(Self(name.into()))
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
    /// The name of a dataset: letters, digits, `.`, `_` and `-`.
    DatasetName,
    "dataset"
);
name_type!(
    /// The name of one worker; placement hashes it, so it stays the same over a restart.
    WorkerId,
    "worker"
);
name_type!(
    /// The name of the machine that a process runs on.
    NodeName,
    "node"
);

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

/// A dataset with an optional snapshot, as a user writes it: `imagenet` or `imagenet@3`.
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
                    .ok_or_else(|| NameError::Snapshot(text.to_owned()))?;
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
/// Credentials are not part of it, so two datasets that read one bucket share their blocks.
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
            assert!(bad.parse::<DatasetName>().is_err(), "{bad:?}");
        }
        assert!("image-net_2.1".parse::<DatasetName>().is_ok());
    }

    #[test]
    fn a_dataset_reference_takes_an_optional_positive_snapshot_number() {
        let plain: DatasetRef = "imagenet".parse().unwrap();
        assert_eq!(plain.version, None);
        let pinned: DatasetRef = "imagenet@3".parse().unwrap();
        assert_eq!(pinned.version, Some(3));
        assert_eq!(pinned.to_string(), "imagenet@3");
        for bad in ["imagenet@", "imagenet@0", "imagenet@x", "@3"] {
            assert!(bad.parse::<DatasetRef>().is_err(), "{bad}");
        }
    }
}
