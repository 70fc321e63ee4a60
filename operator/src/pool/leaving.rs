//! Workers that are to go: the others take over their blocks first.
//!
//! A worker leaves for one of two reasons: its pool is to be smaller, or its node is cordoned, since `kubectl drain` passes over the
//! pods of a DaemonSet. What the master was asked for is kept in the pool's status, so the next operator goes on with it. A drain ends:
//! one that fails, or that gets nowhere, is told in a condition and tried again after a long while.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use weir_core::ByteSize;
use weir_proto::v1;

use super::Look;
use crate::master::{MasterError, Refusal};
use crate::objects::{Leaving, LeavingReason};

/// Drains that are under way at once for a pool: all of them take bytes of the same workers.
const MAX_DRAINS: usize = 4;
/// Longest time without a byte that somebody has taken over.
const STALLED: SignedDuration = SignedDuration::from_mins(15);
/// When a drain that has failed is tried again.
const AGAIN: SignedDuration = SignedDuration::from_mins(30);
/// How long a worker stays a member of the cluster at most after its pod has gone.
const GONE: SignedDuration = SignedDuration::from_mins(1);
/// When a pool is looked at again of which a worker leaves.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// How far a worker is that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The others have its blocks, or it has none: its pod may go.
    Done,
    /// They take them over, or something is waited for.
    Waits(String),
    /// The master does not answer: of no other worker is anything to be heard now.
    Away(String),
    /// They cannot.
    Failed(String),
}

