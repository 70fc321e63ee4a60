//! Checksums on their way to the workers that compare: those of one object go together.

use std::collections::HashMap;

use tokio::time::{Duration, Instant};
use weir_core::{Block, BlockKey};
use weir_proto::v1;

use super::table::Sums;
use super::wire;

/// How long a first one waits for others, and how many go together at most.
const LINGER: Duration = Duration::from_millis(100);
const MAX_TOGETHER: usize = 64;

#[derive(Default)]
pub(super) struct Outbox {
    objects: HashMap<BlockKey, (Block, Vec<(u32, Sums)>)>,
    due: Option<Instant>,
}

impl Outbox {
    /// Adds the checksums of a block; gives whether all is to be sent now.
    pub(super) fn add(&mut self, id: BlockKey, block: &Block, sums: Sums) -> bool {
        self.due.get_or_insert_with(|| Instant::now() + LINGER);
        let (_, blocks) = self
            .objects
            .entry(id)
            .or_insert_with(|| (block.clone(), Vec::new()));
        blocks.push((block.index, sums));
        blocks.len() >= MAX_TOGETHER || self.objects.len() >= MAX_TOGETHER
    }

    /// When what waits is to be sent.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// All that waits.
    pub(super) fn take(&mut self) -> Vec<(BlockKey, v1::ReportChecksumsRequest)> {
        self.due = None;
        let objects = std::mem::take(&mut self.objects);
        let requests = objects.into_iter().map(|(id, (block, blocks))| {
            let blocks = blocks.into_iter().map(|(index, sums)| v1::BlockChecksums {
                index,
                sums: sums.into(),
            });
            let request = v1::ReportChecksumsRequest {
                object: Some(wire::object_of(&block)),
                blocks: blocks.collect(),
            };
            (id, request)
        });
        requests.collect()
    }
}
