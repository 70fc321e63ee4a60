//! How long a read waits, as in `10m`.

use serde::{Deserialize, Serialize};

use super::written::{HOUR, MINUTE, WrittenTime, written_as};

/// How long a read waits for a source, in seconds; written with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Patience(pub u32);

/// Longest patience: a day.
const LONGEST: u32 = 24 * HOUR;
const WRITTEN: WrittenTime = WrittenTime {
    units: &[('s', 1), ('m', MINUTE), ('h', HOUR)],
    range: 1..=LONGEST,
    rule: "from 1s to 24h; write a number and a unit: 30s, 10m or 2h",
};
written_as!(Patience, WRITTEN);

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
