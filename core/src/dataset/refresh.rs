//! When a dataset is listed again by itself.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::written::{DAY, HOUR, MINUTE, WrittenTime, written_as};

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

/// Shortest interval: a listing asks an origin for each thousand of its objects.
const SHORTEST: u32 = MINUTE;
const LONGEST: u32 = 30 * DAY;
const WRITTEN: WrittenTime = WrittenTime {
    units: &[('m', MINUTE), ('h', HOUR), ('d', DAY)],
    range: SHORTEST..=LONGEST,
    rule: "from 1m to 30d; write a number and a unit: 15m, 6h or 1d",
};
written_as!(Interval, WRITTEN);

impl Interval {
    /// As a time.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
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
