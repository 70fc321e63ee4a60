//! Certificates for Weir's pods, signed with the cluster's authority.
//!
//! Nobody but the operator reads the authority's key. A pod makes a key of its own and asks with the token that kubelet has projected
//! into it, for the audience `weir-operator`. The apiserver says whose token it is ([`token`]), which service accounts may have which
//! role stands in a table, and all that the certificate says is taken from the pod as the apiserver knows it ([`pods`]); the asker has
//! no say in it. All replicas sign, whoever leads, and none needs the master.

mod own;
mod pods;
mod published;
mod token;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::Api;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use weir_proto::v1;
use weir_proto::v1::certificates_server::{Certificates, CertificatesServer};
use weir_trust::{
    Authority, Caller, Counted, Identity, Issued, Limits, Places, Refusals, RequestedKey, Role,
    TrustError, Validity, incoming_shown,
};

pub use self::own::OwnCertificate;
use self::token::Bearer;
use crate::error::OperatorError;
use crate::metrics::{OperatorMetrics, Signed};

/// How long certificates are good for.
pub(crate) const LIFE: Duration = Duration::from_hours(24);
/// Whom tokens must be made for.
pub(crate) const AUDIENCE: &str = "weir-operator";
/// What pods with each service account of the operator's namespace are.
const ROLES: [(&str, Role); 3] = [
    ("weir-master", Role::Master),
    ("weir-worker", Role::Worker),
    ("weir-plugin", Role::Mount),
];
/// Longest answer of the apiserver, and longest wait for one's turn to ask it.
const APISERVER_DEADLINE: Duration = Duration::from_secs(5);
const TURN_DEADLINE: Duration = Duration::from_secs(5);
/// Askers for whom the apiserver is asked at once, who may wait for that from one address, and who may wait in all. Behind one address
/// may be a whole node.
const MAX_ASKING: usize = 16;
const MAX_OF_ADDRESS: usize = 32;
const MAX_WAITING: usize = 2048;
/// Longest message: a request and a token.
const MAX_MESSAGE: usize = 32 << 10;
const MAX_TOKEN: usize = 16 << 10;
/// What a refusal takes, in which the asker has its place: nobody has the apiserver read tokens faster than that.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// Certificates of one pod in an hour. A container that is started again and again has one each time.
const MAX_OF_POD: u32 = 30;
const HOUR: Duration = Duration::from_hours(1);

/// Labels of an object.
type Labels = BTreeMap<String, String>;

/// What an operator that signs certificates needs to know.
#[derive(Clone, Debug)]
pub struct SigningConfig {
    /// Where pods ask.
    pub listen: SocketAddr,
    /// Directory of the authority.
    pub authority: PathBuf,
    /// Who the operator is, whose certificate is of the same authority.
    pub identity: Arc<Identity>,
}

/// Signs certificates, and publishes which authorities are to be trusted, until `stop`.
pub(crate) async fn serve(
    config: &SigningConfig,
    namespace: &str,
    client: Client,
    metrics: Arc<OperatorMetrics>,
    stop: &CancellationToken,
) -> Result<(), OperatorError> {
    let failed = |error: String| OperatorError::Signing(config.listen, error);
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.map_err(|error| failed(error.to_string()))?;
    let limits = Limits {
        handshakes_per_address: MAX_OF_ADDRESS,
        per_caller: MAX_OF_ADDRESS * 4,
        ..Limits::default()
    };
    let incoming = incoming_shown(listener, config.identity.clone(), limits, stop.clone());
    let desk = Desk::new(client.clone(), namespace, config.authority.clone(), metrics);
    let service = CertificatesServer::new(desk).max_decoding_message_size(MAX_MESSAGE);
    let routes = tonic::service::Routes::new(service);
    tracing::info!(listen = %config.listen, "certificates are signed");
    tokio::select! {
        served = weir_trust::serve(routes, incoming, stop.clone()) => {
            served.map_err(|error| failed(error.to_string()))
        }
        never = published::keep(&client, namespace, &config.authority) => match never {},
    }
}

/// Where pods ask.
struct Desk {
    client: Client,
    namespace: String,
    authority: PathBuf,
    metrics: Arc<OperatorMetrics>,
    waiting: Places,
    asking: Semaphore,
    given: Mutex<Given>,
    log: Refusals,
}

/// How many certificates each pod was given in this hour. Only pods that the apiserver has vouched for are counted.
struct Given {
    since: Instant,
    by_pod: HashMap<String, u32>,
}

