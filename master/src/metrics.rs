//! What the master counts.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use weir_core::LeftOut;
use weir_core::id::split_name;
use weir_proto::v1;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DatasetLabel {
    namespace: String,
    dataset: String,
}

impl DatasetLabel {
    /// The labels of a dataset's name in its one form.
    pub(crate) fn of(name: &str) -> Self {
        let (namespace, dataset) = split_name(name);
        Self {
            namespace: namespace.to_owned(),
            dataset: dataset.to_owned(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeftOutLabels {
    namespace: String,
    dataset: String,
    reason: &'static str,
}

impl LeftOutLabels {
    fn of(name: &str, reason: &'static str) -> Self {
        let DatasetLabel { namespace, dataset } = DatasetLabel::of(name);
        Self {
            namespace,
            dataset,
            reason,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefreshLabels {
    result: &'static str,
}

/// All metrics of one master.
#[derive(Debug, Default)]
pub struct MasterMetrics {
    pub(crate) datasets: Gauge,
    files: Family<DatasetLabel, Gauge>,
    bytes: Family<DatasetLabel, Gauge>,
    left_out: Family<LeftOutLabels, Gauge>,
    pub(crate) stale_reads: Family<DatasetLabel, Counter>,
    pub(crate) workers: Gauge,
    pub(crate) epoch: Gauge,
    pub(crate) heartbeats: Counter,
    jobs: Family<JobLabels, Counter>,
    listing: Option<Histogram>,
    refreshes: Family<RefreshLabels, Counter>,
}

impl MasterMetrics {
    /// Makes the metrics and puts them in `registry`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        // 10 ms to 90 minutes: from a few keys to hundreds of millions.
        let listing = Histogram::new(exponential_buckets(0.01, 3.0, 13));
        let metrics = Self {
            listing: Some(listing.clone()),
            ..Self::default()
        };
        for kind in ["warm", "evict", "drain"] {
            for result in ["done", "cancelled", "failed"] {
                metrics
                    .jobs
                    .get_or_create(&JobLabels { kind, result })
                    .inc_by(0);
            }
        }
        for result in ["changed", "unchanged", "failed"] {
            let labels = RefreshLabels { result };
            metrics.refreshes.get_or_create(&labels).inc_by(0);
        }
        let r = registry.sub_registry_with_prefix("weir_master");
        r.register("datasets", "Datasets", metrics.datasets.clone());
        r.register(
            "dataset_files",
            "Files of the newest snapshot",
            metrics.files.clone(),
        );
        r.register_with_unit(
            "dataset",
            "Bytes of the newest snapshot",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        r.register(
            "left_out_objects",
            "Objects that the newest snapshot leaves out because a file system cannot show them, by reason",
            metrics.left_out.clone(),
        );
        r.register(
            "stale_reads",
            "Reads that found an object changed since it was listed",
            metrics.stale_reads.clone(),
        );
        r.register("workers", "Live workers", metrics.workers.clone());
        r.register(
            "cluster_map_epoch",
            "Epoch of the cluster map",
            metrics.epoch.clone(),
        );
        r.register(
            "heartbeats",
            "Heartbeats of workers",
            metrics.heartbeats.clone(),
        );
        r.register(
            "jobs",
            "Ended jobs, by kind and result",
            metrics.jobs.clone(),
        );
        r.register_with_unit(
            "listing_duration",
            "Time to list a dataset and make its snapshot",
            Unit::Seconds,
            listing,
        );
        r.register(
            "refreshes",
            "Listings of datasets that are listed again by themselves, by result",
            metrics.refreshes.clone(),
        );
        Arc::new(metrics)
    }

    /// A dataset was listed again by itself.
    pub(crate) fn refreshed(&self, result: &'static str) {
        self.refreshes
            .get_or_create(&RefreshLabels { result })
            .inc();
    }

    /// Shows the newest snapshot of a dataset.
    pub(crate) fn show_snapshot(&self, dataset: &str, snapshot: &v1::Snapshot) {
        let label = DatasetLabel::of(dataset);
        self.stale_reads.get_or_create(&label).inc_by(0);
        self.files.get_or_create(&label).set(snapshot.files as i64);
        self.bytes.get_or_create(&label).set(snapshot.bytes as i64);
        for reason in LeftOut::ALL.map(LeftOut::label) {
            let count = snapshot.left_out.get(reason).copied().unwrap_or_default();
            let labels = LeftOutLabels::of(dataset, reason);
            self.left_out.get_or_create(&labels).set(count as i64);
        }
    }

    /// Shows a dataset no more.
    pub(crate) fn forget(&self, dataset: &str) {
        let label = DatasetLabel::of(dataset);
        self.files.remove(&label);
        self.bytes.remove(&label);
        self.stale_reads.remove(&label);
        for reason in LeftOut::ALL.map(LeftOut::label) {
            self.left_out.remove(&LeftOutLabels::of(dataset, reason));
        }
    }

    pub(crate) fn listed(&self, took: Duration) {
        if let Some(listing) = &self.listing {
            listing.observe(took.as_secs_f64());
        }
    }

    pub(crate) fn job_ended(&self, job: &v1::Job) {
        let kind = match job.kind() {
            v1::JobKind::Evict => "evict",
            v1::JobKind::Drain => "drain",
            _ => "warm",
        };
        let result = match job.state() {
            v1::JobState::Done => "done",
            v1::JobState::Cancelled => "cancelled",
            _ => "failed",
        };
        self.jobs.get_or_create(&JobLabels { kind, result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn jobs_of_each_kind_are_shown_before_the_first_has_ended() {
        let mut registry = Registry::default();
        let metrics = MasterMetrics::register(&mut registry);
        let shown = |registry: &Registry| {
            let mut text = String::new();
            encode(&mut text, registry).unwrap();
            text.lines()
                .filter(|line| line.contains("jobs_total{"))
                .count()
        };
        let before = shown(&registry);
        let kinds = [v1::JobKind::Warm, v1::JobKind::Evict, v1::JobKind::Drain];
        for kind in kinds {
            let state = v1::JobState::Done.into();
            metrics.job_ended(&v1::Job {
                kind: kind.into(),
                state,
                ..v1::Job::default()
            });
        }
        assert_eq!((before, shown(&registry)), (9, 9));
    }
}
