//! An apiserver in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::json_patch::applied;

/// Content type of what is applied from the server's side.
const APPLY: &[u8] = b"application/apply-patch";
/// Kinds of objects that are listed.
const COLLECTIONS: [&str; 7] = [
    "persistentvolumes",
    "persistentvolumeclaims",
    "pods",
    "events",
    "datasets",
    "warmups",
    "leases",
];

/// An apiserver that knows just enough.
#[derive(Default)]
pub(crate) struct FakeApi {
    objects: Mutex<BTreeMap<String, Value>>,
    /// Requests that change something, as `DELETE path`.
    log: Mutex<Vec<String>>,
    /// All that was sent, for tests that look for secrets.
    sent: Mutex<String>,
    numbers: Mutex<u64>,
    refused: Mutex<HashMap<String, u16>>,
    reviews: Mutex<HashMap<String, Value>>,
    /// Refused once.
    refused_next: Mutex<HashMap<String, u16>>,
}

impl FakeApi {
    pub(crate) fn start() -> (Client, Arc<Self>) {
        let api = Arc::new(Self::default());
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let answering = api.clone();
        tokio::spawn(async move {
            while let Some((request, send)) = handle.next_request().await {
                let response = answering.answer(request).await;
                send.send_response(response);
            }
        });
        (Client::new(service, "default"), api)
    }

    pub(crate) fn put(&self, path: &str, mut object: Value) {
        self.stamp(&mut object);
        self.objects.lock().insert(path.to_owned(), object);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().get(path).cloned()
    }

    /// All objects of a list.
    pub(crate) fn all(&self, list: &str) -> Vec<Value> {
        let objects = self.objects.lock();
        let listed = objects.iter().filter(|(path, _)| is_in(path, list));
        listed.map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn remove(&self, path: &str) {
        self.objects.lock().remove(path);
    }

    /// Answers requests of a path, or only those of a method (`PATCH path`), with this status from now on; 0 ends that.
    pub(crate) fn refuse(&self, path: &str, code: u16) {
        self.refused.lock().insert(path.to_owned(), code);
    }

    /// Gives reviews that are made at a path this status from now on.
    pub(crate) fn review(&self, path: &str, status: Value) {
        self.reviews.lock().insert(path.to_owned(), status);
    }

    /// Answers the next request of a path with this status.
    pub(crate) fn refuse_next(&self, path: &str, code: u16) {
        self.refused_next.lock().insert(path.to_owned(), code);
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    pub(crate) fn sent(&self) -> String {
        self.sent.lock().clone()
    }

    /// Gives an object what the apiserver gives each.
    fn stamp(&self, object: &mut Value) {
        let mut numbers = self.numbers.lock();
        *numbers += 1;
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{numbers}"));
            metadata["generation"] = json!(1);
        }
        metadata["resourceVersion"] = json!(numbers.to_string());
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        self.sent.lock().push_str(&String::from_utf8_lossy(&body));
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let full = parts.uri.path().to_owned();
        if parts.method != Method::GET {
            let line = format!("{} {full}", parts.method);
            self.log.lock().push(line);
        }
        let once = self.refused_next.lock().remove(&full);
        let refused = |what: &str| self.refused.lock().get(what).copied();
        let always = refused(&full).or_else(|| refused(&format!("{} {full}", parts.method)));
        if let Some(code) = once.or(always).filter(|code| *code > 0) {
            return refusal(code);
        }
        let (path, subresource) = match full.strip_suffix("/status") {
            Some(path) => (path.to_owned(), true),
            None => (full, false),
        };
        match parts.method {
            Method::GET => self.read(&path, parts.uri.query().unwrap_or_default()),
            Method::POST if self.reviews.lock().contains_key(&path) => {
                let mut review = body;
                review["status"] = self.reviews.lock()[&path].clone();
                found(Some(review))
            }
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{path}/{name}");
                if self.get(&path).is_some() {
                    return refusal(409);
                }
                self.put(&path, body);
                found(self.get(&path))
            }
            Method::PUT => {
                let Some(before) = self.get(&path) else {
                    return refusal(404);
                };
                if before["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return refusal(409);
                }
                self.put(&path, body);
                found(self.get(&path))
            }
            Method::PATCH => {
                let query = parts.uri.query().unwrap_or_default();
                let mut parameters = query.split('&');
                let manager = parameters.find_map(|part| part.strip_prefix("fieldManager="));
                let kind = parts.headers.get(CONTENT_TYPE);
                let is_apply = kind.is_some_and(|kind| kind.as_bytes().starts_with(APPLY));
                let manager = manager.filter(|_| is_apply && !subresource);
                self.patch(&path, subresource, body, manager)
            }
            Method::DELETE => self.delete(&path),
            _ => refusal(405),
        }
    }

    fn read(&self, path: &str, query: &str) -> Response<Body> {
        let last = path.rsplit('/').next().unwrap_or_default();
        if !COLLECTIONS.contains(&last) {
            let object = self.get(path);
            return object.map_or_else(|| missing(last), |object| found(Some(object)));
        }
        let query = percent_decoded(query);
        let selector = query
            .split('&')
            .find_map(|part| part.strip_prefix("labelSelector="));
        let wanted: Vec<(&str, &str)> = selector
            .into_iter()
            .flat_map(|selector| selector.split(','))
            .filter_map(|one| one.split_once('='))
            .collect();
        let objects = self.objects.lock();
        let items: Vec<&Value> = objects
            .iter()
            .filter(|(key, _)| is_in(key, path))
            .map(|(_, object)| object)
            .filter(|object| {
                let labels = &object["metadata"]["labels"];
                wanted.iter().all(|(key, value)| labels[*key] == *value)
            })
            .collect();
        found(Some(json!({ "metadata": {}, "items": items })))
    }

