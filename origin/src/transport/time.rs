//! Times as services write them, in listings and in headers, and the versions that are made of them.
//!
//! S3 lists RFC 3339; what speaks its protocol also sends times without a zone (which is UTC then), with a space in
//! the middle, or as HTTP writes them. A time that cannot be read is none, and says nothing about a version.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;

/// What a version starts with when the service lists no ETag: the time of the last change stands in.
pub(crate) const TIME_VERSION: &str = "mtime-";
/// Stands for a time that could not be read.
const NO_TIME: &str = "unknown";

const SECOND: i64 = 1_000_000_000;
/// The older two of the three forms that HTTP allows.
const OLD_FORMS: [&str; 2] = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

/// Nanoseconds since 1970. `None` for what is not a time, and for the years that 64 bits do not reach.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    // Go's way to print times names the zone twice.
    let text = text.strip_suffix(" UTC").unwrap_or(text);
    let text = text.strip_suffix(" +0000").unwrap_or(text);
    let at = |time: DateTime| Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp());
    let time = text
        .parse()
        .ok()
        .or_else(|| at(text.parse().ok()?))
        .or_else(|| HTTP.parse_timestamp(text).ok())
        .or_else(|| HTTP.parse_timestamp(format!("{text} GMT")).ok())
        .or_else(|| {
            let mut forms = OLD_FORMS.iter();
            at(forms.find_map(|form| DateTime::strptime(form, text).ok())?)
        })?;
    i64::try_from(time.as_nanosecond()).ok()
}

/// Time until `text`, none if it is past. `None` for what is not a time, and for one that is centuries away.
pub(crate) fn left(text: &str) -> Option<Duration> {
    parse(text).map(until)
}

/// Time until so many nanoseconds since 1970, none if that is past.
pub(crate) fn until(expires_ns: i64) -> Duration {
    let now = jiff::Timestamp::now().as_nanosecond();
    Duration::from_nanos(u64::try_from(i128::from(expires_ns) - now).unwrap_or(0))
}

/// Services have been seen to name the wrong day of the week.
const HTTP: rfc2822::DateTimeParser = rfc2822::DateTimeParser::new().relaxed_weekday(true);

/// The version of an object without ETag. The size is all there is without a time.
pub(crate) fn version(time_ns: Option<i64>, size: u64) -> String {
    let Some(time) = time_ns else {
        return format!("{TIME_VERSION}{NO_TIME}-{size}");
    };
    let seconds = time.div_euclid(SECOND);
    match time.rem_euclid(SECOND) {
        0 => format!("{TIME_VERSION}{seconds}"),
        part => format!("{TIME_VERSION}{seconds}.{part:09}"),
    }
}

/// Whether an answer with this `Last-Modified` is of a version that [`version`] made; `None` when that cannot be told.
/// Headers have whole seconds, rounded down or up.
pub(crate) fn agrees(version: &str, last_modified: &str) -> Option<bool> {
    let listed = version.strip_prefix(TIME_VERSION)?;
    let (seconds, rounded) = match listed.split_once('.') {
        Some((seconds, _)) => (seconds.parse::<i64>().ok()?, 1),
        None => (listed.parse().ok()?, 0),
    };
    let sent = parse(last_modified)?.div_euclid(SECOND);
    Some((seconds..=seconds.saturating_add(rounded)).contains(&sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_time_that_services_send_is_read() {
        const TIME: i64 = 1_767_323_045 * SECOND;
        for text in [
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05.000Z",
            "2026-01-02T05:04:05+02:00",
            "2026-01-02T05:04:05.000000+0200",
            "2026-01-02T03:04:05",
            "2026-01-02 03:04:05",
            "2026-01-02 03:04:05Z",
            "2026-01-02 03:04:05 UTC",
            "2026-01-02 03:04:05 +0000 UTC",
            "20260102T030405Z",
            " 2026-01-02T03:04:05Z\n",
            "Fri, 02 Jan 2026 03:04:05 GMT",
            "Fri, 2 Jan 2026 05:04:05 +0200",
            "Mon, 02 Jan 2026 03:04:05 GMT",
            "Fri, 02 Jan 2026 03:04:05 UTC",
            "Friday, 02-Jan-26 03:04:05 GMT",
            "Fri Jan  2 03:04:05 2026",
        ] {
            assert_eq!(parse(text), Some(TIME), "{text}");
        }
        assert_eq!(parse("1970-01-01T00:00:01.500Z"), Some(3 * SECOND / 2));
    }

    #[test]
    fn what_is_not_a_time_is_none() {
        for text in [
            "",
            "yesterday",
            "0001-01-01T00:00:00Z",
            "2026-13-02T03:04:05Z",
            "9999999999999999",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_header_agrees_with_the_second_that_was_listed_rounded_either_way() {
        let http = |second: u32| format!("Thu, 01 Jan 1970 00:00:{second:02} GMT");
        let whole = version(Some(5 * SECOND), 1);
        assert_eq!(whole, "mtime-5");
        let agreed = |version: &str| [4, 5, 6].map(|second| agrees(version, &http(second)));
        assert_eq!(agreed(&whole), [false, true, false].map(Some));
        let part = version(Some(5 * SECOND - 1_000_000), 1);
        assert_eq!(agreed(&part), [true, true, false].map(Some));
    }

    #[test]
    fn a_time_that_is_missing_on_either_side_is_no_witness() {
        let http = "Thu, 01 Jan 1970 00:00:05 GMT";
        assert_eq!(agrees(&version(None, 7), http), None);
        assert_eq!(agrees(&version(Some(5 * SECOND), 7), "yesterday"), None);
        assert_eq!(agrees("an-etag", http), None);
        assert_ne!(version(None, 7), version(None, 8));
    }
}
