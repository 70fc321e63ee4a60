//! An apiserver and a master in memory, for tests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use kube::runtime::events::Recorder;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use weir_core::{CredentialName, DatasetName, DatasetSpec};
use weir_proto::v1;

use crate::context::Context;
use crate::json_patch::applied;
use crate::listings::Listings;
use crate::master::{Known, Master, MasterError, Refusal, Survey};
use crate::metrics::OperatorMetrics;
use crate::placing::Placing;
use crate::pools::Pools;
use crate::view::View;

/// What looks at objects share, with a view that knows nothing yet.
pub(crate) fn context(client: Client, master: &Arc<FakeMaster>) -> Context {
    let view = Arc::new(View::default());
    let metrics = OperatorMetrics::register(&mut Registry::default());
    let (ended, _) = mpsc::channel(1);
    let (placing, _) = Placing::new(master.clone(), view.clone());
    Context {
        client: client.clone(),
        master: master.clone(),
        view: view.clone(),
        placing: Arc::new(placing),
        listings: Listings::new(master.clone(), view, metrics.clone(), ended),
        recorder: Recorder::new(client, "weir-operator".into()),
        metrics,
        pools: Pools::default(),
    }
}

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
            Method::PATCH => self.patch(&path, subresource, body),
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

    fn patch(&self, path: &str, is_status: bool, body: Value) -> Response<Body> {
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

/// A master in memory.
pub(crate) struct FakeMaster {
    state: Mutex<FakeState>,
}

impl Default for FakeMaster {
    fn default() -> Self {
        let state = FakeState {
            mounted: Some(Vec::new()),
            ..FakeState::default()
        };
        Self {
            state: Mutex::new(state),
        }
    }
}

#[derive(Default)]
struct FakeState {
    datasets: HashMap<String, Known>,
    credentials: HashMap<String, v1::Credential>,
    calls: Vec<String>,
    /// Datasets whose listing never ends.
    hung: HashSet<String>,
    refused: HashMap<String, MasterError>,
    jobs: HashMap<u64, v1::Job>,
    workers: BTreeMap<String, v1::WorkerStatus>,
    is_away: bool,
    /// Pods of which it is asked whose they are, and what was said.
    asked: Vec<v1::Pod>,
    /// Nodes that have any dataset mounted; none before that is known.
    mounted: Option<Vec<String>>,
    pod_jobs: HashMap<String, String>,
}

impl FakeMaster {
    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    pub(crate) fn hang(&self, name: &str) {
        self.state.lock().hung.insert(name.to_owned());
    }

    pub(crate) fn refuse(&self, name: &str, error: MasterError) {
        self.state.lock().refused.insert(name.to_owned(), error);
    }

    pub(crate) fn accept(&self, name: &str) {
        self.state.lock().refused.remove(name);
    }

    pub(crate) fn go_away(&self, is_away: bool) {
        self.state.lock().is_away = is_away;
    }

    /// Forgets all datasets, as one does that has lost its disk.
    pub(crate) fn lose_disk(&self) {
        let mut state = self.state.lock();
        state.datasets.clear();
        state.jobs.clear();
    }

    pub(crate) fn credential(&self, name: &str) -> Option<v1::Credential> {
        self.state.lock().credentials.get(name).cloned()
    }

    /// A worker on a node of its name joins, with one disk.
    pub(crate) fn join(&self, node: &str, capacity: u64, used: u64) {
        let worker = v1::WorkerInfo {
            id: node.to_owned(),
            node: node.to_owned(),
            ..v1::WorkerInfo::default()
        };
        let tier = v1::TierUsage {
            tier: "ssd".to_owned(),
            capacity_bytes: capacity,
            used_bytes: used,
            ..v1::TierUsage::default()
        };
        let status = v1::WorkerStatus {
            worker: Some(worker),
            tiers: vec![tier],
            ..v1::WorkerStatus::default()
        };
        self.state.lock().workers.insert(node.to_owned(), status);
    }

    /// A worker leaves; the master keeps that it was cordoned.
    pub(crate) fn leave(&self, node: &str) {
        let mut state = self.state.lock();
        if let Some(worker) = state.workers.get_mut(node) {
            worker.away = true;
        }
        state
            .workers
            .retain(|_, worker| !worker.away || worker.state != 0);
    }

    pub(crate) fn worker(&self, node: &str) -> Option<v1::WorkerStatus> {
        self.state.lock().workers.get(node).cloned()
    }

    /// Changes a job.
    pub(crate) fn job(&self, id: u64, change: impl FnOnce(&mut v1::Job)) {
        change(self.state.lock().jobs.get_mut(&id).unwrap());
    }

    pub(crate) fn mount_on(&self, nodes: Option<&[&str]>) {
        let own = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect();
        self.state.lock().mounted = nodes.map(own);
    }

    /// Asks whose a pod is, until somebody says it.
    pub(crate) async fn ask_about(&self, pod: v1::Pod) -> String {
        let uid = pod.uid.clone();
        self.state.lock().asked.push(pod);
        loop {
            if let Some(job) = self.state.lock().pod_jobs.get(&uid) {
                return job.clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    fn call(&self, line: String) -> Result<(), MasterError> {
        let mut state = self.state.lock();
        if state.is_away {
            return Err(MasterError::Away("connection refused".to_owned()));
        }
        state.calls.push(line);
        Ok(())
    }

    fn refused(&self, name: &DatasetName) -> Result<(), MasterError> {
        let refused = self.state.lock().refused.get(name.as_str()).cloned();
        refused.map_or(Ok(()), Err)
    }

    async fn list(&self, name: &DatasetName) {
        let is_hung = self.state.lock().hung.contains(name.as_str());
        if is_hung {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Master for FakeMaster {
    async fn survey(&self) -> Result<Survey, MasterError> {
        self.call("survey".to_owned())?;
        let state = self.state.lock();
        Ok(Survey {
            datasets: state.datasets.values().cloned().collect(),
            workers: state.workers.values().cloned().collect(),
        })
    }

    async fn judge(&self, name: &DatasetName, _: &DatasetSpec) -> Result<(), MasterError> {
        self.call(format!("judge {name}"))?;
        self.refused(name)
    }

    async fn apply(
        &self,
        name: &DatasetName,
        spec: &DatasetSpec,
        after: u64,
    ) -> Result<v1::Dataset, MasterError> {
        self.call(format!("apply {name} after {after}"))?;
        self.list(name).await;
        let mut state = self.state.lock();
        let known = state.datasets.entry(name.to_string()).or_default();
        let last = known
            .dataset
            .snapshots
            .last()
            .map_or(0, |last| last.version);
        known.dataset.name = name.to_string();
        known.dataset.spec = spec.to_json();
        let version = last.max(after) + 1;
        let (files, bytes) = (10, 4096);
        known.dataset.snapshots.push(v1::Snapshot {
            version,
            files,
            bytes,
            ..v1::Snapshot::default()
        });
        known.status = v1::DatasetStatus {
            name: name.to_string(),
            version,
            files,
            bytes,
            cached_bytes: bytes / 2,
            ..v1::DatasetStatus::default()
        };
        Ok(known.dataset.clone())
    }

    async fn refresh(&self, name: &DatasetName) -> Result<(v1::Dataset, bool), MasterError> {
        self.call(format!("refresh {name}"))?;
        self.list(name).await;
        let state = self.state.lock();
        let known = state.datasets.get(name.as_str()).cloned();
        Ok((known.unwrap_or_default().dataset, false))
    }

    async fn waits_for(&self, name: &DatasetName) -> Result<String, MasterError> {
        let is_hung = self.state.lock().hung.contains(name.as_str());
        Ok(if is_hung {
            "the bucket, which does not answer".to_owned()
        } else {
            String::new()
        })
    }

    async fn delete(&self, name: &DatasetName) -> Result<(), MasterError> {
        self.call(format!("delete {name}"))?;
        self.state.lock().datasets.remove(name.as_str());
        Ok(())
    }

    async fn set_credential(
        &self,
        name: &CredentialName,
        credential: v1::Credential,
    ) -> Result<(), MasterError> {
        self.call(format!("set {name}"))?;
        self.state
            .lock()
            .credentials
            .insert(name.to_string(), credential);
        Ok(())
    }

    async fn credentials(&self) -> Result<Vec<String>, MasterError> {
        Ok(self.state.lock().credentials.keys().cloned().collect())
    }

    async fn delete_credential(&self, name: &CredentialName) -> Result<(), MasterError> {
        self.call(format!("delete credentials {name}"))?;
        self.state.lock().credentials.remove(name.as_str());
        Ok(())
    }

    async fn locate(&self, name: &DatasetName) -> Result<v1::LocateDatasetReply, MasterError> {
        self.call(format!("locate {name}"))?;
        self.list(name).await;
        let place = v1::CachedAt {
            name: "node-1".to_owned(),
            cached_bytes: 4096,
        };
        Ok(v1::LocateDatasetReply {
            name: name.to_string(),
            bytes: 4096,
            nodes: vec![place],
            ..v1::LocateDatasetReply::default()
        })
    }

    async fn start_job(&self, job: v1::StartJobRequest) -> Result<v1::Job, MasterError> {
        self.call(format!("start {}", job.dataset))?;
        let name = job.dataset.parse().unwrap();
        self.refused(&name)?;
        let mut state = self.state.lock();
        let id = state.jobs.len() as u64 + 1;
        let job = v1::Job {
            id,
            kind: job.kind,
            state: v1::JobState::Running.into(),
            dataset: job.dataset,
            version: 1,
            paths: job.paths,
            places: job.places,
            copies: job.copies,
            total_bytes: 1000,
            started_ns: state.calls.len() as i64,
            ..v1::Job::default()
        };
        state.jobs.insert(id, job.clone());
        Ok(job)
    }

    async fn get_job(&self, id: u64) -> Result<Option<v1::Job>, MasterError> {
        self.call(format!("get job {id}"))?;
        Ok(self.state.lock().jobs.get(&id).cloned())
    }

    async fn cancel_job(&self, id: u64) -> Result<(), MasterError> {
        self.call(format!("cancel job {id}"))
    }

    async fn drain_worker(&self, id: &str) -> Result<v1::Job, MasterError> {
        self.call(format!("drain {id}"))?;
        let mut state = self.state.lock();
        if let Some(refused) = state.refused.get(id) {
            return Err(refused.clone());
        }
        if state.workers.get(id).is_none_or(|worker| worker.away) {
            return Err(MasterError::Refused {
                why: Refusal::NotFound,
                message: format!("there is no worker {id}"),
            });
        }
        let job = v1::Job {
            id: state.jobs.len() as u64 + 1,
            kind: v1::JobKind::Drain.into(),
            state: v1::JobState::Running.into(),
            worker: id.to_owned(),
            total_bytes: 1000,
            ..v1::Job::default()
        };
        state.jobs.insert(job.id, job.clone());
        if let Some(worker) = state.workers.get_mut(id) {
            worker.state = v1::WorkerState::Cordoned.into();
        }
        Ok(job)
    }

    async fn uncordon_worker(&self, id: &str) -> Result<(), MasterError> {
        self.call(format!("uncordon {id}"))?;
        let mut state = self.state.lock();
        if let Some(worker) = state.workers.get_mut(id) {
            worker.state = 0;
        }
        state.workers.retain(|_, worker| !worker.away);
        Ok(())
    }

    async fn mounted_on(&self, name: &DatasetName) -> Result<Option<Vec<String>>, MasterError> {
        self.call(format!("mounts {name}"))?;
        Ok(self.state.lock().mounted.clone())
    }

    async fn choose_snapshot(&self, name: &DatasetName, job: &str) -> Result<u64, MasterError> {
        self.call(format!("choose {name} for {job}"))?;
        Ok(1)
    }

    async fn exchange_pods(&self, known: Vec<v1::PodJob>) -> Result<Vec<v1::Pod>, MasterError> {
        self.call("exchange".to_owned())?;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let mut state = self.state.lock();
        let known = known
            .into_iter()
            .filter_map(|known| Some((known.pod?.uid, known.job)));
        state.pod_jobs.extend(known);
        Ok(std::mem::take(&mut state.asked))
    }

    async fn review_jobs(&self, _: v1::ReviewJobsRequest) -> Result<Vec<String>, MasterError> {
        self.call("review".to_owned())?;
        Ok(Vec::new())
    }
}
