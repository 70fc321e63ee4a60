//! The `weir.v1.Master` service, and who may call what of it.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use weir_core::placement::MAX_WORKERS;
use weir_core::{DatasetName, NodeName};
use weir_origin::OriginError;
use weir_proto::v1;
use weir_proto::v1::master_server::{Master as MasterApi, MasterServer};
use weir_trust::{Caller, Guarded, Incoming, Refusals, Role, Rules};

use crate::error::MasterError;
use crate::master::Master;

/// Bytes of a manifest in one message.
const CHUNK: usize = 1 << 20;
/// Messages after which what was read of a long manifest's file is let go.
const RELEASED_CHUNKS: usize = 16;
/// Longest message that is taken. Requests of people may have 1 MiB; somewhat longer ones are told which limit they exceed.
const MAX_MESSAGE: usize = 4 << 20;
/// Longest message of the calls that only workers may make, and these: the inventory of a large snapshot.
const MAX_INVENTORY: usize = 64 << 20;
const WITH_INVENTORIES: &[&str] = &["Heartbeat", "ReportInventory"];
/// Calls that change something, and heartbeats, under way at once. Callers that gave up leave theirs to go on, and no
/// listing keeps a heartbeat waiting.
const MAX_CALLS: usize = 1024;
const MAX_HEARTBEATS: usize = 2 * MAX_WORKERS;

/// Who may call what. People do everything that mounts do, too: some mount with their own certificates.
const RULES: Rules = &[
    ("CreateDataset", &[Role::Admin]),
    ("ApplyDataset", &[Role::Admin]),
    ("ListDatasets", &[Role::Admin]),
    ("GetDataset", &[Role::Mount, Role::Admin]),
    ("LocateDataset", &[Role::Admin]),
    ("DeleteDataset", &[Role::Admin]),
    ("RefreshDataset", &[Role::Admin]),
    ("GetListing", &[Role::Mount, Role::Admin]),
    ("ListLeftOut", &[Role::Admin]),
    ("GetManifest", &[Role::Worker, Role::Mount, Role::Admin]),
    ("Heartbeat", &[Role::Worker]),
    ("ReportInventory", &[Role::Worker]),
    ("GetClusterMap", &[Role::Worker, Role::Mount, Role::Admin]),
    ("ReportStale", &[Role::Mount, Role::Admin]),
    ("StartJob", &[Role::Admin]),
    ("GetJob", &[Role::Admin]),
    ("CancelJob", &[Role::Admin]),
    ("CordonWorker", &[Role::Admin]),
    ("DrainWorker", &[Role::Admin]),
    ("GetStatus", &[Role::Admin]),
    ("SetCredential", &[Role::Admin]),
    ("ListCredentials", &[Role::Admin]),
    ("DeleteCredential", &[Role::Admin]),
    ("ChooseSnapshot", &[Role::Mount, Role::Admin]),
    ("ExchangePods", &[Role::Admin]),
    ("ReviewJobs", &[Role::Admin]),
    ("ListMounts", &[Role::Admin]),
    ("EndMount", &[Role::Mount, Role::Admin]),
    ("NoteConditions", &[Role::Admin]),
    ("FetchCredential", &[Role::Worker, Role::Mount, Role::Admin]),
];

/// Serves `weir.v1.Master` to those who come in by `incoming`, until `stop`.
pub fn serve(
    master: Arc<Master>,
    incoming: Incoming,
    stop: CancellationToken,
) -> BoxFuture<'static, Result<(), tonic::transport::Error>> {
    let service = Arc::new(Service {
        master,
        calls: Arc::new(Semaphore::new(MAX_CALLS)),
        heartbeats: Arc::new(Semaphore::new(MAX_HEARTBEATS)),
    });
    let of_size = |most| MasterServer::from_arc(service.clone()).max_decoding_message_size(most);
    let guarded = Guarded::new(of_size(MAX_MESSAGE), RULES)
        .with_large(of_size(MAX_INVENTORY), WITH_INVENTORIES);
    weir_trust::serve(Routes::new(guarded), incoming, stop)
}

