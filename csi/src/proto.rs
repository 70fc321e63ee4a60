//! Generated messages and services of CSI and of kubelet's registration of plugins. The files in `proto/` are the
//! documentation.

/// The container storage interface, version 1.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::doc_lazy_continuation
)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// How a plugin makes itself known to kubelet, version 1.
#[allow(missing_docs, unreachable_pub, clippy::pedantic)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// Tells what is not secret.
impl std::fmt::Debug for csi::NodePublishVolumeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodePublishVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("target_path", &self.target_path)
            .finish_non_exhaustive()
    }
}
