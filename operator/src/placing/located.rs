//! Where datasets are cached, as the master says it, for as long as that is good enough to place a pod.
//!
//! A thousand pods of one job ask the master once. What does not answer in time is not asked again for a moment: the pods are
//! placed without it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use weir_core::DatasetName;
use weir_proto::v1;

use crate::master::Master;

/// How long an answer is used, and how long after a failure the master is not asked.
const FRESH: Duration = Duration::from_secs(5);
const FAILED: Duration = Duration::from_secs(2);
/// Longest wait for an answer.
const CALL: Duration = Duration::from_millis(500);
/// Datasets that are remembered, and of each the places with the most bytes.
const MAX_DATASETS: usize = 4096;
const MAX_NODES: usize = 256;
const MAX_PLACES: usize = 64;

type Slot = Arc<tokio::sync::Mutex<Option<Known>>>;

struct Known {
    at: Instant,
    /// None after a failure.
    reply: Option<Arc<v1::LocateDatasetReply>>,
}

/// What the master said of each dataset.
#[derive(Default)]
pub(crate) struct Located(Mutex<HashMap<DatasetName, Slot>>);

impl Located {
    /// Where a dataset is cached; none if that is not known in time.
    pub(crate) async fn get(
        &self,
        master: &dyn Master,
        name: &DatasetName,
    ) -> Option<Arc<v1::LocateDatasetReply>> {
        let slot = {
            let mut slots = self.0.lock();
            if slots.len() >= MAX_DATASETS && !slots.contains_key(name) {
                slots.clear();
            }
            slots.entry(name.clone()).or_default().clone()
        };
        // Who comes meanwhile waits for the same answer.
        let mut known = slot.lock().await;
        if let Some(known) = &*known {
            let lasts = if known.reply.is_some() { FRESH } else { FAILED };
            if known.at.elapsed() < lasts {
                return known.reply.clone();
            }
        }
        let answer = timeout(CALL, master.locate(name)).await;
        let reply = answer.ok().and_then(Result::ok).map(|mut reply| {
            reply.nodes.truncate(MAX_NODES);
            reply.nodes.shrink_to_fit();
            reply.groups.truncate(MAX_PLACES);
            reply.zones.truncate(MAX_PLACES);
            Arc::new(reply)
        });
        *known = Some(Known {
            at: Instant::now(),
            reply: reply.clone(),
        });
        reply
    }
}