/// The node that a caller speaks for; none if it is none, or another one than that of its certificate.
fn spoken_for(caller: &Caller, node: &str) -> Option<NodeName> {
    let node: NodeName = node.parse().ok()?;
    let own = caller.peer().and_then(|peer| peer.subject.node.as_ref());
    own.is_none_or(|own| *own == node).then_some(node)
}

/// Longest name, and longest error, that a line of the log repeats, in characters.
const MAX_NAME_LOGGED: usize = 200;
const MAX_ERROR_LOGGED: usize = 1000;

/// Tells the operator who wants what this master may not read.
fn note_refused(refusals: &Refusals, who: &Caller, dataset: &str, error: &MasterError) {
    if let MasterError::Origin(error @ OriginError::NotAllowed { .. }) = error {
        let part = |text: &str, most| -> String {
            let shown = text.chars().take(most);
            shown
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect()
        };
        let dataset = part(dataset, MAX_NAME_LOGGED);
        let error = part(&error.to_string(), MAX_ERROR_LOGGED);
        refusals.tell(&format!(
            "a source of dataset {dataset} that {who} named: {error}"
        ));
    }
}

/// What is cancelled when the guard is dropped: with the handler of a call, whose caller has gone then.
fn until_dropped() -> (CancellationToken, DropGuard) {
    let gone = CancellationToken::new();
    (gone.clone(), gone.drop_guard())
}

struct Service {
    master: Arc<Master>,
    calls: Arc<Semaphore>,
    heartbeats: Arc<Semaphore>,
}

impl Service {
    /// Runs a call that changes something as a task of its own: a caller that goes away drops the handler at any await, and
    /// half a change must not be left, nor a listing end that another one waits for.
    async fn run<T, F>(
        &self,
        places: &Arc<Semaphore>,
        call: impl FnOnce(Arc<Master>) -> F,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, MasterError>> + Send + 'static,
    {
        let Ok(permit) = places.clone().try_acquire_owned() else {
            return Err(Status::resource_exhausted(
                "too many calls are under way; try again in a moment",
            ));
        };
        let call = call(self.master.clone());
        let outcome = tokio::spawn(async move {
            let _permit = permit;
            call.await
        });
        Ok(Response::new(outcome.await.map_err(MasterError::from)??))
    }
}

#[tonic::async_trait]
impl MasterApi for Service {
    type GetManifestStream = BoxStream<'static, Result<v1::ManifestChunk, Status>>;

    async fn create_dataset(
        &self,
        request: Request<v1::CreateDatasetRequest>,
    ) -> Result<Response<v1::Dataset>, Status> {
        let who = Caller::of(&request)?.clone();
        let request = request.into_inner();
        let name = request.name.parse().map_err(MasterError::from)?;
        self.master.datasets.check_name(&name)?;
        let (gone, _here) = until_dropped();
        self.run(&self.calls, |master| async move {
            let name = request.name.clone();
            let made = master.create_dataset(request, gone).await;
            let made = made.inspect_err(|error| note_refused(&master.refusals, &who, &name, error));
            Ok(master.datasets.explained(made?))
        })
        .await
    }

    async fn apply_dataset(
        &self,
        request: Request<v1::ApplyDatasetRequest>,
    ) -> Result<Response<v1::ApplyDatasetReply>, Status> {
        let who = Caller::of(&request)?.clone();
        let request = request.into_inner();
        let (gone, _here) = until_dropped();
        self.run(&self.calls, |master| async move {
            let name = request.name.clone();
            let applied = master.apply_dataset(request, gone).await;
            let mut applied =
                applied.inspect_err(|error| note_refused(&master.refusals, &who, &name, error))?;
            let dataset = applied.dataset.take();
            applied.dataset = dataset.map(|dataset| master.datasets.explained(dataset));
            Ok(applied)
        })
        .await
    }

