//! Blocks that are nowhere to be had but at a worker that nobody would ask.
//!
//! A worker that lacks a block waits for the origin. Another one may hold it all the while: it stood in for the owner when that was
//! silent for a moment, or it is the owner, and this reader took it for silent. Where the origin is slow, or away, those are asked for
//! what they hold: that is to be read in bounded time whatever the origin does, and nobody fetches anything because of it.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use tokio::time::{sleep, timeout};
use weir_core::WorkerInfo;
use weir_proto::v1::{BlockRequest, BlockStatus};
use weir_wire::{Activity, ConnectionError};

use super::race::{Outcome, Wanted};
use super::{ClusterReader, MAX_OWNERS, MAX_PASSED_OVER};
use crate::error::BlockError;
use crate::metrics::ReadSource;
use crate::silence::SILENCE;

/// How long the origin is waited for before other workers are asked; each time after that it is twice as long.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest wait for a worker that says that it is busy.
const DEADLINE: Duration = Duration::from_secs(2);

/// The bytes of a read, and where they were.
type Read = (Vec<Bytes>, ReadSource);

impl ClusterReader {
    /// Reads from another worker than `asked` what waits for the origin there, or in this process, again and again: as time passes, and
    /// when a worker is trusted again. Does not end without bytes.
    pub(super) async fn read_elsewhere(
        &self,
        asked: Option<&WorkerInfo>,
        waits_for_the_origin: impl Fn() -> bool,
        wanted: &Wanted<'_>,
    ) -> Read {
        let mut trusted_again = self.suspects.trusted_again();
        let mut pause = PATIENCE;
        loop {
            let is_back = async {
                if trusted_again.changed().await.is_err() {
                    std::future::pending::<()>().await; // nobody is any more
                }
            };
            tokio::select! {
                () = sleep(pause) => pause *= 2,
                () = is_back => {}
            }
            if waits_for_the_origin()
                && let Some(read) = self.read_held(asked, wanted).await
            {
                return read;
            }
        }
    }

    /// What another worker than `asked`, which the origin has failed, holds; else that error.
    pub(super) async fn held_or(
        &self,
        error: BlockError,
        asked: Option<&WorkerInfo>,
        wanted: &Wanted<'_>,
    ) -> Outcome {
        // What has changed is held by nobody any more.
        if matches!(error, BlockError::Changed(_)) {
            return Err(error);
        }
        self.read_held(asked, wanted).await.ok_or(error)
    }

    /// Reads from the first of the next workers that holds the block. Those that do not answer are left out.
    fn read_held<'a>(
        &'a self,
        asked: Option<&'a WorkerInfo>,
        wanted: &'a Wanted<'_>,
    ) -> BoxFuture<'a, Option<Read>> {
        // Few reads come to this, and each would have room for it.
        self.find_held(asked, wanted).boxed()
    }

    async fn find_held(&self, asked: Option<&WorkerInfo>, wanted: &Wanted<'_>) -> Option<Read> {
        let most = MAX_OWNERS + MAX_PASSED_OVER;
        for worker in self.owners(wanted.view, wanted.block, most) {
            let is_asked = asked.is_some_and(|asked| asked.id == worker.id);
            if is_asked || self.suspects.contains(&worker.id) {
                continue;
            }
            if let Some(bytes) = self.ask_for_held(worker, wanted).await {
                let message = "it waits for the origin";
                let passed_over = asked.unwrap_or(worker);
                self.passed_over(passed_over, 1, "slow_origin", message);
                return Some((vec![bytes], ReadSource::Remote));
            }
        }
        None
    }

    /// The bytes if a worker holds them.
    async fn ask_for_held(&self, worker: &WorkerInfo, wanted: &Wanted<'_>) -> Option<Bytes> {
        let request = BlockRequest {
            held_only: true,
            ..wanted.request.clone()
        };
        let activity = Activity::default();
        let asked = self.remote.request(worker, &request, &activity);
        let answer = tokio::select! {
            biased;
            answer = self.unless_it_leaves(worker, timeout(DEADLINE, asked)) => answer?.ok()?,
            () = activity.silent_for(SILENCE) => {
                self.suspect(worker);
                return None;
            }
        };
        match answer {
            Ok((answer, bytes)) => {
                let is_held = answer.reply.status() == BlockStatus::Ok && !bytes.is_empty();
                is_held.then_some(bytes)
            }
            Err(ConnectionError::Damaged | ConnectionError::TooOld) => None,
            Err(_) => {
                self.suspect(worker);
                None
            }
        }
    }
}
