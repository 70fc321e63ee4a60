//! Labels of a node, for what runs there: the node plugin, whose own service account may read nodes.

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt};

use crate::error::OperatorError;
use crate::operator::connection;

/// The labels of one node.
#[derive(Clone)]
pub struct NodeLabels {
    nodes: Api<Node>,
    node: String,
}

impl std::fmt::Debug for NodeLabels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeLabels")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl NodeLabels {
    /// Those of a node of this pod's cluster, or that of KUBECONFIG.
    ///
    /// # Errors
    /// When no apiserver is known.
    pub async fn connect(node: &str) -> Result<Self, OperatorError> {
        let client = Client::try_from(connection().await?)?;
        Ok(Self::new(client, node))
    }

    /// Those of a node of the cluster that a client reaches.
    pub fn new(client: Client, node: &str) -> Self {
        Self {
            nodes: Api::all(client),
            node: node.to_owned(),
        }
    }

    /// The value of a label as of now; `None` if the node has none. Who calls this sets a deadline.
    ///
    /// # Errors
    /// When the apiserver does not answer, knows no such node, or may not tell.
    pub async fn label(&self, key: &str) -> Result<Option<String>, OperatorError> {
        let node = self.nodes.get_metadata(&self.node).await?;
        Ok(node.labels().get(key).cloned())
    }
}
