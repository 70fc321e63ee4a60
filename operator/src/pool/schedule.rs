//! Sizes at certain times.
//!
//! Of a schedule the entry counts whose time came last, however long ago that was: what was missed while no operator acted is not
//! lost.

use cronexpr::{Crontab, MakeTimestamp};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::objects::ScheduledSize;

/// How far back an entry's last time is looked for: first where it is cheap. An entry whose time comes rarer than the last of
/// these has no size yet.
const BACK: [SignedDuration; 5] = [
    SignedDuration::from_hours(1),
    SignedDuration::from_hours(24),
    SignedDuration::from_hours(24 * 8),
    SignedDuration::from_hours(24 * 32),
    SignedDuration::from_hours(24 * 366),
];

/// Reads the time of an entry.
pub(crate) fn parse(entry: &ScheduledSize) -> Result<Crontab, String> {
    let zone = entry.time_zone.as_deref().unwrap_or("UTC");
    let fields = entry.cron.split_whitespace().count();
    if fields != 5 || zone.contains(char::is_whitespace) {
        return Err(format!(
            "cron: {:?} has {fields} fields; write five: minute, hour, day of month, month, day of week, and the zone in timeZone",
            entry.cron
        ));
    }
    cronexpr::parse_crontab(&format!("{} {zone}", entry.cron)).map_err(|error| {
        // What it was, and where, over several lines.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default();
        let reason = reason.trim_start_matches(['^', ' ']);
        format!(
            "cron: {:?} in the zone {zone} is not understood ({reason}); write as in a crontab, for example \"0 8 * * 1-5\"",
            entry.cron
        )
    })
}

/// The size that a schedule says for a moment; none before its first time.
pub(crate) fn size_at(schedule: &[ScheduledSize], now: Timestamp) -> Option<i32> {
    let begun = schedule.iter().filter_map(|entry| {
        let began = last_before(&parse(entry).ok()?, now)?;
        Some((began, entry.replicas))
    });
    // Of two at the same time the later in the list counts.
    begun.max_by_key(|(began, _)| *began).map(|(_, size)| size)
}

/// The last time of an entry, up to this moment.
fn last_before(times: &Crontab, now: Timestamp) -> Option<Timestamp> {
    BACK.iter().find_map(|back| {
        let from = MakeTimestamp(now.checked_sub(*back).ok()?);
        let all = times.iter_after(from).ok()?;
        all.map_while(Result::ok)
            .map(|time| time.timestamp())
            .take_while(|time| *time <= now)
            .last()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cron: &str, zone: Option<&str>, replicas: i32) -> ScheduledSize {
        ScheduledSize {
            cron: cron.to_owned(),
            time_zone: zone.map(str::to_owned),
            replicas,
        }
    }

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    #[test]
    fn the_size_is_that_of_the_entry_whose_time_came_last() {
        // A working day in Shanghai, which is eight hours ahead.
        let shanghai = Some("Asia/Shanghai");
        let schedule = [
            entry("0 8 * * 1-5", shanghai, 10),
            entry("0 20 * * 1-5", shanghai, 2),
            entry("30 9 1 1 *", None, 50),
        ];
        for (time, size) in [
            ("2026-03-02T00:00:00Z", 10), // Monday, 08:00
            ("2026-03-01T23:59:59Z", 2),  // a second before: Friday evening's
            ("2026-03-02T11:59:59Z", 10), // 19:59
            ("2026-03-02T12:00:00Z", 2),  // 20:00
            ("2026-03-08T03:00:00Z", 2),  // Sunday
            ("2026-01-01T10:00:00Z", 50), // a year's first day, 18:00 there
            ("2026-01-01T12:00:00Z", 2),  // 20:00 there
        ] {
            assert_eq!(size_at(&schedule, at(time)), Some(size), "{time}");
        }
        assert_eq!(size_at(&[], at("2026-03-02T00:00:00Z")), None);
        // Of an entry that never comes, and of the others nothing is lost.
        let never = entry("0 0 30 2 *", None, 7);
        assert_eq!(
            size_at(std::slice::from_ref(&never), at("2026-03-02T00:00:00Z")),
            None
        );
        let both = [never, entry("* * * * *", None, 3)];
        assert_eq!(size_at(&both, at("2026-03-02T00:00:00Z")), Some(3));
        let same = [entry("0 0 * * *", None, 1), entry("0 0 * * *", None, 2)];
        assert_eq!(size_at(&same, at("2026-03-02T00:00:00Z")), Some(2));
    }

    #[test]
    fn clocks_that_are_set_back_and_on_do_no_harm() {
        let berlin = Some("Europe/Berlin");
        // 02:30 does not exist on the last Sunday of March, and exists twice in October.
        let schedule = [
            entry("30 2 * * *", berlin, 5),
            entry("0 4 * * *", berlin, 1),
        ];
        assert_eq!(size_at(&schedule, at("2026-03-29T06:00:00Z")), Some(1));
        assert_eq!(size_at(&schedule, at("2026-10-25T01:45:00Z")), Some(5));
        assert_eq!(size_at(&schedule, at("2026-10-25T03:30:00Z")), Some(1));
    }

    #[test]
    fn times_that_are_none_are_refused_with_what_to_write() {
        for (cron, zone) in [
            ("0 8 * *", None),
            ("0 8 * * 1-5 UTC", None),
            ("61 8 * * *", None),
            ("0 8 * * SOMEDAY", None),
            ("@daily", None),
            ("", None),
            ("0 8 * * *", Some("Middle/Earth")),
            ("0 8 * * *", Some("UTC UTC")),
            ("0 8 * * *", Some("")),
        ] {
            let error = parse(&entry(cron, zone, 1)).expect_err(cron);
            assert!(error.contains("write") && !error.contains('\n'), "{error}");
        }
        parse(&entry(
            "*/15 8-18 1,15 JAN-MAR MON",
            Some("America/New_York"),
            1,
        ))
        .unwrap();
    }
}
