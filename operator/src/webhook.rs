//! What the apiserver asks before it stores an object: whether a Dataset or a Warmup makes sense, and where a pod should run.
//!
//! Nobody waits for it long: what cannot be told within [`DEADLINE`] is let through as it is, and counted. All replicas of the operator
//! answer, whoever leads.

mod certificate;
mod tls;
mod validation;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::certificate::CONFIGURATION;
use self::certificate::{ensure, trust};
use self::tls::TlsListener;
use crate::error::OperatorError;
use crate::gates;
use crate::json_patch::JsonPatch;
use crate::metrics::{Asked, OperatorMetrics};
use crate::placing::{Placed, Placing};

/// Longest answer. The apiserver itself waits for a second.
const DEADLINE: Duration = Duration::from_millis(800);
/// Longest request: an object twice, as it is and as it was.
const MAX_REQUEST: usize = 8 << 20;
/// How often the certificate and the configurations are looked at, and how often while that fails or they are missing. Of several
/// replicas that begin together one alone writes at the first attempt, so the next one comes soon.
const LOOK: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_secs(10);
const LOOK_SOON: Duration = Duration::from_millis(500);

/// What answers share.
pub(crate) struct Webhook {
    client: Client,
    placing: Arc<Placing>,
    metrics: Arc<OperatorMetrics>,
    /// The apiserver has been given the certificate, or has no configuration by which it would ask.
    is_trusted: AtomicBool,
}