    async fn list_datasets(
        &self,
        request: Request<v1::ListDatasetsRequest>,
    ) -> Result<Response<v1::ListDatasetsReply>, Status> {
        let mut datasets = self.master.datasets.all(&request.into_inner().namespace);
        self.master.datasets.explain_all(&mut datasets);
        Ok(Response::new(v1::ListDatasetsReply { datasets }))
    }

    async fn get_dataset(
        &self,
        request: Request<v1::GetDatasetRequest>,
    ) -> Result<Response<v1::Dataset>, Status> {
        let name = request.into_inner().name;
        let name = name.parse().map_err(MasterError::from)?;
        let mut dataset = self.master.datasets.get(&name)?;
        let condition = self.master.conditions.of(&dataset.name);
        dataset.deleting = condition.is_some_and(|condition| condition.deleting);
        Ok(Response::new(self.master.datasets.explained(dataset)))
    }

    async fn locate_dataset(
        &self,
        request: Request<v1::LocateDatasetRequest>,
    ) -> Result<Response<v1::LocateDatasetReply>, Status> {
        let request = request.into_inner();
        let located = self.master.locate_dataset(&request.name, &request.path);
        Ok(Response::new(located.await?))
    }

    async fn delete_dataset(
        &self,
        request: Request<v1::DeleteDatasetRequest>,
    ) -> Result<Response<v1::DeleteDatasetReply>, Status> {
        let name = request.into_inner().name;
        self.run(&self.calls, |master| async move {
            master.delete_dataset(&name).await?;
            Ok(v1::DeleteDatasetReply {})
        })
        .await
    }

    async fn refresh_dataset(
        &self,
        request: Request<v1::RefreshDatasetRequest>,
    ) -> Result<Response<v1::RefreshDatasetReply>, Status> {
        let who = Caller::of(&request)?.clone();
        let name = request.into_inner().name;
        let (gone, _here) = until_dropped();
        self.run(&self.calls, |master| async move {
            let listed = master.refresh_dataset(&name, gone).await;
            let listed =
                listed.inspect_err(|error| note_refused(&master.refusals, &who, &name, error));
            let (dataset, changed) = listed?;
            Ok(v1::RefreshDatasetReply {
                dataset: Some(master.datasets.explained(dataset)),
                changed,
            })
        })
        .await
    }

    async fn get_listing(
        &self,
        request: Request<v1::GetListingRequest>,
    ) -> Result<Response<v1::GetListingReply>, Status> {
        let name = request.into_inner().dataset;
        let name: DatasetName = name.parse().map_err(MasterError::from)?;
        let (is_under_way, waits_for) = self.master.datasets.under_way(&name);
        Ok(Response::new(v1::GetListingReply {
            under_way: is_under_way,
            waits_for: waits_for.unwrap_or_default(),
            condition: self.master.conditions.of(name.as_str()),
        }))
    }

    async fn list_left_out(
        &self,
        request: Request<v1::ListLeftOutRequest>,
    ) -> Result<Response<v1::ListLeftOutReply>, Status> {
        let request = request.into_inner();
        let version = Some(request.version).filter(|version| *version > 0);
        let list = self.master.datasets.left_out(&request.dataset, version);
        Ok(Response::new(list.await?))
    }

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<Self::GetManifestStream>, Status> {
        let request = request.into_inner();
        let version = Some(request.version).filter(|version| *version > 0);
        let manifest = self.master.manifest(&request.dataset, version).await?;
        let rest = manifest.as_bytes().clone();
        let chunks = stream::unfold((manifest, rest), |(manifest, mut rest)| async move {
            if (rest.len() / CHUNK).is_multiple_of(RELEASED_CHUNKS) {
                manifest.release();
            }
            if rest.is_empty() {
                return None;
            }
            let data = rest.split_to(CHUNK.min(rest.len()));
            Some((Ok(v1::ManifestChunk { data }), (manifest, rest)))
        });
        Ok(Response::new(chunks.boxed()))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        let caller = Caller::of(&request)?.clone();
        let beat = request.into_inner();
        self.run(&self.heartbeats, |master| async move {
            master.heartbeat(&caller, beat).await
        })
        .await
    }

