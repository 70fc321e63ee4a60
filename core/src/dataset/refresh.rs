//! When a dataset is listed again by itself.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// When the sources are listed again without anybody asking for it. Readers see a new snapshot when they mount the dataset anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "RefreshSpec")]
pub struct Refresh {
    /// How long after the last listing the next one begins, give or take a tenth: a number and `m`, `h` or `d`, from `1m` to
    /// `30d`.
    pub interval: Interval,
}

/// A time between two listings, in seconds; written with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Interval(u32);

const MINUTE: u32 = 60;
const HOUR: u32 = 60 * MINUTE;
const DAY: u32 = 24 * HOUR;
/// Shortest interval: a listing asks an origin for each thousand of its objects.
const SHORTEST: u32 = MINUTE;
const LONGEST: u32 = 30 * DAY;

impl Interval {
    /// As a time.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let text: String = text.chars().take(32).collect();
            format!(
                "{text:?} is not a time from 1m to 30d; write a number and a unit: 15m, 6h or 1d"
            )
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "m" => MINUTE,
            "h" => HOUR,
            "d" => DAY,
            _ => return Err(wrong()),
        };
        if digits.starts_with('+') {
            return Err(wrong());
        }
        let number: u32 = digits.parse().map_err(|_| wrong())?;
        let seconds = number.checked_mul(unit);
        seconds
            .filter(|seconds| (SHORTEST..=LONGEST).contains(seconds))
            .map(Self)
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds % DAY == 0 => write!(f, "{}d", seconds / DAY),
            seconds if seconds % HOUR == 0 => write!(f, "{}h", seconds / HOUR),
            seconds => write!(f, "{}m", seconds / MINUTE),
        }
    }
}

impl TryFrom<String> for Interval {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Interval> for String {
    fn from(interval: Interval) -> Self {
        interval.to_string()
    }
}

impl JsonSchema for Interval {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Interval".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+[mhd]$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_with_a_unit_from_a_minute_to_a_month() {
        for (text, seconds, shown) in [
            ("1m", 60, "1m"),
            ("90m", 5400, "90m"),
            ("60m", 3600, "1h"),
            ("24h", 86400, "1d"),
            ("30d", 2_592_000, "30d"),
        ] {
            let interval: Interval = text.parse().unwrap();
            assert_eq!(
                (interval.duration().as_secs(), &*interval.to_string()),
                (seconds, shown)
            );
        }
        for bad in [
            "",
            "m",
            "30",
            "0m",
            "59s",
            "31d",
            "-1m",
            "+1m",
            "1 m",
            "1.5h",
            "99999999999d",
            "4294967295h",
            "1w",
            "١m",
        ] {
            let error = bad.parse::<Interval>().unwrap_err();
            assert!(error.contains("15m, 6h or 1d"), "{error}");
        }
    }
}
