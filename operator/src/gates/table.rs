//! The pods that have the gate now, and what they wait for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::time::Instant;
use weir_core::DatasetName;

use super::wait::{Wait, gate_of};
use crate::holder::Holder;

/// Pods that wait at once. When there are more, the last that came are let go.
pub(super) const MAX_WAITING: usize = 20_000;

/// A pod with the gate.
#[derive(Clone, Debug)]
pub(super) struct Gated {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// What its patch depends on: `metadata` and `spec`, no more than that. Each look takes all pods out of the table.
    pub(super) pod: Arc<Value>,
    /// As far as its owner is told from that.
    pub(super) meta: ObjectMeta,
    /// None of one that brought the gate and no wait with it.
    pub(super) wait: Option<Wait>,
    made: Timestamp,
    /// What is found out about it; none yet.
    pub(super) found: Option<Found>,
    /// When its gate may be tried again, which could not be taken away, and how often that was so.
    pub(super) again: Option<Instant>,
    pub(super) failures: u32,
}

/// What is found out about a pod once.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Whom it belongs to; none of a pod by itself.
    pub(super) holder: Option<Holder>,
    pub(super) datasets: Vec<DatasetName>,
}

impl Gated {
    /// A pod, if it has the gate and is to live.
    fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let metadata = &pod.metadata;
        let kept = json!({
            "metadata": {
                "labels": metadata.labels,
                "annotations": metadata.annotations,
                "resourceVersion": metadata.resource_version,
            },
            "spec": {
                "affinity": spec.affinity,
                "volumes": spec.volumes,
                "schedulingGates": spec.scheduling_gates,
            },
        });
        if metadata.deletion_timestamp.is_some() || gate_of(&kept).is_none() {
            return None;
        }
        let made = metadata.creation_timestamp.as_ref();
        Some(Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: metadata.uid.clone()?,
            meta: ObjectMeta {
                namespace: metadata.namespace.clone(),
                labels: metadata.labels.clone(),
                owner_references: metadata.owner_references.clone(),
                ..ObjectMeta::default()
            },
            wait: Wait::of(&kept["metadata"]["annotations"]).unwrap_or_default(),
            pod: Arc::new(kept),
            made: made.map_or_else(Timestamp::now, |made| made.0),
            found: None,
            again: None,
            failures: 0,
        })
    }

    /// How long it has waited by now.
    pub(super) fn waited(&self, now: Timestamp) -> Duration {
        let nanos = now.as_nanosecond() - self.made.as_nanosecond();
        Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
    }

    /// How long it may still wait.
    pub(super) fn left(&self, now: Timestamp) -> Duration {
        let timeout = self.wait.map_or(Duration::ZERO, |wait| wait.timeout);
        timeout.saturating_sub(self.waited(now))
    }
}

/// All pods that have the gate.
#[derive(Debug, Default)]
pub(super) struct Table {
    pods: BTreeMap<String, Gated>,
    /// Those of a list that is being read, while one is.
    listed: Option<Vec<String>>,
}

impl Table {
    /// Takes note of what the apiserver tells.
    pub(super) fn see(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed = Some(Vec::new()),
            Event::InitApply(pod) => {
                if let (Some(listed), Some(uid)) = (&mut self.listed, &pod.metadata.uid) {
                    listed.push(uid.clone());
                }
                self.put(&pod);
            }
            Event::InitDone => {
                let mut listed = self.listed.take().unwrap_or_default();
                listed.sort_unstable();
                self.pods.retain(|uid, _| listed.binary_search(uid).is_ok());
            }
            Event::Apply(pod) => self.put(&pod),
            Event::Delete(pod) => self.forget(&pod.uid().unwrap_or_default()),
        }
    }

    fn put(&mut self, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        match Gated::of(pod) {
            Some(mut gated) => {
                if let Some(before) = self.pods.remove(&uid) {
                    // What a pod reads and whose it is never changes.
                    gated.found = before.found;
                    gated.failures = before.failures;
                    gated.again = before.again;
                }
                self.pods.insert(uid, gated);
            }
            None => self.forget(&uid),
        }
    }

    pub(super) fn forget(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    pub(super) fn len(&self) -> i64 {
        i64::try_from(self.pods.len()).unwrap_or(i64::MAX)
    }

    pub(super) fn get_mut(&mut self, uid: &str) -> Option<&mut Gated> {
        self.pods.get_mut(uid)
    }

    /// Some of those of which nothing is found out yet.
    pub(super) fn unknown(&self, most: usize) -> Vec<Gated> {
        let unknown = self.pods.values().filter(|gated| gated.found.is_none());
        unknown.take(most).cloned().collect()
    }

    /// Those that wait and go together, the oldest first. Each pod by itself is one of them.
    pub(super) fn groups(&self, now: Timestamp) -> Vec<Vec<Gated>> {
        let is_crowded = self.pods.len() > MAX_WAITING;
        let mut groups: HashMap<&Holder, Vec<Gated>> = HashMap::new();
        let mut all = Vec::new();
        for gated in self.pods.values() {
            let holder = gated.found.as_ref().map(|found| &found.holder);
            match holder {
                Some(Some(holder)) => groups.entry(holder).or_default().push(gated.clone()),
                Some(None) => all.push(vec![gated.clone()]),
                // Nothing is found out yet, and there is no more time for that.
                None if is_crowded || gated.left(now).is_zero() => all.push(vec![gated.clone()]),
                None => {}
            }
        }
        all.extend(groups.into_values());
        all.sort_by_cached_key(|group| group.iter().map(|gated| gated.made).min());
        all
    }

    /// Which datasets are waited for, and the largest share of each that is.
    pub(super) fn wanted(&self) -> BTreeMap<DatasetName, u64> {
        let mut wanted = BTreeMap::new();
        for gated in self.pods.values() {
            let Some((found, wait)) = gated.found.as_ref().zip(gated.wait) else {
                continue;
            };
            for dataset in &found.datasets {
                let share = wanted.entry(dataset.clone()).or_default();
                *share = wait.percent.max(*share);
            }
        }
        wanted
    }
}
