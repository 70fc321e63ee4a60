//! CSI's node service: kubelet's calls, each with a deadline.
//!
//! A call that kubelet gives up goes on: its work is a task of its own, so that nothing is left half done. The next call for the
//! same volume waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::error::CsiError;
use crate::kernel;
use crate::metrics::CsiMetrics;
use crate::proto::csi::node_server::Node;
use crate::proto::csi::node_service_capability::{self, Rpc, rpc};
use crate::proto::csi::volume_capability::access_mode::Mode;
use crate::proto::csi::volume_capability::{AccessMode, AccessType};
use crate::proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, Topology, VolumeCapability,
    VolumeCondition, VolumeUsage, volume_usage,
};
use crate::system::Usage;
use crate::volume::{Volume, check_id};
use crate::volumes::{Condition, Volumes};

/// Longest call; kubelet itself waits two minutes.
const CALL_DEADLINE: Duration = Duration::from_secs(110);
/// Calls under way; a node has some hundred pods at most.
const MAX_CALLS: usize = 512;
/// Names the group of a node in its topology.
pub const GROUP_KEY: &str = "weir.io/group";

/// Who this node is.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// Its name in Kubernetes.
    pub id: String,
    /// The group that it stands in, if that is known.
    pub group: Option<String>,
}

/// The node service.
#[derive(Clone, Debug)]
pub(crate) struct NodeService {
    volumes: Arc<Volumes>,
    identity: NodeIdentity,
    metrics: Arc<CsiMetrics>,
    calls: Arc<Semaphore>,
    tasks: TaskTracker,
    /// What users should know of all volumes of this node.
    warning: Option<String>,
}

impl NodeService {
    pub(crate) fn new(
        volumes: Arc<Volumes>,
        identity: NodeIdentity,
        metrics: Arc<CsiMetrics>,
        tasks: TaskTracker,
    ) -> Self {
        let warning = kernel::warning(&kernel::release(), weir_mount::sends_again());
        if let Some(warning) = &warning {
            tracing::warn!("{warning}");
        }
        Self {
            warning,
            volumes,
            identity,
            metrics,
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            tasks,
        }
    }

    /// Does the work of a call, and counts how it ended.
    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        volume: &str,
        work: impl Future<Output = Result<T, CsiError>> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let outcome = self.run(name, work).await;
        let code = outcome
            .as_ref()
            .map_or_else(CsiError::code, |_| tonic::Code::Ok);
        self.metrics.called(name, code);
        outcome.map(Response::new).map_err(|error| {
            let volume: String = volume.escape_default().take(256).collect();
            tracing::warn!(volume, "{name} failed: {error}");
            Status::from(error)
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, CsiError>> + Send + 'static,
    ) -> Result<T, CsiError> {
        let permit = self.calls.clone().try_acquire_owned();
        let permit = permit.map_err(|_| CsiError::Busy(format!("{MAX_CALLS} volumes")))?;
        let task = self.tasks.spawn(async move {
            let _permit = permit;
            work.await
        });
        let late = || CsiError::Deadline {
            what: name.to_owned(),
            seconds: CALL_DEADLINE.as_secs(),
        };
        let done = tokio::time::timeout(CALL_DEADLINE, task).await;
        done.map_err(|_| late())?.unwrap_or_else(|_| Err(late()))
    }
}

/// Refuses what a read-only file system of many readers cannot be.
fn check_capability(
    capability: Option<&VolumeCapability>,
    is_inline: bool,
) -> Result<(), CsiError> {
    let invalid = |text: &str| Err(CsiError::Invalid(text.to_owned()));
    let Some(capability) = capability else {
        return invalid("the call has no volume capability");
    };
    match &capability.access_type {
        Some(AccessType::Mount(_)) => {}
        Some(AccessType::Block(_)) => {
            return invalid(
                "a dataset is a directory and no block device; set volumeMode: Filesystem",
            );
        }
        None => return invalid("the volume capability has no access type"),
    }
    let mode = capability.access_mode.as_ref().map(AccessMode::mode);
    match mode {
        Some(Mode::MultiNodeReaderOnly | Mode::SingleNodeReaderOnly) => Ok(()),
        // Kubelet has no other mode for a volume that is written into a pod.
        Some(Mode::SingleNodeWriter) if is_inline => Ok(()),
        _ => invalid("a dataset can only be read; set accessModes: [ReadOnlyMany]"),
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
            let inline = request.volume_context.get("csi.storage.k8s.io/ephemeral");
            let is_inline = inline.is_some_and(|inline| inline == "true");
            check_capability(request.volume_capability.as_ref(), is_inline)?;
            let volume = Volume::of_attributes(&request.volume_context)?;
            volumes.publish(&volume, &target).await?;
            Ok(NodePublishVolumeResponse {})
        };
        self.call("NodePublishVolume", &id, work).await
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
        self.call("NodeUnpublishVolume", &id, work).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let (request, volumes) = (request.into_inner(), self.volumes.clone());
        let (id, warning) = (request.volume_id.clone(), self.warning.clone());
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
        self.call("NodeGetVolumeStats", &id, work).await
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
        let group = self.identity.group.clone();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.identity.id.clone(),
            // As many as there are pods.
            max_volumes_per_node: 0,
            accessible_topology: group.map(|group| Topology {
                segments: [(GROUP_KEY.to_owned(), group)].into(),
            }),
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
    use crate::proto::csi::volume_capability::{BlockVolume, MountVolume};

    fn capability(access: AccessType, mode: Mode) -> VolumeCapability {
        VolumeCapability {
            access_type: Some(access),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    #[test]
    fn only_volumes_that_many_read_are_mounted() {
        let mount = || AccessType::Mount(MountVolume::default());
        for (mode, inline, persistent) in [
            (Mode::MultiNodeReaderOnly, true, true),
            (Mode::SingleNodeReaderOnly, true, true),
            (Mode::SingleNodeWriter, true, false),
            (Mode::MultiNodeMultiWriter, false, false),
            (Mode::Unknown, false, false),
        ] {
            let capability = capability(mount(), mode);
            assert_eq!(check_capability(Some(&capability), true).is_ok(), inline);
            assert_eq!(
                check_capability(Some(&capability), false).is_ok(),
                persistent
            );
        }
        let block = AccessType::Block(BlockVolume {});
        let block = capability(block, Mode::MultiNodeReaderOnly);
        assert!(check_capability(Some(&block), false).is_err());
        assert!(check_capability(None, true).is_err());
        assert!(check_capability(Some(&VolumeCapability::default()), true).is_err());
    }

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
