//! What a node plugin counts. `docs/metrics.md` is the list for users.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: &'static str,
    code: String,
}

/// The metrics of a node plugin.
#[derive(Debug, Default)]
pub struct CsiMetrics {
    calls: Family<CallLabels, Counter>,
    mounts: Gauge,
    volumes: Gauge,
    restored: Counter,
    misplaced: Gauge,
}

impl CsiMetrics {
    /// Makes them part of what a process exposes.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self::default();
        registry.register(
            "weir_csi_calls",
            "Calls of kubelet, by how they ended",
            metrics.calls.clone(),
        );
        registry.register(
            "weir_csi_mounts",
            "Snapshots that are mounted on this node",
            metrics.mounts.clone(),
        );
        registry.register(
            "weir_csi_volumes",
            "Volumes of pods on this node",
            metrics.volumes.clone(),
        );
        registry.register(
            "weir_csi_volumes_restored",
            "Volumes that nobody served any more and that were mounted anew",
            metrics.restored.clone(),
        );
        registry.register(
            "weir_csi_group_differs",
            "1 while the node's label names another group than --group",
            metrics.misplaced.clone(),
        );
        Arc::new(metrics)
    }

    pub(crate) fn called(&self, call: &'static str, code: tonic::Code) {
        let code = format!("{code:?}");
        self.calls.get_or_create(&CallLabels { call, code }).inc();
    }

    pub(crate) fn set_mounted(&self, mounts: usize, volumes: usize) {
        self.mounts.set(mounts as i64);
        self.volumes.set(volumes as i64);
    }

    pub(crate) fn set_misplaced(&self, misplaced: bool) {
        self.misplaced.set(misplaced.into());
    }

    pub(crate) fn restored(&self) {
        self.restored.inc();
    }
}
