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
    /// service ever has: before, an address that does not exist is an error at once.
    pub(crate) async fn pause(
        &mut self,
        error: OriginError,
        has_answered: bool,
    ) -> Result<(), OriginError> {
        let is_final = error.is_final_at_first() && !has_answered;
        if is_final || !error.is_retryable() {
            return Err(error);
        }
        self.attempts += 1;
        self.wrong += u32::from(error.passes_soon_or_never());
        let wait = self.backoff.wait_after(&error, self.policy);
        if self.attempts >= self.policy.max_attempts
            || self.wrong > MAX_WRONG
            || self.start.elapsed() + wait >= self.policy.budget
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
