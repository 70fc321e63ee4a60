//! The robust read: retries, resumption, hedging, verification.
//!
//! A read is a row of *waits* for the next bytes. In a wait one request is under way, or several that race: the
//! first to deliver wins and the others are dropped. After a failure the read goes on at the first missing byte. The
//! stream yields exactly the bytes of its range, in order, each once; bytes that a digest covers are not yielded
//! before the digest was verified, as long as they fit one block.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::time::{Instant, sleep, sleep_until};
use weir_core::ObjectRef;

use crate::error::OriginError;
use crate::metrics::{OriginMetrics, Waiting};
use crate::origin::Origin;
use crate::pace::Pace;
use crate::policy::{Backoff, FetchPolicy, MAX_WRONG};

mod check;
mod clock;
mod flow;
mod race;
#[cfg(test)]
mod tests;

use check::{Check, Checked};
use clock::Clock;
use flow::{Flow, MAX_RACES};
use race::{Delivery, Race};

/// Reads `range` of an object version, with retries, resumption and hedging within `policy`. Yields exactly its
/// bytes, in order, or one error after which the stream ends. Does nothing until polled; dropping it drops its
/// requests.
pub fn fetch(
    origin: Arc<dyn Origin>,
    object: ObjectRef,
    range: Range<u64>,
    policy: Arc<FetchPolicy>,
    pace: Arc<Pace>,
    metrics: Arc<OriginMetrics>,
) -> impl Stream<Item = Result<Bytes, OriginError>> + Send {
    let read = Read {
        target: format!("{}/{}", origin.describe(), object.key).into(),
        position: range.start,
        ready: VecDeque::new(),
        check: None,
        race: Race::default(),
        clock: Clock::start(policy.budget),
        backoff: Backoff::new(&policy),
        hedge_after: policy.hedge_after,
        flow: Flow::default(),
        races: 0,
        race_until: None,
        waiting: None,
        failures: 0,
        wrong: 0,
        origin,
        object,
        range,
        policy,
        pace,
        metrics,
    };
    stream::unfold(Some(read), |read| async {
        let mut read = read?;
        match read.next().await {
            Ok(None) => None,
            Ok(Some(bytes)) => Some((Ok(bytes), Some(read))),
            Err(error) => {
                read.metrics.failed(&error);
                Some((Err(error), None))
            }
        }
    })
}

/// One read and how far it is.
struct Read {
    origin: Arc<dyn Origin>,
    object: ObjectRef,
    /// The object in messages.
    target: Arc<str>,
    range: Range<u64>,
    policy: Arc<FetchPolicy>,
    pace: Arc<Pace>,
    metrics: Arc<OriginMetrics>,
    /// The first byte that has not arrived.
    position: u64,
    /// Bytes that may be yielded.
    ready: VecDeque<Bytes>,
    /// The digest that the bytes before `position` are part of.
    check: Option<Check>,
    race: Race,
    clock: Clock,
    backoff: Backoff,
    /// Silence before the next hedge.
    hedge_after: Duration,
    /// How fast the body comes that the read goes on with.
    flow: Flow,
    /// Hedges that were started because it was slow.
    races: u32,
    /// How long the last of them may take to overtake it.
    race_until: Option<Instant>,
    /// Counts this read among those that wait, from a failure or a silence to the next bytes.
    waiting: Option<Waiting>,
    failures: u32,
    /// Those of them that pass soon or never.
    wrong: u32,
}

