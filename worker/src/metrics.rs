//! What a worker counts. `docs/metrics.md` is the list for users; a test compares the two.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::{Mutex, RwLock};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use weir_core::id::split_name;

use crate::read_source::Source;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadLabels {
    namespace: String,
    dataset: String,
    source: &'static str,
}

/// Label of metrics that exist once per dataset.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DatasetLabel {
    /// The dataset's namespace.
    pub namespace: String,
    /// The dataset's name.
    pub dataset: String,
}

impl DatasetLabel {
    /// The labels of a dataset's name in its one form.
    fn of(name: &str) -> Self {
        let (namespace, dataset) = split_name(name);
        Self {
            namespace: namespace.to_owned(),
            dataset: dataset.to_owned(),
        }
    }
}

/// Labels of metrics that exist once per tier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TierLabels {
    /// `memory` or `ssd`.
    pub tier: &'static str,
    /// Directory of an SSD tier; empty for memory.
    pub path: String,
}

/// Labels of evictions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EvictionLabels {
    /// `memory` or `ssd`.
    pub tier: &'static str,
    /// Why: `idle`, `damaged`, `unreadable`, `lost_file`, `mismatch`, `not_owned`, `copy` or `request`.
    pub reason: &'static str,
}

/// Label of metrics by outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// `ok` or `error`, or what a metric has more.
    pub result: &'static str,
}

/// Label of metrics by reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Why.
    pub reason: &'static str,
}

/// What becomes of questions for blocks that other workers may hold.
const COPY_RESULTS: [&str; 8] = [
    "ok",
    "not_held",
    "refused",
    "damaged",
    "unreachable",
    "silent",
    "late",
    "too_old",
];

/// Datasets with counters of their own, and the name of all others.
const MAX_DATASETS: usize = 10_000;
const OTHER_DATASETS: &str = "others";

/// Counters of the reads of one dataset; got once, so that a read touches atomics only.
#[derive(Clone, Debug)]
pub struct DatasetReads {
    reads: [Counter; 4],
    bytes: [Counter; 4],
}

impl DatasetReads {
    /// Counts one block read of `bytes` bytes from `source`.
    pub fn count(&self, source: Source, bytes: u64) {
        self.count_many(source, 1, bytes);
    }

    /// Counts block reads of `bytes` bytes together.
    pub fn count_many(&self, source: Source, reads: u64, bytes: u64) {
        self.reads[source as usize].inc_by(reads);
        self.bytes[source as usize].inc_by(bytes);
    }

    /// Block reads from `source` so far.
    pub fn reads(&self, source: Source) -> u64 {
        self.reads[source as usize].get()
    }

    /// Bytes from `source` so far.
    pub fn bytes(&self, source: Source) -> u64 {
        self.bytes[source as usize].get()
    }
}

/// All metrics of a worker.
#[derive(Debug)]
pub struct WorkerMetrics {
    reads: Family<ReadLabels, Counter>,
    read_bytes: Family<ReadLabels, Counter>,
    by_dataset: RwLock<HashMap<String, Arc<DatasetReads>>>,
    pub(crate) fills: Family<ResultLabel, Counter>,
    pub(crate) fill_bytes: Counter,
    pub(crate) fill_duration: Histogram,
    pub(crate) fills_in_flight: Gauge,
    pub(crate) map_epoch: Gauge,
    pub(crate) refused: Counter,
    pub(crate) refused_bytes: Counter,
    pub(crate) evicted_blocks: Family<EvictionLabels, Counter<u64, AtomicU64>>,
    pub(crate) evicted_bytes: Family<EvictionLabels, Counter<u64, AtomicU64>>,
    pub(crate) tier_capacity: Family<TierLabels, Gauge>,
    pub(crate) tier_limit: Family<TierLabels, Gauge>,
    pub(crate) tier_used: Family<TierLabels, Gauge>,
    pub(crate) tier_blocks: Family<TierLabels, Gauge>,
    pub(crate) tier_degraded: Family<TierLabels, Gauge>,
    pub(crate) damaged: Counter,
    pub(crate) lost_segments: Counter,
    verified_files: Family<ResultLabel, Counter>,
    pub(crate) mismatches: Counter,
    pub(crate) unverified_blocks: Counter,
    cached_bytes: Family<DatasetLabel, Gauge>,
    /// By the datasets' names.
    shown_cached: Mutex<HashSet<String>>,
    pub(crate) copies: Family<ResultLabel, Counter>,
    pub(crate) copied_bytes: Counter,
    pub(crate) handed_over_bytes: Counter,
    pub(crate) kept_copies: Gauge,
    pub(crate) kept_for_node: Gauge,
    pub(crate) stream_requests: Family<ResultLabel, Counter>,
    pub(crate) stream_connections: Gauge,
    pub(crate) stream_refusals: Family<ReasonLabel, Counter>,
}

