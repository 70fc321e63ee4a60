//! What is known of all CachePools, from one look to the next.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

use crate::fleet::Fleet;
use crate::metrics::OperatorMetrics;

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

    /// Forgets the pools that are gone, of which nothing else is heard.
    pub(crate) fn forget(&self, is_gone: impl Fn(&str) -> bool, metrics: &OperatorMetrics) {
        self.remembered.lock().retain(|name, _| {
            let is_gone = is_gone(name);
            if is_gone {
                metrics.forget_pool(name);
            }
            !is_gone
        });
    }
}

/// What is known of a pool from looks before, and is found out again without.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    /// The objects that were written last, and the generation that they had then.
    pub(crate) written: Option<(u64, i64)>,
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