    /// Changes an object. `applied_by` applies it from the server's side.
    fn patch(
        &self,
        path: &str,
        is_status: bool,
        body: Value,
        applied_by: Option<&str>,
    ) -> Response<Body> {
        let before = self.get(path);
        let is_new = before.is_none();
        if is_new && (is_status || body.is_array() || body["kind"].is_null()) {
            return refusal(404);
        }
        let mut object = before.unwrap_or_else(|| json!({}));
        if body.is_array() {
            return self.patch_json(path, &object, &body);
        }
        let version = &body["metadata"]["resourceVersion"];
        if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
            return refusal(409);
        }
        if is_status {
            object["status"] = body["status"].clone();
        } else {
            if let Some(manager) = applied_by {
                own(&mut object, &body, manager);
            }
            merge(&mut object, &body);
        }
        let is_leaving = !object["metadata"]["deletionTimestamp"].is_null();
        let held = object["metadata"]["finalizers"].as_array();
        if is_leaving && held.is_none_or(Vec::is_empty) {
            self.remove(path);
            return found(Some(object));
        }
        if is_new && path.contains("/persistentvolumeclaims/") {
            self.bind(&mut object);
        }
        self.put(path, object);
        found(self.get(path))
    }

    fn patch_json(&self, path: &str, before: &Value, patch: &Value) -> Response<Body> {
        match applied(before, patch) {
            Ok(object)
                if object["metadata"]["resourceVersion"]
                    == before["metadata"]["resourceVersion"] =>
            {
                self.put(path, object);
                found(self.get(path))
            }
            Ok(_) => refusal(409),
            Err(_) => refusal(422),
        }
    }

    /// What the controller of volumes does with a new claim.
    fn bind(&self, claim: &mut Value) {
        self.stamp(claim);
        let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default();
        let path = format!("/api/v1/persistentvolumes/{volume}");
        if let Some(volume) = self.objects.lock().get_mut(&path) {
            volume["spec"]["claimRef"]["uid"] = claim["metadata"]["uid"].clone();
            claim["status"]["phase"] = json!("Bound");
        }
    }

    fn delete(&self, path: &str) -> Response<Body> {
        let Some(mut object) = self.get(path) else {
            return refusal(404);
        };
        let held = object["metadata"]["finalizers"].as_array();
        if held.is_none_or(Vec::is_empty) {
            self.remove(path);
        } else {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            self.put(path, object.clone());
        }
        found(Some(object))
    }
}

/// Whether an object is in a list: of a namespace, of the cluster, or of all namespaces.
fn is_in(object: &str, list: &str) -> bool {
    let Some((collection, name)) = object.rsplit_once('/') else {
        return false;
    };
    let without_namespace = || {
        let (before, rest) = collection.split_once("/namespaces/")?;
        let (_, kind) = rest.split_once('/')?;
        Some(format!("{before}/{kind}"))
    };
    !name.is_empty() && (collection == list || without_namespace().as_deref() == Some(list))
}

/// Gives the annotations of a patch to whoever applies it, and takes those away that it has no more. Of one who applies alone.
fn own(object: &mut Value, patch: &Value, manager: &str) {
    const OWNED: &str = "/metadata/managedFields/0/fieldsV1/f:metadata/f:annotations";
    let annotations = &patch["metadata"]["annotations"];
    let before = object.pointer(OWNED).and_then(Value::as_object).cloned();
    for field in before.unwrap_or_default().keys() {
        let key = field.trim_start_matches("f:");
        if annotations[key].is_null()
            && let Some(there) = object["metadata"]["annotations"].as_object_mut()
        {
            there.remove(key);
        }
    }
    let owned = annotations
        .as_object()
        .into_iter()
        .flat_map(|all| all.keys());
    let owned: serde_json::Map<String, Value> =
        owned.map(|key| (format!("f:{key}"), json!({}))).collect();
    object["metadata"]["managedFields"] = json!([{
        "manager": manager, "operation": "Apply",
        "fieldsV1": { "f:metadata": { "f:annotations": owned } },
    }]);
}

fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    let Value::Object(fields) = object else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn percent_decoded(query: &str) -> String {
    query
        .replace("%2F", "/")
        .replace("%3D", "=")
        .replace("%2C", ",")
}

fn found(object: Option<Value>) -> Response<Body> {
    let Some(object) = object else {
        return refusal(404);
    };
    Response::new(Body::from(object.to_string().into_bytes()))
}

/// The answer about an object that is not there, of a kind that is.
fn missing(name: &str) -> Response<Body> {
    refusal_of(404, &json!({ "name": name, "kind": "things" }))
}

fn refusal(code: u16) -> Response<Body> {
    refusal_of(code, &json!({}))
}

fn refusal_of(code: u16, details: &Value) -> Response<Body> {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": reason, "message": format!("refused with {code}"), "details": details,
    });
    let mut response = Response::new(Body::from(status.to_string().into_bytes()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}
