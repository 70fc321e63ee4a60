//! CSI's node service: what kubelet asks for.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::calls::Calls;
use crate::capability::check_capability;
use crate::error::CsiError;
use crate::kernel;
use crate::proto::csi::node_server::Node;
use crate::proto::csi::node_service_capability::{self, Rpc, rpc};
use crate::proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeCondition, VolumeUsage,
    volume_usage,
};
use crate::system::Usage;
use crate::topology::Place;
use crate::volume::{Volume, check_id};
use crate::volumes::{Condition, Volumes};

/// The node service.
#[derive(Clone, Debug)]
pub(crate) struct NodeService {
    volumes: Arc<Volumes>,
    /// The node's name in Kubernetes.
    id: String,
    place: Arc<Place>,
    calls: Calls,
    /// What users should know of all volumes of this node: of its kernel.
    warning: Option<String>,
}

impl NodeService {
    pub(crate) fn new(volumes: Arc<Volumes>, id: String, place: Arc<Place>, calls: Calls) -> Self {
        let warning = kernel::warning(&kernel::release(), weir_mount::sends_again());
        if let Some(warning) = &warning {
            tracing::warn!("{warning}");
        }
        Self {
            volumes,
            id,
            place,
            calls,
            warning,
        }
    }

    /// What users should know of all volumes of this node.
    fn warnings(&self) -> Option<String> {
        let all = [self.warning.clone(), self.place.warning()];
        let all: Vec<String> = all.into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let (request, volumes) = (request.into_inner(), self.volumes.clone());
        let id = request.volume_id.clone();
        let work = async move {
            check_id(&request.volume_id)?;
            let target = volumes.target(&request.target_path)?;
            let volume = Volume::of_attributes(&request.volume_context)?;
            check_capability(request.volume_capability.as_ref(), volume.is_inline)?;
            volumes.publish(&volume, &target).await?;
            Ok(NodePublishVolumeResponse {})
        };
        self.calls.make("NodePublishVolume", &id, work).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let (request, volumes) = (request.into_inner(), self.volumes.clone());
        let id = request.volume_id.clone();
        let work = async move {
            check_id(&request.volume_id)?;
            let target = volumes.target(&request.target_path)?;
            volumes.unpublish(&target).await?;
            Ok(NodeUnpublishVolumeResponse {})
        };
        self.calls.make("NodeUnpublishVolume", &id, work).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let (request, volumes) = (request.into_inner(), self.volumes.clone());
        let (id, warning) = (request.volume_id.clone(), self.warnings());
        let work = async move {
            check_id(&request.volume_id)?;
            if request.volume_path.is_empty() {
                return Err(CsiError::Invalid("the volume path is missing".to_owned()));
            }
            let condition = match volumes.target(&request.volume_path) {
                Ok(target) => volumes.condition(&target).await?,
                Err(_) => None,
            };
            let told = condition.map(|condition| stats(condition, warning.as_deref()));
            told.ok_or_else(|| {
                CsiError::NotFound(format!("there is no volume at {}", request.volume_path))
            })
        };
        self.calls.make("NodeGetVolumeStats", &id, work).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |of: rpc::Type| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc {
                r#type: of.into(),
            })),
        };
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: [rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition]
                .map(capability)
                .into(),
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.id.clone(),
            // As many as there are pods.
            max_volumes_per_node: 0,
            accessible_topology: self.place.topology().await,
        }))
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(not_needed("staged"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(not_needed("staged"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(not_needed("expanded"))
    }
}

fn not_needed(what: &str) -> Status {
    Status::unimplemented(format!("volumes of Weir are not {what}"))
}

/// What kubelet shows of a volume.
fn stats(condition: Condition, warning: Option<&str>) -> NodeGetVolumeStatsResponse {
    let (usage, message) = match condition {
        Condition::Readable(usage) => (Some(usage), None),
        Condition::Dead => (
            None,
            Some(
                "nobody serves the volume any more; it is mounted anew, and pods that had it open must be started again",
            ),
        ),
        Condition::Silent => (
            None,
            Some("the volume does not answer; whoever serves it is being replaced"),
        ),
    };
    NodeGetVolumeStatsResponse {
        usage: usage.map_or_else(Vec::new, |usage| [bytes(usage), inodes(usage)].into()),
        volume_condition: Some(VolumeCondition {
            abnormal: message.is_some(),
            message: message
                .or(warning)
                .unwrap_or("the volume can be read")
                .to_owned(),
        }),
    }
}

fn bytes(usage: Usage) -> VolumeUsage {
    of_unit(volume_usage::Unit::Bytes, usage.bytes, usage.free_bytes)
}

fn inodes(usage: Usage) -> VolumeUsage {
    of_unit(volume_usage::Unit::Inodes, usage.inodes, usage.free_inodes)
}

fn of_unit(unit: volume_usage::Unit, total: u64, available: u64) -> VolumeUsage {
    let number = |of: u64| i64::try_from(of).unwrap_or(i64::MAX);
    VolumeUsage {
        unit: unit.into(),
        total: number(total),
        available: number(available),
        used: number(total.saturating_sub(available)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_cannot_be_read_is_abnormal_and_says_why() {
        let usage = Usage {
            bytes: 10,
            free_bytes: 0,
            inodes: u64::MAX,
            free_inodes: 3,
        };
        let told = stats(Condition::Readable(usage), Some("an old kernel"));
        let condition = told.volume_condition.unwrap();
        assert!(!condition.abnormal && condition.message == "an old kernel");
        assert_eq!((told.usage[0].total, told.usage[0].used), (10, 10));
        assert_eq!(told.usage[1].total, i64::MAX);
        for condition in [Condition::Dead, Condition::Silent] {
            let told = stats(condition, Some("an old kernel"));
            let condition = told.volume_condition.unwrap();
            assert!(condition.abnormal && !condition.message.is_empty());
            assert!(told.usage.is_empty());
        }
    }
}
