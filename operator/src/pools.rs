//! What is known of all CachePools, from one look to the next.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

use crate::fleet::Fleet;
use crate::master::Master;
use crate::metrics::OperatorMetrics;
use crate::objects::Leaving;

/// What looks at pools share.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    /// Where Weir is installed.
    pub(crate) namespace: String,
    /// File with the template of a worker's pod, as JSON; pools are not possible without it.
    pub(crate) template: Option<PathBuf>,
    pub(crate) fleet: Fleet,
    pub(crate) remembered: Mutex<HashMap<String, Remembered>>,
}

impl Pools {
    pub(crate) fn new(namespace: &str, template: Option<PathBuf>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            template,
            ..Self::default()
        }
    }

    /// Forgets the pools that are gone, of which nothing else is heard. Workers that were drained for them own blocks again before.
    pub(crate) async fn forget(
        &self,
        is_gone: impl Fn(&str) -> bool,
        master: &dyn Master,
        metrics: &OperatorMetrics,
    ) {
        for (pool, entry) in self.left_by(&is_gone) {
            if !entry.was_cordoned
                && let Err(error) = master.uncordon_worker(&entry.worker).await
            {
                tracing::warn!(worker = %entry.worker, %error, "it stays cordoned for now");
                break;
            }
            if let Some(of) = self.remembered.lock().get_mut(&pool) {
                let leaving = of.leaving.iter_mut();
                leaving.for_each(|all| all.retain(|one| one.worker != entry.worker));
            }
        }
        self.remembered.lock().retain(|name, of| {
            if !is_gone(name) {
                return true;
            }
            metrics.forget_pool(name);
            of.leaving.as_ref().is_some_and(|all| !all.is_empty())
        });
    }

    /// Workers that were leaving pools that are gone, and whose pods have gone with them.
    fn left_by(&self, is_gone: impl Fn(&str) -> bool) -> Vec<(String, Leaving)> {
        let pods = self.fleet.pods().unwrap_or_default();
        let runs = |pool: &str, worker: &str| {
            let mut of_pool = pods.values().filter(|pod| pod.pool == pool);
            of_pool.any(|pod| pod.node.as_deref() == Some(worker))
        };
        let remembered = self.remembered.lock();
        let gone = remembered.iter().filter(|(name, _)| is_gone(name));
        let entries = gone.flat_map(|(name, of)| {
            let leaving = of.leaving.iter().flatten();
            leaving.map(|entry| (name.clone(), entry.clone()))
        });
        entries
            .filter(|(pool, entry)| !runs(pool, &entry.worker))
            .collect()
    }
}

/// What is known of a pool from looks before, and is found out again without.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    /// The objects that were written last, and the generation that they had then.
    pub(crate) written: Option<(u64, i64)>,
    /// Workers that the last look left leaving, which its status may lack: that is written after the master was asked, and goes with
    /// the pool. None before the first look.
    pub(crate) leaving: Option<Vec<Leaving>>,
    /// What was read up to a moment, and the share of it since the moment before which came from the cache.
    pub(crate) reads: Option<(Timestamp, Reads)>,
    pub(crate) hits: Option<u64>,
}

/// Bytes that were read since workers started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    pub(crate) from_cache: u64,
    pub(crate) all: u64,
}
