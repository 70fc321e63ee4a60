//! How a master runs.

use std::path::PathBuf;

/// How a master runs.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Its directory: the store and the manifests.
    pub dir: PathBuf,
    /// Snapshots that are kept of each dataset; the oldest goes first. The default is 64: a dataset that is
    /// refreshed daily keeps two months.
    pub max_snapshots: usize,
}

impl Default for MasterConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/weir/master"),
            max_snapshots: 64,
        }
    }
}
