//! Listing datasets again by themselves, as often as their specifications say.
//!
//! What is due is listed like a refresh that somebody asked for, with the same limits, and a few at a time. Times differ by up
//! to a tenth, and after a start of the master they are spread over the interval: what was declared together is not listed
//! together. A source that fails is asked again after twice the time, then after four times, and the dataset stays as it was.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use weir_core::dataset::Interval;
use weir_core::{DatasetName, DatasetSpec};

use super::Datasets;
use crate::error::MasterError;

/// How often it is looked which are due.
const LOOK: Duration = Duration::from_secs(5);
/// Listings under way at once that nobody asked for.
const AT_ONCE: usize = 8;
/// How long such a one waits for its turn, or for a source that does not answer.
const PATIENCE: Duration = Duration::from_mins(10);
/// Longest pause after failures, unless the interval is longer.
const LONGEST_PAUSE: Duration = Duration::from_hours(6);

/// Which datasets are listed again, and when next.
#[derive(Debug, Default)]
struct Schedule {
    next: HashMap<DatasetName, Next>,
    /// The version of the tables that `next` has the names of; none before the first.
    version: Option<u64>,
}

#[derive(Debug)]
struct Next {
    /// None if it is listed only once more: it is under way, and declared no more.
    interval: Option<Interval>,
    at: Instant,
    failures: u32,
    is_under_way: bool,
}

impl Schedule {
    /// Takes over which datasets are to be listed how often. `part` gives numbers from 0 to 1.
    fn set(
        &mut self,
        wanted: &HashMap<DatasetName, Interval>,
        now: Instant,
        mut part: impl FnMut() -> f64,
    ) {
        let is_first = self.version.is_none();
        self.next.retain(|name, next| {
            let interval = wanted.get(name).copied();
            if next.is_under_way {
                // What is to become of it counts when it has ended.
                next.interval = interval;
            }
            next.is_under_way || interval == next.interval
        });
        for (name, interval) in wanted {
            self.next.entry(name.clone()).or_insert_with(|| Next {
                interval: Some(*interval),
                at: if is_first {
                    now + interval.duration().mul_f64(part())
                } else {
                    now + about(interval.duration(), part())
                },
                failures: 0,
                is_under_way: false,
            });
        }
    }

    /// Takes so many that are due, those that have waited longest first.
    fn take(&mut self, most: usize, now: Instant) -> Vec<DatasetName> {
        let mut due: Vec<(&DatasetName, &mut Next)> = self
            .next
            .iter_mut()
            .filter(|(_, next)| !next.is_under_way && next.at <= now)
            .collect();
        due.sort_by_key(|(_, next)| next.at);
        due.truncate(most);
        let take = |(name, next): (&DatasetName, &mut Next)| {
            next.is_under_way = true;
            name.clone()
        };
        due.into_iter().map(take).collect()
    }

    /// Takes note of how a listing ended. Gives when the next one is, if there is one.
    fn ended(&mut self, name: &DatasetName, is_done: bool, now: Instant, part: f64) -> Duration {
        let Some(next) = self.next.get_mut(name) else {
            return Duration::ZERO;
        };
        let Some(interval) = next.interval.map(Interval::duration) else {
            self.next.remove(name);
            return Duration::ZERO;
        };
        next.is_under_way = false;
        next.failures = if is_done { 0 } else { next.failures + 1 };
        let doubled = interval.saturating_mul(1 << next.failures.min(16));
        let pause = doubled.min(interval.max(LONGEST_PAUSE));
        let pause = about(pause, part);
        next.at = now + pause;
        pause
    }
}

/// A time with up to a tenth more or less.
fn about(time: Duration, part: f64) -> Duration {
    time.mul_f64(0.9 + 0.2 * part)
}

/// A number from 0 to 1, another one each time.
fn random() -> f64 {
    f64::from(RandomState::new().hash_one(()) as u32) / f64::from(u32::MAX)
}