    async fn report_inventory(
        &self,
        request: Request<v1::ReportInventoryRequest>,
    ) -> Result<Response<v1::ReportInventoryReply>, Status> {
        let caller = Caller::of(&request)?.clone();
        let report = request.into_inner();
        let master = self.master.clone();
        // Reading a large bitmap takes a while, and others use this thread.
        let taken = tokio::task::spawn_blocking(move || master.report_inventory(&caller, report));
        taken.await.map_err(MasterError::from)??;
        Ok(Response::new(v1::ReportInventoryReply {}))
    }

    async fn get_cluster_map(
        &self,
        request: Request<v1::GetClusterMapRequest>,
    ) -> Result<Response<v1::GetClusterMapReply>, Status> {
        let caller = Caller::of(&request)?.clone();
        let request = request.into_inner();
        self.master.datasets.note_reader(&request);
        if self.master.datasets.contains(&request.dataset)
            && let Some(node) = spoken_for(&caller, &request.node)
        {
            self.master.mounted.note(&request.dataset, node);
        }
        let (map_version, map) = self.master.map_unless(request.known_map);
        let mut reply = v1::GetClusterMapReply {
            map,
            map_version,
            ..v1::GetClusterMapReply::default()
        };
        reply.placement = self.master.datasets.placement(&request.dataset);
        let doubtful = self.master.doubtful.lock();
        doubtful.tell(request.doubtful_seen, &mut reply);
        drop(doubtful);
        Ok(Response::new(reply))
    }

    async fn report_stale(
        &self,
        request: Request<v1::ReportStaleRequest>,
    ) -> Result<Response<v1::ReportStaleReply>, Status> {
        self.master.datasets.report_stale(&request.into_inner())?;
        Ok(Response::new(v1::ReportStaleReply {}))
    }

    async fn start_job(
        &self,
        request: Request<v1::StartJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let request = request.into_inner();
        self.run(&self.calls, |master| async move {
            master.start_job(request).await
        })
        .await
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        Ok(Response::new(
            self.master.jobs.get(request.into_inner().id)?,
        ))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let id = request.into_inner().id;
        self.run(
            &self.calls,
            |master| async move { master.jobs.cancel(id).await },
        )
        .await
    }

