//! A read of one block: which places are asked, in which order, and when the next is asked beside one that is silent.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use weir_core::{Block, WorkerInfo};
use weir_origin::OriginError;
use weir_proto::v1::BlockRequest;
use weir_wire::Activity;

use super::{ClusterReader, Refusal, View};
use crate::error::BlockError;
use crate::metrics::ReadSource;
use crate::silence::{SILENCE, SUSPICIOUS, silent};

/// Silence of a worker that is waited for though nobody else could help.
const LAST_RESORT: Duration = Duration::from_secs(10);

/// Who may have a block's bytes.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Worker(&'a WorkerInfo),
    Origin,
}

/// A read of a part of a block.
pub(super) struct Wanted<'a> {
    pub(super) block: &'a Block,
    /// What follows from the cluster map.
    pub(super) view: &'a View,
    pub(super) range: Range<u32>,
    pub(super) request: BlockRequest,
    /// The workers that may be asked for it.
    pub(super) owners: Vec<&'a WorkerInfo>,
    /// The origin's, from the manifest.
    pub(super) spec: &'a str,
    /// Those that said nothing, which others are told.
    pub(super) silent: Mutex<Vec<String>>,
}

/// What a read has come to.
pub(super) type Outcome = Result<(Vec<Bytes>, ReadSource), BlockError>;

impl ClusterReader {
    /// Reads from the first place that has the bytes. `before` says what went wrong so far.
    pub(super) async fn read_from(
        &self,
        places: &[Place<'_>],
        wanted: &Wanted<'_>,
        before: String,
    ) -> Outcome {
        match places {
            [] => Err(BlockError::Failed(before)),
            [Place::Origin, others @ ..] => self.read_origin_first(others, wanted, before).await,
            [Place::Worker(worker), others @ ..] => {
                self.read_worker_first(worker, others, wanted).await
            }
        }
    }

    /// [`Self::read_from`], as a future that can hold itself.
    fn read_others<'a>(
        &'a self,
        places: &'a [Place<'_>],
        wanted: &'a Wanted<'_>,
        before: String,
    ) -> BoxFuture<'a, Outcome> {
        self.read_from(places, wanted, before).boxed()
    }

    async fn read_worker_first(
        &self,
        worker: &WorkerInfo,
        others: &[Place<'_>],
        wanted: &Wanted<'_>,
    ) -> Outcome {
        let activity = Activity::default();
        let mut asked = std::pin::pin!(self.ask(worker, wanted, &activity));
        let silence = silent(worker, &activity, &self.suspects, &self.budget);
        let answer = tokio::select! {
            biased;
            answer = &mut asked => Some(answer),
            () = silence => None,
            held = self.read_elsewhere(Some(worker), || activity.waits_for_the_origin(), wanted) => {
                return Ok(held);
            }
        };
        if let Some(answer) = answer {
            return self.or_others(answer, worker, others, wanted).await;
        }
        let message = format!("worker {} is silent", worker.id);
        self.passed_over(worker, 1, "silent", &message);
        wanted.silent.lock().push(worker.id.to_string());
        let mut read = self.read_others(others, wanted, message);
        let mut suspicious = std::pin::pin!(activity.silent_for(SUSPICIOUS));
        let mut suspected = false;
        let error = loop {
            tokio::select! {
                biased;
                answer = &mut asked => {
                    return match answer {
                        Ok((bytes, source)) => Ok((vec![bytes], source)),
                        Err(Refusal::Final(error)) => {
                            self.held_or(error, Some(worker), wanted).await
                        }
                        Err(Refusal::Next(..)) => read.await,
                    };
                }
                outcome = &mut read => match outcome {
                    Ok(read) => {
                        if activity.silence().is_some_and(|silence| silence >= SILENCE) {
                            self.suspect(worker);
                        }
                        return Ok(read);
                    }
                    Err(error) => break error,
                },
                () = &mut suspicious, if !suspected => {
                    suspected = true;
                    self.suspect(worker);
                }
            }
        };
        // Nobody else has it, so it is worth more of a wait.
        tokio::select! {
            biased;
            answer = &mut asked => match answer {
                Ok((bytes, source)) => Ok((vec![bytes], source)),
                Err(Refusal::Final(error)) => Err(error),
                Err(Refusal::Next(..)) => Err(error),
            },
            () = activity.silent_for(LAST_RESORT) => Err(error),
        }
    }

    /// A worker's answer, or what others have in its place.
    async fn or_others(
        &self,
        answer: Result<(Bytes, ReadSource), Refusal>,
        worker: &WorkerInfo,
        others: &[Place<'_>],
        wanted: &Wanted<'_>,
    ) -> Outcome {
        match answer {
            Ok((bytes, source)) => Ok((vec![bytes], source)),
            Err(Refusal::Final(error)) => self.held_or(error, Some(worker), wanted).await,
            Err(Refusal::Next(reason, message)) => {
                self.passed_over(worker, 1, reason, &message);
                self.read_others(others, wanted, message).await
            }
        }
    }

    async fn read_origin_first(
        &self,
        others: &[Place<'_>],
        wanted: &Wanted<'_>,
        before: String,
    ) -> Outcome {
        let mut read =
            std::pin::pin!(self.read_origin(wanted.spec, wanted.block, wanted.range.clone()));
        let outcome = tokio::select! {
            biased;
            outcome = &mut read => outcome,
            Some((bytes, source)) = self.read_from_one_that_is_back(wanted) => {
                return Ok((vec![bytes], source));
            }
            held = self.read_elsewhere(None, || true, wanted) => return Ok(held),
        };
        match outcome {
            Ok(bytes) => Ok((bytes, ReadSource::Origin)),
            Err(error @ OriginError::Changed { .. }) => Err(BlockError::Changed(error.to_string())),
            Err(error) => {
                let message = format!("{error} (and before that: {before})");
                if others.is_empty() {
                    return self
                        .held_or(BlockError::Failed(message), None, wanted)
                        .await;
                }
                let read = self.read_others(others, wanted, message.clone()).await;
                read.map_err(|error| match error {
                    BlockError::Failed(_) => BlockError::Failed(message),
                    error @ BlockError::Changed(_) => error,
                })
            }
        }
    }

    /// Reads from the first owner that did not answer, does so again, and has the bytes. Ends with `None` if there are no
    /// owners, else not without bytes.
    async fn read_from_one_that_is_back(&self, wanted: &Wanted<'_>) -> Option<(Bytes, ReadSource)> {
        let owners = wanted.owners.iter();
        let mut reads: FuturesUnordered<_> = owners
            .map(|owner| self.read_once_back(owner, wanted))
            .collect();
        reads.next().await
    }

    async fn read_once_back(
        &self,
        worker: &WorkerInfo,
        wanted: &Wanted<'_>,
    ) -> (Bytes, ReadSource) {
        let mut trusted_again = self.suspects.trusted_again();
        while trusted_again.changed().await.is_ok() {
            if self.suspects.contains(&worker.id) {
                continue; // it was another
            }
            let activity = Activity::default();
            tokio::select! {
                biased;
                answer = self.ask(worker, wanted, &activity) => if let Ok(answer) = answer {
                    return answer;
                },
                () = activity.silent_for(SUSPICIOUS) => {
                    self.suspect(worker);
                }
            }
        }
        std::future::pending().await // nobody is trusted again any more
    }
}