/// Lists datasets again for as long as there are any to be listed by this master.
pub(super) async fn run(datasets: Weak<Datasets>) {
    let mut schedule = Schedule::default();
    let mut under_way = JoinSet::new();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ended = tokio::select! {
            _ = looks.tick() => None,
            Some(ended) = under_way.join_next() => ended.ok(),
        };
        let Some(datasets) = datasets.upgrade() else {
            return; // the master has ended
        };
        let now = Instant::now();
        if let Some((name, outcome)) = ended {
            let again_in = schedule.ended(&name, Result::is_ok(&outcome), now, random());
            datasets.note_refreshed(&name, &outcome, again_in);
        }
        let version = datasets.version.load(Ordering::Acquire);
        if schedule.version != Some(version) {
            schedule.set(&datasets.intervals(), now, random);
            schedule.version = Some(version);
        }
        for name in schedule.take(AT_ONCE.saturating_sub(under_way.len()), now) {
            let datasets = datasets.clone();
            under_way.spawn(async move {
                let listed = datasets.refresh_patiently(&name).await;
                (name, listed)
            });
        }
    }
}

impl Datasets {
    /// Lists datasets again as often as they say, as long as the master lives.
    pub(crate) fn keep_fresh(self: &Arc<Self>) {
        tokio::spawn(run(Arc::downgrade(self)));
    }

    /// How often each is to be listed that says it.
    fn intervals(&self) -> HashMap<DatasetName, Interval> {
        let known = self.known.lock();
        let interval = |spec: &str| {
            // Most say nothing, and reading all specifications would be the most that is done here.
            if !spec.contains("\"refresh\"") {
                return None;
            }
            Some(DatasetSpec::from_json(spec).ok()?.refresh?.interval)
        };
        let of_each = known
            .iter()
            .filter_map(|(name, dataset)| Some((name.clone(), interval(&dataset.spec)?)));
        of_each.collect()
    }

    /// Lists a dataset again; gives whether there is a new snapshot.
    async fn refresh_patiently(&self, name: &DatasetName) -> Result<bool, MasterError> {
        let gone = CancellationToken::new();
        let listing = self.refresh(name.as_str(), gone.clone());
        let mut listing = std::pin::pin!(listing);
        let listed = tokio::select! {
            listed = &mut listing => listed,
            () = tokio::time::sleep(PATIENCE) => {
                // It goes on if it gets on.
                gone.cancel();
                listing.await
            }
        };
        listed.map(|(_, is_new)| is_new)
    }

