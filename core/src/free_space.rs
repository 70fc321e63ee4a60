//! How much of a disk is to be left to others.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// Free space of a file system: so many bytes, or a part of all that it has.
///
/// ```
/// use weir_core::FreeSpace;
/// let free: FreeSpace = "15%".parse()?;
/// assert_eq!(free.of(1000), 150);
/// let free: FreeSpace = "50GiB".parse()?;
/// assert_eq!(free.of(1000), 50 << 30);
/// # Ok::<_, weir_core::FreeSpaceError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FreeSpace {
    /// So many bytes.
    Bytes(ByteSize),
    /// So many hundredths, below 100.
    Percent(u8),
}

/// A text that says no [`FreeSpace`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no free space; write a size such as 50GiB, or a part below 100% such as 15%")]
pub struct FreeSpaceError(String);

impl FreeSpace {
    /// None.
    pub const NONE: Self = Self::Bytes(ByteSize(0));

    /// The bytes of a file system that has so many.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.0,
            Self::Percent(percent) => (u128::from(total) * u128::from(percent) / 100) as u64,
        }
    }
}

impl Default for FreeSpace {
    fn default() -> Self {
        Self::NONE
    }
}

impl FromStr for FreeSpace {
    type Err = FreeSpaceError;

    fn from_str(text: &str) -> Result<Self, FreeSpaceError> {
        let fail = || FreeSpaceError(text.to_owned());
        if let Some(percent) = text.trim().strip_suffix('%') {
            let percent = percent.parse().ok().filter(|percent| *percent < 100);
            return percent.map(Self::Percent).ok_or_else(fail);
        }
        text.parse().map(Self::Bytes).map_err(|_| fail())
    }
}

impl TryFrom<String> for FreeSpace {
    type Error = FreeSpaceError;

    fn try_from(text: String) -> Result<Self, FreeSpaceError> {
        text.parse()
    }
}

impl From<FreeSpace> for String {
    fn from(free: FreeSpace) -> Self {
        free.to_string()
    }
}

impl fmt::Display for FreeSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // To the byte: a size is rounded where it is shown.
            Self::Bytes(bytes) => write!(f, "{}", bytes.0),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_a_size_or_a_part_and_nothing_else() {
        for text in ["0", "0%", "15%", "99%", "50GiB", " 1.5TB "] {
            let free: FreeSpace = text.parse().unwrap();
            assert_eq!(free.to_string().parse(), Ok(free), "{text}");
        }
        for text in ["", "%", "100%", "-1%", "1.5%", "300%", "much", "50GiB%"] {
            let error = text.parse::<FreeSpace>().unwrap_err();
            assert!(error.to_string().contains("such as 15%"), "{text}: {error}");
        }
        assert_eq!(
            FreeSpace::Percent(99).of(u64::MAX),
            u64::MAX / 100 * 99 + 14
        );
    }
}
