//! A time that a user writes, as in `10m`.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How long a read waits for a source, in seconds; written with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Patience(pub u32);

/// Longest patience: a day.
const LONGEST: u32 = 24 * 60 * 60;

impl FromStr for Patience {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a time from 1s to 24h; write a number and a unit: 30s, 10m or 2h"
            )
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            _ => return Err(wrong()),
        };
        if digits.starts_with('+') {
            return Err(wrong());
        }
        let number: u32 = digits.parse().map_err(|_| wrong())?;
        let seconds = number.checked_mul(unit);
        seconds
            .filter(|seconds| (1..=LONGEST).contains(seconds))
            .map(Self)
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            seconds if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            seconds => write!(f, "{seconds}s"),
        }
    }
}

impl TryFrom<String> for Patience {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Patience> for String {
    fn from(patience: Patience) -> Self {
        patience.to_string()
    }
}

impl JsonSchema for Patience {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Patience".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+[smh]$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patience_is_a_number_with_a_unit_up_to_a_day() {
        for (text, seconds, shown) in [
            ("1s", 1, "1s"),
            ("90s", 90, "90s"),
            ("600s", 600, "10m"),
            ("60m", 3600, "1h"),
            ("24h", LONGEST, "24h"),
        ] {
            let patience: Patience = text.parse().unwrap();
            assert_eq!((patience.0, &*patience.to_string()), (seconds, shown));
        }
        for bad in [
            "",
            "s",
            "30",
            "0s",
            "25h",
            "1d",
            "-1s",
            "+1s",
            "1 s",
            "1.5h",
            "99999999999s",
            "4294967295h",
            "10M",
            "١s",
        ] {
            let error = bad.parse::<Patience>().unwrap_err();
            assert!(error.contains("30s, 10m or 2h"), "{error}");
        }
    }
}
