//! Small questions that are asked again while the service cannot answer: pages of listings, heads of objects.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::contact::Contact;
use crate::error::OriginError;
use crate::policy::{Backoff, FetchPolicy, MAX_WRONG};

/// Longest wait for one answer; services take up to some seconds for a thousand keys.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// Longest wait for a service that is there and says that it cannot answer, as long as it never has.
const BUSY_AT_FIRST: Duration = Duration::from_secs(30);

/// One question that is asked until there is an answer, an error that does not pass, or the policy's budget is used up.
pub(crate) struct Patience<'a> {
    policy: &'a FetchPolicy,
    /// Whom it is asked, in messages.
    target: &'a str,
    contact: &'a Contact,
    /// Whether the contact has been told of a failure.
    told: bool,
    start: Instant,
    backoff: Backoff,
    attempts: u32,
    wrong: u32,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(policy: &'a FetchPolicy, target: &'a str, contact: &'a Contact) -> Self {
        Self {
            policy,
            target,
            contact,
            told: false,
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

    /// Waits until it may be asked again after this error, or gives the error that ends it. Of a service that is not known
    /// an address that does not exist is an error at once, and others are not tried for long.
    pub(crate) async fn pause(&mut self, error: OriginError) -> Result<(), OriginError> {
        let is_known = self.contact.is_known();
        let is_final = error.is_final_at_first() && !is_known;
        if is_final || !error.is_retryable() {
            return Err(error);
        }
        let budget = self.policy.budget;
        let budget = if is_known {
            budget
        } else if self.contact.is_there() || matches!(error, OriginError::Throttled { .. }) {
            budget.min(BUSY_AT_FIRST)
        } else {
            budget.min(self.policy.first_budget)
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
        self.contact.fails_with(&error);
        self.told = true;
        sleep(wait).await;
        Ok(())
    }
}

impl Drop for Patience<'_> {
    /// There is an answer, or nobody waits for one any more.
    fn drop(&mut self) {
        if self.told {
            self.contact.recovers();
        }
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
        let waited = async |patience_seconds, error: &OriginError, contact: &Contact| {
            let spec = OriginSpec {
                patience_seconds,
                ..OriginSpec::parse("s3://b").unwrap()
            };
            let policy = FetchPolicy::of_listings(&spec);
            let mut patience = Patience::new(&policy, "s3://b", contact);
            let start = Instant::now();
            let gave_up = loop {
                if let Err(error) = patience.pause(error.clone()).await {
                    break error;
                }
                assert_eq!(contact.trouble().as_deref(), Some(&*error.to_string()));
            };
            drop(patience);
            assert_eq!(contact.trouble(), None);
            assert!(matches!(gave_up, OriginError::GaveUp { .. }), "{gave_up}");
            start.elapsed().as_secs()
        };
        let stranger = Contact::default;
        let after = |event: fn(&Contact)| {
            let contact = Contact::default();
            event(&contact);
            contact
        };
        let known = || after(Contact::assume_known);
        for (patience, error, contact, longest) in [
            (None, &away, stranger(), 5),
            (None, &away, known(), 30),
            (None, &away, after(Contact::set_answered), 30),
            (None, &away, after(Contact::set_there), 30),
            (None, &busy, stranger(), 30),
            (Some(20), &away, stranger(), 20),
            (Some(2), &away, stranger(), 2),
            (Some(2), &away, known(), 2),
            (Some(600), &away, stranger(), 30),
            (Some(600), &away, after(Contact::set_there), 30),
            (Some(600), &away, known(), 600),
        ] {
            let waited = waited(patience, error, &contact).await;
            // The last wait is not begun if it would be too long.
            let fits = (longest - 2..=longest).contains(&waited);
            assert!(fits, "{waited} s of {longest} s with {patience:?}: {error}");
        }
    }
}
