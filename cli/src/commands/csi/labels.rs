//! The labels of this node, which the API server knows.

use std::sync::Arc;

use weir_csi::topology::Labels;

/// Who can be asked for them: nobody outside of a pod, nor by a program without the client for Kubernetes.
pub(crate) fn of(node: &str) -> Option<Arc<dyn Labels>> {
    #[cfg(feature = "kubernetes")]
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty()) {
        return Some(Arc::new(apiserver::OfNode::new(node)));
    }
    let _ = node; // nobody knows it
    None
}

#[cfg(feature = "kubernetes")]
mod apiserver {
    use async_trait::async_trait;
    use weir_csi::topology::Labels;
    use weir_operator::NodeLabels;

    /// Asks anew each time: kubelet asks when the plugin starts, and then hardly ever.
    #[derive(Debug)]
    pub(super) struct OfNode(String);

    impl OfNode {
        pub(super) fn new(node: &str) -> Self {
            Self(node.to_owned())
        }
    }

    #[async_trait]
    impl Labels for OfNode {
        async fn label(&self, key: &str) -> Result<Option<String>, String> {
            let asked = async { NodeLabels::connect(&self.0).await?.label(key).await };
            asked.await.map_err(|error| error.to_string())
        }
    }
}
