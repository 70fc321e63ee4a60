//! What is counted about requests to origins. Labels are few: the kind of origin, the operation, the result.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use crate::error::OriginError;

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    List,
    Get,
    Head,
}

impl Operation {
    fn label(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Get => "get",
            Self::Head => "head",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    origin: &'static str,
    operation: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WonLabel {
    won: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// All metrics of the origins of one process.
#[derive(Debug)]
pub struct OriginMetrics {
    requests: Family<RequestLabels, Counter>,
    read_bytes: Counter,
    retries: Family<ReasonLabel, Counter>,
    hedges: Family<WonLabel, Counter>,
    duration: Family<OperationLabel, Histogram>,
    errors: Family<KindLabel, Counter>,
    waiting: Gauge,
}

impl OriginMetrics {
    /// Makes the metrics and puts them in `registry`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            requests: Family::default(),
            read_bytes: Counter::default(),
            retries: Family::default(),
            hedges: Family::default(),
            // 1 ms to 33 s: beyond that a read has used up its budget.
            duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 16))
            }),
            errors: Family::default(),
            waiting: Gauge::default(),
        };
        // A counter that appears only with its first event hides that event from rate().
        for kind in OriginError::KINDS {
            metrics.errors.get_or_create(&KindLabel { kind }).inc_by(0);
        }
        for reason in OriginError::RETRYABLE_KINDS {
            metrics
                .retries
                .get_or_create(&ReasonLabel { reason })
                .inc_by(0);
        }
        for won in ["true", "false"] {
            metrics.hedges.get_or_create(&WonLabel { won }).inc_by(0);
        }
        for operation in [Operation::List, Operation::Get, Operation::Head].map(Operation::label) {
            let _ = metrics
                .duration
                .get_or_create(&OperationLabel { operation });
            for origin in ["s3", "oss", "gs", "az", "http", "hdfs", "file"] {
                let labels = RequestLabels {
                    origin,
                    operation,
                    result: "ok",
                };
                metrics.requests.get_or_create(&labels).inc_by(0);
            }
        }
        let r = registry.sub_registry_with_prefix("weir_origin");
        r.register(
            "requests",
            "Requests, by kind of origin, operation and result",
            metrics.requests.clone(),
        );
        r.register_with_unit(
            "read",
            "Bytes of objects received",
            Unit::Bytes,
            metrics.read_bytes.clone(),
        );
        r.register(
            "retries",
            "Failed requests that were or would be repeated, by reason",
            metrics.retries.clone(),
        );
        r.register(
            "hedges",
            "Second requests for bytes that did not come, by whether they were first",
            metrics.hedges.clone(),
        );
        r.register_with_unit(
            "request_duration",
            "Time from a request to the head of its answer",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        r.register(
            "errors",
            "Reads and listings that failed, by kind of error",
            metrics.errors.clone(),
        );
        r.register(
            "waiting_reads",
            "Reads that wait for an origin that has failed or was silent",
            metrics.waiting.clone(),
        );
        Arc::new(metrics)
    }

    /// Reads that wait for an origin that has failed or was silent.
    pub fn waiting_reads(&self) -> u64 {
        u64::try_from(self.waiting.get()).unwrap_or(0)
    }

    /// A read waits for its origin until this is dropped.
    pub(crate) fn wait(&self) -> Waiting {
        self.waiting.inc();
        Waiting(self.waiting.clone())
    }

    /// Starts to measure a request.
    pub(crate) fn request(&self, origin: &'static str, operation: Operation) -> RequestTimer {
        RequestTimer {
            requests: self.requests.clone(),
            duration: self
                .duration
                .get_or_create(&OperationLabel {
                    operation: operation.label(),
                })
                .clone(),
            origin,
            operation: operation.label(),
            started: Instant::now(),
        }
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.read_bytes.inc_by(bytes as u64);
    }

    pub(crate) fn retried(&self, error: &OriginError) {
        let reason = error.kind();
        self.retries.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn hedged(&self, won: bool) {
        let won = if won { "true" } else { "false" };
        self.hedges.get_or_create(&WonLabel { won }).inc();
    }

    /// Counts a read or listing that ended in an error.
    pub(crate) fn failed(&self, error: &OriginError) {
        let kind = error.kind();
        self.errors.get_or_create(&KindLabel { kind }).inc();
    }
}

/// A read that waits.
pub(crate) struct Waiting(Gauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One request under way. One that is dropped unfinished is not counted: nobody waited for it any more.
pub(crate) struct RequestTimer {
    requests: Family<RequestLabels, Counter>,
    duration: Histogram,
    origin: &'static str,
    operation: &'static str,
    started: Instant,
}

impl RequestTimer {
    /// Counts the request with its result.
    pub(crate) fn finish(self, error: Option<&OriginError>) {
        let labels = RequestLabels {
            origin: self.origin,
            operation: self.operation,
            result: error.map_or("ok", OriginError::kind),
        };
        self.requests.get_or_create(&labels).inc();
        self.duration.observe(self.started.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_labels_come_out_as_documented() {
        let mut registry = Registry::default();
        let metrics = OriginMetrics::register(&mut registry);
        let error = OriginError::interrupted("k");
        metrics.request("s3", Operation::Get).finish(None);
        metrics.request("s3", Operation::List).finish(Some(&error));
        metrics.received(5);
        metrics.retried(&error);
        metrics.hedged(true);
        metrics.failed(&error);
        drop(metrics.wait());
        let waiting = metrics.wait();
        assert_eq!(metrics.waiting_reads(), 1);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "weir_origin_requests_total{origin=\"s3\",operation=\"get\",result=\"ok\"} 1",
            "weir_origin_requests_total{origin=\"s3\",operation=\"list\",result=\"interrupted\"} 1",
            "weir_origin_read_bytes_total 5",
            "weir_origin_retries_total{reason=\"interrupted\"} 1",
            "weir_origin_hedges_total{won=\"true\"} 1",
            "weir_origin_request_duration_seconds_count{operation=\"get\"} 1",
            "weir_origin_errors_total{kind=\"interrupted\"} 1",
            "weir_origin_waiting_reads 1",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in\n{text}"
            );
        }
        drop(waiting);
        assert_eq!(metrics.waiting_reads(), 0);
    }
}
