//! What the master knows of datasets: which snapshot a volume shows.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};
use weir_core::{DatasetName, SnapshotId};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_trust::{Dial, Role, TrustError};

use crate::access::shown;
use crate::error::{CsiError, said};
use crate::volume::{Pod, Volume};

/// Longest wait for the connection to the master, and for its answer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for a snapshot of a pod's job; the master itself waits two seconds for who knows jobs.
const CHOICE_DEADLINE: Duration = Duration::from_secs(4);

/// What is known of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its snapshots, the newest last; at least one.
    pub versions: Vec<u64>,
    /// The namespaces that it lets in beside its own: `access.namespaces` of its specification.
    pub granted: Vec<String>,
    /// It is being deleted: what shows it stays, and nothing more does.
    pub is_leaving: bool,
}

impl Known {
    /// Fails if a volume that is to be made is too late. Claims of pods that were there before Kubernetes keeps, and it lets no others in.
    pub(crate) fn check_new(&self, volume: &Volume) -> Result<(), CsiError> {
        if self.is_leaving && volume.is_inline {
            return Err(leaving(&volume.dataset));
        }
        Ok(())
    }

    /// The snapshot that is meant: `version`, or the newest without one.
    pub fn snapshot(
        &self,
        dataset: &DatasetName,
        version: Option<u64>,
    ) -> Result<SnapshotId, CsiError> {
        let newest = self.versions.last().copied().unwrap_or_default();
        let version = version.unwrap_or(newest);
        if !self.versions.contains(&version) {
            return Err(CsiError::NotFound(format!(
                "dataset {} has no snapshot {version}; its newest is {newest}",
                shown(dataset)
            )));
        }
        Ok(SnapshotId {
            dataset: dataset.clone(),
            version,
        })
    }
}

/// Who knows the datasets.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// What is known of a dataset that can be mounted.
    async fn look_up(&self, dataset: &DatasetName) -> Result<Known, CsiError>;
    /// The snapshot that a pod sees which names none: all pods of one job the same; the newest if that cannot be told.
    async fn choose(&self, dataset: &DatasetName, pod: &Pod) -> Option<u64>;
    /// Takes note that this node has a dataset mounted no more. If that is not told, it is found out after some minutes.
    async fn ended(&self, dataset: &DatasetName);
}

/// The master of a cluster.
#[derive(Debug)]
pub struct MasterCatalog {
    client: MasterClient<Channel>,
    address: String,
    node: String,
}

impl MasterCatalog {
    /// The master at `HOST:PORT`, which is connected to at the first question. `node` is this one, as its mounts name it.
    ///
    /// # Errors
    /// When that is no address.
    pub fn new(address: &str, dial: &Dial, node: &str) -> Result<Self, TrustError> {
        /// Longest answer: a dataset with many snapshots and sources.
        const MAX_MESSAGE: usize = 16 << 20;
        let channel = dial.channel(address, Role::Master, CONNECT_DEADLINE)?;
        Ok(Self {
            client: MasterClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            address: address.to_owned(),
            node: node.to_owned(),
        })
    }

    /// Why a dataset cannot be mounted, as far as that is known.
    async fn hindered(&self, dataset: &DatasetName) -> Option<CsiError> {
        let asked = v1::GetListingRequest {
            dataset: dataset.to_string(),
        };
        let known = self.client.clone().get_listing(request(asked)).await;
        hindrance(dataset, &known.ok()?.into_inner())
    }

    fn failed(&self, dataset: &DatasetName, status: &Status) -> CsiError {
        let name = shown(dataset);
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => CsiError::Denied(format!(
                "the master refuses this node: {}; check the certificate of the node plugin",
                said(status.message())
            )),
            Code::InvalidArgument => CsiError::Invalid(said(status.message())),
            _ => CsiError::Unavailable(format!(
                "the master at {} does not answer for dataset {name} ({}); see whether its pod runs",
                self.address,
                said(status.message())
            )),
        }
    }
}

