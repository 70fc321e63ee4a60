//! What the operator tells of itself.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of a look at an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Looked {
    pub(crate) kind: String,
    /// `ok` or `error`.
    pub(crate) result: &'static str,
}

/// Labels of an answer of the webhook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Asked {
    /// `pods` or `objects`.
    pub(crate) about: &'static str,
    pub(crate) result: &'static str,
}

/// Labels of an answer to a pod that asked for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Signed {
    /// What was asked for; `none` if no pod is given it.
    pub(crate) role: &'static str,
    /// `signed`, `refused`, `crowded` or `failed`.
    pub(crate) result: &'static str,
}

/// Labels of the workers of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfPool {
    pub(crate) pool: String,
    /// `wanted` or `ready`.
    pub(crate) state: &'static str,
}

/// Labels of a gate that was taken away.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Lifted {
    /// `ready`, `timeout`, `nothing`, `crowded` or `failed`.
    pub(crate) result: &'static str,
}

/// Metrics of the operator.
#[derive(Debug)]
pub struct OperatorMetrics {
    pub(crate) looks: Family<Looked, Counter>,
    pub(crate) look_seconds: Histogram,
    pub(crate) leads: Gauge,
    pub(crate) listings: Gauge,
    pub(crate) status_writes: Counter,
    pub(crate) master_up: Gauge<i64>,
    pub(crate) view_age: Gauge<f64, AtomicU64>,
    pub(crate) answers: Family<Asked, Counter>,
    pub(crate) answer_seconds: Histogram,
    pub(crate) signatures: Family<Signed, Counter>,
    pub(crate) pool_workers: Family<OfPool, Gauge>,
    pub(crate) gated: Gauge,
    pub(crate) lifted: Family<Lifted, Counter>,
    pub(crate) gated_seconds: Histogram,
}

impl OperatorMetrics {
    /// Makes them, and registers them.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            looks: Family::default(),
            look_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 9)),
            leads: Gauge::default(),
            listings: Gauge::default(),
            status_writes: Counter::default(),
            master_up: Gauge::default(),
            view_age: Gauge::default(),
            answers: Family::default(),
            answer_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 12)),
            signatures: Family::default(),
            pool_workers: Family::default(),
            gated: Gauge::default(),
            lifted: Family::default(),
            gated_seconds: Histogram::new(exponential_buckets(1.0, 4.0, 9)),
        };
        for result in ["ready", "timeout", "nothing", "crowded", "failed"] {
            metrics.lifted.get_or_create(&Lifted { result }).inc_by(0);
        }
        registry.register(
            "weir_operator_certificates",
            "Pods that asked for a certificate, by role and by what became of it",
            metrics.signatures.clone(),
        );
        registry.register(
            "weir_operator_pool_workers",
            "Workers of each CachePool: wanted and ready",
            metrics.pool_workers.clone(),
        );
        registry.register(
            "weir_operator_gated_pods",
            "Pods that wait for their data",
            metrics.gated.clone(),
        );
        registry.register(
            "weir_operator_gates_lifted",
            "Pods that were let go, by why, and tries that failed",
            metrics.lifted.clone(),
        );
        registry.register_with_unit(
            "weir_operator_gate_wait",
            "Time from when a pod was made until it was let go",
            Unit::Seconds,
            metrics.gated_seconds.clone(),
        );
        registry.register(
            "weir_webhook_answers",
            "Answers to the apiserver: pods that were placed, gated, unchanged, refused or let through late; objects allowed or refused",
            metrics.answers.clone(),
        );
        registry.register_with_unit(
            "weir_webhook_answer",
            "Time until an answer to the apiserver",
            Unit::Seconds,
            metrics.answer_seconds.clone(),
        );
        registry.register(
            "weir_operator_looks",
            "Looks at objects, by kind and result",
            metrics.looks.clone(),
        );
        registry.register_with_unit(
            "weir_operator_look",
            "Time that a look at an object took",
            Unit::Seconds,
            metrics.look_seconds.clone(),
        );
        registry.register(
            "weir_operator_leads",
            "1 while this operator has the Lease",
            metrics.leads.clone(),
        );
        registry.register(
            "weir_operator_listings",
            "Datasets whose sources are being listed for the operator",
            metrics.listings.clone(),
        );
        registry.register(
            "weir_operator_status_writes",
            "Times that the status of an object was written",
            metrics.status_writes.clone(),
        );
        registry.register(
            "weir_operator_master_up",
            "1 while the master answers",
            metrics.master_up.clone(),
        );
        registry.register_with_unit(
            "weir_operator_view_age",
            "Age of what the operator knows from the master",
            Unit::Seconds,
            metrics.view_age.clone(),
        );
        Arc::new(metrics)
    }

    /// Tells of a pool's workers.
    pub(crate) fn pool(&self, pool: &str, wanted: i32, ready: i32) {
        for (state, count) in [("wanted", wanted), ("ready", ready)] {
            let pool = pool.to_owned();
            let workers = self.pool_workers.get_or_create(&OfPool { pool, state });
            workers.set(i64::from(count));
        }
    }

    /// Tells nothing of a pool any more.
    pub(crate) fn forget_pool(&self, pool: &str) {
        for state in ["wanted", "ready"] {
            let pool = pool.to_owned();
            self.pool_workers.remove(&OfPool { pool, state });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_lists_what_is_served() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let page = std::fs::read_to_string(page).unwrap();
        let section = page.split("\n## ");
        let section = section
            .filter(|section| section.starts_with("Operator"))
            .collect::<String>();
        let rows = section.lines().filter(|line| line.starts_with("| `weir_"));
        let documented: BTreeSet<(String, String)> = rows
            .map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                (cells[1].trim_matches('`').to_owned(), cells[2].to_owned())
            })
            .collect();
        let mut registry = Registry::default();
        let metrics = OperatorMetrics::register(&mut registry);
        // Families are served when they have something to tell.
        let (kind, about, result) = (String::new(), "", "");
        drop(metrics.looks.get_or_create(&Looked { kind, result }));
        drop(metrics.answers.get_or_create(&Asked { about, result }));
        let role = "";
        drop(metrics.signatures.get_or_create(&Signed { role, result }));
        metrics.pool("", 0, 0);
        let mut served = String::new();
        prometheus_client::encoding::text::encode(&mut served, &registry).unwrap();
        let types = served
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "));
        let served: BTreeSet<(String, String)> = types
            .map(|line| {
                let (name, kind) = line.split_once(' ').unwrap();
                let suffix = if kind == "counter" { "_total" } else { "" };
                (format!("{name}{suffix}"), kind.to_owned())
            })
            .collect();
        assert_eq!(served, documented);
    }
}
