//! How patient a read is.

use std::time::Duration;

use rand::Rng;

use crate::error::OriginError;
use crate::spec::OriginSpec;

/// How often one request may fail in a way that passes soon or never: bytes that do not match their digest, another
/// length or part than was asked for. One proxy or server of many that is broken is got around so, also if seven answers
/// of ten are wrong; what is wrong at the origin stays so.
pub(crate) const MAX_WRONG: u32 = 24;
/// Longest wait after such a failure: the origin is not overloaded, and an error that stays is told within two seconds.
const WRONG_PAUSE: Duration = Duration::from_millis(100);

/// Seconds for which HDFS is waited for. A NameNode that is started again loads its names and then waits in SafeMode for
/// its DataNodes; both take minutes where there are hundreds of millions of files.
const HDFS_PATIENCE: u32 = 600;

/// Limits of one read. The defaults suit a training job: a hiccup of the origin costs a moment, an outage is
/// reported within half a minute.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchPolicy {
    /// Most time that one read loses to failures and silence. Bytes that arrive, however slowly, cost none of it.
    /// A setting of the origin ([`OriginSpec::patience_seconds`]). Default 30 s: longer than a load balancer's failover,
    /// shorter than a job's watchdog.
    pub budget: Duration,
    /// The same for a listing of a service that has never answered, unless the source has a patience of its own: somebody
    /// waits at the command line, and an address that is wrong stays so. Default 5 s: longer than a service's restart,
    /// or a new connection's way through a load balancer, takes.
    pub first_budget: Duration,
    /// Most failed requests of one read. Default 100, more than fit into the budget unless each makes some progress.
    pub max_attempts: u32,
    /// Wait before the first retry. Default 20 ms: most errors of object stores pass at once.
    pub first_backoff: Duration,
    /// Longest wait before a retry; waits double until then. Default 1 s.
    pub max_backoff: Duration,
    /// Part of a wait that is random, from 0 to 1, so that readers who failed together do not come back together.
    /// Default 0.5.
    pub jitter: f64,
    /// Silence after which a second request for the same bytes is started. Default 1 s: far above the usual time to
    /// the first byte, far below what a training step notices. The time doubles with each further request of the
    /// same read, so an origin that is slow for everybody is not stormed.
    pub hedge_after: Duration,
    /// Most such requests in one wait; 0 turns hedging off. Default 3.
    pub max_hedges: u32,
}

impl Default for FetchPolicy {
    fn default() -> Self {
        Self {
            budget: Duration::from_secs(30),
            first_budget: Duration::from_secs(5),
            max_attempts: 100,
            first_backoff: Duration::from_millis(20),
            max_backoff: Duration::from_secs(1),
            jitter: 0.5,
            hedge_after: Duration::from_secs(1),
            max_hedges: 3,
        }
    }
}

impl FetchPolicy {
    /// The policy of an origin's listings. Until the service is known, somebody waits at the command line for what may be a
    /// wrong address: not longer than reads wait usually, whatever the source says.
    pub(crate) fn of_listings(spec: &OriginSpec) -> Self {
        let usual = Self::default();
        let patient = usual.with_patience(spec);
        let first_budget = match spec.patience_seconds {
            Some(_) => patient.budget.min(usual.budget),
            None => usual.first_budget,
        };
        Self {
            first_budget,
            ..patient
        }
    }

    /// This policy, but for an origin that is waited for so long, if that is said or its kind needs it.
    #[must_use]
    pub fn with_patience(&self, spec: &OriginSpec) -> Self {
        let usual = (spec.scheme() == "hdfs").then_some(HDFS_PATIENCE);
        let Some(seconds) = spec.patience_seconds.or(usual) else {
            return self.clone();
        };
        let budget = Duration::from_secs(seconds.into());
        // Requests that fail at once must not use up a long patience before its time: a wait is half a second at least.
        let by_time = self.max_backoff.mul_f64(1.0 - self.jitter.clamp(0.0, 0.9));
        let needed = budget.as_secs_f64() / by_time.as_secs_f64().max(0.001);
        Self {
            budget,
            max_attempts: self.max_attempts.max(needed as u32),
            ..self.clone()
        }
    }
}

/// Waits between retries: doubling, with jitter.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(policy: &FetchPolicy) -> Self {
        Self {
            next: policy.first_backoff,
        }
    }

    /// How long to wait after this error.
    pub(crate) fn wait_after(&mut self, error: &OriginError, policy: &FetchPolicy) -> Duration {
        let wait = self.wait(policy);
        if error.passes_soon_or_never() {
            return wait.min(WRONG_PAUSE);
        }
        match error.retry_after() {
            // Those who were sent away together do not come back together.
            Some(after) => after.saturating_add(wait),
            None => wait,
        }
    }

    fn wait(&mut self, policy: &FetchPolicy) -> Duration {
        let full = self.next.min(policy.max_backoff);
        self.next = full.saturating_mul(2).min(policy.max_backoff);
        let jitter = policy.jitter.clamp(0.0, 1.0);
        full.mul_f64(1.0 - jitter * rand::rng().random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_patience_is_not_cut_short_by_the_number_of_requests() {
        let spec = OriginSpec {
            patience_seconds: Some(600),
            ..OriginSpec::parse("s3://bucket").unwrap()
        };
        let policy = FetchPolicy::default().with_patience(&spec);
        let mut backoff = Backoff::new(&policy);
        let waits: Duration = (0..policy.max_attempts)
            .map(|_| backoff.wait(&policy))
            .sum();
        assert_eq!(policy.budget, Duration::from_mins(10));
        assert!(waits > policy.budget, "{waits:?}");
    }

    #[test]
    fn a_service_that_says_how_long_it_wants_to_be_left_alone_is() {
        let policy = FetchPolicy::default();
        let throttled = |after| OriginError::Throttled {
            target: "s3://b".into(),
            detail: "503".to_owned(),
            after,
        };
        let wait = |after| Backoff::new(&policy).wait_after(&throttled(after), &policy);
        let seven = Duration::from_secs(7);
        let waited = wait(Some(seven));
        assert!(waited > seven && waited <= seven + policy.first_backoff);
        assert!(wait(None) <= policy.first_backoff);
        assert!(wait(Some(Duration::from_hours(48))) > policy.budget);
    }

    #[test]
    fn waits_double_up_to_the_longest_and_keep_their_fixed_part() {
        let policy = FetchPolicy::default();
        let mut backoff = Backoff::new(&policy);
        for full in [20, 40, 80, 160, 320, 640, 1000, 1000] {
            let full = Duration::from_millis(full);
            let wait = backoff.wait(&policy);
            assert!(wait <= full && wait >= full / 2, "{wait:?} of {full:?}");
        }
    }
}
