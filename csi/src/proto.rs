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

/// Tells of messages what is not secret.
macro_rules! debug_without_secrets {
    ($($message:ident { $($field:ident),+ }),+) => {$(
        impl std::fmt::Debug for csi::$message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($field), &self.$field))+
                    .finish_non_exhaustive()
            }
        }
    )+};
}

debug_without_secrets!(
    NodePublishVolumeRequest {
        volume_id,
        target_path
    },
    CreateVolumeRequest { name },
    DeleteVolumeRequest { volume_id },
    ValidateVolumeCapabilitiesRequest { volume_id }
);