impl Look<'_> {
    /// Has the others take over the blocks of a worker, and says how far they are.
    pub(super) async fn leave(&mut self, worker: &str, why: LeavingReason) -> Left {
        let state = match self.standing(worker) {
            Err(away) => return Left::Away(away),
            // Of a worker that joined a moment ago the master is asked itself.
            Ok(state) => state.unwrap_or_default(),
        };
        let index = self.leaving.iter().position(|entry| entry.worker == worker);
        let mut entry = match index {
            Some(index) => self.leaving.remove(index),
            None => Leaving {
                worker: worker.to_owned(),
                was_cordoned: state == v1::WorkerState::Cordoned,
                ..Leaving::default()
            },
        };
        entry.why = why;
        let left = if state == v1::WorkerState::Drained {
            Left::Done
        } else {
            self.drain(&mut entry).await
        };
        if left == Left::Done {
            entry.failed = None;
        }
        // Of those whose turn has not come there is nothing to be kept.
        if entry.job.is_some() || entry.failed.is_some() {
            self.leaving.push(entry);
        }
        left
    }

    async fn drain(&self, entry: &mut Leaving) -> Left {
        let is_long_ago = |at: &Option<Time>, wait: SignedDuration| {
            at.as_ref()
                .is_none_or(|at| self.now.duration_since(at.0) >= wait)
        };
        if let Some(failed) = &entry.failed {
            if !is_long_ago(&entry.at, AGAIN) {
                return Left::Failed(failed.clone());
            }
            (entry.failed, entry.job) = (None, None);
        }
        let known = match entry.job.and_then(|job| u64::try_from(job).ok()) {
            None => None,
            Some(job) => match self.context.master.get_job(job).await {
                Err(error) => return Left::Away(error.to_string()),
                // A master that has lost its disk counts jobs anew.
                Ok(job) => job.filter(|job| job.worker == entry.worker),
            },
        };
        let job = match known {
            Some(job) => job,
            None => match self.start(entry).await {
                Ok(job) => job,
                Err(left) => return left,
            },
        };
        match job.state() {
            v1::JobState::Done => Left::Done,
            v1::JobState::Failed => self.fail(entry, job.message).await,
            v1::JobState::Cancelled => {
                let message = "somebody ended the drain at the master".to_owned();
                self.fail(entry, message).await
            }
            v1::JobState::Running | v1::JobState::Unspecified => {
                let done = i64::try_from(job.done_bytes).unwrap_or(i64::MAX);
                if entry.done_bytes != Some(done) {
                    entry.done_bytes = Some(done);
                    entry.at = Some(Time(self.now));
                } else if is_long_ago(&entry.at, STALLED) {
                    let message = format!(
                        "nothing of worker {} was taken over for {} minutes",
                        entry.worker,
                        STALLED.as_mins()
                    );
                    return self.fail(entry, message).await;
                }
                Left::Waits(format!(
                    "the others have {} of about {} of worker {}",
                    ByteSize(job.done_bytes),
                    ByteSize(job.total_bytes),
                    entry.worker
                ))
            }
        }
    }

    /// Asks the master for a drain.
    async fn start(&self, entry: &mut Leaving) -> Result<v1::Job, Left> {
        let under_way = self.leaving.iter();
        let under_way = under_way.filter(|entry| entry.job.is_some() && entry.failed.is_none());
        if under_way.count() >= MAX_DRAINS {
            return Err(Left::Waits(format!(
                "worker {} is next when the blocks of others are taken over",
                entry.worker
            )));
        }
        match self.context.master.drain_worker(&entry.worker).await {
            Ok(job) => {
                entry.job = i64::try_from(job.id).ok();
                (entry.done_bytes, entry.at) = (None, Some(Time(self.now)));
                Ok(job)
            }
            Err(MasterError::Away(why)) => Err(Left::Away(why)),
            // The pool is to have no workers: its last one can leave its blocks to nobody.
            Err(MasterError::Refused {
                why: Refusal::NotPossible,
                ..
            }) if entry.why == LeavingReason::ScaleIn && self.wants_none => Err(Left::Done),
            // It was never a member of the cluster, or is none any more.
            Err(MasterError::Refused {
                why: Refusal::NotFound,
                ..
            }) => Err(Left::Done),
            Err(MasterError::Refused { message, .. }) => Err(self.fail(entry, message).await),
        }
    }

    /// Keeps that a drain has failed. A worker of a pool that cannot be smaller owns blocks again.
    async fn fail(&self, entry: &mut Leaving, message: String) -> Left {
        if entry.why == LeavingReason::ScaleIn
            && !entry.was_cordoned
            && let Err(error) = self.context.master.uncordon_worker(&entry.worker).await
        {
            tracing::warn!(worker = %entry.worker, %error, "it stays cordoned");
        }
        entry.at = Some(Time(self.now));
        entry.failed = Some(message.clone());
        Left::Failed(message)
    }

    /// Has those own blocks again that are not to go any more, and forgets those that are gone. `leaving` names those that are.
    pub(super) async fn keep_others(&mut self, leaving: &[String]) {
        let mut is_away = false;
        for mut entry in std::mem::take(&mut self.leaving) {
            if is_away || leaving.contains(&entry.worker) || !self.may_own(&mut entry) {
                self.leaving.push(entry);
                continue;
            }
            if entry.was_cordoned {
                continue;
            }
            if let Err(error) = self.context.master.uncordon_worker(&entry.worker).await {
                tracing::warn!(worker = %entry.worker, %error, "it stays cordoned for now");
                is_away = matches!(error, MasterError::Away(_));
                self.leaving.push(entry);
            }
        }
    }

    /// Whether a worker that does not leave any more is one that stays, or is gone altogether.
    fn may_own(&self, entry: &mut Leaving) -> bool {
        let here = self.pods.values();
        let mut here = here.filter(|pod| pod.node.as_deref() == Some(&entry.worker));
        if let Some(pod) = here.next() {
            return !pod.is_leaving;
        }
        if matches!(self.standing(&entry.worker), Ok(None)) {
            return true;
        }
        // Its pod has gone a moment ago, or a worker of another pool is there now.
        let since = entry.at.get_or_insert(Time(self.now));
        self.now.duration_since(since.0) >= GONE
    }

    /// How a member of the cluster stands; none if a worker is no member.
    fn standing(&self, worker: &str) -> Result<Option<v1::WorkerState>, String> {
        let workers = self.workers.as_ref().map_err(Clone::clone)?;
        let known = workers.iter().find(|known| {
            let info = known.worker.as_ref();
            !known.away && info.is_some_and(|info| info.id == worker)
        });
        Ok(known.map(v1::WorkerStatus::state))
    }
}
