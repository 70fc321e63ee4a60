//! What the apiserver asks before it stores an object: whether a Dataset or a Warmup makes sense, and where a pod should run.
//!
//! Nobody waits for it long: what cannot be told within [`DEADLINE`] is let through as it is, and counted. All replicas of the operator
//! answer, whoever leads.

mod affinity;
mod certificate;
mod located;
mod tls;
mod validation;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PartialObjectMeta, PostParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weir_core::{DatasetName, DatasetRef};

use self::affinity::{Mode, Warm, mark, patch, uses};
pub(crate) use self::certificate::CONFIGURATION;
use self::certificate::{ensure, trust};
use self::located::Located;
use self::tls::TlsListener;
use crate::error::OperatorError;
use crate::master::Master;
use crate::metrics::{Asked, OperatorMetrics};
use crate::objects::{AFFINITY_ANNOTATION, Dataset, PLACED_ANNOTATION};
use crate::view::View;

/// Longest answer. The apiserver itself waits for a second.
const DEADLINE: Duration = Duration::from_millis(800);
/// Longest request: an object twice, as it is and as it was.
const MAX_REQUEST: usize = 8 << 20;
/// How often the certificate and the configurations are looked at, and how often while that fails or they are missing.
const LOOK: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Datasets of one pod that are looked for.
const MAX_DATASETS: usize = 64;

/// What answers share.
pub(crate) struct Webhook {
    client: Client,
    master: Arc<dyn Master>,
    view: Arc<View>,
    metrics: Arc<OperatorMetrics>,
    located: Located,
    /// What Datasets say of themselves.
    datasets: Store<PartialObjectMeta<Dataset>>,
}

/// Serves the webhook until `stop`.
pub(crate) async fn serve(
    listen: SocketAddr,
    namespace: &str,
    client: Client,
    master: Arc<dyn Master>,
    view: Arc<View>,
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
    let (datasets, writer) = reflector::store();
    let webhook = Arc::new(Webhook {
        client: client.clone(),
        master,
        view,
        metrics,
        located: Located::default(),
        datasets,
    });
    let router = Router::new()
        .route("/mutate", post(mutate))
        .route("/validate", post(validate))
        .route("/healthz", get(async || "ok\n"))
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(webhook);
    let watched = Api::<PartialObjectMeta<Dataset>>::all(client.clone());
    let watched = watcher(watched, watcher::Config::default());
    let watched = reflector(writer, watched)
        .default_backoff()
        .touched_objects()
        .for_each(|_| std::future::ready(()));
    let renewing = async {
        loop {
            let renewed = async {
                let certificate = ensure(&client, namespace).await?;
                let is_known = trust(&client, &certificate.authorities).await?;
                Ok::<_, OperatorError>((certificate, is_known))
            };
            let wait = match renewed.await {
                Ok((certificate, is_known)) => match certificate.server_config() {
                    Ok(new) => {
                        config.send_replace(new);
                        if is_known { LOOK } else { LOOK_AGAIN }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the webhook's certificate cannot be used");
                        LOOK_AGAIN
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "the apiserver may not trust the webhook");
                    LOOK_AGAIN
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
        () = watched => Ok(()),
        () = renewing => Ok(()),
    }
}

/// What becomes of a pod.
#[derive(Debug)]
enum Placed {
    /// Its changes; none if there is nothing to be said.
    Changes(Vec<Value>),
    /// The master has not said in time where its data is.
    Unknown,
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

    fn refuse(&self, message: &str) -> Response {
        self.answer(json!({
            "allowed": false,
            "status": { "code": 422, "reason": "Invalid", "message": message },
        }))
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
        Ok(Placed::Unknown) => ("unknown", review.let_through()),
        Ok(Placed::Changes(patch)) if patch.is_empty() => ("unchanged", review.let_through()),
        Ok(Placed::Changes(patch)) => {
            let patch = STANDARD.encode(Value::Array(patch).to_string());
            let response = json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch });
            ("placed", review.answer(response))
        }
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
    /// The changes of a pod.
    async fn place(&self, review: &Review) -> Placed {
        let pod = &review.request["object"];
        let annotations = &pod["metadata"]["annotations"];
        let said = |key: &str| annotations[key].as_str();
        let is_placed = said(PLACED_ANNOTATION).is_some() || pod["spec"]["nodeName"].is_string();
        let own_mode = said(AFFINITY_ANNOTATION).and_then(Mode::read);
        if is_placed || own_mode == Some(Mode::Off) {
            return Placed::Changes(Vec::new());
        }
        let mut mode = own_mode.unwrap_or_default();
        let mut located = Vec::new();
        let mut names = Vec::new();
        let mut is_missed = false;
        for name in self.datasets_of(pod, &review.namespace) {
            if own_mode.is_none() {
                match self.mode_of(&name) {
                    Some(Mode::Off) => continue,
                    Some(Mode::Required) => mode = Mode::Required,
                    _ => {}
                }
            }
            match self.located.get(&*self.master, &name).await {
                Some(reply) => {
                    located.push(reply);
                    names.push(name.to_string());
                }
                None => is_missed = true,
            }
        }
        if is_missed && located.is_empty() {
            return Placed::Unknown;
        }
        let mut changes = patch(pod, &Warm::of(&located), mode);
        if !changes.is_empty() {
            changes.extend(mark(pod, PLACED_ANNOTATION, &names.join(",")));
        }
        Placed::Changes(changes)
    }

    /// The datasets that a pod of a namespace uses.
    fn datasets_of(&self, pod: &Value, namespace: &str) -> Vec<DatasetName> {
        let uses = uses(pod);
        let claims = uses
            .claims
            .iter()
            .filter_map(|claim| self.view.of_claim(namespace, claim));
        let inline = uses.inline.iter().filter_map(|named| {
            let named = match named.split_once('/') {
                Some(_) => named.clone(),
                None => format!("{namespace}/{named}"),
            };
            Some(named.parse::<DatasetRef>().ok()?.dataset)
        });
        let mut names: Vec<DatasetName> = claims.chain(inline).collect();
        names.sort_unstable();
        names.dedup();
        names.truncate(MAX_DATASETS);
        names
    }

    /// What a Dataset says of pods that use it.
    fn mode_of(&self, name: &DatasetName) -> Option<Mode> {
        let object = ObjectRef::new(name.name()).within(name.namespace());
        let object = self.datasets.get(&object)?;
        Mode::read(object.annotations().get(AFFINITY_ANNOTATION)?)
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
