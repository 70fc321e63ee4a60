//! The `weir.v1.Master` service.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use weir_proto::v1;
use weir_proto::v1::master_server::{Master as MasterApi, MasterServer};

use crate::master::Master;

/// Bytes of a manifest in one message.
const CHUNK: usize = 1 << 20;
/// Longest message that is taken: a heartbeat with the inventories of many datasets.
const MAX_MESSAGE: usize = 64 << 20;

/// Serves `weir.v1.Master` on `listener` until `stop`.
pub async fn serve(
    master: Arc<Master>,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = MasterServer::new(Service { master }).max_decoding_message_size(MAX_MESSAGE);
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned())
        .await
}

struct Service {
    master: Arc<Master>,
}

#[tonic::async_trait]
impl MasterApi for Service {
    type GetManifestStream = BoxStream<'static, Result<v1::ManifestChunk, Status>>;

    async fn create_dataset(
        &self,
        request: Request<v1::CreateDatasetRequest>,
    ) -> Result<Response<v1::Dataset>, Status> {
        // A caller that goes away must not stop a listing that another one waits for.
        let master = self.master.clone();
        let made = tokio::spawn(async move { master.create_dataset(request.into_inner()).await });
        Ok(Response::new(
            made.await.map_err(crate::MasterError::from)??,
        ))
    }

    async fn list_datasets(
        &self,
        _: Request<v1::ListDatasetsRequest>,
    ) -> Result<Response<v1::ListDatasetsReply>, Status> {
        Ok(Response::new(v1::ListDatasetsReply {
            datasets: self.master.all_datasets(),
        }))
    }

    async fn get_dataset(
        &self,
        request: Request<v1::GetDatasetRequest>,
    ) -> Result<Response<v1::Dataset>, Status> {
        let name = request
            .into_inner()
            .name
            .parse()
            .map_err(crate::MasterError::from)?;
        Ok(Response::new(self.master.dataset(&name)?))
    }

    async fn delete_dataset(
        &self,
        request: Request<v1::DeleteDatasetRequest>,
    ) -> Result<Response<v1::DeleteDatasetReply>, Status> {
        self.master
            .delete_dataset(&request.into_inner().name)
            .await?;
        Ok(Response::new(v1::DeleteDatasetReply {}))
    }

    async fn refresh_dataset(
        &self,
        request: Request<v1::RefreshDatasetRequest>,
    ) -> Result<Response<v1::RefreshDatasetReply>, Status> {
        let master = self.master.clone();
        let refreshed =
            tokio::spawn(async move { master.refresh_dataset(&request.into_inner().name).await });
        let (dataset, changed) = refreshed.await.map_err(crate::MasterError::from)??;
        Ok(Response::new(v1::RefreshDatasetReply {
            dataset: Some(dataset),
            changed,
        }))
    }

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<Self::GetManifestStream>, Status> {
        let request = request.into_inner();
        let version = Some(request.version).filter(|version| *version > 0);
        let manifest = self.master.manifest(&request.dataset, version).await?;
        let chunks = stream::unfold(manifest.as_bytes().clone(), |mut rest: Bytes| async move {
            if rest.is_empty() {
                return None;
            }
            let data = rest.split_to(CHUNK.min(rest.len()));
            Some((Ok(v1::ManifestChunk { data }), rest))
        });
        Ok(Response::new(chunks.boxed()))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        Ok(Response::new(
            self.master.heartbeat(request.into_inner()).await?,
        ))
    }

    async fn get_cluster_map(
        &self,
        _: Request<v1::GetClusterMapRequest>,
    ) -> Result<Response<v1::GetClusterMapReply>, Status> {
        let map = self.master.cluster_map().await?;
        Ok(Response::new(v1::GetClusterMapReply { map: Some(map) }))
    }

    async fn report_stale(
        &self,
        request: Request<v1::ReportStaleRequest>,
    ) -> Result<Response<v1::ReportStaleReply>, Status> {
        self.master.report_stale(&request.into_inner())?;
        Ok(Response::new(v1::ReportStaleReply {}))
    }

    async fn start_job(
        &self,
        request: Request<v1::StartJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        Ok(Response::new(
            self.master.start_job(request.into_inner()).await?,
        ))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        Ok(Response::new(self.master.job(request.into_inner().id)?))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        Ok(Response::new(
            self.master.cancel_job(request.into_inner().id)?,
        ))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::Status>, Status> {
        Ok(Response::new(self.master.status().await?))
    }
}