    async fn cordon_worker(
        &self,
        request: Request<v1::CordonWorkerRequest>,
    ) -> Result<Response<v1::WorkerStatus>, Status> {
        let request = request.into_inner();
        self.run(&self.calls, |master| async move {
            master.cordon_worker(request).await
        })
        .await
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let request = request.into_inner();
        self.run(&self.calls, |master| async move {
            master.drain_worker(request).await
        })
        .await
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::Status>, Status> {
        let namespace = request.into_inner().namespace;
        let master = self.master.clone();
        let status = tokio::task::spawn_blocking(move || master.status(&namespace));
        Ok(Response::new(status.await.map_err(MasterError::from)?))
    }

    async fn set_credential(
        &self,
        request: Request<v1::SetCredentialRequest>,
    ) -> Result<Response<v1::SetCredentialReply>, Status> {
        let caller = Caller::of(&request)?.clone();
        let request = request.into_inner();
        self.run(&self.calls, |master| async move {
            master.set_credential(&caller, request).await
        })
        .await
    }

    async fn list_credentials(
        &self,
        _: Request<v1::ListCredentialsRequest>,
    ) -> Result<Response<v1::ListCredentialsReply>, Status> {
        let credentials = self.master.list_credentials();
        Ok(Response::new(v1::ListCredentialsReply { credentials }))
    }

    async fn delete_credential(
        &self,
        request: Request<v1::DeleteCredentialRequest>,
    ) -> Result<Response<v1::DeleteCredentialReply>, Status> {
        let caller = Caller::of(&request)?.clone();
        let name = request.into_inner().name;
        self.run(&self.calls, |master| async move {
            master.delete_credential(&caller, &name).await?;
            Ok(v1::DeleteCredentialReply {})
        })
        .await
    }

    async fn choose_snapshot(
        &self,
        request: Request<v1::ChooseSnapshotRequest>,
    ) -> Result<Response<v1::ChooseSnapshotReply>, Status> {
        let is_admin = Caller::of(&request)?.is_one_of(&[Role::Admin]);
        let request = request.into_inner();
        let name: DatasetName = request.dataset.parse().map_err(MasterError::from)?;
        self.master.datasets.newest_of(&name)?;
        let known = match (request.job, request.pod) {
            (job, _) if !job.is_empty() && is_admin => Some(job),
            (job, None) if job.is_empty() => Some(job),
            (job, Some(pod)) if job.is_empty() => self.master.pods.job_of(&pod).await,
            _ => {
                return Err(Status::permission_denied(
                    "only an admin may name a job; name the pod",
                ));
            }
        };
        self.run(&self.calls, |master| async move {
            let job = known.as_deref().filter(|job| !job.is_empty());
            let version = master.datasets.choose_snapshot(&name, job).await?;
            Ok(v1::ChooseSnapshotReply {
                version,
                job_unknown: known.is_none(),
            })
        })
        .await
    }

    async fn exchange_pods(
        &self,
        request: Request<v1::ExchangePodsRequest>,
    ) -> Result<Response<v1::ExchangePodsReply>, Status> {
        let asked = self.master.pods.exchange(request.into_inner()).await;
        Ok(Response::new(asked))
    }

    async fn review_jobs(
        &self,
        request: Request<v1::ReviewJobsRequest>,
    ) -> Result<Response<v1::ReviewJobsReply>, Status> {
        let request = request.into_inner();
        self.run(&self.calls, |master| async move {
            let asked = master.datasets.held.review(request).await?;
            Ok(v1::ReviewJobsReply { asked })
        })
        .await
    }

    async fn list_mounts(
        &self,
        request: Request<v1::ListMountsRequest>,
    ) -> Result<Response<v1::ListMountsReply>, Status> {
        let name = request.into_inner().dataset.parse::<DatasetName>();
        let name = name.map_err(MasterError::from)?;
        let nodes = self.master.mounted.of(name.as_str());
        Ok(Response::new(v1::ListMountsReply {
            may_lack: nodes.is_none(),
            nodes: nodes.unwrap_or_default(),
        }))
    }

    async fn note_conditions(
        &self,
        request: Request<v1::NoteConditionsRequest>,
    ) -> Result<Response<v1::NoteConditionsReply>, Status> {
        self.master.conditions.note(request.into_inner().conditions);
        Ok(Response::new(v1::NoteConditionsReply {}))
    }

    async fn end_mount(
        &self,
        request: Request<v1::EndMountRequest>,
    ) -> Result<Response<v1::EndMountReply>, Status> {
        let caller = Caller::of(&request)?.clone();
        let request = request.into_inner();
        let Some(node) = spoken_for(&caller, &request.node) else {
            return Err(Status::permission_denied(format!(
                "{caller} may not speak for node {:?}",
                request.node
            )));
        };
        self.master.mounted.end(&request.dataset, &node);
        Ok(Response::new(v1::EndMountReply {}))
    }

    async fn fetch_credential(
        &self,
        request: Request<v1::FetchCredentialRequest>,
    ) -> Result<Response<v1::FetchCredentialReply>, Status> {
        let caller = Caller::of(&request)?.clone();
        let given = self.master.fetch_credential(&caller, request.into_inner());
        Ok(Response::new(given.await?))
    }
}
