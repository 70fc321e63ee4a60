//! CSI's controller service, as far as a driver has one whose volumes are neither made nor attached.
//!
//! Kubernetes asks none of it. It is here for those who ask each driver: what it is capable of, and whether a volume can be used in a
//! certain way.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::calls::Calls;
use crate::capability::check_capability;
use crate::error::CsiError;
use crate::proto::csi::controller_server::Controller;
use crate::proto::csi::controller_service_capability::{self, Rpc, rpc};
use crate::proto::csi::validate_volume_capabilities_response::Confirmed;
use crate::proto::csi::{
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
    ControllerServiceCapability, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
};
use crate::volume::{check_id, dataset_of};
use crate::volumes::Volumes;

/// The controller service.
#[derive(Clone, Debug)]
pub(crate) struct ControllerService {
    volumes: Arc<Volumes>,
    calls: Calls,
}

impl ControllerService {
    pub(crate) fn new(volumes: Arc<Volumes>, calls: Calls) -> Self {
        Self { volumes, calls }
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    /// That nothing can be made. Those who check drivers take an empty list for none at all, so this is the one that is true.
    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capacity = ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(Rpc {
                r#type: rpc::Type::GetCapacity.into(),
            })),
        };
        Ok(Response::new(ControllerGetCapabilitiesResponse {
            capabilities: [capacity].into(),
        }))
    }

    /// Bytes that volumes could be made of.
    async fn get_capacity(
        &self,
        _: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        Ok(Response::new(GetCapacityResponse::default()))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let (request, volumes) = (request.into_inner(), self.volumes.clone());
        let id = request.volume_id.clone();
        let work = async move {
            check_id(&request.volume_id)?;
            if request.volume_capabilities.is_empty() {
                check_capability(None, false)?;
            }
            let dataset = dataset_of(&request.volume_id, &request.volume_context);
            let dataset = dataset.ok_or_else(|| {
                CsiError::NotFound(format!(
                    "volume {} names no dataset; the ids of volumes are NAMESPACE/DATASET",
                    request.volume_id
                ))
            })?;
            volumes.check(&dataset).await?;
            Ok(judged(request))
        };
        self.calls
            .make("ValidateVolumeCapabilities", &id, work)
            .await
    }

    async fn create_volume(
        &self,
        _: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        Err(Status::unimplemented(
            "volumes of Weir are not made by a storage class; make a Dataset, and its namespace has a claim of its name",
        ))
    }

    async fn delete_volume(
        &self,
        _: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        Err(Status::unimplemented(
            "volumes of Weir are not deleted by a storage class; they go with their Dataset",
        ))
    }
}

/// Whether all of the capabilities are possible, or why not.
fn judged(request: ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse {
    let mut all = request.volume_capabilities.iter();
    match all.try_for_each(|capability| check_capability(Some(capability), false)) {
        Ok(()) => ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        },
        Err(why) => ValidateVolumeCapabilitiesResponse {
            confirmed: None,
            message: why.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::tests::mounted;
    use crate::proto::csi::volume_capability::access_mode::Mode;

    #[test]
    fn what_can_only_be_read_is_confirmed_for_readers_alone() {
        let of = |modes: &[Mode]| {
            judged(ValidateVolumeCapabilitiesRequest {
                volume_capabilities: modes.iter().copied().map(mounted).collect(),
                ..ValidateVolumeCapabilitiesRequest::default()
            })
        };
        let fine = of(&[Mode::MultiNodeReaderOnly, Mode::SingleNodeReaderOnly]);
        assert_eq!(fine.confirmed.unwrap().volume_capabilities.len(), 2);
        let not = of(&[Mode::MultiNodeReaderOnly, Mode::SingleNodeWriter]);
        assert_eq!(not.confirmed, None);
        assert!(not.message.contains("ReadOnlyMany"), "{}", not.message);
    }
}
