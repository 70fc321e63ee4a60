//! How many workers a pool is to have.
//!
//! More workers help only where the ones that there are have no room: while they have, what is missing in the cache was not read yet,
//! or is being fetched. So a pool grows when its workers are full *and* less than is wished is cached or comes from the cache.
//! It shrinks when what it keeps would fit into one worker less, with room to spare, and nothing is below its aim. Between the two is
//! a range in which it stays, so that it does not go to and fro.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::schedule;
use crate::objects::{Autoscaling, CachePoolSpec, Scaling, Trend};

/// Workers are full from this share of their capacity on, and there is room for one less up to this share of what is left then.
const FULL_PERCENT: u128 = 90;
const ROOMY_PERCENT: u128 = 70;
/// How long something must be so, and the least time between two steps.
const STABILIZATION: SignedDuration = SignedDuration::from_mins(5);

/// What the master knows of a pool's workers and of the Datasets that they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Workers that are members of the cluster.
    pub(crate) members: i32,
    /// Bytes that they can keep, and that they do.
    pub(crate) capacity: u64,
    pub(crate) used: u64,
    /// Share of the Datasets' bytes that is cached, in percent; none if there are no Datasets.
    pub(crate) cached: Option<u64>,
    /// Share of the bytes that were read lately which came from the cache, in percent; none if nothing was read.
    pub(crate) hits: Option<u64>,
}

/// The size of a pool that has one, and the state that is kept of it.
///
/// `seen` is none while the master does not answer: then the size stays. `before` is what this function gave last.
pub(crate) fn size(
    spec: &CachePoolSpec,
    replicas: i32,
    before: Option<&Scaling>,
    seen: Option<&Usage>,
    now: Timestamp,
) -> (i32, Option<Scaling>) {
    let scheduled = schedule::size_at(&spec.schedule, now);
    let Some(auto) = &spec.autoscaling else {
        return (scheduled.unwrap_or(replicas), None);
    };
    let most = auto.max_replicas.max(1);
    let least = scheduled.unwrap_or(auto.min_replicas);
    let least = least.clamp(auto.min_replicas.clamp(1, most), most);
    let first = || Scaling {
        size: replicas,
        ..Scaling::default()
    };
    let mut scaling = before.cloned().unwrap_or_else(first);
    let bounded = scaling.size.clamp(least, most);
    if bounded != scaling.size {
        scaling.size = bounded;
        scaling.changed = Some(Time(now));
    }
    let Some(seen) = seen else {
        return (scaling.size, Some(scaling));
    };
    let (trend, reason) = trend(auto, seen);
    if trend != scaling.trend || scaling.since.is_none() {
        scaling.trend = trend;
        scaling.since = Some(Time(now));
    }
    scaling.reason = reason;
    let wait = auto.stabilization_seconds.map_or(STABILIZATION, |seconds| {
        SignedDuration::from_secs(i64::from(seconds))
    });
    let is_long_ago = |time: &Option<Time>| {
        time.as_ref()
            .is_none_or(|time| now.duration_since(time.0) >= wait)
    };
    // A step is judged by what came of the one before.
    let is_settled = seen.members == scaling.size;
    let next = match trend {
        Trend::Stay => scaling.size,
        Trend::Out => scaling.size.saturating_add(1).min(most),
        Trend::In => scaling.size.saturating_sub(1).max(least),
    };
    if next != scaling.size
        && is_settled
        && is_long_ago(&scaling.since)
        && is_long_ago(&scaling.changed)
    {
        scaling.size = next;
        scaling.changed = Some(Time(now));
        scaling.since = Some(Time(now));
    }
    (scaling.size, Some(scaling))
}

