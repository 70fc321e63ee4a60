//! The nodes of the cluster and the pods of workers, watched once for all pools. Of each only what they need is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::RwLock;
use tokio::sync::mpsc;

use crate::objects::POOL_LABEL;

/// What is known of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NodeFacts {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    /// No new pods are to run on it.
    pub(crate) is_cordoned: bool,
}

impl From<&Node> for NodeFacts {
    fn from(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        Self {
            labels: node.labels().clone(),
            taints: spec
                .and_then(|spec| spec.taints.clone())
                .unwrap_or_default(),
            is_cordoned: spec.and_then(|spec| spec.unschedulable).unwrap_or_default(),
        }
    }
}

/// What is known of a worker's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodFacts {
    /// The CachePool that it is of.
    pub(crate) pool: String,
    /// Where it runs, or will; none while that is not decided.
    pub(crate) node: Option<String>,
    pub(crate) is_leaving: bool,
    /// Why it has no node.
    pub(crate) unplaced: Option<String>,
}

impl From<&Pod> for PodFacts {
    fn from(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref());
        let unplaced = conditions
            .unwrap_or_default()
            .iter()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
        Self {
            pool: pod.labels().get(POOL_LABEL).cloned().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            is_leaving: pod.metadata.deletion_timestamp.is_some(),
            unplaced: unplaced.and_then(|condition| condition.message.clone()),
        }
    }
}

/// Objects of a kind, by their names.
#[derive(Debug)]
struct Known<T> {
    /// None until they were listed once.
    now: Option<Arc<BTreeMap<String, T>>>,
    listing: BTreeMap<String, T>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self {
            now: None,
            listing: BTreeMap::new(),
        }
    }
}

impl<T: Clone + PartialEq> Known<T> {
    /// Takes in what was heard. Gives whether something is another than before.
    fn hear<K>(&mut self, event: &Event<K>) -> bool
    where
        K: Resource<DynamicType = ()>,
        T: for<'a> From<&'a K>,
    {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => {
                self.listing.insert(object.name_any(), T::from(object));
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listing);
                let is_new = self.now.as_deref() != Some(&listed);
                self.now = Some(Arc::new(listed));
                return is_new;
            }
            Event::Apply(object) => {
                let facts = T::from(object);
                let now = self.now.get_or_insert_default();
                if now.get(&object.name_any()) == Some(&facts) {
                    return false;
                }
                Arc::make_mut(now).insert(object.name_any(), facts);
                return true;
            }
            Event::Delete(object) => {
                let now = self.now.get_or_insert_default();
                return Arc::make_mut(now).remove(&object.name_any()).is_some();
            }
        }
        false
    }
}

/// What all pools are judged by.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    nodes: RwLock<Known<NodeFacts>>,
    pods: RwLock<Known<PodFacts>>,
}

impl Fleet {
    /// Nodes by their names; none while they were not listed yet.
    pub(crate) fn nodes(&self) -> Option<Arc<BTreeMap<String, NodeFacts>>> {
        self.nodes.read().now.clone()
    }

    /// Pods of workers by their names; none while they were not listed yet.
    pub(crate) fn pods(&self) -> Option<Arc<BTreeMap<String, PodFacts>>> {
        self.pods.read().now.clone()
    }

    /// Watches both for as long as it is polled, and tells of changes.
    pub(crate) async fn keep(&self, client: &Client, namespace: &str, changed: &mpsc::Sender<()>) {
        let workers = watcher::Config::default().labels(POOL_LABEL);
        let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default());
        let pods = watcher(Api::<Pod>::namespaced(client.clone(), namespace), workers);
        tokio::join!(
            hear(&self.nodes, nodes, changed),
            hear(&self.pods, pods, changed)
        );
    }

    /// Takes in objects as if they were heard of.
    #[cfg(test)]
    pub(crate) fn list(&self, nodes: &[Node], pods: &[Pod]) {
        fn all<K: Clone>(objects: &[K]) -> Vec<Event<K>> {
            let listed = objects.iter().cloned().map(Event::InitApply);
            let mut events = vec![Event::Init];
            events.extend(listed);
            events.push(Event::InitDone);
            events
        }
        for event in all(nodes) {
            self.nodes.write().hear(&event);
        }
        for event in all(pods) {
            self.pods.write().hear(&event);
        }
    }
}

async fn hear<K, T>(
    known: &RwLock<Known<T>>,
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    changed: &mpsc::Sender<()>,
) where
    K: Resource<DynamicType = ()>,
    T: Clone + PartialEq + for<'a> From<&'a K>,
{
    let events = events.default_backoff();
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if known.write().hear(&event) {
                    // Full: all are looked at in any case.
                    let _ = changed.try_send(());
                }
            }
            Err(error) => tracing::debug!(%error, "the watch of {} is opened anew", K::kind(&())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, spec: Value, heartbeat: &str) -> Node {
        let status = json!({ "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat }] });
        let node = json!({ "metadata": { "name": name }, "spec": spec, "status": status });
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn only_what_matters_of_a_node_is_a_change() {
        let mut known = Known::<NodeFacts>::default();
        let mut hear = |event: &Event<Node>| known.hear(event);
        assert!(!hear(&Event::Init));
        assert!(!hear(&Event::InitApply(node(
            "a",
            json!({}),
            "2026-01-01T00:00:00Z"
        ))));
        assert!(hear(&Event::InitDone));
        let beat = node("a", json!({}), "2026-01-01T00:05:00Z");
        assert!(!hear(&Event::Apply(beat)), "it only says that it lives");
        let cordoned = node(
            "a",
            json!({ "unschedulable": true }),
            "2026-01-01T00:05:00Z",
        );
        assert!(hear(&Event::Apply(cordoned.clone())));
        // A watch that is opened anew lists all again, and what is not there is gone.
        assert!(!hear(&Event::Init));
        assert!(!hear(&Event::InitApply(cordoned.clone())));
        assert!(!hear(&Event::InitDone), "all is as before");
        assert!(hear(&Event::Delete(cordoned.clone())));
        assert!(!hear(&Event::Delete(cordoned)));
        assert!(known.now.unwrap().is_empty());
    }
}