/// Serves the webhook until `stop`.
pub(crate) async fn serve(
    listen: SocketAddr,
    namespace: &str,
    client: Client,
    placing: Arc<Placing>,
    metrics: Arc<OperatorMetrics>,
    stop: &CancellationToken,
) -> Result<(), OperatorError> {
    let first = loop {
        match ensure(&client, namespace).await {
            Ok(certificate) => break certificate,
            Err(error) => tracing::warn!(%error, "the webhook has no certificate yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    };
    let failed = |error: std::io::Error| OperatorError::Webhook(listen, error.to_string());
    let (config, configs) = watch::channel(first.server_config().map_err(failed)?);
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let listener = TlsListener::new(listener, configs, stop.clone()).map_err(failed)?;
    let webhook = Arc::new(Webhook {
        client: client.clone(),
        placing,
        metrics,
        is_trusted: AtomicBool::new(false),
    });
    let router = Router::new()
        .route("/mutate", post(mutate))
        .route("/validate", post(validate))
        .route("/healthz", get(healthz))
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(webhook.clone());
    let renewing = async {
        let mut soon = LOOK_SOON;
        loop {
            let renewed = async {
                let certificate = ensure(&client, namespace).await?;
                let is_known = trust(&client, &certificate.authorities).await?;
                webhook.is_trusted.store(true, Ordering::Relaxed);
                Ok::<_, OperatorError>((certificate, is_known))
            };
            let wait = match renewed.await {
                Ok((certificate, is_known)) => match certificate.server_config() {
                    Ok(new) => {
                        config.send_replace(new);
                        soon = LOOK_SOON;
                        if is_known { LOOK } else { LOOK_AGAIN }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the webhook's certificate cannot be used");
                        LOOK_AGAIN
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "the apiserver may not trust the webhook");
                    let wait = soon;
                    soon = LOOK_AGAIN.min(2 * soon);
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    };
    let served =
        axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    tracing::info!(%listen, "the webhook is served");
    tokio::select! {
        served = served.into_future() => served.map_err(failed),
        () = renewing => Ok(()),
    }
}

/// What becomes of a pod.
#[derive(Debug)]
enum Answer {
    /// Its changes; none if there is nothing to be said.
    Changes(JsonPatch),
    /// The changes by which it waits for its data.
    Waits(JsonPatch),
    /// The master has not said in time where its data is.
    Unknown,
    /// What is wrong with it.
    Refused(String),
}

/// What the apiserver asks about.
struct Review {
    uid: String,
    namespace: String,
    request: Value,
}

impl Review {
    fn read(body: &[u8]) -> Option<Self> {
        let mut review: Value = serde_json::from_slice(body).ok()?;
        let request = review.get_mut("request")?.take();
        let text = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
        Some(Self {
            uid: request["uid"].as_str()?.to_owned(),
            namespace: text("namespace"),
            request,
        })
    }

    fn answer(&self, mut response: Value) -> Response {
        response["uid"] = json!(self.uid);
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "response": response,
        });
        (
            [(header::CONTENT_TYPE, "application/json")],
            review.to_string(),
        )
            .into_response()
    }

    fn let_through(&self) -> Response {
        self.answer(json!({ "allowed": true }))
    }

    fn change(&self, patch: JsonPatch) -> Response {
        let patch = STANDARD.encode(patch.into_value().to_string());
        self.answer(json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch }))
    }

    fn refuse(&self, message: &str) -> Response {
        self.answer(json!({
            "allowed": false,
            "status": { "code": 422, "reason": "Invalid", "message": message },
        }))
    }
}

/// Ready when the apiserver can ask: until then it lets pods through that should wait, and `helm install --wait` is to end later.
async fn healthz(State(webhook): State<Arc<Webhook>>) -> (StatusCode, &'static str) {
    if webhook.is_trusted.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        let why = "the apiserver has not been given the webhook's certificate yet\n";
        (StatusCode::SERVICE_UNAVAILABLE, why)
    }
}

async fn mutate(State(webhook): State<Arc<Webhook>>, body: Bytes) -> Response {
    let began = Instant::now();
    let Some(review) = Review::read(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let placed = tokio::time::timeout(DEADLINE, webhook.place(&review)).await;
    let (result, response) = match placed {
        Err(_) => ("late", review.let_through()),
        Ok(Answer::Unknown) => ("unknown", review.let_through()),
        Ok(Answer::Refused(why)) => ("refused", review.refuse(&why)),
        Ok(Answer::Changes(patch) | Answer::Waits(patch)) if patch.is_empty() => {
            ("unchanged", review.let_through())
        }
        Ok(Answer::Changes(patch)) => ("placed", review.change(patch)),
        Ok(Answer::Waits(patch)) => ("gated", review.change(patch)),
    };
    webhook.metrics.asked("pods", result, began);
    response
}

async fn validate(State(webhook): State<Arc<Webhook>>, body: Bytes) -> Response {
    let began = Instant::now();
    let Some(review) = Review::read(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let judged = tokio::time::timeout(DEADLINE, webhook.judge(&review)).await;
    let (result, response) = match judged {
        Ok(Ok(())) => ("allowed", review.let_through()),
        Ok(Err(message)) => ("refused", review.refuse(&message)),
        // A right that could not be proven is none.
        Err(_) => (
            "late",
            review.refuse(
                "the apiserver did not say in time whether you may read the Secret; try again",
            ),
        ),
    };
    webhook.metrics.asked("objects", result, began);
    response
}

impl Webhook {
    /// The changes of a pod. One that is to wait gets its terms when it has waited.
    async fn place(&self, review: &Review) -> Answer {
        let pod = &review.request["object"];
        let reads = || !self.placing.datasets_of(pod, &review.namespace).is_empty();
        match gates::close(pod, reads) {
            Err(why) => return Answer::Refused(why.to_string()),
            Ok(Some(changes)) => return Answer::Waits(changes),
            Ok(None) => {}
        }
        match self.placing.place(pod, &review.namespace).await {
            Placed::Changes(changes) => Answer::Changes(changes),
            Placed::Unknown => Answer::Unknown,
        }
    }

    /// Whether an object may be stored, or why not.
    async fn judge(&self, review: &Review) -> Result<(), String> {
        let request = &review.request;
        let (object, old) = (&request["object"], &request["oldObject"]);
        match request["kind"]["kind"].as_str().unwrap_or_default() {
            "Dataset" => {
                let name = request["name"]
                    .as_str()
                    .or(object["metadata"]["name"].as_str());
                let name = name.unwrap_or_default();
                let secrets = validation::dataset(&review.namespace, name, object, old)?;
                for secret in secrets {
                    self.may_read(review, &secret).await?;
                }
                Ok(())
            }
            "Warmup" => validation::warmup(&review.namespace, object, old),
            "CachePool" => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                validation::pool(name, object, old)
            }
            _ => Ok(()),
        }
    }

    /// Fails unless who makes a Dataset may read the Secret that it names.
    async fn may_read(&self, review: &Review, secret: &str) -> Result<(), String> {
        let user = &review.request["userInfo"];
        let name = user["username"].as_str().unwrap_or_default();
        let asked = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(name.to_owned()),
                uid: user["uid"].as_str().map(str::to_owned),
                groups: serde_json::from_value(user["groups"].clone()).ok(),
                extra: serde_json::from_value(user["extra"].clone()).ok(),
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(review.namespace.clone()),
                    verb: Some("get".to_owned()),
                    resource: Some("secrets".to_owned()),
                    name: Some(secret.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &asked).await;
        let answer = answer.map_err(|error| {
            format!(
                "whether {name} may read Secret {secret} cannot be told now ({error}); try again"
            )
        })?;
        if answer.status.is_some_and(|status| status.allowed) {
            return Ok(());
        }
        Err(format!(
            "{name} may not read Secret {secret}, and so may not name it in a Dataset; name another one, or ask for the right to get it"
        ))
    }
}

impl OperatorMetrics {
    /// Counts an answer.
    fn asked(&self, about: &'static str, result: &'static str, began: Instant) {
        self.answers.get_or_create(&Asked { about, result }).inc();
        self.answer_seconds.observe(began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