/// Where the size tends to, and why.
fn trend(auto: &Autoscaling, seen: &Usage) -> (Trend, String) {
    let is_below = |percent: Option<u64>, aim: Option<i32>| {
        let aim = u64::try_from(aim?).ok()?;
        percent.filter(|percent| *percent < aim)
    };
    let of = |part: u64, whole: u64| (u128::from(part) * 100).checked_div(u128::from(whole));
    let filled = of(seen.used, seen.capacity);
    let below = is_below(seen.cached, auto.cached_percent)
        .map(|percent| format!("{percent}% of the Datasets are cached"))
        .or_else(|| {
            is_below(seen.hits, auto.hit_percent)
                .map(|percent| format!("{percent}% of what is read comes from the cache"))
        });
    if let Some(below) = below {
        return match filled {
            Some(filled) if filled >= FULL_PERCENT => {
                (Trend::Out, format!("{below}, and the workers are full"))
            }
            _ => (
                Trend::Stay,
                format!("{below}, and the workers have room for more"),
            ),
        };
    }
    let members = u64::try_from(seen.members).unwrap_or_default();
    if members > 1 {
        let without_one = seen.capacity - seen.capacity / members;
        if of(seen.used, without_one).is_some_and(|filled| filled <= ROOMY_PERCENT) {
            let reason = "what is cached fits into one worker less".to_owned();
            return (Trend::In, reason);
        }
    }
    (Trend::Stay, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::ScheduledSize;

    const GIB: u64 = 1 << 30;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn pool(min: i32, max: i32) -> CachePoolSpec {
        CachePoolSpec {
            replicas: Some(2),
            autoscaling: Some(Autoscaling {
                min_replicas: min,
                max_replicas: max,
                cached_percent: Some(80),
                hit_percent: Some(90),
                stabilization_seconds: Some(60),
            }),
            ..CachePoolSpec::default()
        }
    }

    /// So many workers of 100 GiB each.
    fn usage(members: i32, used: u64, cached: Option<u64>, hits: Option<u64>) -> Usage {
        Usage {
            members,
            capacity: 100 * GIB * members as u64,
            used: used * GIB,
            cached,
            hits,
        }
    }

    #[test]
    fn where_a_size_tends_to() {
        let auto = pool(1, 10).autoscaling.unwrap();
        for (name, seen, expected) in [
            (
                "full, little cached",
                usage(2, 190, Some(50), None),
                Trend::Out,
            ),
            (
                "full, few hits",
                usage(2, 190, Some(90), Some(50)),
                Trend::Out,
            ),
            (
                "room, little cached",
                usage(2, 100, Some(50), None),
                Trend::Stay,
            ),
            ("room, few hits", usage(2, 10, None, Some(5)), Trend::Stay),
            (
                "full, all well",
                usage(2, 200, Some(90), Some(99)),
                Trend::Stay,
            ),
            (
                "between full and roomy",
                usage(2, 75, Some(90), None),
                Trend::Stay,
            ),
            ("roomy", usage(2, 70, Some(90), None), Trend::In),
            ("roomy and nothing read", usage(2, 0, None, None), Trend::In),
            (
                "the only one",
                usage(1, 0, Some(100), Some(100)),
                Trend::Stay,
            ),
            ("none that answers", usage(0, 0, None, None), Trend::Stay),
        ] {
            assert_eq!(trend(&auto, &seen).0, expected, "{name}");
        }
        let without_aims = Autoscaling {
            cached_percent: None,
            hit_percent: None,
            ..auto
        };
        let seen = usage(2, 200, Some(1), Some(1));
        assert_eq!(trend(&without_aims, &seen).0, Trend::Stay);
    }

    #[test]
    fn a_size_goes_one_step_at_a_time_and_only_after_it_was_so_for_a_while() {
        let spec = pool(1, 4);
        let full = |members| usage(members, 95 * members as u64, Some(10), None);
        let mut state = None;
        let mut sizes = Vec::new();
        for second in (0..400).step_by(10) {
            // Workers are there as soon as they are wanted.
            let members = state.as_ref().map_or(2, |state: &Scaling| state.size);
            let (size, next) = size(&spec, 2, state.as_ref(), Some(&full(members)), at(second));
            state = next;
            if sizes.last() != Some(&(second, size))
                && sizes.last().is_none_or(|(_, last)| *last != size)
            {
                sizes.push((second, size));
            }
        }
        assert_eq!(
            sizes,
            [(0, 2), (60, 3), (120, 4)],
            "and never above the most"
        );
    }

    #[test]
    fn what_lasts_shorter_than_that_changes_nothing() {
        let spec = pool(1, 4);
        let full = usage(2, 190, Some(10), None);
        let well = usage(2, 190, Some(99), None);
        let mut state = None;
        for second in (0..1200).step_by(10) {
            let seen = if second % 50 == 40 { &well } else { &full };
            let (size, next) = size(&spec, 2, state.as_ref(), Some(seen), at(second));
            assert_eq!(size, 2);
            state = next;
        }
    }

    #[test]
    fn a_step_waits_for_the_one_before_and_for_the_master() {
        let spec = pool(1, 9);
        let full = usage(2, 190, Some(10), None);
        let mut state = None;
        let mut last = 0;
        for second in (0..1000).step_by(10) {
            // The third worker never comes.
            let (size, next) = size(&spec, 2, state.as_ref(), Some(&full), at(second));
            (state, last) = (next, size);
        }
        assert_eq!(last, 3);
        let (size, _) = size(&spec, 2, state.as_ref(), None, at(2000));
        assert_eq!(size, 3, "nothing is known: it stays");
    }

    #[test]
    fn bounds_hold_at_once_and_a_scheduled_size_is_the_least() {
        let mut spec = pool(3, 5);
        let idle = |members| usage(members, 0, None, None);
        let (now, state) = size(&spec, 1, None, Some(&idle(1)), at(0));
        assert_eq!(now, 3);
        spec.autoscaling.as_mut().unwrap().max_replicas = 4;
        spec.schedule = vec![ScheduledSize {
            cron: "* * * * *".to_owned(),
            replicas: 9,
            ..ScheduledSize::default()
        }];
        let (now, state) = size(&spec, 1, state.as_ref(), Some(&idle(3)), at(10));
        assert_eq!(now, 4, "and never above the most");
        spec.schedule.clear();
        let (mut now, mut state) = size(&spec, 1, state.as_ref(), Some(&idle(4)), at(20));
        assert_eq!(now, 4);
        for second in (30..1000).step_by(10) {
            (now, state) = size(&spec, 1, state.as_ref(), Some(&idle(now)), at(second));
        }
        assert_eq!(now, 3);
    }

    #[test]
    fn without_autoscaling_the_schedule_says_it_and_else_the_specification() {
        let mut spec = CachePoolSpec::default();
        assert_eq!(size(&spec, 7, None, None, at(0)), (7, None));
        spec.schedule = vec![ScheduledSize {
            cron: "0 0 * * *".to_owned(),
            replicas: 0,
            ..ScheduledSize::default()
        }];
        assert_eq!(size(&spec, 7, None, None, at(0)), (0, None));
    }
}