impl Read {
    /// The next bytes, or `None` behind the last.
    async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        if self.range.start > self.range.end || self.range.end > self.object.size {
            return Err(OriginError::OutOfRange {
                target: self.target.clone(),
                start: self.range.start,
                end: self.range.end,
                size: self.object.size,
            });
        }
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Ok(Some(bytes));
            }
            if self.position == self.range.end {
                return Ok(None);
            }
            let delivery = self.wait().await?;
            self.accept(delivery).await?;
        }
    }

    /// Waits until one of the racing requests delivers; starts, repeats and doubles requests as the policy says.
    async fn wait(&mut self) -> Result<Delivery, OriginError> {
        let mut started = Instant::now();
        self.clock.wait_begins();
        if self.race.is_empty() {
            self.request(false);
        }
        let mut hedges = 0;
        let mut hedge_at = started + self.hedge_after;
        let mut last_error = None;
        loop {
            let deadline = self.clock.deadline();
            let may_hedge = hedges < self.policy.max_hedges && hedge_at < deadline;
            tokio::select! {
                biased;
                (is_hedge, outcome) = self.race.next() => match outcome {
                    Ok(delivery) => {
                        let Some(delivery) = self.ahead(delivery) else {
                            continue;
                        };
                        self.flow.add(delivery.bytes.len(), started.elapsed());
                        self.decide(is_hedge, delivery.bytes.len() as u64);
                        self.waiting = None;
                        self.clock.progress();
                        self.backoff = Backoff::new(&self.policy);
                        self.metrics.received(delivery.bytes.len());
                        return Ok(delivery);
                    }
                    Err(error) => {
                        if is_hedge {
                            self.metrics.hedged(false);
                            if self.race_until.is_some() && !self.race.is_empty() {
                                continue; // the slow body is still there
                            }
                        }
                        self.count(&error)?;
                        if self.race.is_empty() {
                            self.pause(error.clone()).await?;
                            self.request(false);
                            started = Instant::now();
                            hedge_at = started + self.hedge_after;
                        }
                        last_error = Some(error);
                    }
                },
                () = sleep_until(hedge_at), if may_hedge => {
                    tracing::debug!(target = %self.target, after = ?self.hedge_after, "no bytes came, a second request is started");
                    self.request(true);
                    self.waiting.get_or_insert_with(|| self.metrics.wait());
                    hedges += 1;
                    self.hedge_after = self.hedge_after.saturating_mul(2);
                    hedge_at = Instant::now() + self.hedge_after;
                }
                () = sleep_until(deadline) => {
                    let timeout = OriginError::Timeout {
                        target: self.target.clone(),
                        after: self.clock.silence(),
                    };
                    return Err(self.give_up(last_error.unwrap_or(timeout)));
                }
            }
        }
    }

    /// The missing bytes of a delivery. One that has none is of a hedge that is to catch up.
    fn ahead(&mut self, mut delivery: Delivery) -> Option<Delivery> {
        let behind = self.position.saturating_sub(delivery.start);
        if behind == 0 {
            return Some(delivery);
        }
        if behind >= delivery.bytes.len() as u64 {
            if let Some(body) = delivery.body {
                self.race.catch_up(body);
            }
            return None;
        }
        delivery.bytes = delivery.bytes.split_off(behind as usize);
        delivery.digest = None; // of other bytes than those that go on from here
        Some(delivery)
    }

    /// Ends the race that a delivery of so many bytes has won, or starts one against a body that is slow.
    fn decide(&mut self, is_hedge: bool, delivered: u64) {
        let racing = self.race_until.is_some_and(|until| Instant::now() < until);
        if is_hedge && self.race_until.is_none() {
            self.hedge_after = self.policy.hedge_after;
        }
        if is_hedge || !racing {
            let lost = self.race.clear();
            (0..lost).for_each(|_| self.metrics.hedged(false));
            self.race_until = None;
        }
        if is_hedge {
            self.metrics.hedged(true);
            self.flow = Flow::default();
        }
        let next = self.position + delivered;
        let missing = self.range.end - next;
        let may_race = self.races < MAX_RACES.min(self.policy.max_hedges);
        let is_slow = || self.flow.is_slow(self.hedge_after, missing);
        if may_race && self.race_until.is_none() && is_slow() && self.pace.race() {
            tracing::debug!(target = %self.target, flow = ?self.flow, "a body is slow, a second request is started");
            self.races += 1;
            self.request_from(next, true);
            self.hedge_after = self.hedge_after.saturating_mul(2);
            self.race_until = Some(Instant::now() + self.hedge_after);
            self.flow = Flow::default();
        }
    }

    /// Starts a request for all that is missing.
    fn request(&mut self, is_hedge: bool) {
        self.request_from(self.position, is_hedge);
    }

    fn request_from(&mut self, start: u64, is_hedge: bool) {
        let missing = start..self.range.end;
        let (origin, object) = (self.origin.clone(), self.object.clone());
        let asked = self.pace.ask();
        self.race
            .request(origin, object, missing, is_hedge, asked, &self.metrics);
    }

    /// Takes in delivered bytes: to be yielded at once, or to be held until their digest is verified.
    async fn accept(&mut self, delivery: Delivery) -> Result<(), OriginError> {
        let Delivery {
            range,
            digest,
            bytes,
            body,
            ..
        } = delivery;
        if self.check.is_none()
            && let Some(digest) = digest
        {
            self.check = Some(Check::new(self.position..range.end, digest));
        }
        self.position += bytes.len() as u64;
        if let Some(body) = body {
            self.race.go_on(body);
        }
        let Some(check) = &mut self.check else {
            self.ready.push_back(bytes);
            return Ok(());
        };
        match check.add(bytes) {
            Checked::Hold => Ok(()),
            Checked::Pass(bytes) => {
                self.ready.push_back(bytes);
                Ok(())
            }
            Checked::Verified(pieces) => {
                self.ready.extend(pieces);
                self.check = None;
                Ok(())
            }
            Checked::Mismatch { again_from } => {
                let error = OriginError::Corrupt {
                    origin: self.origin.describe().into(),
                    key: self.object.key.clone(),
                };
                let Some(start) = again_from else {
                    return Err(error);
                };
                self.position = start;
                self.check = None;
                self.race.clear();
                self.count(&error)?;
                self.pause(error).await
            }
        }
    }

    /// Counts a failed request. An error that does not pass, or one too many, ends the read.
    fn count(&mut self, error: &OriginError) -> Result<(), OriginError> {
        if !error.is_retryable() {
            return Err(error.clone());
        }
        tracing::debug!(%error, failures = self.failures, "a request failed");
        self.clock.failed();
        self.waiting.get_or_insert_with(|| self.metrics.wait());
        self.failures += 1;
        self.metrics.retried(error);
        if matches!(error, OriginError::Throttled { .. }) || self.failures > 1 {
            self.pace.ease();
        }
        self.wrong += u32::from(error.passes_soon_or_never());
        if self.failures >= self.policy.max_attempts || self.wrong > MAX_WRONG {
            return Err(self.give_up(error.clone()));
        }
        Ok(())
    }

    /// Waits before the next request, unless the budget ends first.
    async fn pause(&mut self, error: OriginError) -> Result<(), OriginError> {
        let wait = self.backoff.wait_after(&error, &self.policy);
        if Instant::now() + wait >= self.clock.deadline() {
            return Err(self.give_up(error));
        }
        sleep(wait).await;
        Ok(())
    }

    fn give_up(&self, last: OriginError) -> OriginError {
        if self.failures == 0 {
            return last; // silence alone
        }
        OriginError::GaveUp {
            last: last.into(),
            attempts: self.failures,
            after: self.clock.lost(),
        }
    }
}