#[async_trait]
impl Catalog for MasterCatalog {
    async fn look_up(&self, dataset: &DatasetName) -> Result<Known, CsiError> {
        let asked = v1::GetDatasetRequest {
            name: dataset.to_string(),
        };
        let found = match self.client.clone().get_dataset(request(asked)).await {
            Ok(found) => found.into_inner(),
            Err(status) if status.code() == Code::NotFound => {
                let missing = || {
                    CsiError::NotFound(format!(
                        "dataset {} does not exist; see kubectl get datasets.weir.io -n {}",
                        shown(dataset),
                        dataset.namespace()
                    ))
                };
                return Err(self.hindered(dataset).await.unwrap_or_else(missing));
            }
            Err(status) => return Err(self.failed(dataset, &status)),
        };
        let versions: Vec<u64> = found.snapshots.iter().map(|s| s.version).collect();
        if versions.is_empty() {
            let name = shown(dataset);
            let not_yet = || CsiError::NotReady(format!("dataset {name} has no snapshot yet"));
            return Err(self.hindered(dataset).await.unwrap_or_else(not_yet));
        }
        Ok(Known {
            versions,
            granted: granted(&found.spec),
            is_leaving: found.deleting,
        })
    }

    async fn choose(&self, dataset: &DatasetName, pod: &Pod) -> Option<u64> {
        let mut asked = tonic::Request::new(v1::ChooseSnapshotRequest {
            dataset: dataset.to_string(),
            job: String::new(),
            pod: Some(v1::Pod {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            }),
        });
        asked.set_timeout(CHOICE_DEADLINE);
        let mut client = self.client.clone();
        // Also a master that is frozen holds no pod longer.
        let chosen = timeout(CHOICE_DEADLINE, client.choose_snapshot(asked)).await;
        match chosen.unwrap_or_else(|_| Err(Status::deadline_exceeded("it does not answer"))) {
            Ok(chosen) => {
                let chosen = chosen.into_inner();
                if chosen.job_unknown {
                    tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %dataset, "no operator says of which job a pod is: it sees the newest snapshot, whatever others of its job see");
                }
                Some(chosen.version)
            }
            Err(status) => {
                if status.code() != Code::Unimplemented {
                    tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %dataset, "the master does not choose a snapshot, and the newest is shown: {}", said(status.message()));
                }
                None
            }
        }
    }

    async fn ended(&self, dataset: &DatasetName) {
        let mut ended = tonic::Request::new(v1::EndMountRequest {
            dataset: dataset.to_string(),
            node: self.node.clone(),
        });
        ended.set_timeout(CONNECT_DEADLINE);
        let mut client = self.client.clone();
        let told = timeout(CONNECT_DEADLINE, client.end_mount(ended)).await;
        if let Ok(Err(status)) = told {
            tracing::debug!(%dataset, "the master was not told that a mount has ended: {}", said(status.message()));
        }
    }
}

/// Why a dataset cannot be mounted, by what the master says of it.
fn hindrance(dataset: &DatasetName, known: &v1::GetListingReply) -> Option<CsiError> {
    /// Reasons of conditions that say no more than that it is under way.
    const UNDER_WAY: [&str; 3] = ["Listing", "Queued", "Pending"];
    let name = shown(dataset);
    let condition = known.condition.clone().unwrap_or_default();
    if condition.deleting {
        return Some(leaving(dataset));
    }
    let reason = condition.reason.as_str();
    if !reason.is_empty() && !UNDER_WAY.contains(&reason) {
        let message = said(&condition.message);
        return Some(CsiError::NotReady(format!(
            "dataset {name} is not ready ({}): {message}; see kubectl describe datasets.weir.io {} -n {}",
            said(reason),
            dataset.name(),
            dataset.namespace()
        )));
    }
    let why = match (known.waits_for.as_str(), condition.message.as_str()) {
        ("", "") => "its sources are still being listed".to_owned(),
        ("", message) => said(message),
        (waits_for, _) => format!("its listing waits for {}", said(waits_for)),
    };
    let is_coming = known.under_way || !reason.is_empty();
    is_coming.then(|| CsiError::NotReady(format!("dataset {name} is not ready: {why}")))
}