impl WorkerMetrics {
    /// Makes the metrics and puts them in `registry`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            reads: Family::default(),
            read_bytes: Family::default(),
            by_dataset: RwLock::default(),
            fills: Family::default(),
            fill_bytes: Counter::default(),
            fill_duration: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            fills_in_flight: Gauge::default(),
            map_epoch: Gauge::default(),
            refused: Counter::default(),
            refused_bytes: Counter::default(),
            evicted_blocks: Family::default(),
            evicted_bytes: Family::default(),
            tier_capacity: Family::default(),
            tier_limit: Family::default(),
            tier_used: Family::default(),
            tier_blocks: Family::default(),
            tier_degraded: Family::default(),
            damaged: Counter::default(),
            lost_segments: Counter::default(),
            verified_files: Family::default(),
            mismatches: Counter::default(),
            unverified_blocks: Counter::default(),
            cached_bytes: Family::default(),
            shown_cached: Mutex::default(),
            copies: Family::default(),
            copied_bytes: Counter::default(),
            handed_over_bytes: Counter::default(),
            kept_copies: Gauge::default(),
            kept_for_node: Gauge::default(),
            stream_requests: Family::default(),
            stream_connections: Gauge::default(),
            stream_refusals: Family::default(),
        };
        for reason in ["unknown_key", "refused", "late", "crowded", "broken"] {
            metrics
                .stream_refusals
                .get_or_create(&ReasonLabel { reason })
                .inc_by(0);
        }
        for result in ["ok", "error"] {
            metrics
                .fills
                .get_or_create(&ResultLabel { result })
                .inc_by(0);
            metrics
                .stream_requests
                .get_or_create(&ResultLabel { result })
                .inc_by(0);
        }
        for result in ["refused", "not_held", "spread"] {
            let label = ResultLabel { result };
            metrics.stream_requests.get_or_create(&label).inc_by(0);
        }
        for result in COPY_RESULTS {
            let label = ResultLabel { result };
            metrics.copies.get_or_create(&label).inc_by(0);
        }
        for result in ["right", "given_up", "no_checksum"] {
            metrics
                .verified_files
                .get_or_create(&ResultLabel { result })
                .inc_by(0);
        }
        let r = registry.sub_registry_with_prefix("weir_worker");
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
            "fills",
            "Blocks fetched from an origin, by result",
            metrics.fills.clone(),
        );
        r.register_with_unit(
            "fill",
            "Bytes fetched from origins",
            Unit::Bytes,
            metrics.fill_bytes.clone(),
        );
        r.register_with_unit(
            "fill_duration",
            "Time from the request for a block to its last byte",
            Unit::Seconds,
            metrics.fill_duration.clone(),
        );
        r.register(
            "fills_in_flight",
            "Blocks on their way from an origin or to the SSD tier",
            metrics.fills_in_flight.clone(),
        );
        r.register(
            "cluster_map_epoch",
            "Epoch of the cluster map in use",
            metrics.map_epoch.clone(),
        );
        r.register(
            "admissions_refused",
            "Blocks not kept because the SSD tier, or its device, is full and nothing in it may make room",
            metrics.refused.clone(),
        );
        r.register_with_unit(
            "admissions_refused",
            "Bytes of such blocks",
            Unit::Bytes,
            metrics.refused_bytes.clone(),
        );
        r.register(
            "evicted_blocks",
            "Blocks dropped, by tier and reason",
            metrics.evicted_blocks.clone(),
        );
        r.register_with_unit(
            "evicted",
            "Bytes dropped, by tier and reason",
            Unit::Bytes,
            metrics.evicted_bytes.clone(),
        );
        r.register_with_unit(
            "tier_capacity",
            "Most bytes that a tier holds",
            Unit::Bytes,
            metrics.tier_capacity.clone(),
        );
        r.register_with_unit(
            "tier_limit",
            "Most bytes that a tier may hold now: less than its capacity while others fill its disk",
            Unit::Bytes,
            metrics.tier_limit.clone(),
        );
        r.register_with_unit(
            "tier_used",
            "Bytes that a tier takes now",
            Unit::Bytes,
            metrics.tier_used.clone(),
        );
        r.register(
            "tier_blocks",
            "Blocks that a tier holds now",
            metrics.tier_blocks.clone(),
        );
        r.register(
            "tier_degraded",
            "1 while a tier's device hangs, or failed or was damaged in the last ten minutes",
            metrics.tier_degraded.clone(),
        );
        r.register(
            "damaged_blocks",
            "Blocks on SSD or in memory whose checksum was wrong",
            metrics.damaged.clone(),
        );
        r.register(
            "lost_segments",
            "Segment files that were deleted, cut or replaced by somebody else",
            metrics.lost_segments.clone(),
        );
        r.register(
            "files_verified",
            "Files of several blocks that were compared with the origin's checksum, by result",
            metrics.verified_files.clone(),
        );
        r.register(
            "checksum_mismatches",
            "Times that blocks of such a file, or of a part of it, did not have the origin's checksum",
            metrics.mismatches.clone(),
        );
        r.register(
            "blocks_unverified",
            "Blocks of such files whose checksum was not computed",
            metrics.unverified_blocks.clone(),
        );
        r.register_with_unit(
            "cached",
            "Bytes of a dataset's newest snapshot that this worker holds",
            Unit::Bytes,
            metrics.cached_bytes.clone(),
        );
        r.register(
            "copies",
            "Questions to other workers for blocks that they may hold, by result",
            metrics.copies.clone(),
        );
        r.register_with_unit(
            "copied",
            "Bytes taken over from other workers",
            Unit::Bytes,
            metrics.copied_bytes.clone(),
        );
        r.register_with_unit(
            "handed_over",
            "Bytes given to other workers",
            Unit::Bytes,
            metrics.handed_over_bytes.clone(),
        );
        r.register_with_unit(
            "kept_for_node",
            "Bytes of other workers' blocks that are kept for readers on this node alone",
            Unit::Bytes,
            metrics.kept_for_node.clone(),
        );
        r.register_with_unit(
            "kept_copies",
            "Bytes of other workers' blocks that are kept because many read them at once",
            Unit::Bytes,
            metrics.kept_copies.clone(),
        );
        r.register(
            "stream_requests",
            "Requests on the block stream, by result",
            metrics.stream_requests.clone(),
        );
        r.register(
            "stream_connections",
            "Open connections of the block stream",
            metrics.stream_connections.clone(),
        );
        r.register(
            "stream_refusals",
            "Connections of the block stream that were not admitted, by reason",
            metrics.stream_refusals.clone(),
        );
        Arc::new(metrics)
    }

    /// Counts a file of several blocks that was compared, or cannot be.
    pub(crate) fn verified(&self, result: &'static str) {
        self.verified_files
            .get_or_create(&ResultLabel { result })
            .inc();
    }

    /// The counters of one dataset. Callers name datasets as they like: those past `MAX_DATASETS` share their counters.
    pub fn dataset(&self, name: &str) -> Arc<DatasetReads> {
        let mut name = name;
        {
            let known = self.by_dataset.read();
            if let Some(found) = known.get(name) {
                return found.clone();
            }
            if known.len() >= MAX_DATASETS {
                name = OTHER_DATASETS;
            }
        }
        let labels = |source: Source| {
            let DatasetLabel { namespace, dataset } = DatasetLabel::of(name);
            ReadLabels {
                namespace,
                dataset,
                source: source.label(),
            }
        };
        let made = Arc::new(DatasetReads {
            reads: Source::ALL.map(|s| self.reads.get_or_create(&labels(s)).clone()),
            bytes: Source::ALL.map(|s| self.read_bytes.get_or_create(&labels(s)).clone()),
        });
        self.by_dataset
            .write()
            .entry(name.to_owned())
            .or_insert(made)
            .clone()
    }

    /// Shows what is held of no other datasets than these.
    pub(crate) fn retain_cached(&self, wanted: impl Fn(&str) -> bool) {
        let mut shown = self.shown_cached.lock();
        shown.retain(|dataset| {
            let wanted = wanted(dataset);
            if !wanted {
                self.cached_bytes.remove(&DatasetLabel::of(dataset));
            }
            wanted
        });
    }

    /// Shows how many bytes are held of a dataset.
    pub(crate) fn show_cached(&self, dataset: &str, bytes: u64) {
        let label = DatasetLabel::of(dataset);
        self.cached_bytes.get_or_create(&label).set(bytes as i64);
        self.shown_cached.lock().insert(dataset.to_owned());
    }

    /// Block reads of a dataset so far.
    pub(crate) fn reads_of(&self, dataset: &str) -> u64 {
        let known = self.by_dataset.read();
        let reads = known.get(dataset);
        reads.map_or(0, |reads| Source::ALL.map(|s| reads.reads(s)).iter().sum())
    }

    /// The counters of every dataset that was read, by name.
    pub fn datasets(&self) -> Vec<(String, Arc<DatasetReads>)> {
        self.by_dataset
            .read()
            .iter()
            .map(|(name, reads)| (name.clone(), reads.clone()))
            .collect()
    }
}
