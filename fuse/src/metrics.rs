//! What a mount counts. `docs/metrics.md` is the list for users; a test compares the two.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ErrorLabel {
    pub(crate) error: &'static str,
}

/// All metrics of a mount. What the kernel answers from its caches never reaches the mount and is not counted.
#[derive(Debug)]
pub struct FuseMetrics {
    pub(crate) lookup: Counter,
    pub(crate) getattr: Counter,
    pub(crate) readdir: Counter,
    pub(crate) read: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) read_duration: Histogram,
    pub(crate) errors: Family<ErrorLabel, Counter>,
    pub(crate) entries: Gauge,
}

impl FuseMetrics {
    /// Makes the metrics and puts them in `registry`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let requests = Family::<OperationLabel, Counter>::default();
        let operation = |operation| {
            requests
                .get_or_create(&OperationLabel { operation })
                .clone()
        };
        let metrics = Self {
            lookup: operation("lookup"),
            getattr: operation("getattr"),
            readdir: operation("readdir"),
            read: operation("read"),
            read_bytes: Counter::default(),
            read_duration: Histogram::new(exponential_buckets(0.000_05, 4.0, 10)),
            errors: Family::default(),
            entries: Gauge::default(),
        };
        for error in ["EIO", "ESTALE"] {
            metrics
                .errors
                .get_or_create(&ErrorLabel { error })
                .inc_by(0);
        }
        let r = registry.sub_registry_with_prefix("weir_fuse");
        r.register("requests", "Requests of the kernel, by operation", requests);
        r.register_with_unit(
            "read",
            "Bytes given to the kernel",
            Unit::Bytes,
            metrics.read_bytes.clone(),
        );
        r.register_with_unit(
            "read_duration",
            "Time from a read request to its answer",
            Unit::Seconds,
            metrics.read_duration.clone(),
        );
        r.register(
            "errors",
            "Reads answered with an error, by error number",
            metrics.errors.clone(),
        );
        r.register(
            "entries",
            "Files and directories of the mounted snapshot",
            metrics.entries.clone(),
        );
        Arc::new(metrics)
    }
}
