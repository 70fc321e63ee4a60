//! The master as the operator calls it. Each call has a deadline, so that no look at an object waits for ever.

use std::time::Duration;

use async_trait::async_trait;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use weir_core::{CredentialName, DatasetName, DatasetSpec};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

/// Longest wait for a call that only looks something up, or judges.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for a call that lists an origin.
const LISTING_DEADLINE: Duration = Duration::from_hours(24);

/// Why the master did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MasterError {
    /// It did not answer, or not in time.
    #[error("it does not answer ({0})")]
    Away(String),
    /// It refused.
    #[error("{message}")]
    Refused {
        /// What kind of refusal.
        why: Refusal,
        /// In its words: what is wrong and what to change.
        message: String,
    },
}

/// Kinds of refusals, each with the word that conditions have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What was asked for is wrong.
    Invalid,
    /// What cannot be changed would be.
    Immutable,
    /// The origin refuses, or the master may not read it.
    AccessDenied,
    /// The source has nothing, or there is no such thing.
    NotFound,
    /// The master or its origin is not set up for it.
    NotPossible,
    /// Too much is under way.
    Busy,
    /// The origin does not answer, or something failed.
    Failed,
}

impl Refusal {
    /// The reason of a condition.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Invalid => "InvalidSpec",
            Self::Immutable => "Immutable",
            Self::AccessDenied => "AccessDenied",
            Self::NotFound => "NotFound",
            Self::NotPossible => "NotPossible",
            Self::Busy => "Busy",
            Self::Failed => "OriginFailed",
        }
    }

    /// Whether only another specification helps.
    pub fn is_lasting(self) -> bool {
        matches!(self, Self::Invalid | Self::Immutable)
    }
}

impl From<Status> for MasterError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        let why = match status.code() {
            Code::InvalidArgument => Refusal::Invalid,
            Code::AlreadyExists => Refusal::Immutable,
            Code::PermissionDenied => Refusal::AccessDenied,
            Code::NotFound => Refusal::NotFound,
            Code::FailedPrecondition | Code::Unimplemented => Refusal::NotPossible,
            Code::ResourceExhausted => Refusal::Busy,
            Code::Internal => Refusal::Failed,
            // The master's own, or that it does not answer: an origin that does not answer has a message of the master.
            Code::Unavailable if is_answer(&status) => Refusal::Failed,
            _ => return Self::Away(causes(&status)),
        };
        Self::Refused { why, message }
    }
}

/// Whether a status came from the other side, and not from the connection to it.
fn is_answer(status: &Status) -> bool {
    std::error::Error::source(status).is_none()
}

/// A status with what caused it.
fn causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// A dataset as the master knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// What it is.
    pub dataset: v1::Dataset,
    /// How much of it is cached, and how it is read.
    pub status: v1::DatasetStatus,
}

/// All that the master knows of a cluster at a time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// All datasets.
    pub datasets: Vec<Known>,
    /// Workers, and those that are cordoned and away.
    pub workers: Vec<v1::WorkerStatus>,
}

/// What the operator asks of the master.
#[async_trait]
pub trait Master: Send + Sync + 'static {
    /// All datasets and workers.
    async fn survey(&self) -> Result<Survey, MasterError>;
    /// Whether a specification can be applied, as far as that is known without its origins.
    async fn judge(&self, name: &DatasetName, spec: &DatasetSpec) -> Result<(), MasterError>;
    /// Makes a dataset be as it is specified; takes as long as its listing. A new snapshot has a higher number than `after`.
    async fn apply(
        &self,
        name: &DatasetName,
        spec: &DatasetSpec,
        after: u64,
    ) -> Result<v1::Dataset, MasterError>;
    /// Lists a dataset again; gives it, and whether there is a new snapshot.
    async fn refresh(&self, name: &DatasetName) -> Result<(v1::Dataset, bool), MasterError>;
    /// What the listing of a dataset waits for; empty while it gets on.
    async fn waits_for(&self, name: &DatasetName) -> Result<String, MasterError>;
    /// Forgets a dataset and its blocks, if it is there.
    async fn delete(&self, name: &DatasetName) -> Result<(), MasterError>;
    /// Keeps credentials, in place of those of the same name if there are some.
    async fn set_credential(
        &self,
        name: &CredentialName,
        credential: v1::Credential,
    ) -> Result<(), MasterError>;
    /// Names of all credentials.
    async fn credentials(&self) -> Result<Vec<String>, MasterError>;
    /// Forgets credentials, unless a dataset uses them.
    async fn delete_credential(&self, name: &CredentialName) -> Result<(), MasterError>;
    /// Where the newest snapshot of a dataset is cached.
    async fn locate(&self, name: &DatasetName) -> Result<v1::LocateDatasetReply, MasterError>;
    /// Starts a job; one that is under way for the same work is given instead of a second one.
    async fn start_job(&self, job: v1::StartJobRequest) -> Result<v1::Job, MasterError>;
    /// A job, if there is one of this number.
    async fn get_job(&self, id: u64) -> Result<Option<v1::Job>, MasterError>;
    /// Ends a job.
    async fn cancel_job(&self, id: u64) -> Result<(), MasterError>;
    /// Cordons a worker and has the others take over its blocks; gives the job, which may be under way already.
    async fn drain_worker(&self, id: &str) -> Result<v1::Job, MasterError>;
    /// Lets a worker own blocks again, and ends its drain, if there is such a worker.
    async fn uncordon_worker(&self, id: &str) -> Result<(), MasterError>;
    /// The nodes that have a dataset mounted; `None` if the master does not know that yet.
    async fn mounted_on(&self, name: &DatasetName) -> Result<Option<Vec<String>>, MasterError>;
    /// Tells why datasets cannot be mounted, or are not to be.
    async fn note_conditions(
        &self,
        conditions: Vec<v1::DatasetCondition>,
    ) -> Result<(), MasterError>;
    /// The snapshot of a dataset that all pods of a job of Kubernetes see.
    async fn choose_snapshot(&self, name: &DatasetName, job: &str) -> Result<u64, MasterError>;
    /// Tells what was asked of pods; gives what else is asked, after some seconds at most.
    async fn exchange_pods(
        &self,
        known: v1::ExchangePodsRequest,
    ) -> Result<v1::ExchangePodsReply, MasterError>;
    /// Tells which jobs are gone and which are there; gives some of which that is asked.
    async fn review_jobs(&self, jobs: v1::ReviewJobsRequest) -> Result<Vec<String>, MasterError>;
}

