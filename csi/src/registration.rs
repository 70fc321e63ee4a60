//! How kubelet gets to know the driver: it finds a socket in its directory for plugins, and asks there which socket to call.

use tonic::{Request, Response, Status};

use crate::DRIVER;
use crate::proto::registration::registration_server::Registration;
use crate::proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};

/// The kind of plugin, as kubelet calls it.
const CSI_PLUGIN: &str = "CSIPlugin";
/// The version of CSI that is spoken.
const VERSION: &str = "1.0.0";

/// The registration service.
#[derive(Clone, Debug)]
pub(crate) struct RegistrationService {
    /// The CSI socket, as kubelet sees it.
    pub(crate) endpoint: String,
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: CSI_PLUGIN.to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: [VERSION.to_owned()].into(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("kubelet has registered {DRIVER}");
        } else {
            // Kubelet tries again by itself. Volumes that are mounted must not suffer from it.
            tracing::error!("kubelet refuses {DRIVER}: {}", status.error);
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
