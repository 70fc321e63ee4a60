//! The status of a pool: nodes, figures of the master, and all conditions in one word.

use k8s_openapi::api::core::v1::Taint;
use kube::api::Api;
use kube::runtime::controller::Action;
use weir_core::ByteSize;
use weir_proto::v1;

use super::leaving;
use super::scaling::Usage;
use super::{ACCEPTED, Current, DRAINED, LOOK_AGAIN, Look, NODES_FIT, READS, READY, workload};
use crate::durations::spread;
use crate::error::OperatorError;
use crate::fleet::NodeFacts;
use crate::objects::{CachePoolSpec, Is, PoolPhase, PoolToleration};
use crate::pools::Reads;
use crate::report;
use crate::view::percent;

/// Taints that Kubernetes itself gives a node for a while.
const PASSING: &str = "node.kubernetes.io/";

impl Look<'_> {
    /// Whether there are nodes for the workers.
    pub(super) fn look_at_nodes(&mut self) {
        let spec = &self.object.spec;
        let fit = self.nodes.values().filter(|node| fits(spec, node)).count();
        self.status.nodes = i32::try_from(fit).ok();
    }

    /// What the master knows of the pool's workers, and of the Datasets that they are for; none while it does not answer.
    pub(super) fn usage(&self) -> Option<Usage> {
        let workers = self.workers.clone().ok()?;
        let is_ours = |worker: &&v1::WorkerStatus| {
            let id = worker.worker.as_ref().map(|info| info.id.as_str());
            let mut nodes = self.pods.values().filter_map(|pod| pod.node.as_deref());
            !worker.away && nodes.any(|node| Some(node) == id)
        };
        let mut usage = Usage::default();
        for worker in workers.iter().filter(is_ours) {
            usage.members += 1;
            let (capacity, used) = space(worker);
            usage.capacity += capacity;
            usage.used += used;
        }
        let pool = self.object.spec.pool.as_deref().unwrap_or_default();
        let datasets = self.context.view.of_pool(pool);
        let sum = |of: fn(&v1::DatasetStatus) -> u64| datasets.iter().map(of).sum::<u64>();
        usage.cached = percent(sum(|of| of.cached_bytes.min(of.bytes)), sum(|of| of.bytes));
        let mut reads = Reads::default();
        for of in datasets.iter().filter_map(|of| of.reads.as_ref()) {
            let from_cache = of.memory_bytes + of.ssd_bytes;
            reads.from_cache += from_cache;
            reads.all += from_cache + of.origin_bytes;
        }
        usage.hits = self.hits(reads);
        Some(usage)
    }

    /// The share of what was read lately that came from the cache, in percent; none if little was read.
    fn hits(&self, reads: Reads) -> Option<u64> {
        let mut remembered = self.context.pools.remembered.lock();
        let remembered = remembered.entry(self.name()).or_default();
        let Some((at, before)) = remembered.reads else {
            remembered.reads = Some((self.now, reads));
            return None;
        };
        // Workers that were started anew count anew.
        let is_anew = reads.all < before.all || reads.from_cache < before.from_cache;
        if is_anew || self.now.duration_since(at) >= READS {
            remembered.reads = Some((self.now, reads));
            remembered.hits = if is_anew {
                None
            } else {
                percent(reads.from_cache - before.from_cache, reads.all - before.all)
            };
        }
        remembered.hits
    }

    /// Tells of workers that are to go.
    pub(super) fn tell_of_drains(&mut self, waits: Option<String>, failed: Option<String>) {
        if !self.leaving.is_empty() {
            self.again = self.again.min(leaving::LOOK_AGAIN);
        }
        let (is, reason, message) = match (failed, waits) {
            (Some(message), _) => (Is::False, "DrainFailed", message),
            (None, Some(message)) => (Is::False, "Draining", message),
            (None, None) if self.leaving.is_empty() => (Is::True, "NoneLeaves", String::new()),
            (None, None) => {
                let message = "the others have what those keep that are to go".to_owned();
                (Is::True, "Drained", message)
            }
        };
        self.conditions.set(DRAINED, is, reason, message);
    }

    /// Tells how the workload is.
    pub(super) fn tell(&mut self, current: &Current, usage: Option<&Usage>) {
        let spec = &self.object.spec;
        let number = |value: u64| Some(i64::try_from(value).unwrap_or(i64::MAX));
        if spec.replicas.is_none() {
            self.status.wanted = Some(current.wanted);
        }
        let wanted = self.status.wanted.unwrap_or_default();
        self.status.workers = Some(current.pods);
        self.status.ready = Some(current.ready);
        self.status.selector = Some(workload::selector_text(&self.name()));
        if let Some(usage) = usage {
            self.status.bytes = number(usage.capacity);
            self.status.capacity = Some(ByteSize(usage.capacity).to_string());
            self.status.used_bytes = number(usage.used);
            let used = percent(usage.used, usage.capacity);
            self.status.used = used.map(|used| format!("{used}%"));
        }
        let pool = self.name();
        self.context.metrics.pool(&pool, wanted, current.ready);
        let nodes = self.status.nodes.unwrap_or_default();
        let unplaced = self.pods.values().find_map(|pod| pod.unplaced.clone());
        let (is, reason, message) = if nodes == 0 && (wanted > 0 || spec.replicas.is_none()) {
            (Is::False, "NoNodes", no_nodes(spec))
        } else if nodes < wanted {
            let message = format!(
                "{wanted} workers are wanted, each on a node of its own, and {nodes} nodes fit; add nodes, or make the pool smaller"
            );
            (Is::False, "TooFewNodes", message)
        } else if let Some(unplaced) = unplaced {
            let message = format!("a worker finds no node: {unplaced}");
            (Is::False, "Unschedulable", message)
        } else {
            (Is::True, "Fit", format!("{nodes} nodes fit"))
        };
        self.conditions.set(NODES_FIT, is, reason, message);
        if current.ready < wanted || current.pods != wanted {
            self.again = self.again.min(LOOK_AGAIN);
        }
    }

    /// What all conditions come to.
    fn sum_up(&mut self) {
        let (ready, wanted) = (
            self.status.ready.unwrap_or_default(),
            self.status.wanted.unwrap_or_default(),
        );
        let trouble = [ACCEPTED, NODES_FIT].iter().find_map(|type_| {
            let condition = self.conditions.get(type_);
            condition
                .filter(|condition| condition.status == "False")
                .cloned()
        });
        let drained = self.conditions.get(DRAINED).cloned();
        let failed = drained
            .as_ref()
            .filter(|drained| drained.reason == "DrainFailed");
        let is_of_another_size = self.status.workers.unwrap_or_default() != wanted;
        let some = format!("{ready} of {wanted} workers are ready");
        let (phase, is, reason, message) = match (&trouble, failed) {
            (Some(trouble), _) if ready == 0 => (
                PoolPhase::Failed,
                Is::False,
                trouble.reason.clone(),
                trouble.message.clone(),
            ),
            (Some(trouble), _) => (
                PoolPhase::Degraded,
                Is::False,
                trouble.reason.clone(),
                trouble.message.clone(),
            ),
            (None, Some(failed)) => (
                PoolPhase::Degraded,
                Is::True,
                "Ready".to_owned(),
                failed.message.clone(),
            ),
            (None, None) if wanted > 0 && ready == 0 => {
                (PoolPhase::Pending, Is::False, "Starting".to_owned(), some)
            }
            (None, None) if is_of_another_size || !self.leaving.is_empty() => {
                let drained = drained.filter(|drained| drained.status == "False");
                let message = drained.map_or(some, |drained| drained.message);
                (PoolPhase::Scaling, Is::True, "Scaling".to_owned(), message)
            }
            (None, None) if ready < wanted => {
                (PoolPhase::Degraded, Is::False, "NotReady".to_owned(), some)
            }
            (None, None) => (
                PoolPhase::Ready,
                Is::True,
                "Ready".to_owned(),
                String::new(),
            ),
        };
        self.status.phase = Some(phase);
        self.status.message = Some(message.clone()).filter(|message| !message.is_empty());
        self.conditions.set(READY, is, &reason, message);
    }

    /// Writes what was found, if it is not what is known already, and tells of what has changed.
    pub(super) async fn finish(mut self) -> Result<Action, OperatorError> {
        self.sum_up();
        let changed = self.conditions.changed().map(report::event_of).collect();
        self.status.conditions = self.conditions.into_vec();
        self.status.leaving = self.leaving;
        let api = Api::all(self.context.client.clone());
        report::status(self.context, &api, self.object, &self.status).await?;
        report::events(self.context, self.object, changed).await;
        Ok(Action::requeue(spread(self.again)))
    }
}