/// The master of a cluster.
#[derive(Clone, Debug)]
pub struct GrpcMaster(MasterClient<Channel>);

impl GrpcMaster {
    /// The one that this client reaches.
    pub fn new(client: MasterClient<Channel>) -> Self {
        Self(client)
    }

    fn client(&self) -> MasterClient<Channel> {
        self.0.clone()
    }
}

fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn call<T>(message: T) -> Request<T> {
    within(CALL_DEADLINE, message)
}

/// Takes "there is no such thing" for success.
fn gone_is_fine<T>(outcome: Result<T, Status>) -> Result<(), MasterError> {
    match outcome {
        Err(status) if status.code() != Code::NotFound => Err(status.into()),
        _ => Ok(()),
    }
}

#[async_trait]
impl Master for GrpcMaster {
    async fn survey(&self) -> Result<Survey, MasterError> {
        let listed = self
            .client()
            .list_datasets(call(v1::ListDatasetsRequest::default()))
            .await?;
        let status = self
            .client()
            .get_status(call(v1::GetStatusRequest::default()))
            .await?
            .into_inner();
        let mut of_datasets: std::collections::HashMap<String, v1::DatasetStatus> = status
            .datasets
            .into_iter()
            .map(|status| (status.name.clone(), status))
            .collect();
        let known = listed.into_inner().datasets.into_iter().map(|dataset| {
            let status = of_datasets.remove(&dataset.name).unwrap_or_default();
            Known { dataset, status }
        });
        Ok(Survey {
            datasets: known.collect(),
            workers: status.workers.into_iter().chain(status.away).collect(),
        })
    }

    async fn judge(&self, name: &DatasetName, spec: &DatasetSpec) -> Result<(), MasterError> {
        let apply = v1::ApplyDatasetRequest {
            name: name.to_string(),
            spec: spec.to_json(),
            dry_run: true,
            ..Default::default()
        };
        self.client().apply_dataset(call(apply)).await?;
        Ok(())
    }

    async fn apply(
        &self,
        name: &DatasetName,
        spec: &DatasetSpec,
        after: u64,
    ) -> Result<v1::Dataset, MasterError> {
        let apply = v1::ApplyDatasetRequest {
            name: name.to_string(),
            spec: spec.to_json(),
            after,
            ..v1::ApplyDatasetRequest::default()
        };
        let apply = within(LISTING_DEADLINE, apply);
        let reply = self.client().apply_dataset(apply).await?;
        Ok(reply.into_inner().dataset.unwrap_or_default())
    }

    async fn refresh(&self, name: &DatasetName) -> Result<(v1::Dataset, bool), MasterError> {
        let name = name.to_string();
        let refresh = within(LISTING_DEADLINE, v1::RefreshDatasetRequest { name });
        let reply = self.client().refresh_dataset(refresh).await?.into_inner();
        Ok((reply.dataset.unwrap_or_default(), reply.changed))
    }

    async fn waits_for(&self, name: &DatasetName) -> Result<String, MasterError> {
        let dataset = name.to_string();
        let mut client = self.client();
        let reply = client.get_listing(call(v1::GetListingRequest { dataset }));
        Ok(reply.await?.into_inner().waits_for)
    }