fn leaving(dataset: &DatasetName) -> CsiError {
    CsiError::NotReady(format!(
        "dataset {} is being deleted, and no new pod can mount it; those that have it mounted keep it until they end",
        shown(dataset)
    ))
}

/// The namespaces that a specification lets in. None of one that says nothing of it, or cannot be read.
fn granted(spec: &str) -> Vec<String> {
    let spec: serde_json::Value = serde_json::from_str(spec).unwrap_or_default();
    let list = spec.pointer("/access/namespaces");
    let list = list.and_then(serde_json::Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|namespace| Some(namespace.as_str()?.to_owned()))
        .collect()
}

/// A request with a deadline.
fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_snapshot_is_meant_if_none_is_named_and_a_missing_one_is_said() {
        let known = Known {
            versions: vec![2, 3, 5],
            granted: Vec::new(),
            is_leaving: false,
        };
        let dataset: DatasetName = "team-a/x".parse().unwrap();
        let of = |version| known.snapshot(&dataset, version);
        assert_eq!(of(None).unwrap().version, 5);
        assert_eq!(of(Some(2)).unwrap().version, 2);
        let error = of(Some(4)).unwrap_err().to_string();
        assert!(error.contains("no snapshot 4; its newest is 5"), "{error}");
    }

    #[test]
    fn why_a_dataset_cannot_be_mounted_is_one_sentence_that_names_it() {
        let dataset: DatasetName = "team-a/x".parse().unwrap();
        let told = |under_way, waits_for: &str, reason: &str, message: &str| {
            let condition = v1::DatasetCondition {
                reason: reason.to_owned(),
                message: message.to_owned(),
                ..v1::DatasetCondition::default()
            };
            let known = v1::GetListingReply {
                under_way,
                waits_for: waits_for.to_owned(),
                condition: Some(condition).filter(|_| !reason.is_empty()),
            };
            hindrance(&dataset, &known).map(|error| {
                assert!(matches!(error, CsiError::NotReady(_)));
                error.to_string()
            })
        };
        assert_eq!(told(false, "", "", ""), None);
        for (under_way, waits_for, reason, message, expected) in [
            (
                true,
                "",
                "",
                "",
                "is not ready: its sources are still being listed",
            ),
            (
                true,
                "s3://b, which is silent",
                "",
                "",
                "waits for s3://b, which is silent",
            ),
            (
                true,
                "",
                "Listing",
                "its sources are being listed",
                "its sources are being listed",
            ),
            (
                false,
                "",
                "Queued",
                "too many others",
                "is not ready: too many others",
            ),
            (
                true,
                "s3://b",
                "AccessDenied",
                "s3://b: access denied (403)",
                "is not ready (AccessDenied): s3://b: access denied (403); see kubectl describe",
            ),
        ] {
            let told = told(under_way, waits_for, reason, message).unwrap();
            assert!(
                told.starts_with("dataset team-a/x ") && told.contains(expected),
                "{told}"
            );
        }
    }

    #[test]
    fn a_specification_lets_in_whom_it_names_and_nobody_else() {
        for (spec, namespaces) in [
            ("", &[][..]),
            (r#"{"sources":[]}"#, &[]),
            (r#"{"access":{"namespaces":"team-b"}}"#, &[]),
            (
                r#"{"access":{"namespaces":[7,"team-b","team-c"]}}"#,
                &["team-b", "team-c"],
            ),
        ] {
            assert_eq!(granted(spec), namespaces, "{spec}");
        }
    }
}