/// What a worker can keep and keeps: on its disks, or in memory if it has none.
fn space(worker: &v1::WorkerStatus) -> (u64, u64) {
    let has_disks = worker.tiers.iter().any(|tier| tier.tier == "ssd");
    let tiers = worker.tiers.iter();
    let tiers = tiers.filter(|tier| !has_disks || tier.tier == "ssd");
    tiers.fold((0, 0), |(capacity, used), tier| {
        (capacity + tier.capacity_bytes, used + tier.used_bytes)
    })
}

/// Whether workers of a pool may run on a node.
fn fits(spec: &CachePoolSpec, node: &NodeFacts) -> bool {
    let mut labels = spec.node_selector.iter();
    labels.all(|(key, value)| node.labels.get(key) == Some(value))
        && node.taints.iter().all(|taint| {
            taint.effect == "PreferNoSchedule"
                || taint.key.starts_with(PASSING)
                || spec.tolerations.iter().any(|of| tolerates(of, taint))
        })
}

fn tolerates(toleration: &PoolToleration, taint: &Taint) -> bool {
    let same =
        |of: &Option<String>, is: &str| of.as_deref().is_none_or(|of| of.is_empty() || of == is);
    let value = taint.value.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    same(&toleration.effect, &taint.effect)
        && same(&toleration.key, &taint.key)
        && (exists || toleration.value.as_deref().unwrap_or_default() == value)
}

fn no_nodes(spec: &CachePoolSpec) -> String {
    if spec.node_selector.is_empty() {
        return "all nodes have taints that the pool does not tolerate; add spec.tolerations"
            .to_owned();
    }
    let labels = spec.node_selector.iter();
    let labels: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    format!(
        "no node has the labels {} and no taint beside those that are tolerated; label one, or change spec.nodeSelector or spec.tolerations",
        labels.join(", ")
    )
}