    async fn delete(&self, name: &DatasetName) -> Result<(), MasterError> {
        let name = name.to_string();
        let delete = v1::DeleteDatasetRequest { name };
        gone_is_fine(self.client().delete_dataset(call(delete)).await)
    }

    async fn set_credential(
        &self,
        name: &CredentialName,
        credential: v1::Credential,
    ) -> Result<(), MasterError> {
        let set = |replace, credential| v1::SetCredentialRequest {
            name: name.to_string(),
            credential: Some(credential),
            replace,
        };
        let mut client = self.client();
        let first = client.set_credential(call(set(false, credential.clone())));
        match first.await {
            Err(status) if status.code() == Code::AlreadyExists => {
                client.set_credential(call(set(true, credential))).await?;
            }
            outcome => {
                outcome?;
            }
        }
        Ok(())
    }

    async fn credentials(&self) -> Result<Vec<String>, MasterError> {
        let list = call(v1::ListCredentialsRequest {});
        let reply = self.client().list_credentials(list).await?.into_inner();
        Ok(reply
            .credentials
            .into_iter()
            .map(|info| info.name)
            .collect())
    }

    async fn delete_credential(&self, name: &CredentialName) -> Result<(), MasterError> {
        let name = name.to_string();
        let delete = v1::DeleteCredentialRequest { name };
        match self.client().delete_credential(call(delete)).await {
            // Another dataset uses them.
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            outcome => gone_is_fine(outcome),
        }
    }

    async fn locate(&self, name: &DatasetName) -> Result<v1::LocateDatasetReply, MasterError> {
        let locate = v1::LocateDatasetRequest {
            name: name.to_string(),
            path: String::new(),
        };
        Ok(self
            .client()
            .locate_dataset(call(locate))
            .await?
            .into_inner())
    }

    async fn start_job(&self, job: v1::StartJobRequest) -> Result<v1::Job, MasterError> {
        Ok(self.client().start_job(call(job)).await?.into_inner())
    }

    async fn get_job(&self, id: u64) -> Result<Option<v1::Job>, MasterError> {
        match self.client().get_job(call(v1::GetJobRequest { id })).await {
            Err(status) if status.code() == Code::NotFound => Ok(None),
            job => Ok(Some(job?.into_inner())),
        }
    }

    async fn cancel_job(&self, id: u64) -> Result<(), MasterError> {
        gone_is_fine(
            self.client()
                .cancel_job(call(v1::CancelJobRequest { id }))
                .await,
        )
    }

    async fn drain_worker(&self, id: &str) -> Result<v1::Job, MasterError> {
        let drain = v1::DrainWorkerRequest {
            worker: id.to_owned(),
            bytes_per_second: 0,
        };
        Ok(self.client().drain_worker(call(drain)).await?.into_inner())
    }

    async fn uncordon_worker(&self, id: &str) -> Result<(), MasterError> {
        let uncordon = v1::CordonWorkerRequest {
            worker: id.to_owned(),
            uncordon: true,
        };
        gone_is_fine(self.client().cordon_worker(call(uncordon)).await)
    }

    async fn mounted_on(&self, name: &DatasetName) -> Result<Option<Vec<String>>, MasterError> {
        let dataset = name.to_string();
        let list = call(v1::ListMountsRequest { dataset });
        match self.client().list_mounts(list).await {
            // One of before this knows of no mounts.
            Err(status) if status.code() == Code::Unimplemented => Ok(Some(Vec::new())),
            listed => {
                let listed = listed?.into_inner();
                Ok((!listed.may_lack).then_some(listed.nodes))
            }
        }
    }

    async fn choose_snapshot(&self, name: &DatasetName, job: &str) -> Result<u64, MasterError> {
        let choose = v1::ChooseSnapshotRequest {
            dataset: name.to_string(),
            job: job.to_owned(),
            pod: None,
        };
        let chosen = self.client().choose_snapshot(call(choose)).await?;
        Ok(chosen.into_inner().version)
    }

    async fn note_conditions(
        &self,
        conditions: Vec<v1::DatasetCondition>,
    ) -> Result<(), MasterError> {
        let note = call(v1::NoteConditionsRequest { conditions });
        self.client().note_conditions(note).await?;
        Ok(())
    }

    async fn exchange_pods(
        &self,
        known: v1::ExchangePodsRequest,
    ) -> Result<v1::ExchangePodsReply, MasterError> {
        let exchanged = self.client().exchange_pods(call(known)).await?;
        Ok(exchanged.into_inner())
    }

    async fn review_jobs(&self, jobs: v1::ReviewJobsRequest) -> Result<Vec<String>, MasterError> {
        let reviewed = self.client().review_jobs(call(jobs)).await?;
        Ok(reviewed.into_inner().asked)
    }
}
