//! Why datasets cannot be mounted, or are not to be: what those tell who declare datasets for others, in memory.
//!
//! An operator of Kubernetes knows what the master does not: that a Secret is missing, that a specification was never taken, that an
//! object is being deleted. Node plugins may not ask Kubernetes; they ask the master, and tell the pods.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_core::DatasetName;
use weir_proto::v1;

/// How long something counts that is not told again; it is told every ten seconds.
const COUNTS_FOR: Duration = Duration::from_mins(5);
/// Datasets of which something is known, and the longest texts, in bytes.
const MAX_KNOWN: usize = 16_384;
const MAX_REASON: usize = 64;
const MAX_MESSAGE: usize = 1024;

/// What was told of datasets.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    known: Mutex<HashMap<String, (v1::DatasetCondition, Instant)>>,
}

impl Conditions {
    /// Takes note. What is told of more datasets than there may be is not kept.
    pub(crate) fn note(&self, told: Vec<v1::DatasetCondition>) {
        let now = Instant::now();
        let mut known = self.known.lock();
        for mut condition in told {
            let is_fine = condition.reason.is_empty() && !condition.deleting;
            if is_fine || condition.dataset.parse::<DatasetName>().is_err() {
                known.remove(&condition.dataset);
                continue;
            }
            if known.len() >= MAX_KNOWN && !known.contains_key(&condition.dataset) {
                known.retain(|_, (_, at)| now - *at < COUNTS_FOR);
                if known.len() >= MAX_KNOWN {
                    continue;
                }
            }
            shorten(&mut condition.reason, MAX_REASON);
            shorten(&mut condition.message, MAX_MESSAGE);
            known.insert(condition.dataset.clone(), (condition, now));
        }
    }

    /// What was told of a dataset, if it cannot be mounted.
    pub(crate) fn of(&self, dataset: &str) -> Option<v1::DatasetCondition> {
        let known = self.known.lock();
        let (condition, at) = known.get(dataset)?;
        (at.elapsed() < COUNTS_FOR).then(|| condition.clone())
    }

    /// Forgets a dataset that is gone.
    pub(crate) fn forget(&self, dataset: &str) {
        self.known.lock().remove(dataset);
    }
}

fn shorten(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(dataset: &str, reason: &str) -> v1::DatasetCondition {
        v1::DatasetCondition {
            dataset: dataset.to_owned(),
            reason: reason.to_owned(),
            message: "é".repeat(MAX_MESSAGE),
            deleting: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_counts_until_it_is_taken_back_or_old() {
        let conditions = Conditions::default();
        conditions.note(vec![condition("team-a/x", "SecretMissing")]);
        let known = conditions.of("team-a/x").unwrap();
        assert_eq!(known.reason, "SecretMissing");
        assert!(known.message.len() <= MAX_MESSAGE);
        assert_eq!(conditions.of("team-a/y"), None);
        conditions.note(vec![condition("team-a/x", "")]);
        assert_eq!(conditions.of("team-a/x"), None);
        conditions.note(vec![condition("team-a/x", "AccessDenied")]);
        tokio::time::advance(COUNTS_FOR).await;
        assert_eq!(conditions.of("team-a/x"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_kept_than_there_is_room_for() {
        let conditions = Conditions::default();
        conditions.note(vec![condition("no name", "AccessDenied")]);
        let many = |from: usize| {
            let all = (from..).take(MAX_KNOWN);
            all.map(|n| condition(&format!("team-a/x{n}"), "AccessDenied"))
                .collect()
        };
        conditions.note(many(0));
        conditions.note(many(MAX_KNOWN));
        assert_eq!(conditions.known.lock().len(), MAX_KNOWN);
        assert!(conditions.of("team-a/x0").is_some());
        tokio::time::advance(COUNTS_FOR).await;
        conditions.note(many(2 * MAX_KNOWN));
        assert!(conditions.of("team-a/x0").is_none());
        assert!(
            conditions
                .of(&format!("team-a/x{}", 2 * MAX_KNOWN))
                .is_some()
        );
    }
}
