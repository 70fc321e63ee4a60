//! Times as a specification writes them: a number and a unit, as in `10m`.

use std::fmt;
use std::ops::RangeInclusive;

use schemars::{Schema, json_schema};

pub(super) const MINUTE: u32 = 60;
pub(super) const HOUR: u32 = 60 * MINUTE;
pub(super) const DAY: u32 = 24 * HOUR;

/// Which times may be written, in seconds, and how.
pub(super) struct WrittenTime {
    /// Units, and how long each is, the shortest first.
    pub(super) units: &'static [(char, u32)],
    pub(super) range: RangeInclusive<u32>,
    /// The range and some examples, as they follow on "is not a time".
    pub(super) rule: &'static str,
}

impl WrittenTime {
    pub(super) fn parse(&self, text: &str) -> Result<u32, String> {
        self.seconds_of(text).ok_or_else(|| {
            let text: String = text.chars().take(32).collect();
            format!("{text:?} is not a time {}", self.rule)
        })
    }

    fn seconds_of(&self, text: &str) -> Option<u32> {
        let mut units = self.units.iter();
        let (digits, unit) =
            units.find_map(|(name, unit)| Some((text.strip_suffix(*name)?, *unit)))?;
        if digits.starts_with('+') {
            return None;
        }
        let number: u32 = digits.parse().ok()?;
        let seconds = number.checked_mul(unit)?;
        self.range.contains(&seconds).then_some(seconds)
    }

    /// Writes a time in the longest unit of which it is a whole number.
    pub(super) fn write(&self, seconds: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut units = self.units.iter().rev();
        let whole = units.find(|(_, unit)| seconds.is_multiple_of(*unit));
        let (name, unit) = whole.unwrap_or(&self.units[0]);
        write!(f, "{}{name}", seconds / unit)
    }

    pub(super) fn schema(&self) -> Schema {
        let names: String = self.units.iter().map(|(name, _)| name).collect();
        json_schema!({ "type": "string", "pattern": format!("^[0-9]+[{names}]$") })
    }
}

/// Has a type of seconds be read and written as a [`WrittenTime`].
macro_rules! written_as {
    ($type:ident, $written:expr) => {
        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                $written.parse(text).map(Self)
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $written.write(self.0, f)
            }
        }

        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(time: $type) -> Self {
                time.to_string()
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $written.schema()
            }
        }
    };
}

pub(super) use written_as;
