//! Small questions that are asked again while the service cannot answer: pages of listings, heads of objects.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::error::OriginError;
use crate::policy::{Backoff, FetchPolicy, MAX_WRONG};

/// Longest wait for one answer; services take up to some seconds for a thousand keys.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// One question that is asked until there is an answer, an error that does not pass, or the policy's budget is used up.
pub(crate) struct Patience<'a> {
    policy: &'a FetchPolicy,
    /// Whom it is asked, in messages.
    target: &'a str,
    start: Instant,
    backoff: Backoff,
    attempts: u32,
    wrong: u32,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(policy: &'a FetchPolicy, target: &'a str) -> Self {
        Self {
            policy,
            target,
            start: Instant::now(),
            backoff: Backoff::new(policy),
            attempts: 0,
            wrong: 0,
        }
    }

    /// One attempt, which has a deadline.
    pub(crate) async fn ask<T>(
        &self,
        attempt: impl Future<Output = Result<T, OriginError>>,
    ) -> Result<T, OriginError> {
        let late = |_| OriginError::Timeout {
            target: self.target.into(),
            after: ANSWER_DEADLINE,
        };
        timeout(ANSWER_DEADLINE, attempt).await.map_err(late)?
    }

    /// Waits until it may be asked again after this error, or gives the error that ends it. `has_answered` is whether the
    /// service ever has: before, an address that does not exist is an error at once, and others are not tried for long.
    pub(crate) async fn pause(
        &mut self,
        error: OriginError,
        has_answered: bool,
    ) -> Result<(), OriginError> {
        let is_final = error.is_final_at_first() && !has_answered;
        if is_final || !error.is_retryable() {
            return Err(error);
        }
        // A service that says that it is busy is there.
        let is_there = has_answered || matches!(error, OriginError::Throttled { .. });
        let budget = if is_there {
            self.policy.budget
        } else {
            self.policy.first_budget.min(self.policy.budget)
        };
        self.attempts += 1;
        self.wrong += u32::from(error.passes_soon_or_never());
        let wait = self.backoff.wait_after(&error, self.policy);
        if self.attempts >= self.policy.max_attempts
            || self.wrong > MAX_WRONG
            || self.start.elapsed() + wait >= budget
        {
            return Err(OriginError::GaveUp {
                last: error.into(),
                attempts: self.attempts,
                after: self.start.elapsed(),
            });
        }
        tracing::debug!(%error, attempts = self.attempts, "asked again");
        sleep(wait).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::OriginSpec;

    #[tokio::test(start_paused = true)]
    async fn a_service_that_has_never_answered_is_not_waited_for_long() {
        let away = OriginError::Unavailable {
            target: "s3://b".into(),
            detail: "connection refused".to_owned(),
        };
        let busy = OriginError::Throttled {
            target: "s3://b".into(),
            detail: "503".to_owned(),
            after: None,
        };
        let waited = async |patience_seconds, error: &OriginError, has_answered| {
            let spec = OriginSpec {
                patience_seconds,
                ..OriginSpec::parse("s3://b").unwrap()
            };
            let policy = FetchPolicy::of_listings(&spec);
            let mut patience = Patience::new(&policy, "s3://b");
            let start = Instant::now();
            let gave_up = loop {
                if let Err(error) = patience.pause(error.clone(), has_answered).await {
                    break error;
                }
            };
            assert!(matches!(gave_up, OriginError::GaveUp { .. }), "{gave_up}");
            start.elapsed().as_secs()
        };
        for (patience, error, has_answered, longest) in [
            (None, &away, false, 5),
            (None, &away, true, 30),
            (None, &busy, false, 30),
            (Some(20), &away, false, 20),
            (Some(2), &away, false, 2),
            (Some(600), &away, false, 30),
        ] {
            let waited = waited(patience, error, has_answered).await;
            // The last wait is not begun if it would be too long.
            let fits = (longest - 2..=longest).contains(&waited);
            assert!(fits, "{waited} s of {longest} s with {patience:?}: {error}");
        }
    }
}
