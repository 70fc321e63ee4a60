//! Where this node stands, as kubelet will have it.
//!
//! Kubelet makes a label of the node of what a driver reports, and refuses the driver for as long as there is one with another value: no
//! pod of the node gets a volume then. So what is reported is the label that is there; that it differs from the flag is said instead.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::error::said;
use crate::metrics::CsiMetrics;
use crate::proto::csi::Topology;

/// Names the group of a node, in its topology and among its labels.
pub const GROUP_KEY: &str = "weir.io/group";
/// Longest wait for the node's labels; kubelet waits two minutes for what is reported.
const LABEL_DEADLINE: Duration = Duration::from_secs(10);
/// Longest value of a label, in bytes, as Kubernetes has it.
const MAX_LABEL: usize = 63;

/// Who knows the labels of this node.
#[async_trait]
pub trait Labels: std::fmt::Debug + Send + Sync + 'static {
    /// The value of one of them; `None` if there is no such label.
    ///
    /// # Errors
    /// Why that cannot be told.
    async fn label(&self, key: &str) -> Result<Option<String>, String>;
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// Its name in Kubernetes.
    pub id: String,
    /// The group that it stands in, if that is known.
    pub group: Option<String>,
    /// Its labels in Kubernetes, if somebody can be asked for them.
    pub labels: Option<Arc<dyn Labels>>,
}

/// Where this node stands.
#[derive(Debug)]
pub(crate) struct Place {
    node: NodeIdentity,
    metrics: Arc<CsiMetrics>,
    /// That its label says something else.
    warning: Mutex<Option<String>>,
}

impl Place {
    pub(crate) fn new(node: NodeIdentity, metrics: Arc<CsiMetrics>) -> Self {
        Self {
            node,
            metrics,
            warning: Mutex::default(),
        }
    }

    /// What users of this node's volumes should know, as of when kubelet asked last.
    pub(crate) fn warning(&self) -> Option<String> {
        self.warning.lock().clone()
    }

    /// What kubelet makes labels of; none of a node without a group.
    pub(crate) async fn topology(&self) -> Option<Topology> {
        let group = self.node.group.clone()?;
        let there = self.label().await.filter(|there| *there != group);
        let warning = there
            .as_ref()
            .map(|there| differs(&self.node.id, there, &group));
        if let Some(warning) = &warning {
            tracing::warn!("{warning}");
        }
        self.metrics.set_misplaced(warning.is_some());
        *self.warning.lock() = warning;
        let group = there.unwrap_or(group);
        Some(Topology {
            segments: [(GROUP_KEY.to_owned(), group)].into(),
        })
    }

    /// The label that is there, if that can be told: kubelet says itself when it refuses what is reported without it.
    async fn label(&self) -> Option<String> {
        let asked = timeout(LABEL_DEADLINE, self.node.labels.as_ref()?.label(GROUP_KEY)).await;
        let late = || Err(format!("no answer within {} s", LABEL_DEADLINE.as_secs()));
        match asked.unwrap_or_else(|_| late()) {
            // No label is as long, so this is none.
            Ok(label) => label.filter(|label| label.len() <= MAX_LABEL),
            Err(why) => {
                tracing::warn!(
                    "the labels of node {} are not known ({}), and --group counts; kubelet refuses the driver if the label {GROUP_KEY} has another value",
                    self.node.id,
                    said(&why)
                );
                None
            }
        }
    }
}

/// What is to be done about a label that differs.
fn differs(node: &str, there: &str, group: &str) -> String {
    format!(
        "node {node} has the label {GROUP_KEY}={there}, and its node plugin the flag --group {group}: mounts go by the flag, Kubernetes by the label; kubectl label node {node} {GROUP_KEY}- and a restart of the plugin's pod make the label anew"
    )
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    /// What the apiserver answers, or that it never does.
    #[derive(Clone, Debug)]
    enum Apiserver {
        Says(Result<Option<&'static str>, &'static str>),
        Frozen,
    }

    #[async_trait]
    impl Labels for Apiserver {
        async fn label(&self, key: &str) -> Result<Option<String>, String> {
            assert_eq!(key, GROUP_KEY);
            match self {
                Self::Says(said) => said
                    .map(|label| label.map(str::to_owned))
                    .map_err(str::to_owned),
                Self::Frozen => pending().await,
            }
        }
    }

    /// The group that is reported, the warning, and whether the metric tells of it.
    async fn reported(
        group: Option<&str>,
        labels: Option<Apiserver>,
    ) -> (Option<String>, Option<String>, bool) {
        let mut registry = Registry::default();
        let node = NodeIdentity {
            id: "node-0".to_owned(),
            group: group.map(str::to_owned),
            labels: labels.map(|labels| Arc::new(labels) as Arc<dyn Labels>),
        };
        let place = Place::new(node, CsiMetrics::register(&mut registry));
        let topology = place.topology().await;
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let group = topology.map(|mut topology| topology.segments.remove(GROUP_KEY).unwrap());
        (
            group,
            place.warning(),
            text.contains("\nweir_csi_group_differs 1\n"),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_label_that_is_there_is_reported_and_what_differs_is_said() {
        let says = |label| Some(Apiserver::Says(Ok(label)));
        let (group, warning, metric) = reported(Some("b"), says(Some("a"))).await;
        assert_eq!((group.as_deref(), metric), (Some("a"), true));
        let warning = warning.unwrap();
        for part in ["weir.io/group=a", "--group b", "kubectl label node node-0"] {
            assert!(warning.contains(part), "{warning}");
        }
        let long = "x".repeat(100).leak();
        for labels in [
            None,
            says(Some("b")),
            says(None),
            says(Some(long)),
            Some(Apiserver::Says(Err("nodes \"node-0\" is forbidden"))),
            Some(Apiserver::Frozen),
        ] {
            let told = reported(Some("b"), labels.clone()).await;
            assert_eq!(told, (Some("b".to_owned()), None, false), "{labels:?}");
        }
        // Without a group nothing is reported, whatever others have made of the label.
        assert_eq!(reported(None, says(Some("a"))).await, (None, None, false));
    }
}
