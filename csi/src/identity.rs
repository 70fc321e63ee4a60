//! CSI's identity service: who this driver is.

use tonic::{Request, Response, Status};

use crate::DRIVER;
use crate::proto::csi::identity_server::Identity;
use crate::proto::csi::plugin_capability::{Service, Type, service};
use crate::proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};

/// The identity service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdentityService {
    /// Whether this node tells where it stands.
    pub(crate) has_topology: bool,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: [].into(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let capability = |of: service::Type| PluginCapability {
            r#type: Some(Type::Service(Service { r#type: of.into() })),
        };
        let places = service::Type::VolumeAccessibilityConstraints;
        let places = self.has_topology.then_some(places);
        let all = [Some(service::Type::ControllerService), places];
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities: all.into_iter().flatten().map(capability).collect(),
        }))
    }

    /// A plugin that answers is ready: known snapshots can be mounted without a master.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