    fn note_refreshed(
        &self,
        name: &DatasetName,
        outcome: &Result<bool, MasterError>,
        again_in: Duration,
    ) {
        let result = match outcome {
            Ok(true) => "changed",
            Ok(false) => "unchanged",
            Err(_) => "failed",
        };
        self.metrics.refreshed(result);
        if let Err(error) = outcome
            && let Some(untold) = self.listed.line()
        {
            tracing::warn!(dataset = %name, %error, ?again_in, untold, "a dataset could not be listed again and stays as it was");
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_proto::v1;

    use super::*;
    use crate::datasets::tests::datasets;

    /// Waits, by the clock of the test, until a dataset has this snapshot.
    async fn until(datasets: &Datasets, version: u64) {
        let name = "set".parse().unwrap();
        let newest = || datasets.newest_of(&name).unwrap().snapshot.version;
        for _ in 0..3600 {
            if newest() == version {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("snapshot {version} was never made; there is {}", newest());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dataset_is_listed_again_by_itself_and_stays_as_it_is_while_that_fails() {
        let dir = tempfile::tempdir().unwrap();
        let (data, away) = (dir.path().join("data"), dir.path().join("away"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("a"), "x").unwrap();
        let datasets = Arc::new(datasets(&dir));
        datasets.keep_fresh();
        let spec = format!(
            r#"{{"sources":[{{"url":"file://{}"}}],"refresh":{{"interval":"1m"}}}}"#,
            data.display()
        );
        let apply = v1::ApplyDatasetRequest {
            name: "set".to_owned(),
            spec,
            ..v1::ApplyDatasetRequest::default()
        };
        let applied = datasets.apply(apply, CancellationToken::new()).await;
        assert_eq!(applied.unwrap().dataset.unwrap().snapshots.len(), 1);
        std::fs::write(data.join("b"), "x").unwrap();
        until(&datasets, 2).await;
        std::fs::rename(&data, &away).unwrap();
        tokio::time::sleep(Duration::from_mins(30)).await;
        until(&datasets, 2).await;
        std::fs::write(away.join("c"), "x").unwrap();
        std::fs::rename(&away, &data).unwrap();
        tokio::time::sleep(Duration::from_hours(1)).await;
        until(&datasets, 3).await;
    }

    fn wanted(interval: &str, count: usize) -> HashMap<DatasetName, Interval> {
        let interval: Interval = interval.parse().unwrap();
        let name = |number| format!("set-{number}").parse().unwrap();
        (0..count).map(|number| (name(number), interval)).collect()
    }

    #[test]
    fn what_is_declared_together_is_not_listed_together() {
        let (start, minute) = (Instant::now(), Duration::from_mins(1));
        let mut schedule = Schedule::default();
        schedule.set(&wanted("1h", 600), start, random);
        schedule.version = Some(1);
        let mut most = 0;
        for number in 1..=60 {
            most = most.max(schedule.take(600, start + number * minute).len());
        }
        assert!(
            (1..=40).contains(&most),
            "{most} of 600 in one minute of 60"
        );
        // Those that come later were listed a moment ago.
        schedule.set(&wanted("1h", 601), start, random);
        let new = &schedule.next["set-600"];
        assert!(new.at >= start + 54 * minute && new.at <= start + 66 * minute);
    }

    #[test]
    fn the_longest_waiting_come_first_and_none_twice() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let mut number = 0.0;
        schedule.set(&wanted("1h", 20), start, || {
            number += 0.01;
            number
        });
        let late = start + Duration::from_hours(2);
        let first = schedule.take(8, late);
        let second = schedule.take(20, late);
        assert_eq!((first.len(), second.len()), (8, 12));
        let latest = first.iter().map(|name| schedule.next[name].at).max();
        let earliest = second.iter().map(|name| schedule.next[name].at).min();
        assert!(latest < earliest);
        assert!(schedule.take(20, late).is_empty(), "all are under way");
    }

    #[test]
    fn what_is_declared_while_a_listing_is_under_way_counts_when_it_has_ended() {
        let start = Instant::now();
        let name: DatasetName = "set-0".parse().unwrap();
        let (late, hour) = (start + Duration::from_hours(48), Duration::from_hours(1));
        let mut schedule = Schedule::default();
        schedule.set(&wanted("1d", 1), start, || 0.5);
        assert_eq!(schedule.take(1, late).len(), 1);
        schedule.set(&wanted("1h", 1), late, || 0.5);
        assert!(schedule.take(1, late + hour).is_empty(), "it is under way");
        assert_eq!(schedule.ended(&name, true, late, 0.5), hour);
        assert_eq!(schedule.take(1, late + hour).len(), 1);
        schedule.set(&HashMap::new(), late, || 0.5);
        assert_eq!(schedule.ended(&name, false, late, 0.5), Duration::ZERO);
        assert!(schedule.next.is_empty(), "it is declared no more");
    }

    #[test]
    fn failures_are_tried_again_later_each_time_and_a_success_ends_that() {
        let now = Instant::now();
        let name: DatasetName = "set-0".parse().unwrap();
        let mut schedule = Schedule::default();
        schedule.set(&wanted("10m", 1), now, || 0.5);
        let pauses: Vec<u64> = (0..12)
            .map(|_| schedule.ended(&name, false, now, 0.5).as_secs() / 60)
            .collect();
        assert_eq!(pauses[..6], [20, 40, 80, 160, 320, 360]);
        assert!(pauses[6..].iter().all(|minutes| *minutes == 360));
        assert_eq!(
            schedule.ended(&name, true, now, 0.5),
            Duration::from_mins(10)
        );
        // Rarely listed ones are not listed more often because they fail.
        schedule.set(&wanted("30d", 1), now, || 0.5);
        let pause = schedule.ended(&name, false, now, 0.5);
        assert_eq!(pause, Duration::from_hours(30 * 24));
        schedule.set(&HashMap::new(), now, || 0.5);
        assert!(schedule.next.is_empty());
        assert_eq!(schedule.ended(&name, false, now, 0.5), Duration::ZERO);
    }
}
