//! An apiserver with its etcd, and a master in memory.

#![allow(dead_code, reason = "each test needs some of it")]

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kube::{Client, Config};
use serde_json::{Value, json};
use weir_core::{CredentialName, DatasetName, DatasetSpec};
use weir_operator::{Known, Master, MasterError, Survey};
use weir_proto::v1;

/// Names the directory with the programs.
const VARIABLE: &str = "WEIR_TEST_APISERVER";
/// Longest wait for what must happen.
const DEADLINE: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Waits until something is so.
pub(crate) async fn until<F, W>(what: &str, is: F)
where
    F: Fn() -> W,
    W: Future<Output = bool>,
{
    let end = Instant::now() + DEADLINE;
    while !is().await {
        assert!(Instant::now() < end, "there was never {what}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A program that ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Cluster {
    url: String,
    admin: Client,
    // The apiserver first, then its store.
    _programs: [Program; 2],
    dir: tempfile::TempDir,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// An address of this machine that nobody has.
pub(crate) fn free_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

fn start(program: PathBuf, log: &Path, args: &[String]) -> Program {
    let log = std::fs::File::create(log).unwrap();
    let child = Command::new(&program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    Program(child.unwrap_or_else(|error| panic!("{}: {error}", program.display())))
}

/// A client of the apiserver, with the rights of a user, or all.
pub(crate) fn client(url: &str, user: Option<&str>) -> Client {
    let mut config = Config::new(url.parse().unwrap());
    config.accept_invalid_certs = true;
    let auth = json!({ "token": "admin-token", "as": user });
    config.auth_info = serde_json::from_value(auth).unwrap();
    Client::try_from(config).unwrap()
}

impl Cluster {
    /// Starts one, if there are programs for it.
    pub(crate) async fn start() -> Option<Self> {
        let programs = PathBuf::from(std::env::var_os(VARIABLE)?);
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (etcd, peer, port) = (free_port(), free_port(), free_port());
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(at("sa.key"), key.serialize_pem()).unwrap();
        std::fs::write(at("sa.pub"), key.public_key_pem()).unwrap();
        let tokens = "admin-token,admin,admin,\"system:masters\"\n";
        std::fs::write(at("tokens.csv"), tokens).unwrap();
        let store = start(
            programs.join("etcd"),
            &dir.path().join("etcd.log"),
            &[
                format!("--data-dir={}", at("etcd")),
                format!("--listen-client-urls=http://127.0.0.1:{etcd}"),
                format!("--advertise-client-urls=http://127.0.0.1:{etcd}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        );
        let server = start(
            programs.join("kube-apiserver"),
            &dir.path().join("apiserver.log"),
            &[
                format!("--etcd-servers=http://127.0.0.1:{etcd}"),
                format!("--secure-port={port}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--cert-dir={}", at("certs")),
                "--service-cluster-ip-range=10.99.0.0/24".to_owned(),
                "--service-account-issuer=https://weir.test".to_owned(),
                format!("--service-account-key-file={}", at("sa.pub")),
                format!("--service-account-signing-key-file={}", at("sa.key")),
                "--authorization-mode=RBAC".to_owned(),
                format!("--token-auth-file={}", at("tokens.csv")),
                // No controller makes service accounts for pods.
                "--disable-admission-plugins=ServiceAccount".to_owned(),
            ],
        );
        let url = format!("https://127.0.0.1:{port}");
        let cluster = Self {
            admin: client(&url, None),
            url,
            _programs: [server, store],
            dir,
        };
        until("an apiserver", || async {
            let ready = http::Request::get("/readyz").body(Vec::new()).unwrap();
            cluster.admin.request_text(ready).await.is_ok()
        })
        .await;
        Some(cluster)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What the apiserver says at a path.
    pub(crate) async fn text(&self, path: &str) -> String {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        self.admin.request_text(request).await.unwrap()
    }

    /// A client with the rights of a user.
    pub(crate) fn client_as(&self, user: &str) -> Client {
        client(&self.url, Some(user))
    }

    /// Installs definitions and rights, and a namespace for users.
    pub(crate) async fn install(&self) {
        for namespace in ["weir-system", "team-a"] {
            let object = json!({ "metadata": { "name": namespace } });
            self.post("/api/v1/namespaces", &object).await.unwrap();
        }
        for object in definitions().into_iter().chain(manifests(&RIGHTS)) {
            self.post(&collection(&object), &object).await.unwrap();
        }
        until("the kinds", || async {
            let known = self.get("/apis/weir.io/v1alpha1/warmups").await;
            known.is_some() && self.get("/apis/weir.io/v1alpha1/datasets").await.is_some()
        })
        .await;
        let user = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": { "name": "user", "namespace": "team-a" },
            "rules": [{ "apiGroups": ["weir.io"], "resources": ["datasets"], "verbs": ["create"] }],
        });
        self.post(&collection(&user), &user).await.unwrap();
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": "user", "namespace": "team-a" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "user" },
            "subjects": [{ "kind": "User", "name": "ann" }],
        });
        self.post(&collection(&binding), &binding).await.unwrap();
    }

    /// Installs the webhook as the chart has it, but for its address: there is no network of services here.
    pub(crate) async fn install_webhook(&self, address: SocketAddr) {
        for mut object in manifests(&WEBHOOKS) {
            for webhook in object["webhooks"].as_array_mut().unwrap() {
                let path = webhook["clientConfig"]["service"]["path"].as_str().unwrap();
                let url = format!("https://localhost:{}{path}", address.port());
                webhook["clientConfig"] = json!({ "url": url });
            }
            self.post(&collection(&object), &object).await.unwrap();
        }
    }

    /// The template of a worker's pod that the chart has.
    pub(crate) fn worker_template(&self) -> PathBuf {
        let maps = manifests(&["ConfigMap"]);
        let mut templates = maps
            .iter()
            .filter_map(|map| map["data"]["pod.json"].as_str());
        let path = self.dir.path().join("worker.json");
        std::fs::write(&path, templates.next().unwrap()).unwrap();
        path
    }

    pub(crate) async fn get(&self, path: &str) -> Option<Value> {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        match self.admin.request::<Value>(request).await {
            Ok(value) => Some(value),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => panic!("{path}: {error}"),
        }
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Value, String> {
        send(&self.admin, "POST", path, "application/json", object).await
    }

    pub(crate) async fn post_as(
        &self,
        user: &str,
        path: &str,
        object: &Value,
    ) -> Result<Value, String> {
        send(
            &self.client_as(user),
            "POST",
            path,
            "application/json",
            object,
        )
        .await
    }

    pub(crate) async fn patch_as(
        &self,
        user: &str,
        path: &str,
        kind: &str,
        patch: &Value,
    ) -> Result<Value, String> {
        send(&self.client_as(user), "PATCH", path, kind, patch).await
    }

    /// Installs the objects of these kinds that the chart makes.
    pub(crate) async fn install_kinds(&self, kinds: &[&str]) {
        for object in manifests(kinds) {
            self.post(&collection(&object), &object).await.unwrap();
        }
    }

    pub(crate) async fn merge(&self, path: &str, patch: &Value) -> Result<Value, String> {
        let kind = "application/merge-patch+json";
        send(&self.admin, "PATCH", path, kind, patch).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Value, String> {
        send(&self.admin, "DELETE", path, "application/json", &json!({})).await
    }

    /// Deletes a pod at once, as if kubelet had ended it.
    pub(crate) async fn delete_now(&self, path: &str) {
        let now = json!({ "gracePeriodSeconds": 0 });
        let deleted = send(&self.admin, "DELETE", path, "application/json", &now).await;
        deleted.unwrap();
    }

    /// Does what the controller of volumes does.
    pub(crate) async fn bind(&self, claim: &str, volume: &str) {
        let object = self.get(claim).await.unwrap();
        let uid = &object["metadata"]["uid"];
        let volume = format!("/api/v1/persistentvolumes/{volume}");
        self.merge(&volume, &json!({ "spec": { "claimRef": { "uid": uid } } }))
            .await
            .unwrap();
        let bound = json!({ "status": { "phase": "Bound" } });
        self.merge(&format!("{claim}/status"), &bound)
            .await
            .unwrap();
    }

    /// Takes away what protects an object that is used, when it is being deleted.
    pub(crate) async fn unprotect(&self, path: &str) {
        let object = self.get(path).await;
        if object.is_some_and(|object| !object["metadata"]["deletionTimestamp"].is_null()) {
            let none = json!({ "metadata": { "finalizers": null } });
            let _ = self.merge(path, &none).await;
        }
    }
}

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    kind: &str,
    body: &Value,
) -> Result<Value, String> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(body.to_string().into_bytes())
        .unwrap();
    let sent = client.request::<Value>(request).await;
    sent.map_err(|error| error.to_string())
}

/// Who the operator is, and its rights.
const RIGHTS: [&str; 5] = [
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
];
/// What of it has the apiserver ask the webhook.
const WEBHOOKS: [&str; 2] = [
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
];

/// A file below `deploy/`.
fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}

/// The definitions that the chart has.
fn definitions() -> Vec<Value> {
    let files = std::fs::read_dir(deployed("helm/weir/crds")).unwrap();
    let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    texts
        .map(|text| serde_saphyr::from_str(&text).unwrap())
        .collect()
}

/// The objects of these kinds that the chart makes.
fn manifests(kinds: &[&str]) -> Vec<Value> {
    let text = std::fs::read_to_string(deployed("kubernetes/weir.yaml")).unwrap();
    let mut objects = documents(&text);
    objects.retain(|object| kinds.iter().any(|kind| object["kind"] == *kind));
    assert!(objects.len() >= kinds.len(), "{kinds:?}");
    objects
}

/// The objects of a file.
fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .filter(|document| document.lines().any(|line| !line.starts_with('#')))
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect()
}

/// What one template of the chart makes with a value.
pub(crate) fn rendered(template: &str, value: &str) -> Vec<Value> {
    let helm = PathBuf::from(std::env::var_os(VARIABLE).unwrap()).join("helm");
    let made = Command::new(helm)
        .args(["template", "weir"])
        .arg(deployed("helm/weir"))
        .args(["--namespace", "weir-system", "--kube-version", "1.34.2"])
        .args(["--show-only", template, "--set", value])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    documents(&String::from_utf8(made.stdout).unwrap())
}

/// Where objects of a kind are made.
pub(crate) fn collection(object: &Value) -> String {
    let version = object["apiVersion"].as_str().unwrap();
    let kind = object["kind"].as_str().unwrap().to_lowercase();
    let root = if version.contains('/') { "apis" } else { "api" };
    let kinds = match kind.strip_suffix('y') {
        Some(begin) => format!("{begin}ies"),
        None => format!("{kind}s"),
    };
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{kinds}"),
        None => format!("/{root}/{version}/{kinds}"),
    }
}

/// Bytes of each dataset.
const BYTES: u64 = 4096;
/// The job of [`MemoryMaster::warm`].
const JOB: u64 = 7;

/// A master that lists and warms at once, unless it is told how far it is.
#[derive(Default)]
pub(crate) struct MemoryMaster {
    datasets: Mutex<HashMap<String, Known>>,
    credentials: Mutex<HashMap<String, v1::Credential>>,
    workers: Mutex<HashMap<String, v1::WorkerStatus>>,
    /// How much of all datasets is warmed, in percent; none if all that is asked for is done at once.
    warmed: Mutex<Option<u64>>,
    jobs: Mutex<u64>,
    /// Nodes that hold a part of each dataset.
    nodes: Mutex<Vec<v1::CachedAt>>,
    /// Jobs of which all pods see one snapshot.
    pub(crate) chosen: Mutex<Vec<String>>,
}

impl MemoryMaster {
    /// A worker on a node of its name joins.
    pub(crate) fn join(&self, node: &str) {
        let worker = v1::WorkerInfo {
            id: node.to_owned(),
            node: node.to_owned(),
            ..v1::WorkerInfo::default()
        };
        let status = v1::WorkerStatus {
            worker: Some(worker),
            ..v1::WorkerStatus::default()
        };
        self.workers.lock().unwrap().insert(node.to_owned(), status);
    }

    /// How a worker stands.
    pub(crate) fn standing(&self, node: &str) -> v1::WorkerState {
        self.workers.lock().unwrap()[node].state()
    }

    /// Has jobs be so far, in percent. Nothing is cached.
    pub(crate) fn warm(&self, percent: Option<u64>) {
        *self.warmed.lock().unwrap() = percent;
    }

    /// Has each dataset be cached on 5,000 nodes.
    pub(crate) fn be_large(&self) {
        let place = |number: u64| v1::CachedAt {
            name: format!("node-{number:04}.example.com"),
            cached_bytes: number % BYTES,
        };
        *self.nodes.lock().unwrap() = (0..5000).map(place).collect();
    }

    /// How many jobs were started.
    pub(crate) fn jobs(&self) -> u64 {
        *self.jobs.lock().unwrap()
    }

    fn job(&self, dataset: String) -> v1::Job {
        let warmed = *self.warmed.lock().unwrap();
        let state = match warmed {
            Some(percent) if percent < 100 => v1::JobState::Running,
            _ => v1::JobState::Done,
        };
        v1::Job {
            id: JOB,
            dataset,
            state: state.into(),
            total_bytes: BYTES,
            done_bytes: (BYTES * warmed.unwrap_or(100)).div_ceil(100),
            ..v1::Job::default()
        }
    }

    pub(crate) fn has_credentials(&self, name: &str) -> bool {
        self.credentials.lock().unwrap().contains_key(name)
    }
}

#[async_trait]
impl Master for MemoryMaster {
    async fn survey(&self) -> Result<Survey, MasterError> {
        Ok(Survey {
            datasets: self.datasets.lock().unwrap().values().cloned().collect(),
            workers: self.workers.lock().unwrap().values().cloned().collect(),
        })
    }

    async fn judge(&self, _: &DatasetName, _: &DatasetSpec) -> Result<(), MasterError> {
        Ok(())
    }

    async fn apply(
        &self,
        name: &DatasetName,
        spec: &DatasetSpec,
        after: u64,
    ) -> Result<v1::Dataset, MasterError> {
        let mut datasets = self.datasets.lock().unwrap();
        let known = datasets.entry(name.to_string()).or_default();
        known.dataset.name = name.to_string();
        known.dataset.spec = spec.to_json();
        known.dataset.snapshots.push(v1::Snapshot {
            version: after + 1,
            files: 10,
            bytes: BYTES,
            ..v1::Snapshot::default()
        });
        known.status.bytes = BYTES;
        Ok(known.dataset.clone())
    }

    async fn refresh(&self, name: &DatasetName) -> Result<(v1::Dataset, bool), MasterError> {
        let datasets = self.datasets.lock().unwrap();
        let known = datasets.get(name.as_str()).cloned().unwrap_or_default();
        Ok((known.dataset, false))
    }

    async fn waits_for(&self, _: &DatasetName) -> Result<String, MasterError> {
        Ok(String::new())
    }

    async fn delete(&self, name: &DatasetName) -> Result<(), MasterError> {
        self.datasets.lock().unwrap().remove(name.as_str());
        Ok(())
    }

    async fn set_credential(
        &self,
        name: &CredentialName,
        credential: v1::Credential,
    ) -> Result<(), MasterError> {
        self.credentials
            .lock()
            .unwrap()
            .insert(name.to_string(), credential);
        Ok(())
    }

    async fn credentials(&self) -> Result<Vec<String>, MasterError> {
        Ok(self.credentials.lock().unwrap().keys().cloned().collect())
    }

    async fn delete_credential(&self, name: &CredentialName) -> Result<(), MasterError> {
        self.credentials.lock().unwrap().remove(name.as_str());
        Ok(())
    }

    async fn locate(&self, _: &DatasetName) -> Result<v1::LocateDatasetReply, MasterError> {
        let mut nodes = self.nodes.lock().unwrap().clone();
        if nodes.is_empty() {
            nodes.push(v1::CachedAt {
                name: "node-1".to_owned(),
                cached_bytes: BYTES,
            });
        }
        nodes.sort_by_key(|node| std::cmp::Reverse(node.cached_bytes));
        Ok(v1::LocateDatasetReply {
            bytes: BYTES,
            nodes,
            ..v1::LocateDatasetReply::default()
        })
    }

    async fn start_job(&self, job: v1::StartJobRequest) -> Result<v1::Job, MasterError> {
        *self.jobs.lock().unwrap() += 1;
        Ok(self.job(job.dataset))
    }

    async fn get_job(&self, id: u64) -> Result<Option<v1::Job>, MasterError> {
        Ok((id == JOB).then(|| self.job(String::new())))
    }

    async fn cancel_job(&self, _: u64) -> Result<(), MasterError> {
        Ok(())
    }

    async fn drain_worker(&self, id: &str) -> Result<v1::Job, MasterError> {
        if let Some(worker) = self.workers.lock().unwrap().get_mut(id) {
            worker.set_state(v1::WorkerState::Drained);
        }
        Ok(v1::Job {
            id: 2,
            worker: id.to_owned(),
            state: v1::JobState::Done.into(),
            ..v1::Job::default()
        })
    }

    async fn uncordon_worker(&self, id: &str) -> Result<(), MasterError> {
        if let Some(worker) = self.workers.lock().unwrap().get_mut(id) {
            worker.set_state(v1::WorkerState::Unspecified);
        }
        Ok(())
    }

    async fn mounted_on(&self, _: &DatasetName) -> Result<Option<Vec<String>>, MasterError> {
        Ok(Some(Vec::new()))
    }

    async fn note_conditions(&self, _: Vec<v1::DatasetCondition>) -> Result<(), MasterError> {
        Ok(())
    }

    async fn choose_snapshot(&self, name: &DatasetName, job: &str) -> Result<u64, MasterError> {
        self.chosen.lock().unwrap().push(format!("{name} {job}"));
        Ok(1)
    }

    async fn exchange_pods(
        &self,
        _: v1::ExchangePodsRequest,
    ) -> Result<v1::ExchangePodsReply, MasterError> {
        tokio::time::sleep(Duration::from_secs(8)).await;
        Ok(v1::ExchangePodsReply::default())
    }

    async fn review_jobs(&self, _: v1::ReviewJobsRequest) -> Result<Vec<String>, MasterError> {
        Ok(Vec::new())
    }
}