impl Desk {
    fn new(
        client: Client,
        namespace: &str,
        authority: PathBuf,
        metrics: Arc<OperatorMetrics>,
    ) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            authority,
            metrics,
            waiting: Places::new("requests for certificates"),
            asking: Semaphore::new(MAX_ASKING),
            given: Mutex::new(Given {
                since: Instant::now(),
                by_pod: HashMap::new(),
            }),
            log: Refusals::default(),
        }
    }

    async fn answer(&self, asked: v1::SignRequest) -> Result<v1::SignReply, Status> {
        let role = role(&asked.role)?;
        if asked.token.is_empty() || asked.token.len() > MAX_TOKEN {
            return Err(Status::invalid_argument(format!(
                "a token has 1 to {MAX_TOKEN} bytes, and this one has {}",
                asked.token.len()
            )));
        }
        // Costs the apiserver nothing.
        let key = RequestedKey::read(&asked.request);
        let key = key.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let turn = timeout(TURN_DEADLINE, self.asking.acquire()).await;
        let turn = turn.map_err(|_| {
            Status::unavailable(format!(
                "more ask than can be answered within {TURN_DEADLINE:?}"
            ))
        })?;
        let known = timeout(APISERVER_DEADLINE, self.known(&asked.token, role)).await;
        drop(turn);
        let (pod, labels, bearer) = known.map_err(|_| {
            Status::unavailable(format!(
                "the apiserver did not say within {APISERVER_DEADLINE:?} who asks"
            ))
        })??;
        let (subject, addresses) = pods::named(&pod, &labels, role)?;
        self.count(&bearer.uid)?;
        let authority = self.authority.clone();
        let name = subject.clone();
        let signed = tokio::task::spawn_blocking(move || -> Result<Issued, TrustError> {
            let validity = Validity {
                issued: LIFE,
                ..Validity::default()
            };
            // Read each time: it may have been replaced.
            Authority::open(&authority, validity)?.sign(&key, &name, &addresses)
        });
        let signed = signed
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let issued = signed.map_err(|error| {
            tracing::error!("no certificate can be signed: {error}");
            Status::unavailable("the operator cannot use the cluster's authority; its log says why")
        })?;
        tracing::info!(%subject, pod = bearer.pod, "a certificate was signed");
        Ok(v1::SignReply {
            certificate: issued.certificate,
            authorities: issued.authorities,
        })
    }

    /// The pod that a token was made for, if pods like it may have a role, and the labels of its node where they matter.
    async fn known(&self, token: &str, role: Role) -> Result<(Pod, Labels, Bearer), Status> {
        let bearer = token::review(&self.client, token).await?;
        bearer.may_be(role, &self.namespace)?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = pods.get_opt(&bearer.pod).await;
        let pod = pod.map_err(|error| {
            Status::unavailable(format!(
                "the apiserver does not say which pod asks: {error}"
            ))
        })?;
        let pod = pods::same(pod, &bearer)?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let labels = match node {
            Some(node) if pods::is_placed(&pod, role) => {
                let nodes: Api<Node> = Api::all(self.client.clone());
                let node = nodes.get_metadata(&node).await.map_err(|error| {
                    let text = format!("the apiserver does not say where the node is: {error}");
                    Status::unavailable(text)
                })?;
                node.metadata.labels.unwrap_or_default()
            }
            _ => Labels::new(),
        };
        Ok((pod, labels, bearer))
    }

    fn count(&self, uid: &str) -> Result<(), Status> {
        let mut given = self.given.lock();
        if given.since.elapsed() >= HOUR {
            given.since = Instant::now();
            given.by_pod.clear();
        }
        let count = given.by_pod.entry(uid.to_owned()).or_default();
        if *count >= MAX_OF_POD {
            return Err(Status::resource_exhausted(format!(
                "this pod was given {MAX_OF_POD} certificates within an hour; look why it does not keep them"
            )));
        }
        *count += 1;
        Ok(())
    }
}

#[tonic::async_trait]
impl Certificates for Desk {
    async fn sign(
        &self,
        request: Request<v1::SignRequest>,
    ) -> Result<Response<v1::SignReply>, Status> {
        let caller = Caller::of(&request)?.clone();
        let taken = self
            .waiting
            .take(Counted::of(&caller), MAX_OF_ADDRESS, MAX_WAITING);
        let asked = request.into_inner();
        let role = role(&asked.role).map_or("none", Role::as_str);
        let (_place, answer) = match taken {
            Ok(place) => (Some(place), self.answer(asked).await),
            Err(why) => (None, Err(Status::resource_exhausted(why))),
        };
        let result = result(&answer);
        self.metrics
            .signatures
            .get_or_create(&Signed { role, result })
            .inc();
        if let Err(status) = &answer {
            let why = status.message();
            if result == "failed" {
                tracing::info!(%caller, role, "no certificate yet: {why}");
            } else {
                let why = format!("{caller} asked for a certificate of role {role}: {why}");
                self.log.tell(&why);
            }
            if result == "refused" {
                sleep(REFUSAL_PAUSE).await;
            }
        }
        answer.map(Response::new)
    }
}

/// A role that some pods may have.
fn role(text: &str) -> Result<Role, Status> {
    let found = ROLES.iter().find(|(_, role)| role.as_str() == text);
    let found = found.map(|(_, role)| *role);
    found.ok_or_else(|| {
        Status::invalid_argument(format!(
            "no pod is given a certificate of role {text:?}: ask for master, worker or mount"
        ))
    })
}

/// How an answer is counted.
fn result<T>(answer: &Result<T, Status>) -> &'static str {
    match answer.as_ref().map_err(Status::code) {
        Ok(_) => "signed",
        Err(Code::ResourceExhausted) => "crowded",
        Err(Code::PermissionDenied | Code::InvalidArgument | Code::Unauthenticated) => "refused",
        Err(_) => "failed",
    }
}

#[cfg(test)]
mod tests;
