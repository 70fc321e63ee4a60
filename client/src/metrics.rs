//! What a client counts. `docs/metrics.md` is the list for users; a test compares the two.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use weir_core::DatasetName;
use weir_worker::Source;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    namespace: String,
    dataset: String,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DatasetLabel {
    namespace: String,
    dataset: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    pub(crate) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResultLabel {
    pub(crate) result: &'static str,
}

/// What becomes of reads of copies beside the owners'.
const COPY_RESULTS: [&str; 8] = [
    "ok",
    "not_held",
    "damaged",
    "unreachable",
    "silent",
    "late",
    "left",
    "too_old",
];

/// Every reason why a read goes on to another worker or the origin.
const FAILOVER_REASONS: [&str; 10] = [
    "unreachable",
    "refused",
    "silent",
    "denied",
    "damaged",
    "left",
    "unavailable",
    "unknown_origin",
    "protocol",
    "slow_origin",
];

/// Where a client got bytes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadSource {
    /// The memory tier of the worker in this process or on this machine.
    Memory,
    /// The SSD tier of the worker in this process or on this machine.
    Ssd,
    /// A worker on another machine.
    Remote,
    /// The origin, through the local worker or directly.
    Origin,
}

impl ReadSource {
    /// All sources, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Ssd, Self::Remote, Self::Origin];

    /// The source as a metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Ssd => "ssd",
            Self::Remote => "remote",
            Self::Origin => "origin",
        }
    }
}

impl From<Source> for ReadSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Memory => Self::Memory,
            Source::Ssd => Self::Ssd,
            Source::Origin => Self::Origin,
            Source::Worker => Self::Remote,
        }
    }
}

/// All metrics of a client.
#[derive(Debug)]
pub struct ClientMetrics {
    reads: Family<SourceLabels, Counter>,
    read_bytes: Family<SourceLabels, Counter>,
    stale: Family<DatasetLabel, Counter>,
    pub(crate) failovers: Family<ReasonLabel, Counter>,
    pub(crate) copy_reads: Family<ResultLabel, Counter>,
    pub(crate) damaged: Counter,
    pub(crate) prefetched_bytes: Counter,
    pub(crate) prefetch_used_bytes: Counter,
    pub(crate) prefetch_repeated_bytes: Counter,
    pub(crate) map_epoch: Gauge,
    pub(crate) suspects: Gauge,
}

impl ClientMetrics {
    /// Makes the metrics and puts them in `registry`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            reads: Family::default(),
            read_bytes: Family::default(),
            stale: Family::default(),
            failovers: Family::default(),
            copy_reads: Family::default(),
            damaged: Counter::default(),
            prefetched_bytes: Counter::default(),
            prefetch_used_bytes: Counter::default(),
            prefetch_repeated_bytes: Counter::default(),
            map_epoch: Gauge::default(),
            suspects: Gauge::default(),
        };
        for reason in FAILOVER_REASONS {
            metrics
                .failovers
                .get_or_create(&ReasonLabel { reason })
                .inc_by(0);
        }
        for result in COPY_RESULTS {
            let label = ResultLabel { result };
            metrics.copy_reads.get_or_create(&label).inc_by(0);
        }
        let r = registry.sub_registry_with_prefix("weir_client");
        r.register(
            "block_reads",
            "Block reads by dataset and source",
            metrics.reads.clone(),
        );
        r.register_with_unit(
            "read",
            "Bytes read by dataset and source",
            Unit::Bytes,
            metrics.read_bytes.clone(),
        );
        r.register(
            "stale_reads",
            "Reads that failed because the object changed at the origin",
            metrics.stale.clone(),
        );
        r.register(
            "failovers",
            "Block reads that went on to another worker or to the origin, by reason",
            metrics.failovers.clone(),
        );
        r.register(
            "copy_reads",
            "Block reads for which another worker than the owner was asked since many read the same, by result",
            metrics.copy_reads.clone(),
        );
        r.register(
            "damaged_answers",
            "Answers of workers whose bytes did not match their checksum; they were asked for again",
            metrics.damaged.clone(),
        );
        r.register(
            "suspects",
            "Workers that did not answer, and are asked last until they do",
            metrics.suspects.clone(),
        );
        r.register_with_unit(
            "prefetched",
            "Bytes that were fetched before their readers asked for them",
            Unit::Bytes,
            metrics.prefetched_bytes.clone(),
        );
        r.register_with_unit(
            "prefetch_used",
            "Bytes prefetched into the tiers that were read since",
            Unit::Bytes,
            metrics.prefetch_used_bytes.clone(),
        );
        r.register_with_unit(
            "prefetch_repeated",
            "Bytes prefetched into the page cache that the kernel asked for again",
            Unit::Bytes,
            metrics.prefetch_repeated_bytes.clone(),
        );
        r.register(
            "cluster_map_epoch",
            "Epoch of the cluster map in use",
            metrics.map_epoch.clone(),
        );
        Arc::new(metrics)
    }

    /// Bytes that were read of a dataset, wherever they came from; none of what the kernel had.
    pub(crate) fn bytes_read(&self, dataset: &str) -> u64 {
        let Ok(name) = dataset.parse::<DatasetName>() else {
            return 0;
        };
        let counters = self.dataset(&name);
        counters.bytes.iter().map(Counter::get).sum()
    }

    /// The counters of one dataset, to be got once.
    pub(crate) fn dataset(&self, name: &DatasetName) -> DatasetCounters {
        let (namespace, dataset) = (name.namespace(), name.name());
        let labels = |source: ReadSource| SourceLabels {
            namespace: namespace.to_owned(),
            dataset: dataset.to_owned(),
            source: source.label(),
        };
        DatasetCounters {
            reads: ReadSource::ALL.map(|s| self.reads.get_or_create(&labels(s)).clone()),
            bytes: ReadSource::ALL.map(|s| self.read_bytes.get_or_create(&labels(s)).clone()),
            stale: self
                .stale
                .get_or_create(&DatasetLabel {
                    namespace: namespace.to_owned(),
                    dataset: dataset.to_owned(),
                })
                .clone(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct DatasetCounters {
    reads: [Counter; 4],
    bytes: [Counter; 4],
    pub(crate) stale: Counter,
}

impl DatasetCounters {
    pub(crate) fn count(&self, source: ReadSource, bytes: u64) {
        self.reads[source as usize].inc();
        self.bytes[source as usize].inc_by(bytes);
    }
}
