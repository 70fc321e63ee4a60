//! Reads of many small blocks, all of one worker's with one exchange.

use std::collections::HashMap;

use futures::future::join_all;
use weir_core::{Block, WorkerId, WorkerInfo};
use weir_proto::v1::BlockRequest;
use weir_wire::Activity;

use super::{ClusterReader, Refusal, is_beside, request};
use crate::error::BatchError;
use crate::metrics::ReadSource;
use crate::silence::silent;

/// Blocks that are asked of one worker together.
struct Together<'a, 'p> {
    worker: &'a WorkerInfo,
    requests: Vec<BlockRequest>,
    /// Their numbers, and where their bytes go.
    numbers: Vec<usize>,
    places: Vec<&'p mut [u8]>,
}

impl ClusterReader {
    /// Reads whole blocks to their places, all of one worker's with one exchange.
    pub(crate) async fn read_together(
        &self,
        dataset: &str,
        blocks: Vec<(&Block, &mut [u8])>,
    ) -> Vec<Result<ReadSource, BatchError>> {
        let view = self.view();
        let mut groups: HashMap<&WorkerId, Together<'_, '_>> = HashMap::new();
        let mut outcomes = Vec::new();
        for (number, (block, place)) in blocks.into_iter().enumerate() {
            outcomes.push(Err(BatchError::NotTogether));
            let Some(worker) = self.owners(&view, block, 1).pop() else {
                continue;
            };
            if self.suspects.contains(&worker.id) {
                continue;
            }
            let group = groups.entry(&worker.id).or_insert_with(|| Together {
                worker,
                requests: Vec::new(),
                numbers: Vec::new(),
                places: Vec::new(),
            });
            let whole = 0..block.len();
            group.requests.push(request(&view, dataset, block, &whole));
            group.numbers.push(number);
            group.places.push(place);
        }
        let asked = groups.into_values().map(|group| self.ask_together(group));
        for (number, outcome) in join_all(asked).await.into_iter().flatten() {
            outcomes[number] = outcome;
        }
        outcomes
    }

    /// Gives what became of each block, with its number.
    async fn ask_together(
        &self,
        group: Together<'_, '_>,
    ) -> Vec<(usize, Result<ReadSource, BatchError>)> {
        let Together {
            worker,
            requests,
            numbers,
            mut places,
        } = group;
        let near = is_beside(worker, &self.config.node);
        let activity = Activity::default();
        let answers = async {
            if near {
                let socket = &worker.local_socket;
                let local =
                    self.local
                        .request_together(socket, requests.clone(), &mut places, &activity);
                if let Ok(replies) = local.await {
                    return Ok(replies);
                }
            }
            let remote = self
                .remote
                .request_together(worker, &requests, &mut places, &activity)
                .await?;
            Ok(remote.into_iter().map(|answer| answer.reply).collect())
        };
        self.budget.earn();
        let answered = tokio::select! {
            biased;
            answered = self.while_in_the_map(worker, answers) => answered,
            () = silent(worker, &activity, &self.suspects, &self.budget) => {
                self.suspect(worker);
                let message = format!("worker {} is silent", worker.id);
                Err(Refusal::Next("silent", message))
            }
        };
        let replies = match answered {
            Ok(replies) => replies,
            Err(refusal) => {
                if let Refusal::Next(reason, message) = refusal {
                    self.passed_over(worker, requests.len(), reason, &message);
                }
                return Vec::new();
            }
        };
        let answered = numbers.into_iter().zip(&requests).zip(replies);
        let outcomes = answered.map(|((number, request), reply)| {
            let is_here = reply.length == request.length;
            let outcome = match self.judge(worker, near, reply) {
                Ok(source) if is_here => Ok(source),
                Err(Refusal::Final(_)) => Err(BatchError::Unreadable),
                Ok(_) | Err(Refusal::Next(..)) => Err(BatchError::NotTogether),
            };
            (number, outcome)
        });
        outcomes.collect()
    }
}
